"""The cache of compiled programs: what it is keyed by, and files of any contents in it."""

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strata.compiler.program_cache as cache_module
from strata.compiler.driver import Compiled, Traced, trace
from strata.compiler.program_cache import load_program, store_program
from strata.core.dims import SymDim
from strata.core.knobs import knobs
from strata.graph import builder as b
from strata.graph.nodes import Function, Module
from strata.planner.options import PlanOptions
from strata.runtime.records import CacheRecord
from strata.target import get_target

N = SymDim("n", 1, 32)
KEY = "0" * 32


def program_key(traced: Traced, pipeline: str, **plan: Any) -> str:
    return cache_module.program_key(traced, pipeline, PlanOptions(**plan))


def module(factor: float = 2.0, hi: int = 32) -> Module:
    """``f(x) = x * factor + table``."""
    x = b.input("x", b.tensor_type((SymDim("n", 1, hi), 8), "f32"))
    table = b.const(np.arange(8).astype(ml_dtypes.bfloat16), "bf16")
    return Module((Function("f", (x,), (b.add(b.mul(x, factor), b.cast(table, "f32")),)),))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with knobs(cache_dir=tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    with knobs(cache_dir=tmp_path_factory.mktemp("objects")):
        return trace(module()).lower("zero").plan().compile()  # the constant stays bf16


def test_a_stored_program_comes_back(compiled: Compiled, folder: Path) -> None:
    assert load_program(KEY) is None
    store_program(KEY, compiled)
    found = load_program(KEY)
    assert found is not None
    assert (found.record, found.image, found.plan) == (compiled.record, compiled.image, compiled.plan)
    assert {n: a.dtype for n, a in found.constants.items()} == {"const.0": np.dtype(ml_dtypes.bfloat16)}
    x = np.ones((3, 8), np.float32)
    np.testing.assert_array_equal(found.program({})["f"](x), compiled.program({})["f"](x))
    assert [p.name for p in (folder / "programs").iterdir()] == [f"{KEY}.zip"]
    assert load_program("1" * 32) is None


def test_the_key_is_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("zen5")
    cache = CacheRecord(1, 1, 8, "f32", 4, "none", 0)

    def traced(**changes) -> Traced:
        return replace(trace(module(), target, None, {"max_batch": 8}), **changes)

    keys = [
        program_key(traced(), "default"),
        program_key(traced(), "zero"),
        program_key(traced(module=module(3.0)), "default"),
        program_key(traced(module=module(hi=64)), "default"),
        program_key(traced(target=get_target("avx2")), "default"),
        program_key(traced(config={"max_batch": 4}), "default"),
        program_key(traced(cache=cache), "default"),
        program_key(traced(cache=replace(cache, rope_attention_factor=2.0)), "default"),
    ]
    keys.append(program_key(traced(), "default", prefer=("openblas",)))
    keys.append(program_key(traced(), "default", sizes=(("n", (4,)),)))
    with knobs(pipeline="zero"):
        keys.append(program_key(traced(), "default"))
    monkeypatch.setattr(cache_module, "source_fingerprint", lambda: "other sources")
    keys.append(program_key(traced(), "default"))
    assert len(set(keys)) == len(keys)


def test_the_key_stays_the_same() -> None:
    target = get_target("zen5")
    assert program_key(trace(module(), target), "default") == program_key(trace(module(), target), "default")
    with knobs(verify=3, threads=2, log="error"):
        assert program_key(trace(module(), target), "x") == program_key(trace(module(), target), "x")


def test_a_cache_that_cannot_be_written_is_left_alone(compiled: Compiled, folder: Path) -> None:
    (folder / "programs").write_text("a file where the folder should be")
    store_program(KEY, compiled)
    assert load_program(KEY) is None
    assert [p.name for p in folder.iterdir()] == ["programs"]


@pytest.mark.parametrize("missing", ["record.json", "code.bin", "plan.json"])
def test_an_entry_without_a_part_is_no_entry(compiled: Compiled, folder: Path, missing: str) -> None:
    store_program(KEY, compiled)
    path = folder / "programs" / f"{KEY}.zip"
    with zipfile.ZipFile(path) as file:
        parts = {n: file.read(n) for n in file.namelist() if n != missing}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    assert load_program(KEY) is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("record.json", b"[]"),
        ("record.json", b"{"),
        ("record.json", b"\xff"),
        ("constants/const.0", b""),
        ("constants/const.0", b'{"dtype": "float99", "shape": [8]}\n'),
        ("constants/const.0", b'{"dtype": "float32", "shape": [8]}\n1234'),
        ("constants/const.0", b"[1]\n"),
    ],
)
def test_an_entry_with_a_bad_part_is_no_entry(
    compiled: Compiled, folder: Path, name: str, data: bytes
) -> None:
    store_program(KEY, compiled)
    path = folder / "programs" / f"{KEY}.zip"
    with zipfile.ZipFile(path) as file:
        parts = {n: file.read(n) for n in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for part, content in {**parts, name: data}.items():
            file.writestr(part, content)
    assert load_program(KEY) is None


@given(st.data())
@settings(max_examples=150)
def test_damaged_files_are_no_entries(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes: never an exception, and what is still accepted has the contents that were stored."""
    folder = tmp_path_factory.mktemp("cache")
    parts = {"record.json": b"{}" * 40, "code.bin": bytes(64), "plan.json": b"{}"}
    path = folder / "programs" / f"{KEY}.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with knobs(cache_dir=folder):
        assert load_program(KEY) is None
