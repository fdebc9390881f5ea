"""Runs emitted kernels in this process by LLVM's own JIT: no wrappers, no linker, no thread pool."""

import ctypes
import re
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
import ml_dtypes  # noqa: F401
import numpy as np
from instruction_sets import RUNNABLE

from strata.codegen import compile as codegen
from strata.codegen import optimize
from strata.core.dtypes import DType, i8, i32, i64, u8
from strata.loop import build as b
from strata.loop.nodes import Buffer, Expr, Func, Intrinsic, Stmt
from strata.target import Target, detect_host, get_target

# Two calls, the second one first: iterations of a parallel loop may run in any order.
PARALLEL_FOR = """
define dso_local void @strata_parallel_for(ptr %f, ptr %env, i64 %n, i64 %grain, i64 %even) {
  %half = sdiv i64 %n, 2
  call void %f(ptr %env, i64 %half, i64 %n)
  call void %f(ptr %env, i64 0, i64 %half)
  ret void
}
"""


def runnable_targets() -> list[Target]:
    """The named levels of instruction sets that this machine has, and this machine."""
    host = detect_host()
    return [*map(get_target, RUNNABLE), host]


TARGETS = {t.name: t for t in runnable_targets()}


class Kernel:
    """``func`` compiled for ``target`` and callable with arrays and dims."""

    def __init__(self, func: Func, target: Target | None = None) -> None:
        self.func = func
        self.target = target or detect_host()
        self.text = codegen.emit_module(func, self.target)
        text = self.text
        if "@strata_parallel_for" in text:
            text = re.sub(r"(?m)^declare .*@strata_parallel_for\(.*$", "", text) + PARALLEL_FOR
        module = optimize.parse(text, func.name)
        optimize.optimize(module, optimize.target_machine(self.target))
        jit = llvm.Target.from_triple(self.target.triple).create_target_machine(jit=True)
        self._engine = llvm.create_mcjit_compiler(module, jit)
        self._engine.finalize_object()
        address = self._engine.get_function_address(f"{func.name}.impl")
        kinds = [ctypes.c_void_p] * len(func.params) + [ctypes.c_int64] * len(func.dims)
        self._run = ctypes.CFUNCTYPE(None, *kinds)(address)

    def __call__(self, *arrays: np.ndarray, **dims: int) -> None:
        assert all(a.flags.c_contiguous for a in arrays)
        self._run(*(a.ctypes.data for a in arrays), *(dims[s.name] for s in self.func.dims))

    @property
    def asm(self) -> str:
        """Assembly, without directives."""
        return codegen.assembly(self.text, self.target)


def called(asm: str) -> set[str]:
    """Names of functions that an assembly text calls or jumps to, but for its own labels."""
    found = re.findall(r"\b(?:callq?|jmp)\s+([A-Za-z_][\w.]*)", asm)
    defined = set(re.findall(r"(?m)^([A-Za-z_][\w.]*):", asm))
    return set(found) - defined


def elementwise(
    exprs: Sequence[Callable[..., Expr]],
    inputs: Sequence[DType],
    outputs: Sequence[DType],
    count: int,
    lanes: int,
) -> Func:
    """``y_k[i] = exprs[k](x_0[i], x_1[i], ...)`` for ``count`` elements, ``lanes`` at a time."""
    xs = [Buffer(f"x{k}", (count,), d) for k, d in enumerate(inputs)]
    ys = [Buffer(f"y{k}", (count,), d) for k, d in enumerate(outputs)]

    def body(i: Expr) -> Stmt:
        at = b.ramp(b.mul(i, lanes), lanes)
        args = [b.load(x, at) for x in xs]
        return b.seq(*(b.store(y, (at,), f(*args)) for y, f in zip(ys, exprs, strict=True)))

    assert count % lanes == 0
    return Func("f", (*xs, *ys), b.loop("i", count // lanes, body), len(ys))


def dot4(name: str, lanes: int, group: int, rows: int = 3) -> Func:
    """``o[r, :] = @name(acc[r, :], x[r, :], y[r, :])``."""
    bufs = [
        Buffer("acc", (rows, lanes), i32),
        Buffer("x", (rows, 4 * lanes), u8),
        Buffer("y", (rows, group), i8),
        Buffer("o", (rows, lanes), i32),
    ]

    def row(r: Expr) -> Stmt:
        args = [b.load(p, r, b.ramp(0, p.shape[1]) if p.shape[1] > 1 else b.const(0, i64)) for p in bufs[:3]]
        at = b.ramp(0, lanes) if lanes > 1 else b.const(0, i64)
        return b.store(bufs[3], (r, at), Intrinsic(name, tuple(args), i32, lanes))

    return Func("f", tuple(bufs), b.loop("r", rows, row))


def run(func: Func, target: Target, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs (filled with 0x55 bytes before) of a function of constant shapes."""
    outputs = []
    for buffer in func.params[len(inputs) :]:
        size = [int(d) for d in buffer.shape]  # type: ignore[arg-type]
        raw = np.full(int(np.prod(size)) * buffer.dtype.itemsize_bytes, 0x55, np.uint8)
        outputs.append(raw.view(np.dtype(buffer.dtype.numpy_name)).reshape(size))
    Kernel(func, target)(*inputs, *outputs)
    return outputs
