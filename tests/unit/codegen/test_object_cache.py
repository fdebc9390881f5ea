"""The object cache, and compiling through it."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import llvmlite
import pytest
from hand_kernels import TARGET

from strata.codegen import object_cache
from strata.codegen.object_cache import ObjectCache, cache_folder, compile_functions, object_key
from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import CodegenError
from strata.core.knobs import knobs
from strata.loop.nodes import Binary, BinaryOp, Buffer, Const, For, ForKind, Func, Load, Size, Store, Var


def scale(name: str, factor: float) -> Func:
    """y[i] = factor * x[i]."""
    n = SymDim("n", 1, 64)
    x, y, i = Buffer("x", (n,), f32), Buffer("y", (n,), f32), Var("i")
    value = Binary(BinaryOp.MUL, Load(x, (i,)), Const(factor, f32))
    return Func(name, (x, y), For(i, Size(n), ForKind.SERIAL, Store(y, (i,), value)))


def test_get_what_was_put(tmp_path):
    cache = ObjectCache(tmp_path / "deep" / "folder")
    assert cache.get("ab12") is None
    cache.put("ab12", b"code")
    assert cache.get("ab12") == b"code"
    assert [p.name for p in (tmp_path / "deep" / "folder").rglob("*.*")] == ["ab12.obj"]


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"!" + b[41:]])
def test_corrupt_entries_are_dropped(tmp_path, caplog, change):
    cache = ObjectCache(tmp_path)
    cache.put("ab12", b"some code here")
    path = next(tmp_path.rglob("*.obj"))
    path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="strata.codegen"):
        assert cache.get("ab12") is None
    assert "ab12.obj is corrupt; compiling again" in caplog.text
    assert not path.exists()


def test_the_least_recently_used_go_first(tmp_path):
    cache = ObjectCache(tmp_path, max_bytes=10 * 132)
    for i in range(10):
        cache.put(f"{i:02}", bytes(100))
        os.utime(tmp_path / f"{i:02}" / f"{i:02}.obj", (i, i))
    assert cache.get("00") is not None  # now the youngest
    cache.put("99", bytes(100))
    kept = {p.stem for p in tmp_path.rglob("*.obj")}
    assert kept == {"00", "99", "05", "06", "07", "08", "09"}
    cache.put("98", bytes(100))  # below the cap: nothing goes
    assert len(list(tmp_path.rglob("*.obj"))) == 8


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = ObjectCache(tmp_path / "file" / "objects")
    with caplog.at_level(logging.WARNING, logger="strata.codegen"):
        cache.put("ab12", b"code")
    assert "cannot write" in caplog.text
    assert cache.get("ab12") is None


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(object_cache.os, "replace", refuse)
    with caplog.at_level(logging.WARNING, logger="strata.codegen"):
        ObjectCache(tmp_path).put("ab12", b"code")
    assert "No space left on device" in caplog.text
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("STRATA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert cache_folder() == Path("/x/cache/strata")
    assert ObjectCache().folder == Path("/x/cache/strata/objects")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "strata"
    with knobs(cache_dir=tmp_path / "mine"):
        assert cache_folder() == tmp_path / "mine"


def test_everything_that_changes_code_is_in_the_key(monkeypatch):
    keys = {
        object_key("text", TARGET),
        object_key("text2", TARGET),
        object_key("text", replace(TARGET, cpu="x")),
    }
    monkeypatch.setattr(object_cache, "CODEGEN_VERSION", -1)
    keys.add(object_key("text", TARGET))
    monkeypatch.setattr(llvmlite, "__version__", "0.0")
    keys.add(object_key("text", TARGET))
    assert len(keys) == 5


def test_functions_are_compiled_once_and_in_order(tmp_path, monkeypatch):
    funcs = [scale(f"scale{i}", float(i)) for i in range(4)]
    seen = []
    objects = compile_functions(funcs, TARGET, 2, lambda *args: seen.append(args), ObjectCache(tmp_path))
    assert seen == [(i + 1, 4, f"scale{i}", False) for i in range(4)]
    assert [f"scale{i}.impl".encode() in o for i, o in enumerate(objects)] == [True] * 4

    def fail(*args):
        raise AssertionError("compiled again")

    monkeypatch.setattr(object_cache, "compile_object", fail)
    seen.clear()
    assert (
        compile_functions(funcs, TARGET, None, lambda *args: seen.append(args), ObjectCache(tmp_path))
        == objects
    )
    assert [hit for *_, hit in seen] == [True] * 4


def test_what_llvm_rejects_names_the_function(tmp_path, monkeypatch):
    monkeypatch.setattr(object_cache, "emit_func", lambda *args: "define nonsense")
    with pytest.raises(CodegenError, match=r"good: host: LLVM rejects the text(.|\n)*    1 define nonsense"):
        compile_functions([scale("good", 1.0)], TARGET, 1, None, ObjectCache(tmp_path))


def test_the_error_of_a_function_comes_out(tmp_path):
    good = scale("good", 1.0)
    i = Var("i")
    bad = Func("bad", good.params, Store(good.params[1], (i,), Const(1.0, f32)))  # i is not defined
    with pytest.raises(CodegenError, match=r"bad"):
        compile_functions([good, bad, good], TARGET, 1, None, ObjectCache(tmp_path))
