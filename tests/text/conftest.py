"""Collects ``*.ir`` files as tests: run a pipeline on the text, match what it prints with FileCheck.

::

    // RUN: canonicalize,fuse        the pipeline; the IR must be valid before and after, and mean the same
    // CHECK: matmul(%x, %0)         see https://llvm.org/docs/CommandGuide/FileCheck.html
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import equivalence
import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts

from strata.core.errors import StrataError
from strata.core.knobs import knobs
from strata.graph.text import parse_module, print_module
from strata.passes import transform


class Mismatch(Exception):
    """What FileCheck says, with the text that it saw and the command to see it again."""


class TextTest(pytest.Item):
    """One ``RUN`` line of a file."""

    def __init__(self, *, pipeline: str, **rest: object) -> None:
        super().__init__(**rest)
        self.pipeline = pipeline

    def runtest(self) -> None:
        source = self.path.read_text()
        module = parse_module(source, str(self.path))
        with knobs(verify=3):
            result = transform(self.pipeline, module).module
        text = print_module(result)
        options = Options(match_filename=str(self.path))
        matcher = Matcher(
            options, FInput("output", text), Parser(options, io.StringIO(source), *pattern_for_opts(options))
        )
        matcher.stderr = io.StringIO()
        if matcher.run():
            command = f"python -m strata.passes {self.path} -p '{self.pipeline}'"
            raise Mismatch(f"{matcher.stderr.getvalue()}\noutput:\n{text}\nagain: {command}")
        equivalence.assert_same(module, result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> object:
        if isinstance(excinfo.value, Mismatch | StrataError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: {self.pipeline}"


class TextFile(pytest.File):
    """A ``.ir`` file."""

    def collect(self) -> Iterator[TextTest]:
        runs = [line for line in self.path.read_text().splitlines() if line.startswith("// RUN:")]
        assert runs, f"{self.path} has no RUN line"
        for line in runs:
            pipeline = line.removeprefix("// RUN:").strip()
            yield TextTest.from_parent(self, name=pipeline, pipeline=pipeline)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return TextFile.from_parent(parent, path=file_path) if file_path.suffix == ".ir" else None
