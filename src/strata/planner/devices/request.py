"""A whole request: the prompt in one run, then a run per new token, each with one more token in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strata.planner.select.hull import minimise_product

from .constrained import within
from .limits import WITHIN_MEMORY, Limits
from .objective import Objective
from .result import DeviceLoad, MachinePlan, totals
from .solve import solve
from .types import StackedGraph
from .weighted import Weighted


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """Plans of all runs of a request, one after the other.

    Attributes:
        prompt: Tokens of the prompt p, per sequence.
        new_tokens: Tokens that follow n, per sequence: the model runs once for each, the first time with p
            tokens in the cache, the last time with p + n - 1.
        batch: Sequences.
        prefill: Plan of the run over the prompt.
        decode: Plan of the others, one point each; ``None`` without new tokens.
        lower_bound: No choice of plans has a lower ``value``.
    """

    prompt: int
    new_tokens: int
    batch: int
    prefill: MachinePlan
    decode: MachinePlan | None
    lower_bound: float

    @property
    def plans(self) -> tuple[MachinePlan, ...]:
        """Prefill and, if there is any, decode."""
        return (self.prefill,) if self.decode is None else (self.prefill, self.decode)

    @property
    def objective(self) -> Objective:
        """What was minimised."""
        return self.prefill.objective

    @property
    def time_s(self) -> float:
        """Time of all runs."""
        return float(sum(p.times_s.sum() for p in self.plans))

    @property
    def energy_j(self) -> float:
        """Energy of all runs."""
        return float(sum(p.energies_j.sum() for p in self.plans))

    @property
    def value(self) -> float:
        """The objective of the whole request."""
        return float(self.objective.value(np.array(self.time_s), np.array(self.energy_j)))

    @property
    def gap(self) -> float:
        """How far the plans may be from the best ones, relative to the bound; 0 = proven best."""
        return max(0.0, self.value - self.lower_bound) / self.lower_bound if self.lower_bound > 0 else 0.0

    @property
    def devices(self) -> dict[str, DeviceLoad]:
        """Per device what it computes in all runs: an op counts once per run."""
        sums = {d.name: np.zeros(4) for d in self.prefill.graph.machine.devices}
        for plan in self.plans:
            works = zip(plan.graph.workload.works, plan.graph.stacks, plan.choices, strict=True)
            for work, stack, chosen in works:
                for k, candidate in enumerate(stack):
                    here = chosen == k
                    count, costs = int(here.sum()), candidate.estimates
                    matmuls = count if work.contraction is not None else 0
                    spent = float(costs.time_s[here].sum()), float(costs.energy_j[here].sum())
                    sums[candidate.device] += (count, matmuls, *spent)
        return {n: DeviceLoad(int(s[0]), int(s[1]), float(s[2]), float(s[3])) for n, s in sums.items()}


def solve_request(
    prefill: StackedGraph,
    decode: StackedGraph | None,
    objective: Objective,
    prompt: int,
    batch: int,
    limits: Limits = WITHIN_MEMORY,
) -> RequestPlan:
    """The plans of all runs that together have the least objective.

    Sums and makespans of the runs add up, so that each run is planned alone. Their energy-delay product is
    that of all time and all energy: runs are chosen together, exactly, at a vertex of the hull of their sums.

    Args:
        prefill: The run over the prompt, one point.
        decode: A point per new token.
        objective: What to minimise.
        prompt: Tokens of it per sequence.
        batch: Sequences.
        limits: What each of the runs may not exceed.

    Raises:
        UserError, UnsupportedError: as :func:`~strata.planner.devices.solve.solve`.
    """
    graphs = (prefill,) if decode is None else (prefill, decode)
    plans = [solve(graph, objective, limits) for graph in graphs]
    if objective.text == "edp":
        plans = [within(plan, limits) for plan in _least_product(plans)]
    new_tokens = 0 if decode is None else decode.num_points
    found = RequestPlan(prompt, new_tokens, batch, plans[0], plans[1] if decode is not None else None, 0.0)
    bound = found.value if objective.text == "edp" else float(sum(p.bounds.sum() for p in plans))
    return replace(found, lower_bound=bound)


def _least_product(plans: Sequence[MachinePlan]) -> list[MachinePlan]:
    """Plans of the same runs whose time in all, times energy in all, is least."""
    solvers = [Weighted(p.graph) for p in plans]

    def together(
        at: np.ndarray, x_weight: np.ndarray, y_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All runs as one problem of a single point, with ``T`` pairs of weights."""
        choices, count = [], len(at)
        time_s, energy_j = np.zeros(count), np.zeros(count)
        for solver in solvers:
            points = solver.graph.num_points
            weights = np.repeat(x_weight, points), np.repeat(y_weight, points)
            chosen, times_s, energies_j = solver(np.tile(np.arange(points), count), *weights)
            time_s += times_s.reshape(count, points).sum(axis=1)
            energy_j += energies_j.reshape(count, points).sum(axis=1)
            # [W, T * P] to [W * P, T]
            choices.append(chosen.reshape(-1, count, points).swapaxes(1, 2).reshape(-1, count))
        return np.concatenate(choices), time_s, energy_j

    best, found = minimise_product(together, 1)[:, 0], []
    for plan in plans:
        choices, best = best[: plan.choices.size].reshape(plan.choices.shape), best[plan.choices.size :]
        times_s, energies_j = totals(plan.graph, choices)
        values = plan.objective.value(times_s, energies_j)
        found.append(replace(plan, choices=choices, times_s=times_s, energies_j=energies_j, values=values))
    return found
