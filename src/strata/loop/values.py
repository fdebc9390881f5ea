"""What the scalar operations of the loop IR compute; constant folding and the interpreter share it.

Floats are rounded to the expression's dtype after every operation: ``+ - * /`` as IEEE 754, the functions
(exp, tanh, ...) as their f64 value rounded once. i32 and narrower integers wrap around; i64 is index
arithmetic and is taken not to overflow. Floor division and modulo round towards minus infinity (``x == (x //
y) * y + x % y``, the sign of ``%`` is that of ``y``); a divisor of 0 is an error. ``min``/``max`` of a NaN or
of zeros of both signs give one of the operands, unspecified which.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from strata.core.dtypes import DType, Kind, f64, i64

from .nodes import COMPARISONS, BinaryOp, UnaryOp

Number = int | float | bool


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype of ``dtype``."""
    return np.dtype(dtype.numpy_name)


def int_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype (0 and 1 for bool)."""
    match dtype.kind:
        case Kind.INT:
            return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
        case Kind.UINT:
            return 0, (1 << dtype.bits) - 1
        case _:
            return 0, 1


def wrap(value: int, dtype: DType) -> int:
    """``value`` modulo 2**bits, in the range of ``dtype``."""
    lo, hi = int_range(dtype)
    return value if lo <= value <= hi else (value - lo) % (hi - lo + 1) + lo


def round_float(value: float, dtype: DType) -> float:
    """``value`` rounded to the nearest value of the float ``dtype`` (overflow gives an infinity)."""
    if dtype == f64:
        return float(value)
    with np.errstate(all="ignore"):
        return float(np.array(value, np.float64).astype(numpy_dtype(dtype)))


def convert(value: Number, dtype: DType) -> Number:
    """The cast of a scalar to ``dtype``: floats round to nearest even, to int truncates (NaN gives 0)."""
    if dtype.is_float:
        return round_float(float(value), dtype)
    if dtype.kind is Kind.BOOL:
        return bool(value)
    if isinstance(value, float) and not math.isfinite(value):
        lo, hi = int_range(dtype)
        return 0 if math.isnan(value) else (hi if value > 0 else lo)
    return wrap(int(value), dtype)


def binary_value(op: BinaryOp, a: Number, b: Number, dtype: DType) -> Number | None:
    """``a op b`` for operands of ``dtype``; ``None`` where it is undefined (an integer divided by 0)."""
    match op:
        case BinaryOp.AND:
            return bool(a and b)
        case BinaryOp.OR:
            return bool(a or b)
        case BinaryOp.MIN:
            return b if b < a else a
        case BinaryOp.MAX:
            return b if b > a else a
    if op in COMPARISONS:
        return _compare(op, a, b)
    if dtype.is_float:
        return _float_binary(op, float(a), float(b), dtype)
    return _int_binary(op, int(a), int(b), dtype)


def _compare(op: BinaryOp, a: Number, b: Number) -> bool:
    match op:
        case BinaryOp.LT:
            return a < b
        case BinaryOp.LE:
            return a <= b
        case BinaryOp.GT:
            return a > b
        case BinaryOp.GE:
            return a >= b
        case BinaryOp.EQ:
            return a == b
        case _:
            return a != b


def _float_binary(op: BinaryOp, a: float, b: float, dtype: DType) -> float | None:
    # f64 has more than twice the bits of the narrower floats: rounding its result again is correct rounding.
    x, y = np.float64(a), np.float64(b)
    with np.errstate(all="ignore"):
        match op:
            case BinaryOp.ADD:
                out = x + y
            case BinaryOp.SUB:
                out = x - y
            case BinaryOp.MUL:
                out = x * y
            case BinaryOp.DIV:
                out = x / y
            case _:
                return None
    return round_float(float(out), dtype)


def _int_binary(op: BinaryOp, a: int, b: int, dtype: DType) -> int | None:
    match op:
        case BinaryOp.ADD:
            return wrap(a + b, dtype)
        case BinaryOp.SUB:
            return wrap(a - b, dtype)
        case BinaryOp.MUL:
            return wrap(a * b, dtype)
        case BinaryOp.FLOORDIV:
            return wrap(a // b, dtype) if b else None
        case BinaryOp.FLOORMOD:
            return a % b if b else None
        case _:
            return None


def sigmoid(x: float) -> float:
    """``1 / (1 + exp(-x))`` in f64, without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def unary_value(op: UnaryOp, a: Number, dtype: DType) -> Number:
    """``op(a)`` for an operand of ``dtype``."""
    match op:
        case UnaryOp.NOT:
            return not a
        case UnaryOp.NEG:
            return -a if dtype.is_float else wrap(-int(a), dtype)
        case UnaryOp.ABS:
            return abs(a) if dtype.is_float else wrap(abs(int(a)), dtype)
    return round_float(_float_unary(op, float(a)), dtype)


def _float_unary(op: UnaryOp, a: float) -> float:
    x = np.float64(a)
    with np.errstate(all="ignore"):
        match op:
            case UnaryOp.EXP:
                return float(np.exp(x))
            case UnaryOp.LOG:
                return float(np.log(x))
            case UnaryOp.SQRT:
                return float(np.sqrt(x))
            case UnaryOp.RSQRT:
                return float(np.float64(1.0) / np.sqrt(x))
            case UnaryOp.TANH:
                return float(np.tanh(x))
            case UnaryOp.SIN:
                return float(np.sin(x))
            case UnaryOp.COS:
                return float(np.cos(x))
            case UnaryOp.FLOOR:
                return float(np.floor(x))
            case UnaryOp.ROUND:
                return float(np.rint(x))
            case UnaryOp.ERF:
                return math.erf(a)
            case _:
                return sigmoid(a)


def dtype_of_number(value: Number) -> DType | None:
    """The dtype a bare Python number has on its own: i64 for an int; floats and bools have none."""
    return i64 if isinstance(value, int) and not isinstance(value, bool) else None
