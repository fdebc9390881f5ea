"""Lowering of reductions and normalisations: staged row statistics, then an elementwise formula."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from strata.core.dims import product
from strata.core.dtypes import DType
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.nodes import Expr, size
from strata.loop.values import int_range

from .context import LOWERINGS, Access, Context, Index, compute_type, widened


def _row_reduce(
    ctx: Context,
    name: str,
    shape: tuple,
    axes: tuple[int, ...],
    dtype: DType,
    init: float,
    combine: Callable[[Expr, Expr], Expr],
    value: Access,
) -> Access:
    """Reduce ``value`` (indexed by ``shape``) over ``axes``; the access takes an index of the kept dims."""
    kept = [k for k in range(len(shape)) if k not in axes]
    # An integer has no -inf: the smallest one takes its place.
    start = b.const(init if dtype.is_float else int(max(init, int_range(dtype)[0])), dtype)

    def element(spatial: Index, reduction: Index) -> Expr:
        full: dict[int, Expr] = {
            **dict(zip(kept, spatial, strict=True)),
            **dict(zip(axes, reduction, strict=True)),
        }
        return value(tuple(full[k] for k in range(len(shape))))

    return ctx.reduce(
        name, tuple(shape[k] for k in kept), dtype, tuple(shape[k] for k in axes), start, combine, element
    )


def _mean_count(shape: tuple, axes: tuple[int, ...], dtype: DType) -> Expr:
    return b.cast(dtype, size(product(shape[k] for k in axes)))


def _lower_reduction(ctx: Context, node: Node, init: float, combine: Callable[[Expr, Expr], Expr]) -> Access:
    x = node.inputs[0]
    shape, dtype = x.tensor.shape, compute_type(x.tensor.dtype)
    axes = tuple(sorted(k % len(shape) for k in node.attrs["axes"]))
    total = _row_reduce(ctx, node.op, shape, axes, dtype, init, combine, widened(ctx.access(x)))

    def element(i: Index) -> Expr:
        kept = tuple(e for k, e in enumerate(i) if k not in axes) if node.attrs["keepdims"] else i
        value = total(kept)
        if node.op == "mean":
            value = b.div(value, _mean_count(shape, axes, dtype))
        return b.cast(node.tensor.dtype, value)

    return element


LOWERINGS.add("sum", lambda ctx, node: _lower_reduction(ctx, node, 0.0, b.add))
LOWERINGS.add("mean", lambda ctx, node: _lower_reduction(ctx, node, 0.0, b.add))
LOWERINGS.add("max", lambda ctx, node: _lower_reduction(ctx, node, -inf, b.maximum))


@LOWERINGS.register("softmax")
def lower_softmax(ctx: Context, node: Node) -> Access:
    """``exp(x - max) / sum(exp(x - max))`` along one axis, in f32."""
    x = node.inputs[0]
    shape, dtype = x.tensor.shape, compute_type(x.tensor.dtype)
    axis = node.attrs["axis"] % len(shape)
    value = widened(ctx.access(x))

    def without(i: Index) -> Index:
        return (*i[:axis], *i[axis + 1 :])

    top = _row_reduce(ctx, "row_max", shape, (axis,), dtype, -inf, b.maximum, value)

    def shifted(i: Index) -> Expr:
        return b.exp(b.sub(value(i), top(without(i))))

    total = _row_reduce(ctx, "row_sum", shape, (axis,), dtype, 0.0, b.add, shifted)
    return lambda i: b.cast(node.tensor.dtype, b.div(shifted(i), total(without(i))))


@LOWERINGS.register("rms_norm")
def lower_rms_norm(ctx: Context, node: Node) -> Access:
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    x, weight = node.inputs
    shape = x.tensor.shape
    last, dtype = len(shape) - 1, compute_type(x.tensor.dtype)
    value, scale = widened(ctx.access(x)), widened(ctx.access(weight))

    def square(i: Index) -> Expr:
        element = value(i)
        return b.mul(element, element)

    squares = _row_reduce(ctx, "squares", shape, (last,), dtype, 0.0, b.add, square)

    def element(i: Index) -> Expr:
        mean = b.div(squares(i[:-1]), _mean_count(shape, (last,), dtype))
        root = b.rsqrt(b.add(mean, b.const(node.attrs["eps"], dtype)))
        return b.cast(node.tensor.dtype, b.mul(b.mul(value(i), root), scale(i[-1:])))

    return element


@LOWERINGS.register("layer_norm")
def lower_layer_norm(ctx: Context, node: Node) -> Access:
    """``(x - mean) * rsqrt(var + eps) * weight + bias`` over the last axis (Ba et al. 2016), two passes."""
    x, weight, bias = node.inputs
    shape = x.tensor.shape
    last, dtype = len(shape) - 1, compute_type(x.tensor.dtype)
    value, scale, shift = (widened(ctx.access(v)) for v in (x, weight, bias))
    count = _mean_count(shape, (last,), dtype)
    total = _row_reduce(ctx, "row_sum", shape, (last,), dtype, 0.0, b.add, value)

    def centred(i: Index) -> Expr:
        return b.sub(value(i), b.div(total(i[:-1]), count))

    def square(i: Index) -> Expr:
        element = centred(i)
        return b.mul(element, element)

    squares = _row_reduce(ctx, "squares", shape, (last,), dtype, 0.0, b.add, square)

    def element(i: Index) -> Expr:
        root = b.rsqrt(b.add(b.div(squares(i[:-1]), count), b.const(node.attrs["eps"], dtype)))
        normal = b.mul(b.mul(centred(i), root), scale(i[-1:]))
        return b.cast(node.tensor.dtype, b.add(normal, shift(i[-1:])))

    return element
