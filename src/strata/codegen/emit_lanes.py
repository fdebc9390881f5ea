"""Vectors put together and taken apart: what operations on whole registers need around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from strata.core.dtypes import DType, i32

from .emit_values import Builder, Value
from .types import scalar_type, ssa_type, vector_type


def bitcast(b: Builder, x: Value, dtype: DType, lanes: int) -> Value:
    """The bits of ``x`` as ``lanes`` elements of ``dtype``."""
    return b.pure(dtype, lanes, f"bitcast {ssa_type(x.dtype, x.lanes)} {{}} to {ssa_type(dtype, lanes)}", x)


def repeat(b: Builder, group: Value, lanes: int) -> Value:
    """The lanes of ``group``, 32 bits together, over and over: one 32-bit broadcast."""
    if group.lanes == lanes:
        return group
    count = lanes // group.lanes
    whole, kind = bitcast(b, group, i32, 1), ssa_type(i32, count)
    one = b.pure(i32, count, f"insertelement {kind} poison, i32 {{}}, i64 0", whole)
    zeros = f"<{count} x i32> zeroinitializer"
    wide = b.pure(i32, count, f"shufflevector {kind} {{}}, {kind} poison, {zeros}", one)
    return bitcast(b, wide, group.dtype, lanes)


def part(b: Builder, x: Value, start: int, lanes: int) -> Value:
    """Lanes ``start .. start + lanes - 1`` of ``x``."""
    if lanes == x.lanes:
        return x
    kind = ssa_type(x.dtype, x.lanes)
    if lanes == 1:
        return b.pure(x.dtype, 1, f"extractelement {kind} {{}}, i64 {start}", x)
    picks = ", ".join(f"i32 {start + lane}" for lane in range(lanes))
    return b.pure(x.dtype, lanes, f"shufflevector {kind} {{}}, {kind} poison, <{lanes} x i32> <{picks}>", x)


def join(b: Builder, parts: Sequence[Value]) -> Value:
    """All lanes of the parts, one after the other."""
    values = list(parts)
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [_join_two(b, *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return values[0]


def _join_two(b: Builder, x: Value, y: Value) -> Value:
    total, widest = x.lanes + y.lanes, max(x.lanes, y.lanes, 2)
    kind = vector_type(scalar_type(x.dtype), widest)
    order = [*range(x.lanes), *(widest + lane for lane in range(y.lanes))]
    picks = ", ".join(f"i32 {p}" for p in order)
    code = f"shufflevector {kind} {{}}, {kind} {{}}, <{total} x i32> <{picks}>"
    return b.pure(x.dtype, total, code, *(_padded(b, v, widest) for v in (x, y)))


def _padded(b: Builder, x: Value, lanes: int) -> Value:
    """``x`` with lanes of no meaning behind it."""
    if x.lanes == lanes:
        return x
    kind = ssa_type(x.dtype, x.lanes)
    if x.lanes == 1:
        wide = ssa_type(x.dtype, lanes)
        return b.pure(x.dtype, lanes, f"insertelement {wide} poison, {kind} {{}}, i64 0", x)
    picks = ", ".join(f"i32 {lane if lane < x.lanes else 0}" for lane in range(lanes))
    code = f"shufflevector {kind} {{}}, {kind} poison, <{lanes} x i32> <{picks}>"
    return b.pure(x.dtype, lanes, code, x)


def in_registers(
    b: Builder,
    lanes: int,
    widths: Sequence[int],
    args: Sequence[tuple[Value, int]],
    emit: Callable[..., Value],
) -> Value:
    """An operation of ``lanes`` lanes as operations of whole registers.

    Args:
        b: Where instructions go.
        lanes: Lanes of the result.
        widths: Lanes of the result that one instruction makes, the widest first; what is left over is one
            more piece of fewer lanes.
        args: Operands, each with its lanes per lane of the result; an operand that has no more than these is
            one group, the same for all lanes.
        emit: The operation on one piece of each operand.
    """
    pieces, start = [], 0
    while start < lanes:
        width = next((w for w in widths if w <= lanes - start), lanes - start)
        operands = [
            repeat(b, x, each * width) if x.lanes == each < each * lanes
            else part(b, x, each * start, each * width)
            for x, each in args
        ]  # fmt: skip
        pieces.append(emit(*operands))
        start += width
    return join(b, pieces)
