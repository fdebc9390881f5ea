"""What a photonic unit computes instead of a matrix product: converters of few bits, and noise.

::

    x [rows, K] --/range--> DAC --+                                      per tile of K (or once, in analog)
                                  +--> products of light, noise --> sum --> noise --> ADC --> digital sum
    w [K, cols] --/range--> DAC --+                                                     times ranges --> y

Operands are divided by their ranges first, so the optics only sees numbers in -1 .. 1 (a negative number is
a pair of paths whose currents are subtracted), and an ADC sees a sum of such products. Its full scale is in
the same unit and does not change from one product to the next: a gain that is set once, by
:func:`analog_range` on other data. Converters have ``2**bits - 1`` levels, evenly spaced and symmetric around
zero.

Normal noise of products, independent from one to the next, makes their sum normal with the sum of the
variances: it is drawn once per sum, with the same distribution and a fraction of the work.

Sources: the order of converters, sums and noise is that of time-multiplexed and crossbar accelerators,
Hamerly et al., Phys. Rev. X 9, 021032 (2019); noise relative to full scale, ranges per vector: Garg et al.,
"Dynamic precision analog computing for neural networks", IEEE JSTQE 29(2), 2023; an ADC per tile: Rekhi et
al., "Analog/mixed-signal hardware error modeling for deep learning inference", DAC 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum

import numpy as np

from strata.core.errors import ShapeError, UserError
from strata.target.hardware import PHU

MAX_BITS = 20  # codes and their rounding are exact in f32, which has 24


class RangeOf(Enum):
    """Which numbers of an operand share a range."""

    MATRIX = "matrix"
    VECTOR = "vector"  # a row of inputs, a column of weights: what meets in one output


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotonicNumerics:
    """How a photonic unit computes products.

    Attributes:
        dac_bits, weight_bits, adc_bits: Of the converters of inputs, weights and outputs; ``None`` = exact.
        tile_rows: Products that a tile adds up; 0 = all of them. Columns of a tile do not meet, so their
            number does not matter here.
        analog_sums: Tiles whose sums are added as light or charge before a conversion; 0 = all of them.
        noise_additive: Standard deviation of a read-out, relative to the ADC's full scale.
        noise_multiplicative: Standard deviation of a product, relative to its value.
        input_range, weight_range: What shares a range.
        percentile: How much of the absolute values a range covers, > 0; larger ones are clipped. 100 = all.

    Raises:
        UserError: a number out of range.
    """

    dac_bits: int | None = 8
    weight_bits: int | None = 8
    adc_bits: int | None = 8
    tile_rows: int = 0
    analog_sums: int = 1
    noise_additive: float = 0.0
    noise_multiplicative: float = 0.0
    input_range: RangeOf = RangeOf.VECTOR
    weight_range: RangeOf = RangeOf.VECTOR
    percentile: float = 100.0

    def __post_init__(self) -> None:
        for name in ("dac_bits", "weight_bits", "adc_bits"):
            bits = getattr(self, name)
            if bits is not None and not 2 <= bits <= MAX_BITS:
                raise UserError(f"photonic numerics: {name}: got {bits}; expected 2..{MAX_BITS} bits or None")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not 0 <= value < np.inf:
                raise UserError(f"photonic numerics: {f.name}: got {value}; expected a number >= 0")
        for name in ("tile_rows", "analog_sums"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"photonic numerics: {name}: got {getattr(self, name)}; expected 0 (all) or more"
                )
        if not 0 < self.percentile <= 100:
            raise UserError(f"photonic numerics: percentile: got {self.percentile}; expected 0 < p <= 100")

    @staticmethod
    def of(phu: PHU) -> PhotonicNumerics:
        """Those of a unit: its converters (none: exact), tiles and noise; weights through the same DACs."""
        dac_bits = None if phu.dac is None else phu.dac.bits
        return PhotonicNumerics(
            dac_bits=dac_bits,
            weight_bits=dac_bits,
            adc_bits=None if phu.adc is None else phu.adc.bits,
            tile_rows=phu.rows,
            analog_sums=phu.analog_sums,
            noise_additive=phu.noise_additive,
            noise_multiplicative=phu.noise_multiplicative,
        )

    @property
    def is_noisy(self) -> bool:
        """Whether results differ from one draw to the next."""
        return self.noise_additive > 0 or self.noise_multiplicative > 0


def photonic_matmul(
    x: np.ndarray,
    w: np.ndarray,
    numerics: PhotonicNumerics,
    rng: np.random.Generator,
    *,
    full_scale: float | None = None,
) -> np.ndarray:
    """``x @ w`` as a photonic unit computes it.

    Args:
        x: f32 ``[..., rows, K]``: inputs.
        w: f32 ``[..., K, cols]``: weights; batch dims as NumPy broadcasts them.
        numerics: How.
        rng: Where noise comes from; not used without noise.
        full_scale: Largest sum that the ADC can tell apart, as :func:`analog_range` gives it; ``None``: the
            range of this very product.

    Returns:
        f32 ``[..., rows, cols]``.

    Raises:
        ShapeError: the shapes do not fit.
        UserError: an operand is not finite.
    """
    _check(x, w)
    x, x_range = _normalized(x, numerics.input_range, -1, numerics)
    w, w_range = _normalized(w, numerics.weight_range, -2, numerics)
    if full_scale is None:
        full_scale = _largest(x, w, numerics)
    x, w = quantize(x, numerics.dac_bits), quantize(w, numerics.weight_bits)
    total = np.float32(0.0)
    for tile in _tiles(x.shape[-1], numerics):
        sums = x[..., tile] @ w[..., tile, :]
        if numerics.is_noisy:
            sums += _noise(x[..., tile], w[..., tile, :], numerics, rng, full_scale)
        total = total + _through(sums, numerics.adc_bits, full_scale)
    return total * x_range * w_range


def analog_range(x: np.ndarray, w: np.ndarray, numerics: PhotonicNumerics) -> float:
    """The full scale that suits the sums of ``x @ w``, in products of full-scale operands.

    It covers ``numerics.percentile`` of the absolute sums, without noise; > 0.

    Raises:
        ShapeError: the shapes do not fit.
        UserError: an operand is not finite.
    """
    _check(x, w)
    x, _ = _normalized(x, numerics.input_range, -1, numerics)
    w, _ = _normalized(w, numerics.weight_range, -2, numerics)
    return _largest(x, w, numerics)


def quantize(x: np.ndarray, bits: int | None) -> np.ndarray:
    """The nearest of ``2**bits - 1`` levels in -1 .. 1, f32; what lies outside is clipped."""
    return _through(x.copy(), bits, 1.0)


def _through(x: np.ndarray, bits: int | None, full_scale: float) -> np.ndarray:
    """``x`` as a converter gives it, in place."""
    if bits is None:
        return x
    levels = 2 ** (bits - 1) - 1
    x *= np.float32(levels / full_scale)
    np.rint(x, out=x)
    np.clip(x, np.float32(-levels), np.float32(levels), out=x)
    x *= np.float32(full_scale / levels)
    return x


def _noise(
    x: np.ndarray, w: np.ndarray, numerics: PhotonicNumerics, rng: np.random.Generator, full_scale: float
) -> np.ndarray:
    """What noise adds to the sums ``x @ w``, f32 ``[..., rows, cols]``."""
    batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    drawn = rng.standard_normal((*batch, x.shape[-2], w.shape[-1]), np.float32)
    additive = np.float32(numerics.noise_additive * full_scale)
    if numerics.noise_multiplicative == 0:
        drawn *= additive
        return drawn
    variance = np.square(x) @ np.square(w)
    variance *= np.float32(numerics.noise_multiplicative**2)
    variance += np.square(additive)
    drawn *= np.sqrt(variance, out=variance)
    return drawn


def _tiles(depth: int, numerics: PhotonicNumerics) -> Iterator[slice]:
    """Parts of K that are summed before a conversion."""
    size = numerics.tile_rows * numerics.analog_sums or depth
    for begin in range(0, depth, size):
        yield slice(begin, begin + size)


def _normalized(
    x: np.ndarray, range_of: RangeOf, axis: int, numerics: PhotonicNumerics
) -> tuple[np.ndarray, np.ndarray]:
    """``x`` over its ranges, clipped to -1 .. 1, and the ranges; vectors lie along ``axis``."""
    axes = (-2, -1) if range_of is RangeOf.MATRIX else (axis,)
    ranges = _range(np.abs(x), axes, numerics.percentile)
    if not np.isfinite(ranges).all():
        raise UserError("photonic_matmul: an operand has numbers that are not finite")
    ranges = np.where(ranges > 0, ranges, np.float32(1.0))
    return np.clip(x / ranges, np.float32(-1.0), np.float32(1.0)), ranges


def _largest(x: np.ndarray, w: np.ndarray, numerics: PhotonicNumerics) -> float:
    """Range of the sums of normalized operands."""
    found = 0.0
    for tile in _tiles(x.shape[-1], numerics):
        sums = np.abs(x[..., tile] @ w[..., tile, :])
        found = max(found, float(_range(sums, tuple(range(sums.ndim)), numerics.percentile).item()))
    return found or 1.0


def _range(magnitudes: np.ndarray, axes: tuple[int, ...], percentile: float) -> np.ndarray:
    """What covers ``percentile`` of the values along ``axes``, which are kept with extent 1."""
    if percentile == 100:
        return magnitudes.max(axis=axes, keepdims=True, initial=0)
    covering = np.percentile(magnitudes, percentile, axis=axes, keepdims=True, method="higher")
    return np.where(covering > 0, covering, magnitudes.max(axis=axes, keepdims=True)).astype(np.float32)


def _check(x: np.ndarray, w: np.ndarray) -> None:
    if x.dtype != np.float32 or w.dtype != np.float32:
        raise ShapeError(f"photonic_matmul: got dtypes {x.dtype} and {w.dtype}; expected float32")
    if x.ndim < 2 or w.ndim < 2 or not x.shape[-1] == w.shape[-2] >= 1:
        raise ShapeError(
            f"photonic_matmul: got {x.shape} times {w.shape}; expected [.., M, K] and [.., K, N] with K >= 1"
        )
