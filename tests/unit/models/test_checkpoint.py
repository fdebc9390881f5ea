"""Safetensors files and shards: what is read, and that a damaged file is an error message."""

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from strata.core.dtypes import bf16, f16, f32
from strata.core.errors import UnsupportedError, UserError
from strata.models import Checkpoint, NameRules, ParamSource, Transform, load_params
from strata.models.safetensors import CheckpointFile

RULES = NameRules("model.", (".mask",))


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(4000).astype(ml_dtypes.bfloat16),
        "c": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        "d": np.array(2.5, np.float16),
        "e": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint) == set(tensors)
    assert len(checkpoint) == 5
    for name, value in tensors.items():
        got = checkpoint[name]
        assert got.dtype == value.dtype
        assert not (got.size and got.flags.writeable)
        np.testing.assert_array_equal(got, value)
        checkpoint.release(name)
        np.testing.assert_array_equal(got, value)
    assert checkpoint.entry("b").dtype is bf16
    with pytest.raises(UserError, match="no tensor 'z' in the checkpoint, which has 5 tensors"):
        checkpoint["z"]


HEADERS: list[tuple[Any, bytes, str]] = [
    ({"a": entry(0, 4)}, b"123", "cut off"),
    ({"a": entry(0, 4)}, b"12345", "got 5 bytes of data; the header says 4"),
    ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456", "tensor 'b' overlaps tensor 'a'"),
    ({"a": entry(0, 2), "b": entry(4, 6)}, b"123456", "tensor 'b' leaves a gap after tensor 'a'"),
    ({"a": entry(2, 6)}, b"123456", "tensor 'a' leaves a gap after the header"),
    ({"a": entry(0, 4, [3])}, b"1234", "takes 3 bytes"),
    ({"a": entry(0, 4, [-4])}, b"1234", "shape"),
    ({"a": entry(0, 1, [1] * 100)}, b"1", "got 100 dims; expected at most 8"),
    ({"a": entry(0, 4, dtype="F8_E4M3")}, b"1234", "dtype 'F8_E4M3'; expected one of"),
    ({"a": [1]}, b"", "expected dtype, shape and data_offsets"),
    (b"{", b"", "no JSON"),
]


