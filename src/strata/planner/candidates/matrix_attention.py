"""Attention of many rows by a matrix unit: another lowering, whose blocks are whole tiles of products.

Tasks of few rows, such as those of single tokens, are computed in it as they are without such a unit.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import SymDim
from strata.lower import lower_group
from strata.lower.attention import fewest_tokens
from strata.planner.cost import task_model
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.runtime.records import DimRange
from strata.schedule import propose, trace_text

from .base import Offer, Task

NAME = "cpu.attention.matrix"


def matrix_attention_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """Attention in tiles, for passes in which some task has enough rows."""
    if task.anchor.op != "paged_attention" or not task.target.has_matrix_bf16:
        return
    fewest, rows = fewest_tokens(task.anchor), task.rows
    if fewest is None or not isinstance(rows, SymDim) or rows.hi < fewest:
        return
    lowered = lower_group("naive", task.body, task.layouts, has_matrix_unit=True)
    (proposal,) = propose(lowered.func, task.target)
    model = task_model(task, proposal.func, proposal.rows, proposal.dot)
    when = (DimRange(rows.name, max(rows.lo, fewest), rows.hi),)
    yield Offer(NAME, proposal.func, trace_text(proposal.trace), Origin.MATRIX, model, when)
