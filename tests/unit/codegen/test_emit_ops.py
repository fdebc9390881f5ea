"""Scalar and vector operations of every dtype against NumPy, on every level of instruction sets."""

import re

import mcjit
import ml_dtypes
import numpy as np
import pytest

from strata.codegen import compile as codegen
from strata.core.dtypes import ALL_DTYPES, bf16, bool_, dtype, f16, f32, f64, i8, i16, i32, i64, u8, u16, u32
from strata.core.errors import CodegenError
from strata.loop import build as b
from strata.loop import interp
from strata.loop.nodes import (
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    Func,
    Intrinsic,
    Reduce,
    ReduceOp,
    Unary,
    UnaryOp,
)
from strata.planner.tuning.operands import EVICT
from strata.target import get_target

COUNT = 192
LANES = (1, 4, 16, 64)
# Narrower elements are packed into bytes by a layout, before kernels see them.
IN_MEMORY = {name: d for name, d in ALL_DTYPES.items() if d.bits >= 8}
TARGET_PARAMS = [pytest.param(t, id=name) for name, t in mcjit.TARGETS.items()]
FLOAT_OPS = {
    BinaryOp.ADD: np.add,
    BinaryOp.SUB: np.subtract,
    BinaryOp.MUL: np.multiply,
    BinaryOp.DIV: np.divide,
    BinaryOp.MIN: np.minimum,
    BinaryOp.MAX: np.maximum,
}
INT_OPS = {
    BinaryOp.ADD: np.add,
    BinaryOp.SUB: np.subtract,
    BinaryOp.MUL: np.multiply,
    BinaryOp.FLOORDIV: np.floor_divide,
    BinaryOp.FLOORMOD: np.mod,
    BinaryOp.MIN: np.minimum,
    BinaryOp.MAX: np.maximum,
}
COMPARE = {
    BinaryOp.LT: np.less,
    BinaryOp.LE: np.less_equal,
    BinaryOp.GT: np.greater,
    BinaryOp.GE: np.greater_equal,
    BinaryOp.EQ: np.equal,
    BinaryOp.NE: np.not_equal,
}
LOGICAL = {BinaryOp.AND: np.logical_and, BinaryOp.OR: np.logical_or}
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, 1.5]


