"""The interpreter against NumPy: reductions, tiles, masks, vectors, dtypes, and what it reports."""

import math

import ml_dtypes
import numpy as np
import pytest

from strata.core.dtypes import ALL_DTYPES, bool_, f32, f64, i32, i64
from strata.core.errors import ShapeError, VerifyError
from strata.loop import build as b
from strata.loop.interp import python_source, run
from strata.loop.nodes import (
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    Const,
    For,
    ForKind,
    Func,
    If,
    Load,
    Ramp,
    Reduce,
    ReduceOp,
    Seq,
    Splat,
    Store,
    Unary,
    UnaryOp,
    Var,
    index,
)
from strata.loop.text import parse_func
from strata.loop.values import numpy_dtype, unary_value

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


MATMUL = """dims n in 1..64
func @matmul(a: f32[n,5], b: f32[5,7]) -> (c: f32[n,7])
  parallel i in n:
    for jo in 2:
      for ji in 4:
        for p in 5:
          block "mm" (m: spatial n = i, j: spatial 7 = jo * 4 + ji, k: reduce 5 = p) where jo * 4 + ji < 7:
            init: c[m, j] = 0x0p+0
            c[m, j] = c[m, j] + a[m, k] * b[k, j]
"""

SOFTMAX = """dims n in 1..64
func @softmax(x: f32[n,19]) -> (y: f32[n,19])
  alloc top: f32[n]
  alloc total: f32[n]
  for i in n:
    for j in 19:
      block "top" (r: spatial n = i, k: reduce 19 = j):
        init: top[r] = -inf
        top[r] = max(top[r], x[r, k])
    for j in 19:
      block "total" (r: spatial n = i, k: reduce 19 = j):
        init: total[r] = 0x0p+0
        total[r] = total[r] + exp(x[r, k] - top[r])
    for j in 19:
      block "out" (r: spatial n = i, k: spatial 19 = j):
        y[r, k] = exp(x[r, k] - top[r]) / total[r]
"""

VECTORS = """dims n in 1..64
func @dot(x: f32[n,19], w: bf16[19]) -> (y: f32[n], z: f32[n,19])
  parallel i in n:
    alloc acc: f32[8] register
    acc[ramp(0, 8)] = splat(0x0p+0, 8)
    for j in 3:
      let at = ramp(j * 8, 8)
      let in = at < splat(19, 8)
      let xs = (x[i, at] if in)
      acc[ramp(0, 8)] = acc[ramp(0, 8)] + xs * f32((w[at] if in))
      z[i, splat(18, 8) - at] = xs if in
    y[i] = reduce_sum(acc[ramp(0, 8)])
""".replace(" in = at", " ok = at").replace("if in", "if ok")


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("seed", [None, 3])
def test_matmul_with_init_and_predicate(n, seed):
    a, w, c = normal(n, 5), normal(5, 7), np.full((n, 7), np.nan, np.float32)
    run(parse_func(MATMUL), [a, w, c], parallel_seed=seed)
    expected = np.zeros((n, 7), np.float32)
    for k in range(5):
        expected += a[:, k : k + 1] * w[k]
    np.testing.assert_array_equal(c, expected)


def test_softmax():
    x, y = 5 * normal(4, 19), np.empty((4, 19), np.float32)
    run(parse_func(SOFTMAX), [x, y])
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-6)


def test_vectors_masks_gathers_and_horizontal_sums():
    x, w = normal(3, 19), normal(19).astype("bfloat16")
    y, z = np.empty(3, np.float32), np.empty((3, 19), np.float32)
    run(parse_func(VECTORS), [x, w, y, z], parallel_seed=1)
    lanes = np.zeros((3, 24), np.float32)
    lanes[:, :19] = x * w.astype(np.float32)
    acc = lanes[:, :8] + lanes[:, 8:16] + lanes[:, 16:]
    while acc.shape[1] > 1:
        half = acc.shape[1] // 2
        acc = acc[:, :half] + acc[:, half:]
    np.testing.assert_array_equal(y, acc[:, 0])
    np.testing.assert_array_equal(z, x[:, ::-1])


