"""Conversions between dtypes.

Floats round to nearest even; float to int truncates, saturates and maps NaN to 0 (``loop.values.convert``).
No conversion ends in a library call: bf16 is integer arithmetic where the CPU has no instruction for it,
and so is f16 without F16C.
"""

from __future__ import annotations

from strata.core.dtypes import DType, Kind, bf16, bool_, f16, f32, f64, i32
from strata.loop.values import int_range
from strata.target import Target

from .emit_values import Builder, Value, constant, splat
from .types import mangled, ssa_type, vector_type


def cast(b: Builder, target: Target, x: Value, to: DType) -> Value:
    """``x`` converted to the dtype ``to``."""
    if to == bool_:
        return _to_bool(b, target, x)
    if x.dtype.is_float:
        return _float_to_float(b, target, x, to) if to.is_float else _float_to_int(b, target, x, to)
    if to.is_float:
        return _int_to_float(b, target, x, to)
    return _int_to_int(b, x, to)


def _plain(b: Builder, code: str, x: Value, to: DType) -> Value:
    lo, hi = (x.lo, x.hi) if to.is_int and to.bits > x.dtype.bits else (None, None)
    source, result = ssa_type(x.dtype, x.lanes), ssa_type(to, x.lanes)
    return b.pure(to, x.lanes, f"{code} {source} {{}} to {result}", x, lo=lo, hi=hi)


def _to_bool(b: Builder, target: Target, x: Value) -> Value:
    if x.dtype in (f16, bf16):
        x = cast(b, target, x, f32)
    zero = splat(constant(0.0 if x.dtype.is_float else 0, x.dtype), x.lanes)
    code = "fcmp une" if x.dtype.is_float else "icmp ne"
    return b.pure(bool_, x.lanes, f"{code} {ssa_type(x.dtype, x.lanes)} {{}}, {{}}", x, zero)


def _int_to_int(b: Builder, x: Value, to: DType) -> Value:
    if x.dtype == bool_:
        x = Value(bool_, x.lanes, b.use(x), x.level, None, 0, 1)
        return _plain(b, "zext", x, to)
    if to.bits == x.dtype.bits:
        return b.opaque(to, x.lanes, b.use(x), x.level)  # signed <-> unsigned: the same bits
    if to.bits < x.dtype.bits:
        return _plain(b, "trunc", x, to)
    signed = x.dtype.kind is Kind.INT
    if signed and x.lo is not None and x.lo >= 0:
        signed = False
    return _plain(b, "sext" if signed else "zext", x, to)


def _int_to_float(b: Builder, target: Target, x: Value, to: DType) -> Value:
    code = "sitofp" if x.dtype.kind is Kind.INT else "uitofp"
    wide = f64 if to == f64 else f32
    return _float_to_float(b, target, _plain(b, code, x, wide), to)


def _float_to_int(b: Builder, target: Target, x: Value, to: DType) -> Value:
    if x.dtype in (f16, bf16):
        x = _float_to_float(b, target, x, f32)
    if target.arch == "x86_64" and x.lanes > 1 and (to.bits < 32 or to == i32):
        return _clamped_float_to_int(b, x, to)
    source, result = ssa_type(x.dtype, x.lanes), ssa_type(to, x.lanes)
    name = f"llvm.fpto{'s' if to.kind is Kind.INT else 'u'}i.sat.{mangled(result)}.{mangled(source)}"
    text, level = b.call(name, result, [(source, x)])
    return b.opaque(to, x.lanes, text, level)


def _clamped_float_to_int(b: Builder, x: Value, to: DType) -> Value:
    """What the ``.sat`` intrinsic does, for vectors: x86 has no such instruction, LLVM takes lanes apart."""
    kind, bit, lanes = ssa_type(x.dtype, x.lanes), vector_type("i1", x.lanes), x.lanes
    low, high = (splat(constant(float(bound), x.dtype), lanes) for bound in int_range(to))
    zero = splat(constant(0.0, x.dtype), lanes)

    def test(order: str, y: Value, z: Value) -> Value:
        return b.pure(bool_, lanes, f"fcmp {order} {kind} {{}}, {{}}", y, z)

    def pick(cond: Value, y: Value, z: Value) -> Value:
        return b.pure(x.dtype, lanes, f"select {bit} {{}}, {kind} {{}}, {kind} {{}}", cond, y, z)

    if to != i32:
        number = pick(test("ord", x, x), x, zero)
        above = pick(test("ogt", number, low), number, low)
        whole = _plain(b, "fptosi", pick(test("olt", above, high), above, high), i32)
        return _plain(b, "trunc", whole, to)
    top = splat(constant(2.0**31, x.dtype), lanes)  # the largest i32 is no f32
    number = pick(test("olt", x, top), x, zero)
    whole = _plain(b, "fptosi", pick(test("ogt", number, low), number, low), i32)
    ints, most = ssa_type(i32, lanes), splat(constant(2**31 - 1, i32), lanes)
    template = f"select {bit} {{}}, {ints} {{}}, {ints} {{}}"
    return b.pure(i32, lanes, template, test("oge", x, top), most, whole)