def float_pairs(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    kind = np.dtype(name)
    x, y = (rng.standard_normal(COUNT).astype(kind) for _ in range(2))
    grid = np.array([(p, q) for p in SPECIAL for q in SPECIAL]).astype(kind)
    x[: len(grid)], y[: len(grid)] = grid[:, 0], grid[:, 1]
    return x, y


def int_pairs(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    kind = np.dtype(name)
    info = np.iinfo(kind)
    # i64 is index arithmetic: it does not overflow.
    low, high = (-(2**31), 2**31) if kind == np.int64 else (info.min, int(info.max) + 1)
    x, y = (rng.integers(low, high, COUNT, dtype=kind) for _ in range(2))
    y[::3] = rng.integers(1, 9, len(y[::3]), dtype=kind)
    y[1::6] = (np.zeros(len(y[1::6]), kind) - y[::6][: len(y[1::6])]).astype(kind)
    y[y == 0] = 1
    if info.min < 0:
        y[(y == -1) & (x == info.min)] = 1
    return x, y


def assert_same(got: np.ndarray, want: np.ndarray, what: str) -> None:
    same = (got == want) | ((got != got) & (want != want))
    assert same.all(), f"{what}: {got[~same][:4]} != {want[~same][:4]} at {np.flatnonzero(~same)[:4]}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", [f32, f64], ids=str)
def test_float_binary(target, kind, lanes):
    x, y = float_pairs(kind.numpy_name)
    table = {**FLOAT_OPS, **COMPARE}
    exprs = [lambda p, q, op=op: Binary(op, p, q) for op in table]
    outs = [bool_ if op in COMPARE else kind for op in table]
    got = mcjit.run(mcjit.elementwise(exprs, [kind] * 2, outs, COUNT, lanes), target, x, y)
    for op, result in zip(table, got, strict=True):
        assert_same(result, table[op](x, y), f"{op.value} {kind}")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", [i64, i32, i16, i8, u8, u16, u32], ids=str)
def test_int_binary(target, kind, lanes):
    if kind not in (i32, i64) and target.name != "host":
        return  # arithmetic is on i32 and i64; the narrow ones come for free
    x, y = int_pairs(kind.numpy_name)
    table = {**INT_OPS, **COMPARE}
    exprs = [lambda p, q, op=op: Binary(op, p, q) for op in table]
    outs = [bool_ if op in COMPARE else kind for op in table]
    got = mcjit.run(mcjit.elementwise(exprs, [kind] * 2, outs, COUNT, lanes), target, x, y)
    for op, result in zip(table, got, strict=True):
        assert_same(result, table[op](x, y), f"{op.value} {kind}")


@pytest.mark.parametrize("divisor", [1, 2, 3, 8, 10, 64, -3])
@pytest.mark.parametrize("kind", [i64, i32], ids=str)
def test_division_by_constant(kind, divisor):
    x = np.arange(-96, 96, dtype=kind.numpy_name)
    d = b.const(divisor, kind)
    exprs = [lambda p: Binary(BinaryOp.FLOORDIV, p, d), lambda p: Binary(BinaryOp.FLOORMOD, p, d)]
    q, r = mcjit.run(mcjit.elementwise(exprs, [kind], [kind] * 2, COUNT, 1), mcjit.TARGETS["host"], x)
    assert_same(q, x // divisor, "//")
    assert_same(r, x % divisor, "%")


def test_division_by_zero_does_not_trap():
    x, y = np.arange(COUNT, dtype=np.int32), np.zeros(COUNT, np.int32)
    func = mcjit.elementwise([lambda p, q: Binary(BinaryOp.FLOORDIV, p, q)], [i32] * 2, [i32], COUNT, 16)
    mcjit.run(func, mcjit.TARGETS["host"], x, y)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_bool(target, lanes):
    rng = np.random.default_rng(3)
    x, y = (rng.integers(0, 2, COUNT).astype(bool) for _ in range(2))
    exprs = [lambda p, q, op=op: Binary(op, p, q) for op in LOGICAL]
    exprs += [lambda p, q: Unary(UnaryOp.NOT, p), lambda p, q: b.select(p, q, Unary(UnaryOp.NOT, q))]
    got = mcjit.run(mcjit.elementwise(exprs, [bool_] * 2, [bool_] * 4, COUNT, lanes), target, x, y)
    for result, want in zip(got, [x & y, x | y, ~x, np.where(x, y, ~y)], strict=True):
        assert_same(result, want, "bool")
        assert result.view(np.uint8).max() <= 1


def test_bool_memory_may_hold_any_byte():
    x = np.full(COUNT, 2, np.uint8).view(bool)
    func = mcjit.elementwise([lambda p: Cast(i32, p)], [bool_], [i32], COUNT, 16)
    assert (mcjit.run(func, mcjit.TARGETS["host"], x)[0] == 1).all()


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_unary_and_select(target, lanes):
    x, _ = float_pairs("float32")
    k, _ = int_pairs("int32")
    zero = b.const(0.0, f32)
    exprs = [
        lambda p, q: b.neg(p),
        lambda p, q: b.abs_(p),
        lambda p, q: b.neg(q),
        lambda p, q: b.abs_(q),
        lambda p, q: b.select(b.gt(p, zero), p, zero),
        lambda p, q: b.maximum(p, zero),
    ]
    got = mcjit.run(
        mcjit.elementwise(exprs, [f32, i32], [f32, f32, i32, i32, f32, f32], COUNT, lanes), target, x, k
    )
    with np.errstate(invalid="ignore"):
        wants = [-x, np.abs(x), -k, np.abs(k), np.where(x > 0, x, 0), np.maximum(x, 0)]
    for result, want in zip(got, wants, strict=True):
        assert_same(result, want, "unary")
    assert (np.signbit(got[0]) == ~np.signbit(x)).all()


def cast_values(name: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    kind = dtype(name)
    if kind == bool_:
        return rng.integers(0, 2, COUNT).astype(bool)
    if kind.is_int:
        return rng.integers(0 if name.startswith("u") else -100, 101, COUNT).astype(kind.numpy_name)
    x = rng.uniform(-100, 100, COUNT)
    x[:8] = [0.0, -0.0, 0.5, 1.0, -1.0, 2.5, -2.5, 100.0]
    return x.astype(kind.numpy_name)


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("source", list(IN_MEMORY))
def test_cast(target, source, lanes):
    x = cast_values(source)
    kinds = [d for d in IN_MEMORY.values() if d.name != source]
    kinds = [d for d in kinds if d.name[0] != "u" or x.astype(np.float64).min() >= 0]
    exprs = [lambda p, to=to: Cast(to, p) for to in kinds]
    got = mcjit.run(mcjit.elementwise(exprs, [dtype(source)], kinds, COUNT, lanes), target, x)
    for kind, result in zip(kinds, got, strict=True):
        middle = x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
        assert_same(result, middle.astype(kind.numpy_name), f"{source} -> {kind}")


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [1, 16])
def test_half_rounding(target, lanes):
    rng = np.random.default_rng(5)
    count = 1 << 14
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    x = bits.view(np.float32).copy()
    x[::2] = rng.uniform(-1, 1, count // 2) * 2.0 ** rng.integers(-26, 17, count // 2)
    ties = np.arange(2048, dtype=np.uint16).view(np.float16).astype(np.float32)
    x[:2047] = (ties[:-1] + ties[1:]) / 2
    x[np.abs(x) < 1e-37] = 0  # vcvtneps2bf16 takes subnormals as 0
    x[:6] = [np.nan, np.inf, -np.inf, 65519.9, 65520, 3.4e38]
    with np.errstate(over="ignore", invalid="ignore"):
        wants = [x.astype(np.float16), x.astype(ml_dtypes.bfloat16)]
    func = mcjit.elementwise(
        [lambda p, to=to: Cast(to, p) for to in (f16, bf16)], [f32], [f16, bf16], count, lanes
    )
    for got, want in zip(mcjit.run(func, target, x), wants, strict=True):
        assert_same(got, want, str(want.dtype))


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [1, 16])
def test_half_to_f32_is_exact(target, lanes):
    bits = np.arange(1 << 16, dtype=np.uint16)
    for kind, array in ((f16, bits.view(np.float16)), (bf16, bits.view(ml_dtypes.bfloat16))):
        func = mcjit.elementwise([lambda p: Cast(f32, p)], [kind], [f32], len(bits), lanes)
        assert_same(mcjit.run(func, target, array)[0], array.astype(np.float32), str(kind))


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_f64_to_f16_rounds_once(target):
    x = np.array([1 + 2**-11 + 2**-40, 1 + 2**-11, 1 + 2**-11 - 2**-40, -(1 + 2**-11 + 2**-40)] * 48)
    func = mcjit.elementwise([lambda p: Cast(f16, p)], [f64], [f16], COUNT, 4)
    assert_same(mcjit.run(func, target, x)[0], x.astype(np.float16), "f64 -> f16")


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", [i32, i16, i8, u16, u8], ids=str)
def test_float_to_int_saturates(target, kind, lanes):
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 1.9, -1.9, 2.0**31] * 24, np.float32)
    func = mcjit.elementwise([lambda p: Cast(kind, p)], [f32], [kind], COUNT, lanes)
    low, top = np.iinfo(kind.numpy_name).min, np.iinfo(kind.numpy_name).max
    want = np.array([0, top, low, top, low, 1, max(low, -1), top] * 24).astype(kind.numpy_name)
    assert_same(mcjit.run(func, target, x)[0], want, f"f32 -> {kind}")


