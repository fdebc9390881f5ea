"""The image: machine code in one position-independent file, mapped and called without a linker.

File, little endian, produced by ``codegen.link`` and read here::

    header    8s magic "STRATAIM", u32 version, u32 machine (ELF e_machine), u64 memory_bytes,
              u32 num_segments, u32 num_exports, u32 num_relocs, u32 string_bytes,
              32s sha256 of the whole file with these 32 bytes zero
    segments  num_segments x (u64 address, u64 memory_bytes, u64 file_offset, u64 file_bytes, u64 protection)
    exports   num_exports x (u64 address, u32 name_start, u32 name_bytes)
    relocs    num_relocs x (u64 address, u64 target): the u64 at base + address becomes base + target
    strings   names, UTF-8, back to back
    contents  of the segments; the rest of a segment's memory is zero

Addresses are relative to the base where the image is mapped. Segments are page aligned, in order and do not
overlap; ``protection`` is one of :class:`Protection`: no page is ever writable and executable.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import platform
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import tvm_ffi

from strata.core.errors import DeviceError, ShapeError, UserError
from strata.core.knobs import default_threads
from strata.target import permit_matrix_unit

from .externs import SYMBOL_PREFIX, Bound, resolve
from .pool import Pool, PoolSymbols

MAGIC = b"STRATAIM"
VERSION = 1
PAGE_BYTES = 4096
MAX_MEMORY_BYTES = 1 << 31
MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF e_machine -> platform.machine()
ERROR_KIND = "strata.ShapeError"  # the kind that generated code raises for arguments that do not fit

_HEADER = struct.Struct("<8sIIQIIII32s")
_SEGMENT = struct.Struct("<QQQQQ")
_EXPORT = struct.Struct("<QII")
_RELOC = struct.Struct("<QQ")
_SHA_OFFSET = _HEADER.size - 32
_SUPPORT = ("strata_init", "strata_worker", "strata_stop", "strata_spin")

tvm_ffi.register_error(ERROR_KIND, ShapeError)


class Protection(IntEnum):
    """What may be done with a segment's pages."""

    READ = 0
    READ_EXECUTE = 1
    READ_WRITE = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A page-aligned run of memory.

    Attributes:
        address: Start, relative to the base (bytes).
        memory_bytes: Size in memory, >= ``len(data)``; the rest is zero.
        data: Initial contents.
        protection: Page protection once loaded.
    """

    address: int
    memory_bytes: int
    data: bytes
    protection: Protection


@dataclass(frozen=True, slots=True)
class Image:
    """A linked program.

    Attributes:
        machine: ELF machine number (a key of ``MACHINES``).
        memory_bytes: Size of the whole mapping.
        segments: In the order of their addresses.
        symbols: Exported names and their addresses relative to the base.
        relocs: ``(address, target)`` pairs, both relative to the base.
    """

    machine: int
    memory_bytes: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    relocs: tuple[tuple[int, int], ...]

    @property
    def blob(self) -> bytes:
        """The file contents."""
        return encode_image(self)


def encode_image(image: Image) -> bytes:
    """File contents of an image; :func:`parse_image` reads them back."""
    strings = bytearray()
    exports = bytearray()
    for name, address in image.symbols.items():
        encoded = name.encode()
        exports += _EXPORT.pack(address, len(strings), len(encoded))
        strings += encoded
    relocs = b"".join(_RELOC.pack(address, target) for address, target in image.relocs)
    offset = _HEADER.size + _SEGMENT.size * len(image.segments) + len(exports) + len(relocs) + len(strings)
    segments = bytearray()
    for s in image.segments:
        segments += _SEGMENT.pack(s.address, s.memory_bytes, offset, len(s.data), s.protection)
        offset += len(s.data)
    counts = (len(image.segments), len(image.symbols), len(image.relocs), len(strings))
    header = _HEADER.pack(MAGIC, VERSION, image.machine, image.memory_bytes, *counts, bytes(32))
    body = bytes(segments + exports + relocs + strings) + b"".join(s.data for s in image.segments)
    digest = hashlib.sha256(header + body).digest()
    return header[:_SHA_OFFSET] + digest + body


def _corrupt(source: str, what: str) -> UserError:
    return UserError(f"{source}: corrupt image: {what}; compile the model again")


def parse_image(blob: bytes, source: str = "image") -> Image:
    """Read file contents, checking everything that mapping relies on.

    Args:
        blob: The file.
        source: Name for messages.

    Raises:
        UserError: not an image, another version, or corrupt.
    """
    if len(blob) < _HEADER.size or blob[: len(MAGIC)] != MAGIC:
        raise UserError(
            f"{source}: got {bytes(blob[:8])!r}; expected a Strata image, which starts with {MAGIC!r}"
        )
    _, version, machine, memory_bytes, n_segments, n_exports, n_relocs, n_strings, sha = _HEADER.unpack_from(
        blob
    )
    if version != VERSION:
        raise UserError(f"{source}: got image version {version}; expected {VERSION}; compile the model again")
    if hashlib.sha256(blob[:_SHA_OFFSET] + bytes(32) + blob[_HEADER.size :]).digest() != sha:
        raise _corrupt(source, "its checksum does not match its contents")
    if memory_bytes > MAX_MEMORY_BYTES or memory_bytes % PAGE_BYTES:
        raise _corrupt(
            source, f"memory size {memory_bytes}; expected whole pages, at most {MAX_MEMORY_BYTES} bytes"
        )
    tables = n_segments * _SEGMENT.size + n_exports * _EXPORT.size + n_relocs * _RELOC.size + n_strings
    if _HEADER.size + tables > len(blob):
        raise _corrupt(source, f"tables of {tables} bytes in a file of {len(blob)}")
    at = _HEADER.size
    segments = _parse_segments(blob, at, n_segments, memory_bytes, source)
    at += n_segments * _SEGMENT.size
    strings = blob[at + n_exports * _EXPORT.size + n_relocs * _RELOC.size :][:n_strings]
    symbols = _parse_exports(blob[at : at + n_exports * _EXPORT.size], strings, memory_bytes, source)
    at += n_exports * _EXPORT.size
    relocs = tuple(_RELOC.iter_unpack(blob[at : at + n_relocs * _RELOC.size]))
    writable = [s for s in segments if s.protection is not Protection.READ_EXECUTE]
    for address, target in relocs:
        inside = any(s.address <= address and address + 8 <= s.address + s.memory_bytes for s in writable)
        if not inside or target > memory_bytes:
            raise _corrupt(
                source, f"relocation of address {address} to {target} outside of the data segments"
            )
    return Image(machine, memory_bytes, segments, symbols, relocs)


def _parse_segments(blob: bytes, at: int, count: int, memory_bytes: int, source: str) -> tuple[Segment, ...]:
    segments = []
    end = 0
    for i in range(count):
        address, size, file_offset, file_bytes, protection = _SEGMENT.unpack_from(
            blob, at + i * _SEGMENT.size
        )
        if address % PAGE_BYTES or address < end or address + size > memory_bytes:
            raise _corrupt(
                source, f"segment {i} at {address} of {size} bytes overlaps or is outside of the memory"
            )
        if file_bytes > size or file_offset + file_bytes > len(blob) or protection not in list(Protection):
            raise _corrupt(
                source, f"segment {i} has {file_bytes} bytes at {file_offset}, protection {protection}"
            )
        end = address + size
        data = blob[file_offset : file_offset + file_bytes]
        segments.append(Segment(address, size, data, Protection(protection)))
    return tuple(segments)


def _parse_exports(table: bytes, strings: bytes, memory_bytes: int, source: str) -> dict[str, int]:
    symbols: dict[str, int] = {}
    for address, start, length in _EXPORT.iter_unpack(table):
        try:
            name = strings[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _corrupt(source, f"symbol name at {start} is not UTF-8") from error
        if len(name.encode()) != length or address >= memory_bytes:
            raise _corrupt(source, f"symbol {name!r} at {address} is outside of the memory")
        symbols[name] = address
    return symbols


class _Mapping:
    """The mapped memory and its thread pool; functions keep it alive, it keeps nothing."""

    def __init__(
        self, image: Image, base: int, memory: mmap.mmap, num_threads: int, externs: Sequence[Bound]
    ) -> None:
        self.base = base
        self._memory = memory
        self._externs = externs
        address = {name: base + image.symbols[name] for name in _SUPPORT}
        symbols = PoolSymbols(address["strata_worker"], address["strata_stop"], address["strata_spin"])
        self.pool = Pool(symbols, num_threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address["strata_init"])(self.pool.context_address)
        # Workers run code of this memory: they leave before it goes, and before the interpreter does.
        weakref.finalize(self, self.pool.close)
        self.set_library_threads(num_threads)

    def set_library_threads(self, num_threads: int) -> None:
        """Give the libraries that the image calls as many threads as the image has."""
        for library in {id(e.library): e.library for e in self._externs}.values():
            if library is not None:
                library.set_num_threads(num_threads)


class LoadedImage:
    """A mapped image with its thread pool. A context manager; closing is optional.

    Functions taken from it stay callable as long as they are referenced, also after :meth:`close`.
    """

    def __init__(self, image: Image, mapping: _Mapping, source: str) -> None:
        self._image = image
        self._mapping = mapping
        self._source = source
        self._executable = [s for s in image.segments if s.protection is Protection.READ_EXECUTE]

    @property
    def blob(self) -> bytes:
        """The file contents."""
        return self._image.blob

    @property
    def symbols(self) -> tuple[str, ...]:
        """Exported names."""
        return tuple(self._image.symbols)

    @property
    def num_threads(self) -> int:
        """Threads that work on a parallel loop, the caller included."""
        return self._mapping.pool.num_threads

    def set_num_threads(self, num_threads: int) -> None:
        """Change the number of threads (1: no workers).

        Raises:
            UserError: not an integer in 1..256.
        """
        self._mapping.pool.set_num_threads(num_threads)
        self._mapping.set_library_threads(num_threads)

    def address(self, symbol: str) -> int:
        """Where an exported symbol is.

        Raises:
            UserError: no such symbol; lists those that exist.
        """
        if symbol not in self._image.symbols:
            known = ", ".join(sorted(self._image.symbols))
            raise UserError(f"{self._source}: got symbol {symbol!r}; expected one of {known}")
        return self._mapping.base + self._image.symbols[symbol]

    def function(self, symbol: str) -> tvm_ffi.Function:
        """An exported function in the tvm-ffi convention; it keeps the image alive.

        Raises:
            UserError: no such symbol, or it is no code.
        """
        address = self.address(symbol)
        offset = address - self._mapping.base
        if not any(s.address <= offset < s.address + s.memory_bytes for s in self._executable):
            raise UserError(f"{self._source}: got symbol {symbol!r}, which is data; expected a function")
        return tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=self._mapping)

    def close(self) -> None:
        """Stop the worker threads. The memory goes with the last function."""
        self._mapping.pool.close()

    def __enter__(self) -> LoadedImage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _extern_places(image: Image, source: str) -> dict[int, str]:
    """Names of the externs by the places in the image that take their addresses."""
    found = {}
    for symbol, place in image.symbols.items():
        if symbol.startswith(SYMBOL_PREFIX):
            if not any(
                s.address <= place and place + 8 <= s.address + s.memory_bytes
                for s in image.segments
                if s.protection is Protection.READ_WRITE
            ):
                raise _corrupt(source, f"symbol {symbol!r} at {place} is outside of the writable memory")
            found[place] = symbol.removeprefix(SYMBOL_PREFIX)
    return found


def _map(image: Image) -> tuple[mmap.mmap, int]:
    """Anonymous memory with the image in it, relocated and protected, and its address."""
    memory = mmap.mmap(-1, image.memory_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for segment in image.segments:
        memory[segment.address : segment.address + len(segment.data)] = segment.data
    for address, target in image.relocs:
        struct.pack_into("<Q", memory, address, base + target)
    flags = {
        Protection.READ: mmap.PROT_READ,
        Protection.READ_EXECUTE: mmap.PROT_READ | mmap.PROT_EXEC,
        Protection.READ_WRITE: mmap.PROT_READ | mmap.PROT_WRITE,
    }
    libc: Any = ctypes.CDLL(None, use_errno=True)
    for segment in image.segments:
        size = -(-segment.memory_bytes // PAGE_BYTES) * PAGE_BYTES
        address = ctypes.c_void_p(base + segment.address)
        if libc.mprotect(address, ctypes.c_size_t(size), flags[segment.protection]):
            reason = os.strerror(ctypes.get_errno())
            raise DeviceError(f"mprotect of {size} bytes to {segment.protection.name}: {reason}")
    return memory, base


def load_image(image: bytes | str | Path | Image, num_threads: int | None = None) -> LoadedImage:
    """Map an image and start its thread pool.

    Args:
        image: File contents, a path, or an image in memory.
        num_threads: Threads that work on a parallel loop, the caller included (1..256); ``None`` for the knob
            ``threads``, by default one per core that this process may use.

    Raises:
        UserError: the file cannot be read, is corrupt or for another machine; it calls a function that is not
            found (:mod:`.externs`); bad ``num_threads``.
        DeviceError: the operating system refuses to map it.
    """
    permit_matrix_unit()  # the code may use it; without the kernel's permission that is a fault
    source = "image"
    if isinstance(image, str | Path):
        source = str(image)
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{source}: cannot read the image: {error.strerror}") from error
    parsed = image if isinstance(image, Image) else parse_image(image, source)
    machine = MACHINES.get(parsed.machine, f"ELF machine {parsed.machine}")
    if machine != platform.machine():
        raise UserError(
            f"{source}: got code for {machine}; this machine is {platform.machine()}; compile it here"
        )
    missing = [name for name in _SUPPORT if name not in parsed.symbols]
    if missing:
        raise _corrupt(source, f"it does not export {', '.join(missing)}")
    if num_threads is None:
        num_threads = default_threads()
    externs = {place: resolve(name, source) for place, name in _extern_places(parsed, source).items()}
    memory, base = _map(parsed)
    for place, extern in externs.items():
        struct.pack_into("<Q", memory, place, extern.address)
    mapping = _Mapping(parsed, base, memory, num_threads, tuple(externs.values()))
    return LoadedImage(parsed, mapping, source)
