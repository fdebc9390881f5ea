"""Wrappers: what they accept, and the message for everything that does not fit."""

import ctypes
import re

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm_ffi
from hand_kernels import TARGET, compiled, declared, image, support
from tvm_ffi import libinfo

from strata.codegen.abi import ArgSpec, Signature, descriptor, dtype_word, emit_wrappers
from strata.codegen.link import link
from strata.codegen.threads import SUPPORT_EXPORTS
from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f32, f64, i32, i64, u8
from strata.core.errors import CodegenError, ShapeError
from strata.loop.nodes import Buffer
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor

N, K = SymDim("n", 1, 64), SymDim("k", 0, 96, 32)

# Stores the sizes that the wrapper bound: sizes[0] = k, sizes[1] = n (sorted by name).
SHAPES = declared(
    "shapes",
    Buffer("x", (N, K), f32),
    Buffer("w", (2 * N + 1,), bf16),
    Buffer("m", (N * K,), bool_),
    Buffer("s", (), f64),
    Buffer("sizes", (2,), i64),
)
SHAPES_TEXT = """
define hidden void @shapes.impl(ptr %x, ptr %w, ptr %m, ptr %s, ptr %sizes, i64 %k, i64 %n) {
  store i64 %k, ptr %sizes
  %second = getelementptr i8, ptr %sizes, i64 8
  store i64 %n, ptr %second
  ret void
}
"""
# Nothing gives n as a whole entry, so the integers are needed.
HALF = declared("half", Buffer("x", (2 * N,), i32))
HALF_TEXT = """
define hidden void @half.impl(ptr %x, i64 %n) {
  %v = trunc i64 %n to i32
  store i32 %v, ptr %x
  ret void
}
"""


def load(funcs, *texts):
    objects = [support(), *(compiled(t) for t in texts), compiled(emit_wrappers(funcs, TARGET.triple))]
    return load_image(link(objects, [*SUPPORT_EXPORTS, *(f.name for f in funcs)]), 1)


@pytest.fixture(scope="module")
def shapes():
    return load([SHAPES], SHAPES_TEXT).function("shapes")


def arguments(n=3, k=32, **changed):
    arrays = {
        "x": np.zeros((n, k), np.float32),
        "w": as_tensor(np.zeros(2 * n + 1, ml_dtypes.bfloat16)),
        "m": np.zeros(n * k, bool),
        "s": np.zeros((), np.float64),
        "sizes": np.zeros(2, np.int64),
    }
    return list((arrays | changed).values())


def test_sizes_are_read_off_the_shapes(shapes):
    for n, k in ((1, 0), (3, 32), (64, 96)):
        args = arguments(n, k)
        shapes(*args)
        np.testing.assert_array_equal(args[-1], [k, n])
        shapes(*args, k, n)


def test_torch_tensors(shapes):
    sizes = torch.zeros(2, dtype=torch.int64)
    shapes(
        torch.zeros(2, 64),
        torch.zeros(5, dtype=torch.bfloat16),
        torch.zeros(128, dtype=torch.bool),
        torch.zeros((), dtype=torch.float64),
        sizes,
    )
    assert sizes.tolist() == [64, 2]


def test_strides_of_extent_one_do_not_matter(shapes):
    shapes(*arguments(1, 32, x=np.zeros((5, 32), np.float32)[::5]))
    shapes(*arguments(2, 0, x=np.zeros((2, 32), np.float32)[:, :0]))