@pytest.mark.parametrize("source", [f32, f16, i8, u8], ids=str)
def test_casts_of_whole_vectors_use_no_scalars(source):
    """Conversions that quantised kernels make: a few instructions per vector, whatever the level."""
    to = i8 if source == f32 else f32
    body = (lambda p: Cast(f32, Cast(i32, p))) if source.is_int else (lambda p: Cast(to, p))
    func = mcjit.elementwise([body], [source], [to], 16, 16)
    for target in mcjit.TARGETS.values():
        if target.has("avx2"):
            asm = mcjit.Kernel(func, target).asm
            assert not re.search(r"\b(vpinsr|vpextr|vcvttss2si|vcvtsi2ss)", asm), target.name
            assert len(re.findall(r"(?m)^\t[a-z]", asm)) < 36, asm


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [2, 8, 64])
@pytest.mark.parametrize("kind", [f32, f64, i32, i64], ids=str)
def test_reduce(target, kind, lanes):
    rng = np.random.default_rng(6)
    rows = 5
    x = (rng.standard_normal((rows, lanes)) * 100).astype(kind.numpy_name)
    if kind.is_float and lanes > 2:
        x[1, 3] = np.nan
    source = Buffer("x", (rows, lanes), kind)
    outs = [Buffer(op.name, (rows,), kind) for op in ReduceOp]
    body = b.loop(
        "r",
        rows,
        lambda r: b.seq(
            *(
                b.store(y, (r,), Reduce(op, b.load(source, r, b.ramp(0, lanes))))
                for op, y in zip(ReduceOp, outs, strict=True)
            )
        ),
    )
    got = dict(zip(ReduceOp, mcjit.run(Func("f", (source, *outs), body, 3), target, x), strict=True))
    assert_same(got[ReduceOp.MAX], x.max(axis=1), "max")
    assert_same(got[ReduceOp.MIN], x.min(axis=1), "min")
    # Pairwise: at most log2(lanes) roundings of partial sums below 100 * lanes.
    bound = 6 * 100 * lanes * float(np.finfo(np.float32).eps) if kind.is_float else 0
    np.testing.assert_allclose(got[ReduceOp.ADD], x.astype(np.float64).sum(axis=1), rtol=0, atol=bound)


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_products_and_sums_are_fused(target):
    """Where there is FMA, ``a*b + c`` has one rounding."""
    x = np.full(COUNT, 1 + 2**-12, np.float32)
    c = np.full(COUNT, -(1 + 2**-11), np.float32)
    func = mcjit.elementwise([lambda p, q: b.add(b.mul(p, p), q)], [f32] * 2, [f32], COUNT, 16)
    fused = np.float32(2.0**-24)
    assert (mcjit.run(func, target, x, c)[0] == (fused if target.has("fma") else 0)).all()


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [4, 12, 16, 64])
def test_dot2_bf16(target, lanes):
    rng = np.random.default_rng(7)
    acc = rng.standard_normal((3, lanes)).astype(np.float32)
    x, y = (rng.standard_normal((3, 2 * lanes)).astype(ml_dtypes.bfloat16) for _ in range(2))
    bufs = [
        Buffer("acc", (3, lanes), f32),
        *(Buffer(n, (3, 2 * lanes), bf16) for n in "xy"),
        Buffer("o", (3, lanes), f32),
    ]
    body = b.loop(
        "r",
        3,
        lambda r: b.store(
            bufs[3],
            (r, b.ramp(0, lanes)),
            Intrinsic("dot2_bf16", tuple(b.load(p, r, b.ramp(0, p.shape[1])) for p in bufs[:3]), f32, lanes),
        ),
    )
    func = Func("f", tuple(bufs), body)
    want = acc + (x.astype(np.float64) * y.astype(np.float64)).reshape(3, lanes, 2).sum(-1)
    np.testing.assert_allclose(mcjit.run(func, target, acc, x, y)[0], want, rtol=1e-6, atol=1e-6)
    native = "dpbf16ps" in mcjit.Kernel(func, target).asm
    assert native == target.prefers_bf16_dot


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [4, 12, 16])
def test_every2(target, lanes):
    x = np.random.default_rng(8).standard_normal((3, 2 * lanes)).astype(ml_dtypes.bfloat16)
    given, out = Buffer("x", (3, 2 * lanes), bf16), Buffer("o", (6, lanes), f32)

    def row(r, j):
        pairs = b.load(given, r, b.ramp(0, 2 * lanes))
        value = Intrinsic("every2", (pairs, j), f32, lanes)
        return b.store(out, (b.add(b.mul(r, 2), j), b.ramp(0, lanes)), value)

    func = Func("f", (given, out), b.loop("r", 3, lambda r: b.loop("j", 2, lambda j: row(r, j))))
    want = x.astype(np.float32).reshape(3, lanes, 2).transpose(0, 2, 1).reshape(6, lanes)
    assert_same(mcjit.run(func, target, x)[0], want, "every2")


