"""Transposed copies: square blocks, expanded, so that every cache line read or written is used up at once."""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import AxisKind, Func, Load, Var
from strata.loop.rewrite import free_vars, walk
from strata.schedule.step import find_block, loops_around
from strata.schedule.steps import Reorder, Split, Unroll
from strata.target import Target

from .base import RULES, Draft, Proposal, stage_names

BLOCKS = (8, 4)  # 8 elements of f32 are half of a cache line; larger blocks evict each other


@RULES.register("transpose")
def transpose_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace for a single stage that reads something along another axis than it writes."""
    if stage_names(func) != ["out"] or len(loops_around(func, "out")) < 2:
        return None
    other = _other_axis(func)
    if other is None:
        return None
    draft = Draft(func)
    loops = [x.var.name for x in loops_around(func, "out")]
    last, outer = loops[-1], [x for x in loops[:-1] if x != other]
    try:
        sizes = [(x, _block(draft.extent(x))) for x in (other, last)]
        for loop, (factor, _) in sizes:
            draft.do(Split(loop, factor))
        draft.do(Reorder((*outer, other + "o", last + "o", other + "i", last + "i")))
        for loop, (_, whole) in sizes:
            if whole:
                draft.do(Unroll(loop + "i"))
        draft.parallel(draft.fuse_outer([*outer, other + "o"], "row") if outer else other + "o")
        return [draft.proposal(f"cpu.transpose{sizes[0][1][0]}x{sizes[1][1][0]}")]
    except LegalityError:
        return None


def _other_axis(func: Func) -> str | None:
    """The loop along which the stage reads, if that is not the last one, along which it writes."""
    block = find_block(func, "out")
    spatial = [a for a in block.axes if a.kind is AxisKind.SPATIAL]
    if len(spatial) != len(block.axes) or not all(isinstance(a.value, Var) for a in spatial):
        return None
    names = {a.var: a.value.name for a in spatial if isinstance(a.value, Var)}
    last = spatial[-1].var
    for e in walk(block.body):
        if isinstance(e, Load) and len(e.indices) > 1:
            *first, end = e.indices
            along = [v for v in free_vars(end) if v in names]
            if last not in along and along and any(last in free_vars(i) for i in first):
                return names[along[-1]]
    return None


def _block(extent: int | None) -> tuple[int, bool]:
    """Size of a block along a loop, and whether it leaves nothing over."""
    for size in BLOCKS:
        if extent is not None and extent % size == 0:
            return size, True
    return BLOCKS[0], False