def value_of(expr, *arrays_and_buffers):
    """Value of an expression, through a function that stores it."""
    vector = expr.lanes > 1
    out = Buffer("out", (expr.lanes,), expr.dtype)
    where = Ramp(index(0), expr.lanes) if vector else index(0)
    buffers = [x for x in arrays_and_buffers if isinstance(x, Buffer)]
    arrays = [x for x in arrays_and_buffers if isinstance(x, np.ndarray)]
    result = np.zeros(expr.lanes, numpy_dtype(expr.dtype))
    run(Func("f", (*buffers, out), Store(out, (where,), expr)), [*arrays, result])
    return result if vector else result[0]


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("op", [op for op in UnaryOp if op is not UnaryOp.NOT])
def test_functions_round_their_f64_value_once(op, dtype, lanes):
    kind = numpy_dtype(dtype)
    x = np.abs(RNG.standard_normal(4)).astype(kind)
    buffer = Buffer("x", (4,), dtype)
    got = value_of(Unary(op, Load(buffer, (Ramp(index(0), 4) if lanes > 1 else index(2),))), buffer, x)
    expected = [unary_value(op, float(v), dtype) for v in (x if lanes > 1 else x[2:3])]
    np.testing.assert_array_equal(np.atleast_1d(got), np.array(expected, kind))


def test_special_values_of_functions():
    x, buffer = np.array([-1.0, 0.0, math.inf, math.nan], np.float32), Buffer("x", (4,), f32)
    lanes = Load(buffer, (Ramp(index(0), 4),))
    np.testing.assert_array_equal(
        value_of(b.log(lanes), buffer, x), [math.nan, -math.inf, math.inf, math.nan]
    )
    np.testing.assert_array_equal(value_of(b.rsqrt(lanes), buffer, x), [math.nan, math.inf, 0, math.nan])
    np.testing.assert_array_equal(value_of(b.sqrt(lanes), buffer, x), [math.nan, 0, math.inf, math.nan])
    assert value_of(b.sigmoid(Load(buffer, (index(3),))), buffer, x) != 0  # NaN
    assert value_of(b.exp(Load(buffer, (index(2),))), buffer, x) == math.inf


@pytest.mark.parametrize("lanes", [1, 4])
def test_f32_rounds_after_every_operation(lanes):
    x, buffer = np.array([1e8, 1.0, -1e8, 3.0], np.float32), Buffer("x", (4,), f32)
    wide = (lambda e: Splat(e, 4)) if lanes > 1 else (lambda e: e)
    one, three, big = (wide(Load(buffer, (index(k),))) for k in (1, 3, 0))
    got = value_of(Binary(BinaryOp.SUB, Binary(BinaryOp.ADD, big, one), big), buffer, x)
    np.testing.assert_array_equal(got, np.zeros(lanes)[0] if lanes == 1 else np.zeros(4))
    third = value_of(Binary(BinaryOp.DIV, one, three), buffer, x)
    assert np.atleast_1d(third)[0] == np.float32(1) / np.float32(3)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("dtype", [i32, i64])
def test_integer_arithmetic(dtype, lanes):
    kind = numpy_dtype(dtype)
    x, y = np.array([-7, 7, -8, 5], kind), np.array([2, -2, 3, 5], kind)
    bx, by = Buffer("x", (4,), dtype), Buffer("y", (4,), dtype)
    where = Ramp(index(0), 4) if lanes > 1 else index(0)
    a, c = Load(bx, (where,)), Load(by, (where,))
    cases = {
        BinaryOp.ADD: x + y,
        BinaryOp.SUB: x - y,
        BinaryOp.MUL: x * y,
        BinaryOp.FLOORDIV: x // y,
        BinaryOp.FLOORMOD: x % y,
        BinaryOp.MIN: np.minimum(x, y),
        BinaryOp.MAX: np.maximum(x, y),
    }
    for op, expected in cases.items():
        got = value_of(Binary(op, a, c), bx, by, x, y)
        np.testing.assert_array_equal(got, expected if lanes > 1 else expected[0])
    np.testing.assert_array_equal(value_of(Unary(UnaryOp.NEG, a), bx, x), -x if lanes > 1 else -x[0])
    np.testing.assert_array_equal(value_of(Unary(UnaryOp.ABS, a), bx, x), abs(x) if lanes > 1 else abs(x[0]))
    for op, expected in ((BinaryOp.LT, x < y), (BinaryOp.GE, x >= y), (BinaryOp.NE, x != y)):
        got = value_of(Binary(op, a, c), bx, by, x, y)
        np.testing.assert_array_equal(got, expected if lanes > 1 else expected[0])


