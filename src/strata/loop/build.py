"""Constructors of loop expressions and statements that fold constants and cheap identities.

Every operand may be an expression, a Python number (which takes the other operand's dtype) or a symbolic dim;
a scalar operand is splatted when the other one has lanes. Only identities that hold bit for bit are applied:
``x + 0 -> x`` for ints, but not for floats, where ``-0.0 + 0.0`` is ``0.0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from strata.core.dims import DimExpr, SymDim
from strata.core.dtypes import DType, bool_, i64
from strata.core.errors import ShapeError

from .externs import EXTERNS, call_problem
from .nodes import (
    COMPARISONS,
    EXPR_TYPES,
    AxisKind,
    Binary,
    BinaryOp,
    BlockAxis,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    For,
    ForKind,
    Load,
    Ramp,
    Reduce,
    ReduceOp,
    Select,
    Seq,
    Splat,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    Var,
    size,
)
from .nodes import seq as seq
from .values import Number, binary_value, convert, dtype_of_number, unary_value

ExprLike = Expr | int | float | bool | SymDim | DimExpr

_INT_ONLY = frozenset({BinaryOp.FLOORDIV, BinaryOp.FLOORMOD})
_COMMUTATIVE = frozenset({BinaryOp.ADD, BinaryOp.MUL, BinaryOp.AND, BinaryOp.OR})


def const(value: Number, dtype: DType) -> Const:
    """A constant, rounded to ``dtype`` if that is a float.

    Raises:
        ShapeError: the value is no number of that dtype (1.5 as i64, 300 as u8, 2 as bool).
    """
    if type(value) is int and dtype is i64 and -(2**63) <= value < 2**63:
        return Const(value, i64)
    plain = value.item() if isinstance(value, np.generic) else value
    if dtype.is_float:
        return Const(convert(float(plain), dtype), dtype)
    whole = not isinstance(plain, float) or (math.isfinite(plain) and plain == int(plain))
    if not whole or convert(int(plain), dtype) != plain:
        raise ShapeError(f"const: got {value!r}; expected a value of {dtype}")
    return Const(convert(int(plain), dtype), dtype)


def as_expr(value: ExprLike, dtype: DType | None = None) -> Expr:
    """``value`` as an expression; a number becomes a constant of ``dtype`` (an int of i64 by default).

    Raises:
        ShapeError: a float or bool where no dtype is known.
    """
    if type(value) in EXPR_TYPES:
        return value  # type: ignore[return-value]
    if isinstance(value, SymDim | DimExpr):
        return size(value)
    if isinstance(value, bool | int | float | np.generic):
        found = dtype or dtype_of_number(value.item() if isinstance(value, np.generic) else value)
        if found is None:
            raise ShapeError(f"expression: got the number {value!r} without a dtype; use const(value, dtype)")
        return const(value, found)
    return value


def _is_number(value: ExprLike) -> bool:
    return type(value) not in EXPR_TYPES and isinstance(value, bool | int | float | np.generic)


def _pair(what: str, a: ExprLike, b: ExprLike) -> tuple[Expr, Expr]:
    """Both operands with one dtype and one number of lanes."""
    if _is_number(a) and not _is_number(b):
        y = as_expr(b)
        x = as_expr(a, y.dtype)
    else:
        x = as_expr(a)
        y = as_expr(b, x.dtype if _is_number(b) else None)
    if x.dtype != y.dtype:
        raise ShapeError(
            f"{what}: got operands of {x.dtype} and {y.dtype}; expected one dtype; cast one of them"
        )
    lanes = max(x.lanes, y.lanes)
    return splat(x, lanes), splat(y, lanes)


def _constant(expr: Expr) -> Number | None:
    """Value of a constant, also a splatted one."""
    if isinstance(expr, Splat):
        expr = expr.a
    return expr.value if isinstance(expr, Const) else None


# ----------------------------------------------------------------------------------------------- binary


def binary(op: BinaryOp, a: ExprLike, b: ExprLike) -> Expr:
    """``a op b``, folded.

    Raises:
        ShapeError: dtypes or lanes differ, ``/`` of ints, ``//`` or ``%`` of floats, ``and`` of non-bools.
    """
    x, y = _pair(op.value, a, b)
    if op is BinaryOp.DIV and not x.dtype.is_float:
        raise ShapeError(f"/: got operands of {x.dtype}; expected floats; use floordiv for integers")
    if op in _INT_ONLY and not x.dtype.is_int:
        raise ShapeError(f"{op.value}: got operands of {x.dtype}; expected integers")
    if op in (BinaryOp.AND, BinaryOp.OR) and x.dtype != bool_:
        raise ShapeError(f"{op.value}: got operands of {x.dtype}; expected bool")
    return _fold(op, x, y)


def _fold(op: BinaryOp, x: Expr, y: Expr) -> Expr:
    cx, cy = _constant(x), _constant(y)
    if cx is not None and cy is not None:
        value = binary_value(op, cx, cy, x.dtype)
        if value is not None:
            return splat(Const(value, bool_ if op in COMPARISONS else x.dtype), x.lanes)
    if isinstance(x, Splat) and isinstance(y, Splat):
        return Splat(_fold(op, x.a, y.a), x.lanes)
    if cx is not None and op in _COMMUTATIVE and not x.dtype.is_float:
        x, y, cx, cy = y, x, cy, cx  # constants on the right
    folded = _identity(op, x, y, cy)
    return Binary(op, x, y) if folded is None else folded


def _identity(op: BinaryOp, x: Expr, y: Expr, cy: Number | None) -> Expr | None:
    """``x op y`` as something smaller, or ``None``; ``cy`` is the value of a constant ``y``."""
    match op:
        case BinaryOp.ADD | BinaryOp.SUB:
            return _sum_identity(op, x, y, cy)
        case BinaryOp.MUL:
            if cy == 1 or (cy == 0 and x.dtype.is_int):
                return x if cy == 1 else y
            if x.dtype.is_float and _constant(x) == 1:
                return y
        case BinaryOp.DIV | BinaryOp.FLOORDIV:
            if cy == 1:
                return x
            if op is BinaryOp.FLOORDIV and _constant(x) == 0 and cy:
                return x
        case BinaryOp.FLOORMOD:
            if cy == 1 or (_constant(x) == 0 and cy):
                return splat(Const(0, x.dtype), x.lanes)
        case BinaryOp.AND | BinaryOp.OR:
            if cy is not None:
                return x if cy == (op is BinaryOp.AND) else y
            return x if x == y else None
        case BinaryOp.MIN | BinaryOp.MAX:
            return x if x == y else None
        case _:
            # Only integers: a NaN differs from itself.
            if x.dtype.is_int and x == y:
                same = op in (BinaryOp.LE, BinaryOp.GE, BinaryOp.EQ)
                return splat(Const(same, bool_), x.lanes)
    return None


def _sum_identity(op: BinaryOp, x: Expr, y: Expr, cy: Number | None) -> Expr | None:
    if x.dtype.is_float:
        if cy == 0 and (math.copysign(1.0, cy) > 0) == (op is BinaryOp.SUB):
            return x  # x - 0.0 and x + -0.0 are x, whatever its sign
        return None
    if cy == 0:
        return x
    if op is BinaryOp.SUB and x == y:
        return splat(Const(0, x.dtype), x.lanes)
    # A ramp stays a ramp: contiguous accesses are recognised by their index.
    if isinstance(x, Ramp) and isinstance(y, Splat):
        return ramp(_fold(op, x.base, y.a), x.lanes)
    if isinstance(x, Splat) and isinstance(y, Ramp) and op is BinaryOp.ADD:
        return ramp(_fold(op, x.a, y.base), y.lanes)
    if cy is not None and isinstance(x, Binary) and x.op in (BinaryOp.ADD, BinaryOp.SUB):
        inner = _constant(x.b)
        if inner is not None:  # (z + 1) + 2 -> z + 3
            total = (inner if x.op is BinaryOp.ADD else -inner) + (cy if op is BinaryOp.ADD else -cy)
            return _offset(x.a, int(total))
    if cy is not None and cy < 0:
        return _offset(x, int(cy) if op is BinaryOp.ADD else -int(cy))
    return None


def _offset(x: Expr, value: int) -> Expr | None:
    """``x + value`` with a positive constant."""
    if value == 0:
        return x
    magnitude = convert(abs(value), x.dtype)
    if magnitude != abs(value):
        return None
    amount = splat(Const(magnitude, x.dtype), x.lanes)
    return Binary(BinaryOp.ADD if value > 0 else BinaryOp.SUB, x, amount)


def add(a: ExprLike, b: ExprLike) -> Expr:
    """``a + b``."""
    return binary(BinaryOp.ADD, a, b)


def sub(a: ExprLike, b: ExprLike) -> Expr:
    """``a - b``."""
    return binary(BinaryOp.SUB, a, b)


def mul(a: ExprLike, b: ExprLike) -> Expr:
    """``a * b``."""
    return binary(BinaryOp.MUL, a, b)


def div(a: ExprLike, b: ExprLike) -> Expr:
    """``a / b`` of floats."""
    return binary(BinaryOp.DIV, a, b)


def floordiv(a: ExprLike, b: ExprLike) -> Expr:
    """``a // b`` of integers, rounding down."""
    return binary(BinaryOp.FLOORDIV, a, b)


