"""Rotary position embedding: scaling rules and inverse frequencies.

Frequencies follow ``transformers.modeling_rope_utils`` operation by operation, in float32, so that angles at
large positions agree with the reference; the angle of position p is ``float32(p) * inv_freq`` in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import numpy as np

DEFAULT_THETA = 10000.0


class RopeType(Enum):
    """How the base frequencies are stretched for longer contexts."""

    DEFAULT = "default"  # Su et al. 2021, RoFormer
    LINEAR = "linear"  # positions divided by a factor
    LLAMA3 = "llama3"  # long wavelengths divided by a factor, a smooth step between (Llama 3.1)
    YARN = "yarn"  # Peng et al. 2023, eq. 17-23


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; values that a type does not use keep their defaults.

    Attributes:
        type: Scaling rule.
        factor: Stretch of the context.
        original_context: Tokens of the context before stretching (llama3, yarn).
        low_freq_factor, high_freq_factor: Borders of the smooth step, in original contexts per wavelength
            (llama3).
        attention_factor: Factor on cos and sin (yarn); ``None`` = from ``factor``.
        beta_fast, beta_slow: Rotations per original context where interpolation begins and ends (yarn).
        mscale, mscale_all_dim: Terms of the attention factor (yarn; 0 = unused).
        truncate: Round the borders of the ramp to whole dims (yarn).
    """

    type: RopeType = RopeType.DEFAULT
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


UNSCALED = RopeScaling()


def inverse_frequencies(theta: float, rotary_dim: int, scaling: RopeScaling = UNSCALED) -> np.ndarray:
    """Radians per position of each rotated pair.

    Args:
        theta: Base of the frequencies.
        rotary_dim: Rotated elements of a head, even.
        scaling: How they are stretched.

    Returns:
        ``f32[rotary_dim / 2]``, scaling applied.
    """
    # Same operations and dtypes as the reference: an f32 power, then one f32 division.
    exponents = np.arange(0, rotary_dim, 2).astype(np.float32) / np.float32(rotary_dim)
    powers = np.power(np.float32(theta), exponents)
    base = np.float32(1.0) / powers
    match scaling.type:
        case RopeType.DEFAULT:
            return base
        case RopeType.LINEAR:
            return base / np.float32(scaling.factor)
        case RopeType.LLAMA3:
            return _llama3(scaling, base)
        case RopeType.YARN:
            return _yarn(scaling, theta, powers, rotary_dim)
        case never:
            assert_never(never)


def attention_factor(scaling: RopeScaling) -> float:
    """Factor on cos and sin; 1 except for yarn."""
    if scaling.type is not RopeType.YARN:
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(scaling: RopeScaling, base: np.ndarray) -> np.ndarray:
    """Divide wavelengths beyond ``original / low_freq_factor`` by ``factor``; keep those below ``original "
    "/ high``.
    """
    original, low, high = scaling.original_context, scaling.low_freq_factor, scaling.high_freq_factor
    f32 = np.float32
    wavelength = f32(2 * math.pi) / base
    scaled = np.where(wavelength > f32(original / low), base / f32(scaling.factor), base)
    smooth = (f32(original) / wavelength - f32(low)) / f32(high - low)
    between = (f32(1) - smooth) * scaled / f32(scaling.factor) + smooth * scaled
    is_between = ~(wavelength < f32(original / high)) & ~(wavelength > f32(original / low))
    return np.where(is_between, between, scaled)


def _yarn(scaling: RopeScaling, theta: float, powers: np.ndarray, rotary_dim: int) -> np.ndarray:
    """Blend interpolated and original frequencies with a ramp over the pairs (Peng et al. 2023, eq. 23)."""

    def border(rotations: float) -> float:
        turns = math.log(scaling.original_context / (rotations * 2 * math.pi))
        return rotary_dim * turns / (2 * math.log(theta))

    f32 = np.float32
    low, high = border(scaling.beta_fast), border(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # as in the reference: no division by zero
    ramp = (np.arange(rotary_dim // 2).astype(f32) - f32(low)) / f32(high - low)
    keep = f32(1) - np.clip(ramp, 0, 1)
    return f32(1) / (f32(scaling.factor) * powers) * (f32(1) - keep) + f32(1) / powers * keep