def test_i32_wraps_around():
    x, buffer = np.array([2**31 - 1, 1], np.int32), Buffer("x", (2,), i32)
    one, top = Load(buffer, (index(1),)), Load(buffer, (index(0),))
    assert value_of(Binary(BinaryOp.ADD, top, one), buffer, x) == -(2**31)


@pytest.mark.parametrize("lanes", [1, 4])
def test_logic_and_select(lanes):
    x, y = np.array([True, False, True, False]), np.array([True, True, False, False])
    bx, by = Buffer("x", (4,), bool_), Buffer("y", (4,), bool_)
    where = Ramp(index(0), 4) if lanes > 1 else index(2)
    a, c = Load(bx, (where,)), Load(by, (where,))
    pick = slice(None) if lanes > 1 else 2
    np.testing.assert_array_equal(value_of(Binary(BinaryOp.AND, a, c), bx, by, x, y), (x & y)[pick])
    np.testing.assert_array_equal(value_of(Binary(BinaryOp.OR, a, c), bx, by, x, y), (x | y)[pick])
    np.testing.assert_array_equal(value_of(Unary(UnaryOp.NOT, a), bx, x), (~x)[pick])
    chosen = value_of(b.select(a, b.const(1.5, f32), -2.0), bx, x)
    np.testing.assert_array_equal(chosen, np.where(x, 1.5, -2.0)[pick])


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("target", ALL_DTYPES.values(), ids=str)
@pytest.mark.parametrize("source", ALL_DTYPES.values(), ids=str)
def test_casts(source, target, lanes):
    values = [1, 0, 3, 100] if source.kind.value == "uint" else [1, 0, -3, 100]
    x = np.array(values).astype(numpy_dtype(source))
    if source.is_float and (target.kind.value != "uint"):
        x = (x.astype(np.float32) * np.float32(0.9)).astype(numpy_dtype(source))
    if target.kind.value == "uint":
        x = abs(x).astype(x.dtype)  # NumPy has no absolute value of 4-bit integers but as int8
    buffer = Buffer("x", (4,), source)
    expected = x.astype(numpy_dtype(target))
    where = Ramp(index(0), 4) if lanes > 1 else index(2)
    got = value_of(Cast(target, Load(buffer, (where,))), buffer, x)
    np.testing.assert_array_equal(got, expected if lanes > 1 else expected[2])


def test_large_integers_round_once():
    x, buffer = np.array([2**60 + 2**36 + 1], np.int64), Buffer("x", (1,), i64)
    got = value_of(Cast(f32, Load(buffer, (index(0),))), buffer, x)
    assert got == x.astype(np.float32)[0]


def test_nan_and_infinity_to_integer():
    x, buffer = np.array([np.nan, np.inf], np.float32), Buffer("x", (2,), f32)
    assert value_of(Cast(i32, Load(buffer, (index(0),))), buffer, x) == 0
    assert value_of(Cast(i32, Load(buffer, (index(1),))), buffer, x) == 2**31 - 1