def _float_to_float(b: Builder, target: Target, x: Value, to: DType) -> Value:
    if x.dtype == to:
        return x
    if x.dtype == bf16:
        return _float_to_float(b, target, _bf16_to_f32(b, x), to)
    if x.dtype == f16:
        single = _plain(b, "fpext", x, f32) if target.has_f16_conversion else _f16_to_f32(b, x)
        return _float_to_float(b, target, single, to)
    if to == f64:
        return _plain(b, "fpext", x, f64)
    if to == f32:
        return _plain(b, "fptrunc", x, f32)
    if x.dtype == f64:
        x = _round_to_odd(b, x) if to == f16 else _plain(b, "fptrunc", x, f32)
    if to == bf16:
        return _f32_to_bf16(b, target, x)
    return _plain(b, "fptrunc", x, f16) if target.has_f16_conversion else _f32_to_f16(b, x)


# --------------------------------------------------------------------------- bit patterns


class Bits:
    """Integer arithmetic on the bit patterns of f32 lanes."""

    def __init__(self, b: Builder, lanes: int) -> None:
        self.b = b
        self.lanes = lanes
        self.int = vector_type("i32", lanes)
        self.float = ssa_type(f32, lanes)
        self.bit = vector_type("i1", lanes)

    def const(self, value: int) -> Value:
        """A 32-bit constant (unsigned patterns allowed)."""
        return splat(constant(value if value < 1 << 31 else value - (1 << 32), i32), self.lanes)

    def of(self, x: Value) -> Value:
        """Bit pattern of f32 lanes."""
        return self.b.pure(i32, self.lanes, f"bitcast {self.float} {{}} to {self.int}", x)

    def value(self, x: Value) -> Value:
        """f32 lanes with the bit pattern ``x``."""
        return self.b.pure(f32, self.lanes, f"bitcast {self.int} {{}} to {self.float}", x)

    def op(self, code: str, x: Value, y: Value | int) -> Value:
        """``add``, ``and``, ``lshr``, … of bit patterns."""
        right = self.const(y) if isinstance(y, int) else y
        return self.b.pure(i32, self.lanes, f"{code} {self.int} {{}}, {{}}", x, right)

    def test(self, predicate: str, x: Value, y: int) -> Value:
        """An integer comparison with a constant."""
        return self.b.pure(bool_, self.lanes, f"icmp {predicate} {self.int} {{}}, {{}}", x, self.const(y))

    def select(self, cond: Value, x: Value, y: Value) -> Value:
        """``x`` where ``cond`` else ``y``."""
        template = f"select {self.bit} {{}}, {self.int} {{}}, {self.int} {{}}"
        return self.b.pure(i32, self.lanes, template, cond, x, y)

    def widen(self, x: Value, kind: str) -> Value:
        """16-bit lanes of LLVM element type ``kind`` as 32-bit patterns."""
        source = vector_type(kind, self.lanes)
        if kind == "half":
            short = vector_type("i16", self.lanes)
            x = self.b.pure(bf16, self.lanes, f"bitcast {source} {{}} to {short}", x)
            source = short
        return self.b.pure(i32, self.lanes, f"zext {source} {{}} to {self.int}", x)

    def narrow(self, x: Value, dtype: DType) -> Value:
        """The low halves as bf16 or f16 lanes."""
        short = vector_type("i16", self.lanes)
        low = self.b.pure(bf16, self.lanes, f"trunc {self.int} {{}} to {short}", x)
        if dtype == bf16:
            return low
        return self.b.pure(f16, self.lanes, f"bitcast {short} {{}} to {vector_type('half', self.lanes)}", low)


def _bf16_to_f32(b: Builder, x: Value) -> Value:
    bits = Bits(b, x.lanes)
    return bits.value(bits.op("shl", bits.widen(x, "i16"), 16))


def bf16_splat_as_f32(b: Builder, x: Value, lanes: int) -> Value:
    """A bf16 scalar as f32 in every lane: broadcast it to both halves of a lane, shift one out."""
    double, whole = f"<{2 * lanes} x i16>", f"<{lanes} x i32>"
    one = b.pure(bf16, 2 * lanes, f"insertelement {double} poison, i16 {{}}, i64 0", x)
    zeros = f"<{2 * lanes} x i32> zeroinitializer"
    wide = b.pure(bf16, 2 * lanes, f"shufflevector {double} {{}}, {double} poison, {zeros}", one)
    bits = Bits(b, lanes)
    return bits.value(bits.op("shl", b.pure(i32, lanes, f"bitcast {double} {{}} to {whole}", wide), 16))


