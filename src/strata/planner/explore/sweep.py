"""The definition of a sweep, its rows, and the plans of a chunk of it.

::

    Sweep ::= models x machines, each with values of its parameters, x lengths x objectives, under rules
    Point ::= one setting of a machine's parameters: a number, 0 <= k < grid.num_points
    Chunk ::= points of one model and machine, with the lengths that are wanted at each
    Row   ::= one plan

All lengths of all points of a chunk whose graphs have the same structure are planned at once, as points of
one stacked graph.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import Workload
from strata.planner.devices.build import Outline, Rules, stacked_graph
from strata.planner.devices.join import join, structure_of
from strata.planner.devices.objective import Objective
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.solve import solve
from strata.planner.devices.types import StackedGraph
from strata.planner.profiles.base import PROFILES
from strata.target.hardware import Machine
from strata.target.hardware.costs import text_of_cost
from strata.target.hardware.parameters import Steps, parameter, parameters, with_parameters

from .axes import Axis, values_of

POINTS_AT_ONCE = 32  # of machines, in a chunk
PLANS_AT_ONCE = 4096  # lengths of all of these
Value = float | int | bool | str | None
Key = tuple[str, str, tuple[Value, ...], int | None, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One plan.

    Attributes:
        model: Name of the workload.
        machine: Name of the machine.
        digest: Of all else that decides the plan: the machine's other numbers, the model, the rules.
        parameters: ``(path, value)`` of what varies.
        seq_len: Length; ``None`` if the sizes of the model are fixed.
        objective: What was minimised.
        time_s, energy_j: Of a run; see :class:`~strata.planner.devices.result.MachinePlan`.
        value: The objective.
        bound: No plan has a lower value.
        ops, matmuls: How many the model has.
        devices: ``(name, ops, matmuls)``: how many each device computes; by name.
    """

    model: str
    machine: str
    digest: str
    parameters: tuple[tuple[str, Value], ...]
    seq_len: int | None
    objective: str
    time_s: float
    energy_j: float
    value: float
    bound: float
    ops: int
    matmuls: int
    devices: tuple[tuple[str, int, int], ...]

    @property
    def key(self) -> Key:
        """What tells it from the other rows of a sweep."""
        values = tuple([value for _, value in self.parameters])
        return (self.model, self.machine, values, self.seq_len, self.objective)


@dataclass(frozen=True, slots=True)
class Grid:
    """A machine and the values of its parameters.

    Attributes:
        machine: With the values that it has by itself.
        axes: Per axis the steps to its parameters, and the values of these at each of its settings.
        names: Paths of all parameters, in the order of the axes.
        types: Their types, likewise: ``"int"``, ``"float"``, ``"bool"`` or ``"str"``.
    """

    machine: Machine
    axes: tuple[tuple[tuple[Steps, ...], tuple[tuple[Value, ...], ...]], ...]
    names: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def num_points(self) -> int:
        """Settings of the parameters."""
        return math.prod(len(settings) for _, settings in self.axes)

    def values(self, point: int) -> tuple[Value, ...]:
        """Values of the parameters at a point, in the order of ``names``; the last axis changes first."""
        found: tuple[Value, ...] = ()
        for _, settings in reversed(self.axes):
            point, k = divmod(point, len(settings))
            found = settings[k] + found
        return found

    def machine_at(self, point: int) -> Machine:
        """The machine at a point.

        Raises:
            UserError: no machine has these values.
        """
        if not self.axes:
            return self.machine
        steps = [s for axis, _ in self.axes for s in axis]
        with self.named(point):
            machine = with_parameters(self.machine, dict(zip(steps, self.values(point), strict=True)))
            PROFILES[machine.profile]
        return machine

    def named(self, point: int) -> _Named:
        """Mistakes in this block are told with the values of a point."""
        pairs = zip(self.names, self.values(point), strict=True)
        return _Named(", ".join([self.machine.name, *(f"{path}={value}" for path, value in pairs)]))


class _Named:
    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self.where}: {error}") from error


