"""Every rule of the checker, with the message that names it."""

import math

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f32, i32, i64
from strata.core.errors import VerifyError
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, LOOP_SCHEDULED, STAGES, check
from strata.loop.nodes import (
    EVEN,
    GRAIN,
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    BlockAxis,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Reduce,
    ReduceOp,
    Select,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    Var,
    index,
)
from strata.loop.text import parse_func

N = SymDim("n", 1, 64)
X = Buffer("x", (N, 8), f32)
H = Buffer("h", (16,), bf16)
T = Buffer("t", (5,), i32)
Y = Buffer("y", (N, 8), f32)
ZERO, ONE = index(0), Const(1.0, f32)
VEC = Load(X, (ZERO, Ramp(ZERO, 4)))
HALF = Load(H, (ZERO,))


def func(body: Stmt) -> Func:
    return Func("f", (X, H, T, Y), body)


def put(value: Expr) -> Stmt:
    return Store(Y, (ZERO, ZERO), value)


def at(where: Expr) -> Stmt:
    return Store(Y, (ZERO, where), ONE)


def test_good_functions_pass():
    text = """dims n in 1..64
func @f(x: f32[n,8], h: bf16[16]) -> (y: f32[n,8])
  alloc acc: f32[4] register
  for i in n:
    unroll u in 4:
      let v = u % 2 + 1
      acc[v] = f32(h[v * 8 + 7])
    if i > 2:
      y[i, ramp(4, 4)] = x[i - 3, ramp(0, 4)] + acc[ramp(0, 4)]
    y[i, ramp(i, 4)] = x[i, ramp(i, 4)] if ramp(i, 4) < splat(8, 4)
"""
    check(parse_func(text), LOOP_SCHEDULED)
    check(parse_func(text), LOOP_LOWERED)
    assert STAGES["LOOP_NAIVE"] is LOOP_NAIVE


def test_the_message_names_function_stage_rule_and_text():
    body = For(Var("i"), index(3), ForKind.SERIAL, put(Binary(BinaryOp.ADD, ONE, ZERO)))
    with pytest.raises(VerifyError) as caught:
        check(func(body), LOOP_NAIVE)
    assert str(caught.value) == (
        "f at LOOP_NAIVE: 0x1p+0 + 0: operands are f32 and i64; expected one type\n    y[0, 0] = 0x1p+0 + 0"
    )
    many = If(Var("c", bool_), Seq((put(ONE),) * 9))
    with pytest.raises(VerifyError, match=r"(?s)c is not in scope\n    if c:.*\n    \.\.\.$"):
        check(func(many))


def axis(var: Var, value: Expr) -> BlockAxis:
    return BlockAxis(var, AxisKind.SPATIAL, index(9), value)


ROW, M = Var("i"), Var("m")
REG = Buffer("reg", (4,), f32, MemSpace.REGISTER)


def loop(body: Stmt, kind: ForKind = ForKind.SERIAL, extent: Expr | None = None) -> Stmt:
    return For(ROW, extent or index(4), kind, body)


