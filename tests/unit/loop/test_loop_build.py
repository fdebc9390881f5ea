"""Constructors: folding that keeps every bit, automatic splats, and what they refuse."""

import math

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f16, f32, f64, i32, i64, u8
from strata.core.errors import ShapeError
from strata.loop import build as b
from strata.loop.nodes import (
    AxisKind,
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    Const,
    ForKind,
    Load,
    Reduce,
    Select,
    Seq,
    Size,
    Splat,
    Store,
    Unary,
    UnaryOp,
    Var,
    index,
)
from strata.loop.text import print_expr

ROW, COL = Var("i"), Var("j")
X, Y = Var("x", f32), Var("y", f32)
V = Var("v", f32, 4)
C = Var("c", bool_)
N = SymDim("n")
A = Buffer("a", (N, 8), f32)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (b.add(ROW, 0), "i"),
        (b.add(0, ROW), "i"),
        (b.sub(ROW, 0), "i"),
        (b.sub(ROW, ROW), "0"),
        (b.add(b.add(ROW, 1), 2), "i + 3"),
        (b.sub(b.add(ROW, 1), 1), "i"),
        (b.add(ROW, -2), "i - 2"),
        (b.sub(b.add(ROW, 1), 4), "i - 3"),
        (b.mul(1, ROW), "i"),
        (b.mul(ROW, 0), "0"),
        (b.mul(2, ROW), "i * 2"),
        (b.floordiv(ROW, 1), "i"),
        (b.floordiv(0, COL), "0 // j"),
        (b.floordiv(0, index(3)), "0"),
        (b.floormod(ROW, 1), "0"),
        (b.floordiv(index(-7), 2), "-4"),
        (b.floormod(index(-7), 2), "1"),
        (b.floordiv(index(7), index(0)), "7 // 0"),
        (b.ceildiv(ROW, 4), "(i + 3) // 4"),
        (b.minimum(ROW, ROW), "i"),
        (b.minimum(index(3), 5), "3"),
        (b.maximum(index(3), 5), "5"),
        (b.lt(index(3), 5), "True"),
        (b.le(ROW, ROW), "True"),
        (b.ne(ROW, ROW), "False"),
        (b.gt(ROW, 2), "i > 2"),
        (b.ge(ROW, N), "i >= n"),
        (b.eq(N, 2), "n == 2"),
        (b.and_(C, True), "c"),
        (b.and_(C, False), "False"),
        (b.and_(C, C), "c"),
        (b.and_(), "True"),
        (b.or_(C, False), "c"),
        (b.or_(C, True), "True"),
        (b.or_(), "False"),
        (b.not_(b.lt(ROW, COL)), "i >= j"),
        (b.not_(b.not_(C)), "c"),
        (b.not_(b.lt(X, Y)), "not x < y"),
        (b.neg(b.neg(ROW)), "i"),
        (b.select(True, ROW, COL), "i"),
        (b.select(b.gt(index(1), 2), ROW, 7), "7"),
        (b.select(C, ROW, ROW), "i"),
        (b.add(b.ramp(ROW, 4), COL), "ramp(i + j, 4)"),
        (b.add(COL, b.ramp(ROW, 4)), "ramp(j + i, 4)"),
        (b.sub(b.ramp(ROW, 4), 1), "ramp(i - 1, 4)"),
        (b.mul(b.ramp(ROW, 4), 2), "ramp(i, 4) * splat(2, 4)"),
        (b.mul(b.splat(ROW, 4), b.splat(COL, 4)), "splat(i * j, 4)"),
        (b.ramp(ROW, 1), "i"),
        (b.lt(b.splat(index(1), 4), 2), "splat(True, 4)"),
        (b.cast(i32, ROW), "i32(i)"),
        (b.cast(i64, ROW), "i"),
        (b.cast(f32, index(3)), "0x1.8p+1"),
        (b.cast(i64, b.const(-2.7, f32)), "-2"),
        (b.cast(bool_, index(3)), "True"),
        (b.cast(f32, b.splat(ROW, 4)), "splat(f32(i), 4)"),
    ],
)
def test_folding(expr, text):
    assert print_expr(expr) == text


def test_float_identities_keep_every_bit():
    assert b.mul(X, 1.0) is X
    assert b.mul(1.0, X) is X
    assert b.div(X, 1.0) is X
    assert b.sub(X, 0.0) is X
    assert b.add(X, -0.0) is X
    # -0.0 + 0.0 is 0.0, NaN * 0 is NaN, NaN - NaN is NaN, NaN != NaN.
    assert isinstance(b.add(X, 0.0), Binary)
    assert isinstance(b.mul(X, 0.0), Binary)
    assert isinstance(b.sub(X, X), Binary)
    assert isinstance(b.eq(X, X), Binary)
    assert isinstance(b.select(C, X, X), Select)


def test_float_constants_round_to_their_dtype():
    assert b.const(0.1, f32).value == float(np.float32(0.1))
    assert b.const(0.1, f16).value == float(np.float16(0.1))
    assert b.const(1e39, f32).value == math.inf
    assert b.const(np.float64(2.5), f64) == Const(2.5, f64)
    assert b.const(3.0, i64) == Const(3, i64)
    total = b.add(b.const(0.1, f32), b.const(0.2, f32))
    assert total == Const(float(np.float32(0.1) + np.float32(0.2)), f32)
    assert b.div(b.const(1.0, f32), 0.0) == Const(math.inf, f32)
    assert b.cast(bf16, b.const(1.01, f32)) == Const(1.0078125, bf16)


