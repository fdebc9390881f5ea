"""Instruments: hooks before and after passes, built in and of one's own; pipelines on a part of a module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from strata.core.errors import UserError, VerifyError
from strata.core.knobs import knobs
from strata.ir.dump import Dumper, dumper_for, show_stage, wants_stage
from strata.ir.instruments import (
    Call,
    Dump,
    Instrument,
    Print,
    Run,
    Timing,
    Verify,
    active_instruments,
    instruments,
)
from strata.ir.kind import IRKind
from strata.ir.passes import PASSES, OptionError, Partial, Pass, Pipeline, parse_pipeline, register_pass
from strata.ir.runner import run_pipeline


@dataclass(frozen=True)
class Word:
    name: str
    text: str


@dataclass(frozen=True)
class Words:
    functions: tuple[Word, ...]


def show(module: Words) -> str:
    return " ".join(f"{f.name}={f.text}" for f in module.functions) + "\n"


def parse(text: str) -> Words:
    return Words(tuple(Word(*w.split("=")) for w in text.split()))


def check(module: Words) -> None:
    if any("bad" in f.text for f in module.functions):
        raise VerifyError("a bad word")


KIND: IRKind[Words] = IRKind("words", show, parse, check, lambda m: len(m.functions))


@pytest.fixture(scope="module", autouse=True)
def _passes():
    register_pass(Put)
    yield
    PASSES._items.pop(Put.name)


@dataclass(frozen=True)
class Put(Pass[Words]):
    name: ClassVar[str] = "test-put"
    text: str = "x"

    def run(self, module: Words) -> Words:
        return Words(tuple(Word(f.name, f.text + self.text) for f in module.functions))


@dataclass(frozen=True)
class Replace(Pass[Words]):
    name: ClassVar[str] = "test-replace"
    new: tuple[str, ...] = ()

    def run(self, module: Words) -> Words:
        return parse(" ".join(self.new))


START = Words((Word("a", "1"), Word("b", "2"), Word("ab", "3")))


def run(pipeline: str | Pipeline[Words], module: Words = START, **options: Any) -> Words:
    parsed = parse_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    return run_pipeline(parsed, module, KIND, **options).module


def test_hooks_are_called_in_order() -> None:
    log: list[str] = []

    @dataclass
    class Log(Instrument):
        word: str

        def start(self, run: Run, module: Words) -> None:
            log.append(f"{self.word} start {run.kind.name} {run.pipeline}")

        def before(self, run: Run, step: Pass[Any], module: Words) -> None:
            log.append(f"{self.word} before {step}")

        def after(self, run: Run, step: Pass[Any], before: Words, after: Words, wall_s: float) -> None:
            assert wall_s >= 0
            log.append(f"{self.word} after {step}: {before.functions[0].text} {after.functions[0].text}")

        def finish(self, run: Run, module: Words) -> None:
            log.append(f"{self.word} finish {module.functions[0].text}")

    with instruments(Log("outer")) as (outer,):
        assert active_instruments() == (outer,)
        run("test-put", instruments=[Log("given")])
    assert active_instruments() == ()
    assert log == [
        "outer start words test-put",
        "given start words test-put",
        "outer before test-put",
        "given before test-put",
        "outer after test-put: 1 1x",
        "given after test-put: 1 1x",
        "outer finish 1x",
        "given finish 1x",
    ]


def test_call_sees_and_skips_passes() -> None:
    seen: list[tuple[str, str]] = []
    skip = Call(on_before=lambda step, module: False if step.text == "no" else None)
    watch = Call(on_after=lambda step, old, new: seen.append((old.functions[0].text, new.functions[0].text)))
    pipeline = "test-put,test-put{text=no},test-put{text=y}"
    result = run_pipeline(parse_pipeline(pipeline), START, KIND, instruments=[skip, watch])
    assert result.module.functions[0].text == "1xy"
    assert seen == [("1", "1x"), ("1x", "1xy")]
    assert [r.name for r in result.records] == ["test-put", "test-put{text=y}"]
    with pytest.raises(ZeroDivisionError):
        run("test-put", instruments=[Call(on_after=lambda step, old, new: 1 // 0)])


def test_timing_collects_over_runs() -> None:
    with instruments(Timing()) as (timing,):
        run("test-put")
        run("test-put{text=y}")
    assert [(r.name, r.ops_before, r.ops_after) for r in timing.records] == [
        ("test-put", 3, 3),
        ("test-put{text=y}", 3, 3),
    ]
    lines = timing.table().splitlines()
    assert lines[0].split() == ["pass", "time_ms", "ops"]
    assert [line.split()[0] for line in lines[1:]] == ["test-put", "test-put{text=y}", "all"]
    assert Timing().table() == "pass  time_ms  ops"


def test_verify_print_and_dump_as_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "test-put{text=bad},test-put"
    with knobs(verify=0, crash_dir=tmp_path / "crashes"):
        run(bad)
        with pytest.raises(VerifyError, match=r"pass test-put\{text=bad\} .* broke the words IR: a bad word"):
            run(bad, instruments=[Verify()])
        with pytest.raises(VerifyError, match=r"pass test-put \(of .*\) broke the words IR"):
            run(bad, instruments=[Verify(1)])
        run("test-put,test-put{text=y}", instruments=[Print("test-put"), Dump(str(tmp_path / "d"))])
        assert capsys.readouterr().err.count("// words IR after test-put") == 2
        run("test-put", instruments=[Print()])
        assert "// words IR after test-put\na=1x b=2x ab=3x\n" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "000_words.input.ir",
        "001_test-put.after.ir",
        "002_test-put.after.ir",
    ]
    shared = Dumper(tmp_path / "e")
    run("test-put", instruments=[Dump(shared)])
    assert shared.write("more", "x").name == "002_more.ir"


def test_one_dump_per_directory(tmp_path: Path) -> None:
    first = dumper_for(tmp_path / "d")
    assert dumper_for(tmp_path / "d") is first
    first.write("a", "1")
    with knobs(dump=tmp_path / "d"):
        assert wants_stage("llvm")
        show_stage("llvm", "k0", "define", "ll")
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["000_a.ir", "001_llvm.k0.ll"]
    for path in (tmp_path / "d").iterdir():
        path.unlink()
    (tmp_path / "d").rmdir()
    with pytest.raises(UserError, match=r"dump: cannot write .*002_a.ir"):
        first.write("a", "1")
    assert dumper_for(tmp_path / "d") is not first


def test_stages_are_printed_like_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert not wants_stage("lower")
    with knobs(print_after="lower"):
        assert wants_stage("lower")
        assert not wants_stage("schedule")
        show_stage("lower", "k0", "func\n")
        show_stage("schedule", "k0", "func\n")
    assert capsys.readouterr().err == "// lower k0\nfunc\n"
    with knobs(print_after="all"):
        assert wants_stage("schedule")


def test_a_pipeline_on_a_part() -> None:
    assert show(run("only{functions=[a]}(test-put)")) == "a=1x b=2 ab=3\n"
    assert show(run('only{functions=["a*"]}(test-put,test-put{text=y}),test-put{text=z}')) == (
        "a=1xyz b=2z ab=3xyz\n"
    )
    assert show(
        run('only{functions=["a*"]}(x{functions=["*b",a]}(test-put),only{functions=[a]}(test-put))')
    ) == ("a=1xx b=2 ab=3x\n")
    with pytest.raises(
        OptionError, match=r"only\{functions=\[c\]\}\(test-put\): no function has such a name"
    ):
        run("only{functions=[c]}(test-put)")
    with pytest.raises(OptionError, match=r"no function has such a name; the module has: a, b, ab"):
        run("only{functions=[a]}(only{functions=[b]}(test-put))")
    with pytest.raises(OptionError, match=r"got a tuple; expected a module of functions"):
        Pipeline((Put(),)).on("a").run(())  # type: ignore[arg-type]


def test_functions_that_a_pass_drops_or_adds() -> None:
    step = Replace(new=("ab=9", "new=0"))
    assert show(run(Pipeline((step,)).on("a*"))) == "b=2 ab=9 new=0\n"


def test_text_of_a_part() -> None:
    base = parse_pipeline("test-put,test-put{text=y}")
    assert str(base.on("decode", "pre*")) == 'only{functions=[decode,"pre*"]}(test-put,test-put{text=y})'
    named = Pipeline((Put(),), "p").on("a")
    assert str(named) == "p{functions=[a]}(test-put)"
    for pipeline in (base.on("decode", "pre*"), named, base.append(named), Pipeline((named,)), named.on()):
        assert parse_pipeline(str(pipeline)) == pipeline
    (step,) = named.passes()
    assert isinstance(step, Partial)
    assert (step.name, step.ir, str(step)) == ("test-put", "graph", "only{functions=[a]}(test-put)")
    with knobs(print_after="test-put"):
        run(named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("only{functions=[]}(test-put)", r"only: option functions is \[\]; expected at least one name"),
        ("only{functions=a}(test-put)", r"only: option functions is a; expected a list"),
        ("only{names=[a]}(test-put)", "only: no option 'names'; it has: functions"),
        ("nothing{functions=[a]}", r"expected '\(': 'nothing' is no pass or named pipeline"),
    ],
)
def test_bad_text_of_a_part(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pipeline(text)


def test_only_is_no_name() -> None:
    with pytest.raises(UserError, match=r"got label 'only'; expected a name \(but not 'only'\)"):
        Pipeline((Put(),), "only")

    @dataclass(frozen=True)
    class Only(Put):
        name: ClassVar[str] = "only"

    with pytest.raises(UserError, match="pass or pipeline 'only': expected a name of letters"):
        register_pass(Only)
