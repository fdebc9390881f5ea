"""Where candidates come from: one file per source. To add one, write a file and name it in ``SOURCES``."""

from __future__ import annotations

from strata.plan.options import PlanOptions

from .base import Offer, Source, Task
from .rules import rule_offers

SOURCES: tuple[Source, ...] = (rule_offers,)


def offers_for(task: Task, options: PlanOptions) -> list[Offer]:
    """All implementations of ``task``; those of the rules come first."""
    return [offer for source in SOURCES for offer in source(task, options)]


def takes_rows(options: PlanOptions) -> bool:
    """Whether some source may offer candidates that read matrices row by row."""
    return bool(options.libraries)


__all__ = ["SOURCES", "Offer", "Source", "Task", "offers_for", "takes_rows"]
