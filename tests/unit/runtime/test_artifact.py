import dataclasses
import json
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_program import RECORD, FakeImage, small_params

from strata.core.errors import UserError
from strata.core.knobs import current, knobs
from strata.runtime import artifact as artifact_module
from strata.runtime import cpu
from strata.runtime.artifact import is_artifact, open_artifact, read_record, save_artifact
from strata.runtime.program import Program


def save(folder: Path, record=RECORD, image: bytes = b"\x90" * 100, **options) -> Path:
    return save_artifact(folder, record, image, small_params().items(), '{"plan": []}', **options)


def test_save_and_open(tmp_path):
    extra_file = tmp_path / "vocab"
    extra_file.write_text("v")
    folder = save(tmp_path / "model", extra_files={"tokenizer.json": b"{}", "vocab.txt": extra_file})
    assert sorted(p.name for p in folder.iterdir()) == [
        "code.bin", "manifest.json", "plan.json", "tokenizer.json", "vocab.txt", "weights.safetensors",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    opened = open_artifact(folder)
    assert opened.record == RECORD == read_record(folder)
    assert opened.image == b"\x90" * 100
    for name, array in small_params().items():
        np.testing.assert_array_equal(opened.params[name], array)
        assert opened.params[name].ctypes.data % 64 == 0
        assert not opened.params[name].flags.writeable
    program = Program(opened.record, FakeImage(), opened.params)
    x = np.ones((2, 4), np.float32)
    whole = program["axpy"](x).copy()
    np.testing.assert_array_equal(program.step("axpy", x).finish(), whole)  # read-only params pass as tensors


def test_params_are_made_under_the_knobs_of_the_caller(tmp_path):
    seen = []

    def params():
        for pair in small_params().items():
            seen.append(current().cache_dir)
            yield pair

    with knobs(cache_dir=tmp_path / "cache"):
        save_artifact(tmp_path / "model", RECORD, b"code", params(), "{}")
    assert seen == [tmp_path / "cache"] * len(small_params())


def test_replaces_an_artifact_and_an_empty_folder_only(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    save(target)
    save(target, image=b"new")
    assert open_artifact(target).image == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"")
    with pytest.raises(UserError, match="photos: is a folder that is no artifact; it is not overwritten"):
        save(other)
    assert [p.name for p in other.iterdir()] == ["cat.png"]
    with pytest.raises(UserError, match=r"cat\.png: is a file; expected the name of a folder"):
        save(other / "cat.png")


def test_a_failed_save_leaves_nothing_and_keeps_the_old(tmp_path):
    folder = save(tmp_path / "model")
    with pytest.raises(UserError, match="extra file 'a/b'; expected a plain file name"):
        save(folder, image=b"new", extra_files={"a/b": b""})
    with pytest.raises(UserError, match=r"extra file 'plan\.json'"):
        save(folder, image=b"new", extra_files={"plan.json": b""})
    with pytest.raises(UserError, match="cannot write the artifact: No such file"):
        save(folder, image=b"new", extra_files={"x": tmp_path / "none"})
    assert open_artifact(folder).image == b"\x90" * 100
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_failed_rename_puts_the_old_artifact_back(tmp_path, monkeypatch):
    folder = save(tmp_path / "model")
    real = Path.rename

    def rename(self, target):
        if ".part-" in self.name and not self.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write the artifact: No space left"):
        save(folder, image=b"new")
    monkeypatch.undo()
    assert open_artifact(folder).image == b"\x90" * 100


def edit(folder: Path, **values) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    data.update(values)
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"format": "gguf"}, r"manifest.json: format: got 'gguf'; expected 'strata-artifact'"),
        ({"version": 99}, r"manifest.json: version: got 99; expected 2; compile the model again"),
        ({"machine": "pdp11"}, rf"machine: got 'pdp11'; expected '{platform.machine()}'"),
        ({"machine": None}, r"machine: got None; expected a text"),
        ({"code": 3}, r"manifest.json: code: got 3; expected an object"),
        ({"code": {"bytes": 7}}, r"code.bin: got 100 bytes; expected 7; it is cut off"),
        ({"code": {"bytes": 100}}, r"code.bin: got sha256 \w{16}\.\.\.; expected None; it is damaged"),
        ({"weights": {}}, r"weights.safetensors: got \d+ bytes; expected None; it is cut off"),
        ({"program": {}}, r"manifest.json: program: key '\w+' is missing"),
    ],
)
def test_wrong_manifests(tmp_path, values, match):
    folder = save(tmp_path / "model")
    edit(folder, **values)
    with pytest.raises(UserError, match=match):
        open_artifact(folder)


