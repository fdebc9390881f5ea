"""Schedule rules, one file per op family."""

from __future__ import annotations

from collections.abc import Sequence

from strata.loop.nodes import Func
from strata.target import Target

from . import matmul, rows  # noqa: F401  (fill the table)
from .base import RULES, Proposal, Rule

ORDER = ("matmul", "rows")


def propose(func: Func, target: Target) -> Sequence[Proposal]:
    """Schedules for ``func`` from every rule that claims it, in order; ``rows`` claims everything."""
    for name in ORDER:
        proposals = RULES[name](func, target)
        if proposals:
            return proposals
    return ()


__all__ = ["RULES", "Proposal", "Rule", "propose"]
