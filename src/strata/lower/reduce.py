"""Lowering of reductions, argmax and norms: staged row statistics, then an elementwise formula."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from strata.core.dims import Dim, Shape, product
from strata.core.dtypes import DType, i32, i64
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


ARGMAX_PART = 2048  # elements of a part: a vocabulary has some for every thread, and few maxima to go through


@LOWERINGS.register("argmax")
def lower_argmax(ctx: Context, node: Node) -> Access:
    """The largest element of each part of a row, the first part that has the largest of all, its place there.

    ::

        part      0         1         2     (begins early: it ends with the row)
        row   |---------|---------|---------|       top of each part: on all threads
                              |---------|           place: within one part only

    Elements that two parts have do no harm: the earlier part is found first. Short rows are one part. The
    result is that of one search from left to right, however the parts are shared among threads.
    """
    x = node.inputs[0]
    shape, axis = x.tensor.shape, node.attrs["axis"] % x.tensor.rank
    kept, extent, dtype = (*shape[:axis], *shape[axis + 1 :]), shape[axis], compute_type(x.tensor.dtype)
    value = widened(ctx.access(x))

    def along(i: Index, place: Expr) -> Expr:
        return value((*i[:axis], place, *i[axis:]))

    if not isinstance(extent, int) or extent < 2 * ARGMAX_PART:
        top = _largest(ctx, "top", kept, extent, dtype, along)
        place = _first(ctx, "place", kept, extent, along, top)
        return lambda i: b.cast(i32, place(i))
    parts = -(-extent // ARGMAX_PART)

    def begin(part: Expr) -> Expr:
        return b.minimum(b.mul(part, ARGMAX_PART), extent - ARGMAX_PART)

    def in_part(i: Index, k: Expr) -> Expr:
        return along(i[:-1], b.add(begin(i[-1]), k))

    part_top = _largest(ctx, "part_top", (*kept, parts), ARGMAX_PART, dtype, in_part)
    top = _largest(ctx, "top", kept, parts, dtype, lambda i, k: part_top((*i, k)))
    chosen = _first(ctx, "chosen", kept, parts, lambda i, k: part_top((*i, k)), top)

    def start(i: Index) -> Expr:
        return begin(b.cast(i64, chosen(i)))

    place = _first(ctx, "place", kept, ARGMAX_PART, lambda i, k: along(i, b.add(start(i), k)), top)
    return lambda i: b.cast(i32, b.add(start(i), b.cast(i64, place(i))))


def _largest(
    ctx: Context, name: str, kept: Shape, extent: Dim, dtype: DType, value: Callable[[Index, Expr], Expr]
) -> Access:
    """Stage the largest ``value(i, k)`` over ``k``; NaN if there is one."""
    return _row_reduce(
        ctx, name, (*kept, extent), (len(kept),), dtype, -inf, b.maximum, lambda i: value(i[:-1], i[-1])
    )


def _first(
    ctx: Context, name: str, kept: Shape, extent: Dim, value: Callable[[Index, Expr], Expr], top: Access
) -> Access:
    """Stage the first ``k`` whose ``value(i, k)`` is the largest, i32: NaN or not less than ``top(i)``."""
    last = b.cast(i32, b.sub(size(extent), 1))

    def found(i: Index, k: Index) -> Expr:
        element = value(i, k[0])
        is_top = b.or_(b.ge(element, top(i)), b.ne(element, element))
        return b.select(is_top, b.cast(i32, k[0]), last)

    return ctx.reduce(name, kept, i32, (extent,), last, b.minimum, found)


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