def grid_of(machine: Machine, axes: Sequence[Axis]) -> Grid:
    """What the axes mean for a machine.

    Raises:
        UserError: a path that it has none of, a path that varies twice, values that do not fit, or a
            combination of values that no machine has.
    """
    found: list[tuple[tuple[Steps, ...], tuple[tuple[Value, ...], ...]]] = []
    names: list[str] = []
    types: list[str] = []
    for axis in axes:
        own = [parameter(machine, path) for path in axis.paths]
        for p in own:
            if p.path in names:
                raise UserError(f"vary: {p.path} varies twice; give all its values at once")
            names.append(p.path)
            types.append(str(p.field.type).removesuffix(" | None"))
        values = [values_of(axis, p) for p in own]
        if len(set(map(len, values))) > 1:
            raise UserError(
                f"vary: {', '.join(axis.paths)}: some values are the same for one and not for all"
            )
        settings: list[tuple[Value, ...]] = list(zip(*values, strict=True))  # type: ignore[arg-type]
        found.append((tuple(p.steps for p in own), tuple(settings)))
    return Grid(machine, tuple(found), tuple(names), tuple(types))


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to plan: each model on each machine, at each of its points, length and objective.

    Attributes:
        workloads: The models, with different names.
        grids: The machines, with different names.
        lengths: Per model the value of its symbolic size; ``(None,)`` if it has none.
        objectives: What to minimise.
        rules: What is forbidden.
        made_with: More that decides the plans and that rows should not be mixed over: versions, user's files.
    """

    workloads: tuple[Workload, ...]
    grids: tuple[Grid, ...]
    lengths: tuple[tuple[int | None, ...], ...]
    objectives: tuple[Objective, ...]
    rules: Rules = field(default_factory=Rules)
    made_with: str = ""

    def __post_init__(self) -> None:
        for what, names in (
            ("models", [w.name for w in self.workloads]),
            ("machines", [g.machine.name for g in self.grids]),
        ):
            if not names:
                raise UserError(f"sweep: got no {what}; expected at least one")
            if twice := [n for n in names if names.count(n) > 1]:
                raise UserError(f"sweep: two of the {what} have the name {twice[0]!r}; give each its own")
        if not self.objectives or not all(self.lengths):
            raise UserError("sweep: got no lengths or no objectives; expected at least one of each")

    @property
    def num_rows(self) -> int:
        """Plans in all."""
        points = sum(grid.num_points for grid in self.grids)
        return points * sum(map(len, self.lengths)) * len(self.objectives)

    def check(self) -> None:
        """Refuse combinations of values that no machine has.

        Raises:
            UserError: the first of them.
        """
        for grid in self.grids:
            for point in range(grid.num_points):
                grid.machine_at(point)
            for workload in self.workloads:
                self.rules.check(workload, grid.machine)

    def digest(self, model: int, machine: int) -> str:
        """Of what decides plans besides what a row says: see :attr:`Row.digest`."""
        workload, grid = self.workloads[model], self.grids[machine]
        given = {p.path: p.value for p in parameters(grid.machine).values() if p.path not in grid.names}
        kinds = [(d.name, type(d).__qualname__) for d in grid.machine.devices]
        rules = (sorted(self.rules.allowed.items()), sorted(self.rules.pinned.items()), self.rules.only)
        model_text = repr((workload.values, workload.works, workload.outputs))
        costs = [text_of_cost(function) for function in grid.machine.costs]
        text = repr((kinds, sorted(given.items()), rules, self.made_with, model_text, *costs))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def row_keys(self) -> Iterator[Key]:
        """Keys of all rows, in their order."""
        for k, workload in enumerate(self.workloads):
            for grid in self.grids:
                for point in range(grid.num_points):
                    values = grid.values(point)
                    for length, objective in itertools.product(self.lengths[k], self.objectives):
                        yield (workload.name, grid.machine.name, values, length, objective.text)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Points of one model and machine that are planned together.

    Attributes:
        model, machine: Their numbers.
        points: Numbers of points of the grid; one with many lengths may occur in several chunks.
        lengths: Those wanted at each point.
        objectives: Numbers of the objectives.
    """

    model: int
    machine: int
    points: tuple[int, ...]
    lengths: tuple[tuple[int | None, ...], ...]
    objectives: tuple[int, ...]


def chunks_of(sweep: Sweep, known: Iterable[Key] = ()) -> Iterator[Chunk]:
    """What is left to plan, in the order of the rows.

    Args:
        sweep: All of it.
        known: Keys of rows that are there. If some of a point's rows at a length are, the others are planned.
    """
    done = frozenset(known)
    for (k, workload), (m, grid) in itertools.product(enumerate(sweep.workloads), enumerate(sweep.grids)):
        wanted: list[tuple[int, tuple[int | None, ...]]] = []
        objectives: tuple[int, ...] = ()
        count = 0
        for point in range(grid.num_points):
            prefix = (workload.name, grid.machine.name, grid.values(point))
            missing = [
                (length, o)
                for length, (o, objective) in itertools.product(sweep.lengths[k], enumerate(sweep.objectives))
                if not done or (*prefix, length, objective.text) not in done
            ]
            if not missing:
                continue
            lengths = tuple(dict.fromkeys([length for length, _ in missing]))
            here = tuple(sorted({o for _, o in missing}))
            for part in _parts(lengths):
                full = len(wanted) == POINTS_AT_ONCE or count + len(part) > PLANS_AT_ONCE
                if wanted and (full or here != objectives):
                    yield _chunk(k, m, wanted, objectives)
                    wanted, count = [], 0
                wanted.append((point, part))
                objectives, count = here, count + len(part)
        if wanted:
            yield _chunk(k, m, wanted, objectives)


