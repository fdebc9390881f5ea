"""Products in blocks of k: the same sums as tiles of a whole k, and where they are offered."""

import pytest
from instruction_sets import RUNNABLE
from single_products import assert_loops_agree, assert_machine_code_agrees, kernels_of

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.target import get_target

LEVEL, NAME, TILES = "avx512-fp16", "cpu.matmul.blocked6x64", "cpu.matmul.tile6x64"
LONG = 9 * 1024  # numbers of k: a tile of a weight in f32 takes the level-2 cache


def candidates(format: str, contracted: int, level: str = LEVEL, rows: int = 600, outputs: int = 192):
    found = kernels_of(get_target(level), format, outputs, contracted, SymDim("m", 1, rows))
    return {c.name: c.func for c in found.stack.candidates}


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_loops_add_the_same_products(format: str) -> None:
    found = candidates(format, 128, outputs=128)
    for rows in (1, 7):
        assert_loops_agree([found[TILES], found[NAME]], rows)


@pytest.mark.skipif(LEVEL not in RUNNABLE, reason=f"this machine has no {LEVEL}")
@pytest.mark.parametrize(("format", "contracted"), [("bf16", 192), ("f16", 128), ("f32", LONG)])
@pytest.mark.parametrize("outputs", [64, 192, 200])
def test_machine_code_adds_the_same_products(format: str, contracted: int, outputs: int) -> None:
    """Around borders of tiles, of pairs of tiles, and of rows whose sums are in memory at once."""
    found = candidates(format, contracted, outputs=outputs)
    if NAME not in found:
        assert outputs % 64  # a weight that is padded
        return
    sizes = (1, 5, 6, 7, 96, 515, 516, 517, 600)
    assert_machine_code_agrees([found[TILES], found[NAME]], get_target(LEVEL), sizes)


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
