"""Simplification of index expressions, conditions and statements: what must be found."""

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bool_, f32, i32, i64
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.nodes import Binary, BinaryOp, Buffer, Cast, Const, Load, Reduce, ReduceOp, Size, Var, index
from strata.loop.simplify import bounds, prove, simplify, simplify_func, simplify_stmt
from strata.loop.text import parse_func, print_expr, print_func

IO, II, ROW, COL = Var("io"), Var("ii"), Var("row"), Var("col")
N = SymDim("n", 1, 512)
TILES = SymDim("t", 64, 512, multiple_of=64)
NN, TT = Size(N), Size(TILES)
RANGES = {IO: (0, 7), II: (0, 63), ROW: (0, b.sub(NN, 1)), COL: (0, 5)}
FUSED = b.add(b.mul(IO, 64), II)
SYMBOLIC = b.add(b.mul(COL, NN), ROW)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (b.floordiv(FUSED, 64), "io"),
        (b.floormod(FUSED, 64), "ii"),
        (b.floordiv(b.add(FUSED, 64), 64), "io + 1"),
        (b.floordiv(FUSED, 16), "io * 4 + ii // 16"),
        (b.floormod(FUSED, 16), "ii % 16"),
        (b.add(b.mul(b.floordiv(FUSED, 16), 16), b.floormod(FUSED, 16)), "io * 64 + ii"),
        (b.floordiv(b.floordiv(ROW, 3), 4), "row // 12"),
        (b.floordiv(b.add(b.floordiv(ROW, 3), 1), 4), "(row + 3) // 12"),
        (b.floormod(b.floormod(ROW, 12), 4), "row % 4"),
        (b.floordiv(b.mul(ROW, 2), 4), "row // 2"),
        (b.floordiv(b.add(b.mul(IO, 8), b.floordiv(II, 8)), 8), "io"),
        (b.floormod(b.add(b.mul(IO, 8), b.floordiv(II, 8)), 8), "ii // 8"),
        (b.floordiv(II, 64), "0"),
        (b.floormod(b.sub(ROW, ROW), 7), "0"),
        (b.sub(b.add(ROW, COL), ROW), "col"),
        (b.sub(b.sub(NN, 1), ROW), "n - row - 1"),
        (b.add(b.mul(b.neg(ROW), 3), 5), "5 - row * 3"),
        (b.neg(ROW), "row * -1"),
        (b.mul(b.add(ROW, 1), b.add(COL, 2)), "row * 2 + row * col + col + 2"),
        (b.minimum(FUSED, 600), "io * 64 + ii"),
        (b.maximum(FUSED, 600), "600"),
        (b.minimum(ROW, b.sub(NN, 1)), "row"),
        (b.maximum(COL, 3), "max(col, 3)"),
        (Size(2 * N + 1), "n * 2 + 1"),
        # sizes that are multiples
        (b.ceildiv(TT, 64), "t // 64"),
        (b.mul(b.floordiv(TT, 64), 64), "t"),
        (b.floormod(TT, 32), "0"),
        (b.floordiv(b.mul(TT, 2), 64), "t // 32"),
        (b.floordiv(b.add(b.mul(ROW, TT), II), 64), "row * t // 64"),
        # symbolic divisors
        (b.floordiv(SYMBOLIC, NN), "col"),
        (b.floormod(SYMBOLIC, NN), "row"),
        (b.floordiv(b.add(b.mul(COL, b.add(NN, 1)), ROW), b.add(NN, 1)), "col"),
        (b.floordiv(NN, NN), "1"),
        (b.floordiv(b.add(NN, COL), NN), "(col + n) // n"),
        # vectors
        (b.floordiv(b.ramp(b.mul(IO, 16), 16), 16), "splat(io, 16)"),
        (b.floormod(b.ramp(b.mul(IO, 16), 16), 16), "ramp(0, 16)"),
        (b.add(b.ramp(IO, 4), b.ramp(II, 4)), "splat(io + ii, 4) + ramp(0, 4) * splat(2, 4)"),
        (b.sub(b.ramp(IO, 4), b.ramp(II, 4)), "splat(io - ii, 4)"),
        (b.minimum(b.ramp(IO, 4), b.splat(NN, 4)), "min(ramp(io, 4), splat(n, 4))"),
        # conditions
        (b.lt(ROW, NN), "True"),
        (b.ge(ROW, NN), "False"),
        (b.lt(FUSED, 512), "True"),
        (b.lt(FUSED, b.mul(IO, 64)), "False"),
        (b.lt(b.add(ROW, 3), b.add(ROW, COL)), "3 < col"),
        (b.eq(b.add(ROW, 1), 0), "False"),
        (b.ne(b.add(ROW, 1), 0), "True"),
        (b.eq(b.sub(ROW, ROW), 0), "True"),
        (b.lt(b.ramp(b.mul(IO, 16), 16), 128), "splat(True, 16)"),
        (b.and_(b.lt(COL, 3), b.lt(COL, 5)), "col < 3"),
        (b.or_(b.lt(COL, 3), b.ge(COL, 3)), "True"),
        (b.or_(b.lt(COL, 3), b.lt(COL, 2)), "col < 3"),
        (b.not_(b.and_(b.lt(COL, 3), b.lt(ROW, NN))), "col >= 3"),
        (b.select(b.lt(ROW, NN), ROW, COL), "row"),
        (b.cast(i64, b.lt(ROW, NN)), "1"),
        (b.lt(Cast(i32, COL), Const(9, i32)), "True"),
        (b.gt(Cast(i32, COL), Const(4, i32)), "i32(col) > 4_i32"),
    ],
)
def test_normal_forms(expr, text):
    assert print_expr(simplify(expr, RANGES)) == text


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (FUSED, (0, 511)),
        (b.floordiv(FUSED, 10), (0, 51)),
        (b.floormod(ROW, 5), (0, 4)),
        (b.sub(NN, ROW), (1, 512)),
        (b.minimum(ROW, 7), (0, 7)),
        (b.maximum(ROW, 7), (7, 511)),
        (b.ramp(II, 8), (0, 70)),
        (Var("free"), (None, None)),
        (b.minimum(Var("free"), 7), (None, 7)),
        (b.abs_(b.sub(COL, 3)), (0, 3)),
        (b.select(Var("c", bool_), COL, II), (0, 63)),
        (b.cast(i64, Load(Buffer("x", (), i32), ())), (-(2**31), 2**31 - 1)),
        (b.cast(i64, Load(Buffer("x", (), bool_), ())), (0, 1)),
        (b.cast(i64, Var("h", f32)), (None, None)),
        (b.add(Cast(i32, COL), 2), (2, 7)),
        (b.mul(Cast(i32, COL), 2**30), (-(2**31), 2**31 - 1)),
        (Reduce(ReduceOp.MAX, b.ramp(II, 8)), (0, 70)),
        (Reduce(ReduceOp.ADD, b.ramp(II, 8)), (None, None)),
        (b.floordiv(FUSED, NN), (0, 511)),
        (b.floormod(FUSED, b.add(COL, 1)), (0, 5)),
        (b.mul(Var("free"), 0), (0, 0)),
        (b.floordiv(index(5), index(-2)), (-3, -3)),
        (Binary(BinaryOp.FLOORDIV, ROW, index(-2)), (None, None)),
    ],
)
def test_bounds(expr, expected):
    assert bounds(expr, RANGES) == expected


