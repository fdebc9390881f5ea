"""Products of bf16 by a matrix unit (``loop.matrix``): tiles of 32 x 32 sums; activations are staged first.

``cpu.matmul.matrix32x32``: weights of 16 bits are multiplied where they are.

``cpu.qmatmul.bf16_32x32``: as many outputs as fit into the cache have their quantised weights unpacked there.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.matrix import ROWS
from strata.loop.nodes import AxisKind, Func, Load, Store
from strata.loop.rewrite import walk
from strata.schedule.step import find_loop
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    MatrixUnit,
    Prefetch,
    Reorder,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.schedule.steps.stages import MAX_LOCAL_BYTES
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, loops_over, stage_names
from .matmul import PAIR, Product

ACTIVATIONS, WEIGHTS = "activations", "weights"
TILES_AHEAD = 2
BYTES = 4  # with the halves of which weights of four pairs of k come


@RULES.register("matrix")
def matrix_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace, where activations are staged first (``lower.matrix_unit``)."""
    stages = stage_names(func)
    if stages[:1] != [ACTIVATIONS] or not target.has_matrix_bf16:
        return None
    unpacks = stages[1:2] == [WEIGHTS]
    product = Product.of(func, target, before=stages[: 2 if unpacks else 1])
    if product is None:
        return None
    draft = product.draft()
    outputs, contracted = draft.extent(product.n), draft.extent(product.tile[2])
    if outputs is None or contracted is None:
        return None
    rows, *_, element = loops_over(func, ACTIVATIONS, AxisKind.SPATIAL)
    beside = columns_in_cache(target, outputs, contracted, PAIR)
    if unpacks and beside * contracted * PAIR > MAX_LOCAL_BYTES:
        beside = 2 * ROWS
    try:
        draft.vectorize(element, target.lanes_f32)
        draft.parallel(rows)
        _tiles(draft, product, beside, unpacks=unpacks)
        if unpacks:
            _unpack(draft)
        name = "cpu.qmatmul.bf16_32x32" if unpacks else "cpu.matmul.matrix32x32"
        made = draft.proposal(name, 2 * ROWS, dot=True)
    except LegalityError:
        return None
    return [made] if gathers(made.func) == 0 else None


def _tiles(draft: Draft, product: Product, beside: int, *, unpacks: bool) -> None:
    """Tiles of 32 x 32; the next rows follow after those of ``beside`` outputs."""
    m, n, (tile_m, tile_n, k) = product.m, product.n, product.tile
    draft.do(Split(m, 2 * ROWS), Split(n, beside), Split(n + "i", 2 * ROWS))
    draft.do(Reorder((n + "o", m + "o", n + "io", m + "i", n + "ii")))
    draft.do(ComputeAt(product.stage, n + "io"))
    if unpacks:
        draft.do(ComputeAt(WEIGHTS, n + "o"))
    draft.do(Split(k, PAIR * ROWS), Split(k + "i", PAIR), Split(tile_m, ROWS), Split(tile_n, ROWS))
    tiles, rows = (tile_m + "o", tile_n + "o"), tile_m + "i"
    draft.do(Reorder((k + "o", *tiles, rows, k + "io", tile_n + "i", k + "ii")))
    draft.do(DecomposeReduction(product.stage, k + "o"), Tensorize(tile_n + "i"))
    draft.do(*(Unroll(loop) for loop in tiles), MatrixUnit(k + "o"))
    fetch_tiles(draft, k + "o")
    draft.do(Vectorize(tile_n + "i_init"))
    draft.do(Split(n + "ii", ROWS), Unroll(n + "iio"), Vectorize(n + "iii"))
    product.run_parallel(draft)


def fetch_tiles(draft: Draft, loop: str) -> None:
    """Ask for the tiles of a matrix unit's loop so early that they come from the level-1 cache."""
    accesses = list(walk(find_loop(draft.func, loop).body))
    sums = {x.buffer for x in accesses if isinstance(x, Store)}
    operands = dict.fromkeys(x.buffer.name for x in accesses if isinstance(x, Load) and x.buffer not in sums)
    draft.do(*(Prefetch(loop, name, TILES_AHEAD, level=1) for name in operands))


def _unpack(draft: Draft) -> None:
    """Weights of 16 outputs at a time; the eight of each that lie in four bytes after one another."""
    tile, pair, column = (f"{WEIGHTS}_i{k}" for k in range(3))
    beside = BYTES if (draft.extent(tile) or 0) % BYTES == 0 else 2
    draft.do(Split(tile, beside), Split(pair, BYTES), Split(column, 2))
    draft.do(Reorder((tile + "o", pair + "o", tile + "i", pair + "i", column + "o", column + "i")))
    draft.do(Unroll(pair + "i"), Tensorize(column + "o", "zip_bf16"))


def columns_in_cache(target: Target, outputs: int, contracted: int, element_bytes: int) -> int:
    """Outputs whose weights stay in the level-2 cache while rows of activations stream past them.

    No more than leave each thread two shares.
    """
    columns = 16 * ROWS
    while columns > 4 * ROWS and (
        outputs % columns
        or columns * target.num_cores * 2 > outputs
        or columns * contracted * element_bytes > target.l2_bytes * 3 // 4
    ):
        columns //= 2
    return columns
