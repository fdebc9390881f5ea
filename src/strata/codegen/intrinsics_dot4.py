"""``acc[l] + sum(a[4l+j] * b[4l+j], j < 4)`` of u8 ``a`` and i8 ``b``, exact in i32, on every target.

===================== ========================================= =========================================
instruction set       ``dot4_u8i8``                             ``dot4_u4i8`` (``a <= 15``)
===================== ========================================= =========================================
x86 VNNI              ``vpdpbusd``                              ``vpdpbusd``
x86 SSSE3 and up      like SSE2, in wider registers             ``pmaddubsw``, ``pmaddwd`` with ones
x86 SSE2              even and odd bytes as i16, two            like ``dot4_u8i8``
                      ``pmaddwd``
AArch64 i8mm          ``usdot``                                 ``sdot``
AArch64 dotprod       ``sdot`` of ``a - 128``, and of 128       ``sdot``
AArch64 NEON          products of even and odd bytes in i16     one sum of both products in i16
                      (exact: ``255 * -128``), two ``sadalp``   (``2 * 15 * -128``), one ``sadalp``
anything else         bytes as i32, four products
===================== ========================================= =========================================

``pmaddubsw`` saturates at 16 bits, which sums of two products reach where ``a`` is large: 4-bit values only.
"""

from __future__ import annotations

from strata.core.dtypes import i8, i16, i32, u8
from strata.target import Target

from .emit_lanes import bitcast, in_registers
from .emit_values import Builder, Value, constant, splat
from .types import ssa_type

_PMADDWD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
_PMADDUBSW = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}


def dot4(b: Builder, target: Target, acc: Value, x: Value, y: Value, *, is_u4: bool) -> Value:
    """The dot product of groups of four.

    Args:
        b: Where instructions go.
        target: What instructions there are.
        acc: i32, L lanes.
        x: u8, 4L lanes.
        y: i8, 4L or 4 lanes.
        is_u4: No element of ``x`` is larger than 15.
    """
    widths = target.register_lanes

    def emit(acc: Value, x: Value, y: Value) -> Value:
        if acc.lanes not in widths:
            return _plain(b, acc, x, y)
        match target.arch:
            case "x86_64":
                return _x86(b, target, acc, x, y, is_u4)
            case "aarch64":
                return _aarch64(b, target, acc, x, y, is_u4)
            case _:
                return _plain(b, acc, x, y)

    return in_registers(b, acc.lanes, widths, [(acc, 1), (x, 4), (y, 4)], emit)


def _x86(b: Builder, target: Target, acc: Value, x: Value, y: Value, is_u4: bool) -> Value:
    lanes = acc.lanes
    if target.has("avx512vnni") or (target.has("avxvnni") and lanes <= 8):
        return _call(b, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc, x, y)
    multiply_add = f"llvm.x86.{_PMADDWD[lanes]}"
    if is_u4 and target.has("ssse3"):
        pairs = _call(b, f"llvm.x86.{_PMADDUBSW[lanes]}", x, y, result=(2 * lanes))
        ones = splat(constant(1, i16), 2 * lanes)
        return _op(b, "add", acc, _call(b, multiply_add, pairs, ones, result=lanes))
    for p, q in zip(_even_odd(b, x), _even_odd(b, y), strict=True):
        acc = _op(b, "add", acc, _call(b, multiply_add, p, q, result=lanes))
    return acc


def _aarch64(b: Builder, target: Target, acc: Value, x: Value, y: Value, is_u4: bool) -> Value:
    dot = "llvm.aarch64.neon.{}.v4i32.v16i8"
    if is_u4 and target.has("dotprod"):
        return _call(b, dot.format("sdot"), acc, x, y)
    if target.has("i8mm"):
        return _call(b, dot.format("usdot"), acc, x, y)
    if target.has("dotprod"):
        # a*b = (a - 128)*b + 128*b; -128 is the factor that an i8 can hold.
        zero, factor = splat(constant(0, i32), 4), splat(constant(-128, i8), 16)
        shift = _call(b, dot.format("sdot"), zero, y, factor)
        signed = _op(b, "xor", x, splat(constant(128, u8), 16))
        return _call(b, dot.format("sdot"), _op(b, "sub", acc, shift), signed, y)
    products = [_op(b, "mul", p, q) for p, q in zip(_even_odd(b, x), _even_odd(b, y), strict=True)]
    if is_u4:
        products = [_op(b, "add", *products)]
    for pairs in products:
        acc = _op(b, "add", acc, _call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs, result=4))
    return acc


def _plain(b: Builder, acc: Value, x: Value, y: Value) -> Value:
    lanes = acc.lanes
    whole = [bitcast(b, v, i32, lanes) for v in (x, y)]
    for byte in range(4):
        up, down = (splat(constant(s, i32), lanes) for s in (24 - 8 * byte, 24))
        p, q = (_op(b, "shl", v, up) for v in whole)
        product = _op(b, "mul", _op(b, "lshr", p, down), _op(b, "ashr", q, down))
        acc = _op(b, "add", acc, product)
    return acc


def _even_odd(b: Builder, x: Value) -> tuple[Value, Value]:
    """Bytes 0, 2, 4, … and 1, 3, 5, … as i16."""
    pairs = bitcast(b, x, i16, x.lanes // 2)
    eight = splat(constant(8, i16), pairs.lanes)
    if x.dtype == u8:
        return _op(b, "and", pairs, splat(constant(255, i16), pairs.lanes)), _op(b, "lshr", pairs, eight)
    return _op(b, "ashr", _op(b, "shl", pairs, eight), eight), _op(b, "ashr", pairs, eight)


def _op(b: Builder, code: str, x: Value, y: Value) -> Value:
    return b.pure(x.dtype, x.lanes, f"{code} {ssa_type(x.dtype, x.lanes)} {{}}, {{}}", x, y)


def _call(b: Builder, symbol: str, *args: Value, result: int = 0) -> Value:
    """An LLVM intrinsic whose result has the type of the first operand, or ``result`` wider lanes."""
    dtype, lanes = args[0].dtype, args[0].lanes
    if result:
        dtype, lanes = (i16 if dtype.bits == 8 else i32), result
    text, level = b.call(symbol, ssa_type(dtype, lanes), [(ssa_type(a.dtype, a.lanes), a) for a in args])
    return b.opaque(dtype, lanes, text, level)
