"""Emission of scalar and vector expressions.

:class:`ExprEmitter` turns a loop-IR expression into a :class:`~strata.codegen.emit_values.Value`. Within
one statement shared sub-expressions are emitted once; across statements the builder merges equal pure
instructions.
"""

from __future__ import annotations

from typing import assert_never

from strata.core.dims import SymDim
from strata.core.dtypes import DType, Kind, bool_, f32, i64
from strata.core.errors import CodegenError
from strata.loop.nodes import (
    COMPARISONS,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Intrinsic,
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
from strata.target import Target

from . import emit_index as index
from .emit_cast import bf16_splat_as_f32, cast
from .emit_values import FALSE, TRUE, Builder, Lanes, Value, constant, ramp, splat, uniform
from .intrinsics import emit_intrinsic
from .math_functions import emit_math
from .types import mangled, ssa_type, vector_type

_FLOAT_OPS = {BinaryOp.ADD: "fadd", BinaryOp.SUB: "fsub", BinaryOp.MUL: "fmul", BinaryOp.DIV: "fdiv"}
_INT_OPS = {BinaryOp.ADD: "add", BinaryOp.SUB: "sub", BinaryOp.MUL: "mul"}
_FLOAT_COMPARE = {
    BinaryOp.LT: "olt",
    BinaryOp.LE: "ole",
    BinaryOp.GT: "ogt",
    BinaryOp.GE: "oge",
    BinaryOp.EQ: "oeq",
    BinaryOp.NE: "une",
}
_INT_COMPARE = {
    BinaryOp.LT: "lt",
    BinaryOp.LE: "le",
    BinaryOp.GT: "gt",
    BinaryOp.GE: "ge",
    BinaryOp.EQ: "eq",
    BinaryOp.NE: "ne",
}
_SCALAR_INDEX = {BinaryOp.ADD: index.add, BinaryOp.SUB: index.sub, BinaryOp.MUL: index.mul}


class ExprEmitter:
    """Expressions of one LLVM function.

    Args:
        where: Name for messages.
        builder: Where instructions go.
        target: What instructions there are.
    """

    def __init__(self, where: str, builder: Builder, target: Target) -> None:
        self.where = where
        self.b = builder
        self.target = target
        self._memo: dict[int, Value] = {}

    # ------------------------------------------------------------------ what statements provide

    def variable(self, var: Var) -> Value:
        """Value of a variable in scope."""
        raise NotImplementedError

    def dim(self, sym: SymDim) -> Value:
        """Value of a symbolic dim."""
        raise NotImplementedError

    def load(self, load: Load) -> Value:
        """Value of a load."""
        raise NotImplementedError

    def prefetch(self, load: Load, level: int) -> Value:
        """Bring what a load would read into the cache of level 1 or 2; 0."""
        raise NotImplementedError

    def evict(self, load: Load) -> Value:
        """Take the cache line of what a load would read out of all caches; 0."""
        raise NotImplementedError

    # ------------------------------------------------------------------ expressions

    def value(self, expr: Expr) -> Value:
        """Emit ``expr`` as part of a statement of its own."""
        self.forget()
        return self.expr(expr)

    def forget(self) -> None:
        """Begin another statement, whose expressions are emitted anew."""
        self._memo.clear()

    def expr(self, expr: Expr) -> Value:
        """Emit ``expr``; the same object within one statement is emitted once."""
        found = self._memo.get(id(expr))
        if found is None:
            found = self._memo[id(expr)] = self._emit(expr)
        return found

    def _emit(self, expr: Expr) -> Value:
        match expr:
            case Const():
                return constant(expr.value, expr.dtype)
            case Var():
                return self.variable(expr)
            case Size():
                return index.dim_value(self.b, expr.dim, self.dim)
            case Binary():
                return self.binary(expr.op, self.expr(expr.a), self.expr(expr.b))
            case Unary():
                return self.unary(expr.op, self.expr(expr.a))
            case Cast():
                return self.cast(expr.dtype, self.expr(expr.a))
            case Select():
                return self.select(self.expr(expr.cond), self.expr(expr.a), self.expr(expr.b))
            case Load():
                return self.load(expr)
            case Ramp():
                return ramp(self.expr(expr.base), expr.lanes)
            case Splat():
                return self._splat(expr)
            case Reduce():
                return self.reduce(expr.op, self.expr(expr.a))
            case Intrinsic(name="prefetch" | "prefetch1" as name, args=(Load() as load,)):
                return self.prefetch(load, 1 if name == "prefetch1" else 2)
            case Intrinsic(name="evict", args=(Load() as load,)):
                return self.evict(load)
            case Intrinsic():
                args = [self.expr(a) for a in expr.args]
                return emit_intrinsic(self, expr, args)
            case _:
                assert_never(expr)

    def _splat(self, expr: Splat) -> Value:
        inner = expr.a
        if isinstance(inner, Cast) and inner.dtype == f32 and inner.a.dtype.name == "bf16" and expr.lanes > 1:
            return bf16_splat_as_f32(self.b, self.expr(inner.a), expr.lanes)
        return splat(self.expr(inner), expr.lanes)

    # ------------------------------------------------------------------ binary

    def binary(self, op: BinaryOp, x: Value, y: Value) -> Value:
        """``x op y``."""
        if x.lanes > 1:
            p, q = uniform(x), uniform(y)
            if p is not None and q is not None:
                return splat(self.binary(op, p, q), x.lanes)
        if op in COMPARISONS:
            return self._compare(op, x, y)
        if x.dtype == bool_:
            return self._logical(op, x, y)
        if x.dtype.is_float:
            return self._float_binary(op, x, y)
        return self._int_binary(op, x, y)

    def _float_binary(self, op: BinaryOp, x: Value, y: Value) -> Value:
        if op in (BinaryOp.MIN, BinaryOp.MAX):
            return self._float_minmax(op, x, y)
        kind = ssa_type(x.dtype, x.lanes)
        # "contract" lets LLVM fuse a product and a sum into one FMA; everything else stays strict IEEE 754.
        return self.b.pure(x.dtype, x.lanes, f"{_FLOAT_OPS[op]} contract {kind} {{}}, {{}}", x, y)

    def _float_minmax(self, op: BinaryOp, x: Value, y: Value) -> Value:
        """NaN if one operand is. ``x > y ? x : y`` is one instruction, which gives y where x or y is NaN."""
        if self._number(y) and not self._number(x):
            x, y = y, x
        kind, lanes = ssa_type(x.dtype, x.lanes), x.lanes
        bit = ssa_type(bool_, lanes)
        order = "ogt" if op is BinaryOp.MAX else "olt"
        test = self.b.pure(bool_, lanes, f"fcmp {order} {kind} {{}}, {{}}", x, y)
        pick = f"select {bit} {{}}, {kind} {{}}, {kind} {{}}"
        best = self.b.pure(x.dtype, lanes, pick, test, x, y)
        if self._number(x):
            return best
        nan = self.b.pure(bool_, lanes, f"fcmp uno {kind} {{}}, {{}}", x, x)
        return self.b.pure(x.dtype, lanes, pick, nan, x, best)

    @staticmethod
    def _number(value: Value) -> bool:
        """A constant that is not NaN."""
        one = uniform(value)
        return one is not None and one.const is not None and one.const == one.const

    def _int_binary(self, op: BinaryOp, x: Value, y: Value) -> Value:
        if x.dtype == i64 and x.lanes == 1:
            if op in _SCALAR_INDEX:
                return _SCALAR_INDEX[op](self.b, x, y)
            if op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
                quotient, remainder = index.divmod_index(self.b, x, y)
                return quotient if op is BinaryOp.FLOORDIV else remainder
            return index.minmax(self.b, op, x, y)
        if x.dtype == i64:
            formed = index.vector_arithmetic(self.b, op, x, y)
            if formed is not None:
                return formed
        return self._plain_int(op, x, y)

    def _plain_int(self, op: BinaryOp, x: Value, y: Value) -> Value:
        """Wrapping integer arithmetic without a linear form."""
        kind, signed = ssa_type(x.dtype, x.lanes), x.dtype.kind is Kind.INT
        if op in _INT_OPS:
            return self.b.pure(x.dtype, x.lanes, f"{_INT_OPS[op]} {kind} {{}}, {{}}", x, y)
        if op in (BinaryOp.MIN, BinaryOp.MAX):
            name = f"llvm.{'s' if signed else 'u'}{op.value}.{mangled(kind)}"
            text, level = self.b.call(name, kind, [(kind, x), (kind, y)])
            return self.b.opaque(x.dtype, x.lanes, text, level)
        first = op is BinaryOp.FLOORDIV
        if signed:
            return index.signed_floor(self.b, x, y)[0 if first else 1]
        zero, one = (self._const(c, x.dtype, x.lanes) for c in (0, 1))
        is_zero = self.b.pure(bool_, x.lanes, f"icmp eq {kind} {{}}, {{}}", y, zero)
        divisor = self.select(is_zero, one, y)
        return self.b.pure(x.dtype, x.lanes, f"{'udiv' if first else 'urem'} {kind} {{}}, {{}}", x, divisor)

    def _const(self, value: int | float | bool, dtype: DType, lanes: int) -> Value:
        return splat(constant(value, dtype), lanes)

    def _compare(self, op: BinaryOp, x: Value, y: Value) -> Value:
        kind = ssa_type(x.dtype, x.lanes)
        if x.dtype.is_float:
            return self.b.pure(bool_, x.lanes, f"fcmp {_FLOAT_COMPARE[op]} {kind} {{}}, {{}}", x, y)
        known = index.decided(op, x, y)
        if known is not None:
            return splat(known, x.lanes)
        if x.lanes > 1 and x.dtype == i64:
            mask = self._lane_mask(op, x, y)
            if mask is not None:
                return mask
        sign = "" if op in (BinaryOp.EQ, BinaryOp.NE) else "s" if x.dtype.kind is Kind.INT else "u"
        return self.b.pure(bool_, x.lanes, f"icmp {sign}{_INT_COMPARE[op]} {kind} {{}}, {{}}", x, y)

    def _lane_mask(self, op: BinaryOp, x: Value, y: Value) -> Value | None:
        """``base + lane < bound`` as ``lane < clamp(bound - base)`` on narrow lanes: one compare per mask."""
        flipped = {
            BinaryOp.LT: BinaryOp.GT,
            BinaryOp.LE: BinaryOp.GE,
            BinaryOp.GT: BinaryOp.LT,
            BinaryOp.GE: BinaryOp.LE,
        }
        if op not in flipped:
            return None
        if uniform(x) is not None:
            x, y, op = y, x, flipped[op]
        bound = uniform(y)
        if not isinstance(x, Lanes) or x.base is None or x.stride != 1 or bound is None:
            return None
        count = index.sub(self.b, bound, x.base)
        if op in (BinaryOp.LE, BinaryOp.GT):
            count = index.add(self.b, count, constant(1, i64))
        count = index.minmax(self.b, BinaryOp.MAX, count, constant(0, i64))
        count = index.minmax(self.b, BinaryOp.MIN, count, constant(x.lanes, i64))
        bits = max(8, min(32, self.target.vector_bytes * 8 // x.lanes))
        kind = f"<{x.lanes} x i{bits}>"
        narrow = self.b.pure(bool_, 1, f"trunc i64 {{}} to i{bits}", count)
        lanes = ", ".join(f"i{bits} {lane}" for lane in range(x.lanes))
        one = self.b.pure(bool_, x.lanes, f"insertelement {kind} poison, i{bits} {{}}, i64 0", narrow)
        zeros = f"<{x.lanes} x i32> zeroinitializer"
        wide = self.b.pure(bool_, x.lanes, f"shufflevector {kind} {{}}, {kind} poison, {zeros}", one)
        order = "ugt" if op in (BinaryOp.LT, BinaryOp.LE) else "ule"
        return self.b.pure(bool_, x.lanes, f"icmp {order} {kind} {{}}, <{lanes}>", wide)

    def _logical(self, op: BinaryOp, x: Value, y: Value) -> Value:
        p, q = uniform(x), uniform(y)
        for one, other in ((p, y), (q, x)):
            if one is not None and one.const is not None:
                return other if bool(one.const) == (op is BinaryOp.AND) else splat(one, x.lanes)
        kind = ssa_type(bool_, x.lanes)
        code = "or" if op in (BinaryOp.OR, BinaryOp.MAX) else "and"
        return self.b.pure(bool_, x.lanes, f"{code} {kind} {{}}, {{}}", x, y)

    # ------------------------------------------------------------------ unary, select, cast

    def unary(self, op: UnaryOp, x: Value) -> Value:
        """``op(x)``."""
        one = uniform(x)
        if one is not None and x.lanes > 1:
            return splat(self.unary(op, one), x.lanes)
        kind, lanes = ssa_type(x.dtype, x.lanes), x.lanes
        match op:
            case UnaryOp.NOT:
                if x.const is not None:
                    return FALSE if x.const else TRUE
                return self.b.pure(bool_, lanes, f"xor {kind} {{}}, {{}}", x, self._const(True, bool_, lanes))
            case UnaryOp.NEG if x.dtype.is_float:
                return self.b.pure(x.dtype, lanes, f"fneg {kind} {{}}", x)
            case UnaryOp.NEG:
                return self.binary(BinaryOp.SUB, self._const(0, x.dtype, lanes), x)
            case UnaryOp.ABS if x.dtype.is_int:
                if x.dtype.kind is Kind.UINT or (x.lo is not None and x.lo >= 0):
                    return x
                return self.binary(BinaryOp.MAX, x, self.unary(UnaryOp.NEG, x))
        return emit_math(self.b, self.target, op, x)

    def select(self, cond: Value, x: Value, y: Value) -> Value:
        """``x`` where ``cond`` else ``y``."""
        one = uniform(cond)
        if one is not None and one.const is not None:
            return x if one.const else y
        if one is not None and x.lanes > 1:
            p, q = uniform(x), uniform(y)
            if p is not None and q is not None:
                return splat(self.select(one, p, q), x.lanes)
        kind, bit = ssa_type(x.dtype, x.lanes), ssa_type(bool_, x.lanes)
        lo = None if x.lo is None or y.lo is None else min(x.lo, y.lo)
        hi = None if x.hi is None or y.hi is None else max(x.hi, y.hi)
        template = f"select {bit} {{}}, {kind} {{}}, {kind} {{}}"
        return self.b.pure(x.dtype, x.lanes, template, cond, x, y, lo=lo, hi=hi)

    def cast(self, dtype: DType, x: Value) -> Value:
        """``x`` converted to ``dtype``."""
        if dtype == x.dtype:
            return x
        one = uniform(x)
        if one is not None and x.lanes > 1:
            return splat(self.cast(dtype, one), x.lanes)
        return cast(self.b, self.target, x, dtype)

    # ------------------------------------------------------------------ reduction

    def reduce(self, op: ReduceOp, x: Value) -> Value:
        """Lanes of ``x`` combined pairwise: the upper half onto the lower half until one is left."""
        if x.lanes == 1:
            return x
        combine = {ReduceOp.ADD: BinaryOp.ADD, ReduceOp.MAX: BinaryOp.MAX, ReduceOp.MIN: BinaryOp.MIN}[op]
        lanes = x.lanes
        if lanes & (lanes - 1):
            raise CodegenError(f"{self.where}: reduce of {lanes} lanes; expected a power of two")
        element = ssa_type(x.dtype)
        while lanes > 1:
            half = lanes // 2
            low, high = (self._half(x, element, start, half) for start in (0, half))
            x, lanes = self.binary(combine, low, high), half
        return x

    def _half(self, x: Value, element: str, start: int, half: int) -> Value:
        kind = vector_type(element, x.lanes)
        if half == 1:
            return self.b.pure(x.dtype, 1, f"extractelement {kind} {{}}, i64 {start}", x)
        picks = ", ".join(f"i32 {start + lane}" for lane in range(half))
        return self.b.pure(
            x.dtype, half, f"shufflevector {kind} {{}}, {kind} poison, <{half} x i32> <{picks}>", x
        )