@pytest.mark.parametrize("lanes", [2, 3, 7, 8])
def test_horizontal_reductions(lanes):
    x, buffer = normal(lanes), Buffer("x", (lanes,), f32)
    vector = Load(buffer, (Ramp(index(0), lanes),))
    assert value_of(Reduce(ReduceOp.MAX, vector), buffer, x) == x.max()
    assert value_of(Reduce(ReduceOp.MIN, vector), buffer, x) == x.min()
    np.testing.assert_allclose(
        value_of(Reduce(ReduceOp.ADD, vector), buffer, x), x.sum(), rtol=1e-5, atol=1e-6
    )
    k, integers = np.arange(lanes), Buffer("k", (lanes,), i64)
    total = Reduce(ReduceOp.ADD, Load(integers, (Ramp(index(0), lanes),)))
    assert value_of(total, integers, k) == k.sum()


def test_allocated_memory_starts_as_nan():
    text = """func @f() -> (y: f32[2], k: i32[1])
  alloc t: f32[2] local
  alloc s: i32[1]
  t[0] = 0x1p+0
  y[ramp(0, 2)] = t[ramp(0, 2)]
  k[0] = s[0]
"""
    y, k = np.zeros(2, np.float32), np.zeros(1, np.int32)
    run(parse_func(text), [y, k])
    np.testing.assert_array_equal(y, [1, np.nan])
    assert k[0] == -(2**31)


@pytest.mark.parametrize("loop", ["parallel i in n", "for i in n on block_z", "for i in n on lane"])
def test_parallel_order_is_shuffled_by_the_seed(loop):
    text = f"dims n in 1..99\nfunc @f(x: i32[n]) -> (last: i64[1])\n  {loop}:\n    last[0] = i\n"
    func, x, last = parse_func(text), np.zeros(50, np.int32), np.zeros(1, np.int64)
    run(func, [x, last])
    assert last[0] == 49
    seen = set()
    for seed in range(5):
        run(func, [x, last], parallel_seed=seed)
        seen.add(int(last[0]))
    assert len(seen) > 1


def test_dims_that_no_shape_shows():
    head = "dims m in 1..9, n in 1..9\nfunc @f(x: f32[m + n]) -> (y: i64[2])\n"
    text = head + "  y[0] = n\n  y[1] = size(2*m - n)\n"
    y = np.zeros(2, np.int64)
    run(parse_func(text), [np.zeros(5, np.float32), y], {"n": 3, "m": 2})
    assert y.tolist() == [3, 1]


def test_zero_dim_buffers_and_scalar_masks():
    text = """func @f(s: f32[], t: i64[]) -> (y: f32[], z: f32[3])
  y[] = s[] + (z[t[]] if t[] < 3)
  z[t[] - 7] = 0x1p+1 if t[] < 9
  z[t[]] = 0x1p+1 if t[] < 3
"""
    y, z = np.zeros((), np.float32), np.zeros(3, np.float32)
    run(parse_func(text), [np.float32(2).reshape(()), np.array(8), y, z])
    assert y == 2
    np.testing.assert_array_equal(z, [0, 2, 0])


def test_thirty_nested_loops():
    y = Buffer("y", (1,), i64)
    body = Store(y, (index(0),), b.add(Load(y, (index(0),)), 1))
    for k in range(30):
        body = For(Var("i"), index(2 if k % 8 == 0 else 1), ForKind.SERIAL, body)
    out = np.zeros(1, np.int64)
    run(Func("f", (y,), body), [out])
    assert out[0] == 16


def test_the_translation_can_be_read():
    source = python_source(parse_func(MATMUL))
    assert source.startswith("def main(arrays, sizes, order):\n  s_n = sizes['n']\n")
    compile(source, "matmul", "exec")


