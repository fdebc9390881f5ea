"""From a stacked graph to a plan: the best one, exactly, at every point; and the front of time and energy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from strata.planner.select.hull import Vertex, lower_hull, minimise_product

from .constrained import LimitedSearch, within
from .limits import WITHIN_MEMORY, Limits
from .objective import Objective, parse_objective
from .result import MachinePlan, Slot, totals
from .types import StackedGraph
from .weighted import Weighted

_TIME = Objective("time", per_second=1.0)


def solve(graph: StackedGraph, objective: Objective, limits: Limits = WITHIN_MEMORY) -> MachinePlan:
    """The plan with the least objective at each point, and the proof: ``bounds``.

    Sums and the energy-delay product are exact. For the product see :mod:`strata.planner.select.hull`. The
    makespan is searched for, with a bound, by :mod:`strata.planner.order`. Only where the best of all plans
    exceeds a limit, the best one within the limits is searched for, by integer programming: exact to 1e-8,
    or what is missing is in the gap.

    Args:
        graph: What to choose from.
        objective: What to minimise.
        limits: What a plan may not exceed; by default the capacities of the machine's memories.

    Raises:
        UserError: no plan takes finite time and energy, or none is within the limits.
        UnsupportedError: the graph is so strongly coupled that no exact plan is within reach; the makespan
            within limits that do not hold by themselves; limits that hold not, without OR-Tools.
    """
    weighted = Weighted(graph)
    if objective.text == "makespan":
        plan = _makespan(graph, objective, weighted.sum(_TIME))
    elif objective.text == "edp":
        plan = _exact(graph, objective, minimise_product(weighted, graph.num_points))
    else:
        plan = _exact(graph, objective, weighted.sum(objective))
    return within(plan, limits)


def _exact(graph: StackedGraph, objective: Objective, choices: np.ndarray) -> MachinePlan:
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


def pareto(
    graph: StackedGraph, point: int = 0, *, between: int = 0, limits: Limits = WITHIN_MEMORY
) -> tuple[MachinePlan, ...]:
    """The front of time against energy at one point, ascending in time.

    All vertices of its lower hull, exactly: every plan that a weighted sum can prefer to all others. Each is
    a plan of that one point, whose objective is a sum that it minimises.

    Args:
        graph: What to choose from.
        point: Where.
        between: How many plans to look for between two neighbours, beyond their line: the fastest ones under
            energies that divide the way in equal parts.
        limits: What a plan may not exceed.

    Raises:
        UserError, UnsupportedError: as :func:`solve`.
    """
    here = graph.at(np.array([point]))
    weighted = Weighted(here)
    vertices = lower_hull(weighted)
    ends = [_plan_of(here, vertices, k) for k in range(len(vertices))]
    if any(within(plan, limits) is not plan for plan in ends):
        vertices = lower_hull(LimitedSearch(here, limits))
        ends = [_plan_of(here, vertices, k) for k in range(len(vertices))]
    inner = [
        within(_exact(here, _TIME, weighted.sum(_TIME)), replace(limits, energy_j=float(energy_j)))
        for a, b in itertools.pairwise(vertices)
        for energy_j in np.linspace(a.y, b.y, between + 2)[1:-1]
    ]
    return _front([*ends, *inner])


def _front(plans: list[MachinePlan]) -> tuple[MachinePlan, ...]:
    """Plans that no other one beats in both, ascending in time."""
    kept: list[MachinePlan] = []
    for plan in sorted(plans, key=lambda p: (p.time_s, p.energy_j)):
        if not kept or plan.energy_j < kept[-1].energy_j:
            kept.append(plan)
    return tuple(kept)


def _plan_of(graph: StackedGraph, vertices: tuple[Vertex, ...], k: int) -> MachinePlan:
    """A vertex as a plan; its objective is a sum that it minimises: along the line through its neighbours."""
    if k == 0:
        objective = _TIME
    elif k == len(vertices) - 1:
        objective = parse_objective("energy")
    else:
        before, after = vertices[k - 1], vertices[k + 1]
        joules_per_second = (before.y - after.y) / (after.x - before.x)
        objective = parse_objective(f"{joules_per_second!r}*time+energy")
    return _exact(graph, objective, vertices[k].choices[:, None])
