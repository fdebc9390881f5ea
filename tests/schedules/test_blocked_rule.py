"""Products in blocks of k: the same sums as tiles of a whole k, and where they are offered."""

import numpy as np
import pytest
from instruction_sets import RUNNABLE
from single_products import kernels_of

from strata.codegen.build import build_image
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import f32
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.values import numpy_dtype
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.target import get_target

LEVEL, NAME = "avx512-fp16", "cpu.matmul.blocked6x64"
LONG = 9 * 1024  # numbers of k: a tile of a weight in f32 takes the level-2 cache


def candidates(format: str, contracted: int, level: str = LEVEL, rows: int = 600, outputs: int = 192):
    found = kernels_of(get_target(level), format, outputs, contracted, SymDim("m", 1, rows))
    return {c.name: c.func for c in found.stack.candidates}


def arrays(func: Func, rows: int) -> list[np.ndarray]:
    """Small whole numbers, whose sums are exact in any order; NaN where the result belongs."""
    rng = np.random.default_rng(rows)
    shapes = [tuple(evaluate(d, {"m": rows}) for d in p.shape) for p in func.params]
    *given, result = (
        rng.integers(-3, 4, shape).astype(numpy_dtype(p.dtype))
        for p, shape in zip(func.params, shapes, strict=True)
    )
    return [*given, np.full(result.shape, np.nan, result.dtype)]


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_loops_add_the_same_products(format: str) -> None:
    found = candidates(format, 128, outputs=128)
    tiles, blocked = found["cpu.matmul.tile6x64"], found[NAME]
    for rows in (1, 7):
        got, want = (arrays(func, rows) for func in (blocked, tiles))
        run(blocked, got, parallel_seed=rows)
        run(tiles, want, parallel_seed=rows)
        np.testing.assert_array_equal(got[-1], want[-1])


@pytest.mark.skipif(LEVEL not in RUNNABLE, reason=f"this machine has no {LEVEL}")
@pytest.mark.parametrize(("format", "contracted"), [("bf16", 192), ("f16", 128), ("f32", LONG)])
@pytest.mark.parametrize("outputs", [64, 192, 200])
def test_machine_code_adds_the_same_products(format: str, contracted: int, outputs: int) -> None:
    """Around borders of tiles, of pairs of tiles, and of rows whose sums are in memory at once."""
    found = candidates(format, contracted, outputs=outputs)
    if NAME not in found:
        assert outputs % 64  # a weight that is padded
        return
    funcs = [found["cpu.matmul.tile6x64"], found[NAME]]
    for threads in (1, 2):
        image = load_image(build_image(funcs, [], get_target(LEVEL)).blob, threads)
        for rows in (1, 5, 6, 7, 96, 515, 516, 517, 600):
            results = []
            for func in funcs:
                values = arrays(func, rows)
                image.function(func.name)(*map(as_tensor, values))
                results.append(values[-1])
            np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.parametrize(
    ("format", "contracted", "level", "rows", "offered"),
    [
        ("bf16", 128, LEVEL, 64, True),
        ("bf16", 128, LEVEL, 47, False),  # too few rows
        ("bf16", 64, LEVEL, 64, False),  # one block
        ("bf16", 100, LEVEL, 64, False),  # no blocks
        ("bf16", 128, "avx512-bf16", 64, False),  # dot products, memory that answers soon
        ("bf16", 128, "avx512-amx", 64, False),  # a matrix unit
        ("f16", 128, "avx512-amx", 64, True),
        ("f16", 128, "avx512", 64, False),
        ("f32", 128, LEVEL, 64, False),  # fits the level-2 cache
        ("f32", LONG, LEVEL, 64, True),
        ("int8", 256, LEVEL, 64, False),
    ],
)
def test_where_blocks_are_offered(format, contracted, level, rows, offered) -> None:
    assert (NAME in candidates(format, contracted, level, rows, outputs=64)) == offered


def test_memory_for_activations_is_in_f32() -> None:
    func = candidates("bf16", 128)[NAME]
    assert [p.dtype for p in func.params if p.name.startswith("activations")] == [f32]
