"""Arithmetic on integer intervals whose ends may be unknown (``None``)."""

from __future__ import annotations

from .nodes import BinaryOp

Interval = tuple[int | None, int | None]


def largest(*values: int | None) -> int | None:
    """The largest known value."""
    return max((v for v in values if v is not None), default=None)


def multiply(a: Interval, b: Interval) -> Interval:
    """``a * b``."""
    if a == (0, 0) or b == (0, 0):
        return 0, 0
    if None not in a and None not in b:
        corners = [x * y for x in a for y in b if x is not None and y is not None]
        return min(corners), max(corners)
    # One end is infinite: keep what the signs decide.
    a_lo, a_hi = a
    b_lo, b_hi = b
    if a_lo is not None and b_lo is not None and a_lo >= 0 and b_lo >= 0:
        return a_lo * b_lo, None
    if a_hi is not None and a_hi <= 0:
        lo, hi = multiply((-a_hi, None if a_lo is None else -a_lo), b)
        return None if hi is None else -hi, None if lo is None else -lo
    if b_hi is not None and b_hi <= 0:
        return multiply(b, a) if a_lo is not None and a_lo >= 0 else (None, None)
    return None, None


def union(a: Interval, b: Interval) -> Interval:
    """The smallest interval around both."""
    lo = None if a[0] is None or b[0] is None else min(a[0], b[0])
    hi = None if a[1] is None or b[1] is None else max(a[1], b[1])
    return lo, hi


def absolute(a: Interval) -> Interval:
    """``abs(a)``."""
    lo, hi = a
    if lo is not None and lo >= 0:
        return a
    if hi is not None and hi <= 0:
        return -hi, None if lo is None else -lo
    return 0, None if lo is None or hi is None else max(-lo, hi)


def combine(op: BinaryOp, a: Interval, b: Interval) -> Interval:
    """``a op b``; unknown for a divisor that may be 0 or negative."""
    match op:
        case BinaryOp.ADD:
            return _add(a, b)
        case BinaryOp.SUB:
            return _add(a, (None if b[1] is None else -b[1], None if b[0] is None else -b[0]))
        case BinaryOp.MUL:
            return multiply(a, b)
        case BinaryOp.MIN:
            lo = None if a[0] is None or b[0] is None else min(a[0], b[0])
            return lo, min((x for x in (a[1], b[1]) if x is not None), default=None)
        case BinaryOp.MAX:
            hi = None if a[1] is None or b[1] is None else max(a[1], b[1])
            return largest(a[0], b[0]), hi
        case BinaryOp.FLOORDIV | BinaryOp.FLOORMOD if b[0] is not None and b[0] >= 1:
            return _divide(a, b[0], b[1]) if op is BinaryOp.FLOORDIV else _modulo(a, b[1])
    return None, None


def _add(a: Interval, b: Interval) -> Interval:
    lo = None if a[0] is None or b[0] is None else a[0] + b[0]
    return lo, None if a[1] is None or b[1] is None else a[1] + b[1]


def _divide(a: Interval, b_lo: int, b_hi: int | None) -> Interval:
    """``a // b``, ``1 <= b_lo <= b <= b_hi``: extreme at an end of b, towards 0 for an unbounded b."""
    lo, hi = a
    low_ends = None if lo is None else min(lo // b_lo, (-1 if lo < 0 else 0) if b_hi is None else lo // b_hi)
    high_ends = None if hi is None else max(hi // b_lo, (-1 if hi < 0 else 0) if b_hi is None else hi // b_hi)
    return low_ends, high_ends


def _modulo(a: Interval, b_hi: int | None) -> Interval:
    hi = None if b_hi is None else b_hi - 1
    if a[0] is not None and a[0] >= 0 and a[1] is not None:
        hi = a[1] if hi is None else min(hi, a[1])
    return 0, hi
