"""Candidates that are lowered for a matrix unit: attention, and products of bf16 matrices.

Attention is written in blocks that are whole tiles of products, for single tokens, too. A product first
brings its activations into a form in which tiles are read fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from strata.lower import lower_group, multiplies_pieces
from strata.lower.attention import is_for_matrix_unit
from strata.planner.options import PlanOptions
from strata.planner.types import Origin

from .base import Offer, Task
from .rules import proposed

ATTENTION = "cpu.attention.matrix"


def matrix_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """At most one: attention, or a product."""
    is_product = task.anchor.op == "matmul" and multiplies_pieces(task.anchor)
    is_attention = task.anchor.op == "paged_attention" and is_for_matrix_unit(task.anchor)
    if not task.target.has_matrix_bf16 or not (is_product or is_attention):
        return
    lowered = lower_group("naive", task.body, task.layouts, has_matrix_unit=True)
    for offer in proposed(task, lowered.func, Origin.MATRIX, tiles=is_product):
        yield replace(offer, name=ATTENTION) if is_attention else offer