def floormod(a: ExprLike, b: ExprLike) -> Expr:
    """``a % b`` of integers, with the sign of ``b``."""
    return binary(BinaryOp.FLOORMOD, a, b)


def ceildiv(a: ExprLike, b: int) -> Expr:
    """``ceil(a / b)`` of integers for a positive ``b``."""
    return floordiv(add(a, b - 1), b)


def minimum(a: ExprLike, b: ExprLike) -> Expr:
    """The smaller one."""
    return binary(BinaryOp.MIN, a, b)


def maximum(a: ExprLike, b: ExprLike) -> Expr:
    """The larger one."""
    return binary(BinaryOp.MAX, a, b)


def lt(a: ExprLike, b: ExprLike) -> Expr:
    """``a < b``."""
    return binary(BinaryOp.LT, a, b)


def le(a: ExprLike, b: ExprLike) -> Expr:
    """``a <= b``."""
    return binary(BinaryOp.LE, a, b)


def gt(a: ExprLike, b: ExprLike) -> Expr:
    """``a > b``."""
    return binary(BinaryOp.GT, a, b)


def ge(a: ExprLike, b: ExprLike) -> Expr:
    """``a >= b``."""
    return binary(BinaryOp.GE, a, b)


def eq(a: ExprLike, b: ExprLike) -> Expr:
    """``a == b``."""
    return binary(BinaryOp.EQ, a, b)


