"""From a plan to its report: baselines, thresholds, execution order and Pareto front are computed here."""

from __future__ import annotations

from strata.core.errors import UserError
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.solve import solve

from .data import PlanReport, on_one_device, report_of


def build_report(plan: MachinePlan, point: int = 0) -> PlanReport:
    """Everything that the report of ``plan`` at a point shows."""
    return report_of(plan, point, baselines(plan))


def baselines(plan: MachinePlan) -> list[tuple[str, MachinePlan]]:
    """For each device the plan in which it does all that it can do."""
    found = []
    for device in plan.graph.machine.devices:
        graph = on_one_device(plan.graph, device.name)
        try:
            found.append((f"all it can on {device.name}", solve(graph, plan.objective)))
        except UserError:  # nowhere to run: no finite cost on this device
            continue
    return found
