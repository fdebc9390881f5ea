"""Runs a pipeline under instruments: those that the knobs ask for, those of ``with`` blocks, and given ones.

Knobs: ``verify``, ``dump``, ``print_after``, ``trace``, ``crash_dir``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from strata.core.errors import StrataError
from strata.core.knobs import Knobs, current
from strata.core.trace import Trace

from .dump import Dumper
from .instruments import (
    Dump,
    Instrument,
    PassRecord,
    Print,
    Run,
    Timing,
    Verify,
    active_instruments,
    timing_table,
)
from .kind import IRKind
from .passes import OptionError, Pass, Pipeline

M = TypeVar("M")

_traces: dict[Path, Trace] = {}  # a file is one trace of this process, whichever stages add to it


@dataclass(frozen=True, slots=True)
class Result(Generic[M]):
    """The transformed module, and a record per pass in execution order."""

    module: M
    records: tuple[PassRecord, ...]

    def table(self) -> str:
        """The records as text, one line per pass."""
        return timing_table(self.records)


def run_pipeline(
    pipeline: Pipeline[M],
    module: M,
    kind: IRKind[M],
    *,
    settings: Knobs | None = None,
    dumper: Dumper | None = None,
    trace: Trace | None = None,
    instruments: Iterable[Instrument] = (),
) -> Result[M]:
    """Run ``pipeline`` on ``module``.

    Args:
        pipeline: What to run.
        module: What to run it on; unchanged.
        kind: Printer, parser and checker of the module.
        settings: Knobs; default: :func:`strata.core.knobs.current`.
        dumper: Where dumps go; default: the directory of the ``dump`` knob.
        trace: Where times go; default: the file of the ``trace`` knob, which is written at the end.
        instruments: What else watches; after those of the knobs and of ``with instruments(...)`` blocks.

    Raises:
        VerifyError: a pass failed or broke the IR; names it and the reproducer that was written.
        OptionError: an option of a pass does not fit the module.
        UserError: the dump directory or trace file cannot be used.
    """
    settings = current() if settings is None else settings
    spans = trace
    if spans is None and settings.trace is not None:
        spans = _traces.setdefault(settings.trace.absolute(), Trace())
    timing = Timing()
    watchers = (timing, *_of_knobs(settings, dumper), *active_instruments(), *instruments)
    run = Run(pipeline, kind, settings)
    try:
        module = _run(run, module, watchers, spans or Trace())
    finally:
        if trace is None and spans is not None and settings.trace is not None:
            spans.write(settings.trace)
    return Result(module, tuple(timing.records))


def _of_knobs(settings: Knobs, dumper: Dumper | None) -> list[Instrument]:
    chosen: list[Instrument] = [Verify(settings.verify)]
    where = settings.dump if dumper is None else dumper
    if where is not None:
        chosen.append(Dump(where))
    if settings.print_after:
        chosen.append(Print(*settings.print_after))
    return chosen


def _run(run: Run, module: M, watchers: tuple[Instrument, ...], trace: Trace) -> M:
    for watcher in watchers:
        watcher.start(run, module)
    for step in run.pipeline.passes():
        answers = [watcher.before(run, step, module) for watcher in watchers]
        if any(answer is False for answer in answers):
            continue
        before = module
        start = time.perf_counter()
        with trace.span(f"{run.kind.name}: {step}", "pass"):
            module = _run_pass(run, step, before)
        wall_s = time.perf_counter() - start
        for watcher in watchers:
            watcher.after(run, step, before, module, wall_s)
    for watcher in watchers:
        watcher.finish(run, module)
    return module


def _run_pass(run: Run, step: Pass[M], before: M) -> M:
    try:
        return step.run(before)
    except OptionError:
        raise
    except StrataError as error:
        # A pass takes valid input only, so even a ShapeError in it is a bug of the pass, not of the user.
        raise run.failure(step, before, f"failed: {error}") from error
    except Exception as error:
        error.add_note(str(run.failure(step, before, "failed")))
        raise
