"""From a plan to its report: what is not part of the plan itself is computed here."""

from __future__ import annotations

from typing import Any

import numpy as np

from strata.core.errors import UserError
from strata.planner.devices.request import RequestPlan
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.solve import pareto, solve
from strata.planner.order import energy_spent, occupancy, sequential_order
from strata.planner.thresholds import PlanRanges

from .data import Mark, Occupancy, PlanReport, RequestReport, on_one_device, report_of, varied_dim


def build_report(plan: MachinePlan, point: int = 0) -> PlanReport:
    """Everything that the report of ``plan`` at a point shows.

    The execution order is the plan's own, or, where it has none, one op at a time.
    """
    front = tuple((p.time_s, p.energy_j) for p in pareto(plan.graph, point))
    return report_of(plan, point, baselines(plan), marks=marks(plan), front=front, **_over_time(plan, point))


def build_request_report(plan: RequestPlan) -> RequestReport:
    """Everything that the report of a request shows."""
    phases = tuple(build_report(p, p.graph.num_points - 1) for p in plan.plans)
    machine = plan.prefill.graph.machine
    return RequestReport(
        title=plan.prefill.graph.workload.name.removesuffix(" prefill"),
        machine=machine.name,
        about=machine.about,
        objective=plan.objective.text,
        prompt=plan.prompt,
        new_tokens=plan.new_tokens,
        batch=plan.batch,
        time_s=plan.time_s,
        energy_j=plan.energy_j,
        value=plan.value,
        bound=plan.lower_bound,
        gap=plan.gap,
        phases=phases,
        times_s=tuple(float(p.times_s.sum()) for p in plan.plans),
        energies_j=tuple(float(p.energies_j.sum()) for p in plan.plans),
    )


def baselines(plan: MachinePlan) -> list[tuple[str, MachinePlan]]:
    """For each device the plan in which it does all that it can do; none for ``makespan``."""
    found: list[tuple[str, MachinePlan]] = []
    if plan.objective.text == "makespan":
        return found
    for device in plan.graph.machine.devices:
        graph = on_one_device(plan.graph, device.name)
        try:
            found.append((f"all it can on {device.name}", solve(graph, plan.objective)))
        except UserError:  # no finite cost on this device
            continue
    return found


def marks(plan: MachinePlan) -> tuple[Mark, ...]:
    """Where between neighbouring points the plan changes; exact where the points are all lengths."""
    dim, choices = varied_dim(plan.graph), plan.choices
    if plan.graph.num_points == 1:
        return ()
    changed = np.flatnonzero((choices[:, 1:] != choices[:, :-1]).any(axis=0)) + 1
    starts = np.concatenate([[0], changed])
    lengths = plan.graph.points[dim]
    ranges = PlanRanges(
        plan.graph.workload,
        tuple(tuple((c.device, c.name) for c in stack) for stack in plan.graph.stacks),
        dim,
        tuple(int(n) for n in lengths[starts]),
        int(lengths[-1]),
        choices[:, starts].T,
    )
    return tuple(Mark(t.length, "; ".join(str(c) for c in t.changes)) for t in ranges.thresholds())


def _over_time(plan: MachinePlan, point: int) -> dict[str, Any]:
    """Execution order, bytes alive in each memory and energy spent so far."""
    graph, choices = plan.graph, plan.choices[:, point]
    slots = plan.orders[point] if plan.orders else sequential_order(graph, choices, point)
    times, alive = occupancy(graph, choices, slots, point)
    spent_times, spent = energy_spent(graph, choices, slots, point)
    return {
        "slots": tuple(slots),
        "occupancy": tuple(
            Occupancy(name, tuple(times.tolist()), tuple(held.tolist()))
            for name, held in alive.items()
            if held.any()
        ),
        "spent_j": tuple(zip(spent_times.tolist(), spent.tolist(), strict=True)),
    }