SCOPES = [
    (
        loop(For(M, index(2), ForKind.LANE, put(ONE)), ForKind.LANE),
        "loop m is bound to lane, as is a loop around it; expected different hardware axes",
    ),
    (
        For(ROW, index(2), ForKind.PARALLEL, put(ONE), ((GRAIN, "all"),)),
        "note grain of loop i is 'all'; expected a positive integer",
    ),
    (For(ROW, index(2), ForKind.PARALLEL, put(ONE), ((GRAIN, 0),)), "note grain of loop i is 0"),
    (
        For(ROW, index(2), ForKind.PARALLEL, put(ONE), ((EVEN, -1),)),
        "note even of loop i is -1; expected 0 or a positive integer",
    ),
    (put(Load(X, (ZERO, ROW))), "variable i is not in scope"),
    (Seq((loop(put(ONE)), at(ROW))), "variable i is not in scope"),
    (loop(loop(put(ONE))), "variable i is bound again inside its own scope"),
    (Let(ROW, ZERO, Let(ROW, ZERO, put(ONE))), "variable i is bound again"),
    (put(Load(Buffer("other", (1,), f32), (ZERO,))), "buffer other is not in scope"),
    (Alloc(REG, Alloc(REG, put(ONE))), "buffer reg is allocated inside its own scope"),
    (Store(X, (ZERO, ZERO), ONE), "store to x; expected an output parameter or an allocated buffer"),
    (Seq((Alloc(REG, put(ONE)), Store(REG, (ZERO,), ONE))), "buffer reg is not in scope"),
    (at(Size(SymDim("q"))), "dim q is of no parameter's shape; known: n"),
    (Alloc(Buffer("b", (SymDim("q"),), f32), put(ONE)), "dim q is of no parameter's shape"),
    (
        loop(Block("b", (axis(M, ROW),), at(ROW))),
        "i is bound outside of the block; its body may only use its axes",
    ),
    (loop(Block("b", (BlockAxis(ROW, AxisKind.SPATIAL, index(4), ZERO),), put(ONE))), "i is bound again"),
    (
        Block("b", (BlockAxis(M, AxisKind.SPATIAL, ONE, ZERO),), put(ONE)),
        'extent of axis m of block "b" is f32 x 1 lanes; expected an i64 scalar',
    ),
    (Block("b", (BlockAxis(M, AxisKind.SPATIAL, ONE, M),), put(ONE)), "variable m is not in scope"),
    (
        Block("b", tuple(BlockAxis(M, AxisKind.SPATIAL, index(4), ZERO) for _ in "12"), put(ONE)),
        'axis m of block "b" is bound twice',
    ),
    (Block("b", (), put(ONE), None, ZERO), 'predicate of block "b" is not a bool scalar'),
    (loop(put(ONE), extent=ONE), "extent of loop i is f32 x 1 lanes; expected an i64 scalar"),
    (
        For(Var("i", i32), index(2), ForKind.SERIAL, put(ONE)),
        "variable of loop i is i32 x 1 lanes; expected an i64 scalar",
    ),
    (loop(put(ONE), ForKind.UNROLL, Size(N)), "unroll loop i: got a variable extent; expected a constant"),
    (loop(put(ONE), ForKind.VECTORIZE, Size(N)), "vectorize loop i: got a variable extent"),
    (
        Let(Var("v", f32), ZERO, put(ONE)),
        "let v: f32 x 1 lanes = i64 x 1 lanes; expected the same type",
    ),
    (If(ZERO, put(ONE)), "condition is i64 x 1 lanes; expected a bool scalar"),
    (If(Splat(Const(True, bool_), 4), put(ONE)), "condition is bool x 4 lanes; expected a bool scalar"),
    (
        Alloc(Buffer("r", (N,), f32, MemSpace.REGISTER), put(ONE)),
        "register buffer r: got a symbolic shape; expected constants",
    ),
    (
        Alloc(Buffer("r", (N,), f32, MemSpace.LOCAL), put(ONE)),
        "local buffer r: got a symbolic shape; expected constants",
    ),
]

