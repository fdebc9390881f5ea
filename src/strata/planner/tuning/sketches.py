"""Random schedules of a naive function: what a search starts from.

A *sketch* fixes the shape of a schedule and draws everything else at random: tile sizes, order of loops,
vector widths, unrolling, which loop runs on all threads, where intermediates live. Sketches know no good
values; finding those is the search's work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from strata.loop.nodes import AxisKind, ForKind, Func, Load, MemSpace
from strata.loop.rewrite import walk
from strata.schedule import Trace
from strata.schedule.rules.base import Draft, innermost_loop, loops_over, stage_names
from strata.schedule.step import loops_around
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Fuse,
    Parallel,
    Prefetch,
    Reorder,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.target import Target

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
VECTORS = (1, 2, 3, 4, 6, 8)  # side by side
UNROLLED = (1, 1, 2, 4, 8)
BLOCKS = (2, 4, 8, 16)
DISTANCES = (1, 2, 4, 8, 16)  # iterations ahead of which an operand is fetched
CHUNKS = (64, 256, 1024, 4096)
MAX_LANES = 64

Sketch = Callable[[Draft, random.Random, Target], None]


def random_schedule(func: Func, target: Target, rng: random.Random) -> tuple[Func, Trace]:
    """A random schedule: the function as the steps leave it, and the steps.

    Raises:
        LegalityError: this draw is not legal.
    """
    draft = Draft(func)
    rng.choice(applicable(func))(draft, rng, target)
    return draft.func, tuple(draft.steps)


def applicable(func: Func) -> Sequence[Sketch]:
    """Sketches for the shape of a function; functions without blocks have one schedule, which is done."""
    stages = stage_names(func)
    if not stages:
        return (_nothing,)
    if _is_tiled(func, stages):
        return (tile, tile, tile, rows)
    return (rows,)


def _nothing(draft: Draft, rng: random.Random, target: Target) -> None:
    """A finished nest has no loops that steps could name."""


def _is_tiled(func: Func, stages: Sequence[str]) -> bool:
    """A reduction with an epilogue of the same rank: a matmul and its like."""
    if len(stages) != 2:
        return False
    first, last = (len(loops_over(func, s, AxisKind.SPATIAL)) for s in stages)
    return first == last >= 1 and len(loops_over(func, stages[0], AxisKind.REDUCTION)) == 1


def tile(draft: Draft, rng: random.Random, target: Target) -> None:
    """Register tiles of ``rows x columns`` of a reduction, with its epilogue on every tile.

    Raises:
        LegalityError: this draw is not legal.
    """
    stage, last = stage_names(draft.func)
    *batch, column = (x.var.name for x in loops_around(draft.func, last))
    row = batch.pop() if batch else None
    lanes = rng.choice((target.lanes_f32, target.lanes_f32, max(2, target.lanes_f32 // 2)))
    num_rows = rng.choice(ROWS) if row is not None else 1
    columns = lanes * rng.choice([v for v in VECTORS if v * num_rows <= 2 * target.num_vector_registers])
    draft.do(Split(column, columns))
    outer, inner = [column + "o"], [column + "i"]
    if row is not None:
        draft.do(Split(row, num_rows))
        outer, inner = [column + "o", row + "o"], [row + "i", column + "i"]
        rng.shuffle(outer)
        if rng.random() < 0.4:
            outer = _blocked(draft, outer, rng)
        draft.do(Reorder((*batch, *outer, *inner)))
    shared = outer[0]
    if len(outer) > 1 and rng.random() < 0.3:
        draft.do(Fuse(outer[0], outer[1], "tile"))
        outer = ["tile", *outer[2:]]
        shared = "tile"
    draft.do(ComputeAt(stage, outer[-1], "register"))
    rank = len(batch) + (2 if row is not None else 1)
    axes = [f"{stage}_i{k}" for k in range(rank)]
    if not (target.multiplies_bf16_pairs and rng.random() < 0.7 and _dot(draft, stage, axes, lanes)):
        _multiply_add(draft, stage, axes, lanes, rng)
    for loop in (axes[-1] + "_init", column + "i"):
        draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
    for axis in axes[:-1]:
        draft.do(Unroll(axis), Unroll(axis + "_init"))
    if row is not None:
        draft.do(Unroll(row + "i"))
    draft.do(Parallel(shared))
    if rng.random() < 0.4:
        _fetch(draft, stage, rng)


def _fetch(draft: Draft, stage: str, rng: random.Random) -> None:
    """An operand ahead of time, in the innermost serial loop of a stage."""
    loops = [x for x in loops_around(draft.func, stage) if x.kind is ForKind.SERIAL]
    if loops:
        loads = [e.buffer for e in walk(loops[-1].body) if isinstance(e, Load)]
        names = sorted({x.name for x in loads if x.space is MemSpace.GLOBAL})
        draft.attempt(Prefetch(loops[-1].var.name, rng.choice(names), rng.choice(DISTANCES)))


def _blocked(draft: Draft, outer: list[str], rng: random.Random) -> list[str]:
    """Blocks of tiles: the inner of the two outer loops is split around the outer one."""
    first, second = outer
    draft.do(Split(second, rng.choice(BLOCKS)))
    return [second + "o", first, second + "i"]


def _multiply_add(draft: Draft, stage: str, axes: list[str], lanes: int, rng: random.Random) -> None:
    """The reduction loop outside of the tile, maybe unrolled, columns in vectors."""
    reduction = f"{stage}_k0"
    unrolled = rng.choice(UNROLLED)
    loops = [reduction]
    if unrolled > 1:
        draft.do(Split(reduction, unrolled))
        loops = [reduction + "o", reduction + "i"]
    draft.do(Reorder((*loops, *axes)), DecomposeReduction(stage, loops[0]))
    draft.do(Split(axes[-1], lanes), Unroll(axes[-1] + "o"), Vectorize(axes[-1] + "i"))
    if unrolled > 1:
        draft.do(Unroll(loops[1]))


def _dot(draft: Draft, stage: str, axes: list[str], lanes: int) -> bool:
    """The same by dot products of pairs; whether that is possible."""
    k, last = f"{stage}_k0", axes[-1]
    return draft.attempt(
        Split(k, 2),
        Reorder((k + "o", *axes, k + "i")),
        DecomposeReduction(stage, k + "o"),
        Split(last, lanes),
        Unroll(last + "o"),
        Tensorize(last + "i"),
    )


def rows(draft: Draft, rng: random.Random, target: Target) -> None:
    """Rows on all threads, stages next to their use, the last axis in vectors, maybe several at a time."""
    stages = stage_names(draft.func)
    loops = loops_over(draft.func, stages[-1], AxisKind.SPATIAL)
    row = _row_loop(draft, loops, len(stages) > 1, rng)
    if row is not None:
        for stage in reversed(stages[:-1]):
            spaces = ["register", "local"]
            rng.shuffle(spaces)
            if rng.random() < 0.1 or not any(draft.attempt(ComputeAt(stage, row, s)) for s in spaces):
                break  # an earlier stage would have to move past this one
    for stage in stages:
        reduction = loops_over(draft.func, stage, AxisKind.REDUCTION)
        if reduction:
            draft.attempt(DecomposeReduction(stage, reduction[0]))
        inner = innermost_loop(draft.func, stage)
        if inner is not None and inner != row:
            _vectors(draft, inner, rng, target)
    if row is not None:
        draft.attempt(Parallel(row))
    for stage in stages[:-1]:
        around = loops_around(draft.func, stage)
        if around and around[0].var.name != row:
            draft.attempt(Parallel(around[0].var.name))


def _row_loop(draft: Draft, loops: list[str], has_producers: bool, rng: random.Random) -> str | None:
    """The loop that runs on all threads: some leading loops fused, or chunks of a single one."""
    if not loops:
        return None
    if len(loops) == 1:
        if has_producers:
            return loops[0]
        return loops[0] + "o" if draft.attempt(Split(loops[0], rng.choice(CHUNKS))) else None
    count = rng.randint(1, len(loops) - 1)
    return draft.fuse_outer(loops[:count], "row") if count > 1 else loops[0]


def _vectors(draft: Draft, loop: str, rng: random.Random, target: Target) -> None:
    """Vectors of a random width, a random number of them unrolled, where that is legal."""
    lanes = min(MAX_LANES, rng.choice((target.lanes_f32 // 2, target.lanes_f32, 2 * target.lanes_f32)))
    unrolled = rng.choice(UNROLLED)
    if unrolled > 1 and draft.attempt(
        Split(loop, lanes * unrolled), Split(loop + "i", lanes), Unroll(loop + "io"), Vectorize(loop + "ii")
    ):
        return
    if not draft.attempt(Split(loop, lanes), Vectorize(loop + "i")):
        draft.attempt(Vectorize(loop))
