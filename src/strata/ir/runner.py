"""Runs a pipeline with everything around it: checks, dumps, printing, timing, reproducers of failures.

Knobs say which of these happen: ``verify``, ``dump``, ``print_after``, ``trace``, ``crash_dir``.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from strata.core.errors import StrataError, VerifyError
from strata.core.knobs import Knobs, current
from strata.core.trace import Trace

from .dump import Dumper
from .passes import PASSES, OptionError, Pass, Pipeline

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class IRKind(Generic[M]):
    """What the runner needs to know about an IR.

    Attributes:
        name: ``"graph"`` or ``"loop"``.
        print: Module to text.
        parse: Text to module.
        check: Raises VerifyError if the module breaks a rule of the IR.
        count: Size of a module in operations, for the records.
    """

    name: str
    print: Callable[[M], str]
    parse: Callable[[str], M]
    check: Callable[[M], object]
    count: Callable[[M], int]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did: wall time of the pass alone, and operations before and after."""

    name: str
    wall_s: float
    ops_before: int
    ops_after: int


@dataclass(frozen=True, slots=True)
class Result(Generic[M]):
    """The transformed module, and a record per pass in execution order."""

    module: M
    records: tuple[PassRecord, ...]

    def table(self) -> str:
        """The records as text, one line per pass."""
        width = max([len(r.name) for r in self.records], default=4)
        lines = [f"{'pass':<{width}}  time_ms  ops"]
        for r in self.records:
            lines.append(f"{r.name:<{width}}  {r.wall_s * 1e3:7.2f}  {r.ops_before} -> {r.ops_after}")
        return "\n".join(lines)


def run_pipeline(
    pipeline: Pipeline[M],
    module: M,
    kind: IRKind[M],
    *,
    settings: Knobs | None = None,
    dumper: Dumper | None = None,
    trace: Trace | None = None,
) -> Result[M]:
    """Run ``pipeline`` on ``module`` with the hooks that the knobs ask for.

    Args:
        pipeline: What to run.
        module: What to run it on; unchanged.
        kind: Printer, parser and checker of the module.
        settings: Knobs; default: :func:`strata.core.knobs.current`.
        dumper: Where dumps go; default: a new one for the ``dump`` knob. Several stages may share one.
        trace: Where times go; default: a new one, written to the ``trace`` knob's file at the end.

    Raises:
        VerifyError: a pass failed or broke the IR; names it and the reproducer that was written.
        OptionError: an option of a pass does not fit the module.
        UserError: the dump directory or trace file cannot be used.
    """
    settings = current() if settings is None else settings
    if dumper is None and settings.dump is not None:
        dumper = Dumper(settings.dump)
    own_trace = trace is None
    run = _Run(pipeline, kind, settings, dumper, Trace() if trace is None else trace)
    try:
        return run(module)
    finally:
        if own_trace and settings.trace is not None:
            run.trace.write(settings.trace)


@dataclass(frozen=True, slots=True)
class _Run(Generic[M]):
    pipeline: Pipeline[M]
    kind: IRKind[M]
    settings: Knobs
    dumper: Dumper | None
    trace: Trace

    def __call__(self, module: M) -> Result[M]:
        passes = list(self.pipeline.passes())
        records: list[PassRecord] = []
        if self.dumper is not None:
            self.dumper.write(f"{self.kind.name}.input", self.kind.print(module))
        if self.settings.verify >= 2:
            self.kind.check(module)
        for number, step in enumerate(passes):
            before = module
            start = time.perf_counter()
            with self.trace.span(f"{self.kind.name}: {step}", "pass"):
                module = self._run_pass(step, before)
            wall_s = time.perf_counter() - start
            last = number == len(passes) - 1
            if self.settings.verify >= 2 or (self.settings.verify == 1 and last):
                self._verify(step, before, module)
            records.append(PassRecord(str(step), wall_s, self.kind.count(before), self.kind.count(module)))
            self._show(step, module)
        return Result(module, tuple(records))

    def _run_pass(self, step: Pass[M], before: M) -> M:
        try:
            return step.run(before)
        except OptionError:
            raise
        except StrataError as error:
            # A pass takes valid input only, so even a ShapeError in it is a bug of the pass, not of the user.
            raise self._failure(step, before, f"failed: {error}") from error
        except Exception as error:
            error.add_note(str(self._failure(step, before, "failed")))
            raise

    def _verify(self, step: Pass[M], before: M, after: M) -> None:
        try:
            self.kind.check(after)
        except StrataError as error:
            raise self._failure(step, before, f"broke the {self.kind.name} IR: {error}") from error
        if self.settings.verify < 3:
            return
        text = self.kind.print(after)
        if self.kind.print(step.run(before)) != text:
            raise self._failure(step, before, "is not deterministic: a second run gave another text")
        if self.kind.print(self.kind.parse(text)) != text:
            raise self._failure(step, before, "gave IR whose text does not parse back to itself")

    def _show(self, step: Pass[M], module: M) -> None:
        wanted = step.name in self.settings.print_after or "all" in self.settings.print_after
        if self.dumper is None and not wanted:
            return
        text = self.kind.print(module)
        if self.dumper is not None:
            self.dumper.write(f"{step.name}.after", text)
        if wanted:
            sys.stderr.write(f"// {self.kind.name} IR after {step}\n{text.rstrip()}\n")

    def _failure(self, step: Pass[M], before: M, what: str) -> VerifyError:
        message = f"pass {step} (of {self.pipeline.label or self.pipeline}) {what}"
        folder = write_reproducer(step, self.kind.print(before), self.settings)
        # A pass that nobody registered exists only in the user's program, so no command can name it.
        command = f"; run: python -m strata.passes {folder / 'before.ir'} -p {str(step)!r}"
        return VerifyError(f"{message}\n  reproducer: {folder}{command if step.name in PASSES else ''}")


def write_reproducer(step: Pass[Any], before: str, settings: Knobs) -> Path:
    """Write ``crash-<hash>/{before.ir,pipeline.txt,knobs.txt,env.txt}``; returns the folder.

    The folder is in the ``crash_dir`` knob's directory, or the system's temporary one; the hash is that of
    the IR and the pass, so one failure has one folder.
    """
    digest = hashlib.sha256(f"{step}\n{before}".encode()).hexdigest()[:12]
    parent = settings.crash_dir if settings.crash_dir is not None else Path(tempfile.gettempdir())
    folder = parent / f"crash-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "before.ir").write_text(before)
    (folder / "pipeline.txt").write_text(f"{step}\n")
    (folder / "knobs.txt").write_text("".join(f"{k}={v}\n" for k, v in asdict(settings).items()))
    (folder / "env.txt").write_text(_environment())
    return folder


def _environment() -> str:
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    for package in ("strata-llm", "numpy", "ml_dtypes", "llvmlite"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines) + "\n"
