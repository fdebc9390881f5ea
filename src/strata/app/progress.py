"""A progress bar on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int, str], None]


@contextmanager
def progress_bar() -> Iterator[Report | None]:
    """``report(done, total, what)`` for a bar from the first report to the end of the block.

    ``None`` if stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bars: list[Any] = []

    def report(done: int, total: int, what: str) -> None:
        if not bars:
            bars.append(_bar(total))
        bars[0].update(bars[0].task_ids[0], completed=done, total=total, description=what)

    try:
        yield report
    finally:
        for bar in bars:
            bar.stop()


def _bar(total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=total)
    bar.start()
    return bar
