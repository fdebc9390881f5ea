"""Simplification and proofs agree with evaluation, over random index expressions, ranges, sizes and facts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import bool_, i64
from strata.loop import build
from strata.loop.analysis import Analysis
from strata.loop.nodes import (
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Ramp,
    Select,
    Size,
    Splat,
    Unary,
    UnaryOp,
    Var,
)
from strata.loop.simplify import bounds, prove, simplify

OUTER, MIDDLE, INNER = Var("outer"), Var("middle"), Var("inner")
N = SymDim("n", 1, 40)
M = SymDim("m", 4, 64, multiple_of=4)

# Upper bounds as the lowering makes them: constants, sizes, ceil-divided sizes, the rest of a tile.
EXTENTS = {
    OUTER: (
        lambda: build.as_expr(5),
        lambda: Size(N),
        lambda: build.ceildiv(N, 4),
        lambda: build.floordiv(M, 4),
    ),
    MIDDLE: (
        lambda: build.as_expr(4),
        lambda: build.minimum(4, build.sub(N, build.mul(OUTER, 4))),
        lambda: Size(M),
    ),
    INNER: (lambda: build.as_expr(3), lambda: build.add(OUTER, 1), lambda: build.as_expr(16)),
}


def value(expr: Expr, env: dict[Var, int], sizes: dict[str, int], lane: int = 0) -> int | bool:
    """Value of ``expr`` in one lane."""
    match expr:
        case Const():
            return expr.value  # type: ignore[return-value]
        case Var():
            return env[expr]
        case Size():
            return evaluate(expr.dim, sizes)
        case Ramp():
            return value(expr.base, env, sizes) + lane
        case Splat():
            return value(expr.a, env, sizes)
        case Cast():
            return int(value(expr.a, env, sizes, lane))
        case Unary():
            a = value(expr.a, env, sizes, lane)
            return {UnaryOp.NEG: lambda: -a, UnaryOp.ABS: lambda: abs(a), UnaryOp.NOT: lambda: not a}[
                expr.op
            ]()
        case Select():
            return value(expr.a if value(expr.cond, env, sizes, lane) else expr.b, env, sizes, lane)
        case Binary():
            a, b = value(expr.a, env, sizes, lane), value(expr.b, env, sizes, lane)
            return {
                "+": lambda: a + b,
                "-": lambda: a - b,
                "*": lambda: a * b,
                "//": lambda: a // b,
                "%": lambda: a % b,
                "min": lambda: min(a, b),
                "max": lambda: max(a, b),
                "<": lambda: a < b,
                "<=": lambda: a <= b,
                ">": lambda: a > b,
                ">=": lambda: a >= b,
                "==": lambda: a == b,
                "!=": lambda: a != b,
                "and": lambda: a and b,
                "or": lambda: a or b,
            }[expr.op.value]()
    raise AssertionError(expr)


SMALL = st.integers(-9, 70)
POSITIVE = st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 64])
LEAVES = st.one_of(
    st.sampled_from([OUTER, MIDDLE, INNER, Size(N), Size(M), Size(2 * N + M)]),
    SMALL.map(lambda v: Const(v, i64)),
)


def _vectors(lanes: int):
    return st.one_of(LEAVES.map(lambda e: Ramp(e, lanes)), LEAVES.map(lambda e: Splat(e, lanes)))


def _grow(lanes: int):
    wide = (lambda e: Splat(e, lanes)) if lanes > 1 else (lambda e: e)

    def extend(inner):
        arith = st.sampled_from([BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.MIN, BinaryOp.MAX])
        divide = st.sampled_from([BinaryOp.FLOORDIV, BinaryOp.FLOORMOD])
        divisor = st.one_of(
            POSITIVE.map(lambda v: wide(Const(v, i64))), st.sampled_from([wide(Size(N)), wide(Size(M))])
        )
        return st.one_of(
            st.builds(Binary, arith, inner, inner),
            st.builds(Binary, divide, inner, divisor),
            st.builds(lambda a, k: Binary(BinaryOp.MUL, a, wide(Const(k, i64))), inner, POSITIVE),
            st.builds(Unary, st.sampled_from([UnaryOp.NEG, UnaryOp.ABS]), inner),
            st.builds(Select, _compare(inner), inner, inner),
            _compare(inner).map(lambda c: Cast(i64, c)),
        )

    return extend


def _compare(inner):
    ops = st.sampled_from([BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE])
    return st.builds(Binary, ops, inner, inner)


@st.composite
def _tiled(draw):
    """What splitting and fusing of loops makes: (outer*64 + middle*8 + inner + k) // 8."""
    factors = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 64, -1, -4])
    out: Expr = Const(draw(st.integers(-8, 64)), i64)
    for var in (OUTER, MIDDLE, INNER, draw(st.sampled_from([Size(N), Size(M)]))):
        out = Binary(BinaryOp.ADD, Binary(BinaryOp.MUL, var, Const(draw(factors), i64)), out)
    for op in draw(st.lists(st.sampled_from([BinaryOp.FLOORDIV, BinaryOp.FLOORMOD]), max_size=2)):
        out = Binary(op, out, Const(draw(POSITIVE), i64))
    return out


