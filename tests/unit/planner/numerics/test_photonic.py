"""Products of a photonic unit against theory: quantisation noise, analog noise, their sums."""

import itertools

import numpy as np
import pytest

from strata.core.errors import ShapeError, UserError
from strata.planner.numerics import PhotonicNumerics, RangeOf, analog_range, photonic_matmul, quantize
from strata.target.hardware import PHU, Converter

EXACT = {"dac_bits": None, "weight_bits": None, "adc_bits": None}
F32_ROUNDOFF = 2.0**-24


def operands(rows=128, depth=96, cols=128, *, seed=0, batch=()):
    """Uniform in -1 .. 1, each vector with an element of magnitude 1: all ranges are exactly 1."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (*batch, rows, depth)).astype(np.float32)
    w = rng.uniform(-1, 1, (*batch, depth, cols)).astype(np.float32)
    x[..., :, 0], w[..., 0, :] = 1, -1
    return x, w


def exact(x, w):
    return x.astype(np.float64) @ w.astype(np.float64)


def rng(seed=0):
    return np.random.default_rng(seed)


def step(bits):
    return 1 / (2 ** (bits - 1) - 1)


def error_bound(x, w, numerics, full_scale):
    """Largest possible error of each output without noise, from the steps of the converters.

    With codes x' = x + a, w' = w + b, |a|, |b| <= half a step: |x'w' - xw| <= |a||w| + |b||x| + |a||b|.
    Clipping to a full scale that the exact sum does not exceed makes this no worse, and an ADC adds half a
    step. The last term is the rounding of f32 sums of products up to 1, and of the products with ranges.
    """
    a, b, c = (
        step(n) / 2 if n else 0.0 for n in (numerics.dac_bits, numerics.weight_bits, numerics.adc_bits)
    )
    x_range, w_range = np.abs(x).max(-1, keepdims=True), np.abs(w).max(-2, keepdims=True)
    depth = x.shape[-1]
    tile = numerics.tile_rows or depth
    num_tiles = -(-depth // tile)
    sums = a * (np.abs(w) / w_range).sum(-2, keepdims=True) + b * (np.abs(x) / x_range).sum(-1, keepdims=True)
    sums = sums + depth * a * b + num_tiles * c * full_scale + 8 * F32_ROUNDOFF * depth * (1 + num_tiles)
    return sums * x_range * w_range


@pytest.mark.parametrize("bits", [None, 4, 8, 12, 16, 20])
@pytest.mark.parametrize("tile_rows", [0, 32, 40])
def test_without_noise_the_error_is_within_its_bound_and_vanishes_with_many_bits(bits, tile_rows):
    x, w = operands()
    x *= np.geomspace(1e-3, 1e3, len(x), dtype=np.float32)[:, None]
    numerics = PhotonicNumerics(dac_bits=bits, weight_bits=bits, adc_bits=bits, tile_rows=tile_rows)
    full_scale = analog_range(x, w, numerics)
    error = np.abs(photonic_matmul(x, w, numerics, rng(), full_scale=full_scale) - exact(x, w))
    bound = error_bound(x, w, numerics, full_scale)
    assert (error <= bound).all()
    if bits in (None, 20):  # the bound itself is small beside the ranges of operands and of sums
        ranges = np.abs(x).max(-1, keepdims=True) * full_scale
        assert (bound / ranges).max() < 2e-4


@pytest.mark.parametrize("bits", [3, 6, 10])
def test_the_error_of_a_converter_has_variance_step_squared_over_12(bits):
    x = np.random.default_rng(1).uniform(-1, 1, 200_000).astype(np.float32)
    error = quantize(x, bits).astype(np.float64) - x
    # standard error of a mean square of 200k errors: 0.9 / sqrt(200k) = 0.2 % of it
    assert np.square(error).mean() == pytest.approx(step(bits) ** 2 / 12, rel=0.01)
    assert np.unique(quantize(x, bits)).size <= 2**bits - 1


def test_a_converter_clips_and_keeps_its_input():
    x = np.array([-3.0, -1.0, 0.0, 0.2, 7.0], np.float32)
    kept = x.copy()
    assert quantize(x, 2).tolist() == [-1, -1, 0, 0, 1]
    assert (x == kept).all()


@pytest.mark.parametrize("tile_rows", [0, 24])
@pytest.mark.parametrize("bits", [(6, None, None), (None, 6, None), (None, None, 7), (7, 8, 9)])
def test_errors_of_all_converters_add_up_as_variances(bits, tile_rows):
    dac, weight, adc = bits
    x, w = operands()
    numerics = PhotonicNumerics(dac_bits=dac, weight_bits=weight, adc_bits=adc, tile_rows=tile_rows)
    full_scale = analog_range(x, w, numerics)
    error = photonic_matmul(x, w, numerics, rng(), full_scale=full_scale) - exact(x, w)
    squares = [step(n) ** 2 / 12 if n else 0.0 for n in bits]
    num_tiles = 96 // (tile_rows or 96)
    variance = (
        squares[0] * np.square(w).sum(0, keepdims=True)
        + squares[1] * np.square(x).sum(1, keepdims=True)
        + squares[2] * num_tiles * full_scale**2
    )
    # 128 x 128 outputs share 128 rows and columns of operand errors: a few per cent of spread
    assert np.square(error).mean() == pytest.approx(variance.mean(), rel=0.08)


@pytest.mark.parametrize(
    ("tile_rows", "analog_sums", "reads"), [(0, 1, 1), (24, 1, 4), (24, 2, 2), (24, 3, 2), (24, 0, 1)]
)
def test_additive_noise_comes_with_every_read_out(tile_rows, analog_sums, reads):
    x, w = operands()
    numerics = PhotonicNumerics(**EXACT, tile_rows=tile_rows, analog_sums=analog_sums, noise_additive=0.02)
    error = photonic_matmul(x, w, numerics, rng(), full_scale=5.0) - exact(x, w)
    assert np.square(error).mean() == pytest.approx(reads * (0.02 * 5) ** 2, rel=0.05)  # 1.1 % standard error
    assert abs(error.mean()) < 5 * 0.1 * np.sqrt(reads / error.size)


def test_multiplicative_noise_is_that_of_independent_products():
    x, w = operands(16, 12, 16)
    numerics = PhotonicNumerics(**EXACT, noise_multiplicative=0.1)
    source = rng(3)
    drawn = np.stack([photonic_matmul(x, w, numerics, source) for _ in range(2000)])
    products = x[:, :, None] * w  # [rows, K, cols], each with noise of its own: the definition
    literal = np.stack([(products * source.normal(1, 0.1, products.shape)).sum(1) for _ in range(2000)])
    assert np.allclose(drawn.mean(0), exact(x, w), atol=6 * 0.1 * np.sqrt(12 / 2000))
    variance = 0.01 * np.square(products).sum(1)
    # standard error of a variance over 2000 draws: sqrt(2 / 2000) = 3.2 %
    assert np.allclose(drawn.var(0), variance, rtol=0.2)
    assert np.allclose(literal.var(0), variance, rtol=0.2)


def test_both_kinds_of_noise_are_independent():
    x, w = operands()
    numerics = PhotonicNumerics(**EXACT, noise_additive=0.01, noise_multiplicative=0.05)
    error = photonic_matmul(x, w, numerics, rng(), full_scale=10.0) - exact(x, w)
    variance = 0.1**2 + 0.05**2 * np.square(x) @ np.square(w)
    assert np.square(error).mean() == pytest.approx(variance.mean(), rel=0.05)


def test_more_bits_are_never_worse_on_average():
    x, w = operands(64, 64, 64, seed=7)
    errors = []
    for bits in range(2, 15):
        numerics = PhotonicNumerics(dac_bits=bits, weight_bits=bits, adc_bits=bits, tile_rows=16)
        error = photonic_matmul(x, w, numerics, rng()) - exact(x, w)
        errors.append(np.sqrt(np.square(error).mean()))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.001 * errors[0]


def test_one_seed_gives_one_result():
    x, w = operands(8, 16, 8)
    numerics = PhotonicNumerics(noise_additive=0.01, noise_multiplicative=0.01, tile_rows=8)
    first, again, other = (photonic_matmul(x, w, numerics, rng(s)) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.dtype == np.float32


def test_operands_stay_as_they_are():
    x, w = operands(8, 16, 8)
    kept = x.copy(), w.copy()
    photonic_matmul(x, w, PhotonicNumerics(noise_additive=0.1), rng())
    assert (x == kept[0]).all()
    assert (w == kept[1]).all()


@pytest.mark.parametrize("range_of", list(RangeOf))
def test_a_batch_is_its_products_one_by_one(range_of):
    x, w = operands(5, 12, 7, batch=(3,))
    x *= np.array([1, 20, 0.1], np.float32)[:, None, None]
    numerics = PhotonicNumerics(
        dac_bits=5, adc_bits=6, tile_rows=5, input_range=range_of, weight_range=range_of
    )
    batched = photonic_matmul(x, w, numerics, rng(), full_scale=4.0)
    apart = [photonic_matmul(a, b, numerics, rng(), full_scale=4.0) for a, b in zip(x, w, strict=True)]
    assert np.allclose(batched, np.stack(apart), rtol=1e-6, atol=1e-6)
    shared = photonic_matmul(x, w[0], numerics, rng(), full_scale=4.0)  # one matrix for all
    assert np.allclose(shared[1], photonic_matmul(x[1], w[0], numerics, rng(), full_scale=4.0), atol=1e-5)


def test_a_range_per_vector_suits_rows_of_different_size():
    x, w = operands()
    x *= np.geomspace(1e-3, 1, len(x), dtype=np.float32)[:, None]
    errors = {}
    for range_of in RangeOf:
        numerics = PhotonicNumerics(dac_bits=6, weight_bits=None, adc_bits=None, input_range=range_of)
        errors[range_of] = np.square(photonic_matmul(x, w, numerics, rng()) - exact(x, w))[:32].mean()
    assert errors[RangeOf.VECTOR] < 1e-3 * errors[RangeOf.MATRIX]


def test_a_percentile_clips_what_is_rare():
    x, w = operands(32, 400, 32)
    x[:, 0] = 50  # one in 400
    tight = PhotonicNumerics(dac_bits=6, weight_bits=None, adc_bits=None, percentile=99.5)
    clipped = x.copy()
    clipped[:, 0] = np.sort(np.abs(x), axis=1)[:, -2]
    unclipped = photonic_matmul(clipped, np.clip(w, -1, 1), PhotonicNumerics(**EXACT), rng())
    found = photonic_matmul(x, w, tight, rng())
    assert np.abs(found - unclipped).mean() < 0.5  # as if the rare ones were as large as the others
    assert np.abs(found - exact(x, w)).mean() > 40
    sparse = np.zeros((4, 400), np.float32)
    sparse[:, 3] = 1.0  # its percentile is 0: the range is the largest
    assert photonic_matmul(sparse, w, tight, rng()) == pytest.approx(sparse @ w, abs=0.01)


def test_sums_beyond_the_full_scale_are_clipped():
    x, w = np.ones((1, 8), np.float32), np.ones((8, 1), np.float32)
    numerics = PhotonicNumerics(tile_rows=4)
    assert analog_range(x, w, numerics) == 4
    assert photonic_matmul(x, w, numerics, rng()).item() == pytest.approx(8)
    assert photonic_matmul(x, w, numerics, rng(), full_scale=1.0).item() == pytest.approx(2)


def test_the_range_of_sums_is_that_of_what_is_converted():
    x, w = operands(16, 24, 16)
    for tile_rows, analog_sums, size in ((0, 1, 24), (8, 1, 8), (8, 2, 16), (8, 0, 24)):
        numerics = PhotonicNumerics(tile_rows=tile_rows, analog_sums=analog_sums)
        parts = [np.abs(exact(x[:, k : k + size], w[k : k + size])).max() for k in range(0, 24, size)]
        assert analog_range(x, w, numerics) == pytest.approx(max(parts), rel=1e-5)


def test_zeros_give_zero():
    zero = np.zeros((3, 4), np.float32)
    assert not photonic_matmul(zero, zero.T, PhotonicNumerics(tile_rows=2), rng()).any()


def test_numerics_of_a_unit():
    phu = PHU(
        name="p",
        clock_hz=1e9,
        rows=64,
        cols=32,
        analog_sums=2,
        dac=Converter(bits=6, j_per_sample=1e-12),
        adc=Converter(bits=9, j_per_sample=1e-12),
        noise_additive=0.01,
        noise_multiplicative=0.02,
    )
    assert PhotonicNumerics.of(phu) == PhotonicNumerics(
        dac_bits=6,
        weight_bits=6,
        adc_bits=9,
        tile_rows=64,
        analog_sums=2,
        noise_additive=0.01,
        noise_multiplicative=0.02,
    )
    bare = PhotonicNumerics.of(PHU(clock_hz=1e9))
    assert bare == PhotonicNumerics(**EXACT)
    assert not bare.is_noisy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dac_bits": 1}, r"dac_bits: got 1; expected 2\.\.20 bits or None"),
        ({"adc_bits": 40}, r"adc_bits: got 40; expected 2\.\.20 bits or None"),
        ({"noise_additive": -0.1}, r"noise_additive: got -0\.1; expected a number >= 0"),
        ({"noise_multiplicative": float("nan")}, r"noise_multiplicative: got nan; expected a number >= 0"),
        ({"tile_rows": -1}, r"tile_rows: got -1; expected 0 \(all\) or more"),
        ({"analog_sums": -1}, r"analog_sums: got -1; expected 0 \(all\) or more"),
        ({"percentile": 0.0}, r"percentile: got 0\.0; expected 0 < p <= 100"),
    ],
)
def test_numerics_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        PhotonicNumerics(**options)


def test_operands_that_do_not_fit():
    x, w = operands(4, 8, 4)
    numerics = PhotonicNumerics()
    with pytest.raises(ShapeError, match="got dtypes float64 and float32; expected float32"):
        photonic_matmul(x.astype(np.float64), w, numerics, rng())
    with pytest.raises(ShapeError, match=r"got \(4, 8\) times \(4, 8\); expected"):
        analog_range(x, w.T, numerics)
    with pytest.raises(ShapeError, match=r"with K >= 1"):
        photonic_matmul(x[:, :0], w[:0], numerics, rng())
    x[1, 2] = np.inf
    with pytest.raises(UserError, match="an operand has numbers that are not finite"):
        photonic_matmul(x, w, numerics, rng())
