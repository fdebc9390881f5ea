"""Candidates from the schedule rules: one per proposed trace."""

from __future__ import annotations

from collections.abc import Iterable

from strata.planner.cost import task_model
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.schedule import propose, trace_text

from .base import Offer, Task


def rule_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """What the rules propose for the task's naive function."""
    for proposal in propose(task.lowered.func, task.target):
        model = task_model(task, proposal.func, proposal.rows, proposal.dot)
        yield Offer(proposal.name, proposal.func, trace_text(proposal.trace), Origin.RULE, model)
