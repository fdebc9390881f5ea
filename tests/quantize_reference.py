"""Codes of a matrix in plain NumPy, one group after the other: what the kernel is compared with.

Values are rounded in f32, as the kernel does it; sums are in f64.
"""

from __future__ import annotations

import numpy as np

from strata.core.weight_format import WeightFormat
from strata.models.quantize.search import GRIDS, OFFSETS, RANGES

# Of the energy of a group: points of the search this close to the best one in f64 may win with sums in f32.
SLACK = 2e-6
Choice = tuple[float, float]  # scale (not rounded to f16), zero point


def encode(w: np.ndarray, scale: float, zero: float, format: WeightFormat) -> np.ndarray:
    """Codes u8 of values for a scale as it is stored."""
    q = np.rint(w.astype(np.float32) / np.float32(scale)) if scale else np.zeros_like(w)
    return np.clip(q + zero, format.min_code, format.max_code).astype(np.uint8)


def choices(w: np.ndarray, a: np.ndarray, format: WeightFormat, is_search: bool) -> list[Choice]:
    """Scales and zero points that are as good as any, for the values and importances f32 of one group."""
    found = _tried(w, a, format) if is_search else []
    if not found:
        return [_nearest(w, format)]
    least = min(error for error, _ in found)
    energy = np.square(w, dtype=np.float64) @ a
    return [choice for error, choice in found if error <= least + SLACK * energy]


def _nearest(w: np.ndarray, format: WeightFormat) -> Choice:
    low, high = min(w.min(), np.float32(0)), max(w.max(), np.float32(0))
    if format.is_asymmetric:
        scale = (high - low) / np.float32(format.max_code)
        return float(scale), float(np.rint(-low / scale)) if scale else 0.0
    extreme = high if high > -low else low
    return float(
        extreme / np.float32(-8) if format.bits == 4 else abs(extreme) / np.float32(127)
    ), format.zero


def _tried(w: np.ndarray, a: np.ndarray, format: WeightFormat) -> list[tuple[float, Choice]]:
    """Error and choice of all points of the search that give any code but zeros."""
    low, high = min(w.min(), np.float32(0)), max(w.max(), np.float32(0))
    is_asymmetric = format.is_asymmetric
    divided = high - low if is_asymmetric else -(high if high > -low else low)
    found = []
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / divided
        for steps in (RANGES if is_asymmetric else GRIDS)[format.bits]:
            factor = inverse * np.float32(steps)
            for offset in OFFSETS if is_asymmetric else (0.0,):
                middle = np.clip(np.rint(-low * factor) + np.float32(offset), 0, format.max_code)
                zero = float(middle) if is_asymmetric else format.zero
                q = np.clip(np.rint(w * factor), format.min_code - zero, format.max_code - zero)
                aw, q = a.astype(np.float64) * w, q.astype(np.float64)
                gain = (aw @ q) ** 2 / (q * q @ a)
                if gain >= 0 and np.isfinite(inverse):
                    found.append((aw @ w - gain, (float(aw @ w / (aw @ q)), zero)))
    return found
