"""Codes of 4 bits that become bytes once for many rows: the same sums, and where they are offered."""

import pytest
from instruction_sets import RUNNABLE
from single_products import assert_loops_agree, assert_machine_code_agrees, kernels_of

from strata.core.dims import SymDim
from strata.target import get_target

LEVEL, NAME, TILES = "avx512-fp16", "cpu.qmatmul.unpacked6x64", "cpu.qmatmul.dot4x64"
FORMATS = ["int4", "int4:asymmetric", "int4:group=64"]


def candidates(format: str, contracted: int, level: str = LEVEL, rows: int = 100, outputs: int = 192):
    found = kernels_of(get_target(level), format, outputs, contracted, SymDim("m", 1, rows))
    return {c.name: c.func for c in found.stack.candidates}


@pytest.mark.parametrize("format", FORMATS)
def test_loops_add_the_same_products(format: str) -> None:
    found = candidates(format, 128, outputs=64)
    for rows in (1, 7):
        assert_loops_agree([found[TILES], found[NAME]], rows)


@pytest.mark.skipif(LEVEL not in RUNNABLE, reason=f"this machine has no {LEVEL}")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("outputs", [64, 192])
def test_machine_code_adds_the_same_products(format: str, outputs: int) -> None:
    """Around borders of tiles of rows."""
    found = candidates(format, 256, outputs=outputs)
    assert_machine_code_agrees([found[TILES], found[NAME]], get_target(LEVEL), (1, 5, 6, 7, 48, 100))


@pytest.mark.parametrize(
    ("format", "contracted", "level", "rows", "offered"),
    [
        ("int4", 128, LEVEL, 64, True),
        ("int4", 128, LEVEL, 47, False),  # too few rows
        ("int4", 16 * 1024, LEVEL, 64, True),
        ("int4", 17 * 1024, LEVEL, 64, False),  # bytes of 64 outputs are more than the stack has room for
        ("int4", 128, "avx512-bf16", 64, False),  # unpacks beside its dot products
        ("int4", 128, "avx512-amx", 64, False),  # a matrix unit
        ("int8", 128, LEVEL, 64, False),
        ("bf16", 128, LEVEL, 64, False),
    ],
)
def test_where_unpacking_is_offered(format, contracted, level, rows, offered) -> None:
    assert (NAME in candidates(format, contracted, level, rows, outputs=64)) == offered
