"""The compiled search for codes against NumPy in f64."""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from quantize_reference import choices, encode

from strata.core.weight_format import WeightFormat, parse_weight_format
from strata.loop import interp
from strata.models.quantize.codes import Method, quantize_matrix
from strata.models.quantize.search import ELEMENTS, Kind, search_func
from strata.runtime.tensors import numpy_dtype

FORMATS = [
    parse_weight_format(f"int{bits}:group={group}{end}")
    for bits, group, end in product((4, 8), ("32", "64", "128", "channel"), ("", ",asymmetric"))
]


def check(weight: np.ndarray, format: WeightFormat, importance: np.ndarray | None, method: Method) -> None:
    """A scale that the reference finds best, up to the last bit of f16, and exactly its codes."""
    made = quantize_matrix(weight, format, method=method, importance=importance)
    check_groups(
        weight.reshape(-1, weight.shape[1] // made.scales.shape[1]),
        None if importance is None else importance + max(importance.mean() * 1e-3, 1e-30),
        format,
        method,
        (made.codes.astype(np.uint8), made.scales, made.zeros),
    )


def check_groups(
    weight: np.ndarray,
    importance: np.ndarray | None,
    format: WeightFormat,
    method: Method,
    made: tuple[np.ndarray, np.ndarray, np.ndarray | None],
) -> None:
    """The same for values ``[groups of all rows, size]``."""
    codes, scales = made[0].reshape(weight.shape), made[1].ravel()
    zeros = np.full(len(weight), format.zero) if made[2] is None else made[2].ravel()
    a = (
        np.ones_like(weight[:1], np.float32)
        if importance is None
        else importance.reshape(-1, weight.shape[1])
    )
    for group, values in enumerate(weight.astype(np.float32)):
        scale, zero = scales[group], zeros[group]
        expected = choices(values, a[group % len(a)], format, method is Method.SEARCH)
        near = [
            abs(np.float16(s) - scale) <= np.spacing(abs(scale)) and (z == zero or scale == 0)
            for s, z in expected
        ]
        assert any(near), (scale, zero, expected)
        np.testing.assert_array_equal(codes[group], encode(values, float(scale), zero, format))


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", Method)
def test_weights(dtype: str, format: WeightFormat, method: Method) -> None:
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((8, 256)) * 0.02).astype(numpy_dtype(dtype))
    check(weight, format, None, method)
    check(weight, format, rng.random(256, np.float32) ** 4, method)


def test_rows_that_are_no_whole_vectors() -> None:
    rng = np.random.default_rng(2)
    for k, format in product((2, 30, 254), ("int4:group=channel", "int8:group=channel,asymmetric")):
        weight = (rng.standard_normal((40, k)) * 3).astype(ml_dtypes.bfloat16)
        check(weight, parse_weight_format(format), None, Method.SEARCH)
        check(weight, parse_weight_format(format), rng.random(k, np.float32), Method.SEARCH)


def adversarial() -> np.ndarray:
    """Rows of 64 values."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(64).astype(np.float32)
    outlier, ends = noise * 1e-3, noise * 1e-3
    outlier[5], ends[31], ends[32] = -40.0, 40.0, 40.0
    rows = [
        np.zeros(64),
        np.full(64, -0.0),
        noise * 1e-38,  # some are subnormal in f32
        noise * 1e-41,  # all of them
        noise * 1e-7,  # subnormal scales in f16
        noise * 1e-9,  # scales that are 0 in f16
        outlier,
        -outlier,
        ends,
        np.abs(noise),
        -np.abs(noise),
        np.full(64, 0.25),
        np.full(64, -0.25),
        np.where(np.arange(64) < 32, 0.0, noise),
        np.where(np.arange(64) % 32 == 7, noise, 0.0),
        noise * 1e5,
        np.round(noise * 2) / 2,
    ]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", Method)
def test_adversarial_weights(format: WeightFormat, method: Method) -> None:
    weight = np.repeat(adversarial(), 2, axis=1)
    check(weight, format, None, method)
    check(weight.astype(ml_dtypes.bfloat16), format, None, method)


@pytest.mark.parametrize(("bits", "is_asymmetric", "size"), [(4, False, 32), (4, True, 24), (8, False, 24)])
def test_interpreter(bits: int, is_asymmetric: bool, size: int) -> None:
    """The definition of the kernel's meaning agrees, beyond its machine code."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((2, 2, size)).astype(ml_dtypes.bfloat16)
    a = rng.random((2, size)).astype(np.float32) + np.float32(0.01)
    format = WeightFormat(bits, None, is_asymmetric)
    made = np.empty(w.shape, np.uint8), np.empty((2, 2), np.float16), np.empty((2, 2), np.uint8)
    interp.run(search_func(Kind("bf16", format, True, True, size % 16 != 0)), [w, a, *made])
    check_groups(w.reshape(-1, size), a, format, Method.SEARCH, made)