def test_symbolic_tiles_are_proved():
    io, ii = Var("io"), Var("ii")
    at = b.add(b.mul(io, 64), ii)
    rest = {io: (0, b.sub(b.ceildiv(NN, 64), 1)), ii: (0, b.sub(b.minimum(64, b.sub(NN, b.mul(io, 64))), 1))}
    assert prove(b.lt(at, NN), rest)
    full = {io: (0, b.sub(b.floordiv(NN, 64), 1)), ii: (0, 63)}
    assert prove(b.lt(at, NN), full)
    assert prove(b.lt(b.ramp(b.mul(io, 64), 64), b.splat(NN, 64)), full)
    ragged = {io: (0, b.sub(b.ceildiv(NN, 64), 1)), ii: (0, 63)}
    assert not prove(b.lt(at, NN), ragged)
    assert not prove(b.ge(at, NN), ragged)
    multiple = {io: (0, b.sub(b.ceildiv(TT, 64), 1)), ii: (0, 63)}
    assert prove(b.lt(at, TT), multiple)


def test_facts_of_a_scope():
    known = Analysis().with_range(IO, 0, 100).with_fact(b.le(b.add(b.mul(IO, 64), 64), NN))
    assert known.prove(b.lt(b.add(b.mul(IO, 64), b.ramp(0, 64)), b.splat(NN, 64)))
    assert known.prove(b.gt(NN, 63))
    either = Analysis().with_fact(b.or_(b.lt(ROW, 3), Var("c", bool_)), holds=False)
    assert either.prove(b.ge(ROW, 3))
    assert either.prove(b.not_(Var("c", bool_))) is False  # another variable called c
    flag = Var("flag", bool_)
    assert Analysis().with_fact(flag).prove(flag)
    assert Analysis().with_fact(b.not_(flag)).prove(flag, holds=False)
    assert Analysis().with_fact(b.eq(ROW, 5)).prove(b.lt(ROW, 6))
    assert not Analysis().with_fact(b.ne(ROW, 5)).prove(b.lt(ROW, 6))


def test_unchanged_expressions_keep_their_identity():
    expr = b.add(b.mul(IO, 64), II)
    assert simplify(expr) is expr
    cond = b.lt(COL, 3)
    assert simplify(cond, RANGES) is cond
    value = b.mul(Var("x", f32), Var("y", f32))
    assert simplify(value) is value


