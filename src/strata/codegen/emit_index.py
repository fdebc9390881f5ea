"""Index arithmetic: linear forms of scalar i64 values, ranges, and vectors ``base + stride * lane``.

i64 is index arithmetic and does not overflow (``loop.values``). Ranges let divisions become unsigned or
vanish, and comparisons become constants.
"""

from __future__ import annotations

from collections.abc import Callable

from strata.core.dims import Dim, SymDim
from strata.core.dtypes import i64
from strata.loop.nodes import BinaryOp

from .emit_values import FALSE, TRUE, Bound, Builder, Lanes, Linear, Term, Value, constant, ramp, splat


def linear(terms: list[Term], offset: int, lo: Bound, hi: Bound) -> Linear:
    """A linear form; terms with the same atom are merged."""
    merged: dict[str, Term] = {}
    for term in terms:
        known = merged.get(term.atom.text)
        coefficient = term.coefficient + (known.coefficient if known is not None else 0)
        merged[term.atom.text] = Term(term.atom, coefficient)
    kept = tuple(t for t in merged.values() if t.coefficient)
    if not kept:
        out = constant(offset, i64)
        assert isinstance(out, Linear)
        return out
    exact_lo, exact_hi = _range_of(kept, offset)
    level = max(t.atom.level for t in kept)
    text = kept[0].atom.text if len(kept) == 1 and kept[0].coefficient == 1 and not offset else ""
    return Linear(
        i64, 1, text, level, None, _max(lo, exact_lo), _min(hi, exact_hi), terms=kept, offset=offset
    )


def _range_of(terms: tuple[Term, ...], offset: int) -> tuple[Bound, Bound]:
    lo: Bound = offset
    hi: Bound = offset
    for term in terms:
        a, b = term.atom.lo, term.atom.hi
        if term.coefficient < 0:
            a, b = b, a
        lo = None if lo is None or a is None else lo + a * term.coefficient
        hi = None if hi is None or b is None else hi + b * term.coefficient
    return lo, hi


def _max(a: Bound, b: Bound) -> Bound:
    return b if a is None else a if b is None else max(a, b)


def _min(a: Bound, b: Bound) -> Bound:
    return b if a is None else a if b is None else min(a, b)


def _plus(a: Bound, b: Bound) -> Bound:
    return None if a is None or b is None else a + b


def _as_linear(b: Builder, value: Value) -> Linear:
    if isinstance(value, Linear):
        return value
    out = b.opaque(i64, 1, b.use(value), value.level, value.lo, value.hi)
    assert isinstance(out, Linear)
    return out


def add(b: Builder, x: Value, y: Value) -> Value:
    """``x + y`` of scalar i64."""
    p, q = _as_linear(b, x), _as_linear(b, y)
    return linear([*p.terms, *q.terms], p.offset + q.offset, _plus(p.lo, q.lo), _plus(p.hi, q.hi))


def scale(b: Builder, x: Value, factor: int) -> Value:
    """``x * factor`` of a scalar i64."""
    p = _as_linear(b, x)
    terms = [Term(t.atom, t.coefficient * factor) for t in p.terms]
    return linear(terms, p.offset * factor, None, None)


def sub(b: Builder, x: Value, y: Value) -> Value:
    """``x - y`` of scalar i64."""
    return add(b, x, scale(b, y, -1))


def mul(b: Builder, x: Value, y: Value) -> Value:
    """``x * y`` of scalar i64: distributed, so that factors of outer loops end up outside inner ones."""
    if isinstance(y.const, int):
        return scale(b, x, y.const)
    if isinstance(x.const, int):
        return scale(b, y, x.const)
    p, q = _as_linear(b, x), _as_linear(b, y)
    out: Value = constant(p.offset * q.offset, i64)
    for s in p.terms:
        for t in q.terms:
            out = add(b, out, scale(b, _product(b, s.atom, t.atom), s.coefficient * t.coefficient))
    for s in p.terms:
        out = add(b, out, scale(b, _linear_atom(b, s.atom), s.coefficient * q.offset))
    for t in q.terms:
        out = add(b, out, scale(b, _linear_atom(b, t.atom), t.coefficient * p.offset))
    return out


def _linear_atom(b: Builder, atom: Value) -> Value:
    return b.opaque(i64, 1, atom.text, atom.level, atom.lo, atom.hi)


def _product(b: Builder, x: Value, y: Value) -> Value:
    x, y = sorted((x, y), key=lambda v: (v.level, v.text))
    corners = [u * v if u is not None and v is not None else None for u in (x.lo, x.hi) for v in (y.lo, y.hi)]
    known = [c for c in corners if c is not None]
    if len(known) == 4:
        return b.pure(i64, 1, "mul nsw i64 {}, {}", x, y, lo=min(known), hi=max(known))
    at_least = 0 if _nonnegative(x) and _nonnegative(y) else None
    return b.pure(i64, 1, "mul nsw i64 {}, {}", x, y, lo=at_least)


