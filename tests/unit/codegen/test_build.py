"""From loop functions to a running program: compile, link, load, run."""

import numpy as np
import pytest
from hand_kernels import TARGET

from strata.codegen.build import build_image
from strata.codegen.object_cache import ObjectCache
from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import CodegenError
from strata.loop.nodes import (
    Binary,
    BinaryOp,
    Buffer,
    Const,
    For,
    ForKind,
    Func,
    Load,
    Size,
    Store,
    Var,
    index,
)
from strata.runtime.image import load_image
from strata.runtime.records import (
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    Launch,
    TensorSpec,
)

N = SymDim("n", 1, 300)


def scale(name: str, factor: float) -> Func:
    """y = factor * x for [n, 16], rows in parallel."""
    x, y, i, j = Buffer("x", (N, 16), f32), Buffer("y", (N, 16), f32), Var("i"), Var("j")
    value = Binary(BinaryOp.MUL, Load(x, (i, j)), Const(factor, f32))
    inner = For(j, index(16), ForKind.SERIAL, Store(y, (i, j), value))
    return Func(name, (x, y), For(i, Size(N), ForKind.PARALLEL, inner))


def shift(name: str) -> Func:
    """y[i, j] = x[i, j] + b[j] for [n, 16]."""
    x, b, y = Buffer("x", (N, 16), f32), Buffer("b", (16,), f32), Buffer("y", (N, 16), f32)
    i, j = Var("i"), Var("j")
    value = Binary(BinaryOp.ADD, Load(x, (i, j)), Load(b, (j,)))
    inner = For(j, index(16), ForKind.SERIAL, Store(y, (i, j), value))
    return Func(name, (x, b, y), For(i, Size(N), ForKind.SERIAL, inner))


STEP = FunctionRecord(
    "step",
    (TensorSpec("x", "f32", ("n", 16)),),
    (TensorSpec("y", "f32", ("n", 16)),),
    (DimRange("n", 1, 300),),
    (
        Launch(
            "scale",
            (KernelChoice("double", (DimRange("n", 1, 8),)), KernelChoice("triple")),
            (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.ARENA, 64)),
        ),
        Launch(
            "shift",
            (KernelChoice("shift"),),
            (ArgRef(ArgKind.ARENA, 64), ArgRef(ArgKind.PARAM, 0), ArgRef(ArgKind.OUTPUT, 0)),
        ),
    ),
    64 + 300 * 16 * 4,
)
FUNCS = [scale("double", 2.0), scale("triple", 3.0), shift("shift")]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_program_of_two_kernels(tmp_path, threads):
    loaded = load_image(build_image(FUNCS, [STEP], TARGET, cache=ObjectCache(tmp_path)).blob, threads)
    step = loaded.function("step")
    bias = np.arange(16, dtype=np.float32)
    raw = np.empty(STEP.arena_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    rng = np.random.default_rng(0)
    for n in (1, 8, 9, 300):
        x, y = rng.standard_normal((n, 16), np.float32), np.empty((n, 16), np.float32)
        step(x, y, np.array([bias.ctypes.data]), raw[start : start + STEP.arena_bytes])
        np.testing.assert_array_equal(y, x * np.float32(2 if n <= 8 else 3) + bias)
    x, y = np.ones((5, 16), np.float32), np.empty((5, 16), np.float32)
    loaded.function("triple")(x, y)
    np.testing.assert_array_equal(y, np.full((5, 16), 3))
    loaded.close()


def test_the_same_input_gives_the_same_image(tmp_path):
    first = build_image(FUNCS, [STEP], TARGET, cache=ObjectCache(tmp_path / "a"))
    assert build_image(FUNCS, [STEP], TARGET, cache=ObjectCache(tmp_path / "b")).blob == first.blob


def test_names_must_differ(tmp_path):
    with pytest.raises(CodegenError, match=r"build: got several functions called double; names must"):
        build_image([FUNCS[0], scale("double", 5.0)], [], TARGET, cache=ObjectCache(tmp_path))
