"""GPTQ: the error of the outputs, against rounding and brute force; what is refused."""

import itertools

import numpy as np
import pytest
from quantize_reference import encode

from strata.core.errors import UserError
from strata.core.weight_format import INT4, INT8, WeightFormat
from strata.models.quantize.codes import QuantizedMatrix, dequantize_matrix, quantize_matrix
from strata.models.quantize.gptq import _invert_lower, gptq_matrix, output_error


def inputs(tokens: int, k: int, seed: int = 0) -> np.ndarray:
    """Activations with correlated columns, some of them much stronger than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    return (mixed * rng.uniform(0.1, 4, k)).astype(np.float32)


@pytest.mark.parametrize(
    "format", [INT4, INT8, WeightFormat(4, 64), WeightFormat(4, 0), WeightFormat(4, 32, True)], ids=str
)
def test_outputs_are_better_than_rounded(format: WeightFormat) -> None:
    x = inputs(500, 192)
    weight = np.random.default_rng(1).standard_normal((40, 192)).astype(np.float32)
    hessian = x.T @ x
    rounded = output_error(weight, quantize_matrix(weight, format), hessian)
    better = gptq_matrix(weight, format, hessian)
    assert output_error(weight, better, hessian) < 0.6 * rounded
    # What output_error says is what it says it is.
    error = np.square(x @ (dequantize_matrix(better) - weight).T).sum() / np.square(x @ weight.T).sum()
    assert output_error(weight, better, hessian) == pytest.approx(error, rel=1e-3)


def test_without_correlation_it_is_rounding() -> None:
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    matrix = gptq_matrix(weight, INT4, np.eye(64, dtype=np.float32), damping=0.0)
    np.testing.assert_array_equal(matrix.codes, quantize_matrix(weight, INT4).codes)
    # Nothing calibrated at all.
    matrix = gptq_matrix(weight, INT4, np.zeros((64, 64), np.float32))
    np.testing.assert_array_equal(matrix.codes, quantize_matrix(weight, INT4).codes)


def test_two_active_columns_against_all_codes() -> None:
    """With two inputs that matter, the codes are as good as the best pair of codes."""
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((5, 32)).astype(np.float32)
    hessian = np.zeros((32, 32), np.float32)
    hessian[:2, :2] = [[2.0, 1.2], [1.2, 1.0]]
    matrix = gptq_matrix(weight, INT4, hessian, damping=1e-6)
    for row in range(5):
        scale = matrix.scales[row].astype(np.float32)
        target = weight[row, :2]

        def cost(codes: tuple[int, ...], scale: np.ndarray = scale, target: np.ndarray = target) -> float:
            d = (np.array(codes) - 8) * scale - target
            return float(d @ hessian[:2, :2] @ d)

        # Of the first column only its nearest code is tried; the second makes up for it.
        first = int(encode(target[:1], scale[0], 8, INT4)[0])
        best = min(cost(codes) for codes in itertools.product([first], range(16)))
        assert cost(tuple(int(c) for c in matrix.codes[row, :2])) == pytest.approx(best, abs=1e-6)


def test_inverse_of_triangles() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 5, 64, 65, 200):
        lower = np.tril(rng.standard_normal((k, k)) * 0.1) + np.eye(k) * 2
        inverse = lower.copy()
        _invert_lower(inverse)
        np.testing.assert_allclose(inverse @ lower, np.eye(k), atol=1e-10)
        assert (np.triu(inverse, 1) == 0).all()


def test_gptq_refuses() -> None:
    weight = np.ones((2, 32), np.float32)
    with pytest.raises(UserError, match=r"q: got a Hessian \[31, 31\]; expected finite values \[32, 32\]"):
        gptq_matrix(weight, INT4, np.eye(31, dtype=np.float32), name="q")
    with pytest.raises(UserError, match="expected finite values"):
        gptq_matrix(weight, INT4, np.full((32, 32), np.nan, np.float32))
    not_positive = np.eye(32, dtype=np.float32)
    not_positive[0, 1] = not_positive[1, 0] = 5.0
    with pytest.raises(UserError, match="q: the Hessian is not positive definite; calibrate with more text"):
        gptq_matrix(weight, INT4, not_positive, name="q")
    with pytest.raises(UserError, match="NaN or infinite"):
        gptq_matrix(np.full((2, 32), np.nan, np.float32), INT4, np.eye(32, dtype=np.float32))


def test_zero_matrix() -> None:
    matrix = gptq_matrix(np.zeros((2, 32), np.float32), INT4, np.eye(32, dtype=np.float32))
    assert isinstance(matrix, QuantizedMatrix)
    assert (dequantize_matrix(matrix) == 0).all()
    assert output_error(np.zeros((2, 32), np.float32), matrix, np.eye(32, dtype=np.float32)) == 0.0
