"""A Chrome trace: spans with times, one file. Of a compilation (``STRATA_TRACE=file.json``) or of a profile.

The format is the "complete event" of the Trace Event Format, which chrome://tracing and Perfetto open.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True, slots=True)
class Event:
    """A span: what, and when (seconds since the trace began)."""

    name: str
    category: str
    start_s: float
    duration_s: float
    thread: int


@dataclass(slots=True)
class Trace:
    """Collects spans; several threads may add to it. ``write`` stores them as JSON."""

    events: list[Event] = field(default_factory=list)
    start_s: float = field(default_factory=time.perf_counter)

    @contextmanager
    def span(self, name: str, category: str) -> Iterator[None]:
        """Record how long the ``with`` block takes, also when it raises."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            duration = time.perf_counter() - begin
            self.events.append(Event(name, category, begin - self.start_s, duration, threading.get_ident()))

    def to_json(self) -> str:
        """The trace in the Trace Event Format; times in microseconds."""
        events = [
            {
                "name": e.name,
                "cat": e.category,
                "ph": "X",
                "ts": round(e.start_s * 1e6, 3),
                "dur": round(e.duration_s * 1e6, 3),
                "pid": os.getpid(),
                "tid": e.thread,
            }
            for e in self.events
        ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})

    def write(self, path: Path) -> None:
        """Write the JSON to ``path``, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(self.to_json())
            partial.replace(path)
        except OSError as error:
            raise UserError(f"trace: cannot write {path}: {error.strerror}; choose another file") from None
