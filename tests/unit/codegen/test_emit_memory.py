"""Addresses, masks, gathers, private buffers, division of indices, against NumPy."""

import mcjit
import ml_dtypes
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f16, f32, f64, i8, i32, i64, u8
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    ForKind,
    Func,
    MemSpace,
    Ramp,
    Size,
    Splat,
)

TARGET_PARAMS = [pytest.param(t, id=name) for name, t in mcjit.TARGETS.items()]
HOST = mcjit.TARGETS["host"]
n, m = SymDim("n"), SymDim("m")


def vector_loop(count, lanes, body):
    """``body(index of the first element)`` for each vector of ``count`` elements."""
    vectors = b.ceildiv(b.as_expr(count), lanes)
    return b.loop("i", vectors, lambda i: body(b.mul(i, lanes)))


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("lanes", [4, 8, 16, 64])
@pytest.mark.parametrize("kind", [f32, f64, f16, bf16, i32, i64, i8, bool_], ids=str)
def test_masked_copy(target, kind, lanes):
    x, y = Buffer("x", (n,), kind), Buffer("y", (n,), kind)

    def body(first):
        at = Ramp(first, lanes)
        mask = b.lt(at, Splat(Size(n), lanes))
        return b.store(y, (at,), b.load(x, at, mask=mask), mask)

    kernel = mcjit.Kernel(Func("copy", (x, y), vector_loop(n, lanes, body)), target)
    rng = np.random.default_rng(0)
    for size in (1, 3, lanes - 1, lanes, lanes + 1, 131):
        data = rng.integers(0, 2, size).astype(kind.numpy_name)
        out = np.full(size + 16, 7).astype(kind.numpy_name)
        kernel(data, out, n=size)
        assert (out[:size] == data).all()
        assert (out[size:] == out[-1]).all()
    assert not mcjit.called(kernel.asm)


