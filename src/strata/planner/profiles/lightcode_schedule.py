"""LightCode's execution order, to reproduce its makespans: for comparison only, no plan is made with it.

Its rule, as its programs have it (R. Tomich, Z. Zhong, D. Englund, arXiv 2509.16443):

- Works are ordered as late as possible and cut into *groups* at works that all paths pass: the only ones
  whose result is still needed at their depth, with two operands or more. A group begins with the cut that
  ends the one before it, which is thus executed twice. Results that nobody reads are never executed.
- All cores of all devices wait until the last one has finished a group.
- In a group, whenever the last operand of a work is ready, the work gets the core of its device that became
  free last before that moment, or the one that becomes free first. It takes its own time and that of a
  *single* edge, the one from that last operand; operands from other groups, weights and inputs are there
  already.
- A product on the PHU becomes one step in SRAM, one product per matrix of its batch, and another step in
  SRAM. SRAM does one step at a time, in no time but that of the edge.
- What is ready at the same moment runs in the order in which CPython iterates over a *set* of pairs (number
  in the group, number of the candidate): nothing else decides whether the keys or the values come first.
- The run begins with the longest edge from memory to a work that starts at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from strata.graph.workload import ValueKind, Workload
from strata.planner.devices.types import DeviceCandidate, StackedGraph, evaluate
from strata.target.hardware import GPU, PHU, Machine

from .lightcode import SRAM, hop_s, place_of


def lightcode_makespan(graph: StackedGraph, choices: np.ndarray) -> np.ndarray:
    """Makespan of the choices ``[W, P]`` by LightCode's rule, in seconds: f64 ``[P]``.

    Args:
        graph: Of the profile ``lightcode``.
        choices: Number of the candidate of each work at each point.
    """
    parents = _parents(graph.workload)
    groups = _groups(graph.workload, parents)
    makespans_s = [
        _makespan_s(graph, parents, groups, [int(c) for c in choices[:, point]], point)
        for point in range(graph.num_points)
    ]
    return np.array(makespans_s)


# --- groups ------------------------------------------------------------------------------------------


def _parents(workload: Workload) -> list[list[int]]:
    """Works whose results each work reads, ascending."""
    producers = workload.producers()
    return [sorted({producers[k] for k in work.inputs if k in producers}) for work in workload.works]


def _groups(workload: Workload, parents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Works in groups, each with its own cut at the end and that of the group before at the beginning."""
    children: list[list[int]] = [[] for _ in parents]
    for work, found in enumerate(parents):
        for parent in found:
            children[parent].append(work)
    cuts = _cuts(workload, parents, children)
    groups: list[list[int]] = [[]]
    for work in _as_late_as_possible(parents, children):
        if children[work]:
            groups[-1].append(work)
            if work in cuts:
                groups.append([work])
    return groups


def _cuts(
    workload: Workload, parents: Sequence[Sequence[int]], children: Sequence[Sequence[int]]
) -> set[int]:
    """Works of two operands or more that are alone in being needed at their depth.

    What reads the last ``scatter_nd`` (Llama's mask, which all layers read) does not count.
    """
    depths: list[int] = []
    for work, found in zip(workload.works, parents, strict=True):
        leaf = any(workload.values[k].kind is not ValueKind.RESULT for k in work.inputs)
        depths.append(1 + max([depths[p] for p in found] + [1] * leaf, default=0))
    scatters = [k for k, work in enumerate(workload.works) if work.op == "scatter_nd"]
    ignored = set(children[scatters[-1]]) if scatters else set()
    alive: dict[int, list[int]] = {}
    for work, depth in enumerate(depths):
        end = max((depths[c] for c in children[work]), default=depth + 1)
        for level in range(depth, end) if work not in ignored else ():
            alive.setdefault(level, []).append(work)
    return {works[0] for works in alive.values() if len(works) == 1 and len(parents[works[0]]) > 1}


def _as_late_as_possible(
    parents: Sequence[Sequence[int]], children: Sequence[Sequence[int]]
) -> Iterable[int]:
    """All works: the reverse of a breadth-first order from the results back."""
    missing = [len(found) for found in children]
    order = [k for k, count in enumerate(missing) if count == 0]
    for work in order:  # grows meanwhile
        for parent in parents[work]:
            missing[parent] -= 1
            if missing[parent] == 0:
                order.append(parent)
    return reversed(order)


# --- one group after the other -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """What a core does at once: a work, or a part of a product on the PHU."""

    work: int
    place: str
    time_s: float
    parents: tuple[Hashable, ...]


_BEGIN = "begin"  # of a group: the parent of the steps that wait for nothing in it


