"""Candidates from the tuning database: the fastest traces that were found for the same task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

from strata.core.errors import LegalityError, UserError
from strata.planner.cost import loop_estimate
from strata.planner.options import PlanOptions, database_state, default_path
from strata.planner.tuning.database import Database
from strata.planner.types import Origin
from strata.schedule import apply_trace, finalize, parse_trace

from .base import Offer, Task


def tuned_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """The best recorded trace for each of the measured sizes; one that no longer applies is skipped."""
    for trace in dict.fromkeys(r.trace for r in open_database(options).best(task.key)):
        try:
            func = finalize(apply_trace(task.lowered.func, parse_trace(trace)))
        except (LegalityError, UserError):
            continue  # recorded by another version of Strata
        name = f"tuned.{hashlib.sha256(trace.encode()).hexdigest()[:6]}"
        yield Offer(name, func, trace, Origin.TUNED, partial(loop_estimate, task, func))


def open_database(options: PlanOptions) -> Database:
    """The tuning database that the options name; an absent file is an empty one."""
    path = options.database or default_path()
    return _read(path, *database_state(path))


@cache
def _read(path: Path, size_bytes: int, mtime_ns: int) -> Database:
    return Database(path)