HEAD = "dims n in 1..9\nfunc @f(x: f32[n,4], k: i64[1]) -> (y: f32[n,4])\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[0, 0] = x[k[0], 0]", r"f: x\[9, \.\.\.\]: outside of its shape \(2, 4\)"),
        ("y[0, 0] = x[0, k[0]]", r"f: x\[0, 9\]: outside of its shape"),
        ("y[k[0], 0] = x[0, 0]", r"f: y\[9, 0\]: outside of its shape"),
        ("y[0, 0] = x[0, -k[0]]", r"f: x\[0, -9\]: outside of its shape"),
        ("y[0, ramp(k[0] - 7, 4)] = x[0, ramp(0, 4)]", r"f: y\[0, 5\]: outside of its shape"),
        ("y[0, ramp(0, 4)] = x[0, ramp(k[0] - 10, 4)]", r"f: x\[0, -1\]: outside of its shape"),
        ("y[0, ramp(0, 4)] = x[k[0], ramp(0, 4)]", r"f: x\[9, 3\]: outside of its shape"),
        ("y[0, 0] = (x[0, k[0]] if k[0] > 0)", r"f: x\[0, 9\]: outside of its shape"),
        ("y[0, k[0] // (k[0] - 9)] = x[0, 0]", "f: integer division by 0"),
        ("y[0, k[0] % (k[0] - 9)] = x[0, 0]", "f: integer division by 0"),
        (
            "y[0, ramp(0, 4) // splat(k[0] - 9, 4)] = x[0, ramp(0, 4)]",
            "f: integer division by 0",
        ),
        (
            'block "b" (m: spatial 4 = k[0]):\n    y[0, 0] = x[0, 0]',
            "f: block b: axis m is 9; expected 0 <= axis < 4; the predicate must exclude it",
        ),
        ("y[0, 0] = select(k[0] < 4, x[0, k[0]], x[0, 0])", r"f: x\[0, 9\]: outside"),
        ("if splat(n, 4) < ramp(0, 4):\n    y[0, 0] = x[0, 0]", "the condition is a vector"),
    ],
)
def test_reports(body, message):
    func = parse_func(HEAD + "".join(f"  {line}\n" for line in body.split("\n")))
    arrays = [normal(2, 4), np.array([9]), normal(2, 4)]
    with pytest.raises(VerifyError, match=message):
        run(func, arrays)


def test_masked_off_accesses_are_not_made():
    text = HEAD + "  y[0, ramp(k[0], 4)] = (x[k[0], ramp(0, 4)] if splat(n > 5, 4)) if splat(n > 5, 4)\n"
    y = np.zeros((2, 4), np.float32)
    run(parse_func(text), [normal(2, 4), np.array([9]), y])
    assert not y.any()


def test_out_of_scope_names():
    y = Buffer("y", (4,), f32)
    with pytest.raises(VerifyError, match="f: variable i is used outside of its scope"):
        run(Func("f", (y,), Store(y, (Var("i"),), Const(0.0, f32))), [np.zeros(4, np.float32)])
    with pytest.raises(VerifyError, match="f: buffer z is used outside of its scope"):
        python_source(Func("f", (y,), Store(Buffer("z", (4,), f32), (index(0),), Const(0.0, f32))))
    empty = Func("f", (y,), If(Const(True, bool_), Seq(())))
    run(empty, [np.zeros(4, np.float32)])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([normal(2, 4)], "f: got 1 arrays; expected 3"),
        (
            [normal(2, 4), np.array([9]), normal(2, 4).astype(np.float64)],
            "f: y has dtype float64; expected f32",
        ),
        ([normal(2), np.array([9]), normal(2, 4)], "f: x has 1 dims; expected 2"),
        ([normal(2, 4), np.array([9]), normal(3, 4)], r"f: y has shape \(3, 4\); expected \(2, 4\)"),
        ([normal(2, 5), np.array([9]), normal(2, 4)], r"f: x has shape \(2, 5\); expected \(2, 4\)"),
    ],
)
def test_wrong_arguments(arrays, message):
    with pytest.raises(ShapeError, match=message):
        run(parse_func(HEAD + "  pass\n"), arrays)


def test_missing_dim():
    func = parse_func("func @f(x: f32[m + n]) -> (y: i64[2])\n  pass\n")
    with pytest.raises(ShapeError, match="m has no value"):
        run(func, [np.zeros(5, np.float32), np.zeros(2, np.int64)])


def test_bfloat16_is_registered():
    assert numpy_dtype(ALL_DTYPES["bf16"]) == np.dtype(ml_dtypes.bfloat16)
