"""Instruments: what watches a pipeline run. Time it, check it, dump it, print it, or call your own code.

::

    with instruments(Timing() as times):        every pipeline that runs in the block
        strata.compile(...)
    print(times.table())

    transform("default", module, instruments=[Print("fuse"), Call(after=lambda step, old, new: ...)])

For each pipeline: ``start``, then for each pass ``before`` and ``after``, then ``finish``. The knobs
``verify``, ``dump``, ``print_after`` and ``trace`` are instruments too; they come first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.core.errors import StrataError, VerifyError
from strata.core.knobs import Knobs

from .dump import Dumper, dumper_for
from .kind import IRKind
from .passes import PASSES, Pass, Pipeline
from .reproducer import write_reproducer


@dataclass(frozen=True, slots=True)
class Run:
    """The run of a pipeline that an instrument watches.

    Attributes:
        pipeline: What runs.
        kind: Printer, parser and checker of its modules.
        settings: Knobs.
    """

    pipeline: Pipeline[Any]
    kind: IRKind[Any]
    settings: Knobs

    def failure(self, step: Pass[Any], before: Any, what: str) -> VerifyError:
        """An error that names the pass, with a reproducer on disk."""
        message = f"pass {step} (of {self.pipeline.label or self.pipeline}) {what}"
        folder = write_reproducer(step, self.kind.print(before), self.settings)
        # A pass that nobody registered exists only in the user's program, so no command can name it.
        command = f"; run: strata opt {folder / 'before.ir'} -p {str(step)!r}"
        return VerifyError(f"{message}\n  reproducer: {folder}{command if step.name in PASSES else ''}")


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did: wall time of the pass alone, and operations before and after."""

    name: str
    wall_s: float
    ops_before: int
    ops_after: int


class Instrument:
    """Base class; override what you need."""

    def start(self, run: Run, module: Any) -> None:
        """A pipeline begins."""

    def before(self, run: Run, step: Pass[Any], module: Any) -> bool | None:
        """A pass is about to run on ``module``; ``False`` leaves it out."""

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """A pass made ``after`` from ``before`` in ``wall_s`` seconds."""

    def finish(self, run: Run, module: Any) -> None:
        """A pipeline has run; not called when it failed."""


@dataclass
class Timing(Instrument):
    """Wall time and size before and after, per pass; one instrument may watch several runs."""

    records: list[PassRecord] = field(default_factory=list)

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Add a record."""
        count = run.kind.count
        self.records.append(PassRecord(str(step), wall_s, count(before), count(after)))

    def table(self) -> str:
        """The records as text, one line per pass, and their sum."""
        return timing_table(self.records)


def timing_table(records: list[PassRecord] | tuple[PassRecord, ...]) -> str:
    """Records as text: ``pass  time_ms  ops``, one line per pass, then the sum."""
    width = max([len(r.name) for r in records], default=4)
    lines = [f"{'pass':<{width}}  time_ms  ops"]
    lines += [f"{r.name:<{width}}  {r.wall_s * 1e3:7.2f}  {r.ops_before} -> {r.ops_after}" for r in records]
    if len(records) > 1:
        lines.append(f"{'all':<{width}}  {sum(r.wall_s for r in records) * 1e3:7.2f}")
    return "\n".join(lines)


@dataclass
class Verify(Instrument):
    """Checks the IR.

    Attributes:
        level: 1 after a pipeline, 2 before it and after each pass, 3 also that a pass is deterministic and
            that the text of its result parses back to the same.
    """

    level: int = 2
    _last: tuple[Pass[Any], Any] | None = None

    def start(self, run: Run, module: Any) -> None:
        """Check what comes in.

        Raises:
            VerifyError: it breaks a rule of the IR.
        """
        self._last = None
        if self.level >= 2:
            run.kind.check(module)

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Check what a pass made.

        Raises:
            VerifyError: it breaks a rule of the IR; names the pass and the reproducer that was written.
        """
        self._last = step, before
        if self.level >= 2:
            self._check(run, step, before, after)
        if self.level >= 3:
            text = run.kind.print(after)
            if run.kind.print(step.run(before)) != text:
                raise run.failure(step, before, "is not deterministic: a second run gave another text")
            if run.kind.print(run.kind.parse(text)) != text:
                raise run.failure(step, before, "gave IR whose text does not parse back to itself")

    def finish(self, run: Run, module: Any) -> None:
        """Check the result, if not done yet.

        Raises:
            VerifyError: it breaks a rule of the IR; names the last pass.
        """
        if self.level == 1 and self._last is not None:
            self._check(run, *self._last, module)

    def _check(self, run: Run, step: Pass[Any], before: Any, after: Any) -> None:
        try:
            run.kind.check(after)
        except StrataError as error:
            raise run.failure(step, before, f"broke the {run.kind.name} IR: {error}") from error


class Dump(Instrument):
    """Writes the IR before the pipeline and after each pass into numbered files.

    Args:
        where: A directory, or a dumper that others write to as well.
    """

    def __init__(self, where: Path | str | Dumper) -> None:
        self.dumper = where if isinstance(where, Dumper) else dumper_for(Path(where))

    def start(self, run: Run, module: Any) -> None:
        """Write the input."""
        self.dumper.write(f"{run.kind.name}.input", run.kind.print(module))

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Write the result of a pass."""
        self.dumper.write(f"{step.name}.after", run.kind.print(after))


class Print(Instrument):
    """Writes the IR after some passes to standard error.

    Args:
        names: Names of passes; none, or ``"all"``: after every pass.
    """

    def __init__(self, *names: str) -> None:
        self.names = names or ("all",)

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Print the result of a pass."""
        if step.name in self.names or "all" in self.names:
            sys.stderr.write(f"// {run.kind.name} IR after {step}\n{run.kind.print(after).rstrip()}\n")


@dataclass(frozen=True)
class Call(Instrument):
    """Calls functions of yours.

    Attributes:
        on_before: ``(pass, module)``; if it gives ``False``, the pass is left out.
        on_after: ``(pass, module before, module after)``.
    """

    on_before: Callable[[Pass[Any], Any], bool | None] | None = None
    on_after: Callable[[Pass[Any], Any, Any], object] | None = None

    def before(self, run: Run, step: Pass[Any], module: Any) -> bool | None:
        """Call ``on_before``."""
        return self.on_before(step, module) if self.on_before is not None else None

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Call ``on_after``."""
        if self.on_after is not None:
            self.on_after(step, before, after)


_active: ContextVar[tuple[Instrument, ...]] = ContextVar("strata_instruments", default=())


def active_instruments() -> tuple[Instrument, ...]:
    """Those of the ``with instruments(...)`` blocks around, outermost first."""
    return _active.get()


@contextmanager
def instruments(*watchers: Instrument) -> Iterator[tuple[Instrument, ...]]:
    """Let ``watchers`` watch every pipeline that this thread runs in the block; blocks nest."""
    token = _active.set((*_active.get(), *watchers))
    try:
        yield watchers
    finally:
        _active.reset(token)
