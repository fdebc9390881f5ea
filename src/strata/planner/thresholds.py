"""From which length on another plan is the best one, and what changes there.

The best plan is found at every length, one by one but all at once (costs are arrays over lengths), so that
the thresholds are exact by construction: nothing is assumed of how costs depend on the length. Where two
plans cost the same, the one before is kept: see :data:`EQUAL`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.graph.workload import Workload
from strata.target.hardware import Machine

from .choose import by_size
from .devices.build import Rules, stacked_graph
from .devices.encode import Encoding, encode
from .devices.objective import Objective, parse_objective
from .devices.types import DeviceCandidate, Points, StackedGraph
from .devices.weighted import refuse_endless
from .select.eliminate import Block, blocks, structure_of
from .select.problem import Problem
from .select.sequence import Sequence, sequence
from .types import Choice

MAX_LENGTH = 131072
LENGTHS_AT_ONCE = 16384

# A part of the plan changes only if that saves more than this fraction of the plan's cost: two ways to add up
# the same numbers differ by less.
EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class Change:
    """Works that move together from one device to another.

    Attributes:
        op: Their op.
        name: Their name; ``*`` for a number in which they differ.
        works: Their numbers.
        before: Device before; the name of the candidate if the device stays the same.
        after: Likewise.
    """

    op: str
    name: str
    works: tuple[int, ...]
    before: str
    after: str

    def __str__(self) -> str:
        times = f" x{len(self.works)}" if len(self.works) > 1 else ""
        return f"{self.op} {self.name}{times}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A length from which on another plan is the best one.

    Attributes:
        length: The first length of the new plan.
        changes: What is different from the plan before; never empty.
    """

    length: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class PlanRanges:
    """The best plan by ranges of the length.

    Attributes:
        workload: What is planned.
        stacks: ``(device, candidate)`` of each candidate of each work.
        dim: Name of the length.
        starts: First length of each range, ascending.
        hi: Last length of the last one.
        choices: i16 ``[R, W]``: number of the chosen candidate of each work in each range.
    """

    workload: Workload
    stacks: tuple[tuple[tuple[str, str], ...], ...]
    dim: str
    starts: tuple[int, ...]
    hi: int
    choices: np.ndarray

    def thresholds(self) -> tuple[Threshold, ...]:
        """Where the plan changes, and what."""
        pairs = zip(self.choices, self.choices[1:], strict=False)
        return tuple(
            Threshold(length, self._changes(before, after))
            for length, (before, after) in zip(self.starts[1:], pairs, strict=True)
        )

    def dispatch(self, work: int) -> tuple[Choice, ...]:
        """Candidates of a work by ranges of the length, as a compiled model's launch has them."""
        ends = (*(start - 1 for start in self.starts[1:]), self.hi)
        return by_size(self.dim, self.starts[0], list(zip(ends, self.choices[:, work].tolist(), strict=True)))

    def _changes(self, before: np.ndarray, after: np.ndarray) -> tuple[Change, ...]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for k in np.flatnonzero(before != after).tolist():
            work, (old, new) = self.workload.works[k], (self.stacks[k][before[k]], self.stacks[k][after[k]])
            names = (old[0], new[0]) if old[0] != new[0] else (old[1], new[1])
            groups.setdefault((work.op, re.sub(r"\d+", "*", work.name), *names), []).append(k)
        return tuple(
            Change(op, name if len(works) > 1 else self.workload.works[works[0]].name, tuple(works), old, new)
            for (op, name, old, new), works in groups.items()
        )


def thresholds(
    workload: Workload,
    machine: Machine,
    objective: Objective | str,
    lo: int = 1,
    hi: int | None = None,
    *,
    at: Mapping[str, int] | None = None,
    rules: Rules | None = None,
) -> tuple[Threshold, ...]:
    """Where in ``lo..hi`` the best plan changes, and what; arguments and errors of :func:`plan_ranges`."""
    return plan_ranges(workload, machine, objective, lo, hi, at=at, rules=rules).thresholds()


