"""Externs are found when an image is loaded; what is missing is named, with what to do."""

import ctypes
import dataclasses

import numpy as np
import pytest
import tvm_ffi
from extern_functions import Refused, function
from hand_kernels import TARGET

from strata.codegen.build import build_image
from strata.codegen.externs import extern_records
from strata.core.errors import ExternError, UserError
from strata.loop.text import parse_func
from strata.runtime import externs, libraries
from strata.runtime.artifact import open_artifact, save_artifact
from strata.runtime.calls import invoke
from strata.runtime.externs import check_externs, check_portable, guarded, is_library
from strata.runtime.image import load_image
from strata.runtime.program import Program
from strata.runtime.records import (
    ArgKind,
    ArgRef,
    DimRange,
    ExternRecord,
    FunctionRecord,
    KernelChoice,
    Launch,
    ParamRecord,
    ProgramRecord,
    TensorSpec,
)
from strata.runtime.records_json import program_from_json, program_to_json
from strata.runtime.tensors import as_tensor

PRODUCT = parse_func(
    "dims n in 1..64\nfunc @product(a: f32[n,5], w: f32[5,3]) -> (c: f32[n,3])\n"
    "  call @openblas.sgemm(101_i32, 111_i32, 111_i32, i32(n), 3_i32, 5_i32, 0x1p+0, a, 5_i32, w, 3_i32,"
    " 0x0p+0, c, 3_i32)\n"
)
OWN = function("call @test.scale(x, 0x1p+1, y)", name="own")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def no_openblas(monkeypatch):
    """As on a machine where the package is not installed."""
    openblas = dataclasses.replace(libraries.LIBRARIES["openblas"], package="strata-no-such-package")
    monkeypatch.setitem(libraries.LIBRARIES, "openblas", openblas)


def program_record() -> ProgramRecord:
    return ProgramRecord(
        (
            FunctionRecord(
                "step",
                (TensorSpec("a", "f32", ("n", 5)),),
                (TensorSpec("c", "f32", ("n", 3)),),
                (DimRange("n", 1, 64),),
                (
                    Launch(
                        "%1",
                        (KernelChoice("product"),),
                        (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.PARAM, 0), ArgRef(ArgKind.OUTPUT, 0)),
                    ),
                ),
                0,
            ),
        ),
        (ParamRecord("w", "f32", (5, 3), (5, 3)),),
        None,
        str(TARGET),
        TARGET.features,
        {},
        externs=extern_records([PRODUCT]),
    )


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# --------------------------------------------------------------------------------------------- loading