MISALIGNED = tvm_ffi.from_dlpack(
    np.frombuffer(bytes(12 * 32 + 1), np.uint8)[1:]
    .view(np.float32)
    .reshape(3, 32)
    .__dlpack__(max_version=(1, 0))
)
X = "x): got"
WRONG = {
    "too few": ([], r"shapes: got 0 arguments; expected 5 \(x, w, m, s, sizes\), or 7 with k, n"),
    "one int": ([*arguments(), 32], r"shapes: got 6 arguments; expected 5"),
    "none": (
        arguments(x=None),
        r"argument 0 \(x\): got a value of tvm-ffi type 0; expected a tensor f32\[n,k\]",
    ),
    "int": (
        arguments(s=3),
        r"shapes: argument 3 \(s\): got a value of tvm-ffi type 1; expected a tensor f64\[\]",
    ),
    "dtype": (arguments(x=np.zeros((3, 32))), r"argument 0 \(x\): got f64\[3,32\]; expected f32\[n,k\]"),
    "bits": (
        arguments(m=np.zeros(96, np.uint8)),
        r"argument 2 \(m\): got u8\[96\]; expected bool\[k\*n\] where",
    ),
    "bf16": (
        arguments(w=np.zeros(7, np.uint16)),
        r"argument 1 \(w\): got u16\[7\]; expected bf16\[2\*n \+ 1\]",
    ),
    "complex": (arguments(x=np.zeros((3, 32), np.complex64)), r"got complex64\[3,32\]; expected f32\[n,k\]"),
    "float8": (
        arguments(x=torch.zeros(3, 32, dtype=torch.float8_e4m3fn)),
        r"got code10x8\[3,32\]; expected f32",
    ),
    "rank": (arguments(x=np.zeros(96, np.float32)), r"argument 0 \(x\): got f32\[96\]; expected f32\[n,k\]"),
    "constant": (
        arguments(sizes=np.zeros(3, np.int64)),
        r"argument 4 \(sizes\): got i64\[3\]; expected i64\[2\]",
    ),
    "polynomial": (
        arguments(m=np.zeros(97, bool)),
        r"\(m\): got bool\[97\]; expected bool\[k\*n\] where k = 32, n = 3",
    ),
    "strided": (
        arguments(x=np.zeros((32, 3), np.float32).T),
        r"\(x\): got a strided f32\[3,32\]; expected f32\[n,k\], dense",
    ),
    "misaligned": (
        arguments(x=MISALIGNED),
        r"\(x\): got f32\[3,32\] at an address that is no multiple of 4; copy it",
    ),
    "range": (arguments(65), r"shapes: got n = 65; expected 1\.\.64$"),
    "below": (arguments(0), r"shapes: got n = 0; expected 1\.\.64$"),
    "multiple": (arguments(k=33), r"shapes: got k = 33; expected 0\.\.96, a multiple of 32"),
    "int dim": (
        [*arguments(), 64, 3],
        r"shapes: argument 5 \(k\): got 64; expected the size in the shapes where k = 32",
    ),
    "float dim": (
        [*arguments(), 32, 3.0],
        r"shapes: argument 6 \(n\): got a value of tvm-ffi type 3; expected an int",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(shapes, name):
    args, message = WRONG[name]
    with pytest.raises(ShapeError, match=message):
        shapes(*args)


def test_a_symbolic_dim_is_the_same_everywhere():
    function = load_image(image("double"), 1).function("double")
    message = r"double: argument 1 \(y\): got f32\[4,4\]; expected f32\[n,4\] where n = 3"
    with pytest.raises(ShapeError, match=message):
        function(np.zeros((3, 4), np.float32), np.zeros((4, 4), np.float32))


def test_integers_are_needed_where_no_shape_tells():
    half = load([HALF], HALF_TEXT).function("half")
    x = np.zeros(6, np.int32)
    half(x, 3)
    assert x[0] == 3
    with pytest.raises(ShapeError, match=r"half: got 1 arguments; expected 2 \(x; n\)"):
        half(x)
    with pytest.raises(
        ShapeError, match=r"half: argument 0 \(x\): got i32\[6\]; expected i32\[2\*n\] where n = 2"
    ):
        half(x, 2)


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Any(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("pad", ctypes.c_int32), ("value", ctypes.c_void_p))


def raw_call(loaded, x: DLTensor, y: DLTensor) -> tuple[int, Any]:
    """Call the double kernel with bare ``DLTensor*`` (type index 7)."""
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    result = Any(-1, 1, 1)
    args = (Any * 2)(Any(7, 0, ctypes.addressof(x)), Any(7, 0, ctypes.addressof(y)))
    return call(loaded.address("double"))(None, args, 2, ctypes.byref(result)), result


def test_bare_tensor_pointers_with_byte_offset_and_no_strides():
    loaded = load_image(image("double"), 1)
    shape = (ctypes.c_int64 * 2)(1, 4)
    data, out = np.arange(8, dtype=np.float32), np.zeros(4, np.float32)
    device = (ctypes.c_int32 * 2)(1, 0)
    x = DLTensor(data.ctypes.data, device, 2, dtype_word(f32), ctypes.addressof(shape), None, 16)
    y = DLTensor(out.ctypes.data, device, 2, dtype_word(f32), ctypes.addressof(shape), None, 0)
    code, result = raw_call(loaded, x, y)
    assert (code, result.kind, result.value) == (0, 0, None)
    np.testing.assert_array_equal(out, [8, 10, 12, 14])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("device", (2, 0), r"argument 0 \(x\): got a tensor on device type 2; expected CPU memory"),
        ("data", None, r"argument 0 \(x\): got f32\[1,4\] with a null data pointer"),
        ("dtype", dtype_word(f32) + (3 << 16), r"argument 0 \(x\): got f32x4\[1,4\]; expected f32\[n,4\]"),
        ("dtype", 255 | 8 << 8 | 1 << 16, r"argument 0 \(x\): got code255x8\[1,4\]; expected f32\[n,4\]"),
    ],
)
def test_wrong_bare_tensors(field, value, message):
    loaded = load_image(image("double"), 1)
    shape = (ctypes.c_int64 * 2)(1, 4)
    device = (ctypes.c_int32 * 2)(1, 0)
    data = np.zeros(4, np.float32)
    x = DLTensor(data.ctypes.data, device, 2, dtype_word(f32), ctypes.addressof(shape), None, 0)
    y = DLTensor(data.ctypes.data, device, 2, dtype_word(f32), ctypes.addressof(shape), None, 0)
    setattr(x, field, type(getattr(x, field))(*value) if isinstance(value, tuple) else value)

    assert raw_call(loaded, x, y)[0] == -1
    assert re.search(message, raised())


def raised() -> str:
    """Message of the error that native code left in thread-local storage."""
    lib = ctypes.CDLL(libinfo.find_libtvm_ffi())
    handle = ctypes.c_void_p()
    lib.TVMFFIErrorMoveFromRaised(ctypes.byref(handle))
    assert handle.value
    # TVMFFIObject header (24 bytes), then kind and message as (pointer, size)
    cell = (ctypes.c_uint64 * 4).from_address(handle.value + 24)
    text = ctypes.string_at(cell[2], cell[3]).decode()
    lib.TVMFFIObjectDecRef(handle)
    return text


def test_long_messages_are_cut():
    long = declared("long", Buffer("x" * 3000, (4,), u8))
    function = load([long], "define hidden void @long.impl(ptr %x) {\n ret void\n}").function("long")
    with pytest.raises(ShapeError, match=r"long: argument 0 \(x+$") as caught:
        function(np.zeros(5, np.uint8))
    assert 900 < len(str(caught.value)) < 1024


def test_dims_that_nothing_gives():
    signature = Signature("f", (ArgSpec("x", f32, (2 * N,)),), (N,), int_dims=False)
    with pytest.raises(CodegenError, match=r"f: no argument gives the value of n"):
        descriptor(signature)
