"""Lowering of matmul: one staged reduction in f32 (f64 for f64), rounded once to the result dtype.

Outputs are staged in the order in which the weight stores its rows, and read where they are.
"""

from __future__ import annotations

from strata.core.dtypes import f32, f64
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.nodes import Expr

from .blocked import blocked_sums, has_blocks
from .context import LOWERINGS, Access, Context, Index, broadcast_index
from .matrix_unit import multiplies_pieces, staged_activations

MATMUL_BLOCK = "matmul"


@LOWERINGS.register("matmul")
def lower_matmul(ctx: Context, node: Node) -> Access:
    """``acc[..., m, n] = sum_k a[..., m, k] * b[..., k, n]`` (``b[..., n, k]`` when transposed)."""
    a, weight = node.inputs
    if ctx.block and has_blocks(node, ctx.block):
        total = blocked_sums(ctx, node, MATMUL_BLOCK)
        return lambda i: b.cast(node.tensor.dtype, total((i[0], ctx.stored_row(weight, i[1]))))
    left, right = ctx.access(a), ctx.by_stored_rows(weight)
    if ctx.has_matrix_unit and multiplies_pieces(node):
        rows, k = a.tensor.shape
        assert isinstance(k, int)
        left = staged_activations(ctx, left, rows, k)
    accumulate = f64 if a.tensor.dtype is f64 else f32
    transposed = node.attrs["transpose_b"]
    batch_a, batch_b = a.tensor.shape[:-2], weight.tensor.shape[:-2]

    def product(spatial: Index, reduction: Index) -> Expr:
        *batch, m, n = spatial
        (k,) = reduction
        row = (n, k) if transposed else (k, n)
        x = left((*broadcast_index(batch, batch_a), m, k))
        w = right((*broadcast_index(batch, batch_b), *row))
        return b.mul(b.cast(accumulate, x), b.cast(accumulate, w))

    zero = b.const(0.0, accumulate)
    k_extent = a.tensor.shape[-1]
    total = ctx.reduce(MATMUL_BLOCK, node.tensor.shape, accumulate, (k_extent,), zero, b.add, product)
    return lambda i: b.cast(node.tensor.dtype, total((*i[:-1], ctx.stored_row(weight, i[-1]))))
