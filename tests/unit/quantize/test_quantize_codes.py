"""Codes of matrices: against brute force, round trips, and what is refused."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.errors import UserError
from strata.core.weight_format import INT4, INT8, WeightFormat, parse_weight_format
from strata.models.quantize.codes import (
    Method,
    QuantizedMatrix,
    concat_rows,
    dequantize_matrix,
    parse_method,
    quantize_matrix,
)

FORMATS = [
    parse_weight_format(text)
    for text in (
        *("int4", "int4:group=64", "int4:group=channel", "int4:asymmetric", "int4:group=64,asymmetric"),
        *("int8", "int8:group=128", "int8:group=channel", "int8:asymmetric"),
    )
]
METHODS = list(Method)


def weights(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32) * 0.02


def squared_error(weight: np.ndarray, matrix: QuantizedMatrix) -> float:
    return float(np.square(dequantize_matrix(matrix) - weight, dtype=np.float64).sum())


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_meaning_of_codes(format: WeightFormat, method: Method) -> None:
    """Value by value in plain Python: dtypes, shapes, ranges, and no code that a neighbour would beat."""
    n, k = 3, 128
    weight = weights(n, k)
    matrix = quantize_matrix(weight, format, method=method)
    groups = format.num_groups(k)
    assert matrix.shape == (n, k)
    assert matrix.codes.dtype == (ml_dtypes.uint4 if format.bits == 4 else np.uint8)
    assert matrix.scales.dtype == np.float16
    assert matrix.scales.shape == (n, groups)
    values = dequantize_matrix(matrix)
    lowest = 1 if format.bits == 8 and not format.is_asymmetric else 0
    for row, column in itertools.product(range(n), range(0, k, 7)):
        group = column * groups // k
        scale = float(matrix.scales[row, group])
        zero = format.zero if matrix.zeros is None else int(matrix.zeros[row, group])
        code = int(matrix.codes[row, column])
        assert lowest <= code <= format.max_code
        assert values[row, column] == np.float32((code - zero) * scale)
        reachable = [(c - zero) * scale for c in range(lowest, format.max_code + 1)]
        best = min(abs(value - weight[row, column]) for value in reachable)
        assert abs(values[row, column] - weight[row, column]) <= best + 1e-7


@pytest.mark.parametrize("is_asymmetric", [False, True])
def test_search_is_close_to_brute_force(is_asymmetric: bool) -> None:
    """The best of thousands of scales (and every zero) is at most a little better."""
    format = WeightFormat(4, 32, is_asymmetric)
    weight = weights(6, 32, seed=3) + (0.01 if is_asymmetric else 0.0)
    found = squared_error(weight, quantize_matrix(weight, format))
    best = 0.0
    for row in weight:
        peak = float(np.abs(row).max())
        scales = np.linspace(peak / 16, peak / 5, 800)
        scales = np.concatenate([scales, -scales])[:, None]
        errors = []
        for zero in range(16) if is_asymmetric else [8]:
            codes = np.clip(np.rint(row / scales) + zero, 0, 15)
            errors.append(np.square((codes - zero) * scales - row).sum(axis=1).min())
        best += min(errors)
    assert best * 0.999 <= found <= best * 1.06
    assert found < squared_error(weight, quantize_matrix(weight, format, method="nearest"))


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_search_is_not_worse_than_nearest(format: WeightFormat) -> None:
    weight = weights(64, 256, seed=1)
    nearest, search = (squared_error(weight, quantize_matrix(weight, format, method=m)) for m in METHODS)
    assert search <= nearest


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_values(format: WeightFormat, method: Method, data: st.DataObject) -> None:
    """Whatever the values: codes in range, an error of at most one step of the group, zeros stay zeros."""
    k = 128
    magnitude = st.sampled_from([0.0, 1e-30, 1e-9, 1e-4, 0.3, 1.0, 700.0, 3e5])
    row = data.draw(st.lists(st.tuples(magnitude, st.floats(-1, 1, width=32)), min_size=1, max_size=k))
    weight = np.resize(np.array([a * b for a, b in row], np.float32), (1, k))
    matrix = quantize_matrix(weight, format, method=method)
    values = dequantize_matrix(matrix)
    groups = format.num_groups(k)
    peak = np.abs(weight.reshape(groups, -1)).max(axis=1)
    reach = format.max_code // 2 if not format.is_asymmetric else format.max_code
    # Half a step, and twice that where the search clips; plus what f16 cannot hold of a small scale.
    step = 2.2 * peak / reach + format.max_code * 2.0**-24
    assert (np.abs(values - weight).reshape(groups, -1) <= step[:, None]).all()
    assert (values[:, np.repeat(peak == 0, k // groups)] == 0).all()


@settings(max_examples=30)
@given(st.sampled_from(FORMATS), st.integers(0, 1 << 30))
def test_values_on_the_grid_come_back(format: WeightFormat, seed: int) -> None:
    """Quantising what codes mean changes nothing, if the codes use their range."""
    rng = np.random.default_rng(seed)
    n, k = 4, 128
    groups = format.num_groups(k)
    lowest = 1 if format.bits == 8 and not format.is_asymmetric else 0
    codes = rng.integers(lowest, format.max_code + 1, (n, groups, k // groups))
    codes[:, :, :2] = lowest, format.max_code
    # A power of two, so that f16 holds every scale in question.
    scale = np.float32(2.0 ** rng.integers(-8, 3))
    zero = rng.integers(1, format.max_code, (n, groups, 1)) if format.is_asymmetric else format.zero
    weight = ((codes - zero) * scale).astype(np.float32).reshape(n, k)
    np.testing.assert_array_equal(
        dequantize_matrix(quantize_matrix(weight, format, method=Method.NEAREST)), weight
    )


def test_many_rows_are_the_rows_one_by_one() -> None:
    """Chunks and threads change nothing."""
    weight = weights(3000, 96, seed=5)
    whole = quantize_matrix(weight, INT4)
    for row in (0, 1364, 1365, 2999):
        one = quantize_matrix(weight[row : row + 1], INT4)
        np.testing.assert_array_equal(one.codes, whole.codes[row : row + 1])
        np.testing.assert_array_equal(one.scales, whole.scales[row : row + 1])
    np.testing.assert_array_equal(
        dequantize_matrix(whole)[1364], dequantize_matrix(quantize_matrix(weight[1364:1365], INT4))[0]
    )


def test_other_float_dtypes_and_strides() -> None:
    weight = weights(8, 64).astype(ml_dtypes.bfloat16)
    plain = quantize_matrix(weight.astype(np.float32), INT4)
    np.testing.assert_array_equal(quantize_matrix(weight, INT4).codes, plain.codes)
    transposed = np.ascontiguousarray(weight.T).T
    np.testing.assert_array_equal(quantize_matrix(transposed, INT4).codes, plain.codes)
    assert dequantize_matrix(plain, ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16


def test_importance_moves_the_error_elsewhere() -> None:
    weight = weights(64, 32, seed=2)
    importance = np.where(np.arange(32) < 4, 100.0, 1.0).astype(np.float32)
    error = [
        np.square(dequantize_matrix(quantize_matrix(weight, INT4, importance=a)) - weight)[:, :4].sum()
        for a in (None, importance)
    ]
    assert error[1] < error[0]


def test_concat_rows() -> None:
    weight = weights(10, 64)
    for format in (INT8, WeightFormat(4, 32, True)):
        whole = quantize_matrix(weight, format)
        parts = [quantize_matrix(weight[rows], format) for rows in (slice(0, 3), slice(3, 10))]
        in_place = QuantizedMatrix.empty(format, 10, 64)
        for begin, end in ((0, 3), (3, 10)):
            rows = in_place.rows(begin, end)
            assert quantize_matrix(weight[begin:end], format, out=rows) is rows
        for joined in (concat_rows(parts), in_place):
            assert [name for name, _ in joined.arrays()] == [name for name, _ in whole.arrays()]
            for (_, a), (_, b) in zip(joined.arrays(), whole.arrays(), strict=True):
                np.testing.assert_array_equal(a, b)
        assert concat_rows([whole]) is whole


def test_refused() -> None:
    good = weights(4, 64)
    for bad in (np.nan, np.inf):
        weight = good.copy()
        weight[2, 5] = bad
        with pytest.raises(UserError, match=r"mlp\.up: has weights that are NaN or infinite"):
            quantize_matrix(weight, INT4, name="mlp.up")
    with pytest.raises(
        UserError, match=r"mlp\.up: got rows of 48 elements; expected a multiple of the group"
    ):
        quantize_matrix(good[:, :48], INT4, name="mlp.up")
    with pytest.raises(UserError, match=r"weight: got shape \[64\]; expected a matrix"):
        quantize_matrix(good[0], INT4)
    with pytest.raises(UserError, match=r"got a weight of magnitude 1e\+08; scales are stored as f16"):
        quantize_matrix(np.full((1, 32), 1e8, np.float32), INT4)
    with pytest.raises(UserError, match="method: got 'best'; expected nearest or search"):
        parse_method("best")
    for importance in (np.ones(3), -np.ones(64), np.full(64, np.nan)):
        with pytest.raises(UserError, match=r"importance: got .*; expected 64 finite values >= 0"):
            quantize_matrix(good, INT4, importance=importance)


def test_arrays_that_do_not_fit_together() -> None:
    codes, scales = np.zeros((2, 64), np.uint8), np.ones((2, 2), np.float16)
    zeros = np.zeros((2, 2), np.uint8)
    QuantizedMatrix(WeightFormat(8, 32), codes, scales)
    with pytest.raises(UserError, match=r"got codes uint8\[2, 64\] with scales float16\[2, 1\]; expected"):
        QuantizedMatrix(WeightFormat(8, 32), codes, scales[:, :1])
    with pytest.raises(UserError, match="expected uint4 and float16"):
        QuantizedMatrix(INT4, codes, scales)
    with pytest.raises(UserError, match="zeros are given for int8"):
        QuantizedMatrix(WeightFormat(8, 32), codes, scales, zeros)
    asymmetric = WeightFormat(8, 32, True)
    with pytest.raises(UserError, match="zeros are missing for int8:group=32,asymmetric"):
        QuantizedMatrix(asymmetric, codes, scales)
    with pytest.raises(UserError, match=r"got zeros uint8\[1, 2\]; expected uint8\[2, 2\]"):
        QuantizedMatrix(asymmetric, codes, scales, zeros[:1])
