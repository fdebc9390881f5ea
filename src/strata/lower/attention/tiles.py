"""Sizes of the tiles of paged attention, and the loops that its parts are written in.

A *row* is one query head of one token. A task has the rows of up to ``tokens`` tokens and ``heads`` query
heads that share a KV head; it walks the pages once for all of them. ``rows`` of them at a time have their
scores for a *span* of a page in registers, as ``rows x token_vectors`` vectors, and then ``dim_vectors``
vectors each of the output::

    task      rows 0 .. tokens*heads-1      row r = token r // heads, head r % heads
    block     rows of registers             s[rows, span]  += q[rows, D] @ K[D, span]
                                            o[rows, slice] += p[rows, span] @ V[span, slice]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strata.core.dtypes import DType, bf16, f32
from strata.graph.types import CacheType
from strata.loop import build as b
from strata.loop.nodes import (
    AxisKind,
    Block,
    BlockAxis,
    Expr,
    For,
    ForKind,
    Load,
    Stmt,
    Store,
    Var,
    size,
)

MAX_LANES = 16
TASK_ROWS = 32  # rows of a task: q, o and one page of K and V stay in a level-1 cache of 32 KiB
REGISTER_VECTORS = 16  # sums of a block; K, V and broadcasts take the rest of 32 registers
MAX_BLOCK_ROWS = 8
MAX_SPAN_VECTORS = 2
DOT_LANES = (4, 8, 16)
DOT_NOTE = ("tensorize", "dot2_bf16")  # on blocks that are one instruction where the machine has it


def lanes_for(extent: int) -> int:
    """The largest power of two up to ``MAX_LANES`` that divides ``extent``."""
    return min(extent & -extent, MAX_LANES)


def largest_divisor(value: int, limit: int) -> int:
    """The largest divisor of ``value`` that is at most ``limit``."""
    return max(k for k in range(1, min(value, max(limit, 1)) + 1) if value % k == 0)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of one attention kernel.

    Attributes:
        tokens: Tokens of a task.
        heads: Query heads of a task.
        rows: Rows of a block.
        token_lanes, token_vectors: A row's scores for a span.
        dim_lanes, dim_vectors: A row's slice of the output.
    """

    tokens: int
    heads: int
    rows: int
    token_lanes: int
    token_vectors: int
    dim_lanes: int
    dim_vectors: int

    @classmethod
    def of(cls, cache: CacheType, heads: int) -> Tiles:
        """Tiles for ``heads`` query heads."""
        task_heads = largest_divisor(heads // cache.num_kv_heads, TASK_ROWS)
        tokens = TASK_ROWS // task_heads
        token_lanes, dim_lanes = lanes_for(cache.page_size), lanes_for(cache.head_dim)
        token_vectors = largest_divisor(cache.page_size // token_lanes, MAX_SPAN_VECTORS)
        rows = min(MAX_BLOCK_ROWS, REGISTER_VECTORS // token_vectors)
        dim_vectors = largest_divisor(cache.head_dim // dim_lanes, REGISTER_VECTORS // rows)
        return cls(tokens, task_heads, rows, token_lanes, token_vectors, dim_lanes, dim_vectors)

    @property
    def task_rows(self) -> int:
        """Rows of a task, rounded up to whole blocks."""
        return -(-self.tokens * self.heads // self.rows) * self.rows

    @property
    def span(self) -> int:
        """Tokens of a span."""
        return self.token_lanes * self.token_vectors

    @property
    def slice(self) -> int:
        """Elements of an output slice."""
        return self.dim_lanes * self.dim_vectors


def operand_dtype(cache: CacheType) -> DType:
    """Dtype of the factors of a product."""
    return bf16 if cache.pack == 2 else f32


# --------------------------------------------------------------------------------------------------- loops


def serial(name: str, extent: Expr | int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop."""
    var = Var(name)
    return For(var, size(extent) if isinstance(extent, int) else extent, ForKind.SERIAL, body(var))


def unroll(name: str, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """An unrolled loop."""
    var = Var(name)
    return For(var, size(extent), ForKind.UNROLL, body(var))


def lanes(name: str, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """One vector."""
    var = Var(name)
    return For(var, size(extent), ForKind.VECTORIZE, body(var))


def vectors(name: str, extent: int, body: Callable[[Expr], Stmt], unroll_to: int = 4) -> Stmt:
    """A loop over ``extent`` elements in vectors, unrolled if it is at most ``unroll_to`` vectors."""
    width = lanes_for(extent)
    outer, lane = Var(name + "o"), Var(name)
    inner = For(lane, size(width), ForKind.VECTORIZE, body(b.add(b.mul(outer, width), lane)))
    kind = ForKind.UNROLL if extent // width <= unroll_to else ForKind.SERIAL
    return For(outer, size(extent // width), kind, inner)


def multiply_add(
    name: str, width: int, pack: int, product: Callable[[Expr, Expr | int], tuple[Load, Load, Load]]
) -> Stmt:
    """``acc += x * w`` for one vector of sums; with ``pack`` 2 as a nest that is one dot product of pairs.

    Args:
        name: Of block and loops, unique in the function.
        width: Lanes.
        pack: Products per lane.
        product: Lane and number of the product -> ``acc``, ``x``, ``w``.
    """
    if pack == 1:
        return lanes(name, width, lambda lane: _accumulate(*product(lane, 0)))
    if width not in DOT_LANES:
        return unroll(name, width, lambda n: unroll(name + "_k", pack, lambda k: _accumulate(*product(n, k))))
    n, k = Var(name + "_n"), Var(name + "_k")
    axes: list[BlockAxis] = []
    inside: list[Load] = []
    for role, access in zip(("acc", "x", "w"), product(n, k), strict=True):
        kind = AxisKind.SPATIAL if role == "acc" else AxisKind.REDUCTION
        own = [
            BlockAxis(Var(f"{role}{dim}"), kind, size(extent), index)
            for dim, (index, extent) in enumerate(zip(access.indices, access.buffer.shape, strict=True))
        ]
        axes += own
        inside.append(Load(access.buffer, tuple(a.var for a in own)))
    block = Block(name, tuple(axes), _accumulate(*inside), notes=(DOT_NOTE,))
    inner = For(k, size(pack), ForKind.SERIAL, block)
    return For(n, size(width), ForKind.SERIAL, inner)


def _accumulate(acc: Load, x: Load, w: Load) -> Store:
    product = b.mul(b.cast(f32, x), b.cast(f32, w))
    return Store(acc.buffer, acc.indices, b.add(acc, product))
