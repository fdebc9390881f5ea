"""Candidates that add products of floats up block by block, for cores that wait for their caches.

They make f32 of weights in 16 bits once for many rows, and need less of the level-2 cache than a tile of a
whole weight. Both pay where memory answers late.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.dims import bounds
from strata.core.dtypes import bf16, f32
from strata.lower import has_blocks, lower_group
from strata.planner.options import PlanOptions
from strata.planner.types import Origin
from strata.schedule.rules.blocked import ROWS
from strata.schedule.rules.matmul import FAR_BYTES, column_tile

from .base import Offer, Task
from .rules import proposed

BLOCK = 64  # numbers of k: 16 KiB of a tile of 64 outputs
MIN_ROWS = 8 * ROWS  # fewer are not worth staging activations


def blocked_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """At most one."""
    if task.anchor.op != "matmul" or not has_blocks(task.anchor, BLOCK) or not _pays(task):
        return ()
    lowered = lower_group("naive", task.body, task.layouts, block=BLOCK)
    return proposed(task, lowered.func, Origin.BLOCKED, tiles=True)


def _pays(task: Task) -> bool:
    """Whether the weight has to be widened, or a tile of it does not fit well into the level-2 cache."""
    weight, target = task.anchor.inputs[1].tensor, task.target
    if target.fetch_ahead_bytes < FAR_BYTES or bounds(task.rows)[1] < MIN_ROWS:
        return False
    if weight.dtype is bf16:
        return not target.multiplies_bf16_pairs
    k = bounds(weight.shape[1])[1]
    return weight.dtype is not f32 or 2 * column_tile(target) * k * f32.itemsize_bytes > target.l2_bytes
