"""Everything else: rows in parallel, statistics of a row next to their use, the last axis in vectors.

The rule never declines: what cannot be moved, vectorised or run in parallel stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import GRAIN, Alloc, AxisKind, For, ForKind, Func, MemSpace
from strata.loop.rewrite import free_vars, has_load, walk_stmts
from strata.schedule.dependence import determines, scope_of, with_loop
from strata.schedule.step import Step, find_block, find_loop, loops_around
from strata.schedule.steps import (
    Annotate,
    ComputeAt,
    DecomposeReduction,
    Parallel,
    RFactor,
    Split,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, innermost_loop, loops_over, stage_names

GRAIN_VECTORS = 1024  # of a long vector that a thread takes at a time: 64 KiB
GRAIN_ELEMS = 4096  # of short rows together: about a microsecond of work, as waking another thread takes


@RULES.register("rows")
def rows_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace, always."""
    draft = Draft(func)
    lanes = target.vector_bytes // 4
    stages = stage_names(func)
    placed: set[str] = set()
    row = _row_loop(draft, stages[-1], has_producers=len(stages) > 1) if stages else None
    if row is not None:
        for stage in reversed(stages[:-1]):
            if not _place(draft, stage, row):
                break  # an earlier stage would have to move past this one
            placed.add(stage)
        if not placed and innermost_loop(draft.func, stages[-1]) == row:
            row = None  # a single loop that nothing moved into is better vectors than rows
    grain = 1 if row is None else GRAIN_ELEMS // _elements_of_row(draft, row)
    for stage in stages:
        if stage in placed and _partial_sums(draft, stage, lanes):
            continue
        _split_off_init(draft, stage)
        inner = innermost_loop(draft.func, stage)
        if inner is not None and inner != row:
            draft.vectorize(inner, lanes)
    if row is not None:
        draft.parallel(row)
        if grain > 1 and find_loop(draft.func, row).kind is ForKind.PARALLEL:
            draft.do(Annotate(row, GRAIN, grain))
    elif len(stages) == 1:
        _long_vector(draft, stages[0])
    for stage in stages[:-1]:
        if stage not in placed:
            outer = loops_around(draft.func, stage)
            if outer:
                draft.parallel(outer[0].var.name)
    return [draft.proposal("cpu.rows")]


def _place(draft: Draft, stage: str, row: str) -> bool:
    """Move a stage next to its use: a single value into a register, a row into a local buffer."""
    before = draft.func, len(draft.steps)
    try:
        draft.do(ComputeAt(stage, row, "register"))
    except LegalityError:
        return False
    if _is_repeated(draft.func, stage, row):
        draft.func = before[0]
        del draft.steps[before[1] :]
        return False
    kept = [
        s.buffer
        for s in walk_stmts(draft.func)
        if isinstance(s, Alloc) and s.buffer.space is MemSpace.REGISTER
    ]
    if any(dim != 1 for buffer in kept for dim in buffer.shape):
        draft.func = before[0]
        del draft.steps[before[1] :]
        draft.do(ComputeAt(stage, row, "local"))
    return True


def _is_repeated(func: Func, stage: str, row: str) -> bool:
    """Whether several rows compute the same elements of a stage, as for sums of columns.

    Rows that are looked up (those of the last tokens) are taken to be few.
    """
    loop, block = find_loop(func, row), find_block(func, stage)
    known = with_loop(scope_of(func, loop), loop)
    inner = [s for s in walk_stmts(loop.body) if isinstance(s, For)]
    for x in inner:
        known = with_loop(known, x)
    values = [a.value for a in block.axes if a.kind is AxisKind.SPATIAL]
    looked_up = any(has_load(v) and loop.var in free_vars(v) for v in values)
    return not looked_up and not determines(values, [loop.var], [loop.var, *(x.var for x in inner)], known)


def _split_off_init(draft: Draft, stage: str) -> None:
    """Initialise a reduction before its outermost reduction loop, so that the loop itself has no branch."""
    reduction = loops_over(draft.func, stage, AxisKind.REDUCTION)
    if reduction:
        draft.attempt(DecomposeReduction(stage, reduction[0]))


def _partial_sums(draft: Draft, stage: str, lanes: int) -> bool:
    """Reduce a row into a vector or two, which are added up at its end. Returns whether that is done."""
    reduction = loops_over(draft.func, stage, AxisKind.REDUCTION)
    if len(reduction) != 1 or innermost_loop(draft.func, stage) != reduction[0]:
        return False
    (k,) = reduction
    extent = draft.extent(k)
    if extent is None or extent % lanes or extent < 2 * lanes:
        return False
    width = 2 * lanes if extent % (2 * lanes) == 0 and extent >= 8 * lanes else lanes
    return draft.quietly(*partial_sums(stage, k, width, lanes))


def partial_sums(stage: str, k: str, width: int, lanes: int) -> list[Step]:
    """Steps that reduce over loop ``k`` into ``width`` partial results, in vectors of ``lanes``."""
    steps: list[Step] = [Split(k, width), RFactor(stage, k + "i"), DecomposeReduction(stage, k + "i_f")]
    for loop in (k + "i_rf_init", k + "i", k + "i_f"):
        if width > lanes:
            steps += [Split(loop, lanes), Unroll(loop + "o")]
        steps.append(Vectorize(loop + "i" if width > lanes else loop))
    return steps


def _elements_of_row(draft: Draft, row: str) -> int:
    """Elements that one iteration of ``row`` computes, in all stages; ``GRAIN_ELEMS`` where a size says."""
    count = 0
    for stage in stage_names(draft.func):
        around = [x.var.name for x in loops_around(draft.func, stage)]
        if row in around:
            extents = [draft.extent(x) or GRAIN_ELEMS for x in around[around.index(row) + 1 :]]
            count += math.prod(extents)
    return max(count, 1)


def _long_vector(draft: Draft, stage: str) -> None:
    """Large pieces of a long vector on all threads; a short one is not worth waking them."""
    loops = loops_over(draft.func, stage, AxisKind.SPATIAL)
    if loops and draft.extent(loops[0]) != 1:
        draft.attempt(Parallel(loops[0]), Annotate(loops[0], GRAIN, GRAIN_VECTORS))


def _row_loop(draft: Draft, stage: str, has_producers: bool) -> str | None:
    """Fuse all spatial loops of a stage but the last; a single loop is one only if it has producers."""
    loops = loops_over(draft.func, stage, AxisKind.SPATIAL)
    if not loops:
        return None
    if len(loops) == 1:
        return loops[0] if has_producers else None
    return draft.fuse_outer(loops[:-1], "row") if len(loops) > 2 else loops[0]
