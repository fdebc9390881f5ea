"""What is left: functions that lowering has finished, and anything that no other rule takes."""

from __future__ import annotations

from collections.abc import Sequence

from strata.loop.nodes import Func
from strata.schedule.step import loops_around
from strata.target import Target

from .base import RULES, Draft, Proposal, stage_names


@RULES.register("lowered")
def lowered_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """A function without blocks, such as attention, stays as it is."""
    return None if stage_names(func) else [Draft(func).proposal("cpu.lowered")]


@RULES.register("fallback")
def fallback_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """The outermost loop of every stage on all threads where that is legal. Claims everything."""
    draft = Draft(func)
    for stage in stage_names(func):
        loops = loops_around(draft.func, stage)
        if loops:
            draft.parallel(loops[0].var.name)
    return [draft.proposal("cpu.fallback")]
