"""Candidates from vendor libraries: matmuls by OpenBLAS or oneDNN, where a person asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from strata.lower.library import LIBRARY_NAMES, library_calls
from strata.planner.cost import library_estimate
from strata.planner.options import PlanOptions
from strata.planner.types import Origin

from .base import Offer, Task
from .replaced import replaced_offers


def library_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """One candidate per library that is asked for and can compute the heavy op of the group."""
    for library in wanted_libraries(options):
        emit = library_calls(task.anchor, library)
        if emit is not None:
            cost = partial(library_estimate, task)
            yield from replaced_offers(task, library, Origin.LIBRARY, [(task.anchor, emit)], cost)


def wanted_libraries(options: PlanOptions) -> list[str]:
    """Libraries that the options name, by themselves or as a preference or pin."""
    return [x for x in LIBRARY_NAMES if x in options.libraries or options.wants(x)]
