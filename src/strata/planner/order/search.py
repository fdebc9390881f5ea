"""The least makespan: which candidate computes each work, and in which order.

The graph is split at its cuts (:mod:`.cuts`); what the whole takes is then a shortest path over the
candidates of the cuts, whose steps are segments. At first a step counts what it takes at least
(:mod:`.bounds`); the segments on the shortest path are solved, by list schedules with local search and by
CP-SAT where it is installed, until the shortest path has no unsolved one: its length is then a bound of the
whole, and mostly what its order takes. What remains between the two is closed, where possible, by local
search over the whole graph and by CP-SAT on the whole of a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from strata.planner.devices.result import Slot
from strata.planner.devices.types import StackedGraph

from .bounds import critical_path_s, lower_bound_s
from .check import validate_order
from .cpsat import GAP, has_solver, move_key, solve
from .cuts import Segment, fixed, segments_of
from .listing import Placed, late_moves, place, priority_sequence, slots_of
from .tasks import Instance, Tasks, instance_of, tasks_of

Progress = Callable[[int, int, str], None]  # done, total, what
EFFORT = 2.5  # deterministic seconds of CP-SAT for a whole graph; one takes about 4 s of one core
LIST_TASKS = 250_000  # tasks that local search may place for a whole graph; about 4 s
SEGMENT_TASKS = 20_000  # the same for a segment
SOLVABLE_WORKS = 400  # more works than this at once are not given to CP-SAT


def minimise_makespan(
    graph: StackedGraph,
    point: int,
    start: np.ndarray,
    *,
    effort: float = EFFORT,
    progress: Progress | None = None,
) -> tuple[np.ndarray, tuple[Slot, ...], float]:
    """Choices and an execution order that end early, and a time before which none ends.

    Args:
        graph: What to choose from.
        point: At which point.
        start: i16 ``[W]``: choices to begin with; the result is never worse than their list schedule.
        effort: Deterministic seconds that CP-SAT may take: no clock is read, so that the same call gives the
            same result. Ignored without OR-Tools (see :func:`missing_solver`).
        progress: Called after every segment with ``(done, total, what)``.

    Returns:
        Choices i16 ``[W]``; the order, checked; the lower bound in seconds.
    """
    instance = instance_of(graph, point)
    search = _Search(instance, effort if has_solver() else 0.0, progress or (lambda *_: None))
    found = search.run([int(c) for c in start])
    tasks = tasks_of(instance, found.choices)
    slots = slots_of(graph, found.choices, tasks, late_moves(tasks, place(tasks, found.sequence)))
    validate_order(graph, found.choices, slots, point)
    return np.asarray(found.choices, np.int16), slots, min(search.bound_s, found.makespan_s)


def missing_solver() -> str | None:
    """What a better order needs that is not installed; ``None`` if nothing."""
    if has_solver():
        return None
    return (
        "OR-Tools is not installed: orders come from list schedules and local search alone; "
        "for better ones pip install 'strata-llm[planner]'"
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Choices with a sequence of their tasks (:func:`.listing.place`) and when it ends."""

    choices: list[int]
    sequence: list[int]
    makespan_s: float


@dataclass(slots=True)
class _Piece:
    """What is known of the segments with one and the same instance.

    Attributes:
        segment: The first of them.
        last: Whether the graph ends with it.
        lower_s, upper_s: f64 ``[options of the entry, options of the exit]``: what it takes at least; what
            the solution takes, ``inf`` while there is none. One row without an entry; one column at the end
            of the graph, where the exit need not be fixed.
        solutions: By row and column, the found order.
    """

    segment: Segment
    last: bool
    lower_s: np.ndarray = field(init=False)
    upper_s: np.ndarray = field(init=False)
    solutions: dict[tuple[int, int], _Found] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = self.segment.instance.options
        rows = 1 if self.segment.entry is None else len(options[0])
        columns = 1 if self.last else len(options[-1])
        self.lower_s, self.upper_s = np.zeros((rows, columns)), np.full((rows, columns), np.inf)
        single = len(self.segment.works) == 1
        for row, column in np.ndindex(rows, columns):
            part = self.part(row, column)
            bound = critical_path_s(part) if single else lower_bound_s(part)
            self.lower_s[row, column] = bound
            if single and not self.last:
                self.solve(row, column, 0.0)

    def part(self, row: int, column: int) -> Instance:
        """The instance with its ends fixed."""
        instance = self.segment.instance
        if self.segment.entry is not None:
            instance = fixed(instance, 0, row)
        return instance if self.last else fixed(instance, len(instance.options) - 1, column)

    def solve(self, row: int, column: int, limit: float) -> float:
        """Find an order; returns the deterministic seconds that it took."""
        part = self.part(row, column)
        first = [min(range(len(o)), key=lambda k, o=o: o[k].time_s) for o in part.options]
        singles = [(k,) for k in range(len(part.options))]
        found = _improved(part, _listed(part, first), singles, self.lower_s[row, column], SEGMENT_TASKS)
        spent = 0.0
        if limit > 0:
            found, bound_s, spent = _solved(part, found, float(self.lower_s[row, column]), limit)
            self.lower_s[row, column] = max(self.lower_s[row, column], bound_s)
        self.upper_s[row, column] = found.makespan_s
        choices = list(found.choices)
        if self.segment.entry is not None:
            choices[0] = row
        if not self.last:
            choices[-1] = column
        self.solutions[row, column] = _Found(choices, found.sequence, found.makespan_s)
        return spent


