import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strata.core.errors import UserError
from strata.runtime.safetensors_file import SafetensorsFile, TensorShape, write_safetensors
from strata.runtime.tensors import numpy_dtype

SHAPES = [
    TensorShape("a", "bf16", (3, 5)),
    TensorShape("b", "f32", (16,)),
    TensorShape("scalar", "f64", ()),
    TensorShape("none", "i8", (0, 4)),
    TensorShape("flags", "bool", (3,)),
]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s.name: np.asarray(rng.normal(size=s.shape) * 9).astype(numpy_dtype(s.dtype)) for s in SHAPES}


def test_write_and_read_in_any_order(tmp_path):
    path = tmp_path / "w.safetensors"
    size = write_safetensors(path, SHAPES, reversed(arrays().items()), {"made": "here"})
    assert path.stat().st_size == size
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    file = SafetensorsFile(path)
    assert list(file) == [s.name for s in SHAPES]
    assert "a" in file
    assert file.metadata == {"made": "here"}
    for name, array in arrays().items():
        assert file[name].dtype == array.dtype
        assert file[name].shape == array.shape
        np.testing.assert_array_equal(file[name], array)
        assert array.size == 0 or file[name].ctypes.data % 64 == 0


def test_the_reference_library_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = tmp_path / "w.safetensors"
    write_safetensors(path, SHAPES, arrays().items())
    loaded = load_file(path)
    for name, array in arrays().items():
        np.testing.assert_array_equal(loaded[name].to(torch.float64).numpy(), array.astype(np.float64))


def test_it_reads_the_reference_librarys_files(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    save_file({k: v for k, v in arrays().items() if k != "a"}, path)
    file = SafetensorsFile(path)
    for name in ("b", "scalar", "none", "flags"):
        np.testing.assert_array_equal(file[name], arrays()[name])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([("b", np.zeros(16, np.float32)), ("c", np.zeros(1))], "w: tensor 'c' is unknown or given twice"),
        ([("b", np.zeros(16, np.float32))] * 2, "tensor 'b' is unknown or given twice"),
        ([("b", np.zeros(15, np.float32))], r"tensor 'b': got f32\[15\]; expected f32\[16\]"),
        ([("b", np.zeros(16))], r"tensor 'b': got f64\[16\]; expected f32\[16\]"),
        ([], r"w: 5 tensors were never given \(a, b, flags, \.\.\.\)"),
    ],
)
def test_wrong_tensors_leave_no_file(tmp_path, given, match):
    with pytest.raises(UserError, match=match):
        write_safetensors(tmp_path / "w", SHAPES, given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "__metadata__", "__pad.1"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(UserError, match=f"tensor name '{name}' is taken"):
        write_safetensors(tmp_path / "w", [SHAPES[0], TensorShape(name, "f32", (1,))], [])


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "got 0 bytes; expected a safetensors file"),
        (raw(b"", length=50), "header of 50 bytes in a file of 8; the file is cut off"),
        (raw(b"{nope"), "header is no JSON"),
        (raw(b"\xff\xff"), "header is no JSON"),
        (raw(b"[" * 200000), "header is no JSON"),
        (raw([1]), r"header: got \[1\]; expected an object"),
        (raw({"__metadata__": 3}), "header __metadata__: got 3; expected an object"),
        (raw({"w": 3}), "tensor 'w': got 3; expected dtype, shape and data_offsets"),
        (raw({"w": {**GOOD, "dtype": "F4"}}), "tensor 'w': got dtype 'F4'; expected one of F64"),
        (raw({"w": {**GOOD, "dtype": ["F4"]}}), r"tensor 'w': got dtype \['F4'\]"),
        (raw({"w": {**GOOD, "shape": [-1]}}), r"tensor 'w': got shape \[-1\]; expected a list of sizes"),
        (raw({"w": {**GOOD, "data_offsets": [0]}}), r"got data_offsets \[0\]; expected \[begin, end\]"),
        (
            raw({"w": {**GOOD, "data_offsets": [0, 4]}}),
            r"F32\[2\] takes 8 bytes; data_offsets \[0, 4\] hold 4",
        ),
        (
            raw({"w": GOOD}, b"1234567"),
            "its data ends at byte 8, but the file has 7 data bytes: it is cut off",
        ),
    ],
)
def test_damaged_files(tmp_path, content, match):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        SafetensorsFile(path)


def test_missing(tmp_path):
    with pytest.raises(UserError, match="cannot read the weights: No such file"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read the weights: Is a directory"):
        SafetensorsFile(tmp_path)
    path = tmp_path / "w"
    path.write_bytes(raw({"w": GOOD}, b"12345678"))
    with pytest.raises(UserError, match=r"no tensor 'v'; it has 1 tensors \(w, \.\.\.\)"):
        SafetensorsFile(path)["v"]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(["w", "v", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "Q4", 3]),
                "shape": st.lists(st.integers(-1, 2**63), max_size=3) | st.none(),
                "data_offsets": st.lists(st.integers(-(2**63), 2**63) | st.integers(0, 64), max_size=3),
            }
        )
        | st.none(),
    ),
    st.binary(max_size=64),
    st.integers(0, 2**64 - 1) | st.none(),
)
def test_fuzzed_headers(tmp_path_factory, header, data, length):
    path = tmp_path_factory.mktemp("st") / "w"
    path.write_bytes(raw(header, data, length))
    message = str(path)
    try:
        file = SafetensorsFile(path)
        for name in file:
            file[name].sum()
    except UserError as error:
        message = str(error)
    assert str(path) in message
