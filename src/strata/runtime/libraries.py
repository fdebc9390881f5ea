"""Vendor libraries that compiled programs may call: where they come from, what they offer, and their threads.

Nothing is imported or loaded before a program needs it. A library is found in its Python package (from PyPI),
without importing that package.

========== ================== ============ ==========================================================
name       package            licence      functions
========== ================== ============ ==========================================================
openblas   scipy-openblas32   BSD-3-Clause f32 matrix product and matrix-vector product (CBLAS)
onednn     onednn-cpu-gomp    Apache-2.0   matrix products of f32, bf16 and i8 (``dnnl_matmul``)
========== ================== ============ ==========================================================

A library has one number of threads for the whole process: that of the program that was loaded, or was given
a number of threads, last.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from strata.core.errors import UserError

from .onednn import OneDnn, matmul_function

Resolved = tuple[int, object]  # an address, and what must live as long as it is called


@dataclass(frozen=True, slots=True)
class LibraryFunction:
    """One function of a library.

    Attributes:
        signature: Its type, as in ``records.ExternRecord``.
        find: Where it is in the opened library.
    """

    signature: str
    find: Callable[[OpenLibrary], Resolved]


@dataclass(frozen=True, slots=True)
class Library:
    """A library that may be installed.

    Attributes:
        name: First part of its externs' names.
        package: Distribution on PyPI that has it.
        file: Name of the shared library in that package.
        licence: SPDX expression.
        functions: By the second part of the externs' names.
        set_threads: Symbol of ``void f(int)``, called on the thread that will call the library.
        environment: Variables that are set while it is loaded, unless the user has set them.
        threads_after_fork: Whether it can start threads in a forked child (GNU OpenMP would wait for ever).
    """

    name: str
    package: str
    file: str
    licence: str
    functions: Mapping[str, LibraryFunction]
    set_threads: str
    environment: Mapping[str, str] = field(default_factory=dict)
    threads_after_fork: bool = True

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"python3 -m pip install {self.package}"

    def find(self) -> Path | None:
        """Path of the shared library, or ``None`` where its package is not installed."""
        from importlib import metadata  # takes milliseconds to import, and most programs call no library

        try:
            files = metadata.files(self.package) or []
        except metadata.PackageNotFoundError:
            return None
        paths = (Path(str(f.locate())).resolve() for f in files if f.name == self.file)
        return next((p for p in paths if p.is_file()), None)

    def version(self) -> str:
        """Version of the installed package.

        Raises:
            PackageNotFoundError: it is not installed.
        """
        from importlib import metadata

        return metadata.version(self.package)

    def open(self) -> OpenLibrary:
        """The library, loaded once per process.

        Raises:
            UserError: it is not installed or cannot be loaded; says what to do.
        """
        path = self.find()
        if path is None:
            raise UserError(f"library {self.name} is not installed; get it with: {self.install}")
        return _opened(self.name, path)


class OpenLibrary:
    """A library whose code is loaded.

    Args:
        library: What it is.
        path: The shared library.

    Raises:
        UserError: the operating system cannot load it.
    """

    def __init__(self, library: Library, path: Path) -> None:
        self.library = library
        self.path = path
        self.num_threads = len(os.sched_getaffinity(0))
        self._pid = os.getpid()
        with _environment(library.environment):
            try:
                self.code = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
            except OSError as error:
                raise UserError(
                    f"library {library.name}: cannot load {path}: {error}; repair it with: "
                    f"{library.install} --force-reinstall"
                ) from error

    def set_num_threads(self, num_threads: int) -> None:
        """Threads that the library's functions use from now on (one, where a fork allows no more)."""
        forked = self._pid != os.getpid()
        self.num_threads = 1 if forked and not self.library.threads_after_fork else num_threads
        getattr(self.code, self.library.set_threads)(self.num_threads)

    def symbol(self, name: str) -> int:
        """Address of an exported function.

        Raises:
            UserError: the library has no such function.
        """
        try:
            found = getattr(self.code, name)
        except AttributeError as error:
            raise UserError(
                f"library {self.library.name}: {self.path} has no function {name}; "
                f"get another version with: {self.library.install} --upgrade"
            ) from error
        return ctypes.cast(found, ctypes.c_void_p).value or 0

    def function(self, name: str) -> Resolved:
        """What images call for the function of the library called ``name``."""
        return self.library.functions[name].find(self)


_open: dict[tuple[str, Path], OpenLibrary] = {}


def _opened(name: str, path: Path) -> OpenLibrary:
    found = _open.get((name, path))
    if found is None:
        found = _open[name, path] = OpenLibrary(LIBRARIES[name], path)
    return found


def _one_thread_in_child() -> None:
    """Threads stay in the parent: a forked child computes on the calling thread, as our own loops do."""
    for opened in _open.values():
        opened.set_num_threads(1)


os.register_at_fork(after_in_child=_one_thread_in_child)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that libraries read once, when they are loaded."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


# -------------------------------------------------------------------------------------------- functions


def _plain(symbol: str) -> Callable[[OpenLibrary], Resolved]:
    """A C function as it is."""
    return lambda opened: (opened.symbol(symbol), opened)


def _onednn_matmul(*, transposed: bool) -> Callable[[OpenLibrary], Resolved]:
    def find(opened: OpenLibrary) -> Resolved:
        function = matmul_function(_onednn(opened), transposed)
        return function.__chandle__(), function

    return find


@cache
def _onednn(opened: OpenLibrary) -> OneDnn:
    return OneDnn(opened.code, lambda: opened.num_threads)


def _onednn_functions() -> dict[str, LibraryFunction]:
    """``matmul_<operands>_<result>`` and ``..._t`` with a transposed weight."""
    out = {}
    for operand, result in (("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32"), ("i8", "i32")):
        c_types = [{"f32": "float", "i32": "int"}.get(t, t) for t in (operand, result)]
        signature = f"tensors (const {c_types[0]}*, const {c_types[0]}*, {c_types[1]}*)"
        for transposed in (False, True):
            name = f"matmul_{operand}_{result}{'_t' if transposed else ''}"
            out[name] = LibraryFunction(signature, _onednn_matmul(transposed=transposed))
    return out


_SGEMM = (
    "void (int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int)"
)
_SGEMV = "void (int, int, int, int, float, const float*, int, const float*, int, float, float*, int)"

# A waiting thread spins for 2^18 cycles (about 70 us, as our own pool does) before it sleeps, not for 2^26.
_OPENBLAS_ENVIRONMENT = {"OPENBLAS_THREAD_TIMEOUT": "18"}
# Waiting threads of GNU OpenMP would spin for milliseconds on the cores that the program's own threads need.
_GOMP_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}

LIBRARIES: Mapping[str, Library] = {
    library.name: library
    for library in (
        Library(
            "openblas",
            "scipy-openblas32",
            "libscipy_openblas.so",
            "BSD-3-Clause",
            {
                "sgemm": LibraryFunction(_SGEMM, _plain("scipy_cblas_sgemm")),
                "sgemv": LibraryFunction(_SGEMV, _plain("scipy_cblas_sgemv")),
            },
            "scipy_openblas_set_num_threads",
            _OPENBLAS_ENVIRONMENT,
        ),
        Library(
            "onednn",
            "onednn-cpu-gomp",
            "libdnnl.so.3",
            "Apache-2.0",
            _onednn_functions(),
            "omp_set_num_threads",
            _GOMP_ENVIRONMENT,
            threads_after_fork=False,
        ),
    )
}
