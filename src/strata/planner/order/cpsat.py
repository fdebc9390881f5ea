"""The best choices and order of an instance by OR-Tools CP-SAT, with a bound.

One start per work; one optional interval per option and per move, none overlapping on its resource; a move,
or the delay that it is, between the end of its producer and the start of its consumer. Seconds become whole
units of a billionth of the known makespan, rounded down, so that the solver's bound is valid for the real
durations.

The solver runs with one worker, a fixed seed and a limit of deterministic time: the same call gives the same.
(Its default portfolio is avoided: ``default_lp`` alone took up to 25 s per deterministic second on a segment
of 40 works, against 2.5 s with full linear relaxations and 6 s with none, and found neither more nor better.)
OR-Tools is imported when it is used (extra ``planner``).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .bounds import ROUNDING
from .tasks import Haul, Instance, Tasks

UNITS = 10**9  # of the known makespan
GAP = 1e-8  # relative to the bound: closer than this is called proven

MoveKey = tuple[int, str, str, int]  # haul, from, to, consumer (-1 if shared)


@dataclass(frozen=True, slots=True)
class Solved:
    """What the solver found.

    Attributes:
        choices: Option of each work.
        begins: When each work begins, in units.
        move_begins: When each move over a link begins, in units.
        bound_s: No choice and order of the instance ends earlier.
        spent: Deterministic seconds that it took.
    """

    choices: tuple[int, ...]
    begins: tuple[int, ...]
    move_begins: Mapping[MoveKey, int]
    bound_s: float
    spent: float


def has_solver() -> bool:
    """Whether OR-Tools is installed."""
    return importlib.util.find_spec("ortools") is not None


def solve(
    instance: Instance, choices: Sequence[int], begins_s: Sequence[float], known_s: float, limit: float
) -> Solved | None:
    """Search for an order that ends before ``known_s``.

    Args:
        instance: What to order.
        choices: Option of each work in the best known order.
        begins_s: When each work begins there.
        known_s: When it ends; > 0.
        limit: Deterministic seconds.

    Returns:
        The best order found, or ``None`` if the limit came before any.
    """
    return _Model(instance, known_s / UNITS).solve(choices, begins_s, limit)


def move_key(instance: Instance, tasks: Tasks, number: int) -> MoveKey:
    """Key of ``tasks.moves[number]`` in :attr:`Solved.move_begins`."""
    move = tasks.moves[number]
    shared = instance.hauls[move.haul].shared
    return (move.haul, move.origin, move.to, -1 if shared else move.consumers[0])


class _Model:
    """The model of one instance."""

    def __init__(self, instance: Instance, unit_s: float) -> None:
        from ortools.sat.python import cp_model

        self.cp, self.model = cp_model, cp_model.CpModel()
        self.instance, self.unit_s = instance, unit_s
        self.horizon = UNITS + len(instance.options)
        self.intervals: dict[int, list[tuple[Any, int]]] = {}  # by resource, with the cores that each takes
        self.loads: dict[int, list[Any]] = {}
        self.known_at: dict[tuple[int, tuple[int, ...]], Any] = {}
        self.makespan = self._time("makespan")
        self.begins = [self._time(f"begin{k}") for k in range(len(instance.options))]
        self.ends = [self._time(f"end{k}") for k in range(len(instance.options))]
        self.taken = [self._options(k) for k in range(len(instance.options))]
        self.moves: dict[MoveKey, Any] = {}
        for work, needs in enumerate(instance.needs):
            for k in needs:
                self.model.add(self.begins[work] >= self.ends[k])
        links = {name: len(instance.cores) + k for k, name in enumerate(instance.links)}
        for number, haul in enumerate(instance.hauls):
            self._haul(number, haul, links)
        for resource in sorted(self.intervals):
            self._resource(resource)
        self.model.minimize(self.makespan)

    def _time(self, name: str) -> Any:
        return self.model.new_int_var(0, self.horizon, name)

    def _units(self, time_s: float) -> int:
        return int(time_s * (1 - ROUNDING) / self.unit_s)

    def _options(self, work: int) -> list[Any]:
        """Literals of the options of a work, with their intervals."""
        options = self.instance.options[work]
        taken = [self.model.new_bool_var(f"take{work}.{k}") for k in range(len(options))]
        self.model.add_exactly_one(taken)
        self.model.add(self.makespan >= self.ends[work])
        for literal, option in zip(taken, options, strict=True):
            if option.time_s == math.inf:
                self.model.add(literal == 0)
                continue
            units = self._units(option.time_s)
            interval = self.model.new_optional_interval_var(
                self.begins[work], units, self.ends[work], literal, f"work{work}"
            )
            cores = 1 if option.per_core else self.instance.cores[option.device]
            if units:
                self.intervals.setdefault(option.device, []).append((interval, cores))
                self.loads.setdefault(option.device, []).append(units * cores * literal)
        return taken

    def _at(self, work: int, places: tuple[str, ...], place: str) -> Any:
        """Literal of a work's being at a place; ``None`` if it never is."""
        options = tuple(k for k, name in enumerate(places) if name == place)
        if not options:
            return None
        if (work, options) not in self.known_at:
            literal = self.taken[work][options[0]]
            if len(options) > 1:
                literal = self.model.new_bool_var(f"at{work}.{place}")
                self.model.add(sum(self.taken[work][k] for k in options) == literal)
            self.known_at[work, options] = literal
        return self.known_at[work, options]

    def _haul(self, number: int, haul: Haul, links: Mapping[str, int]) -> None:
        for origin, to, time_s, taken in haul.costs:
            if haul.producer is None:
                made, ready = [], 0
                if origin not in haul.origins:
                    continue
            else:
                literal = self._at(haul.producer, haul.origins, origin)
                if literal is None:
                    continue
                made, ready = [literal], self.ends[haul.producer]
            readers = [
                (k, there)
                for k, places in zip(haul.consumers, haul.targets, strict=True)
                if (there := self._at(k, places, to)) is not None
            ]
            if time_s == math.inf:
                for _, there in readers:
                    self.model.add_bool_or([literal.negated() for literal in (*made, there)])
                continue
            units = self._units(time_s)
            if not units or not readers:
                continue
            if not taken:
                for k, there in readers:
                    self.model.add(self.begins[k] >= ready + units).only_enforce_if([*made, there])
                continue
            for group in [readers] if haul.shared else [[reader] for reader in readers]:
                key = (number, origin, to, -1 if haul.shared else group[0][0])
                self._move(key, units, [links[name] for name in taken], made, ready, group)

    def _move(
        self, key: MoveKey, units: int, links: list[int], made: list[Any], ready: Any, group: list[Any]
    ) -> None:
        """A move over links on behalf of any of the works in ``group``."""
        name = "move" + ".".join(map(str, key))
        begin, end, present = self._time(name), self._time(name + "end"), self.model.new_bool_var(name + "is")
        interval = self.model.new_optional_interval_var(begin, units, end, present, name + "interval")
        self.model.add(begin >= ready)
        for k, there in group:
            self.model.add_bool_or([present, there.negated(), *(literal.negated() for literal in made)])
            self.model.add(self.begins[k] >= end).only_enforce_if([*made, there])
        for link in links:
            self.intervals.setdefault(link, []).append((interval, 1))
            self.loads.setdefault(link, []).append(units * present)
        self.moves[key] = begin

    def _resource(self, resource: int) -> None:
        """Nothing overlaps on a resource; and what it does in all takes no longer than the makespan."""
        cores = self.instance.cores[resource] if resource < len(self.instance.cores) else 1
        intervals = [interval for interval, _ in self.intervals[resource]]
        needs = [need for _, need in self.intervals[resource]]
        if all(need == cores for need in needs):
            self.model.add_no_overlap(intervals)
        else:
            self.model.add_cumulative(intervals, needs, cores)
        self.model.add(sum(self.loads[resource]) <= cores * self.makespan)

    def solve(self, choices: Sequence[int], begins_s: Sequence[float], limit: float) -> Solved | None:
        """First with linear relaxations, which find bounds; what is left then without, which finds orders."""
        self._hint(choices, [self._units(begin_s) for begin_s in begins_s])
        found, status = self._run(2, limit / 2)
        if status != self.cp.FEASIBLE or found is None:
            return found
        self._hint(found.choices, found.begins)
        self.model.add(self.makespan >= int(found.bound_s / self.unit_s))
        again, _ = self._run(0, limit - found.spent)
        if again is None:
            return found
        return replace(again, bound_s=max(found.bound_s, again.bound_s), spent=found.spent + again.spent)

    def _hint(self, choices: Sequence[int], begins: Sequence[int]) -> None:
        self.model.clear_hints()
        for work, (option, begin) in enumerate(zip(choices, begins, strict=True)):
            self.model.add_hint(self.begins[work], begin)
            for k, literal in enumerate(self.taken[work]):
                self.model.add_hint(literal, k == option)

    def _run(self, linearization: int, limit: float) -> tuple[Solved | None, Any]:
        """What one run of the solver finds, and its status."""
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = limit
        solver.parameters.relative_gap_limit = GAP
        solver.parameters.linearization_level = linearization
        solver.parameters.presolve_inclusion_work_limit = 0  # it loses solutions: google/or-tools#5293
        status = solver.solve(self.model)
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return None, status
        chosen = tuple(
            next(k for k, literal in enumerate(taken) if solver.boolean_value(literal))
            for taken in self.taken
        )
        begins = tuple(solver.value(begin) for begin in self.begins)
        moves = {key: solver.value(begin) for key, begin in self.moves.items()}
        bound_s = max(0.0, solver.best_objective_bound) * self.unit_s * (1 - ROUNDING)
        return Solved(chosen, begins, moves, bound_s, solver.response_proto.deterministic_time), status
