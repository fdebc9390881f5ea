"""Candidates that are lowered for a matrix unit: attention of many rows, and products of bf16 matrices.

Attention is written in blocks that are whole tiles of products; tasks of few rows, such as those of single
tokens, are computed in it as they are without such a unit. A product first brings its activations into a form
in which tiles are read fast.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import SymDim
from strata.lower import lower_group, multiplies_pieces
from strata.lower.attention import fewest_tokens
from strata.planner.cost import task_model
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.runtime.records import DimRange
from strata.schedule import propose, trace_text

from .base import Offer, Task

ATTENTION = "cpu.attention.matrix"


def matrix_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """At most one: attention for passes in which some task has enough rows, products for any."""
    if not task.target.has_matrix_bf16:
        return
    if task.anchor.op == "matmul" and multiplies_pieces(task.anchor):
        yield from _offers(task)
    if task.anchor.op == "paged_attention":
        fewest, rows = fewest_tokens(task.anchor), task.rows
        if fewest is not None and isinstance(rows, SymDim) and rows.hi >= fewest:
            when = (DimRange(rows.name, max(rows.lo, fewest), rows.hi),)
            yield from _offers(task, ATTENTION, when)


def _offers(task: Task, name: str = "", when: tuple[DimRange, ...] = ()) -> Iterable[Offer]:
    lowered = lower_group("naive", task.body, task.layouts, has_matrix_unit=True)
    for proposal in propose(lowered.func, task.target):
        if name or proposal.rows:
            model = task_model(task, proposal.func, proposal.rows, proposal.dot)
            trace = trace_text(proposal.trace)
            yield Offer(name or proposal.name, proposal.func, trace, Origin.MATRIX, model, when)
