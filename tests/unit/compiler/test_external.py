"""Functions of this process as externs: Python, PyTorch and native tvm-ffi functions, zero copy, errors."""

import sys

import numpy as np
import pytest
import torch
import tvm_ffi
from hand_kernels import TARGET

import strata
from strata.codegen.build import build_image
from strata.core.errors import ExternError, ParseError, ShapeError, UserError
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.runtime.image import load_image
from strata.runtime.tensors import array_at, as_tensor, numpy_dtype

ROWS = "(x: f32[n,4]) -> (y: f32[n,4])"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE_DIR", str(tmp_path))


def kernel(signature: str, call: str) -> Func:
    return parse_func(f"func @f{signature}\n  call @{call}\n")


def call(signature: str, body: str, *arrays: np.ndarray) -> None:
    """Run a function of one call natively; the last array is also compared with the interpreter's."""
    func = kernel(signature, body)
    slow = [a.copy() for a in arrays]
    load_image(build_image([func], [], TARGET).blob, 1).function("f")(*map(as_tensor, arrays))
    run(func, slow)
    np.testing.assert_array_equal(arrays[-1], slow[-1])


def rows(n: int = 3) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)


# ---------------------------------------------------------------------------------------- kinds of functions


def test_a_numpy_function_fills_its_output_in_place():
    seen = []

    def add_bias(x, b, y):
        """Adds b."""
        seen.append((x.__array_interface__["data"][0], x.flags.writeable, y.flags.writeable))
        np.add(x, b, out=y)

    extern = strata.external("ext.add_bias", add_bias, "(x: f32[n,d], b: f32[d]) -> (y: f32[n,d])")
    assert (extern.name, extern.doc) == ("ext.add_bias", "Adds b.")
    x, b, y = rows(), np.arange(4, dtype=np.float32), np.zeros((3, 4), np.float32)
    call("(x: f32[n,4], b: f32[4]) -> (y: f32[n,4])", "ext.add_bias(x, b, y)", x, b, y)
    np.testing.assert_array_equal(y, x + b)
    assert seen[0] == (x.__array_interface__["data"][0], False, True)  # its own memory, inputs read-only


def test_a_function_that_returns_its_results():
    strata.external(
        "ext.split",
        lambda x: (x[:, :2], x[:, 2:]),
        "(x: f32[n,4]) -> (a: f32[n,2], b: f32[n,2])",
        returns=True,
    )
    x, a, b = rows(), np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    call("(x: f32[n,4]) -> (a: f32[n,2], b: f32[n,2])", "ext.split(x, a, b)", x, a, b)
    np.testing.assert_array_equal(np.hstack([a, b]), x)


def test_a_pytorch_function():
    strata.external("ext.gelu", torch.nn.functional.gelu, ROWS, returns=True)
    x, y = rows(), np.zeros((3, 4), np.float32)
    call(ROWS, "ext.gelu(x, y)", x, y)
    np.testing.assert_array_equal(y, torch.nn.functional.gelu(torch.from_numpy(x)).numpy())


def test_a_pytorch_module_of_bf16():
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 2).to(torch.bfloat16)
    strata.external("ext.linear", linear, "(x: bf16[n,4]) -> (y: bf16[n,2])", returns=True)
    x, y = rows().astype(numpy_dtype("bf16")), np.zeros((3, 2), numpy_dtype("bf16"))
    call("(x: bf16[n,4]) -> (y: bf16[n,2])", "ext.linear(x, y)", x, y)
    wanted = linear(torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)).float().detach().numpy()
    np.testing.assert_array_equal(y.astype(np.float32), wanted)


def test_a_python_function_of_pytorch_tensors():
    strata.external("ext.exp", lambda x, y: torch.exp(x, out=y), ROWS, arrays="torch")
    x, y = rows(), np.zeros((3, 4), np.float32)
    call(ROWS, "ext.exp(x, y)", x, y)
    np.testing.assert_array_equal(y, torch.exp(torch.from_numpy(x)).numpy())


def native_function(body: str):
    """A tvm-ffi function that is machine code, as a C++ library would have it."""
    func = parse_func(f"func @native{ROWS}\n{body}")
    return load_image(build_image([func], [], TARGET).blob, 1).function("native")


def test_a_native_function_costs_no_python(monkeypatch):
    native = native_function("  for i in n:\n    for j in 4:\n      y[i, j] = x[i, j] * 0x1.8p+1\n")
    strata.external("ext.triple", native, ROWS)
    monkeypatch.setattr("strata.runtime.externs.as_array", None)  # what Python functions are called through
    x, y = rows(), np.zeros((3, 4), np.float32)
    call(ROWS, "ext.triple(x, y)", x, y)
    np.testing.assert_array_equal(y, 3 * x)


