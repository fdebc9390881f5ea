"""Bytes alive in each memory, and energy spent, over the time of an execution order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.graph.workload import ValueKind
from strata.planner.devices.result import Slot
from strata.planner.devices.types import Cause, Estimates, StackedGraph, evaluate

from .tasks import Choices


def occupancy(
    graph: StackedGraph, choices: Choices, slots: Sequence[Slot], point: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bytes that live in each memory.

    Inputs, weights and state are at home from the beginning to the end: they are there for the next run too.
    A result lives in the memory of the device that makes it, from the beginning of the work that makes it
    (its room is written meanwhile) to the end of the last work or move that reads it there; an output of the
    workload and a result that nothing reads, to the end of the run. A copy lives where it was moved, from the
    beginning of the move to the end of the last work that reads it there. A value that is read in another
    memory without a move is read where it is.

    Args:
        graph: What was chosen from.
        choices: ``[W]``: the candidate of each work.
        slots: An execution order of them.
        point: At which point.

    Returns:
        Times f64 ``[T]`` in seconds, ascending from 0 to the makespan; by memory of the machine, or place
        that the profile tells apart, f64 ``[T]``: bytes alive from that time to the next one. The last
        entries are what is left at the end.
    """
    lives = _Lives(graph, choices, slots, point)
    lives.run()
    return lives.steps()


class _Lives:
    """Lives of values: ``(memory, bytes, from, to)``; ``to`` None = past the end."""

    def __init__(self, graph: StackedGraph, choices: Choices, slots: Sequence[Slot], point: int) -> None:
        self.graph, self.slots = graph, slots
        self.chosen = [stack[c] for stack, c in zip(graph.stacks, choices, strict=True)]
        self.of_work = {s.work: s for s in slots if s.work is not None}
        at = {name: values[point : point + 1] for name, values in graph.points.items()}
        self.bytes = [float(evaluate(v.elems, at)[0]) * v.bits / 8 for v in graph.workload.values]
        self.lives: list[tuple[str, float, float, float | None]] = []

    def run(self) -> None:
        workload, home = self.graph.workload, self.graph.machine.home
        producers, consumers = workload.producers(), workload.consumers()
        by_device = {t.value for t in self.graph.transfers if t.by_device}
        memory_of = {d.name: d.memory for d in self.graph.machine.devices}
        moves: dict[int, list[Slot]] = {}
        for slot in self.slots:
            if slot.value is not None:
                moves.setdefault(slot.value, []).append(slot)
        for number, value in enumerate(workload.values):
            readers = list(consumers.get(number, ()))
            makes = producers.get(number)
            origin = home if makes is None else self.chosen[makes].memory
            ends = [slot.end_s for slot in moves.get(number, ())]
            for to, arrivals in _by_target(moves.get(number, ())).items():
                there = [
                    k
                    for k in readers
                    if to == (self.chosen[k].device if number in by_device else self.chosen[k].memory)
                ]
                readers = [k for k in readers if k not in there]
                memory = memory_of.get(to, to) if number in by_device else to
                if memory == origin:  # between devices that share a memory there is no second copy
                    ends += [self.of_work[k].end_s for k in there]
                    continue
                last_s = max(self.of_work[k].end_s for k in there)
                self.lives.append((memory, self.bytes[number], min(s.begin_s for s in arrivals), last_s))
            ends += [self.of_work[k].end_s for k in readers]
            if value.kind is not ValueKind.RESULT:
                self.lives.append((home, self.bytes[number], 0.0, None))
            elif makes is not None:
                begin_s = self.of_work[makes].begin_s
                kept = not ends or number in workload.outputs
                self.lives.append((origin, self.bytes[number], begin_s, None if kept else max(ends)))

    def steps(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The lives summed up as step functions."""
        end_s = max((s.end_s for s in self.slots), default=0.0)
        times = np.unique([0.0, end_s, *(t for *_, a, b in self.lives for t in (a, b) if t is not None)])
        names = [m.name for m in self.graph.machine.memories] + sorted({name for name, *_ in self.lives})
        changes = {name: np.zeros(len(times) + 1) for name in names}
        for memory, num_bytes, begin_s, until_s in self.lives:
            changes[memory][np.searchsorted(times, begin_s)] += num_bytes
            if until_s is not None:
                changes[memory][np.searchsorted(times, until_s)] -= num_bytes
        return times, {name: change.cumsum()[:-1] for name, change in changes.items()}


def _by_target(moves: Sequence[Slot]) -> dict[str, list[Slot]]:
    found: dict[str, list[Slot]] = {}
    for slot in moves:
        found.setdefault(slot.place.partition("->")[2], []).append(slot)
    return found


def energy_spent(
    graph: StackedGraph, choices: Choices, slots: Sequence[Slot], point: int
) -> tuple[np.ndarray, np.ndarray]:
    """Energy spent up to each time of an execution order: the integral of the power.

    Every work and move spends its energy evenly while it runs, or at once if it takes no time. Static power
    flows from the beginning to the end: where devices work at the same time, that is less than the sum of the
    static terms of the works, each of which counts the whole machine for as long as it runs.

    Args:
        graph: What was chosen from.
        choices: ``[W]``: the candidate of each work.
        slots: An execution order of them.
        point: At which point.

    Returns:
        Times f64 ``[T]`` in seconds, ascending from 0 to the makespan, and joules spent until then, f64
        ``[T]``, linear between two times; at a time that occurs twice they jump. The last one is the energy
        of the run.
    """
    chosen = [stack[c].estimates for stack, c in zip(graph.stacks, choices, strict=True)]
    costs = {(t.value, f"{a}->{b}"): e for t in graph.transfers for (a, b), e in t.costs.items()}
    end_s = max((s.end_s for s in slots), default=0.0)
    rates, jumps = [(0.0, end_s, graph.machine.static_w)], [(0.0, 0.0)]
    for slot in slots:
        estimates = chosen[slot.work] if slot.work is not None else costs[slot.value or 0, slot.place]
        energy_j = _dynamic_j(estimates, point)
        if slot.end_s > slot.begin_s:
            rates.append((slot.begin_s, slot.end_s, energy_j / (slot.end_s - slot.begin_s)))
        elif energy_j:
            jumps.append((slot.begin_s, energy_j))
    times = np.unique([t for a, b, _ in rates for t in (a, b)] + [t for t, _ in jumps])
    watts = np.zeros(len(times) + 1)
    for begin_s, until_s, w in rates:
        watts[np.searchsorted(times, begin_s)] += w
        watts[np.searchsorted(times, until_s)] -= w
    steps_j = np.zeros(len(times))
    for time_s, energy_j in jumps:
        steps_j[np.searchsorted(times, time_s)] += energy_j
    flowed_j = np.concatenate([[0.0], np.cumsum(watts.cumsum()[:-2] * np.diff(times))])
    jumped_j = steps_j.cumsum()
    twice = np.repeat(times, 2)
    spent_j = np.stack([flowed_j + jumped_j - steps_j, flowed_j + jumped_j], axis=1).ravel()
    keep = np.ones(len(twice), bool)
    keep[1::2] = steps_j > 0
    return twice[keep], spent_j[keep]


def _dynamic_j(estimates: Estimates, point: int) -> float:
    """Energy without what the whole machine draws meanwhile."""
    static = sum(
        float(t.energy_j[point]) for t in estimates.terms if t.cause is Cause.STATIC and t.place == "machine"
    )
    return float(estimates.energy_j[point]) - static
