"""A whole sweep: what is left to plan, by whom, and where the rows go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from strata.core.errors import UserError

from .sweep import Key, Row, Sweep, chunks_of
from .table import Columns, Table, columns_of
from .workers import Workers

MAX_ROWS = 10_000_000
WRITING_SHARE = 0.05  # of the time, at most: a large file is not written anew after every chunk
Progress = Callable[[int, int, str], None]  # done, total, what


class Output:
    """Rows in a file, with those that were there before.

    A row is kept if a row with its key is asked for and decided by the same things (:attr:`Row.digest`); rows
    of other points, lengths, objectives, models or machines stay too. Rows of what is called the same and is
    another one now are refused.

    Args:
        sweep: What the rows are for.
        path: File, ``.csv`` or ``.parquet``; ``None`` = none, rows are kept in memory only.

    Raises:
        UserError: the file cannot be read or written, or its rows cannot be mixed with those of the sweep.
    """

    def __init__(self, sweep: Sweep, path: Path | None) -> None:
        self.sweep = sweep
        self.rows: dict[Key, Row] = {}
        self._table = None if path is None else Table(path)
        self._columns: Columns = columns_of(sweep)
        self._written_s, self._due_s = 0.0, 0.0
        if self._table is not None:
            found, self._columns = self._table.read(self._columns)
            self._refuse_others(self._table.path, found)
            self.rows = {row.key: row for row in found}
            self.write()  # a place where nothing can be written is found out now

    def _refuse_others(self, path: Path, found: list[Row]) -> None:
        digests = {
            (workload.name, grid.machine.name): self.sweep.digest(k, m)
            for k, workload in enumerate(self.sweep.workloads)
            for m, grid in enumerate(self.sweep.grids)
        }
        for row in found:
            if digests.get((row.model, row.machine), row.digest) != row.digest:
                raise UserError(
                    f"{path}: its rows of {row.model} on {row.machine} are of another model or machine so "
                    "named, other rules or another version of Strata; choose another file, or remove it"
                )

    def add(self, rows: list[Row]) -> None:
        """Take rows; write the file, if it is time."""
        self.rows |= {row.key: row for row in rows}
        if time.monotonic() >= self._due_s:
            self.write()

    def write(self) -> None:
        """Write all rows: first those of other sweeps, then those of this one in its order."""
        if self._table is None:
            return
        begin = time.monotonic()
        self._table.write(self.ordered(with_others=True), self._columns)
        end = time.monotonic()
        self._due_s = end + (end - begin) / WRITING_SHARE

    def ordered(self, *, with_others: bool = False) -> list[Row]:
        """The rows of the sweep that are there, in its order."""
        keys = [key for key in self.sweep.row_keys() if key in self.rows]
        rows = [self.rows[key] for key in keys]
        if not with_others:
            return rows
        own = set(keys)
        return [row for key, row in self.rows.items() if key not in own] + rows


def explore(
    sweep: Sweep, path: Path | None = None, workers: Workers | None = None, progress: Progress | None = None
) -> list[Row]:
    """Plan what of a sweep is not in the file yet; all its rows, in its order.

    Whatever ends it early, rows of finished chunks are in the file, and the same call goes on from there.

    Args:
        sweep: What to plan.
        path: File, see :class:`Output`.
        workers: Who plans.
        progress: Called after every chunk with (rows that are there, rows in all, what).

    Raises:
        UserError: as :class:`Output`, :meth:`Sweep.check` and :meth:`Workers.run`; too many rows.
        DeviceError: workers died.
    """
    if sweep.num_rows > MAX_ROWS:
        raise UserError(
            f"sweep: got {sweep.num_rows:,} plans; expected at most {MAX_ROWS:,}; choose fewer values"
        )
    sweep.check()
    output = Output(sweep, path)
    done = len(output.ordered())
    tell = progress or (lambda *_: None)
    tell(done, sweep.num_rows, "plans")
    chunks = (workers or Workers()).run(sweep, chunks_of(sweep, output.rows))
    try:
        for rows in chunks:
            done += sum(row.key not in output.rows for row in rows)
            output.add(rows)
            tell(done, sweep.num_rows, "plans")
    finally:
        output.write()
    return output.ordered()
