"""Quantised weights in the tensors of a checkpoint: which there are, and their codes, without loss.

::

    strata  x.codes   u8  [N, K * bits / 8]    two codes of 4 bits to a byte, the first in the low half
            x.scales  f16 [N, K / group]       x.zeros  u8 [N, K / group]
    gptq    qweight   i32 [K * bits / 32, N]   code of k = 8 r + j of row r at bits 4 j
            scales    f16 [K / group, N]       qzeros   i32 [K / group, N * bits / 32]: zero - 1 at bits 4 j
            g_idx     i32 [K]                  group of each k (has to be k / group)
    awq     qweight   i32 [K, N / 8]           code of n = 8 c + ORDER[j] of column c at bits 4 j
            scales    f16 [K / group, N]       qzeros   i32 [K / group, N / 8], packed alike
    mlc     q_weight  u32 [N, K / 8]           (q, value (q - 7) scale) of k = 8 c + j at bits 4 j
            q_scale   f16 [N, K / 32]

Of strata, ``x`` is the whole name of the weight (``model.layers.0.mlp.down_proj.weight``); of the others,
what stands before ``.weight``. Everything but the values is checked before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np

from strata.core.dtypes import DType, f16, i32, u8, u32
from strata.core.errors import UnsupportedError, UserError
from strata.core.weight_format import WeightFormat
from strata.runtime.safetensors_file import Entry

from .codes import CODE_DTYPES, QuantizedMatrix
from .stored import Packing, StoredFormat

CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_MLC_ZERO = 7
_PACKED_ENDINGS = (".qweight", ".q_weight", ".codes")


class Tensors(Protocol):
    """The tensors of a checkpoint as they are stored."""

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> np.ndarray: ...

    def entry(self, name: str) -> Entry:
        """Dtype and shape."""
        ...

    def path(self, name: str) -> Path:
        """The file that it is in."""
        ...

    def release(self, name: str) -> None:
        """Drop its pages from memory."""
        ...


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One quantised weight of a checkpoint.

    Attributes:
        name: Of the weight: ``...weight``.
        shape: ``(N, K)``.
        format: Of its codes.
        tensors: Names of what it is stored in.
        read: Makes the codes.
    """

    name: str
    shape: tuple[int, int]
    format: WeightFormat
    tensors: tuple[str, ...]
    read: Callable[[], QuantizedMatrix]


def find_packed(tensors: Tensors, stored: StoredFormat | None) -> dict[str, PackedWeight]:
    """The quantised weights of a checkpoint, by name.

    Raises:
        UserError: tensors that contradict the config, each other, or the format.
        UnsupportedError: groups that are no neighbours (activation order without static groups).
    """
    if stored is None:
        packed = next((name for name in tensors if name.endswith(_PACKED_ENDINGS)), None)
        if packed is not None:
            raise UserError(
                f"{tensors.path(packed)}: tensor {packed!r} is packed, but config.json has no "
                f"quantization_config that says how; fetch the original config.json"
            )
        return {}
    finders = {
        Packing.STRATA: _find_strata,
        Packing.GPTQ: _find_gptq,
        Packing.AWQ: _find_awq,
        Packing.MLC: _find_mlc,
    }
    found = {weight.name: weight for weight in finders[stored.packing](tensors, stored)}
    if not found:
        raise UserError(
            f"{stored.where}: says that weights are quantized by {stored.packing.value}, but the checkpoint "
            f"has no such tensor; they do not belong together"
        )
    used = {tensor for weight in found.values() for tensor in weight.tensors}
    for name in tensors:
        if name.endswith(_PACKED_ENDINGS) and name not in used:
            raise UserError(
                f"{tensors.path(name)}: tensor {name!r} is no part of a weight quantized by "
                f"{stored.packing.value}, which {stored.where} announces; packings are mixed up"
            )
        if name in found:
            raise UserError(f"{tensors.path(name)}: tensor {name!r} is there as floats and as codes")
    return found


# --- strata ---------------------------------------------------------------------------------------


