"""The pipeline runner: checks between passes, dumps, printing, timing, reproducers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from strata.core.errors import ShapeError, UserError, VerifyError
from strata.core.knobs import knobs
from strata.core.trace import Trace
from strata.ir.dump import Dumper
from strata.ir.kind import IRKind
from strata.ir.passes import PASSES, Pass, Pipeline
from strata.ir.runner import run_pipeline

Words = tuple[str, ...]


def check(module: Words) -> None:
    if "bad" in module:
        raise VerifyError("a bad word")


KIND: IRKind[Words] = IRKind(
    "words", lambda m: " ".join(m) + "\n", lambda t: tuple(t.split()), check, lambda m: len(m)
)


@dataclass(frozen=True)
class Add(Pass[Words]):
    name: ClassVar[str] = "add"
    word: str = "a"

    def run(self, module: Words) -> Words:
        return (*module, self.word)


@dataclass(frozen=True)
class Clear(Pass[Words]):
    name: ClassVar[str] = "clear"

    def run(self, module: Words) -> Words:
        return ()


@dataclass(frozen=True)
class Call(Pass[Words]):
    name: ClassVar[str] = "call"
    change: Callable[[Words], Words] = lambda m: m

    def __str__(self) -> str:
        return "call"

    def run(self, module: Words) -> Words:
        return self.change(module)


@pytest.fixture
def crash_dir(tmp_path: Path) -> Path:
    return tmp_path / "crashes"


def test_records() -> None:
    result = run_pipeline(Pipeline((Add(), Add(word="b"), Clear())), ("x",), KIND)
    assert result.module == ()
    assert [(r.name, r.ops_before, r.ops_after) for r in result.records] == [
        ("add", 1, 2),
        ("add{word=b}", 2, 3),
        ("clear", 3, 0),
    ]
    assert all(r.wall_s >= 0 for r in result.records)
    assert result.table().splitlines()[0].split() == ["pass", "time_ms", "ops"]
    assert "1 -> 2" in result.table()


def test_verify_after_each_pass_names_it(crash_dir: Path) -> None:
    pipeline = Pipeline((Add(), Add(word="bad"), Clear()), "p")
    with knobs(verify=1, crash_dir=crash_dir):
        assert run_pipeline(pipeline, (), KIND).module == ()
    with (
        knobs(verify=2, crash_dir=crash_dir),
        pytest.raises(VerifyError, match=r"pass add\{word=bad\} \(of p\) broke the words IR: a bad word"),
    ):
        run_pipeline(pipeline, (), KIND)
    (folder,) = crash_dir.iterdir()
    assert folder.name.startswith("crash-")
    assert (folder / "before.ir").read_text() == "a\n"
    assert (folder / "pipeline.txt").read_text() == "add{word=bad}\n"
    assert "verify=2\n" in (folder / "knobs.txt").read_text()
    assert (folder / "env.txt").read_text().startswith("python 3.")


def test_verify_levels(crash_dir: Path) -> None:
    bad = Pipeline((Add(word="bad"),))
    with knobs(verify=0, crash_dir=crash_dir):
        assert run_pipeline(bad, (), KIND).module == ("bad",)
        assert run_pipeline(Pipeline(()), ("bad",), KIND).module == ("bad",)
    with knobs(verify=1, crash_dir=crash_dir), pytest.raises(VerifyError, match="broke the words IR"):
        run_pipeline(bad, (), KIND)
    with knobs(verify=2, crash_dir=crash_dir), pytest.raises(VerifyError, match=r"^a bad word$"):
        run_pipeline(Pipeline(()), ("bad",), KIND)


def test_level_3_finds_what_the_checker_cannot(crash_dir: Path) -> None:
    count = iter(range(100))
    restless = Call(change=lambda m: (*m, str(next(count))))
    torn = Call(change=lambda m: (*m, "two words"))
    for step, message in (
        (restless, "is not deterministic: a second run gave another text"),
        (torn, "gave IR whose text does not parse back to itself"),
    ):
        kind = KIND if step is restless else IRKind("words", KIND.print, lambda t: (), check, len)
        with knobs(verify=2, crash_dir=crash_dir):
            run_pipeline(Pipeline((step,)), (), kind)
        with knobs(verify=3, crash_dir=crash_dir), pytest.raises(VerifyError, match=message):
            run_pipeline(Pipeline((step,)), (), kind)
    with knobs(verify=3, crash_dir=crash_dir):
        assert run_pipeline(Pipeline((Add(), Add())), (), KIND).module == ("a", "a")


def test_error_inside_a_pass(crash_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(_: Words) -> Words:
        raise ShapeError("add: shapes differ")

    def crash(_: Words) -> Words:
        raise KeyError("x")

    with knobs(crash_dir=crash_dir):
        with pytest.raises(
            VerifyError, match=r"pass call \(of call\) failed: add: shapes differ\n  reproducer: "
        ):
            run_pipeline(Pipeline((Call(change=shape),)), (), KIND)
        with pytest.raises(KeyError) as caught:
            run_pipeline(Pipeline((Call(change=crash),)), (), KIND)
        assert "pass call (of call) failed\n  reproducer: " in caught.value.__notes__[0]
        assert "strata opt" not in caught.value.__notes__[0]
        monkeypatch.setitem(PASSES._items, "call", Call)
        with pytest.raises(VerifyError, match=r"run: strata opt .*before.ir -p 'call'"):
            run_pipeline(Pipeline((Call(change=shape),)), (), KIND)


def test_default_crash_dir_is_temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(VerifyError, match=str(tmp_path)):
        run_pipeline(Pipeline((Add(word="bad"),)), (), KIND)


def test_dump(tmp_path: Path) -> None:
    with knobs(dump=tmp_path / "d"):
        run_pipeline(Pipeline((Add(), Clear())), ("x",), KIND)
        run_pipeline(Pipeline((Add(word="y"),)), ("x",), KIND)
    files = {p.name: p.read_text() for p in sorted((tmp_path / "d").iterdir())}
    assert files == {
        "000_words.input.ir": "x\n",
        "001_add.after.ir": "x a\n",
        "002_clear.after.ir": "\n",
        "003_words.input.ir": "x\n",
        "004_add.after.ir": "x y\n",
    }
    dumper = Dumper(tmp_path / "d")
    run_pipeline(Pipeline((Add(),)), (), KIND, dumper=dumper)
    assert dumper.write("a/b", "text", "txt").name == "002_a_b.txt"


def test_dump_keeps_off_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "000_old.ir").write_text("")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"dump: .* holds 'thesis.tex', which is no dump"):
        Dumper(tmp_path)
    assert (tmp_path / "000_old.ir").exists()
    with pytest.raises(UserError, match=r"dump: cannot use .*thesis.tex"):
        Dumper(tmp_path / "thesis.tex")


def test_print_after(capsys: pytest.CaptureFixture[str]) -> None:
    with knobs(print_after="clear"):
        run_pipeline(Pipeline((Add(), Clear())), ("x",), KIND)
    assert capsys.readouterr().err == "// words IR after clear\n\n"
    with knobs(print_after="all"):
        run_pipeline(Pipeline((Add(), Add(word="b"))), ("x",), KIND)
    assert capsys.readouterr().err == ("// words IR after add\nx a\n// words IR after add{word=b}\nx a b\n")


def test_trace(tmp_path: Path) -> None:
    with knobs(trace=tmp_path / "t.json"):
        run_pipeline(Pipeline((Add(), Clear())), (), KIND)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["name"] for e in events] == ["words: add", "words: clear"]
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
    trace = Trace()
    run_pipeline(Pipeline((Add(),)), (), KIND, trace=trace)
    assert len(trace.events) == 1
    with pytest.raises(UserError, match=r"trace: cannot write .*; choose another file"):
        trace.write(tmp_path / "missing" / "t.json")
