"""Polynomials of index atoms: the normal form of i64 expressions.

::

    Poly ::= sum of coefficient * product of atoms          canonical: no zero terms, products sorted
    Atom ::= Var | Size of one symbol | any other i64 expression that is not a sum, difference or product

A vector is written per lane: ``ramp(b, L)`` is ``b + lane``, where ``lane`` is one variable per number of
lanes that stands for ``0 .. L-1``; ``splat`` disappears. Arithmetic is on Python integers (i64 is taken not
to overflow).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from strata.core.dims import Dim, DimExpr, SymDim
from strata.core.dtypes import i64

from . import build
from .nodes import Binary, BinaryOp, Const, Expr, Ramp, Size, Splat, Var

Monomial = tuple[Expr, ...]


@cache
def lane_var(lanes: int) -> Var:
    """The variable that stands for ``0 .. lanes-1`` in polynomials of vectors with that many lanes."""
    return Var(f"lane{lanes}")


@cache
def _lane_vars() -> dict[Var, int]:
    return {}


def lane(lanes: int) -> Poly:
    """``lane_var(lanes)`` as a polynomial."""
    var = lane_var(lanes)
    _lane_vars()[var] = lanes
    return Poly.atom(var)


def lanes_of(var: Var) -> int | None:
    """How many lanes a variable of :func:`lane_var` counts; ``None`` for any other variable."""
    return _lane_vars().get(var)


def _key(atom: Expr) -> tuple[int, int, str]:
    match atom:
        case Var():
            return (0, atom.uid, "")
        case Size():
            return (1, 0, str(atom.dim))
        case _:
            return (2, 0, repr(atom))


@dataclass(frozen=True, slots=True, eq=False)
class Poly:
    """A polynomial with integer coefficients; ``()`` is the monomial of the constant."""

    terms: Mapping[Monomial, int]

    @staticmethod
    def const(value: int) -> Poly:
        """A constant."""
        return Poly({(): value} if value else {})

    @staticmethod
    def atom(expr: Expr) -> Poly:
        """One atom."""
        return Poly({(expr,): 1})

    @staticmethod
    def size(dim: Dim) -> Poly:
        """A symbolic dim: one atom per symbol."""
        match dim:
            case int():
                return Poly.const(dim)
            case SymDim():
                return Poly.atom(Size(dim))
            case DimExpr():
                return Poly({tuple(sorted((Size(s) for s in syms), key=_key)): k for k, syms in dim.terms})

    @property
    def constant(self) -> int | None:
        """The value, if this is a constant."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __add__(self, other: Poly | int) -> Poly:
        out = dict(self.terms)
        for mono, k in _poly(other).terms.items():
            out[mono] = out.get(mono, 0) + k
        return Poly({m: k for m, k in out.items() if k})

    def __neg__(self) -> Poly:
        return Poly({m: -k for m, k in self.terms.items()})

    def __sub__(self, other: Poly | int) -> Poly:
        return self + -_poly(other)

    def __mul__(self, other: Poly | int) -> Poly:
        if isinstance(other, int):
            return Poly({m: k * other for m, k in self.terms.items()} if other else {})
        out: dict[Monomial, int] = {}
        for m1, k1 in self.terms.items():
            for m2, k2 in other.terms.items():
                mono = tuple(sorted(m1 + m2, key=_key)) if m1 and m2 else m1 or m2
                out[mono] = out.get(mono, 0) + k1 * k2
        return Poly({m: k for m, k in out.items() if k})

    def atoms(self) -> Iterator[Expr]:
        """Every atom, once, in the order of the terms."""
        return iter(dict.fromkeys(a for mono in self.terms for a in mono))

    def without(self, mono: Monomial) -> Poly:
        """The polynomial less one term."""
        return Poly({m: k for m, k in self.terms.items() if m != mono})

    def collect(self, atom: Expr) -> tuple[Poly, Poly] | None:
        """``(q, r)`` with ``self = q * atom + r``, both without ``atom``; ``None`` if not linear in it."""
        q: dict[Monomial, int] = {}
        r: dict[Monomial, int] = {}
        for mono, k in self.terms.items():
            times = mono.count(atom)
            if times > 1:
                return None
            if times:
                q[tuple(a for a in mono if a != atom)] = k
            else:
                r[mono] = k
        return Poly(q), Poly(r)

    def divide(self, divisor: Poly) -> tuple[Poly, Poly]:
        """``(q, r)`` with ``self = q * divisor + r``, dividing by the divisor's leading term."""
        lead = max(divisor.terms, key=lambda m: (len(m), [_key(a) for a in m]))
        k_lead = divisor.terms[lead]
        q, r = Poly({}), self
        for _ in range(16):  # each round removes one term; index expressions have few
            step = next((s for m, k in r.terms.items() if (s := _term_div(m, k, lead, k_lead))), None)
            if step is None:
                break
            q, r = q + step, r - step * divisor
        return q, r


