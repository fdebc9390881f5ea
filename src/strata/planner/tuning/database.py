"""The tuning database: one file of measured traces, a JSON object per line.

A line is one :class:`Record`: a trace of a task, the sizes at which it was measured, and its time or what
went wrong. Lines are only ever appended, each with one ``write`` under a lock, so several processes may add
to one file, and what was interrupted goes on where it stopped. A line that does not parse (torn by a full
disk, edited by hand) is skipped with a warning that names it; nothing else is lost.

A *task key* is ``planner.candidates.base.Task.key``: a digest of the naive function and the CPU's instruction
sets.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.core.errors import StrataError, UserError
from strata.planner.options import default_path
from strata.schedule import parse_trace

_log = logging.getLogger("strata.tuning")

Sizes = tuple[tuple[str, int], ...]


@cache
def tool_versions() -> dict[str, str]:
    """Versions of what makes machine code, for records."""
    from strata.codegen.compile import CODEGEN_VERSION

    return {
        "strata": version("strata-llm"),
        "codegen": str(CODEGEN_VERSION),
        "llvmlite": version("llvmlite"),
    }


def now() -> str:
    """The current time, UTC, as records store it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Record:
    """One trace of a task, measured at given sizes.

    Attributes:
        task_key: Which task.
        trace: Text of the schedule steps.
        sizes: Value of every symbolic dim of the task's function, sorted by name.
        time_s: Median seconds of one launch; ``None`` if there is an ``error``.
        samples: Timed samples behind the median.
        spread_s: Seconds between the quartiles of the samples.
        threads: Threads that the kernel ran on.
        error: Why it has no time (illegal, wrong result, crash, time-out); empty if it has one.
        task: The task in words.
        features: Instruction sets of the CPU that measured it.
        when: UTC time, ISO 8601.
        versions: Of the tools that made the code.
    """

    task_key: str
    trace: str
    sizes: Sizes
    time_s: float | None
    samples: int = 0
    spread_s: float = 0.0
    threads: int = 1
    error: str = ""
    task: str = ""
    features: tuple[str, ...] = ()
    when: str = field(default_factory=now)
    versions: Mapping[str, str] = field(default_factory=tool_versions)

    @property
    def line(self) -> str:
        """The record as a line of the file; :func:`parse_record` reads it back."""
        data = asdict(self) | {"sizes": dict(self.sizes), "features": "+".join(self.features)}
        return json.dumps(data, separators=(",", ":"))


_KINDS: dict[str, tuple[type, ...]] = {
    "task_key": (str,),
    "trace": (str,),
    "sizes": (dict,),
    "time_s": (float, int, type(None)),
    "samples": (int,),
    "spread_s": (float, int),
    "threads": (int,),
    "error": (str,),
    "task": (str,),
    "features": (str,),
    "when": (str,),
    "versions": (dict,),
}


def parse_record(line: str) -> Record:
    """Parse :attr:`Record.line`.

    Raises:
        UserError: no JSON object, or a field is missing, unknown or of another type.
    """
    try:
        data: Any = json.loads(line)
    except ValueError:
        raise UserError("it is no JSON object") from None
    if not isinstance(data, dict):
        raise UserError("it is no JSON object")
    for name in (*_KINDS, *data):
        if name not in data or name not in _KINDS:
            what = "an unknown" if name in data else "no"
            raise UserError(f"it has {what} field {name!r}")
        value = data[name]
        if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
            raise UserError(f"its field {name!r} is {value!r}")
    sizes, time_s = data["sizes"], data["time_s"]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in sizes.values()):
        raise UserError(f"its field 'sizes' is {sizes!r}")
    if (time_s is None) == (not data["error"]) or (time_s is not None and not 0 < time_s < float("inf")):
        raise UserError(f"its field 'time_s' is {time_s!r} with error {data['error']!r}")
    features = tuple(filter(None, data["features"].split("+")))
    data |= {"sizes": tuple(sorted(sizes.items())), "features": features}
    return Record(**data)


class Database:
    """The records of one file.

    Args:
        path: The file; made when the first record is added. Default: :func:`default_path`.

    Raises:
        OSError: the file exists but cannot be read.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._records: dict[str, list[Record]] = {}
        self._lines: set[str] = set()
        self.skipped = 0  # lines that are no records
        self._read()

    def _read(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for number, raw in enumerate(content.split(b"\n"), 1):
            line = raw.decode(errors="replace").strip()
            if not line:
                continue
            try:
                record = parse_record(line)
                parse_trace(record.trace)
            except StrataError as error:
                self.skipped += 1
                _log.warning("%s:%d: skipping a corrupt tuning record: %s", self.path, number, error)
            else:
                self._keep(record, line)

    def _keep(self, record: Record, line: str) -> None:
        self._records.setdefault(record.task_key, []).append(record)
        self._lines.add(line)

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def records(self, task_key: str) -> list[Record]:
        """All records of a task, oldest first."""
        return list(self._records.get(task_key, ()))

    def best(self, task_key: str, limit: int = 1) -> list[Record]:
        """The fastest traces of a task.

        Args:
            task_key: The task.
            limit: Traces per sizes.

        Returns:
            For every sizes at which the task was measured, in order, up to ``limit`` records of distinct
            traces, the fastest first. Of several records of one trace at the same sizes the newest counts.
        """
        newest = {(r.sizes, r.trace): r for r in self._records.get(task_key, ())}
        found: dict[Sizes, list[Record]] = {}
        for (sizes, _), record in newest.items():
            if record.time_s is not None:
                found.setdefault(sizes, []).append(record)
        return [
            record
            for sizes in sorted(found)
            for record in sorted(found[sizes], key=lambda r: r.time_s or 0.0)[:limit]
        ]

    def times(self, task_key: str, trace: str) -> list[tuple[Sizes, float]]:
        """(sizes, median seconds) of every measurement of one trace, the newest per sizes, by sizes."""
        newest = {
            r.sizes: r.time_s
            for r in self._records.get(task_key, ())
            if r.trace == trace and r.time_s is not None
        }
        return sorted(newest.items())

    def add(self, *records: Record) -> None:
        """Append records to the file.

        Raises:
            OSError: the file cannot be written.
        """
        lines = [record.line for record in records]
        self._append(lines)
        for record, line in zip(records, lines, strict=True):
            self._keep(record, line)

    def merge(self, other: Database) -> int:
        """Append those records of ``other`` that are not here yet; returns how many.

        Raises:
            OSError: the file cannot be written.
        """
        fresh = [r for key in other._records for r in other._records[key] if r.line not in self._lines]
        if fresh:
            self.add(*fresh)
        return len(fresh)

    def _append(self, lines: Iterable[str]) -> None:
        data = "".join(line + "\n" for line in lines).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = os.fstat(file).st_size
            if end and os.pread(file, 1, end - 1) != b"\n":
                data = b"\n" + data  # the last writer was interrupted: its line stays alone
            os.write(file, data)
        finally:
            os.close(file)  # and releases the lock