def ne(a: ExprLike, b: ExprLike) -> Expr:
    """``a != b``."""
    return binary(BinaryOp.NE, a, b)


def and_(*conditions: ExprLike) -> Expr:
    """All of the conditions; true for none."""
    out: Expr = Const(True, bool_)
    for condition in conditions:
        out = binary(BinaryOp.AND, out, as_expr(condition, bool_))
    return out


def or_(*conditions: ExprLike) -> Expr:
    """Any of the conditions; false for none."""
    out: Expr = Const(False, bool_)
    for condition in conditions:
        out = binary(BinaryOp.OR, out, as_expr(condition, bool_))
    return out


# ----------------------------------------------------------------------------------------------- unary


def unary(op: UnaryOp, a: Expr) -> Expr:
    """``op(a)``, folded.

    Raises:
        ShapeError: ``not`` of a non-bool, arithmetic of a bool, a float function of an integer.
    """
    if op is UnaryOp.NOT and a.dtype != bool_:
        raise ShapeError(f"not: got an operand of {a.dtype}; expected bool")
    if op not in (UnaryOp.NOT, UnaryOp.NEG, UnaryOp.ABS) and not a.dtype.is_float:
        raise ShapeError(f"{op.value}: got an operand of {a.dtype}; expected a float")
    if op in (UnaryOp.NEG, UnaryOp.ABS) and a.dtype == bool_:
        raise ShapeError(f"{op.value}: got an operand of bool; expected a number")
    match a:
        case Splat():
            return Splat(unary(op, a.a), a.lanes)
        case Const():
            return Const(unary_value(op, a.value, a.dtype), a.dtype)
        case Unary(op=inner) if op is inner and op in (UnaryOp.NOT, UnaryOp.NEG):
            return a.a
    return Unary(op, a)


def neg(a: Expr) -> Expr:
    """``-a``."""
    return unary(UnaryOp.NEG, a)


def not_(a: Expr) -> Expr:
    """``not a``; comparisons of integers are inverted."""
    inverse = {
        BinaryOp.LT: BinaryOp.GE,
        BinaryOp.GE: BinaryOp.LT,
        BinaryOp.GT: BinaryOp.LE,
        BinaryOp.LE: BinaryOp.GT,
        BinaryOp.EQ: BinaryOp.NE,
        BinaryOp.NE: BinaryOp.EQ,
    }
    if isinstance(a, Binary) and a.op in inverse and not a.a.dtype.is_float:
        return Binary(inverse[a.op], a.a, a.b)
    return unary(UnaryOp.NOT, a)


