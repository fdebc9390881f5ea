"""Statistics of parts of a row, then of the row: few rows are long, so their parts go to the threads.

``argmax`` of the logits of a step: one row, or a few, of a whole vocabulary. The parts of all rows are one
parallel loop; what is left of a row is no longer than a part, and stays on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import AxisKind, Func, Store
from strata.schedule.step import find_block
from strata.schedule.steps import CacheWrite, ComputeAt, DecomposeReduction
from strata.target import Target

from .base import RULES, Draft, Proposal, loops_over, stage_names
from .rows import partial_sums

VECTORS = 4  # of partial results of a part: each maximum waits for the one before it


@RULES.register("parts")
def parts_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace where all stages but the last one reduce: the first one several parts of each row."""
    *reducing, last = stage_names(func) or [""]
    if len(reducing) < 2 or any(len(loops_over(func, s, AxisKind.REDUCTION)) != 1 for s in reducing):
        return None
    rows = loops_over(func, last, AxisKind.SPATIAL)
    if not rows or len(loops_over(func, reducing[0], AxisKind.SPATIAL)) <= len(rows):
        return None
    try:
        return [_scheduled(Draft(func), reducing, rows, target.lanes_f32)]
    except LegalityError:
        return None


def _scheduled(draft: Draft, reducing: Sequence[str], rows: Sequence[str], lanes: int) -> Proposal:
    first, *others = reducing
    body = find_block(draft.func, first).body
    assert isinstance(body, Store)
    draft.do(CacheWrite(first))  # the result of a part is kept in a register until it is complete
    copy = f"{first}_{body.buffer.name}"
    part = draft.fuse_outer(loops_over(draft.func, copy, AxisKind.SPATIAL), "part")
    draft.do(ComputeAt(first, part, "register"))
    _reduce(draft, first, lanes, VECTORS)
    row = draft.fuse_outer(rows, "row") if len(rows) > 1 else rows[0]
    for stage in reversed(others):
        draft.do(ComputeAt(stage, row, "register"))
        _reduce(draft, stage, lanes, 1)
    draft.parallel(part)
    return draft.proposal("cpu.parts")


def _reduce(draft: Draft, stage: str, lanes: int, vectors: int) -> None:
    """Reduce a stage into vectors; one element after the other where they do not divide what it reduces."""
    (k,) = loops_over(draft.func, stage, AxisKind.REDUCTION)
    extent = draft.extent(k)
    if extent is None or extent % (vectors * lanes):
        draft.do(DecomposeReduction(stage, k))
    else:
        draft.do(*partial_sums(stage, k, vectors * lanes, lanes))