SIGNATURE = (
    "dims n in 1..512, t in 64..512 multiple of 64\nfunc @f(x: f32[n,64], w: f32[t]) -> (y: f32[n,64])\n"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("for i in 1:\n  y[i, 0] = x[i, 0]", "y[0, 0] = x[0, 0]"),
        ("for i in 1 with matrix=1:\n  y[i, 0] = x[i, 0]", "for i in 1 with matrix=1:\n  y[0, 0] = x[0, 0]"),
        ("for i in 0:\n  y[i, 0] = x[i, 0]", "pass"),
        ("for i in n - n:\n  y[i, 0] = x[i, 0]", "pass"),
        ("for i in n:\n  if i < n:\n    y[i, 0] = x[i, 0]", "for i in n:\n  y[i, 0] = x[i, 0]"),
        ("for i in n:\n  if i >= n:\n    y[i, 0] = x[i, 0]", "pass"),
        ("if n > 3:\n  pass\nelse:\n  y[0, 0] = x[0, 0]", "if n <= 3:\n  y[0, 0] = x[0, 0]"),
        ("if n > 0:\n  pass\nelse:\n  y[0, 0] = x[0, 0]", "pass"),
        ("if n < 1:\n  pass\nelse:\n  y[0, 0] = x[0, 0]", "y[0, 0] = x[0, 0]"),
        (
            "if n > 7:\n  for i in 8:\n    y[0, i] = select(i < n, x[0, i], x[0, 0])",
            "if n > 7:\n  for i in 8:\n    y[0, i] = x[0, i]",
        ),
        (
            "if n > 7:\n  y[0, 0] = x[0, 0]\nelse:\n  if n > 9:\n    y[0, 0] = x[0, 1]",
            "if n > 7:\n  y[0, 0] = x[0, 0]",
        ),
        ("let a = 3\ny[0, a] = x[0, 0]", "y[0, 3] = x[0, 0]"),
        ("let a = n // 2\ny[0, 0] = x[0, 0]", "y[0, 0] = x[0, 0]"),
        ("let a = n // 2\nif a < n:\n  y[a, 0] = x[a, 0]", "let a = n // 2\ny[a, 0] = x[a, 0]"),
        ("alloc t1: f32[4] local\ny[0, 0] = x[0, 0]", "y[0, 0] = x[0, 0]"),
        ("y[0, 0] = x[0, 0] if n > 0", "y[0, 0] = x[0, 0]"),
        ("y[0, 0] = x[0, 0] if n < 1", "pass"),
        ("y[0, 0] = (x[0, 0] if n > 0)", "y[0, 0] = x[0, 0]"),
        ("y[0, 0] = (x[0, 0] if n < 1)", "y[0, 0] = 0x0p+0"),
        (
            "for i in 4:\n  y[0, ramp(i * 8, 8)] = (x[0, ramp(i * 8, 8)] if ramp(i * 8, 8) < splat(64, 8))",
            "for i in 4:\n  y[0, ramp(i * 8, 8)] = x[0, ramp(i * 8, 8)]",
        ),
        (
            'for i in n:\n  block "b" (m: spatial n = i + 0, k: reduce 1 = 0) where i < n:\n'
            "    init:\n      pass\n    if m < n:\n      y[m, k] = x[m, k]",
            'for i in n:\n  block "b" (m: spatial n = i, k: reduce 1 = 0):\n    y[m, 0] = x[m, 0]',
        ),
        ('block "b" () where n < 1:\n  y[0, 0] = x[0, 0]', "pass"),
        ('block "b" ():\n  init:\n    pass\n  pass', "pass"),
        # what is loaded may change: no conclusions from it
        (
            "for i in i64(y[0, 0]):\n  if i < i64(y[0, 0]):\n    y[0, 0] = x[0, 0]",
            "for i in i64(y[0, 0]):\n  if i < i64(y[0, 0]):\n    y[0, 0] = x[0, 0]",
        ),
        (
            "if y[0, 0] < x[0, 0]:\n  y[0, 0] = 0x0p+0\n  if y[0, 0] < x[0, 0]:\n    y[0, 1] = 0x0p+0",
            "if y[0, 0] < x[0, 0]:\n  y[0, 0] = 0x0p+0\n  if y[0, 0] < x[0, 0]:\n    y[0, 1] = 0x0p+0",
        ),
        (
            "let a = i64(y[0, 0])\ny[0, 0] = x[0, 0]\nif a == i64(y[0, 0]):\n  y[0, 1] = x[0, 0]",
            "let a = i64(y[0, 0])\ny[0, 0] = x[0, 0]\nif a == i64(y[0, 0]):\n  y[0, 1] = x[0, 0]",
        ),
    ],
)
def test_statements(before, after):
    def text(body):
        return SIGNATURE + "".join(f"  {line}\n" for line in body.split("\n"))

    assert print_func(simplify_func(parse_func(text(before)))) == print_func(parse_func(text(after)))


def test_ranges_from_outside():
    y, x = Buffer("y", (8,), f32), Buffer("x", (8,), f32)
    stmt = b.store(y, (b.floordiv(FUSED, 64),), b.load(x, IO))
    out = simplify_stmt(stmt, RANGES)
    assert out == b.store(y, (IO,), b.load(x, IO))
    assert out.indices[0].dtype == i64