@pytest.mark.parametrize("op", [BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_lane_masks(target, op, flip):
    lanes = 16
    bound = Buffer("bound", (1,), i64)
    y = Buffer("y", (4 * lanes,), bool_)

    def body(first):
        at, limit = Ramp(first, lanes), Splat(b.load(bound, 0), lanes)
        return b.store(y, (at,), Binary(op, limit, at) if flip else Binary(op, at, limit))

    kernel = mcjit.Kernel(Func("mask", (bound, y), vector_loop(4 * lanes, lanes, body)), target)
    compare = {
        "<": np.less,
        "<=": np.less_equal,
        ">": np.greater,
        ">=": np.greater_equal,
        "==": np.equal,
        "!=": np.not_equal,
    }
    index = np.arange(4 * lanes)
    for limit in (-100, -1, 0, 1, 15, 16, 17, 40, 63, 64, 65, 1 << 40):
        out = np.zeros(4 * lanes, bool)
        kernel(np.array([limit]), out)
        want = compare[op.value](limit, index) if flip else compare[op.value](index, limit)
        assert (out == want).all(), limit


def test_mask_by_range_is_one_narrow_compare():
    x, y = Buffer("x", (n,), f32), Buffer("y", (n,), f32)

    def body(first):
        mask = b.lt(Ramp(first, 16), Splat(Size(n), 16))
        return b.store(y, (Ramp(first, 16),), b.load(x, Ramp(first, 16), mask=mask), mask)

    func = Func("copy", (x, y), vector_loop(n, 16, body))
    text = mcjit.codegen.emit_module(func, mcjit.get_target("avx512"))
    assert "icmp ugt <16 x i32>" in text
    assert "<16 x i64>" not in text


def test_mask_known_to_hold_is_dropped():
    x, y = Buffer("x", (64,), f32), Buffer("y", (64,), f32)

    def body(first):
        mask = b.lt(Ramp(first, 16), Splat(b.as_expr(64), 16))
        return b.store(y, (Ramp(first, 16),), b.load(x, Ramp(first, 16), mask=mask), mask)

    assert "masked" not in mcjit.codegen.emit_module(Func("copy", (x, y), vector_loop(64, 16, body)), HOST)


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_scalar_masks(target):
    x, keep, y = Buffer("x", (8,), f32), Buffer("keep", (8,), bool_), Buffer("y", (8,), f32)
    body = b.loop("i", 8, lambda i: b.store(y, (i,), b.load(x, i, mask=b.load(keep, i)), b.lt(i, 6)))
    data, mask, out = np.arange(1, 9, dtype=np.float32), np.arange(8) % 2 == 0, np.full(8, -1, np.float32)
    mcjit.Kernel(Func("f", (x, keep, y), body), target)(data, mask, out)
    assert out.tolist() == [1, 0, 3, 0, 5, 0, -1, -1]


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", [f32, f64, bf16, i32, i64, u8, bool_], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gather_and_scatter(target, kind, masked):
    lanes, rows = 16, 3
    x, at = Buffer("x", (rows, n), kind), Buffer("at", (lanes,), i32)
    y, z = Buffer("y", (rows, lanes), kind), Buffer("z", (rows, n), kind)
    where = Cast(i64, b.load(at, Ramp(b.as_expr(0), lanes)))
    mask = b.ge(b.load(at, Ramp(b.as_expr(0), lanes)), 0) if masked else None
    body = b.loop(
        "r",
        rows,
        lambda r: b.seq(
            b.store(y, (r, Ramp(b.as_expr(0), lanes)), b.load(x, r, where, mask=mask)),
            b.store(z, (r, where), b.load(x, r, where, mask=mask), mask),
        ),
    )
    rng = np.random.default_rng(1)
    data = rng.integers(0, 2 if kind == bool_ else 100, (rows, 40)).astype(kind.numpy_name)
    index = rng.permutation(40)[:lanes].astype(np.int32)
    if masked:
        index[[2, 7]] = -5
    out, back = np.ones((rows, lanes)).astype(data.dtype), np.zeros((rows, 40)).astype(data.dtype)
    mcjit.Kernel(Func("f", (x, at, y, z), body), target)(data, index, out, back, n=40)
    used = index >= 0
    assert (out == np.where(used, data[:, index], 0)).all()
    want = np.zeros_like(back)
    want[:, index[used]] = data[:, index[used]]
    assert (back == want).all()


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_strided_and_uniform_vector_indices(target):
    x, y = Buffer("x", (64,), f32), Buffer("y", (3, 16), f32)
    lanes = Ramp(b.as_expr(0), 16)
    rows = [
        Binary(BinaryOp.MUL, lanes, Splat(b.as_expr(3), 16)),
        Binary(BinaryOp.SUB, Splat(b.as_expr(20), 16), lanes),
        Splat(b.as_expr(5), 16),
    ]
    body = b.seq(*(b.store(y, (k, lanes), b.load(x, row)) for k, row in enumerate(rows)))
    data, out = np.arange(64, dtype=np.float32), np.zeros((3, 16), np.float32)
    mcjit.Kernel(Func("f", (x, y), body), target)(data, out)
    k = np.arange(16)
    assert (out == np.stack([3 * k, 20 - k, np.full(16, 5)])).all()


def test_symbolic_shapes_and_polynomial_dims():
    x, y = Buffer("x", (m, n, 2 * n + 1), f32), Buffer("y", (n, m), f32)
    body = b.loop(
        "i",
        m,
        lambda i: b.loop(
            "j", n, lambda j: b.store(y, (j, i), b.load(x, i, j, b.add(b.add(j, j), b.sub(m, m))))
        ),
    )
    data, out = (
        np.random.default_rng(2).standard_normal((3, 5, 11)).astype(np.float32),
        np.zeros((5, 3), np.float32),
    )
    mcjit.Kernel(Func("f", (x, y), body))(data, out, m=3, n=5)
    assert (out == data[:, np.arange(5), 2 * np.arange(5)].T).all()


@pytest.mark.parametrize("target", TARGET_PARAMS)
def test_index_division(target):
    """A reshape by floor division and modulo, of symbolic and constant divisors."""
    x, y = Buffer("x", (n, 6), f32), Buffer("y", (6, n), f32)
    flat = lambda j, i: b.add(b.mul(j, n), i)  # noqa: E731
    body = b.loop(
        "j",
        6,
        lambda j: b.loop(
            "i",
            n,
            lambda i: b.store(y, (j, i), b.load(x, b.floordiv(flat(j, i), 6), b.floormod(flat(j, i), 6))),
        ),
    )
    back = Buffer("z", (n, 6), f32)
    body = b.seq(
        body,
        b.loop(
            "k",
            n,
            lambda k: b.loop(
                "c",
                6,
                lambda c: b.store(
                    back,
                    (k, c),
                    b.load(
                        y,
                        b.floordiv(b.add(b.mul(k, 6), c), Size(n)),
                        b.floormod(b.add(b.mul(k, 6), c), Size(n)),
                    ),
                ),
            ),
        ),
    )
    data = np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)
    out, again = np.zeros((6, 7), np.float32), np.zeros((7, 6), np.float32)
    mcjit.Kernel(Func("f", (x, y, back), body), target)(data, out, again, n=7)
    assert (out == data.reshape(6, 7)).all()
    assert (again == data).all()


def test_divisions_that_cancel_vanish():
    """``(64*i + j) // 64`` and ``% 64`` with ``0 <= j < 64`` need no instruction."""
    x, y = Buffer("x", (4, 64), f32), Buffer("y", (256,), f32)

    def element(i, j):
        flat = b.add(b.mul(i, 64), j)
        return b.store(
            y, (flat,), b.load(x, Binary(BinaryOp.FLOORDIV, flat, b.as_expr(64)), b.floormod(flat, 64))
        )

    body = b.loop("i", 4, lambda i: b.loop("j", 64, lambda j: element(i, j)))
    func = Func("f", (x, y), body)
    assert not [w for w in ("udiv", "urem", "lshr", "and ") if w in mcjit.codegen.emit_module(func, HOST)]
    data, out = (
        np.random.default_rng(4).standard_normal((4, 64)).astype(np.float32),
        np.zeros(256, np.float32),
    )
    mcjit.Kernel(func)(data, out)
    assert (out == data.ravel()).all()


@pytest.mark.parametrize("space", [MemSpace.LOCAL, MemSpace.REGISTER])
@pytest.mark.parametrize("kind", [f32, bf16, bool_, i64], ids=str)
def test_private_buffers(space, kind):
    """A tile is read in, changed under a mask, written back."""
    x, y = Buffer("x", (5, 4, 16), kind), Buffer("y", (5, 4, 16), kind)
    tile = Buffer("tile", (4, 16), kind, space)
    lanes = Ramp(b.as_expr(0), 16)
    mask = b.lt(lanes, Splat(b.as_expr(9), 16))
    unrolled = lambda body: b.loop("r", 4, body, ForKind.UNROLL)  # noqa: E731
    body = b.loop(
        "i",
        5,
        lambda i: Alloc(
            tile,
            b.seq(
                unrolled(lambda r: b.store(tile, (r, lanes), b.load(x, i, r, lanes))),
                unrolled(
                    lambda r: b.store(tile, (r, lanes), b.load(tile, b.sub(3, r), lanes, mask=mask), mask)
                ),
                unrolled(lambda r: b.store(y, (i, r, lanes), b.load(tile, r, lanes))),
            ),
        ),
    )
    kernel = mcjit.Kernel(Func("f", (x, y), body))
    data = np.random.default_rng(5).integers(0, 2, (5, 4, 16)).astype(kind.numpy_name)
    out = np.zeros_like(data)
    kernel(data, out)
    want = data.copy()
    for r in range(4):
        want[:, r, :9] = want[:, 3 - r, :9]
    assert (out == want).all()
    if space is MemSpace.REGISTER:
        assert "alloca" not in mcjit.codegen.optimized(kernel.text, kernel.target)


def test_zero_dimensional_buffers():
    x, y = Buffer("x", (), f32), Buffer("y", (), f32)
    out = np.zeros((), np.float32)
    mcjit.Kernel(Func("f", (x, y), b.store(y, (), b.neg(b.load(x)))))(np.full((), 3, np.float32), out)
    assert out == -3


def test_bf16_splat_is_two_instructions():
    """A broadcast bf16 scalar becomes f32 lanes by a broadcast and a shift."""
    x, y = Buffer("x", (4,), bf16), Buffer("y", (4, 16), f32)
    body = b.loop("i", 4, lambda i: b.store(y, (i, b.ramp(0, 16)), Splat(Cast(f32, b.load(x, i)), 16)))
    data = np.array([1.5, -2.0, np.inf, 3e-39]).astype(ml_dtypes.bfloat16)
    for target in mcjit.TARGETS.values():
        out = np.zeros((4, 16), np.float32)
        kernel = mcjit.Kernel(Func("f", (x, y), body), target)
        kernel(data, out)
        assert (out == data.astype(np.float32)[:, None]).all()
    assert "vpbroadcastw\t(" in kernel.asm or not HOST.has("avx512f")