class _Search:
    def __init__(self, instance: Instance, effort: float, progress: Progress) -> None:
        self.instance, self.effort, self.progress = instance, effort, progress
        self.bound_s = 0.0

    def run(self, start: list[int]) -> _Found:
        """Choices and a sequence; leaves the bound in ``bound_s``."""
        best = _listed(self.instance, start)
        self.bound_s = lower_bound_s(self.instance)
        if self._proven(best):
            return best
        segments = segments_of(self.instance)
        pieces = self._pieces(segments)
        self.bound_s = max(self.bound_s, self._solve_shortest(pieces))
        for found in self._joined(segments, pieces, start):
            best = min(best, found, key=lambda f: f.makespan_s)
        if not self._proven(best):
            best = _improved(
                self.instance, best, _groups(segments, pieces, self.instance), self.bound_s, LIST_TASKS
            )
        whole = len(pieces) == 1 and len(pieces[0].segment.works) == len(self.instance.options)
        if not self._proven(best) and not whole and self.effort > 0:
            best, bound_s, _ = _solved(self.instance, best, self.bound_s, self.effort)
            self.bound_s = max(self.bound_s, bound_s)
        return best

    def _proven(self, found: _Found) -> bool:
        return found.makespan_s <= self.bound_s * (1 + GAP)

    def _pieces(self, segments: Sequence[Segment]) -> list[_Piece]:
        """One per segment; the same object for equal segments."""
        known: dict[tuple[Instance, bool, bool], _Piece] = {}
        pieces: list[_Piece] = []
        for segment in segments:
            last = segment is segments[-1]
            key = (segment.instance, last, segment.entry is None)
            if key not in known:
                known[key] = _Piece(segment, last)
            pieces.append(known[key])
        return pieces

    def _solve_shortest(self, pieces: Sequence[_Piece]) -> float:
        """Solve pieces until the shortest path has only solved ones; returns its length."""
        solved = 0
        while True:
            length_s, steps = _shortest([p.lower_s for p in pieces])
            wanted = zip(pieces, steps, strict=True)
            unsolved = {(id(p), step): p for p, step in wanted if step not in p.solutions}
            if not unsolved:
                return length_s
            small_first = sorted(unsolved.items(), key=lambda item: len(item[1].segment.works))
            for left, ((_, step), piece) in zip(range(len(unsolved), 0, -1), small_first, strict=True):
                self.effort -= piece.solve(*step, self.effort / (left + 1))  # others may turn up later
                solved += 1
                what = f"ordered {len(piece.segment.works)} works between two cuts"
                self.progress(solved, solved + left - 1, what)

    def _joined(
        self, segments: Sequence[Segment], pieces: Sequence[_Piece], start: list[int]
    ) -> Iterator[_Found]:
        """The orders of the segments joined: as they are, with the gaps filled, and by priority."""
        _, steps = _shortest([p.upper_s for p in pieces])
        choices = list(start)
        keys: dict[object, tuple[int, float]] = {}
        for number, (segment, piece, step) in enumerate(zip(segments, pieces, steps, strict=True)):
            solution = piece.solutions[step]
            local = tasks_of(piece.segment.instance, solution.choices)
            num_works = len(piece.segment.instance.options)
            for position, task in enumerate(solution.sequence):
                if task < num_works:
                    work = segment.numbers[task]
                    choices[work] = solution.choices[task]
                    keys.setdefault(work, (number, position))
                else:
                    haul, origin, to, k = move_key(piece.segment.instance, local, task - num_works)
                    consumer = k if k < 0 else segment.numbers[k]
                    keys.setdefault((segment.values[haul], origin, to, consumer), (number, position))
        yield _listed(self.instance, choices)
        tasks = tasks_of(self.instance, choices)
        sequence = self._sequence(tasks, keys)
        yield _Found(choices, sequence, place(tasks, sequence).makespan_s)
        levels = [0.0] * len(tasks)
        for position, task in enumerate(sequence):
            levels[task] = -float(position)
        filled = priority_sequence(tasks, levels)
        yield _Found(choices, filled, place(tasks, filled).makespan_s)

    def _sequence(self, tasks: Tasks, keys: dict[object, tuple[int, float]]) -> list[int]:
        """All tasks by ``keys``; those without one just before what first waits for them, or at the end."""
        num_works = len(self.instance.options)
        found: list[tuple[float, float]] = [(np.inf, 0.0)] * len(tasks)
        for task in sorted(range(len(tasks)), key=tasks.ranks.__getitem__, reverse=True):
            key: object = task
            if task >= num_works:
                haul, *rest = move_key(self.instance, tasks, task - num_works)
                key = (self.instance.hauls[haul].value, *rest)
            latest = min((found[k] for k in tasks.after[task]), default=(np.inf, 0.0))
            found[task] = min(keys.get(key, latest), latest)
        return sorted(range(len(tasks)), key=lambda k: (found[k], tasks.ranks[k]))


