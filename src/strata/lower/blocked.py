"""Products of two matrices, k added up block by block, so that a block of the weight stays in a cache.

::

    activations[g, m, j]    a[m, g * block + j]             f32
    weights[k, n]           w, where it has 16 bits         f32
    partial[m, g, n]        sum over j                      f32
    matmul[m, n]            sum over g                      f32

Rows of a block of activations lie behind each other: what is read is one stream. Numbers of 16 bits become
f32 once for many products.
"""

from __future__ import annotations

from strata.core.dtypes import f32
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.nodes import Expr

from .context import Access, Context, Index, widened

ACTIVATIONS_BLOCK, WEIGHTS_BLOCK, PARTIAL_BLOCK = "activations", "weights", "partial"


def has_blocks(product: Node, size: int) -> bool:
    """Whether a ``matmul`` is one of floats, of a matrix and rows of a weight that are several blocks."""
    a, weight = (x.tensor for x in product.inputs)
    k = a.shape[-1]
    is_flat = len(a.shape) == len(weight.shape) == 2 and bool(product.attrs["transpose_b"])
    return is_flat and isinstance(k, int) and k % size == 0 and k > size and weight.dtype.bits <= f32.bits


def blocked_sums(ctx: Context, product: Node, name: str) -> Access:
    """Sums ``[m, n]`` of a product that :func:`has_blocks` of ``ctx.block``, in a stage called ``name``."""
    a, weight = product.inputs
    (rows, columns), k, size = product.tensor.shape, a.tensor.shape[1], ctx.block
    assert isinstance(k, int)
    given, right = widened(ctx.access(a)), widened(ctx.by_stored_rows(weight))
    left = ctx.stage(
        ACTIVATIONS_BLOCK, (k // size, rows, size), f32,
        lambda i: given((i[1], b.add(b.mul(i[0], size), i[2]))),
    )  # fmt: skip
    if weight.tensor.dtype is not f32:
        stored = ctx.stage(WEIGHTS_BLOCK, (k, columns), f32, lambda i: right((i[1], i[0])))
    else:
        stored = lambda i: right((i[1], i[0]))  # noqa: E731

    def term(spatial: Index, reduction: Index) -> Expr:
        (m, g, n), (j,) = spatial, reduction
        return b.mul(left((g, m, j)), stored((b.add(b.mul(g, size), j), n)))

    zero = b.const(0.0, f32)
    partial = ctx.reduce(PARTIAL_BLOCK, (rows, k // size, columns), f32, (size,), zero, b.add, term)
    return ctx.reduce(
        name, (rows, columns), f32, (k // size,), zero, b.add, lambda i, r: partial((i[0], r[0], i[1]))
    )
