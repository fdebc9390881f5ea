"""Hardware operations by name (``loop.Intrinsic``): what they become on each target.

What they mean is in :mod:`strata.loop.intrinsics`. Where a CPU has no instruction for one, it is expanded:

============== ========================================= =================================================
name           instruction                               expansion
============== ========================================= =================================================
``fma``        FMA                                       product and sum, each rounded
``dot2_bf16``  ``vdpbf16ps``, ``bfdot`` (where fast)     two f32 multiply-adds, the odd elements first
``dot4_u8i8``  ``vpdpbusd``, ``usdot``, ``sdot``         :mod:`.intrinsics_dot4`
``dot4_u4i8``  the same, ``vpmaddubsw``                  :mod:`.intrinsics_dot4`
``low4``       ``and``
``high4``      shift
``every4``                                               shift of 32 bits, narrowed
``every2``                                               shifts of 32 bits, or a mask
``zip_bf16``                                             two conversions, a shuffle
``exp2``,      ``vreduceps``, ``vscalefps`` around a     polynomial, exponent by integer addition
``exp2_bf16``  polynomial
``prefetch``   ``prefetcht1``, ``prfm pldl2keep``
``prefetch1``  ``prefetcht0``, ``prfm pldl1keep``
``evict``      ``clflushopt``, ``clflush``               nothing
============== ========================================= =================================================

``vdpbf16ps`` and ``bfdot`` take subnormals for 0; ``bfdot`` may round the sum of its two products to odd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.core.dtypes import bf16, f32, i8, i32, u8
from strata.core.errors import CodegenError, VerifyError
from strata.loop.intrinsics import MAX_EXP2, result_type
from strata.loop.nodes import Intrinsic

from . import emit_index as index
from .emit_cast import Bits, cast
from .emit_lanes import bitcast, in_registers, join
from .emit_values import Builder, Value, constant, splat
from .intrinsics_dot4 import dot4
from .math_core import FloatOps
from .types import ssa_type, vector_type

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
    try:
        result_type(node.name, [(a.dtype, a.lanes) for a in args])
    except VerifyError as error:
        raise CodegenError(f"{emitter.where}: {error}") from None
    return found(emitter, node, args)


def _fma(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    return FloatOps(emitter.b, emitter.target, node.dtype, node.lanes).fma(*args)


# ------------------------------------------------------------------------------------------ bf16 pairs


def _dot2_bf16(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    b, widths = emitter.b, emitter.target.register_lanes
    acc, x, y = args

    def emit(acc: Value, x: Value, y: Value) -> Value:
        if emitter.target.prefers_bf16_dot and acc.lanes in widths:
            return _dot2_native(emitter, acc, x, y)
        return _dot2_expanded(emitter, acc, x, y)

    return in_registers(b, node.lanes, widths, [(acc, 1), (x, 2), (y, 2)], emit)


def _dot2_native(emitter: ExprEmitter, acc: Value, x: Value, y: Value) -> Value:
    b, lanes = emitter.b, acc.lanes
    sums, pairs, short = ssa_type(f32, lanes), vector_type("bfloat", 2 * lanes), ssa_type(bf16, 2 * lanes)
    x, y = (b.pure(bf16, 2 * lanes, f"bitcast {short} {{}} to {pairs}", v) for v in (x, y))
    symbol = f"llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}"
    if emitter.target.arch == "aarch64":
        symbol = "llvm.aarch64.neon.bfdot.v4f32.v8bf16"
    text, level = b.call(symbol, sums, [(sums, acc), (pairs, x), (pairs, y)])
    return b.opaque(f32, lanes, text, level)


def _dot2_expanded(emitter: ExprEmitter, acc: Value, x: Value, y: Value) -> Value:
    """Even elements are the low halves of 32-bit pairs (shift left), odd ones the high halves (mask)."""
    b, lanes = emitter.b, acc.lanes
    m, bits = FloatOps(b, emitter.target, f32, lanes), Bits(b, lanes)
    for side in ("odd", "even"):
        factors = []
        for value in (x, y):
            whole = bitcast(b, value, i32, lanes)
            half = bits.op("and", whole, 0xFFFF0000) if side == "odd" else bits.op("shl", whole, 16)
            factors.append(bits.value(half))
        acc = m.fma(factors[0], factors[1], acc)
    return acc


def _every2(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    b, lanes, (x, j) = emitter.b, node.lanes, args
    bits = Bits(b, lanes)
    return bits.value(bits.op("shl", _shifted_down(b, bits, x, j, 16), 16))


# -------------------------------------------------------------------------------------------- nibbles


def _nibble(b: Builder, node: Intrinsic, code: str, operand: int, x: Value) -> Value:
    kind = ssa_type(x.dtype, x.lanes)
    right = splat(constant(operand, x.dtype), x.lanes)
    return b.pure(node.dtype, node.lanes, f"{code} {kind} {{}}, {{}}", x, right, lo=0, hi=15)


# ----------------------------------------------------------------------------------------------- bits

ROUNDING = 1.5 * 2**23  # an f32 of this size has no bits behind the point; its lowest 8 bits are zero


def _same_bits(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    return bitcast(emitter.b, args[0], node.dtype, node.lanes)


def _nearest8(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    """The sum is rounded to a whole number, which is in its lowest bits; no product may be fused with it."""
    b, lanes, (x,) = emitter.b, node.lanes, args
    kind = ssa_type(f32, lanes)
    total = b.pure(f32, lanes, f"fadd {kind} {{}}, {{}}", x, splat(constant(ROUNDING, f32), lanes))
    whole = f"trunc {ssa_type(i32, lanes)} {{}} to {ssa_type(i8, lanes)}"
    return b.pure(i8, lanes, whole, bitcast(b, total, i32, lanes))


# ------------------------------------------------------------------------------------------- shuffles


def _every4(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    b, lanes, (x, j) = emitter.b, node.lanes, args
    bits = Bits(b, lanes)
    shifted = _shifted_down(b, bits, x, j, 8)
    return b.pure(u8, lanes, f"trunc {bits.int} {{}} to {ssa_type(u8, lanes)}", shifted)


def _shifted_down(b: Builder, bits: Bits, x: Value, j: Value, width: int) -> Value:
    """Words of 32 bits without their lowest ``j`` parts of ``width`` bits."""
    distance = index.scale(b, j, width)
    if distance.const is None:
        distance = b.pure(i32, 1, "trunc i64 {} to i32", distance)
    else:
        distance = constant(int(distance.const), i32)
    return bits.op("lshr", bitcast(b, x, i32, bits.lanes), splat(distance, bits.lanes))


def _zip_bf16(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    b, lanes = emitter.b, node.lanes
    first, second = (cast(b, emitter.target, x, bf16) for x in args)
    if lanes == 2:
        return join(b, [first, second])
    kind = ssa_type(bf16, lanes // 2)
    picks = ", ".join(f"i32 {lane // 2 + lane % 2 * (lanes // 2)}" for lane in range(lanes))
    code = f"shufflevector {kind} {{}}, {kind} {{}}, <{lanes} x i32> <{picks}>"
    return b.pure(bf16, lanes, code, first, second)


# ------------------------------------------------------------------------------------------------ exp2

# Relative minimax of 2**r with constant term 1, the highest power first, by name of the intrinsic:
# for |r| <= 1/2 (errors 9.2e-8 and 1.02e-4) ...
EXP2_NEAREST = {
    "exp2": (
        0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253,
        0.6931470036506653, 1.0,
    ),
    "exp2_bf16": (0.055008931854115366, 0.24221095944159818, 0.6932829269434042, 1.0),
}  # fmt: skip
# ... and for 0 <= r < 1 (8.3e-8 and 8.6e-5).
EXP2_FLOOR = {
    "exp2": (
        0.001867155831326822, 0.00901696694442042, 0.05579996758814261, 0.24016443100597795,
        0.693151314142398, 1.0,
    ),
    "exp2_bf16": (0.0770670436424276, 0.22764498887290205, 0.6951167871524777, 1.0),
}  # fmt: skip


def _exp2(emitter: ExprEmitter, node: Intrinsic, args: list[Value]) -> Value:
    widths = emitter.target.register_lanes

    def emit(x: Value) -> Value:
        if emitter.target.has_scale_by_power and x.lanes in widths:
            return _exp2_scaled(emitter, node.name, x)
        return _exp2_expanded(emitter, node.name, x)

    return in_registers(emitter.b, node.lanes, widths, [(args[0], 1)], emit)


def _exp2_scaled(emitter: ExprEmitter, name: str, x: Value) -> Value:
    """``2**(n + r)``, n the floor: the polynomial of r, scaled by the power."""
    b, m = emitter.b, FloatOps(emitter.b, emitter.target, f32, x.lanes)
    mask, mode = ("i16", True) if x.lanes == 16 else ("i8", False)  # the widest take a rounding mode, too

    def masked(name: str, x: Value, kind: str, operand: str) -> Value:
        symbol = f"llvm.x86.avx512.mask.{name}.ps.{x.lanes * 32}"
        b.declare(symbol, m.kind, (m.kind, kind, m.kind, mask, *["i32"] * mode))
        args = f"{m.kind} {{}}, {kind} {operand}, {m.kind} poison, {mask} -1{', i32 4' * mode}"
        return b.pure(f32, x.lanes, f"call {m.kind} @{symbol}({args})", x)

    r = masked("reduce", x, "i32", "9")  # x - floor(x), without exceptions
    return masked("scalef", m.poly(r, EXP2_FLOOR[name]), m.kind, b.use(x))


def _exp2_expanded(emitter: ExprEmitter, name: str, x: Value) -> Value:
    """``2**(n + r)``: the polynomial of r, and n added to its exponent; at -127 and below all bits are 0."""
    m = FloatOps(emitter.b, emitter.target, f32, x.lanes)
    magic = 1.5 * 2.0**m.mantissa_bits  # adding it leaves n in the low bits of the pattern
    x = m.at_least(x, -MAX_EXP2)
    shifted = m.add(x, magic)
    r = m.sub(x, m.sub(shifted, magic))
    exponent = m.int_op("shl", m.bits(shifted), m.mantissa_bits)
    return m.from_bits(m.int_op("add", m.bits(m.poly(r, EXP2_NEAREST[name])), exponent))


EMITTERS: dict[str, Callable[[ExprEmitter, Intrinsic, list[Value]], Value]] = {
    "fma": _fma,
    "dot2_bf16": _dot2_bf16,
    "dot4_u8i8": lambda emitter, _, args: dot4(emitter.b, emitter.target, *args, is_u4=False),
    "dot4_u4i8": lambda emitter, _, args: dot4(emitter.b, emitter.target, *args, is_u4=True),
    "bits": _same_bits,
    "from_bits": _same_bits,
    "nearest8": _nearest8,
    "every4": _every4,
    "every2": _every2,
    "zip_bf16": _zip_bf16,
    "low4": lambda emitter, node, args: _nibble(emitter.b, node, "and", 15, *args),
    "exp2": _exp2,
    "exp2_bf16": _exp2,
    "high4": lambda emitter, node, args: _nibble(emitter.b, node, "lshr", 4, *args),
}
