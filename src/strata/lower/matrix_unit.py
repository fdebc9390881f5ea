"""Activations as a matrix unit wants them: a stage of their own, in bf16.

::

    activations[m, k / 32, 32]      a, rounded                                  bf16

A row has one piece of 32 elements more than it needs. A tile is a piece of each of 16 rows; were rows a power
of two of bytes apart, as they often are, all of them would compete for the few places that a cache has for
such addresses.
"""

from __future__ import annotations

from strata.core.dims import Dim
from strata.core.dtypes import bf16
from strata.graph.nodes import Node
from strata.loop import build as b
from strata.loop.matrix import ROW_BYTES
from strata.loop.nodes import Expr, Load

from .context import Access, Context, Index

ACTIVATIONS_BLOCK = "activations"
PIECE = ROW_BYTES // bf16.itemsize_bytes


def multiplies_pieces(product: Node) -> bool:
    """Whether a ``matmul`` is one of two matrices in bf16 whose k is a number of whole pieces."""
    a, weight = (x.tensor for x in product.inputs)
    k = a.shape[-1]
    in_pieces = isinstance(k, int) and k % PIECE == 0
    return in_pieces and a.dtype is weight.dtype is bf16 and len(a.shape) == len(weight.shape) == 2


def staged_activations(ctx: Context, given: Access, rows: Dim, k: int) -> Access:
    """Stage ``given[m, k]``, rounded to bf16; k is a number of whole pieces."""
    pieces = k // PIECE
    stored = ctx.buffer(ACTIVATIONS_BLOCK + "_buf", (rows, pieces + 1, PIECE), bf16)

    def piece(i: Index) -> Expr:
        return b.cast(bf16, given((i[0], b.add(b.mul(i[1], PIECE), i[2]))))

    ctx.stage(ACTIVATIONS_BLOCK, (rows, pieces, PIECE), bf16, piece, lambda i: (stored, i))
    return lambda i: Load(stored, (i[0], b.floordiv(i[1], PIECE), b.floormod(i[1], PIECE)))
