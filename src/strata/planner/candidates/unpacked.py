"""Candidates that make bytes of a weight's codes of 4 bits once for many rows, and multiply these.

They are for cores that unpack on the pipes of their dot products, as Intel's do in 512 bits: a tile of six
rows has 48 instructions that unpack beside 192 dot products. Others unpack on pipes that are free. Targets
are told apart by their memory: that of the first kind answers late.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import bounds
from strata.core.dtypes import i8, u4
from strata.lower import lower_group
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.schedule.rules.matmul import FAR_BYTES

from .base import Offer, Task
from .blocked import MIN_ROWS
from .rules import proposed


def unpacked_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """At most one, for products with weights of 4 bits where there is no matrix unit."""
    anchor, target = task.anchor, task.target
    if anchor.op != "quantized_matmul" or anchor.inputs[1].tensor.dtype is not u4:
        return ()
    if target.fetch_ahead_bytes < FAR_BYTES or target.has_matrix_bf16 or bounds(task.rows)[1] < MIN_ROWS:
        return ()
    if anchor.attrs["activations"] is not i8:
        return ()
    lowered = lower_group("naive", task.body, task.layouts, unpacks=True)
    return proposed(task, lowered.func, Origin.UNPACKED, tiles=True)
