"""Passes on loop functions: stages, text, checks, and that the driver runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from strata.compiler.driver import trace
from strata.core.dtypes import f32
from strata.core.errors import ParseError, UserError, VerifyError
from strata.core.knobs import knobs
from strata.graph import builder as g
from strata.graph.nodes import Function, Module
from strata.ir.passes import PASSES, Pipeline, register_pass
from strata.loop.build import add, const
from strata.loop.nodes import Buffer, Func, Store
from strata.loop.rewrite import map_stmt
from strata.passes import LoopModule, LoopPass, LoopStage, named_pipeline, run_loop_passes, transform_loops
from strata.passes.loops import check_loops, loop_pipeline, parse_loops, print_loops

SCHEDULED = """func @a(x: f32[4]) -> (y: f32[4])
  for i in 4:
    y[i // 1] = x[i]
"""
NAIVE = """dims n in 1..8

# a comment between
func @b(x: f32[n]) -> (y: f32[n])
  for i in n:
    block "out" (j: spatial n = i):
      y[j] = x[j]
"""


@dataclass(frozen=True)
class PlusOne(LoopPass):
    """Adds 1 to all that is stored: visible in what a program computes."""

    name: ClassVar[str] = "test_plus_one"
    stages: ClassVar[tuple[LoopStage, ...]] = (LoopStage.NAIVE,)

    def run_func(self, func: Func) -> Func:
        def change(stmt: Any) -> Any:
            if not isinstance(stmt, Store):
                return stmt
            return replace(stmt, value=add(stmt.value, const(1.0, f32)))

        return replace(func, body=map_stmt(func.body, stmt_fn=change))


@dataclass(frozen=True)
class Change(LoopPass):
    """Breaks what ``how`` says."""

    name: ClassVar[str] = "test_change"
    how: str = "name"

    def run_func(self, func: Func) -> Func:
        if self.how == "name":
            return replace(func, name="other")
        return replace(func, params=(Buffer("z", (4,), f32), *func.params[1:]))


@pytest.fixture(autouse=True)
def _passes() -> Iterator[None]:
    register_pass(PlusOne)
    register_pass(Change)
    yield
    for cls in (PlusOne, Change):
        PASSES._items.pop(cls.name)


def test_text_parses_back() -> None:
    for text, stage in ((SCHEDULED, LoopStage.SCHEDULED), (NAIVE, LoopStage.NAIVE)):
        module = parse_loops(text)
        assert module.stage is stage  # where the text does not say: by the blocks
        assert print_loops(parse_loops(print_loops(module))) == print_loops(module)
    both = LoopModule((*parse_loops(NAIVE).functions, *parse_loops(SCHEDULED).functions), LoopStage.NAIVE)
    again = parse_loops(print_loops(both))
    assert [f.name for f in again.functions] == ["b", "a"]
    assert again.stage is LoopStage.NAIVE
    assert print_loops(again) == print_loops(both)
    assert parse_loops("stage scheduled\n").functions == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage raw\n", r"<text>:1:1: got 'stage raw'; expected stage naive or scheduled"),
        (NAIVE + "\nfunc @c(x: f32[4]) -> (y: f32[4])\n  y[0] = z[0]\n", r"<text>:10:"),
        ("loop @c\n", r"<text>:1:1: "),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_loops(text)


def test_a_pass_runs_at_its_stages() -> None:
    scheduled, naive = parse_loops(SCHEDULED), parse_loops(NAIVE)
    assert PlusOne().run(scheduled) is scheduled
    text = print_loops(transform_loops("test_plus_one,simplify_loops", naive).module)
    assert "y[j] = x[j] + 0x1p+0" in text
    text = print_loops(transform_loops("test_plus_one,simplify_loops", scheduled).module)
    assert "y[i] = x[i]\n" in text


def test_graph_and_loop_passes_do_not_mix() -> None:
    for text in ("fuse", "only{functions=[f]}(fuse)", "(test_plus_one,(fuse))"):
        with pytest.raises(
            UserError, match=r"fuse.* is a pass on graph IR; expected loop passes; .* knob pipeline"
        ):
            loop_pipeline(text)
    with pytest.raises(
        UserError, match=r"simplify_loops is a pass on loop IR; expected graph passes; .* loop_pipeline"
    ):
        named_pipeline("canonicalize,simplify_loops")
    with pytest.raises(UserError, match="is a pass on graph IR"):
        transform_loops(named_pipeline("default"), parse_loops(NAIVE))
    assert loop_pipeline() == Pipeline((), "loop_default")


def test_check() -> None:
    module = parse_loops(SCHEDULED)
    assert check_loops(module) is module
    with pytest.raises(VerifyError, match="loop check: two functions are called 'a'; names must be unique"):
        check_loops(LoopModule(module.functions * 2))
    with pytest.raises(VerifyError, match="LOOP_LOWERED"):
        check_loops(LoopModule(parse_loops(NAIVE).functions, LoopStage.SCHEDULED))


def test_names_and_parameters_stay() -> None:
    functions = parse_loops(SCHEDULED).functions
    with (
        knobs(loop_pipeline="test_change"),
        pytest.raises(VerifyError, match="got the functions other; expected a"),
    ):
        run_loop_passes(LoopStage.SCHEDULED, functions)
    with (
        knobs(loop_pipeline="test_change{how=params}", verify=0),
        pytest.raises(VerifyError, match="loop passes: a: the parameters changed"),
    ):
        run_loop_passes(LoopStage.SCHEDULED, parse_loops(SCHEDULED.replace("f32[4]", "f32[5]")).functions)


def module() -> Module:
    x = g.input("x", g.tensor_type((4, 8), "f32"))
    return Module((Function("f", (x,), (g.softmax(g.neg(x)),)), Function("g", (x,), (g.exp(x),))))


def test_the_driver_runs_them_and_names_select() -> None:
    x = np.arange(32, dtype=np.float32).reshape(4, 8) / 32
    plain = trace(module()).lower().plan().compile().program({})["g"](x).copy()
    np.testing.assert_allclose(plain, np.exp(x), rtol=1e-6)
    for text, more in (
        ("loop_default,test_plus_one", 1.0),
        ('only{functions=["*_exp*"]}(test_plus_one)', 1.0),
        ('only{functions=["*softmax"]}(test_plus_one)', 0.0),  # no error: functions come a few at a time
    ):
        with knobs(loop_pipeline=text, verify=3):
            program = trace(module()).lower().plan().compile().program({})
            np.testing.assert_allclose(program["g"](x), plain + more, rtol=1e-6)


def test_dump_of_a_whole_compilation(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    with knobs(dump=tmp_path / "d", print_after="lower,simplify_loops", loop_pipeline="simplify_loops"):
        trace(module()).lower("canonicalize,fuse").plan().compile()
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert [n[:3] for n in names] == [f"{k:03d}" for k in range(len(names))]
    kinds = [n[4:] for n in names]
    assert kinds[:3] == ["graph.input.ir", "canonicalize.after.ir", "fuse.after.ir"]
    assert kinds[3:8] == [
        "graph.input.ir",
        "join_gates.after.ir",
        "reshape_to_view.after.ir",
        "kill_dead.after.ir",
        "plan_memory.after.ir",
    ]
    first = kinds[8:14]
    assert first == [
        "loop.input.ir",
        "simplify_loops.after.ir",
        "lower.k0_softmax.ir",
        "loop.input.ir",
        "simplify_loops.after.ir",
        "schedule.k0_softmax.ir",
    ]
    assert kinds[-2:] == ["llvm.k0_softmax.ll", "llvm.k1_exp.ll"]
    assert "define" in (tmp_path / "d" / names[-1]).read_text()
    err = capsys.readouterr().err
    assert "// lower k0_softmax\n" in err
    assert "// loop IR after simplify_loops\nstage naive\n" in err
