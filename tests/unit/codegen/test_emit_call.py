"""Calls in machine code: arguments, conventions, failures; the interpreter gives the same results."""

import ctypes

import numpy as np
import pytest
from extern_functions import Refused, function, mixed
from hand_kernels import TARGET

from strata.codegen.build import build_image
from strata.codegen.compile import emit_module
from strata.codegen.externs import c_signature, can_fail, extern_names, extern_records
from strata.codegen.object_cache import ObjectCache
from strata.core.errors import CodegenError, ExternError
from strata.loop.externs import EXTERNS
from strata.loop.interp import run
from strata.loop.nodes import Call, Func
from strata.loop.text import parse_func
from strata.runtime import image as image_module
from strata.runtime.externs import Bound, take_cause
from strata.runtime.image import LoadedImage, load_image
from strata.runtime.records import (
    ArgKind,
    ArgRef,
    DimRange,
    ExternRecord,
    FunctionRecord,
    KernelChoice,
    Launch,
)
from strata.runtime.records import TensorSpec as Spec
from strata.runtime.tensors import as_tensor

pytestmark = pytest.mark.usefixtures("_cache")


@pytest.fixture
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE_DIR", str(tmp_path))


def load(*funcs: Func, threads: int = 2) -> LoadedImage:
    return load_image(build_image(funcs, [], TARGET, cache=ObjectCache()).blob, threads)


def compare(func: Func, *inputs: np.ndarray, outputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """Run natively and in the interpreter; the results must be the same bits."""
    native, slow = [o.copy() for o in outputs], [o.copy() for o in outputs]
    load(func).function(func.name)(*map(as_tensor, (*inputs, *native)))
    run(func, [*inputs, *slow])
    for a, b in zip(native, slow, strict=True):
        np.testing.assert_array_equal(a, b)
    return native


def numbers(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


# ------------------------------------------------------------------------------------------- arguments

CALL_MIXED = "call @{}(i32(n) - 7_i32, x, n * 3, 0x1.8p-2, f64(n) - 0x1p+2_f64, y)"


def test_scalars_of_all_kinds_to_a_tensor_function():
    for n in (1, 5, 17):
        compare(function(CALL_MIXED.format("test.mixed")), numbers(n), outputs=(np.zeros(n, np.float32),))


def test_scalars_of_all_kinds_to_a_c_function(monkeypatch):
    """The C convention: the function gets addresses and numbers as its C type says."""
    n, seen = 9, []
    kind = ctypes.CFUNCTYPE(
        None,
        *(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_float, ctypes.c_double, ctypes.c_void_p),
    )

    @kind
    def native(a, x, b, c, d, y):
        arrays = [np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(ctypes.c_float)), (n,)) for p in (x, y)]
        mixed(a, arrays[0], b, c, d, arrays[1])
        seen.append((a, b, c, d))

    def resolve(name, where):
        assert name == "test.mixed_c"
        return Bound(ctypes.cast(native, ctypes.c_void_p).value or 0, native)

    monkeypatch.setattr(image_module, "resolve", resolve)
    compare(function(CALL_MIXED.format("test.mixed_c")), numbers(n), outputs=(np.zeros(n, np.float32),))
    assert seen == [(2, 27, 0.375, 5.0)]


def test_shapes_of_tensors():
    func = parse_func(
        "dims k in 1..64, n in 1..64\nfunc @f(x: f32[n,k]) -> (y: f32[3])\n"
        "  alloc t: f32[2,3] local\n  for i in 2:\n    for j in 3:\n      t[i, j] = f32(i * 3 + j)\n"
        "  call @test.measure(t, y)\n  call @test.measure(x, y)\n"
    )
    x = numbers(35).reshape(5, 7)
    (y,) = compare(func, x, outputs=(np.zeros(3, np.float32),))
    np.testing.assert_array_equal(y, [5, 7, x[-1, -1]])


def test_a_private_buffer_and_an_updated_one():
    func = parse_func(
        "func @f(x: f32[4]) -> (y: f32[4])\n  alloc t: f32[4] local\n  for i in 4:\n    y[i] = x[i]\n"
        "  call @test.scale(x, 0x1p+2, t)\n  for k in 3:\n    call @test.accumulate(t, y)\n"
    )
    x = numbers(4)
    (y,) = compare(func, x, outputs=(np.zeros(4, np.float32),))
    np.testing.assert_allclose(y, 13 * x, rtol=1e-6)


