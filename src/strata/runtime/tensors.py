"""NumPy arrays as native tensors: aligned memory, addresses, and tvm-ffi tensors of every dtype (bf16 too).

NumPy exports DLPack for its own dtypes only and refuses read-only arrays. :func:`as_tensor` goes the same way
for all: it exports a view of equal bits, then writes the true DLPack type code into the fresh capsule before
tvm-ffi takes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from functools import cache
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from strata.core.dtypes import ALL_DTYPES, dtype
from strata.core.errors import ShapeError

if TYPE_CHECKING:
    import tvm_ffi

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector
HUGE_PAGE_BYTES = 2 << 20  # of x86-64, and of AArch64 with pages of 4 KiB

_DLPACK_BFLOAT = 4  # kDLBfloat of dlpack.h
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_UINT4 = np.dtype("uint4")


class _DLTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h (also the head of ``DLManagedTensor``)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


@cache
def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of Strata's dtype ``name`` (``"bf16"`` is ``ml_dtypes.bfloat16``).

    Raises:
        UserError: no such dtype.
    """
    return np.dtype(dtype(name).numpy_name)


@cache
def dtype_name(numpy_type: np.dtype) -> str | None:
    """Strata's name of a NumPy dtype; ``None`` for one that Strata does not have."""
    return next((d.name for d in ALL_DTYPES.values() if d.numpy_name == numpy_type.name), None)


def type_text(array: np.ndarray) -> str:
    """``"f32[3,4]"``: dtype and shape of an array, for messages."""
    known = dtype_name(array.dtype)
    name = known if known is not None else array.dtype.name
    return f"{name}[{','.join(map(str, array.shape))}]"


def address(array: np.ndarray) -> int:
    """Address of the first element."""
    return array.__array_interface__["data"][0]


def aligned_size(size_bytes: int) -> int:
    """The next multiple of 64 bytes."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
    """Uninitialised C-contiguous array whose first element is on a 64-byte border.

    It lies in huge pages if it fills one: with small ones, a kernel that reads it from end to end waits for
    the translation of addresses (``docs/performance.md``).
    """
    huge = math.prod(shape) * np.dtype(dtype).itemsize >= HUGE_PAGE_BYTES
    return _aligned(shape, np.dtype(dtype), _huge_pages if huge else np.empty)


def _huge_pages(size_bytes: int, dtype: type) -> np.ndarray:
    whole = -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES  # Linux aligns only whole ones
    try:
        memory = mmap.mmap(-1, whole, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate {whole} bytes") from error
    with contextlib.suppress(OSError, AttributeError):  # not built into the kernel, or not Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, size_bytes)


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
    """Zeroed C-contiguous array on a 64-byte border; it takes real memory only where it is touched."""
    return _aligned(shape, np.dtype(dtype), np.zeros)


def _aligned(shape: tuple[int, ...], dtype: np.dtype, allocate) -> np.ndarray:
    size_bytes = math.prod(shape) * dtype.itemsize
    raw = allocate(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -address(raw) % ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


class _Memory:
    """Bytes at an address for NumPy, which keeps this object as long as the array."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, start: int, size_bytes: int, owner: object) -> None:
        self.__array_interface__ = {
            "data": (start, False),
            "shape": (size_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
        self.owner = owner


def array_at(start: int, shape: tuple[int, ...], dtype: np.dtype, keep: object = None) -> np.ndarray:
    """Writable array over ``shape`` elements of memory at address ``start``.

    Args:
        start: Address of the first element.
        shape: Extents.
        dtype: Element type.
        keep: Owner of the memory, kept alive as long as the array.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes == 0:
        return np.empty(shape, dtype)
    return np.asarray(_Memory(start, size_bytes, keep)).view(dtype).reshape(shape)


def as_tensor(array: np.ndarray) -> tvm_ffi.Tensor:
    """``array`` as a tvm-ffi tensor over the same memory.

    Args:
        array: Any numeric dtype, bf16 included; elements of 4 bits, one to a byte, are passed as bytes. A
            read-only array is passed as it is (the callee must not write it).

    Raises:
        ShapeError: the array is not C-contiguous, or has a dtype without a DLPack code.
    """
    import tvm_ffi  # here: it imports PyTorch where that is installed

    if not array.flags.c_contiguous:
        raise ShapeError(
            f"tensor: got a strided array {type_text(array)}; expected C-contiguous; use np.ascontiguousarray"
        )
    if not array.flags.writeable:
        array = array_at(address(array), array.shape, array.dtype, keep=array)
    if array.dtype == _UINT4:
        array = array.view(np.uint8)
    if array.dtype == _BFLOAT16:
        capsule = array.view(np.uint16).__dlpack__()
        _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor")).type_code = _DLPACK_BFLOAT
        return tvm_ffi.from_dlpack(capsule)
    try:
        return tvm_ffi.from_dlpack(array)
    except BufferError as error:
        raise ShapeError(f"tensor: dtype {array.dtype} of {type_text(array)} has no DLPack code") from error


def as_array(tensor: tvm_ffi.Tensor) -> np.ndarray:
    """NumPy view of a contiguous CPU tvm-ffi tensor (bf16 too); the tensor stays alive with the view."""
    name = str(tensor.dtype)
    return array_at(tensor.data_ptr(), tuple(tensor.shape), np.dtype(name), keep=tensor)
