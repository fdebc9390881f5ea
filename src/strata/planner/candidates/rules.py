"""Candidates from the schedule rules: one per proposed trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from strata.loop.nodes import Func
from strata.planner.cost import task_model
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.schedule import propose, trace_text

from .base import Offer, Task


def rule_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """What the rules propose for the task's naive function."""
    return proposed(task, task.lowered.func, Origin.RULE)


def proposed(task: Task, func: Func, origin: Origin, *, tiles: bool = False) -> Iterator[Offer]:
    """What the rules propose for a naive function of the task.

    Args:
        task: The group.
        func: Its naive function, however it was lowered.
        origin: Of the offers.
        tiles: Only products in tiles of rows.
    """
    for proposal in propose(func, task.target):
        if proposal.rows or not tiles:
            model = task_model(task, proposal.func, proposal.rows, proposal.dot)
            yield Offer(proposal.name, proposal.func, trace_text(proposal.trace), origin, model)