def _shortest(lengths: Sequence[np.ndarray]) -> tuple[float, list[tuple[int, int]]]:
    """Shortest path through ``[options, options]`` steps: its length and its (row, column) per step."""
    ends = np.zeros(lengths[0].shape[0])
    rows: list[np.ndarray] = []
    for steps in lengths:
        through = ends[:, None] + steps
        rows.append(through.argmin(axis=0))
        ends = through.min(axis=0)
    column = int(ends.argmin())
    path: list[tuple[int, int]] = []
    for row_of in reversed(rows):
        row = int(row_of[column])
        path.append((row, column))
        column = row
    return float(ends.min()), path[::-1]


def _listed(instance: Instance, choices: list[int]) -> _Found:
    tasks = tasks_of(instance, choices)
    sequence = priority_sequence(tasks)
    return _Found(choices, sequence, place(tasks, sequence).makespan_s)


def _improved(
    instance: Instance, best: _Found, groups: Sequence[tuple[int, ...]], bound_s: float, num_tasks: int
) -> _Found:
    """Local search: give all works of a group another option while that helps the list schedule.

    Args:
        instance: What is ordered.
        best: Where to begin.
        groups: Works that change together; all have the same options.
        bound_s: Stop when it is reached.
        num_tasks: Stop when this many tasks have been placed.
    """
    improving = True
    while improving:
        improving = False
        for group in groups:
            for option in range(len(instance.options[group[0]])):
                if all(best.choices[k] == option for k in group):
                    continue
                if num_tasks <= 0 or best.makespan_s <= bound_s * (1 + GAP):
                    return best
                choices = list(best.choices)
                for k in group:
                    choices[k] = option
                found = _listed(instance, choices)
                num_tasks -= len(found.sequence)
                if found.makespan_s < best.makespan_s * (1 - GAP):
                    best, improving = found, True
    return best


def _groups(
    segments: Sequence[Segment], pieces: Sequence[_Piece], instance: Instance
) -> list[tuple[int, ...]]:
    """Works with a choice: first those at the same place of equal segments together, then one by one."""
    together: dict[object, list[int]] = {}
    for segment, piece in zip(segments, pieces, strict=True):
        for position, work in enumerate(segment.works):
            together.setdefault((id(piece), position), []).append(work)
    inside = {work for segment in segments for work in segment.works}
    for work, options in enumerate(instance.options):
        if work not in inside:
            together.setdefault(options, []).append(work)
    groups = [tuple(works) for works in together.values() if len(works) > 1]
    groups += [(k,) for k in range(len(instance.options))]
    return [group for group in groups if len(instance.options[group[0]]) > 1]


def _solved(instance: Instance, best: _Found, bound_s: float, limit: float) -> tuple[_Found, float, float]:
    """The better one of ``best`` and what CP-SAT finds; the bound; the deterministic seconds spent."""
    if len(instance.options) > SOLVABLE_WORKS or best.makespan_s <= bound_s * (1 + GAP):
        return best, bound_s, 0.0
    tasks = tasks_of(instance, best.choices)
    placed: Placed = place(tasks, best.sequence)
    works = len(instance.options)
    solved = solve(instance, best.choices, placed.begins_s[:works], best.makespan_s, limit)
    if solved is None:
        return best, bound_s, limit
    tasks = tasks_of(instance, solved.choices)
    begins: list[float] = list(solved.begins)
    for number, move in enumerate(tasks.moves):
        after_producer = begins[move.producer] if move.producer is not None else 0.0
        begins.append(solved.move_begins.get(move_key(instance, tasks, number), after_producer))
    sequence = sorted(range(len(tasks)), key=lambda k: (begins[k], tasks.ranks[k]))
    found = _Found(list(solved.choices), sequence, place(tasks, sequence).makespan_s)
    return min(best, found, key=lambda f: f.makespan_s), max(bound_s, solved.bound_s), solved.spent