def _f32_to_bf16(b: Builder, target: Target, x: Value) -> Value:
    if target.has_bf16_conversion and x.lanes % 4 == 0:
        # vcvtneps2bf16 rounds to nearest even, keeps NaNs, and takes f32 subnormals as 0; bfcvtn keeps these.
        native = vector_type("bfloat", x.lanes)
        short = b.pure(bf16, x.lanes, f"fptrunc {ssa_type(f32, x.lanes)} {{}} to {native}", x)
        return b.pure(bf16, x.lanes, f"bitcast {native} {{}} to {ssa_type(bf16, x.lanes)}", short)
    bits = Bits(b, x.lanes)
    pattern = bits.of(x)
    odd = bits.op("and", bits.op("lshr", pattern, 16), 1)
    rounded = bits.op("lshr", bits.op("add", bits.op("add", pattern, odd), 0x7FFF), 16)
    nan = b.pure(bool_, x.lanes, f"fcmp uno {bits.float} {{}}, {{}}", x, x)
    quiet = bits.op("or", bits.op("lshr", pattern, 16), 0x40)
    return bits.narrow(bits.select(nan, quiet, rounded), bf16)


def _f16_to_f32(b: Builder, x: Value) -> Value:
    """Without F16C: shift exponent and mantissa in place, scale by 2**112 (exact, also for subnormals)."""
    bits = Bits(b, x.lanes)
    wide = bits.widen(x, "half")
    magnitude = bits.op("and", wide, 0x7FFF)
    moved = bits.value(bits.op("shl", magnitude, 13))
    factor = splat(constant(2.0**112, f32), x.lanes)
    scaled = bits.of(b.pure(f32, x.lanes, f"fmul {bits.float} {{}}, {{}}", moved, factor))
    special = bits.op("or", bits.of(moved), 0x7F800000)
    finite = bits.test("ult", magnitude, 0x7C00)
    sign = bits.op("shl", bits.op("and", wide, 0x8000), 16)
    return bits.value(bits.op("or", bits.select(finite, scaled, special), sign))


def _f32_to_f16(b: Builder, x: Value) -> Value:
    """Without F16C: round to nearest even on the bit pattern.

    Subnormal results come from adding 0.5, whose last bit weighs one f16 subnormal: the FPU rounds.
    """
    bits = Bits(b, x.lanes)
    pattern = bits.of(x)
    sign = bits.op("lshr", bits.op("and", pattern, 0x80000000), 16)
    magnitude = bits.op("and", pattern, 0x7FFFFFFF)
    half = splat(constant(0.5, f32), x.lanes)
    shifted = b.pure(f32, x.lanes, f"fadd {bits.float} {{}}, {{}}", bits.value(magnitude), half)
    small = bits.op("sub", bits.of(shifted), 0x3F000000)
    odd = bits.op("and", bits.op("lshr", magnitude, 13), 1)
    rebased = bits.op(
        "add", magnitude, 0xC8000FFF
    )  # exponent bias 127 -> 15, and just below half of the last bit
    normal = bits.op("lshr", bits.op("add", rebased, odd), 13)
    finite = bits.select(bits.test("ult", magnitude, 113 << 23), small, normal)
    special = bits.select(bits.test("ugt", magnitude, 0x7F800000), bits.const(0x7E00), bits.const(0x7C00))
    out = bits.select(bits.test("uge", magnitude, 143 << 23), special, finite)
    return bits.narrow(bits.op("or", out, sign), f16)


def _round_to_odd(b: Builder, x: Value) -> Value:
    """f64 -> f32 such that a second rounding to f16 is correct: inexact results get an odd last bit."""
    near = _plain(b, "fptrunc", x, f32)
    back = _plain(b, "fpext", near, f64)
    bits, wide, lanes = Bits(b, x.lanes), ssa_type(f64, x.lanes), x.lanes
    b.declare(f"llvm.fabs.{mangled(wide)}", wide, (wide,))
    size = [b.pure(f64, lanes, f"call {wide} @llvm.fabs.{mangled(wide)}({wide} {{}})", v) for v in (back, x)]
    above = b.pure(bool_, lanes, f"fcmp ogt {wide} {{}}, {{}}", *size)
    inexact = b.pure(bool_, lanes, f"fcmp one {wide} {{}}, {{}}", back, x)
    pattern = bits.of(near)
    truncated = bits.select(above, bits.op("sub", pattern, 1), pattern)
    return bits.value(bits.select(inexact, bits.op("or", truncated, 1), pattern))