def test_the_result_of_a_native_function_is_released():
    result = object()
    strata.external("ext.result", tvm_ffi.convert(lambda x, y: result), ROWS)
    image = load_image(build_image([kernel(ROWS, "ext.result(x, y)")], [], TARGET).blob, 1)
    before = sys.getrefcount(result)
    for _ in range(10):
        image.function("f")(as_tensor(rows()), as_tensor(rows()))
    assert sys.getrefcount(result) == before


# ------------------------------------------------------------------------------------------------- errors


def failing(name: str, function, signature: str = ROWS, **options) -> str:
    """Message of the error of a call."""
    strata.external(name, function, signature, **options)
    image = load_image(build_image([kernel(signature, f"{name}(x, y)")], [], TARGET).blob, 1)
    x, y = rows(), np.zeros((3, 4), np.float32)
    with pytest.raises(ExternError) as caught:
        image.function("f")(as_tensor(x), as_tensor(y))
    return str(caught.value)


def test_an_error_of_a_native_function_keeps_its_kind():
    native = native_function("  pass\n")
    strata.external("ext.narrow", native, "(x: f32[n,5]) -> (y: f32[n,5])")
    func = kernel("(x: f32[n,5]) -> (y: f32[n,5])", "ext.narrow(x, y)")
    image = load_image(build_image([func], [], TARGET).blob, 1)
    x = np.zeros((3, 5), np.float32)
    with pytest.raises(
        ExternError, match=r"^extern ext.narrow: strata.ShapeError: native: argument 0 \(x\): g"
    ):
        image.function("f")(as_tensor(x), as_tensor(x.copy()))


def test_results_that_do_not_fit():
    assert "extern ext.wide: ShapeError: it returned f32[3,8]; expected f32[3,4]" in failing(
        "ext.wide", lambda x: np.hstack([x, x]), returns=True
    )
    assert "it returned f64[3,4]; expected f32[3,4]" in failing("ext.f64", np.float64, returns=True)
    assert "it returned 2 results; expected 1" in failing("ext.two", lambda x: (x, x), returns=True)
    assert "it returned a ndarray; expected that it fills its last arguments; if it returns its" in failing(
        "ext.forgot", lambda x, y: x + y
    )
    assert "ValueError: output array is read-only" in failing("ext.inputs", lambda x, y: np.exp(x, out=x))


def test_the_interpreter_gives_the_same_errors():
    strata.external("ext.wide_too", lambda x: np.hstack([x, x]), ROWS, returns=True)
    with pytest.raises(ShapeError, match=r"it returned f32\[3,8\]; expected f32\[3,4\]"):
        run(kernel(ROWS, "ext.wide_too(x, y)"), [rows(), rows()])


@pytest.mark.parametrize(
    ("name", "signature", "options", "error", "message"),
    [
        ("a b", ROWS, {}, UserError, r"external: got the name 'a b'; expected words joined by dots, not st"),
        ("openblas.mine", ROWS, {}, UserError, r"'openblas.mine'; .* not starting with openblas., onednn."),
        ("ext.x", "(x f32[4]) -> ()", {}, ParseError, r"(?s)signature of ext.x:1:.*expected ':'.*like"),
        ("ext.x", "(x: f32[4]) -> ()", {}, ParseError, r"ext.x: got no outputs; expected a buffer"),
        ("ext.x", ROWS, {"arrays": "jax"}, UserError, r"ext.x: got arrays='jax'; expected 'numpy'"),
    ],
)  # fmt: skip
def test_bad_registrations(name, signature, options, error, message):
    with pytest.raises(error, match=message):
        strata.external(name, print, signature, **options)


def test_more_bad_registrations():
    native = native_function("  pass\n")
    with pytest.raises(
        UserError, match=r"external ext.n: a tvm-ffi function fills DLPack tensors; expected no r"
    ):
        strata.external("ext.n", native, ROWS, returns=True)
    strata.external("ext.once", print, ROWS)
    with pytest.raises(UserError, match=r"extern 'ext.once' is registered already"):
        strata.external("ext.once", print, ROWS)


def test_arrays_are_views_of_the_programs_memory():
    kept = []
    strata.external("ext.keep", lambda x, y: kept.append(x.__array_interface__["data"][0]), ROWS)
    x, y = rows(), rows()
    call(ROWS, "ext.keep(x, y)", x, y)
    np.testing.assert_array_equal(array_at(kept[0], (3, 4), x.dtype), x)
