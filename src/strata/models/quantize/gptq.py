"""Codes that make up for each other's errors: GPTQ.

With ``H = X^T X`` of the inputs ``X [tokens, K]`` of a matrix, the error of its output is ``tr(dW H dW^T)``.
Columns are rounded one after the other, and what rounding one of them does to the output is taken back, as
far as possible, by the columns that are still free. With ``H^-1 = U^T U`` (U upper triangular) and column
``j`` rounded from ``w_j`` to ``q_j``, the best correction of the columns ``i > j`` is
``w_i -= (w_j - q_j) / U_jj * U_ji``.

Columns go in the order of how strongly their inputs are excited, with the scales of all groups chosen before,
so that groups stay neighbours in memory.

Source: Frantar et al. 2022, "GPTQ", algorithm 1; activation order with static groups is in the authors' code.
"""

from __future__ import annotations

import numpy as np

from strata.core.errors import UserError
from strata.core.weight_format import WeightFormat

from .codes import Method, QuantizedMatrix, dequantize_matrix, quantize_matrix

_BLOCK = 64  # columns whose corrections of later blocks are applied in one product
DAMPING = 0.01


def gptq_matrix(
    weight: np.ndarray,
    format: WeightFormat,
    hessian: np.ndarray,
    *,
    damping: float = DAMPING,
    name: str = "weight",
) -> QuantizedMatrix:
    """Codes of least squared error of the outputs, for inputs like those that ``hessian`` comes from.

    Args:
        weight: ``[N, K]``, any float dtype.
        format: Of the result.
        hessian: ``X^T X`` ``[K, K]`` of inputs, up to a factor.
        damping: Added to the diagonal, as a fraction of its mean: calibration has not seen every input.
        name: Of the weight, for messages.

    Raises:
        UserError: as ``quantize_matrix``; or a Hessian of another size, or none (NaN, not positive).
    """
    k = weight.shape[-1]
    if hessian.shape != (k, k) or not np.isfinite(hessian).all():
        raise UserError(f"{name}: got a Hessian {list(hessian.shape)}; expected finite values {[k, k]}")
    excitation = np.diagonal(hessian).astype(np.float32)
    # The root of it: later columns take part of an error over, so no column matters as much as it seems.
    start = quantize_matrix(weight, format, method=Method.SEARCH, importance=np.sqrt(excitation), name=name)
    order = np.argsort(-excitation, kind="stable")
    upper = _inverse_root(hessian[np.ix_(order, order)], damping, name)
    size = k // start.scales.shape[1]
    group_of = order // size
    w = np.ascontiguousarray(weight.astype(np.float32).T[order])  # [K, N]: a column is contiguous
    scales = np.ascontiguousarray(start.scales.astype(np.float32).T)  # [groups, N]
    zeros = np.full_like(scales, format.zero) if start.zeros is None else start.zeros.astype(np.float32).T
    codes = np.empty(w.shape, np.uint8)
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        errors = np.empty((end - begin, w.shape[1]), np.float32)
        for j in range(begin, end):
            scale, zero = scales[group_of[j]], zeros[group_of[j]]
            code = _encode(w[j], scale, zero, format)
            codes[j] = code
            errors[j - begin] = (w[j] - (code - zero) * scale) / upper[j, j]
            w[j + 1 : end] -= upper[j, j + 1 : end, None] * errors[j - begin]
        w[end:] -= upper[begin:end, end:].T @ errors
    back = np.empty_like(codes)
    back[order] = codes
    codes = np.ascontiguousarray(back.T).view(start.codes.dtype)
    made = QuantizedMatrix(format, codes, start.scales, start.zeros)
    return QuantizedMatrix(format, codes, _same_size(weight, made, hessian), start.zeros)


def _encode(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, format: WeightFormat) -> np.ndarray:
    """Codes u8 of values ``w`` for scales and zeros ``[N]`` each; a scale of 0 gives zeros."""
    q = np.zeros_like(w)
    np.divide(w, scale, out=q, where=scale != 0)
    np.rint(q, out=q)
    q += zero
    np.clip(q, format.min_code, format.max_code, out=q)
    return q.astype(np.uint8)


def _same_size(weight: np.ndarray, matrix: QuantizedMatrix, hessian: np.ndarray) -> np.ndarray:
    """Scales with which every output is as large as that of the weights, on average over the inputs.

    Least squared error alone makes outputs a little smaller.
    """
    w = weight.astype(np.float32)
    wh = w @ hessian.astype(np.float32)
    have = np.einsum("ij,ij->i", wh, dequantize_matrix(matrix))
    wanted = np.einsum("ij,ij->i", wh, w)
    factor = np.ones_like(wanted)
    np.divide(wanted, have, out=factor, where=have > 0.5 * wanted)
    return (matrix.scales.astype(np.float32) * factor[:, None]).astype(np.float16)


def output_error(weight: np.ndarray, matrix: QuantizedMatrix, hessian: np.ndarray) -> float:
    """``tr(dW H dW^T) / tr(W H W^T)``: squared error of the outputs, relative to the outputs."""
    w = weight.astype(np.float32)
    d = dequantize_matrix(matrix) - w
    total = float(np.einsum("ij,ij->", w @ hessian, w))
    return float(np.einsum("ij,ij->", d @ hessian, d)) / total if total > 0 else 0.0


def _inverse_root(hessian: np.ndarray, damping: float, name: str) -> np.ndarray:
    """Upper triangular ``U`` with ``U^T U = H^-1``, f32.

    With rows and columns reversed, ``H = L L^T`` has ``H^-1 = L^-T L^-1``, and reversing ``L^-1`` back makes
    it upper triangular: one factorisation instead of two.
    """
    h = hessian.astype(np.float64)
    diagonal = np.diagonal(h).copy()
    mean = float(diagonal.mean())
    # Columns that no input excites (or a calibration of nothing) keep their nearest codes.
    h[np.diag_indices_from(h)] = np.where(diagonal > 0, diagonal, mean or 1.0) + damping * (mean or 1.0)
    try:
        lower = np.linalg.cholesky(h[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise UserError(f"{name}: the Hessian is not positive definite; calibrate with more text") from None
    _invert_lower(lower)
    return lower[::-1, ::-1].astype(np.float32)


def _invert_lower(lower: np.ndarray) -> None:
    """Invert a lower triangular matrix in place, by halves: nearly all of it is products."""
    k = len(lower)
    if k <= _BLOCK:
        lower[:] = np.tril(np.linalg.inv(lower))
        return
    half = k // 2
    top, bottom = lower[:half, :half], lower[half:, half:]
    _invert_lower(top)
    _invert_lower(bottom)
    lower[half:, :half] = -(bottom @ lower[half:, :half] @ top)