def test_calls_between_parallel_loops():
    """A call sees what the loops before it wrote, and the loops after it see what it wrote."""
    body = """
parallel i in n:
  y[i] = x[i] + 0x1p+0
call @test.accumulate(x, y)
parallel j in n:
  y[j] = y[j] * y[j]
"""
    n = 64
    (y,) = compare(function(body), numbers(n), outputs=(np.zeros(n, np.float32),))
    np.testing.assert_allclose(y, (2 * numbers(n) + 1) ** 2, rtol=1e-5)


def test_a_call_under_a_condition():
    body = "if n < 4:\n  call @test.scale(x, 0x1p+1, y)\nelse:\n  call @test.scale(x, 0x1.8p+1, y)"
    for n in (3, 4):
        compare(function(body), numbers(n), outputs=(np.zeros(n, np.float32),))


# -------------------------------------------------------------------------------------------- failures

FAILS = function("y[0] = 0x1p+0\ncall @test.scale(x, 0x1.ap+3, y)\ny[0] = 0x1p+1", name="fails")
WORKS = function("call @test.scale(x, 0x1p+1, y)", name="works")


def test_a_failing_call_ends_the_kernel_and_is_named():
    image = load(FAILS, WORKS)
    x, y = numbers(5), np.zeros(5, np.float32)
    for _ in range(3):
        with pytest.raises(ExternError, match=r"^extern test.scale: Refused: thirteen$"):
            image.function("fails")(as_tensor(x), as_tensor(y))
        assert isinstance(take_cause(), Refused)
        assert take_cause() is None
        np.testing.assert_array_equal(y, [1, 0, 0, 0, 0])  # nothing after the call ran
    image.function("works")(as_tensor(x), as_tensor(y))
    np.testing.assert_array_equal(y, 2 * x)


def test_a_failing_call_ends_the_model_function():
    """Kernels after the one that failed do not run."""
    step = FunctionRecord(
        "step",
        (Spec("x", "f32", ("n",)),),
        (Spec("y", "f32", ("n",)),),
        (DimRange("n", 1, 64),),
        (
            Launch(
                "first",
                (KernelChoice("works", (DimRange("n", 1, 4),)), KernelChoice("fails")),
                (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.OUTPUT, 0)),
            ),
            Launch("second", (KernelChoice("plain"),), (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.OUTPUT, 0))),
        ),
        64,
    )
    plain = function("for i in n:\n  y[i] = y[i] + x[i]", name="plain")
    entry = load_image(build_image([FAILS, WORKS, plain], [step], TARGET).blob, 1).function("step")
    arena = np.zeros(256, np.uint8)
    workspace = (np.zeros(1, np.int64), arena[-arena.ctypes.data % 64 :])
    for n, wanted in ((4, 3 * numbers(4)), (5, None)):
        x, y = numbers(n), np.zeros(n, np.float32)
        if wanted is None:
            with pytest.raises(ExternError, match=r"extern test.scale: Refused: thirteen"):
                entry(*map(as_tensor, (x, y, *workspace)))
            np.testing.assert_array_equal(y, [1, 0, 0, 0, 0])
        else:
            entry(*map(as_tensor, (x, y, *workspace)))
            np.testing.assert_array_equal(y, wanted)


# ------------------------------------------------------------------------------------- what is emitted


def test_only_kernels_that_can_fail_return_a_status():
    text = emit_module(WORKS, TARGET)
    assert "define dso_local i32 @works.impl(" in text
    assert '@"extern:test.scale" = external dso_local global ptr' in text
    assert "define dso_local void @f.impl(" in emit_module(
        function(CALL_MIXED.format("test.mixed_c")), TARGET
    )
    assert can_fail(WORKS)
    assert not can_fail(function(CALL_MIXED.format("test.mixed_c")))


def test_the_image_lists_what_it_calls():
    both = [WORKS, function("call @test.accumulate(x, y)", name="other")]
    symbols = build_image(both, [], TARGET).symbols
    assert {s for s in symbols if s.startswith("extern:")} == {"extern:test.scale", "extern:test.accumulate"}
    assert extern_names(both) == ["test.accumulate", "test.scale"]
    assert extern_records([WORKS]) == (ExternRecord("test.scale", "tensors (const float*, float, float*)"),)
    assert c_signature(EXTERNS["test.mixed_c"]) == "void (int, const float*, long, float, double, float*)"


def test_errors_of_the_emitter():
    parallel = function("parallel i in n:\n  call @test.scale(x, 0x1p+1, y)")
    with pytest.raises(CodegenError, match=r"f: call @test.scale is inside a parallel loop"):
        emit_module(parallel, TARGET)
    unknown = Func("f", WORKS.params, Call("no.such", ()))
    with pytest.raises(CodegenError, match=r"call @no.such: no such extern; known: .*test.scale"):
        emit_module(unknown, TARGET)
