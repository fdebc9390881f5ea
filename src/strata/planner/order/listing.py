"""Orders of tasks in time: by priority, in a given sequence, or one after the other.

A sequence of tasks becomes an order by :func:`place`: each task begins as soon as what it waits for is done
and its resources are free of the tasks before it in the sequence. Some sequence gives the best order of all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from strata.planner.devices.result import Slot
from strata.planner.devices.types import StackedGraph

from .tasks import Choices, Instance, Tasks, instance_of, tasks_of


@dataclass(frozen=True, slots=True)
class Placed:
    """Tasks in time.

    Attributes:
        begins_s: Of each task.
        cores: Core of its device that each task takes; 0 if it takes all.
        makespan_s: When the last one ends.
    """

    begins_s: list[float]
    cores: list[int]
    makespan_s: float


def list_schedule(graph: StackedGraph, choices: Choices, point: int) -> tuple[Slot, ...]:
    """Execution order by priority: whenever a device is free, the ready work with the longest way to the end.

    Args:
        graph: What was chosen from.
        choices: ``[W]``: the candidate of each work.
        point: At which point.

    Returns:
        Slots in the order of their beginning. O(n log n); the same for the same arguments.
    """
    tasks = tasks_of(instance_of(graph, point), choices)
    return slots_of(graph, choices, tasks, late_moves(tasks, place(tasks, priority_sequence(tasks))))


def sequential_order(graph: StackedGraph, choices: Choices, point: int) -> tuple[Slot, ...]:
    """Execution order with one task at a time: works in the graph's order, each move before what needs it.

    It ends at the time that :func:`strata.planner.devices.result.totals` gives, which counts every move.
    """
    tasks = tasks_of(instance_of(graph, point), choices)
    begins_s, now = [0.0] * len(tasks), 0.0
    for task in sorted(range(len(tasks)), key=tasks.ranks.__getitem__):
        begins_s[task] = now
        now += tasks.times_s[task]
    return slots_of(graph, choices, tasks, Placed(begins_s, [0] * len(tasks), now))


def bottom_levels(tasks: Tasks) -> list[float]:
    """Seconds from the beginning of each task to the end along its longest chain of tasks."""
    levels = [0.0] * len(tasks)
    for task in sorted(range(len(tasks)), key=tasks.ranks.__getitem__, reverse=True):
        levels[task] = tasks.times_s[task] + max((levels[k] for k in tasks.after[task]), default=0.0)
    return levels


def priority_sequence(tasks: Tasks, levels: Sequence[float] | None = None) -> list[int]:
    """Tasks in the order in which they begin if no resource waits while something is ready for it.

    Among what is ready, the task with the largest level begins first: :func:`bottom_levels` if none are
    given.
    """
    levels = bottom_levels(tasks) if levels is None else levels
    waiting = [len(earlier) for earlier in tasks.before]
    ready: dict[tuple[tuple[int, ...], bool], list[tuple[float, int]]] = {}  # heap per kind of need
    running: list[tuple[float, int]] = []
    free = list(tasks.cores)
    sequence: list[int] = []

    def need(task: int, resource: int) -> int:
        return 1 if tasks.one_core[task] else tasks.cores[resource]

    def add(task: int) -> None:
        heappush(ready.setdefault((tasks.uses[task], tasks.one_core[task]), []), (-levels[task], task))

    for task, count in enumerate(waiting):
        if not count:
            add(task)
    now = 0.0
    while len(sequence) < len(tasks):
        while True:
            heads = [
                heap[0]
                for (uses, _), heap in ready.items()
                if heap and all(free[r] >= need(heap[0][1], r) for r in uses)
            ]
            if not heads:
                break
            _, task = min(heads)
            heappop(ready[tasks.uses[task], tasks.one_core[task]])
            sequence.append(task)
            for r in tasks.uses[task]:
                free[r] -= need(task, r)
            heappush(running, (now + tasks.times_s[task], task))
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] <= now:
            _, task = heappop(running)
            for r in tasks.uses[task]:
                free[r] += need(task, r)
            for k in tasks.after[task]:
                waiting[k] -= 1
                if not waiting[k]:
                    add(k)
    return sequence


def place(tasks: Tasks, sequence: Sequence[int]) -> Placed:
    """Every task as early as its predecessors and the tasks before it in ``sequence`` allow."""
    free = [[0.0] * count for count in tasks.cores]
    ends_s = [0.0] * len(tasks)
    begins_s, cores = [0.0] * len(tasks), [0] * len(tasks)
    for task in sequence:
        begin = max((ends_s[k] for k in tasks.before[task]), default=0.0)
        if tasks.one_core[task] and tasks.uses[task]:
            lanes = free[tasks.uses[task][0]]
            cores[task] = core = min(range(len(lanes)), key=lanes.__getitem__)
            begin = max(begin, lanes[core])
            lanes[core] = begin + tasks.times_s[task]
        else:
            begin = max((begin, *(max(free[r]) for r in tasks.uses[task])))
            for r in tasks.uses[task]:
                free[r] = [begin + tasks.times_s[task]] * len(free[r])
        begins_s[task], ends_s[task] = begin, begin + tasks.times_s[task]
    return Placed(begins_s, cores, max(ends_s, default=0.0))


def makespan_s(instance: Instance, choices: Choices) -> float:
    """Makespan of the list schedule."""
    tasks = tasks_of(instance, choices)
    return place(tasks, priority_sequence(tasks)).makespan_s


def slots_of(graph: StackedGraph, choices: Choices, tasks: Tasks, placed: Placed) -> tuple[Slot, ...]:
    """Slots of placed tasks, in the order of their beginning."""
    num_works = len(graph.stacks)
    found: list[tuple[float, tuple[float, int], Slot]] = []
    for task, (begin, core) in enumerate(zip(placed.begins_s, placed.cores, strict=True)):
        end = begin + tasks.times_s[task]
        if task < num_works:
            slot = Slot(task, None, graph.stacks[task][choices[task]].device, core, begin, end)
        else:
            move = tasks.moves[task - num_works]
            slot = Slot(None, move.value, f"{move.origin}->{move.to}", 0, begin, end)
        found.append((begin, tasks.ranks[task], slot))
    return tuple(slot for *_, slot in sorted(found, key=lambda entry: entry[:2]))


def late_moves(tasks: Tasks, placed: Placed) -> Placed:
    """Moves of values from home as late as nothing waits for them, so that copies live shortly.

    Each one, the last needed first, goes to the latest gap that all its links have before it is needed.
    """
    begins_s = list(placed.begins_s)
    num_works = len(tasks) - len(tasks.moves)
    movable = [k for k in range(num_works, len(tasks)) if not tasks.before[k]]
    taken: dict[int, list[tuple[float, float]]] = {}  # (begin, end) on each link, ascending
    for task in sorted(range(num_works, len(tasks)), key=begins_s.__getitem__):
        for r in tasks.uses[task]:
            taken.setdefault(r, []).append((begins_s[task], begins_s[task] + tasks.times_s[task]))
    needed_s = {task: min(begins_s[k] for k in tasks.after[task]) for task in movable}
    for task in sorted(movable, key=lambda k: (needed_s[k], k), reverse=True):
        time_s, lists = tasks.times_s[task], [taken[r] for r in tasks.uses[task]]
        for spans in lists:
            spans.remove((begins_s[task], begins_s[task] + time_s))
        end_s = needed_s[task]
        while earlier := [found for spans in lists if (found := _last_before(spans, end_s, time_s)) < end_s]:
            end_s = min(earlier)
        begins_s[task] = max(begins_s[task], end_s - time_s)
        for spans in lists:
            insort(spans, (begins_s[task], begins_s[task] + time_s))
    return Placed(begins_s, placed.cores, placed.makespan_s)


def _last_before(spans: list[tuple[float, float]], end_s: float, time_s: float) -> float:
    """``end_s`` if a link is free for the ``time_s`` before it; else the beginning of what takes it."""
    last = bisect_left(spans, (end_s, -inf)) - 1
    return spans[last][0] if last >= 0 and spans[last][1] > end_s - time_s else end_s