TYPES = [
    (Const(1, f32), "1: got the int 1; expected a value of f32"),
    (Const(0.1, f32), "got the float 0.1; expected a value of f32"),
    (Binary(BinaryOp.DIV, ZERO, ZERO), "operands are i64; expected f32 or f64"),
    (Binary(BinaryOp.FLOORDIV, ONE, ONE), "operands are f32; expected i32 or i64"),
    (Binary(BinaryOp.AND, ONE, ONE), "operands are f32; expected bool"),
    (Binary(BinaryOp.ADD, HALF, HALF), "arithmetic of bf16; expected f32, f64, i32 or i64; cast first"),
    (Binary(BinaryOp.LT, HALF, HALF), "comparison of bf16; expected f32, f64, i32 or i64; cast first"),
    (Binary(BinaryOp.ADD, VEC, ONE), "operands are f32 x 4 lanes and f32; expected one type"),
    (Unary(UnaryOp.NOT, ONE), "operand is f32; expected bool"),
    (Unary(UnaryOp.NEG, HALF), "operand is bf16; expected f32, f64, i32 or i64; cast first"),
    (Unary(UnaryOp.EXP, ZERO), "operand is i64; expected f32 or f64; cast first"),
    (Select(Const(True, bool_), ONE, ZERO), "operands are f32 and i64; expected one type"),
    (Select(ONE, ONE, ONE), "condition is f32; expected bool"),
    (Select(Const(True, bool_), VEC, VEC), "condition is bool; expected bool x 4 lanes"),
    (Reduce(ReduceOp.ADD, ONE), "got a scalar; expected a vector"),
    (Reduce(ReduceOp.ADD, Load(H, (Ramp(ZERO, 4),))), "got bf16; expected f32, f64, i32 or i64"),
    (Load(X, (ZERO,)), "x got 1 indices; expected 2"),
    (Load(X, (ZERO, ONE)), "index 1 is f32; expected i64"),
    (Load(X, (Ramp(ZERO, 4), ZERO)), "index 0 is a vector; only the last one may be"),
    (Load(X, (ZERO, ZERO), ONE), "mask is f32; expected bool"),
    (Load(X, (ZERO, Ramp(ZERO, 4)), Const(True, bool_)), "mask is bool; expected bool x 4 lanes"),
    (Splat(VEC, 4), "got a vector of 4 lanes; expected a scalar"),
    (Splat(ONE, 1), "got 1 lanes; expected at least 2"),
    (Load(X, (ZERO, Ramp(ZERO, 1))), "got 1 lanes; expected at least 2"),
    (Load(X, (ZERO, Ramp(ONE, 4))), "base is f32; expected i64"),
    (Intrinsic("fma", (ONE, ONE), f32, 1), r"@fma: got \(f32\[1\], f32\[1\]\); expected \(a, b, c"),
    (Intrinsic("fma", (ONE, ONE, ONE), f32, 4), "result is f32 x 4 lanes; expected f32"),
    (Var("v", f32, 0), "got 0 lanes; expected at least 1"),
]

STORES = [
    (put(ZERO), "value is i64; expected f32"),
    (put(VEC), "value is f32 x 4 lanes; expected f32"),
    (Store(Y, (ZERO, Ramp(ZERO, 4)), ONE), "value is f32; expected f32 x 4 lanes"),
    (Store(Y, (ZERO,), ONE), "y got 1 indices; expected 2"),
    (Store(Y, (ZERO, ZERO), ONE, ZERO), "mask is i64; expected bool"),
]

BOUNDS = [
    (at(index(8)), r"index 8 of y is outside of 0..8-1 \(dim 1\)"),
    (at(index(-1)), "index -1 of y is outside"),
    (Store(Y, (Size(N), ZERO), ONE), r"index n of y is outside of 0..n-1 \(dim 0\)"),
    (put(Load(X, (ZERO, index(9)))), "index 9 of x is outside"),
    (loop(at(Binary(BinaryOp.ADD, ROW, index(5)))), r"index i \+ 5 of y is outside"),
    (loop(at(Binary(BinaryOp.SUB, ROW, index(1)))), "index i - 1 of y is outside"),
    (loop(Store(Y, (ZERO, Ramp(Binary(BinaryOp.MUL, ROW, index(2)), 4)), VEC)), "is outside"),
    (
        loop(
            Block(
                "b", (BlockAxis(M, AxisKind.SPATIAL, index(9), Binary(BinaryOp.ADD, ROW, index(5))),), at(M)
            )
        ),
        "is outside",
    ),
    (Let(M, index(9), at(M)), "index m of y is outside"),
]


