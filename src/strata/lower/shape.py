"""Lowering of ops that only move elements."""

from __future__ import annotations

from strata.core.dims import Dim, Shape, product
from strata.core.dtypes import i64
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.nodes import Buffer, Expr, Load, size

from .context import LOWERINGS, Access, Context, Index, broadcast_index


def _groups(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """Split both shapes into the smallest runs of dims with equal products, left to right.

    ``[n, 12] -> [n, 3, 4]`` gives ``(n | n)`` and ``(12 | 3, 4)``: only dims within a run mix, so no division
    by a symbolic size is needed in the usual cases.
    """
    out: list[tuple[range, range]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        i0, j0 = i, j
        left: Dim = 1
        right: Dim = 1
        while True:
            if i > i0 or j > j0:
                if left == right:
                    break
                if i == len(source) and j == len(target):
                    break
            grow_left = j == len(target) or (i < len(source) and _at_most(left, right))
            if grow_left:
                left, i = left * source[i], i + 1
            else:
                right, j = right * target[j], j + 1
        out.append((range(i0, i), range(j0, j)))
    return out


def _at_most(left: Dim, right: Dim) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left <= right
    return isinstance(left, int)  # a symbolic product on the right: catch up on the left


def _linear(index: Index, shape: Shape) -> Expr:
    total: Expr = b.const(0, i64)
    for i, dim in zip(index, shape, strict=True):
        total = b.add(b.mul(total, size(dim)), i)
    return total


def reshaped_index(index: Index, source: Shape, target: Shape) -> Index:
    """Index into ``source`` of the element that sits at ``index`` of ``target``."""
    out: list[Expr] = []
    for s, t in _groups(source, target):
        dims = [source[k] for k in s]
        if len(s) == 1 and len(t) == 1:
            out.append(index[t[0]])
            continue
        linear = _linear(tuple(index[k] for k in t), tuple(target[k] for k in t))
        for k in range(len(dims)):
            inner = product(dims[k + 1 :])
            part = b.floordiv(linear, size(inner)) if inner != 1 else linear
            if dims[k] == 1:
                part = b.const(0, i64)
            elif k > 0:
                part = b.floormod(part, size(dims[k]))
            out.append(part)
    return tuple(out)


@LOWERINGS.register("view")
@LOWERINGS.register("reshape")
def lower_reshape(ctx: Context, node: Node) -> Access:
    """The same elements in row-major order under another shape."""
    x = node.inputs[0]
    source = ctx.access(x)
    return lambda i: source(reshaped_index(i, x.tensor.shape, node.tensor.shape))


@LOWERINGS.register("permute_dims")
def lower_permute_dims(ctx: Context, node: Node) -> Access:
    """``out[i0, i1, ...] = x[...]`` with dim ``axes[k]`` of x at position k."""
    source = ctx.access(node.inputs[0])
    axes = [k % node.tensor.rank for k in node.attrs["axes"]]

    def element(i: Index) -> Expr:
        position = dict(zip(axes, i, strict=True))
        return source(tuple(position[k] for k in range(len(axes))))

    return element


@LOWERINGS.register("slice")
def lower_slice(ctx: Context, node: Node) -> Access:
    """A contiguous range of one axis."""
    source = ctx.access(node.inputs[0])
    axis = node.attrs["axis"] % node.tensor.rank
    begin = size(node.attrs["begin"])
    return lambda i: source((*i[:axis], b.add(i[axis], begin), *i[axis + 1 :]))


@LOWERINGS.register("broadcast_to")
def lower_broadcast_to(ctx: Context, node: Node) -> Access:
    """NumPy broadcasting."""
    x = node.inputs[0]
    source = ctx.access(x)
    return lambda i: source(broadcast_index(i, x.tensor.shape))


@LOWERINGS.register("concat")
def lower_concat(ctx: Context, node: Node) -> Access:
    """Staged operand by operand, so that each element is computed once and no access runs out of bounds."""
    axis = node.attrs["axis"] % node.tensor.rank
    shape = node.tensor.shape
    joined = Buffer(ctx.unique("concat_buf"), shape, node.tensor.dtype)
    ctx.allocs.append(joined)
    offset: Dim = 0
    for operand in node.inputs:
        begin = size(offset)

        def place(i: Index, begin: Expr = begin) -> tuple[Buffer, Index]:
            return joined, (*i[:axis], b.add(i[axis], begin), *i[axis + 1 :])

        ctx.stage("concat", operand.tensor.shape, node.tensor.dtype, ctx.access(operand), place)
        offset = offset + operand.tensor.shape[axis]
    return lambda i: Load(joined, i)


@LOWERINGS.register("take")
def lower_take(ctx: Context, node: Node) -> Access:
    """Rows of a table by index; one that is out of range reads the nearest row rather than foreign memory."""
    table, indices = node.inputs
    rows, ids = ctx.access(table), ctx.access(indices)
    axis = node.attrs["axis"] % table.tensor.rank
    rank = indices.tensor.rank

    def element(i: Index) -> Expr:
        wanted = b.cast(i64, ids(i[axis : axis + rank]))
        chosen = b.minimum(b.maximum(wanted, b.const(0, i64)), b.sub(size(table.tensor.shape[axis]), 1))
        return rows((*i[:axis], chosen, *i[axis + rank :]))

    return element
