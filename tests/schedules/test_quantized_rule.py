"""What the rule for quantised weights proposes, for every instruction set."""

import pytest
from single_products import kernels_of

from strata.core.dims import SymDim
from strata.loop.nodes import Func, Intrinsic
from strata.loop.rewrite import stmt_exprs, walk, walk_stmts
from strata.schedule.rules.matmul import FAR_BYTES
from strata.target import get_target

LEVELS = {
    "x86-64": 8,
    "avx2": 16,
    "avx2-vnni": 16,
    "avx512": 64,
    "avx512-bf16": 64,
    "avx512-fp16": 64,
    "avx512-amx": 64,
    "neon": 16,
    "neon-i8mm": 16,
}


def tiles_of(format: str, level: str, contracted: int = 128) -> dict[str, Func]:
    """Functions of the candidates by name."""
    kernels = kernels_of(get_target(level), format, 128, contracted, SymDim("m", 1, 64))
    return {c.name: c.func for c in kernels.stack.candidates}


def fetched(func: Func) -> set[str]:
    """Buffers of which something is prefetched into the level-2 cache."""
    exprs = (e for s in walk_stmts(func.body) for root in stmt_exprs(s) for e in walk(root))
    found = (e for e in exprs if isinstance(e, Intrinsic) and e.name == "prefetch")
    return {e.args[0].buffer.name for e in found}  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", ["int4", "int4:asymmetric", "int8", "int8:group=32"])
@pytest.mark.parametrize("level", list(LEVELS))
def test_tiles_of_one_and_of_several_rows(level: str, format: str) -> None:
    names = set(tiles_of(format, level))
    tiles = (1, 4, 6, 8) if get_target(level).fetch_ahead_bytes >= FAR_BYTES else (1, 3, 4)
    assert {f"cpu.qmatmul.dot{rows}x{LEVELS[level]}" for rows in tiles} <= names


@pytest.mark.parametrize("format", ["int4", "int4:asymmetric"])
@pytest.mark.parametrize("level", ["avx2", "avx512-bf16"])
def test_tiles_of_several_rows_have_the_next_part_of_the_weight_come(level, format) -> None:
    tiles = {name: fetched(func) for name, func in tiles_of(format, level).items()}
    assert {len(x) for name, x in tiles.items() if "dot1x" not in name} == {2}  # codes and scales
    assert {len(x) for name, x in tiles.items() if "dot1x" in name} == {0}


@pytest.mark.parametrize(("contracted", "fits"), [(7264, True), (7296, False)])
def test_the_next_part_comes_if_there_is_room_for_two(contracted: int, fits: bool) -> None:
    part = 64 * contracted * 9 // 16  # bytes of 64 outputs, scales included
    assert (2 * part <= get_target("avx512-bf16").l2_bytes) == fits
    assert any(map(fetched, tiles_of("int4", "avx512-bf16", contracted).values())) == fits


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_where_memory_answers_late_tiles_for_few_rows_ask_ahead(format: str) -> None:
    tiles = {name: len(fetched(func)) for name, func in tiles_of(format, "avx512-fp16").items()}
    asking = {name for name, buffers in tiles.items() if buffers}
    assert asking == {f"cpu.qmatmul.dot{rows}x64" for rows in (1, 4, 8)}
    assert {name for name in tiles if "6x64" in name} == set(tiles) - asking