@pytest.mark.parametrize(("header", "data", "message"), HEADERS, ids=[h[2][:24] for h in HEADERS])
def test_damaged_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 20, 200])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((8, 8), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        CheckpointFile(path)


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights; expected model.safetensors or"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"has pytorch_model.bin; Strata reads safetensors"):
        Checkpoint(tmp_path)


def shards(folder: Path, weight_map: Any) -> None:
    save_file({"a": np.ones(3, np.float32)}, folder / "s1.safetensors")
    save_file({"b": np.ones(2, np.float32)}, folder / "s2.safetensors")
    index = {} if weight_map is None else {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "s1.safetensors", "b": "s2.safetensors"})
    checkpoint = Checkpoint(tmp_path)
    assert [len(checkpoint[name]) for name in "ab"] == [3, 2]
    assert checkpoint.path("b").name == "s2.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is missing"),
        ([], "weight_map: got .*expected an object"),
        ({"a": 3}, "a: got 3.*expected a string"),
        ({"a": "../s1.safetensors"}, "a: got '../s1.safetensors'.*in the same folder"),
        ({"a": "/etc/passwd"}, "a: got '/etc/passwd'"),
        ({"a": "s3.safetensors"}, "s3.safetensors: missing; .* says that it holds 'a'"),
        ({"b": "s1.safetensors"}, "s1.safetensors: has no tensor 'b'"),
    ],
)
def test_index_errors(tmp_path: Path, weight_map: Any, message: str) -> None:
    shards(tmp_path, weight_map)
    with pytest.raises(UserError, match=message):
        Checkpoint(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "s1.safetensors", "b": "s2.safetensors"})
    save_file({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, tmp_path / "s2.safetensors")
    with pytest.raises(UserError, match=r"s2.safetensors: tensor 'a' is also in .*s1.safetensors"):
        Checkpoint(tmp_path)


# --- params from tensors --------------------------------------------------------------------------


def checkpoint_of(folder: Path, **tensors: np.ndarray) -> Checkpoint:
    save_file({k.replace("__", "."): v for k, v in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder)


def test_transforms(tmp_path: Path) -> None:
    q, k = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(4, dtype=np.float32).reshape(2, 2)
    checkpoint = checkpoint_of(tmp_path, q=q, k=k, x__mask=np.ones(2, np.float32))
    sources = {
        "qk": ParamSource((("model.q", (3, 2)), ("k", (2, 2))), bf16),
        "qt": ParamSource((("q", (3, 2)),), f32, Transform.TRANSPOSE),
        "k": ParamSource((("k", (2, 2)),), f32),
    }
    assert sources["qk"].shape == (5, 2)
    assert sources["qt"].shape == (2, 3)
    params = dict(load_params(sources, RULES, checkpoint))
    np.testing.assert_array_equal(params["qk"], np.concatenate([q, k]).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(params["qt"], q.T)
    assert params["qt"].flags.c_contiguous
    # As it is: no copy.
    assert not params["k"].flags.owndata
    np.testing.assert_array_equal(params["k"], k)


def test_params_are_made_one_at_a_time(tmp_path: Path) -> None:
    """Memory beyond the maps stays below two params, however many there are."""
    names = [f"t{i}" for i in range(20)]
    checkpoint = checkpoint_of(tmp_path, **{n: np.ones((128, 128), np.float32) for n in names})
    sources = {n: ParamSource(((n, (128, 128)),), bf16) for n in names}
    tracemalloc.start()
    try:
        for _, array in load_params(sources, RULES, checkpoint):
            assert array.nbytes == 2 * 128 * 128
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * 2 * 128 * 128


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ParamSource((("b", (2, 2)),), f32), r"tensor 'b' is missing from the checkpoint; expected \(2, 2\)"),
        (
            ParamSource((("a", (2, 3)),), f32),
            r"tensor 'a': got shape \(2, 2\); expected \(2, 3\) by config.json",
        ),
        (ParamSource((("i", (2,)),), f32), "tensor 'i': got dtype i32; expected a float type"),
        (ParamSource((("a", (2, 2)),), f32), "tensor 'i' is not part of this architecture"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, source: ParamSource, message: str) -> None:
    checkpoint = checkpoint_of(tmp_path, a=np.ones((2, 2), np.float32), i=np.ones(2, np.int32))
    # The call itself fails, before any param is made.
    with pytest.raises(UserError, match=message):
        load_params({"p": source}, RULES, checkpoint)


def test_values_beyond_f16(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a=np.array([1.0, 7e4], np.float32))
    source = ParamSource((("a", (2,)),), f16)
    with pytest.raises(UserError, match="p: got a weight of magnitude 70000; f16 holds at most 65504"):
        dict(load_params({"p": source}, RULES, checkpoint))


def test_infinities_of_the_checkpoint_stay(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, a=np.array([1.0, np.inf], np.float32))
    params = dict(load_params({"p": ParamSource((("a", (2,)),), f16)}, RULES, checkpoint))
    assert np.isinf(params["p"][1])


# --- fuzzing: a file is read or refused, nothing else ----------------------------------------------

SIZES = st.integers(-2, 20) | st.integers()
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4", "I64"]) | st.integers(),
        "shape": st.lists(SIZES, max_size=4) | st.text(max_size=2) | st.none(),
        "data_offsets": st.lists(SIZES, max_size=3) | st.integers(),
    },
)
HEADER = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"), ENTRY | st.none() | st.text(max_size=3)
)


def read_all(path: Path) -> None:
    try:
        file = CheckpointFile(path)
    except UserError:
        return
    for name in file.entries:
        file[name].sum()
        file.release(name)


@given(HEADER.map(lambda h: json.dumps(h).encode()) | st.binary(max_size=60), st.binary(max_size=40))
def test_fuzzed_headers(tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    read_all(write(path, header, data))


@given(st.data())
def test_flipped_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.float16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    read_all(path)


@given(st.binary(max_size=80) | st.dictionaries(st.text(max_size=4), st.text(max_size=8)).map(
    lambda m: json.dumps({"weight_map": m}).encode()
))  # fmt: skip
def test_fuzzed_index(tmp_path_factory: pytest.TempPathFactory, index: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz-index"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(index)
    with contextlib.suppress(UserError):
        Checkpoint(folder)
