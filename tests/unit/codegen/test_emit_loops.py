"""Loops, branches, lets, parallel loops; and what the machine code of inner loops may contain."""

import re

import mcjit
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f32, i32
from strata.core.errors import CodegenError
from strata.loop import build as b
from strata.loop.nodes import (
    EVEN,
    GRAIN,
    Alloc,
    Block,
    Buffer,
    Cast,
    Const,
    For,
    ForKind,
    Func,
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Reduce,
    ReduceOp,
    Seq,
    Size,
    Splat,
    Store,
    Unary,
    UnaryOp,
    Var,
    index,
    size,
)
from strata.target import get_target

HOST = mcjit.TARGETS["host"]
n, m = SymDim("n", 0), SymDim("m")
x, y = Buffer("x", (n,), f32), Buffer("y", (n,), f32)


@pytest.mark.parametrize("kind", [ForKind.SERIAL, ForKind.PARALLEL])
def test_loop_may_run_zero_times(kind):
    kernel = mcjit.Kernel(Func("f", (x, y), b.loop("i", n, lambda i: b.store(y, (i,), b.load(x, i)), kind)))
    data, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    kernel(data, out, n=0)
    assert not out.any()
    kernel(data, out, n=5)
    assert (out == data).all()


def test_branches_and_lets():
    def body(i):
        value = Var("value", f32)
        small = b.store(y, (i,), b.neg(value))
        large = b.seq(
            b.store(y, (i,), value), b.loop("k", 3, lambda k: b.store(y, (i,), b.add(b.load(y, i), value)))
        )
        return Let(value, b.load(x, i), If(b.lt(value, 2.5), small, large))

    out = np.zeros(5, np.float32)
    mcjit.Kernel(Func("f", (x, y), b.loop("i", n, body)))(np.arange(5, dtype=np.float32), out, n=5)
    assert out.tolist() == [0, -1, -2, 12, 16]


def test_branch_without_else_and_constant_condition():
    def body(i):
        kept = If(b.eq(b.floormod(i, 2), 0), b.store(y, (i,), 1.0))
        return b.seq(kept, If(Const(False, bool_), b.store(y, (i,), 9.0)), If(Const(True, bool_), Seq(())))

    out = np.zeros(6, np.float32)
    mcjit.Kernel(Func("f", (x, y), b.loop("i", n, body)))(out.copy(), out, n=6)
    assert out.tolist() == [1, 0, 1, 0, 1, 0]


def test_shared_expressions_are_emitted_once():
    value = b.load(x, 0)
    for _ in range(40):
        value = b.add(value, value)
    text = mcjit.codegen.emit_module(Func("f", (x, y), b.store(y, (0,), value)), HOST)
    assert text.count("fadd") == 40


def test_loop_invariant_arithmetic_is_outside():
    """Row addresses and scalar functions of the outer index are computed in the outer loop."""
    a, out = Buffer("a", (n, m), f32), Buffer("out", (n, m), f32)
    body = b.loop(
        "i",
        n,
        lambda i: b.loop("j", m, lambda j: b.store(out, (i, j), b.mul(b.load(a, i, j), b.exp(Cast(f32, i))))),
    )
    text = mcjit.codegen.emit_module(Func("f", (a, out), body), HOST)
    inner = text[text.rindex("phi i64") : text.index("declare")]
    assert not re.search(r"mul nsw|fmuladd|ldexp", inner)