def test_a_changed_record_is_refused(tmp_path):
    folder = save(tmp_path / "model")
    program = json.loads((folder / "manifest.json").read_text())["program"]
    program["functions"][0]["arena_bytes"] -= 64
    edit(folder, program=program)
    with pytest.raises(UserError, match=r"manifest.json: program differs from its sha256; it is damaged"):
        open_artifact(folder)


def test_damaged_files(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        open_artifact(tmp_path / "none")
    with pytest.raises(UserError, match=r"manifest.json: cannot read: No such file"):
        open_artifact(tmp_path)
    assert not is_artifact(tmp_path)
    folder = save(tmp_path / "model")
    assert is_artifact(folder)
    (folder / "code.bin").write_bytes(b"\x91" * 100)
    with pytest.raises(UserError, match=r"code.bin: got sha256 .*it is damaged"):
        open_artifact(folder)
    (folder / "code.bin").unlink()
    with pytest.raises(UserError, match=r"code.bin: cannot read: No such file"):
        open_artifact(folder)
    folder = save(folder)
    weights = folder / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"weights.safetensors: got \d+ bytes; expected \d+; it is cut off"):
        open_artifact(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"weights.safetensors: cannot read: No such file"):
        open_artifact(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, '{"a": NaN}', "\xff"])
def test_manifest_that_is_no_json(tmp_path, text):
    folder = save(tmp_path / "model")
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest.json: is no JSON"):
        open_artifact(folder)


def test_weights_that_contradict_the_manifest(tmp_path):
    folder = save(tmp_path / "model")
    param = dataclasses.replace(RECORD.params[0], shape=(2, 2))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["program"]["params"][0]["shape"] = list(param.shape)
    edit(folder, program=manifest["program"])
    with pytest.raises(
        UserError, match=r"tensor 'scale': got bf16\[4\]; expected bf16\[2,2\] as in manifest.json"
    ):
        open_artifact(folder)


def test_cpu_features_are_checked(tmp_path, monkeypatch):
    folder = save(
        tmp_path / "model", dataclasses.replace(RECORD, features=("avx512f", "avx512bf16", "amx-tile"))
    )
    monkeypatch.setattr(cpu, "host_features", lambda: ("avx512f",))
    with pytest.raises(
        UserError, match=r"manifest.json: the code needs CPU features .* lacks: avx512bf16, amx-tile"
    ):
        open_artifact(folder)
    assert read_record(folder).features[0] == "avx512f"
    monkeypatch.setattr(cpu, "host_features", lambda: ("avx512f", "avx512bf16", "amx-tile"))
    open_artifact(folder)


def test_load_reads_everything_through_open_artifact(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such folder"):
        Program.load(tmp_path / "none")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzzed_files_give_user_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    save(folder)
    path = folder / data.draw(st.sampled_from(["manifest.json", "weights.safetensors", "code.bin"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    message = str(folder)
    try:
        assert set(open_artifact(folder).params) == {"scale", "shift"}
    except UserError as error:
        message = str(error)
    assert str(folder) in message


def test_module_has_no_compiler_imports():
    import subprocess
    import sys

    code = (
        "import sys, strata.runtime.artifact, strata.runtime.program, strata.runtime.stepping\n"
        "bad = [m for m in sys.modules if m.split('.')[:2] in"
        " (['strata', x] for x in ('graph', 'loop', 'ir', 'codegen', 'plan', 'compiler'))]\n"
        "assert not bad and 'llvmlite' not in sys.modules, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert artifact_module.VERSION == 2