# Pairs of products of these do not fit into 16 bits.
EXTREMES = {"dot4_u8i8": (255, -128), "dot4_u4i8": (15, -128)}


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 12, 16, 22, 64])
@pytest.mark.parametrize("name", list(EXTREMES))
def test_dot4(name, lanes, broadcast):
    rng = np.random.default_rng(8)
    group = 4 if broadcast else 4 * lanes
    func = mcjit.dot4(name, lanes, group)
    acc = rng.integers(-(2**31), 2**31, (3, lanes), dtype=np.int64).astype(np.int32)
    x = rng.integers(0, EXTREMES[name][0] + 1, (3, 4 * lanes)).astype(np.uint8)
    y = rng.integers(-128, 128, (3, group)).astype(np.int8)
    x[1], y[1] = EXTREMES[name]
    products = x.astype(np.int64).reshape(3, lanes, 4) * y.astype(np.int64).reshape(3, -1, 4)
    want = (acc + products.sum(-1)).astype(np.int32)
    out = np.zeros_like(acc)
    interp.run(func, [acc, x, y, out])
    assert_same(out, want, "interpreter")
    for target in mcjit.TARGETS.values():
        assert_same(mcjit.run(func, target, acc, x, y)[0], want, target.name)


# What the inner loop of a quantised matmul is made of: instructions per 16 lanes, for bytes and for nibbles.
DOT4_CODE = {
    "x86-64": (["pmaddwd"] * 8, ["pmaddwd"] * 8),
    "avx2": (["vpmaddwd"] * 4, ["vpmaddubsw", "vpmaddwd"] * 2),
    "avx2-vnni": (["vpdpbusd"] * 2, ["vpdpbusd"] * 2),
    "avx512": (["vpmaddwd"] * 2, ["vpmaddubsw", "vpmaddwd"]),
    "avx512-bf16": (["vpdpbusd"], ["vpdpbusd"]),
    "neon": (["mul", "sadalp"] * 8, ["mla", "mul", "sadalp"] * 4),
    "neon-dotprod": (["sdot"] * 5, ["sdot"] * 4),  # one for what all lanes have in common
    "neon-i8mm": (["usdot"] * 4, ["sdot"] * 4),
}