def _poly(value: Poly | int) -> Poly:
    return Poly.const(value) if isinstance(value, int) else value


def _term_div(mono: Monomial, k: int, lead: Monomial, k_lead: int) -> Poly | None:
    if k % k_lead:
        return None
    rest = list(mono)
    for atom in lead:
        if atom not in rest:
            return None
        rest.remove(atom)
    return Poly({tuple(rest): k // k_lead})


# ------------------------------------------------------------------------------------- back to expressions


def to_expr(poly: Poly, lanes: int = 1) -> Expr:
    """The polynomial as an expression with ``lanes`` lanes: variables first, then sizes, then the constant.

    Terms with a negative coefficient are subtracted, so ``n - 1 - i`` stays readable.
    """
    scalars: list[tuple[Expr, int]] = []
    vectors: list[tuple[Expr, int]] = []
    ramps = 0
    for mono, k in sorted(poly.terms.items(), key=lambda t: _order(t[0])):
        if len(mono) == 1 and isinstance(mono[0], Var) and lanes_of(mono[0]) == lanes and k == 1:
            ramps = 1
            continue
        term = _product(mono)
        (scalars if term.lanes == 1 else vectors).append((term, k))
    out = _sum(scalars)
    if ramps:
        out = build.ramp(out, lanes)
    if vectors:
        rest = _sum(vectors)
        out = rest if isinstance(out, Const) and out.value == 0 else build.add(out, rest)
    return build.splat(out, lanes)


def _order(mono: Monomial) -> tuple[bool, list[tuple[int, int, str]]]:
    return (not mono, [_key(a) for a in mono])


def _product(mono: Monomial) -> Expr:
    factors = [_atom_expr(a) for a in mono]
    out: Expr = Const(1, i64)
    for factor in factors:
        out = build.mul(out, factor)
    return out


def _atom_expr(atom: Expr) -> Expr:
    count = lanes_of(atom) if isinstance(atom, Var) else None
    return atom if count is None else Ramp(Const(0, i64), count)


def _sum(terms: Iterable[tuple[Expr, int]]) -> Expr:
    """Positive terms first, then the constant's and the negative terms by subtraction."""
    ordered = list(terms)
    positive = [t for t in ordered if t[1] > 0]
    negative = [t for t in ordered if t[1] < 0]
    out: Expr = Const(0, i64)
    for term, k in positive:
        out = build.add(out, build.mul(term, k))
    for term, k in negative:
        if k == -(2**63):  # its negation is no i64
            out = build.add(out, build.mul(term, k))
            continue
        amount = build.mul(term, -k)
        zero = isinstance(out, Const) and out.value == 0
        out = _negated(amount) if zero else build.sub(out, amount)
    return out


def _negated(amount: Expr) -> Expr:
    if isinstance(amount, Const):
        return Const(-amount.value, i64)
    return Binary(BinaryOp.MUL, amount, build.splat(Const(-1, i64), amount.lanes))


# ------------------------------------------------------------------------------------------------ queries


def const_of(expr: Expr) -> int | None:
    """Value of a constant, also a splatted one."""
    if isinstance(expr, Splat):
        expr = expr.a
    return int(expr.value) if isinstance(expr, Const) else None


def is_vector(atom: Expr) -> bool:
    """Whether the atom differs from lane to lane."""
    return atom.lanes > 1 or (isinstance(atom, Var) and lanes_of(atom) is not None)


def multiple_of_atom(atom: Expr) -> int:
    """A number that divides every value of the atom."""
    return atom.dim.multiple_of if isinstance(atom, Size) and isinstance(atom.dim, SymDim) else 1


def facts_of(op: BinaryOp, diff: Poly, holds: bool) -> list[Poly]:
    """Polynomials that are all >= 0 iff ``diff op 0`` is ``holds``; none for a disequality."""
    if not holds:
        op = _INVERSE[op]
    match op:
        case BinaryOp.LT:
            return [-diff - 1]
        case BinaryOp.LE:
            return [-diff]
        case BinaryOp.GT:
            return [diff - 1]
        case BinaryOp.GE:
            return [diff]
        case BinaryOp.EQ:
            return [diff, -diff]
        case _:
            return []


_INVERSE = {
    BinaryOp.LT: BinaryOp.GE,
    BinaryOp.GE: BinaryOp.LT,
    BinaryOp.GT: BinaryOp.LE,
    BinaryOp.LE: BinaryOp.GT,
    BinaryOp.EQ: BinaryOp.NE,
    BinaryOp.NE: BinaryOp.EQ,
}
