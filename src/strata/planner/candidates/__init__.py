"""Where candidates come from: one file per source. To add one, write a file and name it in ``SOURCES``."""

from __future__ import annotations

from strata.planner.options import PlanOptions

from .base import Offer, Source, Task
from .blocked import blocked_offers
from .kernels import kernel_offers, registered
from .libraries import library_offers, wanted_libraries
from .matrix import matrix_offers
from .rounded import rounded_offers
from .rules import rule_offers
from .sizes import size_offers
from .tuned import tuned_offers
from .unpacked import unpacked_offers

SOURCES: tuple[Source, ...] = (
    rule_offers,
    blocked_offers,
    unpacked_offers,
    rounded_offers,
    matrix_offers,
    size_offers,
    tuned_offers,
    library_offers,
    kernel_offers,
)


def offers_for(task: Task, options: PlanOptions) -> list[Offer]:
    """All implementations of ``task``; those of the rules come first. A trace is offered once."""
    offers: list[Offer] = []
    for source in SOURCES:
        known = {(o.trace, o.when) for o in offers}
        offers += [o for o in source(task, options) if not o.trace or (o.trace, o.when) not in known]
    return offers


def takes_rows(options: PlanOptions) -> bool:
    """Whether some source may offer candidates that read matrices row by row."""
    return bool(wanted_libraries(options)) or bool(registered())


__all__ = ["SOURCES", "Offer", "Source", "Task", "offers_for", "takes_rows"]
