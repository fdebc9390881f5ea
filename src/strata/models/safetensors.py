"""Reading of ``.safetensors`` files by memory map: nothing is copied until a tensor is used.

::

    file   ::= header_size:u64le header:json data
    header ::= { "__metadata__"?: {str: str}, name: { "dtype": str, "shape": [int], "data_offsets": [begin,
    end] } }

Offsets count from the start of ``data``; tensors cover ``data`` without gaps and overlaps. All of that is
checked when a file is opened, so that a damaged file is an error message and never a crash.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np

from strata.core.dtypes import DType, bf16, bool_, f16, f32, f64, i8, i16, i32, i64, u8, u16, u32
from strata.core.errors import UserError

from .fields import parse_object

MAX_HEADER_BYTES = 100_000_000  # as in the reference implementation
MAX_RANK = 8
_DTYPES: dict[str, DType] = {
    "F64": f64,
    "F32": f32,
    "F16": f16,
    "BF16": bf16,
    "I64": i64,
    "I32": i32,
    "I16": i16,
    "I8": i8,
    "U8": u8,
    "U16": u16,
    "U32": u32,
    "BOOL": bool_,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in its file.

    Attributes:
        dtype: Element type.
        shape: Dims.
        begin, end: Bytes from the start of the file.
    """

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One open ``.safetensors`` file.

    Attributes:
        path: The file.
        entries: Tensors by name, in file order.

    Raises:
        UserError: the file is missing, truncated, or its header contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise UserError(
                        f"{path}: got {size} bytes; expected a safetensors file, which has at least 8"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.entries = _read_header(self._map, path)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor called ``name``, a read-only view of the file."""
        entry = self.entries[name]
        count = int(np.prod(entry.shape, dtype=np.int64))
        flat = np.frombuffer(self._map, np.dtype(entry.dtype.numpy_name), count, entry.begin)
        return flat.reshape(entry.shape)

    def release(self, name: str) -> None:
        """Let the system drop the pages of this tensor from memory; they are read again if they are used "
        "again.
        """
        entry = self.entries[name]
        begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = entry.end - begin
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, length)


def _read_header(data: mmap.mmap, path: Path) -> dict[str, TensorEntry]:
    (header_bytes,) = struct.unpack("<Q", data[:8])
    if header_bytes > MAX_HEADER_BYTES:
        raise UserError(f"{path}: got a header of {header_bytes} bytes; expected at most {MAX_HEADER_BYTES}")
    start = 8 + header_bytes
    if start > len(data):
        raise UserError(
            f"{path}: got {len(data)} bytes; expected at least {start}, the end of the header: the file is "
            f"truncated"
        )
    header = parse_object(data[8:start], f"{path}: header")
    _check_metadata(header.pop("__metadata__", None), path)
    entries = {name: _read_entry(name, raw, start, path) for name, raw in header.items()}
    _check_cover(entries, start, len(data), path)
    return entries


def _check_metadata(metadata: Any, path: Path) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"{path}: header: __metadata__: expected an object of strings")


def _read_entry(name: str, raw: Any, start: int, path: Path) -> TensorEntry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: got {raw!r:.60}; expected an object with dtype, shape and data_offsets")
    dtype_name, shape, offsets = raw.get("dtype"), raw.get("shape"), raw.get("data_offsets")
    found = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if found is None:
        raise UserError(f"{where}: dtype: got {dtype_name!r:.60}; expected one of {', '.join(_DTYPES)}")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise UserError(
            f"{where}: shape: got {shape!r:.60}; expected a list of at most {MAX_RANK} integers >= 0"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(
            f"{where}: data_offsets: got {offsets!r:.60}; expected [begin, end] with begin <= end"
        )
    expected = found.itemsize_bytes
    for dim in shape:
        expected *= dim
    got = offsets[1] - offsets[0]
    if got != expected:
        raise UserError(f"{where}: got {got} bytes of data; expected {expected} for {found}[{_dims(shape)}]")
    return TensorEntry(found, tuple(shape), start + offsets[0], start + offsets[1])


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    """A list of integers that an int64 holds."""
    return isinstance(value, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 62 for x in value
    )


def _check_cover(entries: Mapping[str, TensorEntry], start: int, size: int, path: Path) -> None:
    """Tensors lie one after the other from the header to the end of the file."""
    end, before = start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            problem = "overlaps" if entry.begin < end else "leaves a gap after"
            raise UserError(
                f"{path}: tensor {name!r} {problem} {before}: begins at byte {entry.begin}, expected {end}"
            )
        end, before = entry.end, f"tensor {name!r}"
    if end != size:
        what = "the file is truncated" if end > size else "there is unknown data at the end"
        raise UserError(f"{path}: got {size} bytes; expected {end} by the header: {what}")


def _dims(shape: list[int]) -> str:
    return ",".join(str(d) for d in shape)
