"""Random loop functions whose accesses are in bounds, for property tests.

They are made from a seed, which a failing test prints; drawing every choice from hypothesis is far slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import FunctionType

import ml_dtypes  # noqa: F401
import numpy as np

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f32, i32, i64
from strata.loop.nodes import (
    BOUND_KINDS,
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
    Notes,
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
)

LANES = 4
N = SymDim("n", 1, 9)
M = SymDim("m", 4, 8, multiple_of=4)
PLAIN_KINDS = [kind for kind in ForKind if kind not in BOUND_KINDS]
COMPARE = [BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE]


@dataclass
class Scope:
    """What may be used at a place."""

    random: Random
    floats: list[Buffer]  # f32, loaded and stored
    ints: list[Buffer]  # i32, loaded
    halves: list[Buffer]  # bf16, loaded
    targets: list[Buffer]  # stored
    indices: list[Var] = field(default_factory=list)  # i64 scalars
    vectors: list[Var] = field(default_factory=list)  # f32 vectors
    loops: list[tuple[Var, Expr]] = field(default_factory=list)  # loop variables with their extents
    in_block: bool = False
    bound: frozenset[ForKind] = frozenset()  # hardware axes of the loops around

    def inner(self, **changes) -> Scope:
        """A nested scope."""
        names = ("random", "floats", "ints", "halves", "targets", "indices", "vectors", "loops", "in_block")
        names += ("bound",)
        copied = {n: getattr(self, n) for n in names}
        return Scope(**{**{k: list(v) if isinstance(v, list) else v for k, v in copied.items()}, **changes})

    def pick(self, *choices):
        """One of the choices; a function among them is called."""
        chosen = self.random.choice(choices)
        return chosen() if isinstance(chosen, FunctionType) and chosen.__name__ == "<lambda>" else chosen


def wide(expr: Expr) -> Expr:
    return Splat(expr, LANES)


def index(s: Scope, depth: int = 2) -> Expr:
    """An i64 scalar."""
    if depth == 0 or s.pick(0, 1) == 0:
        leaves = [Const(s.random.randint(-3, 20), i64), Size(N), Size(M), Size(2 * N + M), *s.indices]
        return s.pick(*leaves)
    a, b = index(s, depth - 1), index(s, 0)
    k = Const(s.pick(1, 2, 3, 4, 8), i64)
    return s.pick(
        lambda: Binary(BinaryOp.ADD, a, b),
        lambda: Binary(BinaryOp.SUB, a, b),
        lambda: Binary(BinaryOp.MUL, a, k),
        lambda: Binary(BinaryOp.FLOORDIV, a, k),
        lambda: Binary(BinaryOp.FLOORMOD, a, k),
        lambda: Binary(BinaryOp.MIN, a, b),
        lambda: Binary(BinaryOp.MAX, a, b),
        lambda: Unary(UnaryOp.NEG, a),
        lambda: Select(condition(s, depth - 1), a, b),
        lambda: Cast(i64, condition(s, depth - 1)),
        lambda: Cast(i64, Load(s.ints[0], inside(s, s.ints[0], 1))),
    )


def inside(s: Scope, buffer: Buffer, depth: int) -> tuple[Expr, ...]:
    """Scalar indices inside of the buffer."""
    out = []
    for dim in buffer.shape:
        extent = Const(dim, i64) if isinstance(dim, int) else Size(dim)
        out.append(Binary(BinaryOp.FLOORMOD, index(s, depth), extent))
    return tuple(out)


def vector_inside(s: Scope, buffer: Buffer, depth: int) -> tuple[Expr, ...]:
    """Indices whose last one is a ramp or a gather."""
    *prefix, _ = inside(s, buffer, depth)
    dim = buffer.shape[-1]
    extent = Const(dim, i64) if isinstance(dim, int) else Size(dim)
    if isinstance(dim, int) and s.pick(True, False):
        base = Binary(BinaryOp.FLOORMOD, index(s, depth), Const(dim - LANES + 1, i64))
        return (*prefix, Ramp(base, LANES))
    lanes = s.pick(Ramp(index(s, depth), LANES), wide(index(s, depth)))
    return (*prefix, Binary(BinaryOp.FLOORMOD, lanes, wide(extent)))


def condition(s: Scope, depth: int) -> Expr:
    """A bool scalar."""
    a = Binary(s.pick(*COMPARE), index(s, depth), index(s, depth))
    if depth == 0 or s.pick(0, 1) == 0:
        return a
    b = condition(s, depth - 1)
    return s.pick(
        Binary(BinaryOp.AND, a, b), Binary(BinaryOp.OR, a, b), Unary(UnaryOp.NOT, a), Const(True, bool_)
    )


def mask(s: Scope, depth: int) -> Expr:
    """A bool vector."""
    a = Binary(s.pick(*COMPARE), Ramp(index(s, depth), LANES), wide(index(s, depth)))
    return s.pick(a, Unary(UnaryOp.NOT, a), lambda: wide(condition(s, depth)), Binary(BinaryOp.OR, a, a))


def real(s: Scope, depth: int) -> Expr:
    """An f32 scalar."""
    if depth == 0:
        constant = Const(s.pick(0.0, -0.0, 1.0, 0.125, -2.5, float("inf")), f32)
        buffer = s.pick(*s.floats)
        return s.pick(constant, Load(buffer, inside(s, buffer, 1)))
    a, b = real(s, depth - 1), real(s, 0)
    buffer = s.pick(*s.floats)
    return s.pick(
        lambda: Binary(s.pick(BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.DIV, BinaryOp.MAX), a, b),
        lambda: Unary(s.pick(UnaryOp.NEG, UnaryOp.EXP, UnaryOp.TANH, UnaryOp.ABS, UnaryOp.SIGMOID), a),
        lambda: Select(condition(s, 1), a, b),
        lambda: Cast(f32, index(s, 1)),
        lambda: Cast(f32, Load(s.halves[0], inside(s, s.halves[0], 1))),
        lambda: Cast(f32, Cast(bf16, a)),
        lambda: Load(buffer, inside(s, buffer, 1), condition(s, 1)),
        lambda: Reduce(s.pick(*ReduceOp), vector(s, depth - 1)),
        lambda: Intrinsic("fma", (a, b, a), f32, 1),
    )


def vector(s: Scope, depth: int) -> Expr:
    """An f32 vector."""
    buffer = s.pick(*s.floats)
    loaded = Load(buffer, vector_inside(s, buffer, 1), s.pick(None, lambda: mask(s, 1)))
    if depth == 0:
        return s.pick(loaded, wide(real(s, 0)), *s.vectors)
    a, b = vector(s, depth - 1), vector(s, 0)
    return s.pick(
        lambda: loaded,
        lambda: wide(real(s, depth - 1)),
        lambda: Binary(s.pick(BinaryOp.ADD, BinaryOp.MUL, BinaryOp.MIN), a, b),
        lambda: Unary(UnaryOp.EXP, a),
        lambda: Select(mask(s, 1), a, b),
        lambda: Cast(f32, Ramp(index(s, 1), LANES)),
        lambda: Intrinsic("fma", (a, b, a), f32, LANES),
    )


def statement(s: Scope, depth: int) -> Stmt:
    """Any statement."""
    if depth == 0:
        return stored(s)
    makers = [stored, loop, loop, let, branch, alloc, sequence]
    if not s.in_block and s.loops:
        makers += [block, block]
    return s.pick(*makers)(s, depth)


def stored(s: Scope, depth: int = 0) -> Stmt:
    buffer = s.pick(*s.targets)
    if s.pick(True, False):
        return Store(buffer, vector_inside(s, buffer, 1), vector(s, 1), s.pick(None, lambda: mask(s, 1)))
    return Store(buffer, inside(s, buffer, 2), real(s, 2), s.pick(None, lambda: condition(s, 1)))


def loop(s: Scope, depth: int) -> Stmt:
    kind = s.pick(*PLAIN_KINDS, *PLAIN_KINDS, *(k for k in ForKind if k in BOUND_KINDS - s.bound))
    extent = Const(s.pick(1, 2, 3), i64)
    if kind not in (ForKind.UNROLL, ForKind.VECTORIZE):
        # Extents as tiling makes them; never more than a few iterations.
        outer = s.indices[-1] if s.indices else Const(1, i64)
        extent = s.pick(
            extent,
            Binary(BinaryOp.FLOORDIV, Binary(BinaryOp.ADD, Size(N), Const(3, i64)), Const(4, i64)),
            Binary(BinaryOp.MIN, Const(3, i64), Binary(BinaryOp.SUB, Size(N), outer)),
            Binary(BinaryOp.FLOORDIV, Size(M), Const(4, i64)),
        )
    var = Var(s.pick("i", "j", "k"))
    inner = s.inner(indices=[*s.indices, var], loops=[*s.loops, (var, extent)])
    inner.bound = s.bound | ({kind} & BOUND_KINDS)
    return For(var, extent, kind, statement(inner, depth - 1), notes(s))


def let(s: Scope, depth: int) -> Stmt:
    if s.pick(True, False):
        var = Var(s.pick("q", "i"))
        return Let(var, index(s), statement(s.inner(indices=[*s.indices, var]), depth - 1))
    var = Var("vec", f32, LANES)
    return Let(var, vector(s, 1), statement(s.inner(vectors=[*s.vectors, var]), depth - 1))


def branch(s: Scope, depth: int) -> Stmt:
    orelse = s.pick(None, lambda: statement(s, depth - 1))
    return If(condition(s, 2), statement(s, depth - 1), orelse)


def alloc(s: Scope, depth: int) -> Stmt:
    buffer = Buffer(s.pick("acc", "tmp", "x"), (2, 8), f32, s.pick(*MemSpace))
    fill_i, fill_j = Var("i"), Var("j")
    fill = Store(buffer, (fill_i, fill_j), Const(0.5, f32))
    fill = For(fill_i, Const(2, i64), ForKind.SERIAL, For(fill_j, Const(8, i64), ForKind.UNROLL, fill))
    inner = s.inner(floats=[*s.floats, buffer], targets=[*s.targets, buffer])
    return Alloc(buffer, Seq((fill, statement(inner, depth - 1))))


def sequence(s: Scope, depth: int) -> Stmt:
    return Seq(tuple(statement(s, depth - 1) for _ in range(s.pick(0, 2, 3))))


def block(s: Scope, depth: int) -> Stmt:
    axes = []
    for var, extent in s.loops[-3:]:
        kind = s.pick(*AxisKind)
        axes.append(BlockAxis(Var(s.pick("m", "i", "r")), kind, extent, var))
    inner = s.inner(indices=[a.var for a in axes], vectors=[], loops=[], in_block=True)
    init = s.pick(None, lambda: stored(inner))
    predicate = s.pick(None, lambda: condition(s, 1))
    return Block(s.pick("b", "c"), tuple(axes), statement(inner, depth - 1), init, predicate, notes(s))


def notes(s: Scope) -> Notes:
    return s.pick((), (), (("grain", 2),), (("why", "fits the cache"), ("depth", -3)))


def function(seed: int) -> Func:
    """A function of three inputs and two outputs over dims n and m."""
    random = Random(seed)
    x = Buffer("x", (N, 6), f32)
    w = Buffer("w", (8,), bf16)
    t = Buffer("t", (5,), i32)
    y, z = Buffer("y", (M, 8), f32), Buffer("y", (N,), f32)
    scope = Scope(random, [x, y, z], [t], [w], [y, z])
    body = Seq(tuple(statement(scope, random.randint(1, 5)) for _ in range(random.randint(1, 2))))
    return Func("random", (x, w, t, y, z), body, 2)


def arrays(seed: int) -> list[np.ndarray]:
    """Arguments for a function of :func:`functions`."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 10)), 4 * int(rng.integers(1, 3))
    return [
        rng.standard_normal((n, 6)).astype(np.float32),
        rng.standard_normal(8).astype("bfloat16"),
        rng.integers(-9, 30, 5).astype(np.int32),
        rng.standard_normal((m, 8)).astype(np.float32),
        rng.standard_normal(n).astype(np.float32),
    ]
