"""From a stacked graph to a plan: the best one, exactly, at every point; and the front of time and energy."""

from __future__ import annotations

import numpy as np

from strata.core.errors import UserError
from strata.planner.select.eliminate import minimise, structure_of
from strata.planner.select.hull import Vertex, lower_hull, minimise_product
from strata.planner.select.sequence import Sequence, sequence

from .encode import Encoding, encode
from .objective import Objective, parse_objective
from .result import MachinePlan, Slot, totals
from .types import StackedGraph

POINTS_AT_ONCE = 16384  # whose costs are weighted in memory at the same time
_TIME = Objective("time", per_second=1.0)


def solve(graph: StackedGraph, objective: Objective) -> MachinePlan:
    """The plan with the least objective at each point, and the proof: ``bounds``.

    Sums and the energy-delay product are exact. For the product see :mod:`strata.planner.select.hull`. The
    makespan is searched for, with a bound, by :mod:`strata.planner.order`.

    Raises:
        UserError: no plan takes finite time and energy.
        UnsupportedError: the graph is so strongly coupled that no exact plan is within reach.
    """
    weighted = Weighted(graph)
    if objective.text == "makespan":
        return _makespan(graph, objective, weighted.sum(_TIME))
    if objective.text == "edp":
        choices = minimise_product(weighted, graph.num_points)
    else:
        choices = weighted.sum(objective)
    return exact_plan(graph, objective, choices)


def exact_plan(graph: StackedGraph, objective: Objective, choices: np.ndarray) -> MachinePlan:
    """The plan of choices that are proven best: its bound is its own value, free of the solver's rounding."""
    times_s, energies_j = totals(graph, choices)
    values = objective.value(times_s, energies_j)
    return MachinePlan(graph, objective, choices, times_s, energies_j, values, values)


def _makespan(graph: StackedGraph, objective: Objective, starts: np.ndarray) -> MachinePlan:
    from strata.planner.order import energy_spent, minimise_makespan

    choices, bounds = np.empty_like(starts), np.empty(graph.num_points)
    orders: list[tuple[Slot, ...]] = []
    for point in range(graph.num_points):
        choices[:, point], order, bounds[point] = minimise_makespan(graph, point, starts[:, point])
        orders.append(order)
    times_s = np.array([max((slot.end_s for slot in order), default=0.0) for order in orders])
    spent = [energy_spent(graph, choices[:, p], order, p)[1] for p, order in enumerate(orders)]
    energies_j = np.array([joules[-1] for joules in spent])
    return MachinePlan(graph, objective, choices, times_s, energies_j, times_s, bounds, tuple(orders))


class Weighted:
    """Minimises weighted sums of time and energy of a graph; what does not depend on weights is kept."""

    def __init__(self, graph: StackedGraph) -> None:
        self.graph = graph
        self.encoding: Encoding = encode(graph)
        self.order: Sequence | None = None

    def sum(self, objective: Objective) -> np.ndarray:
        """Choices i16 ``[W, P]`` with the least sum at all points of the graph."""
        choices = np.empty((len(self.graph.stacks), self.graph.num_points), np.int16)
        for at in _portions(np.arange(self.graph.num_points)):
            choices[:, at] = self._minimise(at, objective.per_second, objective.per_joule)
        return choices

    def __call__(
        self, at: np.ndarray, x_weight: np.ndarray, y_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choices ``[W, T]``, their time and energy ``[T]``, at the points ``at`` with a weight each."""
        choices = np.empty((len(self.graph.stacks), len(at)), np.int16)
        time_s, energy_j = np.empty(len(at)), np.empty(len(at))
        for part in _portions(np.arange(len(at))):
            choices[:, part] = self._minimise(at[part], x_weight[part], y_weight[part])
            time_s[part], energy_j[part] = totals(self.graph.at(at[part], terms=False), choices[:, part])
        return choices, time_s, energy_j

    def _minimise(
        self, at: np.ndarray, per_second: float | np.ndarray, per_joule: float | np.ndarray
    ) -> np.ndarray:
        problem = self.encoding.problem(per_second, per_joule, at)
        if self.order is None:
            self.order = sequence(structure_of(problem)[0])
        selection = minimise(problem, self.order)
        refuse_endless(self.graph, at, selection.cost)
        return selection.choices[: len(self.graph.stacks)]


def _portions(numbers: np.ndarray) -> list[np.ndarray]:
    return np.array_split(numbers, range(POINTS_AT_ONCE, len(numbers), POINTS_AT_ONCE))


def refuse_endless(graph: StackedGraph, at: np.ndarray, cost: np.ndarray) -> None:
    """Raise a UserError that names the first of the points ``at`` whose least cost is ``inf``."""
    if (endless := np.isinf(cost)).any():
        point = int(at[endless.argmax()])
        raise UserError(
            f"plan of {where(graph, point)}: every choice takes or draws inf; expected one that is finite; "
            "allow another device, or give it a finite cost"
        )


def where(graph: StackedGraph, point: int) -> str:
    """A point of a graph in words."""
    dims = "".join(f", {name}={values[point]}" for name, values in graph.points.items())
    return f"{graph.workload.name} on {graph.machine.name}{dims}"


def pareto(graph: StackedGraph, point: int = 0) -> tuple[MachinePlan, ...]:
    """The front of time against energy at one point, ascending in time.

    All vertices of its lower hull, exactly: every plan that a weighted sum can prefer to all others. Each is
    a plan of that one point, whose objective is a sum that it minimises.

    Raises:
        UserError, UnsupportedError: as :func:`solve`.
    """
    here = graph.at(np.array([point]))
    vertices = lower_hull(Weighted(here))
    objectives = [_sum_for(vertices, k) for k in range(len(vertices))]
    return tuple(exact_plan(here, o, v.choices[:, None]) for o, v in zip(objectives, vertices, strict=True))


def _sum_for(vertices: tuple[Vertex, ...], k: int) -> Objective:
    """A sum that the vertex minimises: along the line through its neighbours."""
    if k == 0:
        return _TIME
    if k == len(vertices) - 1:
        return parse_objective("energy")
    before, after = vertices[k - 1], vertices[k + 1]
    joules_per_second = (before.y - after.y) / (after.x - before.x)
    return parse_objective(f"{joules_per_second!r}*time+energy")