def _find_strata(tensors: Tensors, stored: StoredFormat) -> Iterator[PackedWeight]:
    for name, format in stored.weights.items():
        check = _Checks(tensors, name, stored)
        n, bytes_per_row = check.matrix(name + CODES, u8)
        k = bytes_per_row * 8 // format.bits
        groups = check.groups(format, k)
        check.shape(name + SCALES, (n, groups), f16)
        parts = [name + CODES, name + SCALES]
        if format.is_asymmetric:
            check.shape(name + ZEROS, (n, groups), u8)
            parts.append(name + ZEROS)

        def read(parts: list[str] = parts, format: WeightFormat = format) -> QuantizedMatrix:
            codes = unpack(tensors[parts[0]], format.bits)
            zeros = np.array(tensors[parts[2]]) if format.is_asymmetric else None
            if zeros is not None and zeros.max(initial=0) > format.max_code:
                raise UserError(f"{tensors.path(parts[2])}: tensor {parts[2]!r} has zeros beyond {format}")
            return QuantizedMatrix(format, codes, np.array(tensors[parts[1]]), zeros)

        yield PackedWeight(name, (n, k), format, tuple(parts), read)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[N, K]`` as bytes: two of 4 bits to a byte ``[N, K / 2]``, the first in the low half."""
    codes = codes.view(np.uint8)
    return codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes u4 or u8 ``[N, K]`` of bytes; the inverse of :func:`pack`."""
    return _nibbles(packed).view(CODE_DTYPES[4]) if bits == 4 else np.array(packed)


# --- gptq -----------------------------------------------------------------------------------------


