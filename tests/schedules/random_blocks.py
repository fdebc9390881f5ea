"""Random functions that no lowering would make: blocks whose axes and indices overlap, carry values, repeat.

A step must refuse them or keep their meaning, whatever the kinds of the axes claim.
"""

from __future__ import annotations

from hypothesis import strategies as st
from random_stages import N

from strata.core.dims import Dim
from strata.core.dtypes import i32, i64
from strata.loop import build as b
from strata.loop.nodes import (
    AxisKind,
    Block,
    BlockAxis,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Let,
    Load,
    Stmt,
    Store,
    Var,
    seq,
    size,
)

EXTENT = 6


def _index(draw: st.DrawFn, variables: list[Var]) -> Expr:
    """An index expression of few variables; it may be injective, overlap, or lose information."""
    a, c = draw(st.sampled_from(variables)), draw(st.sampled_from(variables))
    k = draw(st.integers(1, 4))
    makers = (
        lambda: a,
        lambda: a,
        lambda: b.add(a, draw(st.integers(0, 2))),
        lambda: b.add(a, c),
        lambda: b.add(b.mul(a, k), c),
        lambda: b.floordiv(a, k),
        lambda: b.floormod(a, k),
        lambda: b.minimum(a, k),
        lambda: b.sub(size(N), a),
        lambda: b.const(k, i64),
    )
    return draw(st.sampled_from(makers))()


def _inside(draw: st.DrawFn, buffer: Buffer, variables: list[Var]) -> tuple[Expr, ...]:
    return tuple(_position(draw, dim, variables) for dim in buffer.shape)


def _position(draw: st.DrawFn, dim: Dim, variables: list[Var]) -> Expr:
    """Mostly a variable as it is (clamped to the dim), the way real code indexes."""
    if draw(st.integers(0, 3)) == 0:
        return b.floormod(_index(draw, variables), size(dim))
    return b.minimum(draw(st.sampled_from(variables)), b.sub(size(dim), 1))


def _value(draw: st.DrawFn, buffers: list[Buffer], variables: list[Var]) -> Expr:
    buffer = draw(st.sampled_from(buffers))
    loaded = Load(buffer, _inside(draw, buffer, variables))
    if draw(st.booleans()):
        return b.add(loaded, b.cast(i32, draw(st.sampled_from(variables))))
    return b.add(b.mul(loaded, 3), 1)


def _store(draw: st.DrawFn, outputs: list[Buffer], inputs: list[Buffer], variables: list[Var]) -> Stmt:
    buffer = draw(st.sampled_from(outputs))
    place = _inside(draw, buffer, variables)
    value = _value(draw, [*inputs, *inputs, *outputs], variables)
    if draw(st.booleans()):
        value = draw(st.sampled_from([b.add, b.maximum, b.mul]))(Load(buffer, place), value)
    return Store(buffer, place, value)


def _block(draw: st.DrawFn, name: str, outputs: list[Buffer], inputs: list[Buffer], loops: list[Var]) -> Stmt:
    axes = []
    for number in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from([AxisKind.SPATIAL, AxisKind.SPATIAL, AxisKind.REDUCTION]))
        value = draw(st.sampled_from(loops)) if draw(st.integers(0, 2)) else _index(draw, loops)
        axes.append(BlockAxis(Var(f"a{number}"), kind, b.const(99, i64), b.maximum(value, 0)))
    variables = [a.var for a in axes]
    body = _store(draw, outputs, inputs, variables)
    if draw(st.integers(0, 3)) == 0:
        body = seq(body, _store(draw, outputs, inputs, variables))
    if draw(st.integers(0, 5)) == 0:
        body = If(b.lt(draw(st.sampled_from(variables)), 2), body)
    init = None
    if isinstance(body, Store) and draw(st.booleans()):
        init = Store(body.buffer, body.indices, b.const(7, i32))
    predicate = b.lt(draw(st.sampled_from(loops)), 3) if draw(st.integers(0, 4)) == 0 else None
    return Block(name, tuple(axes), body, init, predicate)


@st.composite
def functions(draw: st.DrawFn) -> Func:
    """One or two nests of up to three loops around one or two blocks or bare stores."""
    x = Buffer("x", (N, EXTENT), i32)
    y, z = Buffer("y", (N, EXTENT), i32), Buffer("z", (EXTENT,), i32)
    nests: list[Stmt] = []
    for nest in range(draw(st.integers(1, 2))):
        loops = [Var(f"{'ij'[nest]}{k}") for k in range(draw(st.integers(1, 3)))]
        parts: list[Stmt] = []
        for part in range(draw(st.sampled_from([1, 1, 2]))):
            if draw(st.integers(0, 4)):
                parts.append(_block(draw, f"b{nest}{part}", [y, z], [x], loops))
            else:
                parts.append(_store(draw, [y, z], [x], loops))
        body = seq(*parts)
        if draw(st.integers(0, 5)) == 0:
            late = Var("t")
            more = _store(draw, [y, z], [x], [late, *loops])
            body = Let(late, b.minimum(_index(draw, loops), 2), seq(body, more))
        for var in reversed(loops):
            extent = draw(st.sampled_from([Const(2, i64), Const(3, i64), Const(5, i64), size(N)]))
            body = For(var, extent, ForKind.SERIAL, body)
        nests.append(body)
    return Func("f", (x, y, z), seq(*nests), 2)
