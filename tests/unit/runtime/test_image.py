"""The image file: round trip, mapping, protection, and that corrupt files are refused."""

import ctypes
import hashlib
import json
import platform
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hand_kernels import image
from hypothesis import given
from hypothesis import strategies as st

from strata.core.errors import DeviceError, ShapeError, UserError
from strata.core.knobs import knobs
from strata.runtime import image as image_module
from strata.runtime.image import Protection, encode_image, load_image, parse_image
from strata.runtime.records import (
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    Launch,
    TensorSpec,
)

BLOB = image("double", "bias").blob
HEADER_BYTES = 72
SHA_AT = HEADER_BYTES - 32

# y = double(double(x)) + bias, with 1 more where n <= 4; the doubled values go through the arena
STEP = FunctionRecord(
    "step",
    (TensorSpec("x", "f32", ("n", 4)),),
    (TensorSpec("y", "f32", ("n", 4)),),
    (DimRange("n", 1, 64),),
    (
        Launch("a", (KernelChoice("double"),), (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.ARENA, 0))),
        Launch("b", (KernelChoice("double"),), (ArgRef(ArgKind.ARENA, 0), ArgRef(ArgKind.ARENA, 1024))),
        Launch(
            "c",
            (KernelChoice("bias_small", (DimRange("n", 1, 4),)), KernelChoice("bias")),
            (ArgRef(ArgKind.ARENA, 1024), ArgRef(ArgKind.PARAM, 1), ArgRef(ArgKind.OUTPUT, 0)),
        ),
    ),
    2048,
)


def signed(blob: bytes) -> bytes:
    """The blob with a checksum that fits."""
    head, body = blob[:SHA_AT], blob[HEADER_BYTES:]
    return head + hashlib.sha256(head + bytes(32) + body).digest() + body


def with_field(offset: int, form: str, value: int) -> bytes:
    changed = bytearray(BLOB)
    struct.pack_into(form, changed, offset, value)
    return signed(bytes(changed))


def test_round_trip():
    built = image("double", "bias")
    assert parse_image(built.blob) == built
    assert encode_image(parse_image(built.blob)) == built.blob
    assert built.relocs  # the table of addresses in the bias kernel


