"""Small random changes of a trace: another factor, another order, one step more or less.

Names of loops follow from the steps before, so a change may leave later steps without their loop; whether the
result is legal is for the steps to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from strata.core.errors import LegalityError
from strata.loop.nodes import Const, For, ForKind, Func
from strata.loop.rewrite import walk_stmts
from strata.schedule import Step, Trace, apply_trace
from strata.schedule.steps import ComputeAt, Fuse, Parallel, Prefetch, Reorder, Split, Unroll, Vectorize

FACTORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 1024)
LANES = (2, 4, 8, 16, 32, 64)
MAX_CHANGES = 3

Change = Callable[[Func, Trace, random.Random], "Trace | None"]


def mutate(func: Func, trace: Trace, rng: random.Random) -> Trace:
    """``trace`` with one to ``MAX_CHANGES`` random changes (none where no change applies)."""
    for _ in range(rng.choice((1, 1, 2, MAX_CHANGES))):
        change = rng.choices(_CHANGES, _WEIGHTS)[0]
        changed = change(func, trace, rng)
        if changed is not None:
            trace = changed
    return trace


def _pick(trace: Trace, kind: type[Step], rng: random.Random) -> int | None:
    """Position of a random step of a kind."""
    places = [k for k, step in enumerate(trace) if isinstance(step, kind)]
    return rng.choice(places) if places else None


def _with(trace: Trace, place: int, *steps: Step) -> Trace:
    return (*trace[:place], *steps, *trace[place + 1 :])


def _change_factor(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """Another factor of a split: a neighbour, or any."""
    place = _pick(trace, Split, rng)
    if place is None:
        return None
    step = trace[place]
    assert isinstance(step, Split)
    in_vectors = any(isinstance(s, Vectorize) and s.loop == step.loop + "i" for s in trace)
    choices: Sequence[int] = LANES if in_vectors else FACTORS
    if rng.random() < 0.7:
        near = sorted(choices, key=lambda f: abs(f - step.factor))
        choices = [f for f in near if f != step.factor][:4]
    factor = rng.choice(choices)
    return None if factor == step.factor else _with(trace, place, replace(step, factor=factor))


def _change_order(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """Two loops of a reorder swapped."""
    place = _pick(trace, Reorder, rng)
    if place is None:
        return None
    step = trace[place]
    assert isinstance(step, Reorder)
    if len(step.loops) < 2:
        return None
    loops = list(step.loops)
    a, b = rng.sample(range(len(loops)), 2)
    loops[a], loops[b] = loops[b], loops[a]
    return _with(trace, place, Reorder(tuple(loops)))


def _change_place(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """A stage computed in another loop, or kept in another space."""
    place = _pick(trace, ComputeAt, rng)
    if place is None:
        return None
    step = trace[place]
    assert isinstance(step, ComputeAt)
    if rng.random() < 0.4:
        return _with(trace, place, replace(step, space="local" if step.space == "register" else "register"))
    try:
        before = apply_trace(func, trace[:place])
    except LegalityError:
        return None
    loops = [s.var.name for s in walk_stmts(before) if isinstance(s, For)]
    return _with(trace, place, replace(step, loop=rng.choice(loops))) if loops else None


def _change_parallel(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """Another loop on all threads."""
    place = _pick(trace, Parallel, rng)
    loops = _loops(func, trace if place is None else (*trace[:place], *trace[place + 1 :]))
    if not loops:
        return None
    step = Parallel(rng.choice(loops[:6]).var.name)
    return (*trace, step) if place is None else _with(trace, place, step)


def _change_kind(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """An unrolled loop becomes a vector loop, or the other way round."""
    place = _pick(trace, Unroll if rng.random() < 0.5 else Vectorize, rng)
    if place is None:
        return None
    step = trace[place]
    if isinstance(step, Unroll):
        return _with(trace, place, Vectorize(step.loop))
    assert isinstance(step, Vectorize)
    return _with(trace, place, Unroll(step.loop))


def _change_distance(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """A prefetch from half as far, or twice."""
    place = _pick(trace, Prefetch, rng)
    if place is None:
        return None
    step = trace[place]
    assert isinstance(step, Prefetch)
    distance = step.distance * 2 if rng.random() < 0.5 else max(1, step.distance // 2)
    return None if distance == step.distance else _with(trace, place, replace(step, distance=distance))


def _drop(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """One step less."""
    return _with(trace, rng.randrange(len(trace))) if trace else None


def _insert(func: Func, trace: Trace, rng: random.Random) -> Trace | None:
    """A loop split at the end, its inner loop unrolled or not; or two loops fused; or one unrolled."""
    loops = _loops(func, trace)
    if not loops:
        return None
    loop = rng.choice(loops)
    name = loop.var.name
    if isinstance(loop.body, For) and rng.random() < 0.2:
        return (*trace, Fuse(name, loop.body.var.name, name + "f"))
    if isinstance(loop.extent, Const) and int(loop.extent.value) <= 16 and rng.random() < 0.4:
        return (*trace, Unroll(name))
    split = Split(name, rng.choice(FACTORS[1:12]))
    return (*trace, split, Unroll(name + "i")) if rng.random() < 0.6 else (*trace, split)


def _loops(func: Func, trace: Trace) -> list[For]:
    """Serial loops once the trace is applied; none if it is not legal."""
    try:
        scheduled = apply_trace(func, trace)
    except LegalityError:
        return []
    return [s for s in walk_stmts(scheduled) if isinstance(s, For) and s.kind is ForKind.SERIAL]


_TABLE: tuple[tuple[Change, float], ...] = (
    (_change_factor, 10.0),
    (_change_order, 2.0),
    (_insert, 2.0),
    (_change_place, 1.0),
    (_change_parallel, 1.0),
    (_change_kind, 1.0),
    (_change_distance, 1.0),
    (_drop, 1.0),
)
_CHANGES = [change for change, _ in _TABLE]
_WEIGHTS = [weight for _, weight in _TABLE]
