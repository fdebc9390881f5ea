"""Compiled objects on disk, and compiling many loop functions through that cache.

An entry is a file named by the sha256 of everything that decides its contents (LLVM text, target, version of
the code generator, version of llvmlite): a digest of the object, then the object. Files appear whole
(written aside, then renamed); one that does not match its digest is dropped and compiled again. A hit
touches the file; when the cache outgrows its cap, the files not used for longest go. A cache that cannot be
written is no error: code is then compiled every time, with a warning in the log.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite

from strata.core.errors import CodegenError
from strata.core.knobs import cache_folder
from strata.loop.nodes import Func
from strata.target import Target

from . import optimize
from .compile import CODEGEN_VERSION, compile_object
from .emit import emit_func

DEFAULT_MAX_BYTES = 1 << 30
_KEPT_FRACTION = 0.75  # of the cap, after cleaning: so that not every write has to clean
_DIGEST_BYTES = 32
_SUFFIX = ".obj"
_REMEMBERED = 64  # LLVM texts
_texts: dict[int, tuple[Func, Target, str]] = {}  # by identity of the function, which is kept alive
_log = logging.getLogger("strata.codegen")

Progress = Callable[[int, int, str, bool], None]


def object_key(text: str, target: Target) -> str:
    """Name of the entry for LLVM ``text`` compiled for ``target`` (hex)."""
    digest = hashlib.sha256()
    for part in (str(CODEGEN_VERSION), llvmlite.__version__, str(target), text):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


class ObjectCache:
    """Objects by key in ``folder``.

    Args:
        folder: Made when first written to; default :func:`cache_folder` ``/ "objects"``.
        max_bytes: Cap on the sum of the file sizes.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder if folder is not None else cache_folder() / "objects"
        self.max_bytes = max_bytes
        self._size_bytes: int | None = None  # unknown until the first write

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + _SUFFIX)

    def get(self, key: str) -> bytes | None:
        """The object, or ``None`` where it is missing or corrupt."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            _log.warning("object cache: %s is corrupt; compiling again", path)
            self._remove(path)
            return None
        try:
            os.utime(path)
        except OSError:  # read-only cache: its entries just do not get younger
            _log.debug("object cache: cannot touch %s", path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store an object; an unwritable cache is only logged."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                os.replace(temporary, path)
            except OSError:
                self._remove(Path(temporary))
                raise
        except OSError as error:
            _log.warning(
                "object cache: cannot write %s (%s); code is compiled every time", path, error.strerror
            )
            return
        self._grow(len(data) + _DIGEST_BYTES)

    def _grow(self, num_bytes: int) -> None:
        if self._size_bytes is None:
            self._size_bytes = sum(size for _, size, _ in self._files())
        else:
            self._size_bytes += num_bytes
        if self._size_bytes > self.max_bytes:
            self.clean()

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, size, path) of every entry."""
        found = []
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            try:
                status = path.stat()
            except OSError:  # another process cleaned it away
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def clean(self) -> None:
        """Remove the entries not used for longest until three quarters of the cap are left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.max_bytes * _KEPT_FRACTION:
                break
            self._remove(path)
            total -= size
        self._size_bytes = total

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("object cache: cannot remove %s (%s)", path, error.strerror)


def compile_text(text: str, target: Target, cache: ObjectCache) -> tuple[bytes, bool]:
    """Object code of an LLVM module, and whether it came from the cache.

    Raises:
        CodegenError: LLVM rejects the text.
    """
    key = object_key(text, target)
    found = cache.get(key)
    if found is not None:
        return found, True
    data = compile_object(text, target)
    cache.put(key, data)
    return data, False


def _emitted(func: Func, target: Target, layout: str) -> str:
    """LLVM text of a function; candidates that were timed come again when the program is linked."""
    found = _texts.get(id(func))
    if found is None or found[0] is not func or found[1] != target:
        found = _texts[id(func)] = (func, target, emit_func(func, target, layout))
        if len(_texts) > _REMEMBERED:
            _texts.pop(next(iter(_texts)), None)
    return found[2]


def compile_functions(
    funcs: Sequence[Func],
    target: Target,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: ObjectCache | None = None,
    texts: Sequence[str] = (),
) -> list[bytes]:
    """Objects of loop functions, one each, in order, then of LLVM texts.

    Args:
        funcs: Finalised loop functions.
        target: Machine to compile for.
        threads: Compiler threads; default one per core. (Emission is Python: threads overlap it with LLVM.)
        progress: Called as ``progress(done, total, name, from_cache)`` on the calling thread.
        cache: Default: the user's.
        texts: LLVM modules that are compiled meanwhile.

    Raises:
        CodegenError: a function cannot be emitted, or LLVM rejects it.
    """
    store = cache if cache is not None else ObjectCache()

    layout = optimize.data_layout(target)

    def one(func: Func) -> tuple[bytes, bool]:
        # Not emit_module: it verifies the text, which compile_object does too and a cached object needs not.
        text = _emitted(func, target, layout)
        try:
            return compile_text(text, target, store)
        except CodegenError as error:
            raise CodegenError(f"{func.name}: {error}") from error

    objects: list[bytes] = []
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as executor:
        # Texts first: while LLVM compiles what is ready, functions are emitted.
        others = [executor.submit(compile_text, text, target, store) for text in texts]
        pending = [executor.submit(one, func) for func in funcs]
        try:
            for func, future in zip(funcs, pending, strict=True):
                data, hit = future.result()
                objects.append(data)
                if progress is not None:
                    progress(len(objects), len(funcs), func.name, hit)
            objects += [future.result()[0] for future in others]
        except BaseException:
            for future in (*others, *pending):
                future.cancel()
            raise
    return objects