def test_a_kernel_on_its_own_calls_a_library():
    image = load_image(build_image([PRODUCT], [], TARGET).blob, 1)
    a, w, c = draw(7, 5), draw(5, 3), np.empty((7, 3), np.float32)
    image.function("product")(*map(as_tensor, (a, w, c)))
    np.testing.assert_allclose(c, a @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_openblas")
def test_a_missing_library_is_named_when_the_image_is_loaded(tmp_path):
    (tmp_path / "code.bin").write_bytes(build_image([PRODUCT], [], TARGET).blob)
    with pytest.raises(
        UserError,
        match=r"code.bin: calls @openblas.sgemm: library openblas is not installed; get it with: "
        r"python3 -m pip install strata-no-such-package",
    ):
        load_image(tmp_path / "code.bin", 1)


def test_a_function_of_another_process_is_named_when_the_image_is_loaded(monkeypatch):
    blob = build_image([OWN], [], TARGET).blob
    monkeypatch.delitem(externs._functions, "test.scale")
    with pytest.raises(
        UserError,
        match=r"image: calls @test.scale, which is a function of the process that compiled it; known here: t",
    ):
        load_image(blob, 1)


def test_an_image_whose_table_is_not_writable():
    image = build_image([OWN], [], TARGET)
    symbols = {**image.symbols, "extern:test.scale": image.symbols["own"]}
    with pytest.raises(
        UserError, match=r"image: corrupt image: symbol 'extern:test.scale' at \d+ is outside of the w"
    ):
        load_image(dataclasses.replace(image, symbols=symbols), 1)


def test_threads_of_a_library_are_those_of_the_image():
    opened = libraries.LIBRARIES["openblas"].open()
    image = load_image(build_image([PRODUCT], [], TARGET).blob, 2)
    assert opened.num_threads == opened.code.scipy_openblas_get_num_threads() == 2
    image.set_num_threads(1)
    assert opened.num_threads == opened.code.scipy_openblas_get_num_threads() == 1


# ------------------------------------------------------------------------------------------- artifacts


def test_an_artifact_with_a_library_is_saved_and_loaded(tmp_path):
    record, w, a = program_record(), draw(5, 3), draw(4, 5)
    save_artifact(
        tmp_path / "m", record, build_image([PRODUCT], record.functions, TARGET).blob, [("w", w)], "{}"
    )
    assert open_artifact(tmp_path / "m").record.externs == record.externs
    np.testing.assert_allclose(Program.load(tmp_path / "m")["step"](a), a @ w, rtol=1e-5, atol=1e-5)


def test_an_artifact_without_its_library(tmp_path, request):
    record = program_record()
    blob = build_image([PRODUCT], record.functions, TARGET).blob
    save_artifact(tmp_path / "m", record, blob, [("w", draw(5, 3))], "{}")
    request.getfixturevalue("no_openblas")
    with pytest.raises(UserError, match=r"manifest.json: calls @openblas.sgemm: library openblas is not i"):
        open_artifact(tmp_path / "m")


def test_an_artifact_compiled_for_another_interface_of_the_library():
    other = ExternRecord("openblas.sgemm", "void (int)")
    with pytest.raises(
        UserError,
        match=r"m: extern openblas.sgemm: got the signature 'void \(int\)'; expected 'void \(int, int.*; c",
    ):
        check_externs([other], "m")
    check_externs(extern_records([PRODUCT]), "m")


def test_functions_of_this_process_cannot_be_saved(tmp_path):
    record = dataclasses.replace(program_record(), externs=extern_records([OWN, PRODUCT]))
    with pytest.raises(
        UserError,
        match=r"m: cannot save the program: it calls functions of this process: test.scale; an artifact may",
    ):
        save_artifact(tmp_path / "m", record, b"", [], "{}")
    assert not list(tmp_path.glob("*m*"))
    check_portable(extern_records([PRODUCT]), "m")


def test_records_as_json():
    record = program_record()
    assert program_from_json(program_to_json(record)) == record
    data = program_to_json(record)
    data["externs"] = data["externs"] * 2
    with pytest.raises(UserError, match=r"program.externs: name 'openblas.sgemm' occurs twice"):
        program_from_json(data)


# -------------------------------------------------------------------------------------------- failures


def test_an_exception_is_the_cause_of_the_error_and_the_program_goes_on():
    thirteen = function("call @test.scale(x, 0x1.ap+3, y)", name="thirteen")
    image = load_image(build_image([OWN, thirteen], [], TARGET).blob, 1)
    x, y = draw(4), np.zeros(4, np.float32)
    for _ in range(2):
        with pytest.raises(ExternError, match=r"^step: extern test.scale: Refused: thirteen$") as caught:
            invoke(image.function("thirteen"), "step", as_tensor(x), as_tensor(y))
        assert isinstance(caught.value.__cause__, Refused)
        invoke(image.function("own"), "step", as_tensor(x), as_tensor(y))
        np.testing.assert_array_equal(y, 2 * x)


def test_an_interrupt_stays_an_interrupt(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(externs._functions, "test.scale", (guarded(interrupt), ""))
    image = load_image(build_image([OWN], [], TARGET).blob, 1)
    with pytest.raises(KeyboardInterrupt):
        invoke(image.function("own"), "step", as_tensor(draw(3)), as_tensor(draw(3)))


def test_a_tensor_function_that_fails_without_an_error(monkeypatch):
    """Status -1 with nothing raised: a broken function still ends in an error that names it."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    broken = kind(lambda *_: -1)
    native = tvm_ffi.Function.__from_extern_c__(ctypes.cast(broken, ctypes.c_void_p).value)
    monkeypatch.setitem(externs._functions, "test.scale", (native, ""))
    image = load_image(build_image([OWN], [], TARGET).blob, 1)
    with pytest.raises(ExternError, match=r"extern test.scale: it failed without an error"):
        image.function("own")(as_tensor(draw(3)), as_tensor(draw(3)))


def test_a_native_failure_has_no_cause_of_an_earlier_one(monkeypatch):
    image = load_image(build_image([function("call @test.scale(x, 0x1.ap+3, y)")], [], TARGET).blob, 1)
    with pytest.raises(ExternError):
        image.function("f")(as_tensor(draw(3)), as_tensor(draw(3)))
    narrow = parse_func("func @narrow(x: f32[5], k: f32[5]) -> (y: f32[5])\n  pass\n")
    native = load_image(build_image([narrow], [], TARGET).blob, 1).function("narrow")
    monkeypatch.setitem(externs._functions, "test.scale", (native, ""))
    image = load_image(build_image([OWN], [], TARGET).blob, 1)
    with pytest.raises(
        ExternError, match=r"step: extern test.scale: strata.ShapeError: narrow: argument"
    ) as caught:
        invoke(image.function("own"), "step", as_tensor(draw(3)), as_tensor(draw(3)))
    assert caught.value.__cause__ is None


def test_names():
    assert is_library("openblas.sgemm")
    assert not is_library("openblas.nothing")
    assert not is_library("test.scale")
