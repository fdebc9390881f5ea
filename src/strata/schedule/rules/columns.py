"""Reductions over other axes than the last one: tiles of columns, whose statistics stay in registers.

``mean(x, axis=0)``, ``softmax(x, axis=0)``, ``sum(x, axis=1)`` of three axes: the elements that are added up
lie far apart, those of neighbouring results side by side. So a vector holds neighbouring results, and every
row of the tile is read once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import AxisKind, Func, Load, Var
from strata.loop.rewrite import free_vars, walk
from strata.schedule.step import find_block, loops_around
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Parallel,
    Reorder,
    Split,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, loops_over, stage_names

MAX_VECTORS = 4  # of a tile


@RULES.register("columns")
def columns_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """One trace for statistics of columns and what is made of them."""
    *stages, result = stage_names(func) or [""]
    reductions = [s for s in stages if loops_over(func, s, AxisKind.REDUCTION)]
    if not reductions or not all(_is_along_columns(func, s) for s in reductions):
        return None
    loops = [x.var.name for x in loops_around(func, result)]
    shared = _loops_that_share(func, stages, result)
    if not loops or loops[-1] not in shared or len(stages) != len(reductions):
        return None
    draft = Draft(func)
    width = _width(draft.extent(loops[-1]), target.lanes_f32)
    if width is None:
        return None
    try:
        _tile(draft, stages, loops, shared, *width)
        made = draft.proposal("cpu.columns")
    except LegalityError:
        return None
    return [made] if gathers(made.func) == 0 else None


def _width(extent: int | None, lanes: int) -> tuple[int, int] | None:
    """Lanes and number of the vectors of a tile that leave nothing over; at least a quarter of full ones."""
    for narrow in (lanes, lanes // 2, lanes // 4):
        for vectors in range(MAX_VECTORS, 0, -1):
            if extent is not None and narrow > 1 and extent % (narrow * vectors) == 0:
                return narrow, vectors
    return None


def _is_along_columns(func: Func, stage: str) -> bool:
    """Whether the last index of what a stage reads is its last spatial axis, and no reduction axis."""
    block = find_block(func, stage)
    spatial = [a.var for a in block.axes if a.kind is AxisKind.SPATIAL]
    reduced = {a.var for a in block.axes if a.kind is AxisKind.REDUCTION}
    last = [e.indices[-1] for e in walk(block.body) if isinstance(e, Load) and e.indices]
    if not spatial or any(reduced & set(free_vars(i)) for i in last):
        return False
    return all(spatial[-1] in free_vars(i) for i in last if isinstance(i, Var))


def _loops_that_share(func: Func, stages: list[str], result: str) -> set[str]:
    """Loops of the result whose iterations need different elements of the stages."""
    block, buffers = find_block(func, result), _results(func, stages)
    used = {
        v
        for e in walk(block.body)
        if isinstance(e, Load) and e.buffer.name in buffers
        for i in e.indices
        for v in free_vars(i)
    }
    return {v.name for a in block.axes if a.var in used for v in free_vars(a.value)}


def _results(func: Func, stages: list[str]) -> set[str]:
    """Names of the buffers that stages fill."""
    found = (s for stage in stages for s in walk(find_block(func, stage).body) if hasattr(s, "value"))
    return {s.buffer.name for s in found if hasattr(s, "buffer")}  # type: ignore[union-attr]


def _tile(
    draft: Draft, stages: list[str], loops: list[str], shared: set[str], lanes: int, vectors: int
) -> None:
    last = loops[-1]
    outer = [x for x in loops[:-1] if x in shared]
    inner = [x for x in loops[:-1] if x not in shared]
    draft.do(Split(last, lanes * vectors), Reorder((*outer, last + "o", *inner, last + "i")))
    for stage in reversed(stages):
        draft.do(ComputeAt(stage, last + "o", "register"))
    for stage in stages:
        spatial = loops_over(draft.func, stage, AxisKind.SPATIAL)
        reduced = loops_over(draft.func, stage, AxisKind.REDUCTION)
        column = f"{stage}_i{len([x for x in spatial if x.startswith(stage + '_i')]) - 1}"
        draft.do(Reorder((*reduced, column)), DecomposeReduction(stage, reduced[0]))
        for loop in (column, column + "_init"):
            _vectors(draft, loop, lanes)
    _vectors(draft, last + "i", lanes)
    draft.do(Parallel(draft.fuse_outer([*outer, last + "o"], "tile") if outer else last + "o"))


def _vectors(draft: Draft, loop: str, lanes: int) -> None:
    draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
