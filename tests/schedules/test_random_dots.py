"""Random products of bf16 matrices become dot products of pairs: tensorize keeps what they compute."""

from random import Random

import numpy as np
import pytest

from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import bf16, f32
from strata.loop import build as b
from strata.loop.check import LOOP_LOWERED, LOOP_SCHEDULED, check
from strata.loop.interp import run
from strata.loop.layout import Layout
from strata.loop.nodes import Alloc, Buffer, Func, Load, seq
from strata.loop.text import canonical_text
from strata.loop.values import numpy_dtype
from strata.lower.context import Context
from strata.schedule import Schedule

N = SymDim("n", 1, 9)


def product(rng: Random) -> Func:
    """``y = relu(a @ w.T)`` in f32, with ``w`` in tiles of its outputs that have pairs of k together."""
    rows, outputs, k = rng.choice([N, 1, 5]), rng.choice([16, 24, 40]), rng.choice([2, 6, 8])
    layout = Layout(rng.choice([16, 32]), 2)
    a = Buffer("a", (rows, k), bf16)
    w = Buffer("w", layout.physical_shape((outputs, k)), bf16)
    y = Buffer("y", (rows, outputs), f32)
    ctx = Context(1, {})

    def term(i, r):
        x, weight = Load(a, (i[0], r[0])), Load(w, layout.physical_index(i[1], r[0]))
        return b.mul(b.cast(f32, x), b.cast(f32, weight))

    total = ctx.reduce("mm", (rows, outputs), f32, (k,), b.const(0.0, f32), b.add, term)
    ctx.stage("out", (rows, outputs), f32, lambda i: b.maximum(total(i), 0.0), lambda i: (y, i))
    return Func("f", (a, w, y), Alloc(ctx.allocs[0], seq(*ctx.stages)))


def outputs(func: Func, seed: int) -> np.ndarray:
    """The product of small whole numbers: exact in any order."""
    rng = np.random.default_rng(seed)
    env = {"n": int(rng.integers(1, 10))}
    shapes = [tuple(evaluate(d, env) for d in p.shape) for p in func.params]
    args = [
        rng.integers(-4, 5, s).astype(numpy_dtype(p.dtype)) for p, s in zip(func.params, shapes, strict=True)
    ]
    run(func, args, parallel_seed=seed)
    return args[-1]


@pytest.mark.parametrize("seed", range(12))
def test_dot_products(seed: int) -> None:
    rng = Random(seed)
    func, lanes = product(rng), rng.choice([4, 8, 16])
    s = Schedule(func).tile(out_i0=rng.choice([1, 3]), out_i1=16)
    if rng.random() < 0.5:
        s.reorder("out_i1o", "out_i0o")
    s.compute_at("mm", s.loops("out")[1], rng.choice(["local", "register"]))
    s.split("mm_k0", 2, "exact").split("mm_i1", lanes)
    s.reorder("mm_k0o", "mm_i0", "mm_i1o", "mm_i1i", "mm_k0i").decompose_reduction("mm")
    s.tensorize("mm_i1i")
    for loop in ("mm_i0", "mm_i1o", "mm_i0_init", "mm_i1o_init", "mm_i1i_init", "out_i0i", "out_i1i"):
        s.unroll(loop)
    check(s.func, LOOP_SCHEDULED)
    assert canonical_text(Schedule.replay(func, s.trace_text).func) == canonical_text(s.func)
    lowered = s.finalize()
    check(lowered, LOOP_LOWERED)
    for scheduled in (s.func, lowered):
        np.testing.assert_array_equal(outputs(scheduled, seed), outputs(func, seed))