def _makespan_s(
    graph: StackedGraph,
    parents: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    choices: Sequence[int],
    point: int,
) -> float:
    chosen = [stack[k] for stack, k in zip(graph.stacks, choices, strict=True)]
    cores = {place_of(d): [0.0] * _num_cores(d) for d in graph.machine.devices} | {SRAM: [0.0]}
    begins: dict[int, float] = {}
    for group in groups:
        steps = _steps(graph, parents, group, choices, chosen, point)
        _run(graph.machine, steps, cores, begins)
        end = max(max(times) for times in cores.values())
        cores = {place: [end] * len(times) for place, times in cores.items()}
    loads = [_load_s(graph, k, chosen[k]) - begins[k] for k in begins]
    return max(max(times) for times in cores.values()) + max(0.0, *loads)


def _num_cores(device: object) -> int:
    return device.sms if isinstance(device, GPU) else getattr(device, "cores", 1)


def _load_s(graph: StackedGraph, work: int, chosen: DeviceCandidate) -> float:
    """Time of the edge from memory; to a PHU it ends in SRAM, where its step begins."""
    values = graph.workload.values
    if all(values[k].kind is ValueKind.RESULT for k in graph.workload.works[work].inputs):
        return 0.0
    on_phu = isinstance(graph.machine.device(chosen.device), PHU)
    load_s = hop_s(graph.machine, "hbm", into=False)
    return load_s + (0.0 if on_phu else hop_s(graph.machine, chosen.memory, into=True))


def _steps(
    graph: StackedGraph,
    parents: Sequence[Sequence[int]],
    group: Sequence[int],
    choices: Sequence[int],
    chosen: Sequence[DeviceCandidate],
    point: int,
) -> dict[Hashable, _Step]:
    """Steps of a group by name, in the order that decides ties: those of the PHU first."""
    inside = set(group)
    waiting = {k: [p for p in parents[k] if p in inside] for k in group}
    numbered = [k for k in group if not waiting[k]] + [k for k in group if waiting[k]]
    pairs: set[tuple[int, int]] = {(0, 0)}
    for number, work in enumerate(numbered, 1):
        pairs.add((number, choices[work]))  # one by one: the order depends on how the set grew
    order = [numbered[number - 1] for number, _ in pairs if number]
    on_phu = {k: isinstance(graph.machine.device(chosen[k].device), PHU) for k in group}
    steps: dict[Hashable, _Step] = {}
    for work in [k for k in order if on_phu[k]] + [k for k in order if not on_phu[k]]:
        before = tuple((p, "out") for p in waiting[work]) or (_BEGIN,)
        time_s = float(chosen[work].estimates.time_s[point])
        if not on_phu[work]:
            steps[work, "out"] = _Step(work, chosen[work].memory, time_s, before)
            continue
        batch = _batch(graph, work, point)
        parts = tuple((work, k) for k in range(batch))
        steps[work, "in"] = _Step(work, SRAM, 0.0, before)
        steps[work, "out"] = _Step(work, SRAM, 0.0, parts)
        steps |= {p: _Step(work, chosen[work].memory, time_s / batch, ((work, "in"),)) for p in parts}
    return steps


def _batch(graph: StackedGraph, work: int, point: int) -> int:
    contraction = graph.workload.works[work].contraction
    return 1 if contraction is None else int(evaluate(contraction.batch, graph.points)[point])


def _run(
    machine: Machine,
    steps: dict[Hashable, _Step],
    cores: dict[str, list[float]],
    begins: dict[int, float],
) -> None:
    """Run the steps of a group; ``cores`` are when each is free, ``begins`` when each work began first."""
    children: dict[Hashable, list[Hashable]] = {}
    for name, step in steps.items():
        for parent in step.parents:
            children.setdefault(parent, []).append(name)
    missing = {name: len(step.parents) for name, step in steps.items()}
    ends: dict[Hashable, float] = {_BEGIN: 0.0}
    queue: list[tuple[float, int, Hashable]] = [(0.0, 0, _BEGIN)]
    while queue:
        _, _, done = heapq.heappop(queue)
        for name in children.get(done, ()):
            missing[name] -= 1
            if missing[name]:
                continue
            step = steps[name]
            times = cores[step.place]
            core, begin = _free_core(times, max(ends[parent] for parent in step.parents))
            begins.setdefault(step.work, begin)
            end = begin + step.time_s
            if done != _BEGIN:
                end += hop_s(machine, steps[done].place, into=False) + hop_s(machine, step.place, into=True)
            times[core] = ends[name] = end
            heapq.heappush(queue, (ends[name], len(ends), name))


def _free_core(times: Sequence[float], ready: float) -> tuple[int, float]:
    """The core that became free last until ``ready``, or the one that becomes free first; and from when."""
    free = [k for k, time in enumerate(times) if time <= ready]
    if free:
        return max(free, key=lambda k: times[k]), ready
    core = min(range(len(times)), key=lambda k: times[k])
    return core, times[core]