def gemm(mr, nr, rows, cols, depth, kind):
    """``c = a @ b`` in register tiles ``mr x nr``; ``b`` is stored as ``[cols/nr, depth, nr]``."""
    lanes = 16
    a, w = Buffer("a", (rows, depth), kind), Buffer("w", (cols // nr, depth, nr), kind)
    c, acc = Buffer("c", (rows, cols), f32), Buffer("acc", (mr, nr), f32, MemSpace.REGISTER)

    def unroll(body):
        def row(i):
            return b.loop("j", nr // lanes, lambda j: body(i, b.ramp(b.mul(j, lanes), lanes)), ForKind.UNROLL)

        return b.loop("i", mr, row, ForKind.UNROLL)

    def tile(i0, j0):
        def step(k):
            def one(i, at):
                row = Splat(b.cast(f32, b.load(a, b.add(b.mul(i0, mr), i), k)), lanes)
                product = b.mul(row, b.cast(f32, b.load(w, j0, k, at)))
                return b.store(acc, (i, at), b.add(b.load(acc, i, at), product))

            return unroll(one)

        def write(i, at):
            column = b.add(b.splat(b.mul(j0, nr), lanes), at)
            return b.store(c, (b.add(b.mul(i0, mr), i), column), b.load(acc, i, at))

        clear = unroll(lambda i, at: b.store(acc, (i, at), 0.0))
        return Alloc(acc, b.seq(clear, b.loop("k", depth, step), unroll(write)))

    tiles = b.loop(
        "j0", cols // nr, lambda j0: b.loop("i0", rows // mr, lambda i0: tile(i0, j0)), ForKind.PARALLEL
    )
    return Func("gemm", (a, w, c), tiles)


@pytest.mark.parametrize("kind", [f32, bf16], ids=str)
@pytest.mark.parametrize("target", [pytest.param(t, id=k) for k, t in mcjit.TARGETS.items()])
def test_gemm(kind, target):
    rng = np.random.default_rng(0)
    a, w = (rng.standard_normal(s).astype(kind.numpy_name) for s in ((12, 70), (70, 128)))
    packed = np.ascontiguousarray(w.reshape(70, 2, 64).transpose(1, 0, 2))
    c = np.zeros((12, 128), np.float32)
    mcjit.Kernel(gemm(6, 64, 12, 128, 70, kind), target)(a, packed, c)
    np.testing.assert_allclose(c, a.astype(np.float64) @ w.astype(np.float64), rtol=0, atol=2e-5)


def inner_loop(asm):
    """Instructions of the basic block with the most multiply-adds."""
    block = max(re.split(r"(?m)^\S+:|^\tj.*$", asm), key=lambda s: s.count("vfmadd"))
    return [
        line.split()[0] + (" mem" if "(" in line else "")
        for line in block.splitlines()
        if line.startswith("\t")
    ]


@pytest.mark.parametrize("kind", [f32, bf16], ids=str)
def test_micro_kernel_stays_in_registers(kind):
    """The k loop of a 6x64 tile: 24 multiply-adds, 6 broadcasts, 4 vector loads, no other memory traffic."""
    target = get_target("zen4")
    text = mcjit.codegen.emit_module(gemm(6, 64, 96, 128, 512, kind), target)
    found = inner_loop(mcjit.codegen.assembly(text, target))
    assert sum(i.startswith("vfmadd") for i in found) == 24
    assert "vfmadd231ps mem" not in found
    broadcast, load = (
        ("vbroadcastss mem", "vmovups mem") if kind == f32 else ("vpbroadcastw mem", "vpmovzxwd mem")
    )
    assert found.count(broadcast) == 6
    assert found.count(load) == 4
    assert sum(i.endswith(" mem") for i in found) == 10
    assert len(found) <= (37 if kind == f32 else 48)


def test_sums_that_registers_have_no_room_for_are_aligned():
    """40 sums in 32 registers: those on the stack do not cross cache lines, wherever the stack began."""
    text = mcjit.codegen.emit_module(gemm(10, 64, 100, 128, 512, f32), get_target("zen4"))
    moves = re.findall(
        r"\t(vmov\w+)\t.*(?:zmm\d+, -?\d*\(%rsp\)|\(%rsp\), %zmm)",
        mcjit.codegen.assembly(text, get_target("zen4")),
    )
    assert moves
    assert set(moves) <= {"vmovaps", "vmovdqa64"}


def test_parallel_captures_every_kind_of_value():
    """Params, dims, outer variables, lets, local buffers; nested parallel loops are serial."""
    a, out = Buffer("a", (n, m, 16), f32), Buffer("out", (n, m, 16), f32)
    table = Buffer("table", (16,), f32, MemSpace.LOCAL)
    scalar, vector, flag = Var("scalar", f32), Var("vector", f32, 16), Var("flag", bool_)
    lanes = b.ramp(0, 16)

    def element(i, j):
        value = b.add(b.mul(b.load(a, i, j, lanes), vector), b.load(table, lanes))
        value = b.add(value, Splat(b.add(scalar, b.cast(f32, b.add(b.mul(i, Size(m)), j))), 16))
        nested = b.loop("z", 2, lambda z: b.store(out, (i, j, lanes), value), ForKind.PARALLEL)
        return If(flag, nested)

    inner = lambda i: b.loop("j", m, lambda j: element(i, j), ForKind.PARALLEL)  # noqa: E731
    fill = b.store(table, (lanes,), b.load(a, 0, 0, lanes))
    body = Alloc(
        table,
        b.seq(
            fill,
            Let(
                scalar,
                b.load(a, 0, 0, 3),
                Let(
                    vector,
                    b.load(a, 0, 0, lanes),
                    Let(flag, b.lt(b.load(a, 0, 0, 0), 1e9), b.loop("i", n, inner)),
                ),
            ),
        ),
    )
    data = np.random.default_rng(1).standard_normal((3, 5, 16)).astype(np.float32)
    out_array = np.zeros_like(data)
    kernel = mcjit.Kernel(Func("f", (a, out), body))
    kernel(data, out_array, n=3, m=5)
    order = np.arange(15, dtype=np.float32).reshape(3, 5, 1)
    want = data * data[0, 0] + data[0, 0] + (data[0, 0, 3] + order)
    np.testing.assert_allclose(out_array, want, rtol=2e-6, atol=2e-6)
    assert kernel.text.count("define internal") == 2
    assert mcjit.called(mcjit.codegen.assembly(kernel.text, HOST)) == {"strata_parallel_for"}


def test_parallel_loop_of_one_iteration_is_not_outlined():
    body = b.loop("i", 1, lambda i: b.store(y, (i,), 1.0), ForKind.PARALLEL)
    assert "strata_parallel_for" not in mcjit.codegen.emit_module(Func("f", (x, y), body), HOST)


def test_loops_over_blocks_are_parallel_and_loops_over_threads_serial():
    def text(kind, notes=()):
        loop = For(Var("i"), Size(n), kind, b.store(y, (0,), 1.0), notes)
        return mcjit.codegen.emit_module(Func("f", (x, y), loop), HOST)

    serial = text(ForKind.SERIAL)
    assert all(text(kind) == serial for kind in (ForKind.THREAD_X, ForKind.THREAD_Z, ForKind.LANE))
    assert text(ForKind.BLOCK_Y) == text(ForKind.PARALLEL) == text(ForKind.PARALLEL, (("other", 3),))
    assert "i64 1, i64 0)" in text(ForKind.PARALLEL)
    assert "i64 16, i64 1)" in text(ForKind.PARALLEL, ((GRAIN, 16), (EVEN, 1)))


def test_shares_are_even_where_loops_inside_are_short():
    def text(body, even):
        loop = For(Var("i"), index(8), ForKind.PARALLEL, body, ((EVEN, even),))
        return mcjit.codegen.emit_module(Func("f", (x, y), loop), HOST)

    inner = b.loop("j", Size(n), lambda j: b.store(y, (j,), 1.0))
    assert re.search(
        r"(%\w+) = icmp sle i64 %dim0, 3\n +(%\w+) = select i1 \1, .*\n.* i64 8, i64 1, i64 \2\)",
        text(inner, 3),
    )
    assert "i64 1, i64 0)" in text(inner, 0)
    assert "i64 1, i64 1)" in text(b.loop("j", 8, lambda j: b.store(y, (j,), 1.0)), 3)
    outer = Var("o")
    triangle = For(outer, Size(n), ForKind.SERIAL, b.loop("j", outer, lambda j: b.store(y, (j,), 1.0)))
    assert "i64 1, i64 0)" in text(triangle, 3)


def test_no_library_calls():
    """Filling, copying and transcendental loops must not become calls."""
    ops = [
        UnaryOp.EXP,
        UnaryOp.LOG,
        UnaryOp.TANH,
        UnaryOp.ERF,
        UnaryOp.SIN,
        UnaryOp.SIGMOID,
        UnaryOp.FLOOR,
        UnaryOp.SQRT,
    ]

    def body(i):
        value = b.load(x, i)
        for op in ops:
            value = Unary(op, value)
        return b.store(y, (i,), value)

    fill = b.loop("i", n, lambda i: b.store(y, (i,), 0.0))
    copy = b.loop("i", n, lambda i: b.store(y, (i,), b.load(x, i)))
    tile = Buffer("tile", (64,), f32, MemSpace.LOCAL)
    clear = Alloc(
        tile,
        b.seq(*(b.store(tile, (k,), 0.0) for k in range(64)), b.store(y, (0,), b.load(tile, b.sub(n, 1)))),
    )
    func = Func("f", (x, y), b.seq(fill, copy, clear, b.loop("i", n, body)))
    for name in ("x86-64", "avx2", "avx512"):
        target = get_target(name)
        assert not mcjit.called(mcjit.codegen.assembly(mcjit.codegen.emit_module(func, target), target))


def test_same_function_gives_same_text():
    assert mcjit.codegen.emit_module(gemm(6, 64, 12, 128, 70, f32), HOST) == mcjit.codegen.emit_module(
        gemm(6, 64, 12, 128, 70, f32), HOST
    )


def error_cases():
    lanes = Ramp(index(0), 4)
    v, i = Var("v"), Var("i")
    local = Buffer("t", (n,), f32, MemSpace.LOCAL)
    glob = Buffer("t", (4,), f32)
    k = SymDim("k")
    cases = {
        "block b is left": Block("b", (), Seq(())),
        "vectorized loop i is left": For(i, index(4), ForKind.VECTORIZE, Seq(())),
        "unrolled loop i has no constant extent": For(i, size(n), ForKind.UNROLL, Seq(())),
        "variable v is used outside its scope": Store(y, (v,), Const(0.0, f32)),
        "dim k is in no parameter's shape; known: n": Store(y, (Size(k),), Const(0.0, f32)),
        "buffer t is neither a parameter nor allocated": Store(local, (index(0),), Const(0.0, f32)),
        "local t: got dim n; expected constants": Alloc(local, Seq(())),
        "buffer t is allocated as global": Alloc(glob, Seq(())),
        "if with a condition of 4 lanes": If(b.lt(lanes, 2), Seq(())),
        "expected a power of two": Store(y, (index(0),), Reduce(ReduceOp.ADD, Load(x, (Ramp(index(0), 3),)))),
        "no intrinsic 'nope'; known: bits, dot2_bf16": Store(y, (index(0),), Intrinsic("nope", (), f32, 1)),
        r"fma: got \(i32\[1\]\); expected": Store(y, (index(0),), Intrinsic("fma", (Const(1, i32),), f32, 1)),
        "exp: got an operand of i32; expected f32 or f64": Store(
            y, (index(0),), Cast(f32, Unary(UnaryOp.EXP, Cast(i32, Load(x, (index(0),)))))
        ),
    }
    return [pytest.param(stmt, message, id=message[:24]) for message, stmt in cases.items()]


@pytest.mark.parametrize(("stmt", "message"), error_cases())
def test_errors(stmt, message):
    with pytest.raises(CodegenError, match=message):
        mcjit.codegen.emit_module(Func("f", (x, y), stmt), HOST)


def test_vector_index_must_be_the_last():
    a = Buffer("a", (4, 4), f32)
    stmt = Store(y, (Ramp(index(0), 4),), Load(a, (Ramp(index(0), 4), Ramp(index(0), 4))))
    with pytest.raises(CodegenError, match="a: index 0 has 4 lanes"):
        mcjit.codegen.emit_module(Func("f", (x, y, a), stmt), HOST)


def test_rejected_text_is_shown_with_line_numbers():
    with pytest.raises(CodegenError, match=r"LLVM rejects the text(.|\n)*    2 .*nonsense"):
        mcjit.codegen.compile_object("\n  nonsense", HOST)


def test_unknown_triple():
    from dataclasses import replace

    with pytest.raises(CodegenError, match="no back end for nope-unknown"):
        mcjit.codegen.emit_module(Func("f", (x, y), Seq(())), replace(HOST, triple="nope-unknown"))


def test_many_threads_compile_at_once():
    from concurrent.futures import ThreadPoolExecutor

    def one(depth):
        return mcjit.codegen.compile_object(
            mcjit.codegen.emit_module(gemm(6, 64, 12, 128, depth, f32), HOST), HOST
        )

    depths = list(range(8, 16))
    with ThreadPoolExecutor(4) as pool:
        objects = list(pool.map(one, depths))
    assert objects == [one(d) for d in depths]
    assert all(o.startswith(b"\x7fELF") for o in objects)


def test_emission_failure_carries_the_message(monkeypatch):
    from strata.codegen import optimize

    text = mcjit.codegen.emit_module(Func("f", (x, y), Seq(())), HOST)
    module, machine = optimize.parse(text, "f"), optimize.target_machine(HOST)
    monkeypatch.setattr(optimize, "_unlocked", lambda name: lambda *args: None)
    with pytest.raises(CodegenError, match="code emission: "):
        optimize.emit(module, machine, as_object=True)


def test_operation_that_is_no_float_function():
    from strata.codegen.emit_values import Builder, constant
    from strata.codegen.math_functions import emit_math

    with pytest.raises(CodegenError, match="not: no float function of that name"):
        emit_math(Builder({}), HOST, UnaryOp.NOT, constant(1.0, f32))
