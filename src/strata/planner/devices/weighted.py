"""Minimising weighted sums of time and energy of one stacked graph, again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from strata.core.errors import UserError
from strata.planner.select.eliminate import minimise, structure_of
from strata.planner.select.problem import Problem, Selection
from strata.planner.select.sequence import Sequence, sequence

from .encode import encode
from .objective import Objective
from .result import totals
from .types import StackedGraph

Amounts = Mapping[int, np.ndarray]  # by the number of a work, f64 per candidate

POINTS_AT_ONCE = 16384  # whose costs are weighted in memory at the same time


class Weighted:
    """Minimises weighted sums of time and energy of a graph; what does not depend on weights is kept."""

    def __init__(self, graph: StackedGraph) -> None:
        self.graph = graph
        self.encoding = encode(graph)
        self.order: Sequence | None = None

    def sum(self, objective: Objective) -> np.ndarray:
        """Choices i16 ``[W, P]`` with the least sum at all points of the graph."""
        choices = np.empty((len(self.graph.stacks), self.graph.num_points), np.int16)
        for at in _portions(np.arange(self.graph.num_points)):
            found = self._minimise(at, objective.per_second, objective.per_joule)
            choices[:, at] = found.choices[: len(self.graph.stacks)]
        return choices

    def __call__(
        self,
        at: np.ndarray,
        x_weight: np.ndarray,
        y_weight: np.ndarray,
        extra: tuple[Amounts, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choices with the least weighted sum of time, energy and something else.

        Args:
            at: i64 ``[T]``: at which points.
            x_weight: f64 ``[T]``: weight of time.
            y_weight: f64 ``[T]``: weight of energy.
            extra: Other amounts, and their weight ``[T]``.

        Returns:
            Choices i16 ``[W, T]``, their time and energy ``[T]``.
        """
        return self.with_costs(at, x_weight, y_weight, extra)[:3]

    def with_costs(
        self,
        at: np.ndarray,
        x_weight: np.ndarray,
        y_weight: np.ndarray,
        extra: tuple[Amounts, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same, and a number that no sum is below ``[T]``: the least one, if no weight is negative."""
        choices = np.empty((len(self.graph.stacks), len(at)), np.int16)
        time_s, energy_j, least = np.empty(len(at)), np.empty(len(at)), np.empty(len(at))
        for part in _portions(np.arange(len(at))):
            others = extra and (extra[0], extra[1][part])
            found = self._minimise(at[part], x_weight[part], y_weight[part], others)
            choices[:, part], least[part] = found.choices[: len(self.graph.stacks)], found.cost
            time_s[part], energy_j[part] = totals(self.graph.at(at[part], terms=False), choices[:, part])
        return choices, time_s, energy_j, least

    def _minimise(
        self,
        at: np.ndarray,
        per_second: float | np.ndarray,
        per_joule: float | np.ndarray,
        extra: tuple[Amounts, np.ndarray] | None = None,
    ) -> Selection:
        problem = self.encoding.problem(per_second, per_joule, at)
        if extra:
            return minimise(_with_amounts(problem, *extra))
        if self.order is None:
            self.order = sequence(structure_of(problem)[0])
        selection = minimise(problem, self.order)
        refuse_endless(self.graph, at, selection.cost)
        return selection


def _with_amounts(problem: Problem, amounts: Amounts, weight: np.ndarray) -> Problem:
    """The problem with something else charged; equal arrays stay one object."""
    known: dict[tuple[int, bytes], np.ndarray] = {}
    nodes = list(problem.node_costs)
    for work, row in amounts.items():
        key = (id(nodes[work]), row.tobytes())
        if key not in known:
            known[key] = nodes[work] + row[:, None] * weight
        nodes[work] = known[key]
    return replace(problem, node_costs=tuple(nodes))


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
