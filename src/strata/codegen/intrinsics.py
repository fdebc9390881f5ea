"""Hardware operations by name (``loop.Intrinsic``): which there are and what they become.

============== =============================================== ==========================================
name           arguments                                       result, lane ``l``
============== =============================================== ==========================================
``fma``        ``a, b, c: f32|f64 [L]``                        ``a[l]*b[l] + c[l]``
``dot2_bf16``  ``acc: f32 [L]``, ``a, b: bf16 [2L]``           ``acc[l] + a[2l]*b[2l] + a[2l+1]*b[2l+1]``
============== =============================================== ==========================================

``a`` of ``dot2_bf16`` may have 2 lanes: one pair for all.
It is ``vdpbf16ps`` where the CPU has it (subnormals count as 0); elsewhere two f32
multiply-adds, the odd elements first, as the instruction does. Without FMA both round the product too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.core.dtypes import DType, bf16, f32, f64, i32
from strata.core.errors import CodegenError
from strata.loop.nodes import Intrinsic

from .emit_cast import Bits
from .emit_values import Builder, Value
from .math_core import FloatOps
from .types import scalar_type, ssa_type, vector_type

if TYPE_CHECKING:
    from .emit_expr import ExprEmitter


def emit_intrinsic(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    """Emit an intrinsic call.

    Raises:
        CodegenError: no such intrinsic, or arguments of other dtypes or lanes than it takes.
    """
    found = EMITTERS.get(node.name)
    if found is None:
        raise CodegenError(
            f"{emitter.where}: no intrinsic {node.name!r}; known: {', '.join(sorted(EMITTERS))}"
        )
    return found(emitter, node, args)


def _check(emitter: ExprEmitter, node: Intrinsic, args: list[Value], *expected: tuple[DType, int]) -> None:
    got = [(a.dtype, a.lanes) for a in args]
    if got != list(expected):
        texts = [", ".join(f"{d}[{n}]" for d, n in kinds) for kinds in (got, expected)]
        raise CodegenError(f"{emitter.where}: {node.name}: got ({texts[0]}); expected ({texts[1]})")


def _fma(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    dtype = node.dtype if node.dtype in (f32, f64) else f32
    _check(emitter, node, args, *[(dtype, node.lanes)] * 3)
    return FloatOps(emitter.b, emitter.target, dtype, node.lanes).fma(*args)


def _dot2_bf16(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    if len(args) == 3 and args[1].lanes == 2 < 2 * node.lanes:
        args = [args[0], _repeat(emitter.b, args[1], 2 * node.lanes), args[2]]
    _check(emitter, node, args, (f32, node.lanes), *[(bf16, 2 * node.lanes)] * 2)
    native = next((n for n in (16, 8, 4) if node.lanes % n == 0 and node.lanes >= n), 0)
    if not emitter.target.has_bf16_dot or not native:
        return _dot2_expanded(emitter, args, node.lanes)
    parts = [
        _dot2_native(
            emitter.b,
            *(_slice(emitter.b, a, k * native * w, native * w) for a, w in zip(args, (1, 2, 2), strict=True)),
        )
        for k in range(node.lanes // native)
    ]
    while len(parts) > 1:
        parts = [
            _join(emitter.b, parts[i], parts[i + 1]) if i + 1 < len(parts) else parts[i]
            for i in range(0, len(parts), 2)
        ]
    return parts[0]


def _dot2_native(b: Builder, acc: Value, x: Value, y: Value) -> Value:
    sums, pairs = ssa_type(f32, acc.lanes), vector_type("bfloat", 2 * acc.lanes)
    short = ssa_type(bf16, 2 * acc.lanes)
    x, y = (b.pure(bf16, 2 * acc.lanes, f"bitcast {short} {{}} to {pairs}", v) for v in (x, y))
    symbol = f"llvm.x86.avx512bf16.dpbf16ps.{acc.lanes * 32}"
    text, level = b.call(symbol, sums, [(sums, acc), (pairs, x), (pairs, y)])
    return b.opaque(f32, acc.lanes, text, level)


def _repeat(b: Builder, pair: Value, lanes: int) -> Value:
    """The two lanes of ``pair``, over and over: one 32-bit broadcast."""
    kind = ssa_type(pair.dtype, 2)
    picks = ", ".join(f"i32 {lane % 2}" for lane in range(lanes))
    return b.pure(
        pair.dtype, lanes, f"shufflevector {kind} {{}}, {kind} poison, <{lanes} x i32> <{picks}>", pair
    )


def _slice(b: Builder, x: Value, start: int, lanes: int) -> Value:
    if lanes == x.lanes:
        return x
    kind = ssa_type(x.dtype, x.lanes)
    picks = ", ".join(f"i32 {start + lane}" for lane in range(lanes))
    return b.pure(x.dtype, lanes, f"shufflevector {kind} {{}}, {kind} poison, <{lanes} x i32> <{picks}>", x)


def _join(b: Builder, x: Value, y: Value) -> Value:
    """Lanes of ``x``, then of ``y``; the shorter one is padded for the shuffle."""
    total, widest = x.lanes + y.lanes, max(x.lanes, y.lanes)
    element = scalar_type(x.dtype)
    padded = []
    for value in (x, y):
        picks = ", ".join(f"i32 {lane if lane < value.lanes else 0}" for lane in range(widest))
        kind = vector_type(element, value.lanes)
        code = f"shufflevector {kind} {{}}, {kind} poison, <{widest} x i32> <{picks}>"
        padded.append(value if value.lanes == widest else b.pure(x.dtype, widest, code, value))
    kind = vector_type(element, widest)
    order = [*range(x.lanes), *(widest + lane for lane in range(y.lanes))]
    picks = ", ".join(f"i32 {p}" for p in order)
    return b.pure(
        x.dtype, total, f"shufflevector {kind} {{}}, {kind} {{}}, <{total} x i32> <{picks}>", *padded
    )


def _dot2_expanded(emitter: ExprEmitter, args: list[Value], lanes: int) -> Value:
    """Even elements are the low halves of 32-bit pairs (shift left), odd ones the high halves (mask)."""
    b = emitter.b
    acc, x, y = args
    m, bits = FloatOps(b, emitter.target, f32, lanes), Bits(b, lanes)
    pairs = vector_type("i32", lanes)
    for part in ("odd", "even"):
        factors = []
        for value in (x, y):
            whole = b.pure(i32, lanes, f"bitcast {ssa_type(bf16, 2 * lanes)} {{}} to {pairs}", value)
            half = bits.op("and", whole, 0xFFFF0000) if part == "odd" else bits.op("shl", whole, 16)
            factors.append(bits.value(half))
        acc = m.fma(factors[0], factors[1], acc)
    return acc


EMITTERS: dict[str, Callable[[ExprEmitter, Intrinsic, list[Value]], Value]] = {
    "fma": _fma,
    "dot2_bf16": _dot2_bf16,
}