def exp(a: Expr) -> Expr:
    """Exponential, base e."""
    return unary(UnaryOp.EXP, a)


def log(a: Expr) -> Expr:
    """Natural logarithm."""
    return unary(UnaryOp.LOG, a)


def sqrt(a: Expr) -> Expr:
    """Square root."""
    return unary(UnaryOp.SQRT, a)


def rsqrt(a: Expr) -> Expr:
    """``1 / sqrt(a)``."""
    return unary(UnaryOp.RSQRT, a)


def tanh(a: Expr) -> Expr:
    """Hyperbolic tangent."""
    return unary(UnaryOp.TANH, a)


def erf(a: Expr) -> Expr:
    """Error function."""
    return unary(UnaryOp.ERF, a)


def sigmoid(a: Expr) -> Expr:
    """``1 / (1 + exp(-a))``."""
    return unary(UnaryOp.SIGMOID, a)


def sin(a: Expr) -> Expr:
    """Sine of ``a`` radians."""
    return unary(UnaryOp.SIN, a)


def cos(a: Expr) -> Expr:
    """Cosine of ``a`` radians."""
    return unary(UnaryOp.COS, a)


def floor(a: Expr) -> Expr:
    """Largest whole number not above the float ``a``, as a float."""
    return unary(UnaryOp.FLOOR, a)


def round_(a: Expr) -> Expr:
    """The whole number nearest to the float ``a`` (halves to the even one), as a float."""
    return unary(UnaryOp.ROUND, a)


def abs_(a: Expr) -> Expr:
    """Absolute value."""
    return unary(UnaryOp.ABS, a)


def cast(dtype: DType, a: Expr) -> Expr:
    """``a`` converted to ``dtype``; nothing to do for the same dtype."""
    if a.dtype == dtype:
        return a
    match a:
        case Const():
            return Const(convert(a.value, dtype), dtype)
        case Splat():
            return Splat(cast(dtype, a.a), a.lanes)
    return Cast(dtype, a)


def select(cond: ExprLike, a: ExprLike, b: ExprLike) -> Expr:
    """``a`` where ``cond`` else ``b``.

    Raises:
        ShapeError: the condition is no bool, or the dtypes or lanes of the alternatives differ.
    """
    test = as_expr(cond, bool_)
    if test.dtype != bool_:
        raise ShapeError(f"select: got a condition of {test.dtype}; expected bool")
    x, y = _pair("select", a, b)
    lanes = max(test.lanes, x.lanes)
    test, x, y = splat(test, lanes), splat(x, lanes), splat(y, lanes)
    known = _constant(test)
    if known is not None:
        return x if known else y
    return x if x == y and not x.dtype.is_float else Select(test, x, y)


# ---------------------------------------------------------------------------------------- vectors, memory


def splat(a: Expr, lanes: int) -> Expr:
    """``a`` in ``lanes`` lanes; a vector that has them already stays itself.

    Raises:
        ShapeError: ``a`` has another number of lanes.
    """
    if a.lanes == lanes:
        return a
    if a.lanes != 1:
        raise ShapeError(f"splat: got a vector of {a.lanes} lanes; expected a scalar or {lanes} lanes")
    return Splat(a, lanes)


def ramp(base: ExprLike, lanes: int) -> Expr:
    """``[base, base+1, ..., base+lanes-1]``; the base itself for one lane."""
    start = as_expr(base, i64)
    if start.dtype != i64 or start.lanes != 1:
        raise ShapeError(
            f"ramp: got a base of {start.dtype} with {start.lanes} lanes; expected an i64 scalar"
        )
    return start if lanes == 1 else Ramp(start, lanes)


def reduction(op: ReduceOp, a: Expr) -> Expr:
    """All lanes of ``a`` combined; a scalar stays itself."""
    if a.lanes == 1:
        return a
    if isinstance(a, Splat) and op is not ReduceOp.ADD:
        return a.a
    return Reduce(op, a)


def reduce_sum(a: Expr) -> Expr:
    """Sum of the lanes, in pairwise order."""
    return reduction(ReduceOp.ADD, a)


def reduce_max(a: Expr) -> Expr:
    """Largest lane."""
    return reduction(ReduceOp.MAX, a)


