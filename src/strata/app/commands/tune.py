"""``strata tune``: search for faster schedules of a model's kernels; later compilations use what it finds."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import INTERRUPTED, reported

if TYPE_CHECKING:
    from rich.table import Table

    from strata.planner.tuning.tasks import TuningTask
    from strata.planner.tuning.tuner import TaskResult, TuneReport
    from strata.planner.tuning.workers import Runner


@reported()
def command(
    model: Annotated[
        str | None, typer.Argument(help="Model folder or hub id; default: the demo model")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Named architecture instead of a model, e.g. tinyllama-1.1b")
    ] = None,
    trials: Annotated[int, typer.Option(help="Schedules to measure, over all tasks")] = 200,
    time: Annotated[float | None, typer.Option(help="Seconds after which no more are begun")] = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Tokens per step to tune for (several times); default: 1 and 128")
    ] = None,
    op: Annotated[str, typer.Option(help="Only tasks whose name contains this, e.g. matmul")] = "",
    format: Annotated[
        str | None, typer.Option(help="Weights: f32, bf16, f16, int8, int4, mixed, ...; default: as stored")
    ] = None,
    pipeline: Annotated[
        str, typer.Option(help="Graph passes, by name or like 'canonicalize,fuse{max_ops=8}'")
    ] = "",
    threads: Annotated[int | None, typer.Option(help="Threads; default: all cores")] = None,
    database: Annotated[
        Path | None, typer.Option(help="File of records; default: tuning.jsonl in the cache folder")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Add the records of this file first (several times)")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start without the rules' schedules and without records")
    ] = False,
    ray: Annotated[str, typer.Option(help="Measure on the nodes of the Ray cluster at this address")] = "",
    seed: Annotated[int, typer.Option(help="Of the random choices")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Search for faster schedules of a model's kernels.

    What is found goes into a database that every later compilation uses. The search goes on where it stopped
    when the command is given again; Ctrl-C ends it, and nothing that was measured is lost.
    """
    from strata.planner.tuning.database import Database
    from strata.planner.tuning.tuner import TuneOptions, tune

    if sys.modules.get("torch", sys) is None:
        del sys.modules["torch"]  # `main` keeps tvm-ffi from importing it; SciPy would trip over the None
    _check(trials, time, threads)
    records = Database(database)
    for path in merge or ():
        path.stat()  # a file that is not there is a mistake, not an empty one
        added = records.merge(Database(path))
        sys.stderr.write(f"{path}: {added} new records\n")
    tasks = _tasks(model, shape, size, op, format, pipeline, threads)
    options = TuneOptions(trials, time, from_scratch=from_scratch, seed=seed)
    runner = _runner(ray)
    try:
        with _Live(sys.stderr.isatty(), trials) as live:
            report = tune(tasks, records, runner, options, live.show)
    finally:
        runner.close()
    if as_json:
        sys.stdout.write(json.dumps(_figures(report, records.path), indent=2) + "\n")
    else:
        _print(report, records.path)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def _check(trials: int, time: float | None, threads: int | None) -> None:
    from strata.core.errors import UserError

    if trials < 0:
        raise UserError(f"--trials: got {trials}; expected at least 0")
    if time is not None and not time > 0:
        raise UserError(f"--time: got {time:g}; expected seconds above 0")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: got {threads}; expected at least 1")


def _tasks(
    model: str | None,
    shape: str | None,
    sizes: list[int] | None,
    op: str,
    format: str | None,
    pipeline: str,
    threads: int | None,
) -> list[TuningTask]:
    """Tasks of a model.

    Raises:
        UserError: the model cannot be read, a size is out of range, or no task has that name.
    """
    from strata.app.inspect import define_model
    from strata.app.session import pipeline_text
    from strata.compiler.api import Options
    from strata.compiler.driver import trace
    from strata.core.errors import UserError
    from strata.planner.tuning.tasks import ModelPass, model_tasks

    options = Options(format, pipeline=pipeline_text(pipeline))
    definition = define_model(model, shape, options)
    traced = trace(definition.module, None, definition.cache_record, definition.config)
    lowered = traced.lower(options.pipeline)
    passes = [ModelPass("decode" if n == 1 else "prefill", n) for n in dict.fromkeys(sizes or ())]
    tasks = model_tasks(lowered.module, traced.target, passes, threads)
    found = [t for t in tasks if op in t.label]
    if not found:
        names = ", ".join(sorted({t.task.anchor.op for t in tasks}))
        raise UserError(f"--op: no task matches {op!r}; ops: {names}")
    return found


def _runner(address: str) -> Runner:
    from strata.planner.tuning.remote import RayWorkers
    from strata.planner.tuning.workers import LocalWorkers

    return RayWorkers(address) if address else LocalWorkers()


class _Live:
    """The table of the best times so far, on a terminal's stderr; nothing elsewhere."""

    def __init__(self, is_shown: bool, trials: int) -> None:
        self._trials = trials
        self._live: Any = None
        if is_shown:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> _Live:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, report: TuneReport) -> None:
        """Draw the state of the search."""
        if self._live is not None:
            title = f"{report.trials} of {self._trials} trials · {report.seconds:.0f} s"
            self._live.update(_table(report.results, title))


def _table(results: tuple[TaskResult, ...], title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    for column in ("task", "share", "untuned", "tuned", "gain", "trials", "failed"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=column != "task")
    for r in results:
        name = f"{r.task} ({r.error})" if r.error else r.task
        times = (_time(r.untuned_s), _time(r.tuned_s), f"{r.gain:.2f}x")
        table.add_row(escape(name), f"{r.share:.1%}", *times, str(r.trials), str(r.errors))
    return table


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} us"


def _print(report: TuneReport, path: Path) -> None:
    from rich.console import Console

    how = "interrupted after" if report.interrupted else "took"
    title = f"{report.trials} trials {how} {report.seconds:.0f} s"
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(_table(report.results, title))
    sys.stdout.write(f"records: {path}\n")


def _figures(report: TuneReport, path: Path) -> dict[str, Any]:
    """The report as JSON data; times that are not known are null."""

    def known(seconds: float) -> float | None:
        return seconds if math.isfinite(seconds) else None

    return {
        "database": str(path),
        "trials": report.trials,
        "seconds": report.seconds,
        "interrupted": report.interrupted,
        "tasks": [
            {
                "task": r.task,
                "share": r.share,
                "untuned_s": known(r.untuned_s),
                "tuned_s": known(r.tuned_s),
                "gain": r.gain,
                "trials": r.trials,
                "failed": r.errors,
                "error": r.error,
            }
            for r in report.results
        ],
    }
