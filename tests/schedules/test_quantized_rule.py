"""What the rule for quantised weights proposes, for every instruction set."""

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.weight_format import FormatChoice, parse_format
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.loop.nodes import Func, Intrinsic
from strata.loop.rewrite import stmt_exprs, walk, walk_stmts
from strata.passes import run_passes
from strata.passes.quantize import quantize_weights
from strata.planner.layouts import choose_layouts
from strata.planner.options import PlanOptions
from strata.planner.stacks import StackBuilder
from strata.target import get_target

LEVELS = {
    "x86-64": 8,
    "avx2": 16,
    "avx2-vnni": 16,
    "avx512": 64,
    "avx512-bf16": 64,
    "avx512-amx": 64,
    "neon": 16,
    "neon-i8mm": 16,
}


def tiles_of(format: str, level: str, contracted: int = 128) -> dict[str, Func]:
    """Functions of the candidates by name."""
    target = get_target(level)
    x = builder.input("x", TensorType((SymDim("m", 1, 64), contracted), f32))
    w = builder.param("w", TensorType((128, contracted), f32))
    module = Module((Function("product", (x,), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),)),))
    module = quantize_weights(module, FormatChoice(parse_format(format)))  # type: ignore[arg-type]
    module = run_passes("default", module)
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    return {c.name: c.func for c in stacks.kernels_of(node).stack.candidates}


def fetched(func: Func) -> set[str]:
    """Buffers of which something is prefetched into the level-2 cache."""
    exprs = (e for s in walk_stmts(func.body) for root in stmt_exprs(s) for e in walk(root))
    found = (e for e in exprs if isinstance(e, Intrinsic) and e.name == "prefetch")
    return {e.args[0].buffer.name for e in found}  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", ["int4", "int4:asymmetric", "int8", "int8:group=32"])
@pytest.mark.parametrize("level", list(LEVELS))
def test_tiles_of_one_and_of_several_rows(level: str, format: str) -> None:
    names = set(tiles_of(format, level))
    assert {f"cpu.qmatmul.dot{rows}x{LEVELS[level]}" for rows in (1, 3, 4)} <= names


@pytest.mark.parametrize("format", ["int4", "int4:asymmetric"])
@pytest.mark.parametrize("level", ["avx2", "avx512-bf16"])
def test_tiles_of_several_rows_have_the_next_part_of_the_weight_come(level, format) -> None:
    tiles = {name: fetched(func) for name, func in tiles_of(format, level).items()}
    assert {len(x) for name, x in tiles.items() if "dot1x" not in name} == {2}  # codes and scales
    assert {len(x) for name, x in tiles.items() if "dot1x" in name} == {0}


def test_nothing_comes_for_which_there_is_no_room() -> None:
    # 64 outputs of 30720 elements are 1.05 MiB with their scales; that level's cache has 1 MiB.
    assert not any(map(fetched, tiles_of("int4", "avx512-bf16", 30720).values()))