def reduce_min(a: Expr) -> Expr:
    """Smallest lane."""
    return reduction(ReduceOp.MIN, a)


def _indices(buffer: Buffer, indices: tuple[ExprLike, ...]) -> tuple[Expr, ...]:
    """Indices as i64 expressions (narrower integers are widened)."""
    if len(indices) != len(buffer.shape):
        dims = ",".join(str(d) for d in buffer.shape)
        raise ShapeError(
            f"{buffer.name}: got {len(indices)} indices; expected {len(buffer.shape)} for shape [{dims}]"
        )
    out = []
    for position, value in enumerate(indices):
        expr = as_expr(value, i64)
        if not expr.dtype.is_int:
            raise ShapeError(f"{buffer.name}: index {position} has dtype {expr.dtype}; expected an integer")
        out.append(cast(i64, expr))
    return tuple(out)


def _mask(buffer: Buffer, mask: ExprLike | None, lanes: int) -> Expr | None:
    if mask is None:
        return None
    expr = as_expr(mask, bool_)
    if expr.dtype != bool_:
        raise ShapeError(f"{buffer.name}: mask has dtype {expr.dtype}; expected bool")
    return None if _constant(expr) is True else splat(expr, lanes)


def load(buffer: Buffer, *indices: ExprLike, mask: ExprLike | None = None) -> Expr:
    """``buffer[indices]``, with as many lanes as the last index; a mask that is true is dropped.

    Raises:
        ShapeError: wrong number of indices, a non-integer index, a mask that is no bool.
    """
    where = _indices(buffer, indices)
    lanes = where[-1].lanes if where else 1
    return Load(buffer, where, _mask(buffer, mask, lanes))


def store(buffer: Buffer, indices: Sequence[ExprLike], value: ExprLike, mask: ExprLike | None = None) -> Stmt:
    """``buffer[indices] = value``; nothing at all for a mask that is false.

    Raises:
        ShapeError: as :func:`load`; or the value has another dtype than the buffer, or other lanes.
    """
    where = _indices(buffer, tuple(indices))
    lanes = where[-1].lanes if where else 1
    expr = as_expr(value, buffer.dtype)
    if expr.dtype != buffer.dtype:
        raise ShapeError(f"{buffer.name}: got a value of {expr.dtype}; expected {buffer.dtype}; cast it")
    checked = _mask(buffer, mask, lanes)
    if checked is not None and _constant(checked) is False:
        return Seq(())
    return Store(buffer, where, splat(expr, lanes), checked)


# ------------------------------------------------------------------------------------------ statements


def call(extern: str, *args: Buffer | ExprLike) -> Call:
    """A call of the extern of that name; numbers become constants of the params' dtypes.

    Raises:
        UserError: no such extern.
        ShapeError: the arguments do not fit its params.
    """
    params = EXTERNS[extern].params
    dtypes = [p.dtype for p in params] + [i64] * (len(args) - len(params))
    made = (a if isinstance(a, Buffer) else as_expr(a, t) for a, t in zip(args, dtypes, strict=False))
    out = Call(extern, tuple(made))
    why = call_problem(out)
    if why is not None:
        raise ShapeError(f"call @{extern}: {why}")
    return out


def for_(var: Var | str, extent: ExprLike, body: Stmt, kind: ForKind = ForKind.SERIAL) -> For:
    """``for var in 0 .. extent-1: body``; a name makes a fresh variable that the body does not use."""
    return For(Var(var) if isinstance(var, str) else var, as_expr(extent, i64), kind, body)


def loop(name: str, extent: ExprLike, body: Callable[[Var], Stmt], kind: ForKind = ForKind.SERIAL) -> For:
    """A loop over a fresh variable called ``name``; ``body`` is called with it."""
    var = Var(name)
    return for_(var, extent, body(var), kind)


def spatial_axis(name: str, extent: ExprLike, value: ExprLike) -> BlockAxis:
    """A spatial block axis with a fresh variable."""
    return BlockAxis(Var(name), AxisKind.SPATIAL, as_expr(extent, i64), as_expr(value, i64))


def reduce_axis(name: str, extent: ExprLike, value: ExprLike) -> BlockAxis:
    """A reduction block axis with a fresh variable."""
    return BlockAxis(Var(name), AxisKind.REDUCTION, as_expr(extent, i64), as_expr(value, i64))
