"""``strata opt`` and ``strata passes``: passes on IR text, and what passes there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from strata.ir.passes import PASSES, PIPELINES

GRAPH = """module {
  func @f(%x: f32[2,3]) -> (f32[2,3]) {
    %0: f32[2,3] = neg(%x)
    %1: f32[2,3] = neg(%0)
    %2: f32[2,3] = exp(%1)
    return %2
  }
}
"""
LOOPS = """func @f(x: f32[4]) -> (y: f32[4])
  for i in 4:
    y[i // 1] = x[i] + 0x1p+0
"""
OWN = """
from dataclasses import dataclass
from typing import ClassVar

import strata
from strata.graph.nodes import Function
from strata.passes.base import FunctionPass


@strata.register_pass
@dataclass(frozen=True)
class Rename(FunctionPass):
    '''Gives every function another name.

    Attributes:
        to: The name.
    '''

    name: ClassVar[str] = "test_rename"
    to: str = "renamed"

    def run_function(self, function: Function) -> Function:
        return Function(self.to, function.inputs, function.outputs)


strata.register_pipeline("test_opt_llm", Rename(to="g"), *strata.pipeline("default").steps)
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    yield path
    PASSES._items.pop("test_rename", None)
    PIPELINES._items.pop("test_opt_llm", None)


def test_graph(strata, tmp_path):
    path = tmp_path / "m.ir"
    path.write_text(GRAPH)
    result = strata("opt", path, "-p", "canonicalize", "--time", "--print-after", "canonicalize")
    assert result.exit_code == 0, result.stderr
    assert "neg" not in result.stdout
    assert "exp(%x)" in result.stdout
    assert result.stderr.startswith("// graph IR after canonicalize\nmodule {")
    assert "3 -> 1" not in result.stderr  # leaves count
    assert "canonicalize" in result.stderr.splitlines()[-1]
    result = strata("opt", "-", stdin=GRAPH)
    assert "fused(%x)" in result.stdout
    function = "\n".join(line[2:] for line in GRAPH.splitlines()[1:-1])
    assert strata("opt", "-", "-p", "canonicalize", stdin=function).stdout.startswith("func @f(%x")


def test_dump_and_json(strata, tmp_path):
    result = strata("opt", "-", "-p", "canonicalize,fuse", "--dump", tmp_path / "d", "--json", stdin=GRAPH)
    figures = json.loads(result.stdout)
    assert [p["name"] for p in figures["passes"]] == ["canonicalize", "fuse"]
    assert figures["text"] == strata("opt", "-", "-p", "canonicalize,fuse", stdin=GRAPH).stdout
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert names == ["000_graph.input.ir", "001_canonicalize.after.ir", "002_fuse.after.ir"]


def test_loops(strata):
    result = strata("opt", "-", "-p", "simplify_loops", stdin=LOOPS)
    assert result.exit_code == 0, result.stderr
    assert "y[i] = x[i] + 0x1p+0" in result.stdout
    assert result.stdout.startswith("stage scheduled\n")
    again = strata("opt", "-", stdin=result.stdout)  # by the knob: loop_default, which is empty
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (("missing.ir",), "", "missing.ir: cannot read it as text"),
        (("-", "-p", "fusee"), GRAPH, "no pass or pipeline 'fusee'"),
        (("-", "-p", "simplify_loops"), GRAPH, "simplify_loops is a pass on loop IR; expected graph passes"),
        (("-", "-p", "fuse"), LOOPS, "fuse is a pass on graph IR; expected loop passes"),
        (("-",), "module {", "-:1:9: got the end of the text"),
        (("-", "--print-after", "fusee"), GRAPH, "no pass 'fusee'"),
        (("-", "-p", "only{functions=[g]}(fuse)"), GRAPH, "no function has such a name; the module has: f"),
        (("-", "-p", "legalize{ops=[matmul]}"), GRAPH, "legalize: no legalization for 'matmul'"),
        (("-", "-p", "partition{patterns=[nope.]}"), GRAPH, "partition: no pattern 'nope.'"),
    ],
)
def test_mistakes_are_one_line(strata, arguments, text, message):
    result = strata("opt", *arguments, stdin=text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_own_passes(strata, own, tmp_path):
    result = strata("opt", "-", "--load", own, "-p", "test_opt_llm", stdin=GRAPH)
    assert result.exit_code == 0, result.stderr
    assert "func @g(" in result.stdout
    assert "fused(%x)" in result.stdout
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0\n")
    result = strata("opt", "-", "--load", bad, stdin=GRAPH)
    assert result.exit_code == 2
    assert "bad.py:1: ZeroDivisionError: division by zero" in result.stderr
    result = strata("opt", "-", "--load", tmp_path / "own.txt", stdin=GRAPH)
    assert "own.txt is no Python file" in result.stderr


def test_passes(strata, own):
    text = strata("passes").stdout
    assert "fuse{max_ops=32}\n" in text
    assert "simplify_loops  (on loop functions)" in text
    assert "  default(canonicalize," in text
    full = strata("passes", "fuse").stdout
    assert "max_ops (integer; 32): Most nodes of a group; 1 launches every node on its own." in full
    assert strata("passes", "zero").stdout == "  zero(fuse{max_ops=1})\n"
    figures = json.loads(strata("passes", "--load", own, "--json").stdout)
    mine = next(p for p in figures["passes"] if p["name"] == "test_rename")
    assert mine["options"] == [
        {"name": "to", "kind": "word or string", "default": "renamed", "doc": "The name."}
    ]
    assert figures["pipelines"]["test_opt_llm"].startswith("test_opt_llm(test_rename{to=g},canonicalize")
    result = strata("passes", "nope")
    assert result.exit_code == 2
    assert "no pass 'nope'" in result.stderr