def _parts(lengths: tuple[int | None, ...]) -> list[tuple[int | None, ...]]:
    return [lengths[k : k + PLANS_AT_ONCE] for k in range(0, len(lengths), PLANS_AT_ONCE)]


def _chunk(
    model: int, machine: int, wanted: list[tuple[int, tuple[int | None, ...]]], objectives: tuple[int, ...]
) -> Chunk:
    points, lengths = zip(*wanted, strict=True)
    return Chunk(model, machine, points, lengths, objectives)


class Planner:
    """Plans chunks of a sweep; what depends on a model alone is found once."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._outlines: dict[int, Outline] = {}
        self._digests: dict[tuple[int, int], str] = {}

    def rows(self, chunk: Chunk) -> list[Row]:
        """The rows of a chunk, by point, length and objective.

        Raises:
            UserError: a plan cannot be made; tells at which point.
        """
        graphs = [self._graph(chunk, k) for k in range(len(chunk.points))]
        groups: dict[object, list[int]] = {}
        for k, graph in enumerate(graphs):
            groups.setdefault(structure_of(graph), []).append(k)
        found: dict[tuple[int, int], list[Row]] = {}  # by place in the chunk and objective
        for members, o in itertools.product(groups.values(), chunk.objectives):
            for k, rows in self._solved(chunk, o, members, graphs):
                found[k, o] = rows
        return [
            row
            for k in range(len(chunk.points))
            for rows in zip(*(found[k, o] for o in chunk.objectives), strict=True)
            for row in rows
        ]

    def _graph(self, chunk: Chunk, k: int) -> StackedGraph:
        workload, grid = self.sweep.workloads[chunk.model], self.sweep.grids[chunk.machine]
        if chunk.model not in self._outlines:
            self._outlines[chunk.model] = Outline(workload)
        machine, lengths = grid.machine_at(chunk.points[k]), chunk.lengths[k]
        points = {d.name: np.array(lengths, np.int64) for d in workload.dims}
        with grid.named(chunk.points[k]):
            return stacked_graph(workload, machine, points, self.sweep.rules, self._outlines[chunk.model])

    def _solved(
        self, chunk: Chunk, o: int, members: Sequence[int], graphs: Sequence[StackedGraph]
    ) -> Iterator[tuple[int, list[Row]]]:
        """Rows of the ``members`` of a chunk, whose graphs have equal structures."""
        objective, grid = self.sweep.objectives[o], self.sweep.grids[chunk.machine]
        plan, at = None, 0
        if objective.text != "makespan":  # which depends on the machine, not on costs alone
            try:
                plan = solve(join([graphs[k] for k in members]), objective)
            except UserError:
                plan = None  # one by one, to tell at which point it is
        for k in members:
            if plan is not None:
                yield k, self._rows(chunk, k, plan, at)
                at += graphs[k].num_points
                continue
            with grid.named(chunk.points[k]):
                alone = solve(graphs[k], objective)
            yield k, self._rows(chunk, k, alone, 0)

    def _rows(self, chunk: Chunk, k: int, plan: MachinePlan, begin: int) -> list[Row]:
        """The rows of one point, which are those of the plan from ``begin`` on."""
        pair = (chunk.model, chunk.machine)
        if pair not in self._digests:
            self._digests[pair] = self.sweep.digest(*pair)
        workload, grid = self.sweep.workloads[chunk.model], self.sweep.grids[chunk.machine]
        parameters = tuple(zip(grid.names, grid.values(chunk.points[k]), strict=True))
        counts = _counts(plan, begin, begin + len(chunk.lengths[k]))
        num_matmuls = sum(w.contraction is not None for w in workload.works)
        figures = np.stack([plan.times_s, plan.energies_j, plan.values, plan.bounds])
        return [
            Row(
                workload.name,
                grid.machine.name,
                self._digests[pair],
                parameters,
                length,
                plan.objective.text,
                *figures[:, begin + i].tolist(),
                ops=len(workload.works),
                matmuls=num_matmuls,
                devices=tuple([(name, *c[:, i].tolist()) for name, c in sorted(counts.items())]),
            )
            for i, length in enumerate(chunk.lengths[k])
        ]


def _counts(plan: MachinePlan, begin: int, end: int) -> dict[str, np.ndarray]:
    """Ops and matmuls per device at the points ``begin..end``: i64 ``[2, points]``."""
    found = {d.name: np.zeros((2, end - begin), np.int64) for d in plan.graph.machine.devices}
    works = zip(plan.graph.workload.works, plan.graph.stacks, plan.choices[:, begin:end], strict=True)
    for work, stack, chosen in works:
        for k, candidate in enumerate(stack):
            here = chosen == k
            found[candidate.device][0] += here
            if work.contraction is not None:
                found[candidate.device][1] += here
    return found
