"""One float matrix as codes of few bits with a scale per group, and back.

Two methods choose the scale of a group:

``nearest``
    From the largest magnitude, as every simple quantiser does. With 4 bits the scale takes the sign that maps
    this element to code 0 (q = -8), since that side reaches one step further than the other (7).
``search``
    Codes of least squared error: a grid of scales is tried, each gives codes ``q``, and those that lower the
    error most, by ``sum(w q)^2 / sum(q^2)`` with their best scale, win. The scale is then not that one,
    ``sum(w q) / sum(q^2)``, which makes every matrix a little too small, but ``sum(w^2) / sum(w q)``, with
    which the codes mean what the weights do on average: activations keep their size, and the perplexity of
    the demo model at 4 bits is 0.2 % better. With importances ``a`` (how strongly the inputs excite a
    column), all sums are weighted by them.

Scales are stored as f16; codes are chosen for the stored scale, so that its rounding costs next to nothing.
Both are the work of a kernel (:mod:`.search`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np

from strata.core.errors import UserError
from strata.core.weight_format import WeightFormat
from strata.runtime.tensors import dtype_name

from .search import ELEMENTS, choose_codes

_CHUNK_ELEMS = 1 << 18  # smaller chunks wait for the interpreter's lock, larger ones for memory
CODE_DTYPES = {4: np.dtype(ml_dtypes.uint4), 8: np.dtype(np.uint8)}
_MAX_SCALE = float(np.finfo(np.float16).max)


class Method(Enum):
    """How scales are chosen."""

    NEAREST = "nearest"
    SEARCH = "search"


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Codes with what they mean: ``value = (code - zero) * scale``.

    Attributes:
        format: Bits, group, symmetry.
        codes: u4 or u8 ``[N, K]``, one per byte.
        scales: f16 ``[N, K / group]``; may be negative.
        zeros: u8 ``[N, K / group]``: codes that mean 0; ``None`` in symmetric formats.

    Raises:
        UserError: arrays that do not fit together.
    """

    format: WeightFormat
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, k = self.codes.shape
        groups = (n, self.format.num_groups(k))
        dtype = CODE_DTYPES[self.format.bits]
        if self.codes.dtype != dtype or self.scales.dtype != np.float16 or self.scales.shape != groups:
            raise UserError(
                f"quantized matrix: got codes {self.codes.dtype}{[n, k]} with scales "
                f"{self.scales.dtype}{list(self.scales.shape)}; expected {dtype} and float16{list(groups)}"
            )
        zeros = self.zeros
        if (zeros is not None) != self.format.is_asymmetric:
            raise UserError(
                f"quantized matrix: zeros are {'given' if zeros is not None else 'missing'} for {self.format}"
            )
        if zeros is not None and (zeros.dtype != np.uint8 or zeros.shape != groups):
            raise UserError(
                f"quantized matrix: got zeros {zeros.dtype}{list(zeros.shape)}; expected uint8{list(groups)}"
            )

    @classmethod
    def empty(cls, format: WeightFormat, n: int, k: int, name: str = "weight") -> QuantizedMatrix:
        """Memory for codes and scales of ``[n, k]``, not initialised.

        Raises:
            UserError: K does not fit the group.
        """
        groups = (n, format.num_groups(k, name))
        zeros = np.empty(groups, np.uint8) if format.is_asymmetric else None
        codes = np.empty((n, k), np.uint8).view(CODE_DTYPES[format.bits])
        return cls(format, codes, np.empty(groups, np.float16), zeros)

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``."""
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, begin: int, end: int) -> QuantizedMatrix:
        """Some of the outputs; shares memory."""
        zeros = None if self.zeros is None else self.zeros[begin:end]
        return QuantizedMatrix(self.format, self.codes[begin:end], self.scales[begin:end], zeros)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """``("codes", ...)``, ``("scales", ...)`` and, if there are any, ``("zeros", ...)``."""
        yield "codes", self.codes
        yield "scales", self.scales
        if self.zeros is not None:
            yield "zeros", self.zeros


def quantize_matrix(
    weight: np.ndarray,
    format: WeightFormat,
    *,
    method: Method | str = Method.SEARCH,
    importance: np.ndarray | None = None,
    name: str = "weight",
    out: QuantizedMatrix | None = None,
) -> QuantizedMatrix:
    """Codes and scales of a float matrix.

    Args:
        weight: ``[N, K]``, any float dtype.
        format: Of the result.
        method: How scales are chosen.
        importance: f32 ``[K]``, >= 0: how much an error of each column matters (mean square of its input);
            ``None`` = all the same. Only ``search`` uses it.
        name: Of the weight, for messages.
        out: Where they go, of the same format and shape; ``None`` = new memory.

    Raises:
        UserError: no matrix, K does not fit the group, NaN, Inf, or scales beyond f16; an unknown method.
    """
    is_search = parse_method(method) is Method.SEARCH
    n, k = _check_shape(weight, name)
    groups = format.num_groups(k, name)
    size = k // groups
    weights = None if importance is None else _importance(importance, groups, size)
    if dtype_name(weight.dtype) not in ELEMENTS:
        weight = weight.astype(np.float32)
    made = QuantizedMatrix.empty(format, n, k, name) if out is None else out
    codes, scales = made.codes.view(np.uint8), made.scales
    zeros = np.empty((n, groups), np.uint8) if made.zeros is None else made.zeros
    # Dense matrices are read in place, others copied part by part.
    is_dense = weight.flags.c_contiguous and weight.flags.aligned
    step = max(1, n if is_dense else _CHUNK_ELEMS // k)
    for begin in range(0, n, step):
        rows = slice(begin, begin + step)
        part = np.require(weight[rows], requirements=["C", "A"])
        choose_codes(part, weights, format, is_search, codes[rows], scales[rows], zeros[rows])
    if not np.isfinite(scales).all():
        raise _explain(weight, name)
    return made


def _explain(weight: np.ndarray, name: str) -> UserError:
    """Why there are scales that are no numbers in f16."""
    largest = 0.0
    for row in weight:
        values = np.abs(row.astype(np.float32))
        if not np.isfinite(values).all():
            return UserError(f"{name}: has weights that are NaN or infinite; the checkpoint is damaged")
        largest = max(largest, float(values.max()))
    return UserError(
        f"{name}: got a weight of magnitude {largest:g}; scales are stored as f16, which ends at "
        f"{_MAX_SCALE:g}: use a float format for this weight"
    )


def dequantize_matrix(matrix: QuantizedMatrix, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """The values ``(code - zero) * scale``, computed in f32, ``[N, K]``."""
    n, k = matrix.shape
    groups = matrix.scales.shape[1]
    out = np.empty((n, k), dtype)

    def run(rows: slice) -> None:
        code = matrix.codes[rows].view(np.uint8).reshape(-1, groups, k // groups)
        if matrix.zeros is None:
            q = code.astype(np.float32) - np.float32(matrix.format.zero)
        else:
            q = code.astype(np.float32) - matrix.zeros[rows, :, None].astype(np.float32)
        q *= matrix.scales[rows].astype(np.float32)[:, :, None]
        out[rows] = q.reshape(-1, k)

    _for_rows(n, k, run)
    return out


def concat_rows(parts: list[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one format below each other; groups lie along K, so nothing is lost."""
    first = parts[0]
    if len(parts) == 1:
        return first
    zeros = None if first.zeros is None else np.concatenate([p.zeros for p in parts if p.zeros is not None])
    return QuantizedMatrix(
        first.format,
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scales for p in parts]),
        zeros,
    )


