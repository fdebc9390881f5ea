"""From a stacked graph to a plan: the best one, exactly, at every point."""

from __future__ import annotations

import numpy as np

from strata.core.errors import UserError
from strata.planner.select.eliminate import minimise

from .encode import encode
from .objective import Objective
from .result import MachinePlan, totals
from .types import StackedGraph


def solve(graph: StackedGraph, objective: Objective) -> MachinePlan:
    """The plan with the least objective at each point, and the proof: ``bounds``.

    Raises:
        UserError: no plan takes finite time and energy.
        UnsupportedError: the graph is so strongly coupled that no exact plan is within reach.
    """
    problem = encode(graph).problem(objective.per_second, objective.per_joule)
    selection = minimise(problem)
    _refuse_endless(graph, selection.cost)
    return _plan(graph, objective, selection.choices[: len(graph.stacks)])


def _plan(graph: StackedGraph, objective: Objective, choices: np.ndarray) -> MachinePlan:
    """The plan of choices that are proven best: its bound is its own value, free of the solver's rounding."""
    times_s, energies_j = totals(graph, choices)
    values = objective.value(times_s, energies_j)
    return MachinePlan(graph, objective, choices, times_s, energies_j, values, values)


def _refuse_endless(graph: StackedGraph, cost: np.ndarray) -> None:
    if (endless := np.isinf(cost)).any():
        point = int(endless.argmax())
        where = ", ".join(f"{name}={values[point]}" for name, values in graph.points.items())
        raise UserError(
            f"plan of {graph.workload.name} on {graph.machine.name}: {where or 'the only point'}: every "
            "choice takes or draws inf; expected one that is finite; allow another device, or give it a finite "
            "cost"
        )
