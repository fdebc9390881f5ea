"""Hardware operations: semantics and type rules."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from strata.core.dtypes import bf16, f16, f32, f64, i8, i32, i64, u8
from strata.core.errors import UserError, VerifyError
from strata.loop.check import LOOP_NAIVE, check
from strata.loop.interp import run
from strata.loop.intrinsics import INTRINSICS, result_type
from strata.loop.text import parse_func

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype):
    # Addends close to -a*b: the low half of the product decides the result.
    a, c = RNG.standard_normal((2, 500)).astype(dtype)
    near = -(a * c) * (1 + RNG.integers(-3, 4, 500) * np.finfo(dtype).eps).astype(dtype)
    for addend in (near, RNG.standard_normal(500).astype(dtype), near.astype(dtype) * dtype(1e-8)):
        addend = addend.astype(dtype)
        got = INTRINSICS["fma"].evaluate(a, c, addend)
        assert got.dtype == dtype
        for x, y, z, out in zip(a, c, addend, got, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            below, above = np.nextafter(out, dtype(-np.inf)), np.nextafter(out, dtype(np.inf))
            error = abs(exact - Fraction(float(out)))
            assert error <= abs(exact - Fraction(float(below)))
            assert error <= abs(exact - Fraction(float(above)))


def test_fma_of_special_values():
    fma = INTRINSICS["fma"].evaluate
    for dtype in (np.float32, np.float64):
        values = np.array([np.inf, np.nan, 1e300 if dtype is np.float64 else 3e38, -0.0, 1.0], dtype)
        with np.errstate(all="ignore"):
            out = fma(values, np.full(5, 2, dtype) ** 10, np.array([1, 1, 0, -0.0, -1024], dtype))
        expected = [np.inf, np.nan, 1.024e303 if dtype is np.float64 else np.inf, -0.0, 0.0]
        np.testing.assert_allclose(out, expected, rtol=1e-15)
        assert np.signbit(out[3])
    huge = np.array([1e300, -1e300])
    np.testing.assert_array_equal(fma(huge, np.abs(huge), np.zeros(2)), [np.inf, -np.inf])


def test_dot2_adds_the_odd_element_first():
    acc = np.array([1.0, 2.0], np.float32)
    a = np.array([1, 2, 3, 4]).astype("bfloat16")
    w = np.array([0.5, 0.25, -1, 2]).astype("bfloat16")
    out = INTRINSICS["dot2_bf16"].evaluate(acc, a, w)
    np.testing.assert_array_equal(out, [1 + 0.5 + 0.5, 2 - 3 + 8])
    # 2**24 + 1 is 2**24 in f32: the order shows.
    big = INTRINSICS["dot2_bf16"].evaluate(
        np.array([2.0**24], np.float32), np.array([-(2.0**24), 1]).astype("bfloat16"), np.ones(2, "bfloat16")
    )
    assert big[0] == 0
    assert out.dtype == np.float32


def test_in_a_function():
    text = """func @f(a: bf16[8], b: bf16[8], c: f32[4]) -> (y: f32[4], z: f32[1])
  y[ramp(0, 4)] = @dot2_bf16<f32x4>(c[ramp(0, 4)], a[ramp(0, 8)], b[ramp(0, 8)])
  z[0] = @fma<f32>(c[0], c[1], c[2])
