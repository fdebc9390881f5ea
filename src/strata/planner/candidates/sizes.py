"""Candidates for single sizes: the group with a symbolic dim set to a number, scheduled for just that."""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import SymDim, bounds
from strata.loop.specialize import specialize
from strata.planner.cost import task_model
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.runtime.records import DimRange
from strata.schedule import propose, trace_text

from .base import Offer, Task


def size_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """What the rules propose for each size that the options name for the dim of the task's rows."""
    rows = task.rows
    if not isinstance(rows, SymDim):
        return
    lo, hi = bounds(rows)
    for size in dict(options.sizes).get(rows.name, ()):
        if not lo <= size <= hi:
            continue
        func = specialize(task.lowered.func, {rows.name: size})
        for proposal in propose(func, task.target):
            model = task_model(task, proposal.func, proposal.rows, proposal.dot)
            name = f"{proposal.name}@{rows.name}={size}"
            when = (DimRange(rows.name, size, size),)
            yield Offer(name, proposal.func, trace_text(proposal.trace), Origin.SIZE, model, when)
