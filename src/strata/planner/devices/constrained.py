"""The best plan within limits, where the best of all exceeds them; or what stands in the way."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from strata.core.errors import UnsupportedError, UserError
from strata.planner.select.hull import minimise_product

from .integer import Bound, Form, Program
from .limits import TOLERANCE, Limits, Use, uses
from .objective import Objective
from .relax import Relaxation
from .result import MachinePlan, totals
from .types import StackedGraph
from .weighted import Weighted, where


def within(plan: MachinePlan, limits: Limits) -> MachinePlan:
    """The plan, and at points where it exceeds a limit the best one that does not.

    Raises:
        UserError: there is none: which limit, what is needed at least; a budget of an unknown work.
        UnsupportedError: the makespan under limits; no plan found within the effort; no OR-Tools.
    """
    graph, objective = plan.graph, plan.objective
    limits.check(graph)
    exceeded = [u.exceeded for u in uses(graph, limits, plan.choices, plan.times_s, plan.energies_j)]
    points = np.flatnonzero(np.logical_or.reduce(exceeded)) if exceeded else np.zeros(0, int)
    if not len(points):
        return plan
    if objective.text == "makespan":
        raise UnsupportedError(
            f"plan of {where(graph, int(points[0]))}: the plan with the least makespan exceeds a limit; plan "
            "for time, energy, edp or a sum under limits"
        )
    choices, bounds = plan.choices.copy(), plan.bounds.copy()
    for point in points.tolist():
        search = LimitedSearch(graph.at(np.array([point]), terms=False), limits)
        choices[:, point], bounds[point] = search.best(objective, float(plan.values[point]))
    times_s, energies_j = totals(graph, choices)
    values = objective.value(times_s, energies_j)
    return MachinePlan(graph, objective, choices, times_s, energies_j, values, np.minimum(bounds, values))


class LimitedSearch:
    """Searches one point, under limits. A :class:`~strata.planner.select.hull.Solver` too."""

    def __init__(self, graph: StackedGraph, limits: Limits) -> None:
        self.graph, self.limits = graph, limits
        self.program = Program(graph, 0, limits)
        self.weighted = Weighted(graph)
        self.proven = True

    def best(self, objective: Objective, least: float) -> tuple[np.ndarray, float]:
        """Choices i16 ``[W]`` and a bound of the objective, which without limits is at least ``least``."""
        if objective.text == "edp":
            choices = minimise_product(self, 1)[:, 0]
            time_s, energy_j = totals(self.graph, choices[:, None])
            return choices, float(time_s[0] * energy_j[0]) if self.proven else least
        choices, bound = self._sum(objective.per_second, objective.per_joule)
        return choices, max(bound, least)

    def __call__(
        self, at: np.ndarray, x_weight: np.ndarray, y_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choices within the limits ``[W, T]``, their time and energy ``[T]``, for weights ``[T]``."""
        found = [self._sum(float(a), float(b)) for a, b in zip(x_weight, y_weight, strict=True)]
        choices = np.stack([c for c, _ in found], axis=1)
        time_s, energy_j = totals(self.graph.at(np.zeros(len(at), int)), choices)
        values = x_weight * time_s + y_weight * energy_j
        self.proven &= all(v <= bound * (1 + 1e-6) for v, (_, bound) in zip(values, found, strict=True))
        return choices, time_s, energy_j

    def _sum(self, per_second: float, per_joule: float) -> tuple[np.ndarray, float]:
        relaxation = Relaxation(self.weighted, self.limits, per_second, per_joule)
        hint, bound = relaxation.hint, relaxation.bound
        if relaxation.inside is not None and relaxation.inside[0] <= bound * (1 + TOLERANCE):
            return relaxation.inside[1], bound
        objective = self.program.time.plus(self.program.energy, per_joule, per_second)
        found = self.program.minimise(objective, self.program.bounds, bound, hint)
        if found.choices is None:
            self._refuse()
        return found.choices, max(bound, found.bound)

    # --- nothing is feasible -----------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        """Say which limit cannot be met, and what it would have to be.

        Raises:
            UserError: always.
        """
        bounds = self.program.bounds
        alone = [(b, self._least(b, ())) for b in bounds]
        impossible = [f"{_amount(b, least)} is needed at least" for b, least in alone if _is_above(least, b)]
        if not impossible:
            rest = [(b, self._least(b, [other for other in bounds if other is not b])) for b in bounds]
            impossible = [
                f"{_amount(b, least)} is needed at least if the other limits are kept"
                for b, least in rest
                if least is not None
            ]
        raise UserError(
            f"plan of {where(self.graph, 0)}: no plan is within the limits: {'; '.join(impossible)}; loosen "
            "one of them, or allow more devices"
        )

    def _least(self, bound: Bound, kept: list[Bound] | tuple[Bound, ...]) -> float | None:
        """The least use of one limit under others; ``None`` if they cannot be met either."""
        if bound.name == "power":
            return self._least_power(bound, kept)
        found = self.program.minimise(bound.form, kept, bound.limit)
        return None if found.choices is None else self._used(bound, found.choices)

    def _least_power(self, bound: Bound, kept: list[Bound] | tuple[Bound, ...]) -> float | None:
        """The least ratio of energy to time (Dinkelbach, *On nonlinear fractional programming*, 1967)."""
        form, power_w = Form().plus(self.program.time, -1.0), np.inf  # the slowest one to begin with
        while True:
            found = self.program.minimise(form, kept, 0.0)
            if found.choices is None:
                return None
            better = self._used(bound, found.choices)
            if better >= power_w * (1 - 1e-9) or better == np.inf:
                return min(better, power_w)
            power_w = better
            form = self.program.energy.plus(self.program.time, -power_w)

    def _used(self, bound: Bound, choices: np.ndarray) -> float:
        times_s, energies_j = totals(self.graph, choices[:, None])
        found: dict[str, Use] = {
            use.name: use for use in uses(self.graph, self.limits, choices[:, None], times_s, energies_j)
        }
        return float(found[bound.name].used[0])


def _is_above(least: float | None, bound: Bound) -> bool:
    return least is not None and least > bound.limit * (1 + 1e-7)


def _amount(bound: Bound, least: float | None) -> str:
    return f"{bound.name}: got a limit of {bound.limit:.6g} {bound.unit}; {least:.6g} {bound.unit}"
