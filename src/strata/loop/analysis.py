"""What is known about index expressions at one place of a function: ranges of variables and facts, and proofs
from them.

Expressions are turned into polynomials (:mod:`.affine`), with floor division and modulo resolved where the
ranges allow it. :meth:`Analysis.lower` finds a lower bound of a polynomial by interval arithmetic, improved
by eliminating variables with symbolic bounds (``i <= n-1`` proves ``n - i - 1 >= 0``), by cases of ``min``
and ``max``, by ``x//m <= x/m``, and by known facts. Everything else (comparisons, :meth:`Analysis.prove`)
reduces to that.

Sound under these assumptions: every variable is inside its range, every symbolic dim inside ``lo..hi`` and a
multiple of ``multiple_of``, i64 does not overflow, no divisor is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from strata.core.dims import SymDim
from strata.core.dtypes import bool_, i64

from . import build
from .affine import Poly, const_of, facts_of, is_vector, lane, lanes_of, multiple_of_atom, to_expr
from .intervals import Interval, absolute, combine, largest, multiply, union
from .nodes import (
    COMPARISONS,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Load,
    Ramp,
    Reduce,
    ReduceOp,
    Select,
    Size,
    Splat,
    Unary,
    UnaryOp,
    Var,
)
from .rewrite import expr_children, has_load, rebuild_expr
from .values import int_range

_MAX_TERMS = 64  # products of larger sums stay opaque
_DEPTH = 6  # nested eliminations of one proof
_BUDGET = 60  # eliminations of one proof in total
_NESTED = 3  # proofs inside of proofs (to simplify what a bound is made of)


class Analysis:
    """Ranges and facts of one scope.

    Args:
        ranges: Inclusive bounds of variables, ``None`` where unknown; outer variables first (the bounds of a
            variable may mention those before it). facts: Polynomials known to be >= 0. known: Bool
            expressions known to be true.
    """

    def __init__(
        self,
        ranges: Mapping[Var, tuple[Poly | None, Poly | None]] | None = None,
        facts: tuple[Poly, ...] = (),
        known: frozenset[Expr] = frozenset(),
    ) -> None:
        self._ranges = dict(ranges or {})
        self._facts = facts
        self._known = known
        self._polys: dict[int, tuple[Expr, Poly]] = {}
        self._simple: dict[int, tuple[Expr, Expr]] = {}
        self._atoms: dict[Expr, Interval] = {}
        self._budget = 0
        self._nested = 0

    # ------------------------------------------------------------------------------------------- scopes

    def with_range(self, var: Var, lo: Expr | int | None, hi: Expr | int | None) -> Analysis:
        """A scope in which also ``lo <= var <= hi``."""
        bounds = (self._bound(lo), self._bound(hi))
        return Analysis({**self._ranges, var: bounds}, self._facts, self._known)

    def _bound(self, value: Expr | int | None) -> Poly | None:
        if value is None or isinstance(value, int):
            return None if value is None else Poly.const(value)
        return self.poly(value)

    def with_fact(self, cond: Expr, holds: bool = True) -> Analysis:
        """A scope in which the scalar condition ``cond`` is also known to be true (or false).

        The caller makes sure that it stays so: a condition that loads from memory must not be handed in where
        that memory is written.
        """
        facts, known = list(self._facts), set(self._known)
        self._add_fact(cond, holds, facts, known)
        return Analysis(self._ranges, tuple(facts), frozenset(known))

    def _add_fact(self, cond: Expr, holds: bool, facts: list[Poly], known: set[Expr]) -> None:
        match cond:
            case Unary(op=UnaryOp.NOT):
                return self._add_fact(cond.a, not holds, facts, known)
            case Binary(op=BinaryOp.AND | BinaryOp.OR as op) if (op is BinaryOp.AND) == holds:
                self._add_fact(cond.a, holds, facts, known)
                return self._add_fact(cond.b, holds, facts, known)
            case Binary() if cond.op in COMPARISONS and cond.a.dtype == i64:
                facts.extend(facts_of(cond.op, self.poly(cond.a) - self.poly(cond.b), holds))
                return None
        known.add(cond if holds else build.not_(cond))
        return None

    # ---------------------------------------------------------------------------------------- polynomials

    def poly(self, expr: Expr) -> Poly:
        """The i64 expression (per lane) as a polynomial."""
        found = self._polys.get(id(expr))
        if found is None:
            found = (expr, self._recombine(self._poly(expr)))
            self._polys[id(expr)] = found
        return found[1]

    def _poly(self, expr: Expr) -> Poly:
        match expr:
            case Const():
                return Poly.const(int(expr.value))
            case Var():
                lo, hi = self._ranges.get(expr, (None, None))
                if lo is not None and hi is not None and lo.constant is not None and lo == hi:
                    return lo
                return Poly.atom(expr)
            case Size():
                return Poly.size(expr.dim)
            case Ramp():
                return self.poly(expr.base) + lane(expr.lanes)
            case Splat():
                return self.poly(expr.a)
            case Unary(op=UnaryOp.NEG):
                return -self.poly(expr.a)
            case Binary():
                return self._binary(expr)
            case _:
                return Poly.atom(self.simplify_parts(expr))

    def _binary(self, expr: Binary) -> Poly:
        a, b = self.poly(expr.a), self.poly(expr.b)
        match expr.op:
            case BinaryOp.ADD:
                return a + b
            case BinaryOp.SUB:
                return a - b
            case BinaryOp.MUL if len(a.terms) * len(b.terms) <= _MAX_TERMS:
                return a * b
            case BinaryOp.FLOORDIV:
                return self.floordiv(a, b, expr.lanes)
            case BinaryOp.FLOORMOD:
                return self.floormod(a, b, expr.lanes)
            case BinaryOp.MIN | BinaryOp.MAX:
                small, large = (a, b) if expr.op is BinaryOp.MIN else (b, a)
                if self.nonneg(large - small):
                    return a
                if self.nonneg(small - large):
                    return b
        return self._opaque(expr.op, a, b, expr.lanes)

    def _opaque(self, op: BinaryOp, a: Poly, b: Poly, lanes: int) -> Poly:
        """An atom; scalar when both operands are the same in all lanes."""
        if lanes > 1 and not any(is_vector(x) for x in (*a.atoms(), *b.atoms())):
            lanes = 1
        return Poly.atom(Binary(op, to_expr(a, lanes), to_expr(b, lanes)))

    def _recombine(self, poly: Poly) -> Poly:
        """``k*m*(x//m) + k*(x%m) -> k*x``, and ``k*m*(x//m) -> k*x`` where m divides x."""
        for mono, k in poly.terms.items():
            match mono:
                case (Binary(op=BinaryOp.FLOORDIV, a=x, b=divisor),):
                    m = const_of(divisor)
                    if m is None or m <= 0 or k % m:
                        continue
                    mod = (Binary(BinaryOp.FLOORMOD, x, divisor),)
                    if poly.terms.get(mod) == k // m:
                        whole = poly.without(mono).without(mod) + self.poly(x) * (k // m)
                        return self._recombine(whole)
                    if self._multiple(self.poly(x)) % m == 0:
                        return self._recombine(poly.without(mono) + self.poly(x) * (k // m))
        return poly

    def _multiple(self, poly: Poly) -> int:
        """A number that divides every value of ``poly`` (0 for the constant 0)."""
        out = 0
        for mono, k in poly.terms.items():
            out = gcd(out, k * prod(multiple_of_atom(a) for a in mono))
        return out

    # --------------------------------------------------------------------------------- division by constants

    def floordiv(self, p: Poly, d: Poly, lanes: int = 1) -> Poly:
        """``p // d``."""
        c = d.constant
        if c is None:
            return self._symbolic_divmod(p, d, lanes)[0]
        if c <= 0:
            return self._opaque(BinaryOp.FLOORDIV, p, d, lanes)
        if c == 1:
            return p
        exact, rest = self._split(p, c, lanes)
        return exact + self._quotient(rest, c, lanes)

    def _split(self, p: Poly, c: int, lanes: int) -> tuple[Poly, Poly]:
        """``(q, r)`` with ``p // c = q + r // c`` and ``p % c = r % c``; q takes the multiples of c."""
        exact, rest = Poly({}), Poly({})
        for mono, k in p.terms.items():
            if k % c == 0:
                exact += Poly({mono: k // c})
            elif not mono:
                exact, rest = exact + k // c, rest + k % c
            elif k * prod(multiple_of_atom(a) for a in mono) % c == 0:
                g = gcd(k, c)
                exact += self._opaque(BinaryOp.FLOORDIV, Poly({mono: k // g}), Poly.const(c // g), lanes)
            else:
                rest += Poly({mono: k})
        return exact, rest

    def _same_quotient(self, p: Poly, c: int) -> int | None:
        """``p // c`` if it has one value."""
        lo, hi = self.interval(p)
        if lo is None or hi is None or lo // c != hi // c:
            return None
        return lo // c

    def _quotient(self, r: Poly, c: int, lanes: int) -> Poly:
        """``r // c`` for a constant c > 1, where no coefficient of r is a multiple of c."""
        same = self._same_quotient(r, c)
        if same is not None:
            return Poly.const(same)
        k0 = r.terms.get((), 0)
        match list(r.without(()).terms.items()):
            case [((Binary(op=BinaryOp.FLOORDIV, a=x, b=inner),), 1)]:
                a = const_of(inner)
                if a is not None and a > 0:  # (x // a + k0) // c = (x + k0*a) // (a*c)
                    return self.floordiv(self.poly(x) + k0 * a, Poly.const(a * c), lanes)
        parts = self._parts(r, c)
        if parts is not None:
            g, high, _ = parts
            return self.floordiv(high, Poly.const(c // g), lanes)
        return self._opaque(BinaryOp.FLOORDIV, r, Poly.const(c), lanes)

    def _parts(self, r: Poly, c: int) -> tuple[int, Poly, Poly] | None:
        """``(g, high, low)``: ``r = g*high + low``, ``0 <= low < g``, g a divisor of c, largest g first."""
        divisors = {gcd(k, c) for mono, k in r.terms.items() if mono}
        for g in sorted(divisors - {1}, reverse=True):
            high, low = Poly({}), Poly({})
            for mono, k in r.terms.items():
                if not mono:
                    high, low = high + k // g, low + k % g
                elif k % g == 0:
                    high += Poly({mono: k // g})
                else:
                    low += Poly({mono: k})
            if self._same_quotient(low, g) == 0:
                return g, high, low
        return None

    def floormod(self, p: Poly, d: Poly, lanes: int = 1) -> Poly:
        """``p % d``."""
        c = d.constant
        if c is None:
            return self._symbolic_divmod(p, d, lanes)[1]
        if c <= 0:
            return self._opaque(BinaryOp.FLOORMOD, p, d, lanes)
        rest = self._split(self._drop_inner_mods(p, c), c, lanes)[1]
        same = self._same_quotient(rest, c)
        if same is not None:
            return rest - same * c
        parts = self._parts(rest, c)
        if parts is not None:
            g, high, low = parts
            return self.floormod(high, Poly.const(c // g), lanes) * g + low
        return self._opaque(BinaryOp.FLOORMOD, rest, Poly.const(c), lanes)

    def _drop_inner_mods(self, p: Poly, c: int) -> Poly:
        """``k * (x % a) -> k * x`` where ``k * a`` is a multiple of c."""
        for mono, k in p.terms.items():
            match mono:
                case (Binary(op=BinaryOp.FLOORMOD, a=x, b=inner),):
                    a = const_of(inner)
                    if a is not None and a > 0 and k * a % c == 0:
                        return self._drop_inner_mods(p.without(mono) + self.poly(x) * k, c)
        return p

    def _symbolic_divmod(self, p: Poly, d: Poly, lanes: int) -> tuple[Poly, Poly]:
        if self.nonneg(d - 1):
            q, r = p.divide(d)
            if self.nonneg(r) and self.nonneg(d - r - 1):
                return q, r
        return (
            self._opaque(BinaryOp.FLOORDIV, p, d, lanes),
            self._opaque(BinaryOp.FLOORMOD, p, d, lanes),
        )

    # -------------------------------------------------------------------------------------- intervals

    def interval(self, p: Poly) -> Interval:
        """Lower and upper bound of a polynomial, ``None`` where there is none."""
        hi = self.lower(-p)
        return self.lower(p), None if hi is None else -hi

    def nonneg(self, p: Poly) -> bool:
        """Whether ``p >= 0`` is proved."""
        lo = self.lower(p, goal=0)
        return lo is not None and lo >= 0

    def lower(self, p: Poly, goal: int | None = None) -> int | None:
        """A lower bound; stops looking for a better one when it reaches ``goal``."""
        if self._nested == _NESTED:
            return self._numeric(p)[0]
        if self._nested == 0:
            self._budget = _BUDGET
        self._nested += 1
        try:
            return self._lower(p, goal, _DEPTH)
        finally:
            self._nested -= 1

    def _lower(self, p: Poly, goal: int | None, depth: int) -> int | None:
        best = self._numeric(p)[0]
        if depth == 0 or p.constant is not None:
            return best
        for step in (self._by_cases, self._by_fact, self._by_variable, self._by_quotient):
            if _reached(best, goal) or self._budget <= 1:
                return best
            best = largest(best, step(p, goal, depth - 1))
        return best

    def _by_cases(self, p: Poly, goal: int | None, depth: int) -> int | None:
        """Replace a ``min`` or ``max`` by its operands."""
        for mono, k in p.terms.items():
            match mono:
                case (Binary(op=BinaryOp.MIN | BinaryOp.MAX as op, a=a, b=b),):
                    self._budget -= 1
                    rest = p.without(mono)
                    cases = [self._lower(rest + self.poly(x) * k, goal, depth) for x in (a, b)]
                    # -min(a, b) is at least -a and at least -b; min(a, b) is one of the two.
                    if (op is BinaryOp.MIN) == (k < 0):
                        return largest(*cases)
                    return None if None in cases else min(c for c in cases if c is not None)
        return None

    def _by_fact(self, p: Poly, goal: int | None, depth: int) -> int | None:
        """``p >= lower(p - c*f)`` for a fact ``f >= 0`` and c > 0."""
        best = None
        for fact in self._facts:
            multipliers = {
                k // fact.terms[mono]
                for mono, k in p.terms.items()
                if mono and mono in fact.terms and k % fact.terms[mono] == 0
            }
            for c in sorted(m for m in multipliers if m > 0):
                self._budget -= 1
                best = largest(best, self._lower(p - fact * c, goal, min(depth, 1)))
                if _reached(best, goal) or self._budget <= 1:
                    return best
        return best

    def _by_variable(self, p: Poly, goal: int | None, depth: int) -> int | None:
        """Replace the innermost variable that has a symbolic bound by that bound."""
        atoms = set(p.atoms())
        for var in reversed(self._ranges):
            split = p.collect(var) if var in atoms else None
            if split is None:
                continue
            q, rest = split
            lo, hi = self._numeric(q)
            sign = 1 if lo is not None and lo >= 0 else -1 if hi is not None and hi <= 0 else 0
            bound = self._ranges[var][0 if sign > 0 else 1]
            if sign and bound is not None and bound.constant is None:
                self._budget -= 1
                return self._lower(rest + q * bound, goal, depth)
        return None

    def _by_quotient(self, p: Poly, goal: int | None, depth: int) -> int | None:
        """Replace ``x // m`` by ``(x - m + 1) / m`` or ``x / m``."""
        for mono, k in p.terms.items():
            match mono:
                case (Binary(op=BinaryOp.FLOORDIV, a=x, b=divisor),):
                    m = const_of(divisor)
                    if m is None or m <= 0:
                        continue
                    self._budget -= 1
                    scale = m // gcd(k, m)
                    bound = self.poly(x) - (m - 1) if k > 0 else self.poly(x)
                    scaled = p.without(mono) * scale + bound * (k * scale // m)
                    best = self._lower(scaled, goal, depth)
                    return None if best is None else -(-best // scale)
        return None

    def _numeric(self, p: Poly) -> Interval:
        """Interval arithmetic."""
        lo: int | None = 0
        hi: int | None = 0
        for mono, k in p.terms.items():
            term: Interval = (k, k)
            for atom in mono:
                term = multiply(term, self._atom(atom))
            lo = None if lo is None or term[0] is None else lo + term[0]
            hi = None if hi is None or term[1] is None else hi + term[1]
        return lo, hi

    def _atom(self, atom: Expr) -> Interval:
        found = self._atoms.get(atom)
        if found is None:
            self._atoms[atom] = (None, None)  # a fact about the atom may lead back to it
            found = self._atoms[atom] = self._atom_interval(atom)
        return found

    def _atom_interval(self, atom: Expr) -> Interval:
        match atom:
            case Var():
                count = lanes_of(atom)
                if count is not None:
                    return 0, count - 1
                lo, hi = self._ranges.get(atom, (None, None))
                return (
                    None if lo is None else self._numeric(lo)[0],
                    None if hi is None else self._numeric(hi)[1],
                )
            case Size(dim=SymDim() as dim):
                return dim.lo, dim.hi
            case Binary(op=BinaryOp.FLOORDIV | BinaryOp.FLOORMOD | BinaryOp.MIN | BinaryOp.MAX):
                return combine(atom.op, self.int_interval(atom.a), self.int_interval(atom.b))
            case Cast(a=inner) if inner.dtype.is_int or inner.dtype == bool_:
                return self.int_interval(inner)
            case Select():
                return union(self.int_interval(atom.a), self.int_interval(atom.b))
            case Unary(op=UnaryOp.ABS):
                return absolute(self.int_interval(atom.a))
            case Reduce(op=ReduceOp.MIN | ReduceOp.MAX):
                return self.int_interval(atom.a)
        return None, None

    def int_interval(self, expr: Expr) -> Interval:
        """Bounds (over all lanes) of an integer or bool expression of any width."""
        if expr.dtype == i64:
            return self.interval(self.poly(expr))
        lo, hi = int_range(expr.dtype)
        found = self._narrow_interval(expr)
        # Outside of its dtype's range a value wraps around.
        if found[0] is None or found[1] is None or found[0] < lo or found[1] > hi:
            return lo, hi
        return found

    def _narrow_interval(self, expr: Expr) -> Interval:
        match expr:
            case Const():
                return int(expr.value), int(expr.value)
            case Var():
                return self._atom_interval(expr)
            case Splat():
                return self.int_interval(expr.a)
            case Cast(a=inner) if inner.dtype.is_int or inner.dtype == bool_:
                return self.int_interval(inner)
            case Select():
                return union(self.int_interval(expr.a), self.int_interval(expr.b))
            case Binary() if expr.op not in COMPARISONS:
                return combine(expr.op, self.int_interval(expr.a), self.int_interval(expr.b))
        return None, None

    # ------------------------------------------------------------------------------------------ conditions

    def prove(self, cond: Expr, holds: bool = True) -> bool:
        """Whether the bool expression is proved to be true in every lane (or false, with ``holds=False``)."""
        if (cond if holds else build.not_(cond)) in self._known:
            return True
        match cond:
            case Const():
                return bool(cond.value) == holds
            case Splat():
                return self.prove(cond.a, holds)
            case Unary(op=UnaryOp.NOT):
                return self.prove(cond.a, not holds)
            case Binary(op=BinaryOp.AND | BinaryOp.OR as op):
                every = (op is BinaryOp.AND) == holds
                parts = (self.prove(x, holds) for x in (cond.a, cond.b))
                return all(parts) if every else any(parts)
            case Binary() if cond.op in COMPARISONS and cond.a.dtype.is_int:
                return self._prove_comparison(cond, holds)
        return False

    def _prove_comparison(self, cond: Binary, holds: bool) -> bool:
        if cond.a.dtype == i64:
            diff = self.poly(cond.a) - self.poly(cond.b)
            facts = facts_of(cond.op, diff, holds)
            if facts:
                return all(self.nonneg(f) for f in facts)
            return self.nonneg(diff - 1) or self.nonneg(-diff - 1)
        (a_lo, a_hi), (b_lo, b_hi) = self.int_interval(cond.a), self.int_interval(cond.b)
        if a_lo is None or a_hi is None or b_lo is None or b_hi is None:
            return False
        # The difference of the two, as a variable with a constant range.
        diff = Var("diff")
        scope = Analysis({diff: (Poly.const(a_lo - b_hi), Poly.const(a_hi - b_lo))})
        return scope.prove(Binary(cond.op, diff, Const(0, i64)), holds)

    # ---------------------------------------------------------------------------------------- simplification

    def simplify(self, expr: Expr) -> Expr:
        """An expression with the same value wherever the ranges and facts hold."""
        found = self._simple.get(id(expr))
        if found is None:
            out = self._simplify(expr)
            found = (expr, expr if out == expr else out)
            self._simple[id(expr)] = found
        return found[1]

    def _simplify(self, expr: Expr) -> Expr:
        match expr:
            case Const() | Var() if expr.dtype != i64:
                return expr
            case _ if expr.dtype == i64:
                return to_expr(self.poly(expr), expr.lanes)
            case Binary() if expr.op in COMPARISONS and expr.a.dtype.is_int:
                return self._simplify_comparison(expr)
            case Binary(op=BinaryOp.AND | BinaryOp.OR):
                return self._simplify_logic(expr)
        return self.simplify_parts(expr)

    def _decided(self, cond: Expr) -> bool | None:
        if self.prove(cond):
            return True
        return False if self.prove(cond, holds=False) else None

    def _simplify_comparison(self, expr: Binary) -> Expr:
        decided = self._decided(expr)
        if decided is not None:
            return build.splat(Const(decided, bool_), expr.lanes)
        if expr.a.dtype != i64:
            return build.binary(expr.op, self.simplify(expr.a), self.simplify(expr.b))
        a, b = self.poly(expr.a), self.poly(expr.b)
        diff = a - b
        if len(diff.terms) < len(a.terms) + len(b.terms):  # something cancels
            a = Poly({m: k for m, k in diff.terms.items() if k > 0})
            b = Poly({m: -k for m, k in diff.terms.items() if k < 0})
        return build.binary(expr.op, to_expr(a, expr.lanes), to_expr(b, expr.lanes))

    def _simplify_logic(self, expr: Binary) -> Expr:
        decided = self._decided(expr)
        if decided is not None:
            return build.splat(Const(decided, bool_), expr.lanes)
        a = self.simplify(expr.a)
        # The second operand only matters where the first one does not decide; it is evaluated anyway, so that
        # the masks of its loads have to stay.
        alone = a.lanes > 1 or has_load(expr.b)
        scope = self if alone else self.with_fact(a, expr.op is BinaryOp.AND)
        return build.binary(expr.op, a, scope.simplify(expr.b))

    def simplify_parts(self, expr: Expr) -> Expr:
        """The node itself with simplified operands."""
        match expr:
            case Binary():
                return build.binary(expr.op, self.simplify(expr.a), self.simplify(expr.b))
            case Unary(op=UnaryOp.NOT):
                return build.not_(self.simplify(expr.a))
            case Unary():
                return build.unary(expr.op, self.simplify(expr.a))
            case Cast():
                return build.cast(expr.dtype, self.simplify(expr.a))
            case Select():
                cond = self.simplify(expr.cond)
                return build.select(cond, self.simplify(expr.a), self.simplify(expr.b))
            case Splat():
                return build.splat(self.simplify(expr.a), expr.lanes)
            case Reduce():
                return build.reduction(expr.op, self.simplify(expr.a))
            case Load():
                return self._simplify_load(expr)
        operands = tuple(self.simplify(c) for c in expr_children(expr))
        return rebuild_expr(expr, operands)

    def _simplify_load(self, expr: Load) -> Expr:
        indices = [self.simplify(i) for i in expr.indices]
        mask = None if expr.mask is None else self.simplify(expr.mask)
        if mask is not None and self.prove(mask, holds=False):
            return build.splat(build.const(0, expr.dtype), expr.lanes)
        return build.load(expr.buffer, *indices, mask=mask)


# --------------------------------------------------------------------------------------------- helpers


def _reached(best: int | None, goal: int | None) -> bool:
    return best is not None and goal is not None and best >= goal


def scope(ranges: Mapping[Var, tuple[Expr | int, Expr | int]] | None) -> Analysis:
    """An analysis of variables with inclusive bounds."""
    out = Analysis()
    for var, (lo, hi) in (ranges or {}).items():
        out = out.with_range(var, lo, hi)
    return out
