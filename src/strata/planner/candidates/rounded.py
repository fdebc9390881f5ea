"""Candidates that multiply bf16 numbers where the graph quantises activations: for matrix units.

Such a unit adds up long products without a scale in between. Groups of a quantised weight are short, so its
codes and scales are better unpacked to bf16, once for all rows. Activations are rounded to bf16 then, which
is closer to what they are than int8 codes. Codes of 8 bits, in longer groups, are multiplied as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import bounds
from strata.core.dtypes import bf16, i8, u4
from strata.graph.nodes import Function, Node, rebuild, rewrite
from strata.loop.matrix import ROWS
from strata.lower import Lowered, lower_group
from strata.planner.options import PlanOptions
from strata.planner.types import Origin

from .base import Offer, Task
from .rules import proposed


def rounded_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """What the rules propose for the group with activations in bf16."""
    lowered = rounded(task)
    return () if lowered is None else proposed(task, lowered.func, Origin.ROUNDED, tiles=True)


def rounded(task: Task) -> Lowered | None:
    """The group with activations in bf16; ``None`` if it is no product with weights of 4 bits, the machine
    has no matrix unit, or there are never as many rows as a tile has: for fewer, unpacking does not pay.
    """
    anchor = task.anchor
    if anchor.op != "quantized_matmul" or not task.target.has_matrix_bf16:
        return None
    if bounds(task.rows)[1] < 2 * ROWS:
        return None
    if anchor.attrs["activations"] is not i8 or anchor.inputs[1].tensor.dtype is not u4:
        return None
    lowered = lower_group("naive", rounded_body(task.body), task.layouts)
    return lowered if lowered.bindings == task.lowered.bindings else None


def rounded_body(body: Function) -> Function:
    """A group in which products with quantised weights round their operands to bf16."""

    def change(node: Node) -> Node:
        is_product = node.op == "quantized_matmul"
        return rebuild(node, node.inputs, activations=bf16) if is_product else node

    return rewrite(body, change)
