"""Weights files in the safetensors format: memory-mapped reading, streaming writing.

::

    file   ::= header_bytes: u64 little endian, header: JSON, data
    header ::= {name: tensor, ..., "__metadata__": {text: text}}
    tensor ::= {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}

Offsets count from the start of the data. The data of all tensors lies without gaps (the format demands it),
so the writer puts padding *tensors* (``__pad.0`` ...) where the next one would miss a 64-byte border; the
reader hides them. Nothing is ever held in memory but the tensor that is being written.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from strata.core.dtypes import ALL_DTYPES, DType
from strata.core.errors import UserError

from .tensors import ALIGNMENT_BYTES, numpy_dtype, type_text

PAD_PREFIX = "__pad."
MAX_HEADER_BYTES = 100_000_000

_CODES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i16": "I16",
    "i8": "I8", "u8": "U8", "u16": "U16", "u32": "U32", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {code: ALL_DTYPES[name] for name, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its type and the bytes ``begin .. end`` of the data that hold it."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorShape:
    """What :func:`write_safetensors` needs to know before it sees the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def _mapped(descriptor: int) -> mmap.mmap:
    """The file in memory, in huge pages where the kernel has them for files.

    Linux 6.16 has them on ext4, for instance. With small ones, reading waits for address translation.
    """
    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(OSError, AttributeError):  # unknown to the kernel, or not Linux
        data.madvise(mmap.MADV_HUGEPAGE)
    return data


class SafetensorsFile:
    """A memory-mapped safetensors file. Arrays are read-only views; they keep the mapping alive.

    Args:
        path: The file.

    Raises:
        UserError: the file is missing, is cut off, or its header is malformed; names the file and the tensor.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._data = _mapped(file.fileno()) if size else b""
        except OSError as error:
            raise UserError(f"{self.path}: cannot read the weights: {error.strerror or error}") from error
        self._start, header = self._header(size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise UserError(f"{self.path}: header __metadata__: got {metadata!r:.60}; expected an object")
        self.metadata: dict[str, Any] = metadata
        entries = {name: self._entry(name, value, size - self._start) for name, value in header.items()}
        self.entries = {name: e for name, e in entries.items() if not name.startswith(PAD_PREFIX)}

    def _header(self, size: int) -> tuple[int, dict[str, Any]]:
        if size < 8:
            raise UserError(
                f"{self.path}: got {size} bytes; expected a safetensors file (header size in 8 bytes)"
            )
        length = int.from_bytes(self._data[:8], "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise UserError(
                f"{self.path}: header of {length} bytes in a file of {size}; "
                "the file is cut off or no safetensors file"
            )
        try:
            header = json.loads(self._data[8 : 8 + length].decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: the safetensors header is no JSON: {error!s:.120}") from error
        if not isinstance(header, dict):
            raise UserError(f"{self.path}: safetensors header: got {header!r:.60}; expected an object")
        return 8 + length, header

    def _entry(self, name: str, value: object, data_bytes: int) -> Entry:
        where = f"{self.path}: tensor {name!r}"
        if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
            raise UserError(f"{where}: got {value!r:.80}; expected dtype, shape and data_offsets")
        code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(code, str) or code not in _DTYPES:
            raise UserError(f"{where}: got dtype {code!r:.40}; expected one of {', '.join(_DTYPES)}")
        if not isinstance(shape, list) or not all(_is_size(d) for d in shape):
            raise UserError(f"{where}: got shape {shape!r:.60}; expected a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(d) for d in offsets):
            raise UserError(f"{where}: got data_offsets {offsets!r:.60}; expected [begin, end]")
        begin, end = offsets
        need = prod(shape) * _DTYPES[code].itemsize_bytes
        if end - begin != need:
            raise UserError(
                f"{where}: {code}{shape} takes {need} bytes; data_offsets {offsets} hold {end - begin}"
            )
        if end > data_bytes:
            raise UserError(
                f"{where}: its data ends at byte {end}, but the file has {data_bytes} data bytes: "
                "it is cut off; copy or download it again"
            )
        return Entry(_DTYPES[code], tuple(shape), begin, end)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor called ``name``: a read-only view of the mapped file.

        Raises:
            UserError: the file has no such tensor.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise UserError(
                f"{self.path}: no tensor {name!r}; it has {len(self.entries)} tensors{_some(self.entries)}"
            )
        count = prod(entry.shape)
        if count == 0:
            return np.empty(entry.shape, numpy_dtype(entry.dtype.name))
        flat = np.frombuffer(self._data, np.uint8, entry.end - entry.begin, self._start + entry.begin)
        return flat.view(numpy_dtype(entry.dtype.name)).reshape(entry.shape)


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:3]
    return f" ({', '.join(first)}, ...)" if first else ""


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _plan(shapes: Iterable[TensorShape]) -> tuple[dict[str, Any], dict[str, tuple[int, TensorShape]], int]:
    """Header entries, data offset of each tensor by name, and the total of data bytes."""
    header: dict[str, Any] = {}
    offsets: dict[str, tuple[int, TensorShape]] = {}
    position = 0
    for spec in shapes:
        if spec.name in header or spec.name.startswith(PAD_PREFIX) or spec.name == "__metadata__":
            raise UserError(f"weights: tensor name {spec.name!r} is taken; names must be distinct")
        pad = -position % ALIGNMENT_BYTES
        if pad:
            name = f"{PAD_PREFIX}{len(header)}"
            header[name] = {"dtype": "U8", "shape": [pad], "data_offsets": [position, position + pad]}
            position += pad
        size = prod(spec.shape) * numpy_dtype(spec.dtype).itemsize
        code = _CODES[ALL_DTYPES[spec.dtype].name]
        header[spec.name] = {
            "dtype": code,
            "shape": list(spec.shape),
            "data_offsets": [position, position + size],
        }
        offsets[spec.name] = (position, spec)
        position += size
    return header, offsets, position


def write_safetensors(
    path: Path,
    shapes: Iterable[TensorShape],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a file one tensor at a time, each on a 64-byte border.

    Args:
        path: Written under ``path`` + ``.part``, then renamed: a failed write leaves nothing called ``path``.
        shapes: All tensors, in the order in which they will lie in the file.
        arrays: ``(name, array)`` of every tensor once, in any order; an array may be dropped once it is
            handed over.
        metadata: Texts for the header.

    Returns:
        Size of the file in bytes.

    Raises:
        UserError: a tensor is missing, unknown, given twice, or has another dtype or shape than announced.
    """
    header, offsets, data_bytes = _plan(shapes)
    if metadata:
        header = {"__metadata__": dict(metadata), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    start = 8 + len(text)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(start + data_bytes)
            for name, array in arrays:
                if name not in offsets:
                    raise UserError(f"{path.name}: tensor {name!r} is unknown or given twice")
                position, spec = offsets.pop(name)
                if array.shape != spec.shape or array.dtype != numpy_dtype(spec.dtype):
                    raise UserError(
                        f"{path.name}: tensor {name!r}: got {type_text(array)}; "
                        f"expected {spec.dtype}[{','.join(map(str, spec.shape))}]"
                    )
                file.seek(start + position)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                del array  # before the next one is made
            if offsets:
                raise UserError(f"{path.name}: {len(offsets)} tensors were never given{_some(offsets)}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return start + data_bytes