def test_functions_of_constants():
    one = b.const(1.0, f64)
    makers = [
        (b.exp, math.e),
        (b.log, 0.0),
        (b.sqrt, 1.0),
        (b.rsqrt, 1.0),
        (b.tanh, math.tanh(1)),
        (b.erf, math.erf(1)),
        (b.sigmoid, 1 / (1 + math.exp(-1))),
        (b.sin, math.sin(1)),
        (b.cos, math.cos(1)),
        (b.floor, 1.0),
        (b.abs_, 1.0),
        (b.neg, -1.0),
    ]
    for make, expected in makers:
        folded = make(one)
        assert isinstance(folded, Const)
        assert folded.value == pytest.approx(expected, rel=1e-15)
        assert make(b.splat(one, 4)) == Splat(folded, 4)
        assert isinstance(make(X), Unary)
    assert b.sigmoid(b.const(-1000.0, f64)) == Const(0.0, f64)
    assert b.abs_(index(-3)) == index(3)


def test_integers_wrap_around():
    big = b.const(2**31 - 1, i32)
    assert b.add(big, 1) == Const(-(2**31), i32)
    assert b.cast(u8, index(300)) == Const(44, u8)
    assert b.cast(i64, b.const(math.nan, f32)) == index(0)
    assert b.cast(i32, b.const(math.inf, f32)) == Const(2**31 - 1, i32)
    smallest = b.const(-(2**31), i32)  # has no positive counterpart
    assert b.add(Var("k", i32), smallest).b == smallest


def test_scalars_are_splatted_beside_vectors():
    assert b.mul(V, X) == Binary(BinaryOp.MUL, V, Splat(X, 4))
    assert b.mul(2.0, V) == Binary(BinaryOp.MUL, Splat(Const(2.0, f32), 4), V)
    assert b.select(C, V, 0.0) == Select(Splat(C, 4), V, Splat(Const(0.0, f32), 4))
    assert b.select(b.lt(V, 0.0), X, Y).lanes == 4


def test_reductions():
    assert b.reduce_sum(V) == Reduce(b.ReduceOp.ADD, V)
    assert b.reduce_max(X) is X
    assert b.reduce_max(b.splat(X, 4)) is X
    assert isinstance(b.reduce_sum(b.splat(X, 4)), Reduce)
    assert b.reduce_min(V).dtype == f32


def test_accesses():
    assert b.load(A, ROW, 3) == Load(A, (ROW, index(3)))
    assert b.load(A, N, b.cast(i32, COL)) == Load(A, (Size(N), Cast(i64, Cast(i32, COL))))
    assert b.load(A, ROW, b.ramp(COL, 4), mask=C).mask == Splat(C, 4)
    assert b.load(A, ROW, COL, mask=True).mask is None
    scalar = Buffer("s", (), f32)
    assert b.load(scalar) == Load(scalar, ())
    assert b.store(A, (ROW, COL), 1) == Store(A, (ROW, COL), Const(1.0, f32))
    assert b.store(A, [ROW, b.ramp(COL, 4)], X).value == Splat(X, 4)
    assert b.store(A, (ROW, COL), X, mask=False) == Seq(())


def test_loops_and_axes():
    loop = b.loop("i", N, lambda i: b.store(A, (i, 0), 0.0), ForKind.PARALLEL)
    assert (loop.var.name, loop.extent, loop.kind) == ("i", Size(N), ForKind.PARALLEL)
    assert loop.body.indices[0] is loop.var
    assert b.for_(ROW, 4, Seq(())).var is ROW
    assert b.for_("k", 4, Seq(())).var.name == "k"
    axes = b.spatial_axis("m", 4, ROW), b.reduce_axis("k", N, COL)
    assert [a.kind for a in axes] == [AxisKind.SPATIAL, AxisKind.REDUCTION]
    assert (axes[0].extent, axes[0].value) == (index(4), ROW)
    assert b.seq(Seq(()), loop) is loop


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b.const(1.5, i64), r"const: got 1.5; expected a value of i64"),
        (lambda: b.const(math.inf, i64), r"expected a value of i64"),
        (lambda: b.const(300, u8), r"got 300; expected a value of u8"),
        (lambda: b.const(2, bool_), r"got 2; expected a value of bool"),
        (lambda: b.add(1.5, 2.5), r"got the number 1.5 without a dtype"),
        (lambda: b.add(X, ROW), r"\+: got operands of f32 and i64; expected one dtype"),
        (lambda: b.div(ROW, COL), r"/: got operands of i64; expected floats"),
        (lambda: b.floordiv(X, Y), r"//: got operands of f32; expected integers"),
        (lambda: b.binary(BinaryOp.AND, ROW, COL), r"and: got operands of i64; expected bool"),
        (lambda: b.unary(UnaryOp.NOT, ROW), r"not: got an operand of i64; expected bool"),
        (lambda: b.exp(ROW), r"exp: got an operand of i64; expected a float"),
        (lambda: b.neg(C), r"neg: got an operand of bool; expected a number"),
        (lambda: b.select(ROW, X, Y), r"select: got a condition of i64; expected bool"),
        (lambda: b.splat(V, 8), r"splat: got a vector of 4 lanes; expected a scalar or 8 lanes"),
        (lambda: b.ramp(X, 8), r"ramp: got a base of f32 with 1 lanes; expected an i64 scalar"),
        (lambda: b.load(A, ROW), r"a: got 1 indices; expected 2 for shape \[n,8\]"),
        (lambda: b.load(A, ROW, X), r"a: index 1 has dtype f32; expected an integer"),
        (lambda: b.load(A, ROW, COL, mask=ROW), r"a: mask has dtype i64; expected bool"),
        (lambda: b.store(A, (ROW, COL), ROW), r"a: got a value of i64; expected f32; cast it"),
        (lambda: b.store(A, (ROW, COL), V), r"splat: got a vector of 4 lanes"),
        (lambda: index(1.5), r"index: got 1.5; expected an int"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
