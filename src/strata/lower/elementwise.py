"""Lowering of elementwise and broadcasting ops."""

from __future__ import annotations

from collections.abc import Callable
from math import nan, pi, sqrt

from strata.core.dtypes import bool_
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.nodes import Expr

from .context import LOWERINGS, Access, Context, Index, broadcast_index, compute_type, widened

_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": b.add,
    "sub": b.sub,
    "mul": b.mul,
    "maximum": b.maximum,
    "minimum": b.minimum,
    "equal": b.eq,
    "not_equal": b.ne,
    "less": b.lt,
    "less_equal": b.le,
    "greater": b.gt,
    "greater_equal": b.ge,
    "logical_and": b.and_,
    "logical_or": b.or_,
}


def _divide(x: Expr, y: Expr) -> Expr:
    return b.div(x, y) if x.dtype.is_float else b.floordiv(x, y)


def power(x: Expr, y: Expr) -> Expr:
    """``x ** y`` of floats, by ``exp(y log|x|)``; a negative x needs a whole y, else the result is nan."""
    one, minus, zero = (b.const(v, x.dtype) for v in (1.0, -1.0, 0.0))
    size, half = b.abs_(x), b.mul(y, b.const(0.5, x.dtype))
    magnitude = b.select(b.eq(size, one), one, b.exp(b.mul(y, b.log(size))))  # 1 ** inf is 1
    of_whole = b.select(b.eq(b.floor(half), half), one, minus)
    sign = b.select(b.eq(b.floor(y), y), of_whole, b.const(nan, x.dtype))
    return b.select(b.eq(y, zero), one, b.mul(magnitude, b.select(b.lt(x, zero), sign, one)))


_BINARY["div"] = _divide
_BINARY["power"] = power


def silu(x: Expr) -> Expr:
    """``x * sigmoid(x)``."""
    return b.mul(x, b.sigmoid(x))


def gelu(x: Expr, approximate: str) -> Expr:
    """GELU, exact (erf) or by tanh (Hendrycks & Gimpel 2016)."""
    half = b.const(0.5, x.dtype)
    one = b.const(1.0, x.dtype)
    if approximate == "tanh":
        cube = b.mul(b.mul(x, x), x)
        inner = b.add(x, b.mul(cube, b.const(0.044715, x.dtype)))
        return b.mul(b.mul(half, x), b.add(one, b.tanh(b.mul(inner, b.const(sqrt(2 / pi), x.dtype)))))
    return b.mul(b.mul(half, x), b.add(one, b.erf(b.mul(x, b.const(sqrt(0.5), x.dtype)))))


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "neg": b.neg,
    "exp": b.exp,
    "log": b.log,
    "sqrt": b.sqrt,
    "rsqrt": b.rsqrt,
    "tanh": b.tanh,
    "erf": b.erf,
    "sigmoid": b.sigmoid,
    "silu": silu,
    "relu": lambda x: b.maximum(x, b.const(0.0 if x.dtype.is_float else 0, x.dtype)),
    "abs": b.abs_,
    "sin": b.sin,
    "cos": b.cos,
    "floor": b.floor,
    "logical_not": b.not_,
}


def _elementwise(node: Node, ctx: Context, compute: Callable[..., Expr]) -> Access:
    shapes = [x.tensor.shape for x in node.inputs]
    accesses = [widened(ctx.access(x)) for x in node.inputs]
    result = node.tensor.dtype

    def element(i: Index) -> Expr:
        operands = [a(broadcast_index(i, s)) for a, s in zip(accesses, shapes, strict=True)]
        value = compute(*operands)
        return value if result is bool_ else b.cast(result, value)

    return element


for _name, _function in _BINARY.items():
    LOWERINGS.add(_name, lambda ctx, node, f=_function: _elementwise(node, ctx, f))
for _name, _function1 in _UNARY.items():
    LOWERINGS.add(_name, lambda ctx, node, f=_function1: _elementwise(node, ctx, f))
LOWERINGS.add("gelu", lambda ctx, node: _elementwise(node, ctx, lambda x: gelu(x, node.attrs["approximate"])))
LOWERINGS.add("where", lambda ctx, node: _elementwise(node, ctx, b.select))


@LOWERINGS.register("cast")
def lower_cast(ctx: Context, node: Node) -> Access:
    """Conversion; to bool it is ``!= 0``; between narrow types through the compute type."""
    source, target = ctx.access(node.inputs[0]), node.tensor.dtype

    def element(i: Index) -> Expr:
        x = source(i)
        if target is bool_:
            wide = b.cast(compute_type(x.dtype), x)
            return (
                wide
                if wide.dtype is bool_
                else b.ne(wide, b.const(0.0 if wide.dtype.is_float else 0, wide.dtype))
            )
        return b.cast(target, x)

    return element