SCALARS = st.one_of(_tiled(), st.recursive(st.one_of(LEAVES, _tiled()), _grow(1), max_leaves=8))
VECTORS = st.recursive(st.one_of(_vectors(4), _tiled().map(lambda e: Ramp(e, 4))), _grow(4), max_leaves=6)
INDICES = st.one_of(SCALARS, VECTORS)


def _conditions():
    simple = st.one_of(_compare(SCALARS), _compare(VECTORS))
    return st.one_of(
        simple,
        st.builds(Binary, st.sampled_from([BinaryOp.AND, BinaryOp.OR]), _compare(SCALARS), _compare(SCALARS)),
        simple.map(lambda c: Unary(UnaryOp.NOT, c)),
    )


@st.composite
def scopes(draw):
    """Ranges of the three variables, and points at the corners of the loop nest."""
    sizes = {"n": draw(st.integers(1, 40)), "m": 4 * draw(st.integers(1, 16))}
    ranges: dict[Var, tuple[Expr, Expr]] = {}
    points: list[dict[Var, int]] = [{}]
    for var, choices in EXTENTS.items():
        extent = draw(st.sampled_from(choices))()
        ranges[var] = (Const(0, i64), build.sub(extent, 1))
        grown = []
        for env in points:
            count = int(value(extent, env, sizes))
            inside = {0, 1, count // 2, count - 2, count - 1}
            grown += [{**env, var: v} for v in inside if 0 <= v < count]
        points = grown or points
        if not grown:
            del ranges[var]  # the loop never runs: leave its variable unbounded
            points = [{**env, var: 7} for env in points]
    return ranges, points, sizes


def same(a: Expr, b: Expr, points, sizes) -> None:
    assert (a.dtype, a.lanes) == (b.dtype, b.lanes)
    for env in points:
        for lane in range(a.lanes):
            assert value(a, env, sizes, lane) == value(b, env, sizes, lane), (env, lane)


def values(expr: Expr, points, sizes):
    return {value(expr, env, sizes, lane) for env in points for lane in range(expr.lanes)}


@given(INDICES, scopes())
@settings(max_examples=100, deadline=None)
def test_simplify_keeps_the_value(expr, scope):
    ranges, points, sizes = scope
    out = simplify(expr, ranges)
    same(out, expr, points, sizes)
    same(simplify(out, ranges), expr, points, sizes)


@given(INDICES, scopes())
@settings(max_examples=100, deadline=None)
def test_bounds_contain_every_value(expr, scope):
    ranges, points, sizes = scope
    lo, hi = bounds(expr, ranges)
    found = values(expr, points, sizes)
    assert lo is None or lo <= min(found)
    assert hi is None or max(found) <= hi


@given(_conditions(), scopes())
@settings(max_examples=100, deadline=None)
def test_what_is_proved_is_true(cond, scope):
    ranges, points, sizes = scope
    found = values(cond, points, sizes)
    if prove(cond, ranges):
        assert found == {True}
    if prove(Unary(UnaryOp.NOT, cond), ranges):
        assert found == {False}
    out = simplify(cond, ranges)
    assert out.dtype == bool_
    same(out, cond, points, sizes)


@given(_compare(SCALARS), _conditions(), INDICES, scopes())
@settings(max_examples=100, deadline=None)
def test_facts_are_used_soundly(fact, cond, expr, scope):
    ranges, points, sizes = scope
    holds = bool(value(fact, points[0], sizes))
    points = [env for env in points if bool(value(fact, env, sizes)) == holds]
    known = Analysis()
    for var, (lo, hi) in ranges.items():
        known = known.with_range(var, lo, hi)
    known = known.with_fact(fact, holds)
    if known.prove(cond):
        assert values(cond, points, sizes) == {True}
    same(known.simplify(expr), expr, points, sizes)