@pytest.mark.parametrize(("body", "message"), SCOPES + STORES + BOUNDS)
def test_broken_statements(body, message):
    with pytest.raises(VerifyError, match=message):
        check(func(body), LOOP_SCHEDULED)


@pytest.mark.parametrize(("expr", "message"), TYPES)
def test_broken_expressions(expr, message):
    with pytest.raises(VerifyError, match=message):
        check(func(Let(Var("v", expr.dtype, expr.lanes), expr, put(ONE))), LOOP_SCHEDULED)


@pytest.mark.parametrize(
    "body",
    [
        If(Binary(BinaryOp.LT, Size(N), ZERO), at(index(9))),
        loop(If(Binary(BinaryOp.GT, ROW, ZERO), at(Binary(BinaryOp.SUB, ROW, index(1))))),
        Store(Y, (ZERO, index(9)), ONE, Const(False, bool_)),
        put(Load(X, (ZERO, index(9)), Const(False, bool_))),
        loop(For(Var("j"), ROW, ForKind.SERIAL, at(index(9)))),
        loop(
            Block(
                "b", (BlockAxis(M, AxisKind.SPATIAL, index(9), ROW),), at(index(9)), None, Const(False, bool_)
            )
        ),
        Let(Var("nan", f32), Const(math.nan, f32), put(Const(math.inf, f32))),
        Store(Y, (ZERO, ZERO), ONE, Binary(BinaryOp.EQ, Const(True, bool_), Const(False, bool_))),
    ],
)
def test_what_may_be_right_is_accepted(body):
    check(func(body), LOOP_SCHEDULED)


REGISTER = [
    (loop(Store(REG, (ROW,), ONE)), "index i of register buffer reg varies at run time; expected constants"),
    (Store(REG, (Binary(BinaryOp.FLOORMOD, Size(N), index(4)),), ONE), "varies at run time"),
    (Store(REG, (Cast(i64, Load(T, (ZERO,))),), ONE), "varies at run time"),
    (loop(Let(M, ROW, Store(REG, (M,), ONE))), "index m of register buffer reg varies"),
]


@pytest.mark.parametrize(("body", "message"), REGISTER)
def test_register_indices_are_constant_in_the_end(body, message):
    check(func(Alloc(REG, body)), LOOP_SCHEDULED)
    with pytest.raises(VerifyError, match=message):
        check(func(Alloc(REG, body)), LOOP_LOWERED)
    unrolled = loop(Let(M, ROW, Store(REG, (M,), ONE)), ForKind.UNROLL)
    check(func(Alloc(REG, unrolled)), LOOP_LOWERED)


@pytest.mark.parametrize(
    ("body", "stage", "message"),
    [
        (loop(put(ONE), ForKind.VECTORIZE), LOOP_LOWERED, "vectorize loop i: not allowed at this stage"),
        (Block("b", (), put(ONE)), LOOP_LOWERED, 'block "b": not allowed at this stage'),
        (put(Reduce(ReduceOp.ADD, VEC)), LOOP_NAIVE, r"reduce_sum\(x.*\): no vectors at this stage"),
    ],
)
def test_stages(body, stage, message):
    check(func(body), LOOP_SCHEDULED)
    with pytest.raises(VerifyError, match=message):
        check(func(body), stage)


def test_signature():
    with pytest.raises(VerifyError, match="got 3 outputs; expected at most 1 params"):
        check(Func("f", (Y,), Seq(()), 3))
    with pytest.raises(VerifyError, match="a buffer is a parameter twice"):
        check(Func("f", (Y, Y), Seq(())))
    with pytest.raises(VerifyError, match="got parameter reg in register memory; expected global"):
        check(Func("f", (REG,), Seq(())))


def test_small_integers_and_halves_may_be_moved():
    text = "  o[0] = select(i32(s[0]) > 0_i32, h[0], f16(s[1]))\n"
    check(parse_func("func @f(s: i8[4], h: f16[4]) -> (o: f16[4])\n" + text), LOOP_LOWERED)
