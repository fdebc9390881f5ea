"""Candidates that are lowered for a matrix unit: attention of many rows, and products of bf16 matrices.

Attention is written in blocks that are whole tiles of products; tasks of few rows, such as those of single
tokens, are computed in it as they are without such a unit. A product first brings its activations into a form
in which tiles are read fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from strata.core.dims import SymDim
from strata.lower import lower_group, multiplies_pieces
from strata.lower.attention import fewest_tokens
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.runtime.records import DimRange

from .base import Offer, Task
from .rules import proposed

ATTENTION = "cpu.attention.matrix"


def matrix_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """At most one: attention for passes in which some task has enough rows, products for any."""
    is_product = task.anchor.op == "matmul" and multiplies_pieces(task.anchor)
    when = _attention_sizes(task) if task.anchor.op == "paged_attention" else None
    if not task.target.has_matrix_bf16 or not (is_product or when):
        return
    lowered = lower_group("naive", task.body, task.layouts, has_matrix_unit=True)
    for offer in proposed(task, lowered.func, Origin.MATRIX, tiles=is_product):
        yield offer if when is None else replace(offer, name=ATTENTION, when=when)


def _attention_sizes(task: Task) -> tuple[DimRange, ...]:
    """Numbers of tokens with which a task of attention may have more rows than a tile; () if none."""
    fewest, rows = fewest_tokens(task.anchor), task.rows
    if fewest is None or not isinstance(rows, SymDim) or rows.hi < fewest:
        return ()
    return (DimRange(rows.name, max(rows.lo, fewest), rows.hi),)
