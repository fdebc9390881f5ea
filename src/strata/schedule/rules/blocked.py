"""Products that are added up block by block (``lower.blocked``): ``cpu.matmul.blocked6x64``.

A block of the weight for a tile of outputs stays in the level-1 cache while tiles of rows stream past it,
whose sums are in memory meanwhile. A tile of a whole k reads all of that weight for every few rows: where it
does not fit the level-2 cache, or two threads share that, the tile waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import AxisKind, Func
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Parallel,
    Reorder,
    Split,
    Trim,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, loops_over, stage_names
from .matmul import ROW_TILES, column_tile, parts_of

ACTIVATIONS, WEIGHTS, PARTIAL, SUM, OUT = "activations", "weights", "partial", "matmul", "out"
ROWS = ROW_TILES[-1]
ROWS_AT_ONCE = 86 * ROWS  # whose sums are in memory: a chunk of 512 tokens


@RULES.register("blocked")
def blocked_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace, where a product is in blocks."""
    stages = stage_names(func)
    if stages[-3:] != [PARTIAL, SUM, OUT] or ACTIVATIONS not in stages:
        return None
    draft = Draft(func)
    try:
        block, rows, element = loops_over(func, ACTIVATIONS, AxisKind.SPATIAL)
        draft.do(Reorder((rows, block, element)))
        draft.vectorize(element, target.lanes_f32)
        draft.parallel(rows)
        _tiles(draft, column_tile(target))
        if WEIGHTS in stages:
            draft.do(ComputeAt(WEIGHTS, f"{SUM}_i1o"))
            _vectors(draft, f"{WEIGHTS}_i1", target.lanes_f32)
        _sums_in_registers(draft, target.lanes_f32)
        draft.do(Trim(f"{SUM}_i0o"), Parallel(f"{OUT}_i1o"))
        made = draft.proposal(f"cpu.matmul.blocked{ROWS}x{column_tile(target)}", ROWS)
    except LegalityError:
        return None
    return [made] if gathers(made.func) == 0 else None


def _tiles(draft: Draft, columns: int) -> None:
    """Blocks of k one after the other, and tiles of rows in each.

    Two tiles of outputs at once: activations come from the last-level cache half as often.
    """
    m, n, tile_m, tile_n, g = f"{OUT}_i0", f"{OUT}_i1", f"{SUM}_i0", f"{SUM}_i1", f"{SUM}_k0"
    results = columns // parts_of(draft.func, OUT, SUM)
    are_pairs = (draft.extent(n) or 1) % (2 * results) == 0
    draft.do(
        Split(m, ROWS_AT_ONCE),
        Split(n, 2 * results if are_pairs else results),
        Reorder((n + "o", m + "o", m + "i", n + "i")),
        ComputeAt(SUM, m + "o"),
        Split(tile_m, ROWS),
        Split(tile_n, columns),
        Reorder((g, tile_n + "o", tile_m + "o", tile_m + "i", tile_n + "i")),
        DecomposeReduction(SUM, g),
        ComputeAt(PARTIAL, tile_m + "o", "register"),
    )


def _sums_in_registers(draft: Draft, lanes: int) -> None:
    """Sums of a block, vectors along the outputs, and what adds them to those in memory."""
    rows, group, outputs, k = f"{PARTIAL}_i0", f"{PARTIAL}_i1", f"{PARTIAL}_i2", f"{PARTIAL}_k0"
    draft.do(Reorder((group, k, rows, outputs)), DecomposeReduction(PARTIAL, k))
    for loop in (outputs, outputs + "_init", f"{SUM}_i1i", f"{SUM}_i1i_init"):
        _vectors(draft, loop, lanes)
    draft.do(Split(f"{OUT}_i1i", lanes), Vectorize(f"{OUT}_i1ii"))
    draft.do(Unroll(rows), Unroll(rows + "_init"), Unroll(f"{SUM}_i0i"))


def _vectors(draft: Draft, loop: str, lanes: int) -> None:
    draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
