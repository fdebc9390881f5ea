"""Tensor dims: integers, named symbolic sizes, and polynomials of them.

::

    Dim     ::= int | SymDim | DimExpr
    SymDim  ::= name in lo..hi [multiple of m]
    DimExpr ::= sum of coefficient * product of SymDims        (canonical: sorted, no zero terms)

Two symbolic dims are the same iff their names are. Arithmetic keeps the canonical form: ``n + n == 2 * n``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import ShapeError

MAX_EXTENT = 2**31 - 1


class _Arith:
    """Operators shared by SymDim and DimExpr."""

    __slots__ = ()

    def __add__(self, other: Dim) -> Dim:
        return _from_terms([*_terms(self), *_terms(other)])  # type: ignore[arg-type]

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _from_terms([(-c, s) for c, s in _terms(self)])  # type: ignore[arg-type]

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other  # type: ignore[operator]

    def __mul__(self, other: Dim) -> Dim:
        return _from_terms(
            [
                (c1 * c2, tuple(sorted(s1 + s2, key=lambda s: s.name)))
                for c1, s1 in _terms(self)  # type: ignore[arg-type]
                for c2, s2 in _terms(other)
            ]
        )

    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class SymDim(_Arith):
    """A size known only at run time.

    Attributes:
        name: Identifier, unique per module.
        lo: Smallest value, >= 0.
        hi: Largest value; memory plans use it.
        multiple_of: Every value is a multiple of this.
    """

    name: str
    lo: int = 1
    hi: int = MAX_EXTENT
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ShapeError(f"symbolic dim: got name {self.name!r}; expected an identifier")
        if not 0 <= self.lo <= self.hi:
            raise ShapeError(
                f"symbolic dim {self.name}: got range {self.lo}..{self.hi}; expected 0 <= lo <= hi"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymDim) and other.name == self.name

    def __hash__(self) -> int:
        return hash(("SymDim", self.name))

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class DimExpr(_Arith):
    """A polynomial of symbolic dims. Built by arithmetic, never by hand."""

    terms: tuple[tuple[int, tuple[SymDim, ...]], ...]

    def __str__(self) -> str:
        out = ""
        for coefficient, syms in self.terms:
            sign = " - " if coefficient < 0 else " + "
            factors = [s.name for s in syms]
            if abs(coefficient) != 1 or not syms:
                factors.insert(0, str(abs(coefficient)))
            out += (sign if out else ("-" if coefficient < 0 else "")) + "*".join(factors)
        return out

    __repr__ = __str__


Dim = int | SymDim | DimExpr
Shape = tuple[Dim, ...]


def _terms(dim: Dim) -> list[tuple[int, tuple[SymDim, ...]]]:
    match dim:
        case int():
            return [(dim, ())] if dim else []
        case SymDim():
            return [(1, (dim,))]
        case DimExpr():
            return list(dim.terms)
    raise ShapeError(f"dim: got {dim!r} ({type(dim).__name__}); expected an int or a symbolic dim")


def _from_terms(terms: Iterable[tuple[int, tuple[SymDim, ...]]]) -> Dim:
    total: dict[tuple[SymDim, ...], int] = {}
    for coefficient, syms in terms:
        total[syms] = total.get(syms, 0) + coefficient
    # Symbols first, the constant last: ``2*n + 1``.
    kept = sorted(
        ((c, s) for s, c in total.items() if c),
        key=lambda t: (not t[1], [x.name for x in t[1]]),
    )
    if not kept:
        return 0
    if len(kept) == 1:
        coefficient, syms = kept[0]
        if not syms:
            return coefficient
        if coefficient == 1 and len(syms) == 1:
            return syms[0]
    return DimExpr(tuple(kept))


def symbols(dim: Dim) -> tuple[SymDim, ...]:
    """The symbolic dims that occur in ``dim``, sorted by name, each once."""
    found = {s.name: s for _, syms in _terms(dim) for s in syms}
    return tuple(found[name] for name in sorted(found))


def shape_symbols(shape: Iterable[Dim]) -> tuple[SymDim, ...]:
    """The symbolic dims of a whole shape, sorted by name, each once."""
    found = {s.name: s for dim in shape for s in symbols(dim)}
    return tuple(found[name] for name in sorted(found))


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """Value of ``dim`` when each symbol has the value ``env[name]``.

    Raises:
        ShapeError: a symbol has no value in ``env``.
    """
    total = 0
    for coefficient, syms in _terms(dim):
        for sym in syms:
            if sym.name not in env:
                raise ShapeError(
                    f"dim {dim}: {sym.name} has no value; known: {', '.join(sorted(env)) or 'none'}"
                )
            coefficient *= env[sym.name]
        total += coefficient
    return total


def substitute_dims(dim: Dim, env: Mapping[str, Dim]) -> Dim:
    """``dim`` with symbols replaced by other dims, by name; those that ``env`` does not have stay."""
    total: Dim = 0
    for coefficient, syms in _terms(dim):
        term: Dim = coefficient
        for sym in syms:
            term = term * env.get(sym.name, sym)
        total = total + term
    return total


def bounds(dim: Dim) -> tuple[int, int]:
    """Smallest and largest value over the ranges of the symbols (exact for one term)."""
    lo = hi = 0
    for coefficient, syms in _terms(dim):
        a = b = coefficient
        for sym in syms:
            a, b = a * (sym.lo if coefficient > 0 else sym.hi), b * (sym.hi if coefficient > 0 else sym.lo)
        lo, hi = lo + a, hi + b
    return lo, hi


def product(dims: Iterable[Dim]) -> Dim:
    """Product of dims; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def exact_div(dim: Dim, divisor: Dim) -> Dim | None:
    """``dim / divisor`` where the division is exact for every value, else ``None``."""
    if isinstance(divisor, DimExpr) and len(divisor.terms) > 1:
        return 1 if dim == divisor else None
    ((d_coefficient, d_syms),) = _terms(divisor) or [(0, ())]
    out: list[tuple[int, tuple[SymDim, ...]]] = []
    for coefficient, syms in _terms(dim):
        rest = list(syms)
        for sym in d_syms:
            if sym not in rest:
                return None
            rest.remove(sym)
        if d_coefficient == 0 or coefficient % d_coefficient:
            return None
        out.append((coefficient // d_coefficient, tuple(rest)))
    return _from_terms(out)


def parse_dim(text: str, known: Mapping[str, SymDim]) -> Dim:
    """Parse what ``str(dim)`` prints: ``"2*n + 1"``. Unknown names become unbounded symbolic dims.

    Raises:
        ShapeError: the text is no polynomial of dims.
    """
    total: Dim = 0
    normal = text.replace("-", "+-").replace(" ", "")
    for term in filter(None, normal.split("+")):
        value: Dim = 1
        if term.startswith("-"):
            value, term = -1, term[1:]
        for factor in term.split("*"):
            if factor.isdigit():
                value = value * int(factor)
            elif factor.isidentifier():
                value = value * (known.get(factor) or SymDim(factor))
            else:
                raise ShapeError(f"dim {text!r}: got {factor!r}; expected an integer or a name")
        total = total + value
    return total