# --- helpers --------------------------------------------------------------------------------------


def parse_method(method: Method | str) -> Method:
    """The method called ``method``.

    Raises:
        UserError: there is none.
    """
    if isinstance(method, Method):
        return method
    known = {m.value: m for m in Method}
    if method not in known:
        raise UserError(f"method: got {method!r:.40}; expected {' or '.join(known)}")
    return known[method]


def _check_shape(weight: np.ndarray, name: str) -> tuple[int, int]:
    if weight.ndim != 2:
        raise UserError(f"{name}: got shape {list(weight.shape)}; expected a matrix [outputs, inputs]")
    return weight.shape[0], weight.shape[1]


def _importance(importance: np.ndarray, groups: int, size: int) -> np.ndarray:
    """``[groups, size]``, positive: a column that no text excited still counts a little."""
    a = np.asarray(importance, np.float32)
    if a.shape != (groups * size,) or not np.isfinite(a).all() or (a < 0).any():
        raise UserError(
            f"importance: got {a.dtype}{list(a.shape)}; expected {groups * size} finite values >= 0"
        )
    a = a + max(float(a.mean()) * 1e-3, 1e-30)
    return a.reshape(groups, size)


def _for_rows(n: int, k: int, run: Callable[[slice], None]) -> None:
    """``run`` over chunks of rows, on all cores: NumPy computes without the interpreter's lock."""
    step = max(1, _CHUNK_ELEMS // max(k, 1))
    chunks = [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]
    threads = min(len(chunks), os.cpu_count() or 1)
    if threads <= 1:
        for rows in chunks:
            run(rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(run, chunks):
            pass