def plan_ranges(
    workload: Workload,
    machine: Machine,
    objective: Objective | str,
    lo: int = 1,
    hi: int | None = None,
    *,
    at: Mapping[str, int] | None = None,
    rules: Rules | None = None,
) -> PlanRanges:
    """The best plan of ``workload`` on ``machine`` at all lengths ``lo..hi``; capacities are not looked at.

    Args:
        workload: With one symbolic dim, the length, besides those in ``at``.
        machine: Where to run it.
        objective: A sum of time and energy.
        lo: First length; if the workload's range or its multiple begins later, that.
        hi: Last length; ``None`` = as the workload allows, up to ``MAX_LENGTH``.
        at: Values of other dims.
        rules: What is forbidden.

    Raises:
        UserError: another objective; no or several lengths; an empty range; what
            :func:`~strata.planner.devices.build.stacked_graph` refuses; a length at which no plan is finite.
        UnsupportedError: the graph is too strongly coupled.
    """
    objective = parse_objective(objective)
    if not objective.is_sum:
        raise UserError(f"thresholds: objective {objective.text}: expected a sum of time and energy")
    at = at or {}
    dim = _length_of(workload, at)
    step = dim.multiple_of
    hi = min(dim.hi, MAX_LENGTH) if hi is None else hi
    lengths = np.arange(-(-max(lo, dim.lo) // step) * step, hi + 1, step)
    if not len(lengths):
        raise UserError(f"thresholds of {workload.name}: {dim.name}: got the empty range {lo}..{hi}")
    ranges = _Ranges(workload, objective)
    for portion in np.array_split(lengths, range(LENGTHS_AT_ONCE, len(lengths), LENGTHS_AT_ONCE)):
        points: Points = {dim.name: portion, **{k: np.full(len(portion), v) for k, v in at.items()}}
        ranges.add(stacked_graph(workload, machine, points, rules), portion)
    return ranges.finish(dim.name, hi)


def _length_of(workload: Workload, at: Mapping[str, int]) -> SymDim:
    free = [dim for dim in workload.dims if dim.name not in at]
    if len(free) != 1:
        got = ", ".join(dim.name for dim in free) or "none"
        raise UserError(
            f"thresholds of {workload.name}: got the free dims {got}; expected one, the length; give others "
            "a value"
        )
    return free[0]


class _Ranges:
    """Plans while lengths are gone through in ascending order."""

    def __init__(self, workload: Workload, objective: Objective) -> None:
        self.workload, self.objective = workload, objective
        self.stacks: list[list[tuple[str, str]]] = [[] for _ in workload.works]
        self.offered: tuple[tuple[tuple[str, str], ...], ...] = ()  # at the lengths now gone through
        self.order: Sequence | None = None
        self.places: list[list[int]] = []  # number of each offered candidate in ``stacks``
        self.scopes: object = None
        self.plan: np.ndarray | None = None  # i16 [V]: with the variables that are no works
        self.starts: list[int] = []
        self.choices: list[np.ndarray] = []

    def add(self, graph: StackedGraph, lengths: np.ndarray) -> None:
        stacks = tuple(map(_names, graph.stacks))
        encoding = encode(graph)
        problem = encoding.problem(self.objective.per_second, self.objective.per_joule)
        structure, _ = structure_of(problem)
        if self.order is None or self.order.structure != structure:
            self.order = sequence(structure)
        scopes = (len(encoding.nodes), [edge[:2] for edge in encoding.edges])
        if self.scopes != scopes:  # other variables: those of the plan say nothing about them
            self.scopes, self.plan = scopes, None
        if self.offered != stacks:
            self._rename(stacks)
        compare = _Comparison(encoding, problem)
        for block in blocks(problem, self.order):
            refuse_endless(graph, np.arange(block.begin, block.end), block.cost)
            for begin, end, best in _segments(block):
                self._follow(best, begin, end, lengths, compare, block.cost[begin - block.begin :])

    def _follow(
        self,
        best: np.ndarray,
        begin: int,
        end: int,
        lengths: np.ndarray,
        compare: _Comparison,
        cost: np.ndarray,
    ) -> None:
        """Change the plan to ``best`` at the points ``begin..end``, each part where that begins to pay."""
        if self.plan is None:
            self.plan = best
            self._record(int(lengths[begin]))
            return
        moves: dict[int, list[int]] = {}
        for part in compare.parts(np.flatnonzero(self.plan != best).tolist()):
            if (self.plan[part] < 0).any():
                moves.setdefault(begin, []).extend(part)
                continue
            pays = compare.excess(part, self.plan, best, begin, end) > EQUAL * cost[: end - begin]
            if pays.any():
                moves.setdefault(begin + int(pays.argmax()), []).extend(part)
        for point in sorted(moves):
            self.plan = self.plan.copy()
            self.plan[moves[point]] = best[moves[point]]
            self._record(int(lengths[point]))

    def _rename(self, offered: tuple[tuple[tuple[str, str], ...], ...]) -> None:
        """Other candidates are offered from here on: those that are better nowhere are left out by profiles.

        A candidate of the plan that is not offered any more becomes -1, which costs more than any other.
        """
        for k, (old, new) in enumerate(zip(self.offered or offered, offered, strict=True)):
            self.stacks[k] += [name for name in new if name not in self.stacks[k]]
            if self.plan is not None and old != new:
                name = old[self.plan[k]]
                self.plan[k] = new.index(name) if name in new else -1
        self.offered = offered
        self.places = [[s.index(name) for name in new] for s, new in zip(self.stacks, offered, strict=True)]

    def _record(self, length: int) -> None:
        assert self.plan is not None
        choices = np.array([at[k] for at, k in zip(self.places, self.plan.tolist(), strict=False)], np.int16)
        if not self.choices or not np.array_equal(choices, self.choices[-1]):
            self.starts.append(length)
            self.choices.append(choices)

    def finish(self, dim: str, hi: int) -> PlanRanges:
        return PlanRanges(
            self.workload,
            tuple(map(tuple, self.stacks)),
            dim,
            tuple(self.starts),
            hi,
            np.array(self.choices, np.int16),
        )


def _names(stack: tuple[DeviceCandidate, ...]) -> tuple[tuple[str, str], ...]:
    return tuple([(c.device, c.name) for c in stack])


def _segments(block: Block) -> Iterator[tuple[int, int, np.ndarray]]:
    """The points of a block by the solver's choice: ``(begin, end, i16 [V])``."""
    fixed = np.array([row if isinstance(row, int) else 0 for row in block.rows], np.int16)
    variables: dict[int, list[int]] = {}
    rows: dict[int, np.ndarray] = {}
    for v, row in enumerate(block.rows):
        if not isinstance(row, int):
            variables.setdefault(id(row), []).append(v)
            rows[id(row)] = row
    new = np.zeros(block.end - block.begin, bool)
    new[0] = True
    for row in rows.values():
        new[1:] |= row[1:] != row[:-1]
    begins = np.flatnonzero(new).tolist()
    for begin, end in zip(begins, [*begins[1:], len(new)], strict=True):
        choices = fixed.copy()
        for key, row in rows.items():
            choices[variables[key]] = row[begin]
        yield block.begin + begin, block.begin + end, choices


class _Comparison:
    """What one choice costs more than another, part by part: parts that share no table are independent."""

    def __init__(self, encoding: Encoding, problem: Problem) -> None:
        self.encoding = encoding
        arrays = dict(zip(encoding.nodes, problem.node_costs, strict=True))
        arrays |= {
            t: costs for (_, _, t), (_, _, costs) in zip(encoding.edges, problem.edge_costs, strict=True)
        }
        self.arrays = arrays
        self.edges_of: list[list[int]] = [[] for _ in encoding.nodes]
        for k, (u, v, _) in enumerate(encoding.edges):
            self.edges_of[u].append(k)
            self.edges_of[v].append(k)
        self.known: dict[object, np.ndarray] = {}  # at the points from ``begin`` on
        self.begin = -1

    def parts(self, variables: list[int]) -> Iterator[list[int]]:
        """The connected parts of a set of variables."""
        left = set(variables)
        for v in variables:
            if v not in left:
                continue
            part, front = [], [v]
            left.discard(v)
            while front:
                u = front.pop()
                part.append(u)
                for k in self.edges_of[u]:
                    for other in self.encoding.edges[k][:2]:
                        if other in left:
                            left.discard(other)
                            front.append(other)
            yield sorted(part)

    def excess(self, part: list[int], one: np.ndarray, other: np.ndarray, begin: int, end: int) -> np.ndarray:
        """Cost of choice ``one`` less that of ``other`` in a part, at points ``begin..end``: ``[N]``."""
        entries: Counter[tuple[int, tuple[int, ...], tuple[int, ...]]] = Counter()
        for v in part:
            entries[self.encoding.nodes[v], (int(one[v]),), (int(other[v]),)] += 1
        for k in sorted({k for v in part for k in self.edges_of[v]}):
            u, v, table = self.encoding.edges[k]
            entries[table, (int(one[u]), int(one[v])), (int(other[u]), int(other[v]))] += 1
        if begin != self.begin:
            self.begin, self.known = begin, {}
        key = tuple(sorted(entries.items()))
        if key not in self.known:
            total = np.zeros(end - begin)
            for (table, a, b), times in entries.items():
                costs = self.arrays[table]
                at = slice(begin, end) if costs.shape[-1] > 1 else slice(None)
                total += times * (costs[a][at] - costs[b][at])
            self.known[key] = total
        return self.known[key]