"""
    a, w = RNG.standard_normal((2, 8)).astype("bfloat16")
    c, y, z = RNG.standard_normal(4).astype(np.float32), np.zeros(4, np.float32), np.zeros(1, np.float32)
    run(parse_func(text), [a, w, c, y, z])
    products = a.astype(np.float32) * w.astype(np.float32)
    np.testing.assert_array_equal(y, c + products[1::2] + products[::2])
    np.testing.assert_allclose(z[0], c[0] * c[1] + c[2], rtol=1e-6)


def test_types():
    assert result_type("fma", [(f64, 4)] * 3) == (f64, 4)
    assert result_type("dot2_bf16", [(f32, 4), (bf16, 8), (bf16, 8)]) == (f32, 4)
    with pytest.raises(VerifyError, match=r"@fma: got \(bf16\[4\], bf16\[4\], .*; expected \(a, b, c"):
        result_type("fma", [(bf16, 4)] * 3)
    for wrong in ([(f32, 4), (bf16, 8), (bf16, 4)], [(f32, 4), (f32, 8), (bf16, 8)], [(f32, 4)]):
        with pytest.raises(VerifyError, match=r"@dot2_bf16: got .*; expected \(acc: f32\[L\]"):
            result_type("dot2_bf16", wrong)
    with pytest.raises(UserError, match="no intrinsic 'dot4'"):
        result_type("dot4", [])


def test_dot4_is_exact_and_wraps():
    acc = np.array([7, 2**31 - 1], np.int32)
    a = np.array([255, 255, 255, 255, 1, 2, 3, 4], np.uint8)
    w = np.array([-128, -128, -128, -128, 1, 0, 0, 0], np.int8)
    np.testing.assert_array_equal(INTRINSICS["dot4_u8i8"].evaluate(acc, a, w), [7 - 4 * 255 * 128, -(2**31)])
    one_group = INTRINSICS["dot4_u8i8"].evaluate(acc * 0, a, w[:4])
    np.testing.assert_array_equal(one_group, [-4 * 255 * 128, -10 * 128])
    small = INTRINSICS["dot4_u4i8"]
    np.testing.assert_array_equal(small.evaluate(acc[:1], a[4:], w[4:]), [8])
    with pytest.raises(VerifyError, match=r"@dot4_u4i8: a holds 255; expected values up to 15"):
        small.evaluate(acc, a, w)


def test_nibbles():
    x = np.array([0x00, 0x5A, 0xF1], np.uint8)
    np.testing.assert_array_equal(INTRINSICS["low4"].evaluate(x), [0, 10, 1])
    np.testing.assert_array_equal(INTRINSICS["high4"].evaluate(x), [0, 5, 15])


def test_types_of_bytes():
    assert result_type("dot4_u8i8", [(i32, 16), (u8, 64), (i8, 64)]) == (i32, 16)
    assert result_type("dot4_u4i8", [(i32, 16), (u8, 64), (i8, 4)]) == (i32, 16)
    assert result_type("low4", [(u8, 3)]) == (u8, 3)
    for wrong in (
        [(i32, 4), (i8, 16), (u8, 16)],
        [(i32, 4), (u8, 16), (i8, 8)],
        [(i32, 4), (u8, 8), (i8, 8)],
    ):
        with pytest.raises(VerifyError, match=r"@dot4_u8i8: got .*; expected \(acc: i32\[L\], a: u8\[4L\]"):
            result_type("dot4_u8i8", wrong)
    with pytest.raises(VerifyError, match=r"@high4: got \(i8\[4\]\); expected \(a: u8\[L\]\) -> u8\[L\]"):
        result_type("high4", [(i8, 4)])


def test_every_fourth_byte():
    every4 = INTRINSICS["every4"].evaluate
    for j in range(4):
        np.testing.assert_array_equal(every4(np.arange(12, dtype=np.uint8), np.array([j])), [j, 4 + j, 8 + j])
    with pytest.raises(VerifyError, match="@every4: j is 4; expected 0, 1, 2 or 3"):
        every4(np.arange(12, dtype=np.uint8), np.array([4]))
    assert result_type("every4", [(u8, 64), (i64, 1)]) == (u8, 16)
    for wrong in ([(u8, 6), (i64, 1)], [(i8, 64), (i64, 1)], [(u8, 64)]):
        with pytest.raises(VerifyError, match=r"@every4: got .*; expected \(a: u8\[4L\], j: i64\[1\]\)"):
            result_type("every4", wrong)


def test_every_second_number():
    every2, pairs = INTRINSICS["every2"].evaluate, np.arange(6).astype(ml_dtypes.bfloat16)
    for j in range(2):
        np.testing.assert_array_equal(every2(pairs, np.array([j])), np.float32([j, 2 + j, 4 + j]))
    with pytest.raises(VerifyError, match="@every2: j is 2; expected 0 or 1"):
        every2(pairs, np.array([2]))
    assert result_type("every2", [(bf16, 32), (i64, 1)]) == (f32, 16)
    for wrong in ([(bf16, 5), (i64, 1)], [(f16, 32), (i64, 1)], [(bf16, 32)]):
        with pytest.raises(VerifyError, match=r"@every2: got .*; expected \(a: bf16\[2L\], j: i64\[1\]\)"):
            result_type("every2", wrong)


def test_bits():
    x = np.array([1.0, -0.0, np.inf, np.nan], np.float32)
    out = INTRINSICS["bits"].evaluate(x)
    np.testing.assert_array_equal(out, np.array([0x3F800000, -(2**31), 0x7F800000, 0x7FC00000], np.int32))
    np.testing.assert_array_equal(INTRINSICS["from_bits"].evaluate(out), x)
    for name, wrong in (("bits", (i32, 4)), ("from_bits", (f32, 4))):
        with pytest.raises(VerifyError, match=rf"@{name}: got .*; expected \(a: [fi]32\[L\]\)"):
            result_type(name, [wrong])


def test_nearest_code():
    nearest8 = INTRINSICS["nearest8"].evaluate
    x = np.array([-127.4, -127.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.4], np.float32)
    np.testing.assert_array_equal(nearest8(x), np.array([-127, -128, -2, 0, 0, 2, 2, 126, 127], np.int8))
    assert nearest8(np.array([np.nan], np.float32)).dtype == np.int8
    with pytest.raises(VerifyError, match=r"@nearest8: a holds 1.0 to 127.5; expected values from -128"):
        nearest8(np.array([1, 127.5], np.float32))
    assert result_type("nearest8", [(f32, 16)]) == (i8, 16)
    with pytest.raises(VerifyError, match=r"@nearest8: got .*; expected \(a: f32\[L\]\) -> i8\[L\]"):
        result_type("nearest8", [(i32, 16)])


def test_two_vectors_are_zipped_and_rounded():
    out = INTRINSICS["zip_bf16"].evaluate(
        np.array([1, 2 + 2**-8, np.nan], np.float32), np.array([-1, 2 + 3 * 2**-8, np.inf], np.float32)
    )
    assert out.dtype == "bfloat16"
    np.testing.assert_array_equal(out.astype(np.float32), [1, -1, 2, 2 + 2**-6, np.nan, np.inf])
    assert result_type("zip_bf16", [(f32, 16), (f32, 16)]) == (bf16, 32)
    for wrong in ([(f32, 16), (f32, 8)], [(bf16, 16), (bf16, 16)], [(f32, 16)]):
        with pytest.raises(VerifyError, match="@zip_bf16: got"):
            result_type("zip_bf16", wrong)


def test_intrinsics_of_scalars_stand_in_naive_functions():
    func = parse_func("func @f(x: u8[4]) -> (y: u8[4])\n  for i in 4:\n    y[i] = @high4<u8>(x[i])\n")
    check(func, LOOP_NAIVE)
    wide = parse_func("func @f(x: u8[4]) -> (y: u8[4])\n  y[ramp(0, 4)] = @high4<u8x4>(x[ramp(0, 4)])\n")
    with pytest.raises(VerifyError, match="no vectors at this stage"):
        check(wide, LOOP_NAIVE)


@pytest.mark.parametrize("name", ["exp2", "exp2_bf16"])
def test_exp2_is_0_where_nothing_is_left(name):
    exp2 = INTRINSICS[name].evaluate
    x = np.array([-np.inf, -127, -3, 0, 127], np.float32)
    np.testing.assert_allclose(exp2(x), np.array([0, 0, 0.125, 1, 2.0**127], np.float32), rtol=3 * 2.0**-24)
    with pytest.raises(VerifyError, match=r"@exp2: a holds 128.0; expected values up to 127.0"):
        exp2(np.array([128.0], np.float32))
    assert result_type(name, [(f32, 16)]) == (f32, 16)
    assert result_type("prefetch", [(bf16, 1)]) == result_type("evict", [(u8, 1)]) == (i32, 1)
    for name, wrong in (("exp2", [(f64, 2)]), ("prefetch", [(f32, 2)]), ("evict", [(f32, 2)])):
        with pytest.raises(VerifyError, match=f"@{name}"):
            result_type(name, wrong)
