"""Random loop functions: machine code equals the interpreter, bit for bit on a CPU level without FMA."""

import random

import mcjit
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import DType, bf16, bool_, f16, f32, f64, i32, i64
from strata.loop import build as b
from strata.loop import interp
from strata.loop.check import check
from strata.loop.nodes import (
    Alloc,
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    Const,
    Expr,
    ForKind,
    Func,
    If,
    Let,
    MemSpace,
    Ramp,
    ReduceOp,
    Select,
    Size,
    Splat,
    Stmt,
    Var,
    seq,
)

WIDTH = 32
KINDS = (f32, f64, i32, i64, bool_)
STORED = (f32, f64, f16, bf16, i32, i64, bool_)
n = SymDim("n", 1, 64)
COMPARE = (BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE)


class Generator:
    """Random expressions over a row index ``i``, a column ``j`` (scalar or ramp) and one buffer per dtype."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inputs = {d: Buffer(f"x_{d}", (n, WIDTH), d) for d in STORED}
        self.outputs = {d: Buffer(f"y_{d}", (n, WIDTH), d) for d in STORED}
        self.vars: list[Var] = []

    def func(self) -> Func:
        lanes = self.rng.choice((1, 4, 8, 16, 32))
        kind = self.rng.choice((ForKind.SERIAL, ForKind.PARALLEL))
        inner = ForKind.UNROLL if self.rng.random() < 0.5 else ForKind.SERIAL

        def row(i: Var) -> Stmt:
            return b.loop("j", WIDTH // lanes, lambda j: self.body(i, b.mul(j, lanes), lanes), inner)

        params = (*self.inputs.values(), *self.outputs.values())
        return Func("f", params, b.loop("i", n, row, kind), len(self.outputs))

    def body(self, i: Expr, j: Expr, lanes: int) -> Stmt:
        self.at = (i, Ramp(j, lanes) if lanes > 1 else j)
        self.lanes = lanes
        var = Var("v", self.rng.choice(KINDS), lanes)
        held = self.expr(var.dtype, 2)
        self.vars = [var]
        stores = [b.store(y, self.at, self.stored(d)) for d, y in self.outputs.items()]
        tile = Buffer("tile", (2, lanes), f32, self.rng.choice((MemSpace.LOCAL, MemSpace.REGISTER)))
        spot = (1, b.ramp(0, lanes))
        through = seq(
            b.store(tile, spot, self.expr(f32, 2)), b.store(self.outputs[f32], self.at, b.load(tile, *spot))
        )
        scalar = b.lt(b.add(i, j), self.rng.randrange(40))
        branch = If(scalar, stores.pop(), stores.pop() if self.rng.random() < 0.5 else None)
        self.vars = []
        return Let(var, held, seq(*stores, Alloc(tile, through), branch))

    def stored(self, dtype: DType) -> Expr:
        return Cast(dtype, self.expr(f32, 3)) if dtype in (f16, bf16) else self.expr(dtype, 4)

    def leaf(self, dtype: DType) -> Expr:
        for var in self.vars:
            if var.dtype == dtype and self.rng.random() < 0.4:
                return var
        if dtype == i64 and self.rng.random() < 0.4:
            last = self.at[1]
            return self.rng.choice((last, self.splat(self.at[0]), self.splat(Size(2 * n + 1))))
        if self.rng.random() < 0.25:
            value = self.rng.randrange(0, 2) if dtype == bool_ else self.rng.randrange(-3, 9)
            return self.splat(b.const(bool(value) if dtype == bool_ else value, dtype))
        if dtype == f32 and self.rng.random() < 0.3:
            return Cast(f32, b.load(self.inputs[self.rng.choice((f16, bf16))], *self.at))
        if self.rng.random() < 0.2:
            return b.load(self.inputs[dtype], *self.at, mask=self.expr(bool_, 1))
        if self.rng.random() < 0.2:
            return self.splat(b.load(self.inputs[dtype], self.at[0], self.rng.randrange(WIDTH)))
        return b.load(self.inputs[dtype], *self.at)

    def splat(self, value: Expr) -> Expr:
        return Splat(value, self.lanes) if self.lanes > 1 else value

    def expr(self, dtype: DType, depth: int) -> Expr:
        if depth == 0:
            return self.leaf(dtype)
        choice = self.rng.random()
        if choice < 0.12:
            return Select(
                self.expr(bool_, depth - 1), self.expr(dtype, depth - 1), self.expr(dtype, depth - 1)
            )
        if choice < 0.24:
            source = self.rng.choice([k for k in KINDS if k != dtype])
            if source.is_float and dtype.is_int:
                return Cast(dtype, self.leaf(source))  # of small values: others saturate or wrap
            return Cast(dtype, self.expr(source, depth - 1))
        if choice < 0.3 and dtype in (f32, i32):
            return self.splat(self.reduced(dtype, depth))
        a, c = self.expr(dtype, depth - 1), self.expr(dtype, depth - 1)
        if dtype == bool_:
            return self.truth(a, c, depth)
        ops = [BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.MIN, BinaryOp.MAX]
        if dtype.is_int and self.rng.random() < 0.3:
            divisor = self.splat(Const(self.rng.choice((-3, 1, 2, 3, 8, 16, 32)), dtype))
            return Binary(self.rng.choice((BinaryOp.FLOORDIV, BinaryOp.FLOORMOD)), a, divisor)
        if self.rng.random() < 0.15:
            return b.neg(a) if self.rng.random() < 0.5 else b.abs_(a)
        return Binary(self.rng.choice(ops), a, c)

    def reduced(self, dtype: DType, depth: int) -> Expr:
        vector = self.expr(dtype, depth - 1)
        # The order of a sum is free: only the sum of integers is the same in every order.
        ops = (ReduceOp.MAX, ReduceOp.MIN) if dtype.is_float else tuple(ReduceOp)
        return b.reduction(self.rng.choice(ops), vector)

    def truth(self, a: Expr, c: Expr, depth: int) -> Expr:
        if self.rng.random() < 0.5:
            kind = self.rng.choice((f32, f64, i32, i64))
            return Binary(self.rng.choice(COMPARE), self.expr(kind, depth - 1), self.expr(kind, depth - 1))
        return (
            b.not_(a)
            if self.rng.random() < 0.2
            else Binary(self.rng.choice((BinaryOp.AND, BinaryOp.OR)), a, c)
        )


def arrays_for(func: Func, rows: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for buffer in func.params:
        kind = np.dtype(buffer.dtype.numpy_name)
        data = (
            rng.integers(0, 2, (rows, WIDTH))
            if buffer.dtype == bool_
            else rng.uniform(-2, 2, (rows, WIDTH)) * 4
        )
        out.append(data.astype(kind))
    return out


def interpreted(func: Func, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What the interpreter makes of copies of ``arrays``."""
    copies = [a.copy() for a in arrays]
    interp.run(func, copies)
    return copies


@pytest.mark.parametrize("target", ["x86-64", "host"])
@pytest.mark.parametrize("seed", range(24))
def test_equals_interpreter(seed, target):
    func = Generator(seed).func()
    check(func)
    arrays = arrays_for(func, 3, seed)
    want = interpreted(func, arrays)
    machine = mcjit.TARGETS[target]
    mcjit.Kernel(func, machine)(*arrays, n=3)
    for buffer, got, expected in zip(func.params, arrays, want, strict=True):
        if machine.has("fma"):  # fused sums differ in the last place: only that both stay finite is certain
            got, expected = (np.isfinite(v.astype(np.float64)) for v in (got, expected))
        same = (got == expected) | ((got != got) & (expected != expected))
        assert same.all(), f"{buffer.name}: {got[~same][:3]} != {expected[~same][:3]}"