def _find_gptq(tensors: Tensors, stored: StoredFormat) -> Iterator[PackedWeight]:
    format, bits = stored.format, stored.format.bits
    for stem in _stems(tensors, ".qweight"):
        check = _Checks(tensors, stem, stored)
        words, n = check.matrix(f"{stem}.qweight", i32)
        k = words * 32 // bits
        groups = check.groups(format, k)
        check.shape(f"{stem}.scales", (groups, n), None)
        check.shape(f"{stem}.qzeros", (groups, n * bits // 32), i32)
        parts = [f"{stem}.qweight", f"{stem}.scales", f"{stem}.qzeros"]
        if f"{stem}.g_idx" in tensors:
            parts.append(f"{stem}.g_idx")
            _check_order(check, tensors[parts[3]], k, k // groups)
        zeros = _words(tensors[parts[2]], bits) + np.uint8(stored.zero_offset) & np.uint8(format.max_code)
        if not format.is_asymmetric and (zeros != format.zero).any():
            check.fail(f"zero points differ from {format.zero}", "sym is true in config.json")

        def read(parts: list[str] = parts, zeros: np.ndarray = zeros) -> QuantizedMatrix:
            codes = _words(np.ascontiguousarray(tensors[parts[0]].T), bits)
            scales = _scales(tensors, parts[1]).T
            return _matrix(format, codes, scales, zeros.T)

        yield PackedWeight(f"{stem}.weight", (n, k), format, tuple(parts), read)


def _check_order(check: _Checks, group_of: np.ndarray, k: int, size: int) -> None:
    if group_of.shape != (k,) or group_of.dtype != np.int32:
        check.fail(f"g_idx is {group_of.dtype}{list(group_of.shape)}", f"int32{[k]}")
    if (group_of != np.arange(k) // size).any():
        raise UnsupportedError(
            f"{check.where}: its groups are no neighbours along K (g_idx; desc_act without static_groups); "
            f"use a checkpoint made with desc_act false, or the unquantized model"
        )


# --- awq ------------------------------------------------------------------------------------------


def _find_awq(tensors: Tensors, stored: StoredFormat) -> Iterator[PackedWeight]:
    format = stored.format
    for stem in _stems(tensors, ".qweight"):
        check = _Checks(tensors, stem, stored)
        k, words = check.matrix(f"{stem}.qweight", i32)
        n = words * 8
        groups = check.groups(format, k)
        check.shape(f"{stem}.scales", (groups, n), None)
        check.shape(f"{stem}.qzeros", (groups, words), i32)
        parts = [f"{stem}.qweight", f"{stem}.scales", f"{stem}.qzeros"]

        def read(parts: list[str] = parts) -> QuantizedMatrix:
            codes, zeros = (_in_order(_words(tensors[part], 4)) for part in (parts[0], parts[2]))
            return _matrix(format, codes.T, _scales(tensors, parts[1]).T, zeros.T)

        yield PackedWeight(f"{stem}.weight", (n, k), format, tuple(parts), read)


def _in_order(codes: np.ndarray) -> np.ndarray:
    """AWQ's columns ``[rows, N]`` where they belong."""
    eights = codes.reshape(len(codes), -1, 8)
    return eights[:, :, np.argsort(AWQ_ORDER)].reshape(codes.shape)


# --- mlc ------------------------------------------------------------------------------------------


def _find_mlc(tensors: Tensors, stored: StoredFormat) -> Iterator[PackedWeight]:
    format = stored.format
    for stem in _stems(tensors, ".q_weight"):
        check = _Checks(tensors, stem, stored)
        n, words = check.matrix(f"{stem}.q_weight", u32)
        k = words * 8
        check.shape(f"{stem}.q_scale", (n, check.groups(format, k)), f16)
        parts = [f"{stem}.q_weight", f"{stem}.q_scale"]

        def read(parts: list[str] = parts, check: _Checks = check) -> QuantizedMatrix:
            codes = _words(tensors[parts[0]], 4)
            if codes.max(initial=0) == 15:
                check.fail("codes reach 15", "0..14 of q4f16_1")
            # One more, so that MLC's zero, 7, becomes ours: the same values.
            return QuantizedMatrix(
                format,
                (codes + np.uint8(format.zero - _MLC_ZERO)).view(CODE_DTYPES[4]),
                np.array(tensors[parts[1]]),
            )

        yield PackedWeight(f"{stem}.weight", (n, k), format, tuple(parts), read)


# --- what they share ------------------------------------------------------------------------------


def _stems(tensors: Tensors, ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


class _Checks:
    """Checks of the tensors of one weight; each failure says what the packing expects."""

    def __init__(self, tensors: Tensors, name: str, stored: StoredFormat) -> None:
        self._tensors = tensors
        self._packing = f"{stored.packing.value} with {stored.weights.get(name) or stored.choice.default}"
        self.name = name

    @property
    def where(self) -> str:
        """The file and the weight."""
        first = next(n for n in self._tensors if n.startswith(self.name + "."))
        return f"{self._tensors.path(first)}: {self.name}"

    def fail(self, got: str, expected: str) -> NoReturn:
        """Report a contradiction."""
        raise UserError(
            f"{self.where}: got {got}; expected {expected} ({self._packing}): config.json and the weights do "
            f"not belong together, or packings are mixed up"
        )

    def matrix(self, name: str, dtype: DType) -> tuple[int, int]:
        """Shape of a tensor that has to be a matrix."""
        entry = self._entry(name)
        if entry.dtype != dtype or len(entry.shape) != 2 or 0 in entry.shape:
            self.fail(f"{name} as {entry.dtype}{list(entry.shape)}", f"a matrix of {dtype}")
        return entry.shape[0], entry.shape[1]

    def shape(self, name: str, shape: tuple[int, ...], dtype: DType | None) -> None:
        """A tensor has to have this shape and dtype (``None``: any float)."""
        entry = self._entry(name)
        is_right = entry.dtype.is_float if dtype is None else entry.dtype == dtype
        if entry.shape != shape or not is_right:
            self.fail(f"{name} as {entry.dtype}{list(entry.shape)}", f"{dtype or 'floats'}{list(shape)}")

    def groups(self, format: WeightFormat, k: int) -> int:
        """Groups in a row of ``k`` elements."""
        try:
            return format.num_groups(k)
        except UserError:
            self.fail(f"rows of {k} elements", "a multiple of the group")

    def _entry(self, name: str) -> Entry:
        if name not in self._tensors:
            raise UserError(
                f"{self.name}: the checkpoint has no tensor {name!r}; expected it ({self._packing})"
            )
        return self._tensors.entry(name)


def _matrix(
    format: WeightFormat, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray
) -> QuantizedMatrix:
    return QuantizedMatrix(
        format,
        np.ascontiguousarray(codes).view(CODE_DTYPES[format.bits]),
        np.ascontiguousarray(scales),
        np.ascontiguousarray(zeros) if format.is_asymmetric else None,
    )


def _scales(tensors: Tensors, name: str) -> np.ndarray:
    """Scales as f16 (they mostly are)."""
    stored = tensors[name]
    with np.errstate(over="ignore"):
        scales = stored.astype(np.float16)
    if not np.isfinite(scales).all():
        raise UserError(f"{tensors.path(name)}: tensor {name!r} has scales that are no numbers in f16")
    return scales


def _words(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes u8 ``[rows, columns * 32 / bits]`` of 32-bit words, lowest bits first."""
    octets = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return _nibbles(octets) if bits == 4 else octets


def _nibbles(octets: np.ndarray) -> np.ndarray:
    """Values 0..15 u8 ``[rows, 2 * columns]`` of bytes, low half first."""
    out = np.empty((len(octets), octets.shape[1] * 2), np.uint8)
    np.bitwise_and(octets, 15, out=out[:, 0::2])
    np.right_shift(octets, 4, out=out[:, 1::2])
    return out