def _nonnegative(value: Value) -> bool:
    return value.lo is not None and value.lo >= 0


def _split(x: Linear, divisor: int) -> tuple[list[Term], int, list[Term], int]:
    """``x = divisor * (terms, offset) + rest``, with the constant of the rest in ``0 .. divisor-1``."""
    whole = [Term(t.atom, t.coefficient // divisor) for t in x.terms if t.coefficient % divisor == 0]
    rest = [t for t in x.terms if t.coefficient % divisor]
    return whole, x.offset // divisor, rest, x.offset % divisor


def _divided(b: Builder, x: Value, divisor: int) -> tuple[Value, Value]:
    """``x // divisor`` and ``x % divisor`` of a scalar i64 for a positive constant."""
    whole, offset, rest_terms, rest_offset = _split(_as_linear(b, x), divisor)
    rest = linear(rest_terms, rest_offset, None, None)
    quotient = linear(whole, offset, None, None)
    if rest.lo is not None and rest.hi is not None and rest.lo // divisor == rest.hi // divisor:
        k = rest.lo // divisor  # the rest stays within one multiple of the divisor
        return add(b, quotient, constant(k, i64)), add(b, rest, constant(-k * divisor, i64))
    if not _nonnegative(rest) and _nonnegative(x):
        quotient, rest = linear([], 0, None, None), _as_linear(b, x)  # x itself divides unsigned
    lo = None if rest.lo is None else rest.lo // divisor
    hi = None if rest.hi is None else rest.hi // divisor
    power = divisor & (divisor - 1) == 0
    if power:
        shift, code = divisor.bit_length() - 1, "lshr" if _nonnegative(rest) else "ashr"
        inner = b.pure(i64, 1, f"{code} i64 {{}}, {shift}", rest, lo=lo, hi=hi)
        remainder = b.pure(i64, 1, f"and i64 {{}}, {divisor - 1}", rest, lo=0, hi=divisor - 1)
    elif _nonnegative(rest):
        inner = b.pure(i64, 1, f"udiv i64 {{}}, {divisor}", rest, lo=lo, hi=hi)
        remainder = b.pure(i64, 1, f"urem i64 {{}}, {divisor}", rest, lo=0, hi=divisor - 1)
    else:
        inner, remainder = signed_floor(b, rest, constant(divisor, i64))
        inner.lo, inner.hi, remainder.lo, remainder.hi = lo, hi, 0, divisor - 1
    return add(b, quotient, inner), remainder


def signed_floor(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """Floor quotient and remainder of integers with unknown signs; a divisor of 0 counts as 1.

    ``q = x sdiv y``, ``r = x srem y``; where ``r`` has the other sign than ``y``, one less and ``y`` more.
    """
    kind = f"i{x.dtype.bits}" if x.lanes == 1 else f"<{x.lanes} x i{x.dtype.bits}>"
    dtype, lanes = x.dtype, x.lanes
    one = constant(1, dtype) if lanes == 1 else splat(constant(1, dtype), lanes)
    zero = constant(0, dtype) if lanes == 1 else splat(constant(0, dtype), lanes)
    bit = "i1" if lanes == 1 else f"<{lanes} x i1>"

    def op(template: str, *args: Value) -> Value:
        return b.pure(dtype, lanes, template, *args)

    if y.const is None and not (y.lo is not None and y.lo > 0):
        is_zero = op(f"icmp eq {kind} {{}}, {{}}", y, zero)
        y = op(f"select {bit} {{}}, {kind} {{}}, {kind} {{}}", is_zero, one, y)
    q, r = op(f"sdiv {kind} {{}}, {{}}", x, y), op(f"srem {kind} {{}}, {{}}", x, y)
    mixed = op(f"xor {kind} {{}}, {{}}", r, y)
    wrong = op(f"icmp slt {kind} {{}}, {{}}", mixed, zero)
    nonzero = op(f"icmp ne {kind} {{}}, {{}}", r, zero)
    fix = op(f"and {bit} {{}}, {{}}", wrong, nonzero)
    less = op(f"sub {kind} {{}}, {{}}", q, one)
    more = op(f"add {kind} {{}}, {{}}", r, y)
    pick = f"select {bit} {{}}, {kind} {{}}, {kind} {{}}"
    return op(pick, fix, less, q), op(pick, fix, more, r)


def divmod_index(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """``x // y`` and ``x % y`` of scalar i64, rounding down."""
    if isinstance(x.const, int) and isinstance(y.const, int) and y.const:
        return constant(x.const // y.const, i64), constant(x.const % y.const, i64)
    if isinstance(y.const, int) and y.const > 0:
        return _divided(b, x, y.const)
    if _nonnegative(x) and y.lo is not None and y.lo > 0:
        quotient = b.pure(i64, 1, "udiv i64 {}, {}", x, y, lo=0, hi=x.hi)
        top = None if y.hi is None else y.hi - 1
        return quotient, b.pure(i64, 1, "urem i64 {}, {}", x, y, lo=0, hi=_min(top, x.hi))
    return signed_floor(b, x, y)


def minmax(b: Builder, op: BinaryOp, x: Value, y: Value) -> Value:
    """Smaller or larger of two scalar i64; decided by the ranges where they do not overlap."""
    small = op is BinaryOp.MIN
    if x.hi is not None and y.lo is not None and x.hi <= y.lo:
        return x if small else y
    if y.hi is not None and x.lo is not None and y.hi <= x.lo:
        return y if small else x
    name = "llvm.smin.i64" if small else "llvm.smax.i64"
    text, level = b.call(name, "i64", [("i64", x), ("i64", y)])
    if small:
        lo, hi = (None if x.lo is None or y.lo is None else min(x.lo, y.lo)), _min(x.hi, y.hi)
    else:
        lo, hi = _max(x.lo, y.lo), (None if x.hi is None or y.hi is None else max(x.hi, y.hi))
    return b.opaque(i64, 1, text, level, lo, hi)


def decided(op: BinaryOp, x: Value, y: Value) -> Value | None:
    """A comparison of integers as a constant, if the ranges decide it."""
    below = x.hi is not None and y.lo is not None and x.hi < y.lo
    not_above = x.hi is not None and y.lo is not None and x.hi <= y.lo
    above = x.lo is not None and y.hi is not None and x.lo > y.hi
    not_below = x.lo is not None and y.hi is not None and x.lo >= y.hi
    same = x.const is not None and x.const == y.const
    match op:
        case BinaryOp.LT:
            return TRUE if below else FALSE if not_below else None
        case BinaryOp.LE:
            return TRUE if not_above else FALSE if above else None
        case BinaryOp.GT:
            return TRUE if above else FALSE if not_above else None
        case BinaryOp.GE:
            return TRUE if not_below else FALSE if below else None
        case BinaryOp.EQ:
            return TRUE if same else FALSE if below or above else None
        case BinaryOp.NE:
            return FALSE if same else TRUE if below or above else None
    return None


def dim_value(b: Builder, dim: Dim, lookup: Callable[[SymDim], Value]) -> Value:
    """The value of a dim; ``lookup`` gives the value of a symbol."""
    if isinstance(dim, int):
        return constant(dim, i64)
    if isinstance(dim, SymDim):
        return lookup(dim)
    total: Value = constant(0, i64)
    for coefficient, syms in dim.terms:
        product: Value = constant(coefficient, i64)
        for sym in syms:
            product = mul(b, product, lookup(sym))
        total = add(b, total, product)
    return total


# ----------------------------------------------------------------------------- vectors base + stride * lane


def _form(value: Value) -> tuple[Value, int] | None:
    if isinstance(value, Lanes) and value.base is not None:
        return value.base, value.stride
    return None


def _lanes(base: Value, stride: int, lanes: int) -> Value:
    return splat(base, lanes) if stride == 0 else ramp(base, lanes, stride)


def vector_arithmetic(b: Builder, op: BinaryOp, x: Value, y: Value) -> Value | None:
    """``x op y`` of i64 vectors in the form ``base + stride * lane``, or ``None`` where it has none."""
    p, q = _form(x), _form(y)
    if p is None or q is None:
        return None
    (x0, s), (y0, t) = p, q
    match op:
        case BinaryOp.ADD:
            return _lanes(add(b, x0, y0), s + t, x.lanes)
        case BinaryOp.SUB:
            return _lanes(sub(b, x0, y0), s - t, x.lanes)
        case BinaryOp.MUL if t == 0 and (s == 0 or isinstance(y0.const, int)):
            return _lanes(mul(b, x0, y0), s * int(y0.const or 0) if s else 0, x.lanes)
        case BinaryOp.MUL if s == 0 and isinstance(x0.const, int):
            return _lanes(mul(b, x0, y0), t * x0.const, x.lanes)
        case BinaryOp.FLOORDIV | BinaryOp.FLOORMOD if t == 0 and isinstance(y0.const, int) and y0.const > 0:
            return _vector_divmod(b, op, x0, s, y0.const, x.lanes)
        case BinaryOp.MIN | BinaryOp.MAX if s == 0 and t == 0:
            return splat(minmax(b, op, x0, y0), x.lanes)
    return None


def _vector_divmod(
    b: Builder, op: BinaryOp, base: Value, stride: int, divisor: int, lanes: int
) -> Value | None:
    """Division of a ramp that stays within one multiple of the divisor."""
    quotient, rest = _divided(b, base, divisor)
    reach = stride * (lanes - 1)
    if stride and (
        rest.lo is None
        or rest.hi is None
        or rest.lo + min(0, reach) < 0
        or rest.hi + max(0, reach) >= divisor
    ):
        return None
    return _lanes(quotient, 0, lanes) if op is BinaryOp.FLOORDIV else _lanes(rest, stride, lanes)
