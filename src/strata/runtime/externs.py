"""Finds the functions that an image calls and does not contain, when it is loaded.

An image exports a variable ``extern:NAME`` for each of them (``codegen.externs``). A name is either that of a
*library* function, ``"openblas.sgemm"`` (:mod:`.libraries`), or that of a function of this process, which
:func:`bind` has registered: a Python, PyTorch or tvm-ffi function.

Functions of this process are called by the tvm-ffi convention with tensors that are views of the program's
own memory: they are valid during the call. An exception in one ends the program call with an ``ExternError``
that names it (and has the exception as its cause); the program can be called again.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm_ffi

from strata.core.errors import ExternError, UserError

from .libraries import LIBRARIES, OpenLibrary
from .records import ExternRecord
from .tensors import as_array

SYMBOL_PREFIX = "extern:"  # of the variables in the image that hold addresses
_ERROR_KIND = "strata.ExternError"
_FAILED = -1  # the status of a tvm-ffi function that has raised an error

tvm_ffi.register_error(_ERROR_KIND, ExternError)


@dataclass(frozen=True, slots=True)
class Bound:
    """A function that was found.

    Attributes:
        address: What the image's variable is set to: of a C function, or the handle of a tvm-ffi function.
        keep: What must live as long as the image.
        library: The library that it is from.
    """

    address: int
    keep: object
    library: OpenLibrary | None = None


_functions: dict[str, tuple[tvm_ffi.Function, str]] = {}


def bind(name: str, function: tvm_ffi.Function, signature: str) -> None:
    """Let images call ``function`` by ``name``; ``signature`` is that of its ``ExternRecord``."""
    _functions[name] = (function, signature)


def is_library(name: str) -> bool:
    """Whether the extern is a function of a library, which another process finds too."""
    library, _, function = name.partition(".")
    return library in LIBRARIES and function in LIBRARIES[library].functions


def resolve(name: str, where: str) -> Bound:
    """Find an extern.

    Args:
        name: The extern.
        where: What calls it, for messages.

    Raises:
        UserError: its library is not installed (or cannot be loaded), or this process has no such function.
    """
    if name in _functions:
        function, _ = _functions[name]
        return Bound(function.__chandle__(), function)
    if not is_library(name):
        known = ", ".join(_functions) or "none"
        raise UserError(
            f"{where}: calls @{name}, which is a function of the process that compiled it; known here: "
            f"{known}; register it with strata.external before loading"
        )
    library = LIBRARIES[name.partition(".")[0]]
    try:
        opened = library.open()
    except UserError as error:
        raise UserError(f"{where}: calls @{name}: {error}") from error
    address, keep = opened.function(name.partition(".")[2])
    return Bound(address, keep, opened)


def check_externs(records: Iterable[ExternRecord], where: str) -> None:
    """Check that everything a program calls is here, and is still called the same way.

    Raises:
        UserError: as :func:`resolve`; or a function has another signature than when it was compiled.
    """
    for record in records:
        resolve(record.name, where)
        have = _signature(record.name)
        if have != record.signature:
            raise UserError(
                f"{where}: extern {record.name}: got the signature {record.signature!r}; expected {have!r}; "
                "compile the model again"
            )


def check_portable(records: Iterable[ExternRecord], where: str) -> None:
    """Check that another process can load a program.

    Raises:
        UserError: it calls functions of this process.
    """
    own = [r.name for r in records if not is_library(r.name)]
    if own:
        raise UserError(
            f"{where}: cannot save the program: it calls functions of this process: {', '.join(own)}; "
            "an artifact may call libraries only; compile without them to save it"
        )


def _signature(name: str) -> str:
    if name in _functions:
        return _functions[name][1]
    library, _, function = name.partition(".")
    return LIBRARIES[library].functions[function].signature


# ------------------------------------------------------------------------------------------- failures

_raised = threading.local()  # .cause: the exception of the extern that failed last on this thread


def guarded(function: Callable[..., object]) -> tvm_ffi.Function:
    """``function`` as a tvm-ffi function that gets NumPy views and remembers the exception that ends it."""

    def call(*args: Any) -> None:
        try:
            function(*(as_array(a) if isinstance(a, tvm_ffi.Tensor) else a for a in args))
        except BaseException as error:
            _raised.cause = error
            # tvm-ffi keeps the kind of registered errors only; the message says which one it was.
            raise ExternError(f"{type(error).__name__}: {error}") from error

    return tvm_ffi.convert(call)


def take_cause() -> BaseException | None:
    """The exception behind the last ``ExternError`` of this thread, once."""
    cause, _raised.cause = getattr(_raised, "cause", None), None
    return cause


class _Bytes(ctypes.Structure):
    """``TVMFFIByteArray`` (tvm/ffi/c_api.h)."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))

    def text(self) -> bytes:
        """A copy of the bytes."""
        return ctypes.string_at(self.data, self.size)


class _Error(ctypes.Structure):
    """``TVMFFIObject`` and the head of ``TVMFFIErrorCell``."""

    _fields_ = (("object", ctypes.c_char * 24), ("kind", _Bytes), ("message", _Bytes))


@cache
def _ffi() -> ctypes.CDLL:
    return ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int32)
def name_failed_call(extern: bytes, status: int) -> None:
    """Called by native code after a tvm-ffi function has failed: names the extern in the raised error.

    Args:
        extern: Its name.
        status: What the call returned; only -1 says that an error was raised on this thread.
    """
    if status != _FAILED:
        return
    raised = ctypes.c_void_p()
    _ffi().TVMFFIErrorMoveFromRaised(ctypes.byref(raised))
    what = b"it failed without an error"
    if raised.value:
        error = _Error.from_address(raised.value)
        kind, what = error.kind.text(), error.message.text()
        if kind != _ERROR_KIND.encode():  # it is no Python function
            _raised.cause = None
            what = kind + b": " + what
        _ffi().TVMFFIObjectDecRef(raised)
    _ffi().TVMFFIErrorSetRaisedFromCStr(_ERROR_KIND.encode(), b"extern " + extern + b": " + what)
