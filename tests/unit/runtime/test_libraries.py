"""The libraries: found in their packages, loaded once, errors that say what to install; oneDNN's C API."""

import ctypes
import dataclasses
import os
import signal
import warnings
from importlib import metadata

import numpy as np
import pytest

from strata.codegen.externs import c_signature
from strata.core.errors import DeviceError, UserError
from strata.loop.externs import EXTERNS
from strata.runtime.libraries import LIBRARIES, OpenLibrary, _environment, _onednn
from strata.runtime.onednn import OneDnn
from strata.runtime.tensors import as_tensor

OPENBLAS, ONEDNN = LIBRARIES["openblas"], LIBRARIES["onednn"]


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda x: x.name)
def test_every_library_is_found_and_loaded_once(library):
    path = library.find()
    assert path is not None
    assert path.name == library.file
    assert library.version() == metadata.version(library.package)
    assert library.open() is library.open()
    for name in library.functions:
        address, keep = library.open().function(name)
        assert address
        assert keep is not None


def test_the_compiler_and_the_runtime_agree_on_every_function():
    offered = {f"{x.name}.{name}": f.signature for x in LIBRARIES.values() for name, f in x.functions.items()}
    known = {name: c_signature(e) for name, e in EXTERNS.items() if name.partition(".")[0] in LIBRARIES}
    assert offered == known


def test_a_library_that_is_not_installed():
    library = dataclasses.replace(OPENBLAS, package="strata-no-such-package")
    assert library.find() is None
    with pytest.raises(
        UserError, match=r"^library openblas is not installed; get it with: python3 -m pip install strata-no"
    ):
        library.open()
    assert dataclasses.replace(OPENBLAS, file="nothing.so").find() is None


def test_a_library_that_cannot_be_loaded(tmp_path):
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(
        UserError,
        match=r"library openblas: cannot load .*libbroken.so: .*; repair it with: .* scipy-openblas32 --f",
    ):
        OpenLibrary(OPENBLAS, broken)


def test_a_library_without_a_function():
    with pytest.raises(
        UserError,
        match=r"library openblas: .* has no function cblas_nothing; get another version with: .*upg",
    ):
        OPENBLAS.open().symbol("cblas_nothing")


def test_environment_is_set_for_the_loading_only(monkeypatch):
    monkeypatch.setenv("STRATA_TEST_SET", "mine")
    with _environment({"STRATA_TEST_SET": "ours", "STRATA_TEST_NEW": "ours"}):
        assert (os.environ["STRATA_TEST_SET"], os.environ["STRATA_TEST_NEW"]) == ("mine", "ours")
    assert os.environ["STRATA_TEST_SET"] == "mine"
    assert "STRATA_TEST_NEW" not in os.environ


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda x: x.name)
def test_a_forked_child_computes_with_one_thread(library):
    opened = library.open()
    opened.set_num_threads(2)
    _multiply(library.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            one = opened.num_threads == 1
            _multiply(library.name)
            opened.set_num_threads(2)
            allowed = opened.num_threads == (2 if library.threads_after_fork else 1)
            _multiply(library.name)
            code = 0 if one and allowed else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert opened.num_threads == 2
    _multiply(library.name)


def _multiply(library: str) -> None:
    a, w, c = (
        np.ones((300, 200), np.float32),
        np.ones((200, 100), np.float32),
        np.zeros((300, 100), np.float32),
    )
    if library == "onednn":
        _onednn(ONEDNN.open()).matmul(*map(as_tensor, (a, w, c)), transposed=False)
    else:
        sgemm = OPENBLAS.open().code.scipy_cblas_sgemm
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        addresses = [ctypes.c_void_p(x.ctypes.data) for x in (a, w, c)]
        sgemm(
            101, 111, 111, 300, 100, 200, one, addresses[0], 200, addresses[1], 100, zero, addresses[2], 100
        )
    np.testing.assert_array_equal(c, np.full((300, 100), 200))


# ---------------------------------------------------------------------------------------------- oneDNN


@pytest.fixture
def dnn() -> OneDnn:
    return OneDnn(ONEDNN.open().code, lambda: 1)


def test_onednn_reports_a_status(dnn):
    with pytest.raises(DeviceError, match=r"oneDNN: dnnl_engine_create returned status 2; expected 0"):
        dnn.call("engine_create", ctypes.byref(ctypes.c_void_p()), 1, ctypes.c_size_t(99))


def test_onednn_keeps_few_primitives(dnn, monkeypatch):
    monkeypatch.setattr("strata.runtime.onednn._MAX_PRIMITIVES", 2)
    for m in (1, 2, 3, 2):
        a, b, c = np.ones((m, 4), np.float32), np.ones((4, 3), np.float32), np.zeros((m, 3), np.float32)
        dnn.matmul(*map(as_tensor, (a, b, c)), transposed=False)
        np.testing.assert_array_equal(c, np.full((m, 3), 4))
        assert len(dnn._products) <= 2