@pytest.mark.parametrize("level", list(DOT4_CODE))
def test_dot4_is_few_instructions(level):
    target = get_target(level)
    for name, expected in zip(EXTREMES, DOT4_CODE[level], strict=True):
        asm = codegen.assembly(codegen.emit_module(mcjit.dot4(name, 16, 4, 1), target), target)
        found = re.findall(r"\t(v?pmadd\w+|vpdp\w+|mul|mla|u?sdot|sadalp)\t", asm)
        assert sorted(found) == sorted(expected), asm
        # The group of four comes as a broadcast of 32 bits, from memory where there is such an instruction.
        assert re.search(r"\{1to\d+\}|broadcast\w+\t\(|ld1r|pshufd", asm)
        assert not re.search(r"pshufb|uzp1|tbl", asm)


@pytest.mark.parametrize("lanes", [1, 16, 64])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_nibbles(target, lanes):
    x = np.arange(256, dtype=np.uint8)
    func = mcjit.elementwise(
        [lambda p, name=name: Intrinsic(name, (p,), u8, lanes) for name in ("low4", "high4")],
        [u8], [u8] * 2, 256, lanes,
    )  # fmt: skip
    low, high = mcjit.run(func, target, x)
    assert_same(low, x % 16, "low4")
    assert_same(high, x // 16, "high4")


@pytest.mark.parametrize("lanes", [1, 4, 16, 64])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_bits_and_nearest_codes(target, lanes):
    """Codes of products, which must be rounded before: fused with the sum that rounds, ties are no ties."""
    y = np.random.default_rng(12).uniform(0.9, 1, 20000).astype(np.float32)
    x = ((np.arange(20000) % 250 - 125 + 0.5) / y).astype(np.float32)
    unlike = np.rint(x * y) != np.rint(x.astype(np.float64) * y)  # the product in f64 is exact
    x, y = x[unlike][:448], y[unlike][:448]
    assert len(x) == 448
    func = mcjit.elementwise(
        [
            lambda p, q: Intrinsic("nearest8", (b.mul(p, q),), i8, lanes),
            lambda p, q: Intrinsic("bits", (p,), i32, lanes),
            lambda p, q: Intrinsic("from_bits", (Intrinsic("bits", (q,), i32, lanes),), f32, lanes),
        ],
        [f32, f32], [i8, i32, f32], 448, lanes,
    )  # fmt: skip
    codes, bits, same = mcjit.run(func, target, x, y)
    assert_same(codes, np.rint(x * y).astype(np.int8), "nearest8")
    assert_same(bits, x.view(np.int32), "bits")
    assert_same(same, y, "from_bits")


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_every_fourth_byte(target, lanes):
    """``j`` as a number and as the variable of a loop."""
    x = np.random.default_rng(9).integers(0, 256, (6, 4 * lanes)).astype(np.uint8)
    given, out = Buffer("x", x.shape, u8), Buffer("y", (6, 4, lanes), u8)

    def part(r, j, place):
        value = Intrinsic("every4", (b.load(given, r, b.ramp(0, 4 * lanes)), j), u8, lanes)
        return b.store(out, (r, place, b.ramp(0, lanes)), value)

    def row(r):
        return b.seq(part(r, b.const(3, i64), b.const(3, i64)), b.loop("j", 3, lambda j: part(r, j, j)))

    func = Func("f", (given, out), b.loop("r", 6, row))
    assert_same(mcjit.run(func, target, x)[0], x.reshape(6, lanes, 4).transpose(0, 2, 1), "every4")


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_zipped_and_rounded(target, lanes):
    x, y = np.random.default_rng(10).standard_normal((2, 3, lanes)).astype(np.float32)
    x[0, 0], y[1, 0] = np.inf, -0.0
    given = [Buffer(n, x.shape, f32) for n in "xy"]
    out = Buffer("z", (3, 2 * lanes), bf16)

    def row(r):
        both = tuple(b.load(p, r, b.ramp(0, lanes) if lanes > 1 else b.const(0, i64)) for p in given)
        return b.store(out, (r, b.ramp(0, 2 * lanes)), Intrinsic("zip_bf16", both, bf16, 2 * lanes))

    func = Func("f", (*given, out), b.loop("r", 3, row))
    want = np.stack([x, y], axis=2).reshape(3, 2 * lanes).astype(ml_dtypes.bfloat16)
    assert_same(mcjit.run(func, target, x, y)[0].view(np.uint16), want.view(np.uint16), "zip_bf16")


def test_wrong_arguments_of_an_intrinsic():
    func = mcjit.elementwise([lambda p: Intrinsic("low4", (p,), i8, 4)], [i8], [i8], 4, 4)
    with pytest.raises(CodegenError, match=r"f: @low4: got \(i8\[4\]\); expected \(a: u8\[L\]\)"):
        codegen.emit_module(func, get_target("avx2"))


def test_fma_intrinsic():
    x = np.full(COUNT, 1 + 2**-12, np.float32)
    c = np.full(COUNT, -(1 + 2**-11), np.float32)
    func = mcjit.elementwise([lambda p, q: Intrinsic("fma", (p, p, q), f32, 8)], [f32] * 2, [f32], COUNT, 8)
    host = mcjit.TARGETS["host"]
    assert (mcjit.run(func, host, x, c)[0] == (2.0**-24 if host.has("fma") else 0)).all()


EXP2_ERRORS = {"exp2": 3 * 2.0**-24, "exp2_bf16": 2.0**-13}  # relative, as documented


@pytest.mark.parametrize("name", EXP2_ERRORS)
@pytest.mark.parametrize("lanes", [1, 4, 16, 32])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_exp2(target, lanes, name):
    special = [-np.inf, np.nan, -127.0, -126.5, -126.0, -1e30, 0.0, -0.0, 1e-45, 127.0, 1.0, -1.0, 0.5, -0.5]
    x = np.concatenate([special, np.random.default_rng(5).uniform(-130, 127, 1024 - len(special))]).astype(
        np.float32
    )
    func = mcjit.elementwise([lambda p: Intrinsic(name, (p,), f32, lanes)], [f32], [f32], 1024, lanes)
    (got,) = mcjit.run(func, target, x)
    np.testing.assert_allclose(got, np.exp2(x.astype(np.float64)), rtol=EXP2_ERRORS[name], atol=2.0**-126)
    assert (got[x < -150] == 0).all()  # what is hidden has no weight at all
    assert got[[6, 7, 9, 10, 11]].tolist() == [1, 1, 2.0**127, 2, 0.5]


def test_prefetch_asks_and_gives_0():
    func = mcjit.elementwise([lambda p: Intrinsic("prefetch", (p,), i32, 1)], [f32], [i32], COUNT, 1)
    (got,) = mcjit.run(func, mcjit.TARGETS["host"], np.ones(COUNT, np.float32))
    assert (got == 0).all()
    text = codegen.emit_module(func, mcjit.TARGETS["host"])
    assert text.count("call void @llvm.prefetch.p0") == 1
    assert "load float" not in text


EVICTIONS = {"x86-64": ["clflush"], "avx512": ["clflushopt"], "neon": []}


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_evicted_data_are_as_they_were(target):
    x = np.arange(100_000, dtype=np.uint8)
    (got,) = mcjit.run(mcjit.elementwise([lambda p: p], [u8], [u8], x.size, 1), target, x)
    kernel = mcjit.Kernel(EVICT, target)
    kernel(x, n=x.size)
    assert_same(x, got, "x")


@pytest.mark.parametrize("level", list(EVICTIONS))
def test_eviction_by_instruction(level):
    target = get_target(level)
    asm = codegen.assembly(codegen.emit_module(EVICT, target), target)
    assert re.findall(r"\bclflush\w*", asm) == EVICTIONS[level]
