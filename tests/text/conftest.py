"""Collects ``*.ir`` files as tests: run a pipeline on the text, match what it prints with FileCheck.

::

    // RUN: canonicalize,fuse        the pipeline; the IR must be valid before and after, and mean the same
    // STORED: quantize              instead of RUN: weights are stored in another way, and so rounded
    // CHECK: matmul(%x, %0)         see https://llvm.org/docs/CommandGuide/FileCheck.html

A file whose RUN line begins with ``#`` holds loop IR (functions of one output or several, which must compute
the same before and after).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import equivalence
import numpy as np
import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts

from strata.compiler import pipelines  # noqa: F401  (registers all passes)
from strata.core.dims import evaluate
from strata.core.errors import StrataError
from strata.core.knobs import knobs
from strata.graph.ops.common import np_dtype
from strata.graph.text import parse_module, print_module
from strata.loop import interp
from strata.passes import transform
from strata.passes.loops import parse_loops, print_loops, transform_loops


class Mismatch(Exception):
    """What FileCheck says, with the text that it saw and the command to see it again."""


class TextTest(pytest.Item):
    """One ``RUN`` line of a file."""

    def __init__(self, *, pipeline: str, keeps_params: bool, **rest: object) -> None:
        super().__init__(**rest)
        self.pipeline = pipeline
        self.keeps_params = keeps_params

    def runtest(self) -> None:
        source = self.path.read_text()
        text = self.run_loops(source) if source.startswith("#") else self.run_graph(source)
        options = Options(match_filename=str(self.path))
        matcher = Matcher(
            options, FInput("output", text), Parser(options, io.StringIO(source), *pattern_for_opts(options))
        )
        matcher.stderr = io.StringIO()
        if matcher.run():
            command = f"strata opt {self.path} -p '{self.pipeline}'"
            raise Mismatch(f"{matcher.stderr.getvalue()}\noutput:\n{text}\nagain: {command}")

    def run_graph(self, source: str) -> str:
        module = parse_module(source, str(self.path))
        with knobs(verify=3):
            result = transform(self.pipeline, module).module
        if self.keeps_params:
            equivalence.assert_same(module, result)
        else:
            assert set(module.params) != set(result.params)
        return print_module(result)

    def run_loops(self, source: str) -> str:
        module = parse_loops(source, str(self.path))
        with knobs(verify=3):
            result = transform_loops(self.pipeline, module).module
        for old, new in zip(module.functions, result.functions, strict=True):
            rng = np.random.default_rng(0)
            sizes = {d.name: 3 for d in old.dims}
            shapes = [[evaluate(d, sizes) for d in p.shape] for p in old.params]
            arrays = [
                rng.standard_normal(s).astype(np_dtype(p.dtype))
                for s, p in zip(shapes, old.params, strict=True)
            ]
            wanted, got = ([a.copy() for a in arrays] for _ in range(2))
            interp.run(old, wanted)
            interp.run(new, got)
            for a, b in zip(wanted, got, strict=True):
                np.testing.assert_array_equal(a, b)
        return print_loops(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> object:
        if isinstance(excinfo.value, Mismatch | StrataError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: {self.pipeline}"


class TextFile(pytest.File):
    """A ``.ir`` file."""

    def collect(self) -> Iterator[TextTest]:
        lines = self.path.read_text().splitlines()
        runs = [line for line in lines if line.startswith(("// RUN:", "# RUN:", "// STORED:"))]
        assert runs, f"{self.path} has no RUN line"
        for line in runs:
            kind, _, pipeline = line.partition(":")
            keeps_params, pipeline = kind.endswith("RUN"), pipeline.strip()
            yield TextTest.from_parent(self, name=pipeline, pipeline=pipeline, keeps_params=keeps_params)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return TextFile.from_parent(parent, path=file_path) if file_path.suffix == ".ir" else None