def run_step(loaded, n: int) -> np.ndarray:
    x = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    y = np.empty_like(x)
    bias = np.array([1, 2, 3, 4], np.float32)
    table = np.array([0, bias.ctypes.data], np.int64)
    raw = np.empty(2048 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    loaded.function("step")(x, y, table, raw[start : start + 2048])
    np.testing.assert_array_equal(y, 4 * x + bias + (1 if n <= 4 else 0))
    return y


def test_runs_in_a_process_without_llvmlite(tmp_path):
    path = tmp_path / "step.image"
    built = image("double", "bias", "bias_small", functions=(STEP,))
    path.write_bytes(built.blob)
    expected = {str(n): run_step(load_image(built, 1), n).tolist() for n in (1, 4, 5, 64)}
    script = """
import json, sys
sys.modules["llvmlite"] = None
import numpy as np
from strata.runtime.image import load_image
loaded = load_image(sys.argv[1], 2)
out = {}
for n in (1, 4, 5, 64):
    x = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    y, bias = np.empty_like(x), np.array([1, 2, 3, 4], np.float32)
    raw = np.empty(2048 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    loaded.function("step")(x, y, np.array([0, bias.ctypes.data]), raw[start : start + 2048])
    out[n] = y.tolist()
compiler = ("strata.codegen", "strata.loop", "strata.graph", "llvmlite.binding")
json.dump([out, [m for m in sys.modules if m.startswith(compiler)]], sys.stdout)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected, []]


@given(st.integers(1, 64))
def test_two_addresses_give_the_same_results(n):
    first, second = LOADED
    assert first.address("step") != second.address("step")
    np.testing.assert_array_equal(run_step(first, n), run_step(second, n))


LOADED = tuple(load_image(image("double", "bias", "bias_small", functions=(STEP,)), 1) for _ in range(2))


def test_protection_of_every_page():
    loaded = load_image(BLOB, 1)
    base = loaded.address("double") - loaded._image.symbols["double"]
    wanted = {Protection.READ: "r--p", Protection.READ_EXECUTE: "r-xp", Protection.READ_WRITE: "rw-p"}
    maps = []
    with open("/proc/self/maps") as file:
        for line in file:
            span, mode = line.split()[:2]
            start, end = (int(x, 16) for x in span.split("-"))
            maps.append((start, end, mode))
    assert {s.protection for s in loaded._image.segments} == set(Protection)
    for segment in loaded._image.segments:
        at = base + segment.address
        assert [m for start, end, m in maps if start <= at < end] == [wanted[segment.protection]]


def test_addresses_and_symbols():
    with load_image(BLOB, 1) as loaded:
        assert {"double", "bias", "strata_init"} <= set(loaded.symbols)
        with pytest.raises(
            UserError, match=r"image: got symbol 'triple'; expected one of bias, double, strata"
        ):
            loaded.address("triple")
    data = replace(
        image("double"), symbols={**image("double").symbols, "data": image("double").segments[-1].address}
    )
    with pytest.raises(UserError, match=r"image: got symbol 'data', which is data; expected a function"):
        load_image(data, 1).function("data")


def test_threads_default_to_the_knob_then_to_the_cores():
    with knobs(threads=3), load_image(BLOB) as loaded:
        assert loaded.num_threads == 3
    with load_image(BLOB) as loaded:
        assert loaded.num_threads == len(image_module.os.sched_getaffinity(0))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.image: cannot read the image: No such file"):
        load_image(tmp_path / "none.image")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", r"got b''; expected a Strata image"),
        (b"\x7fELF" + bytes(200), r"got b'\\x7fELF.*'; expected a Strata image"),
        (with_field(8, "<I", 99), r"got image version 99; expected 1"),
        (BLOB[:-1], r"corrupt image: its checksum does not match"),
        (with_field(16, "<Q", 1 << 40), r"corrupt image: memory size 1099511627776"),
        (with_field(16, "<Q", 4097), r"corrupt image: memory size 4097"),
        (with_field(24, "<I", 1 << 30), r"corrupt image: tables of \d+ bytes in a file"),
        (with_field(HEADER_BYTES, "<Q", 1 << 20), r"corrupt image: segment 0 at 1048576"),
        (with_field(HEADER_BYTES + 16, "<Q", 1 << 50), r"corrupt image: segment 0 has \d+ bytes at"),
        (with_field(HEADER_BYTES + 32, "<Q", 7), r"corrupt image: segment 0 has .* protection 7"),
        (with_field(12, "<I", 8), r"got code for ELF machine 8; this machine is"),
    ],
)
def test_corrupt_images_are_refused(blob, message):
    with pytest.raises(UserError, match=message):
        load_image(blob, 1)


def test_bad_tables():
    built = image("double", "bias")
    with pytest.raises(UserError, match=r"relocation of address 0 to 0 outside of the data segments"):
        parse_image(encode_image(replace(built, relocs=((0, 0),))))
    with pytest.raises(UserError, match=r"symbol 'far' at \d+ is outside of the memory"):
        parse_image(encode_image(replace(built, symbols={"far": built.memory_bytes})))
    at = BLOB.index(b"double")
    with pytest.raises(UserError, match=r"symbol name at \d+ is not UTF-8"):
        parse_image(signed(BLOB[:at] + b"\xff" + BLOB[at + 1 :]))
    with pytest.raises(UserError, match=r"it does not export strata_init, strata_worker, strata_stop"):
        load_image(replace(built, symbols={}), 1)


def test_other_machine(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match=r"got code for x86_64; this machine is riscv64; compile it here"):
        load_image(BLOB, 1)


def test_refused_mapping(monkeypatch):
    class Refusing:
        def mprotect(self, *args):
            ctypes.set_errno(13)
            return -1

    monkeypatch.setattr(image_module.ctypes, "CDLL", lambda *args, **kwargs: Refusing())
    with pytest.raises(DeviceError, match=r"mprotect of \d+ bytes to READ_EXECUTE: Permission denied"):
        load_image(BLOB, 1)


@given(st.data())
def test_fuzzed_files_are_refused_or_read(data):
    """Any change without a fitting checksum is refused; with one, reading still never crashes."""
    changed = bytearray(BLOB)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(BLOB), HEADER_BYTES + 600) - 1))
        changed[at] ^= data.draw(st.integers(1, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(changed)))])
    for blob in (bytes(changed), cut):
        if blob != BLOB:
            with pytest.raises(UserError):
                parse_image(blob)
    messages: list[str] = []
    for blob in (signed(bytes(changed)), signed(cut) if len(cut) > HEADER_BYTES else cut):
        try:
            parsed = parse_image(blob)
        except UserError as error:
            messages.append(str(error))
            continue
        assert all(s.address + s.memory_bytes <= parsed.memory_bytes for s in parsed.segments)
    assert all(m.startswith("image: ") for m in messages)


def test_errors_of_native_code_are_shape_errors():
    function = load_image(image("double"), 1).function("double")
    with pytest.raises(ShapeError, match=r"double: argument 0 \(x\): got f64\[2,4\]; expected f32\[n,4\]"):
        function(np.zeros((2, 4)), np.zeros((2, 4), np.float32))
