"""What the rules make for a matrix unit computes what other tiles compute, on every machine: as loops."""

import re

import numpy as np
import pytest
import single_products

from strata.codegen.compile import emit_module
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import bf16, f32, i8, u8
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import CacheType, RopeMode, TensorType
from strata.loop.interp import run
from strata.loop.matrix import has_matrix_loop, operands_of
from strata.loop.nodes import MATRIX, PREFETCH, For
from strata.loop.rewrite import walk_stmts
from strata.loop.values import numpy_dtype
from strata.passes import run_passes
from strata.planner.candidates.rounded import rounded
from strata.planner.choose import choose
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.schedule.rules.matmul import weight_layout
from strata.target import get_target


def kernels_of(format: str, outputs: int, contracted: int, rows: int = 64) -> Kernels:
    """Candidates of a product, for a machine with a matrix unit."""
    return single_products.kernels_of(
        get_target("avx512-amx"), format, outputs, contracted, SymDim("m", 1, rows)
    )


@pytest.mark.parametrize(
    ("format", "outputs", "contracted"),
    [
        ("bf16", 100, 64),
        ("bf16", 96, 64),
        ("bf16", 64, 96),
        ("int8", 72, 256),
        ("int4", 192, 64),
        ("int4", 100, 64),
    ],
)
def test_matrix_tiles_add_the_same_products(format: str, outputs: int, contracted: int) -> None:
    kernels = kernels_of(format, outputs, contracted)
    funcs = [c.func for c in kernels.stack.candidates]
    (tiles,) = [f for f in funcs if has_matrix_loop(f)]
    naive = rounded(kernels.task)
    assert (naive is not None) == (format == "int4")
    other = funcs[0] if naive is None else naive.func
    for rows in (1, 17, 33):
        rng, results = np.random.default_rng(rows), []
        shapes = [tuple(evaluate(d, {"m": rows}) for d in p.shape) for p in tiles.params]
        values = [
            rng.integers(0, 5, shape).astype(numpy_dtype(p.dtype))
            for p, shape in zip(tiles.params, shapes, strict=True)
        ]
        for func in (other, tiles):
            arrays = [v.copy() for v in values[: len(func.params) - 1]] + [values[-1].copy()]
            run(func, arrays, parallel_seed=rows)
            results.append(arrays[-1])
        np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_tiles_of_both_operands_are_fetched_ahead(format: str) -> None:
    (tiles,) = [c.func for c in kernels_of(format, 64, 128).stack.candidates if has_matrix_loop(c.func)]
    (loop,) = [s for s in walk_stmts(tiles) if isinstance(s, For) and dict(s.notes).get(MATRIX)]
    fetched = {key.removeprefix(PREFETCH[1]): value for key, value in loop.notes if key != MATRIX}
    assert fetched == dict.fromkeys(operands_of(loop), 2)


def test_the_next_group_s_codes_are_fetched_ahead_across_the_scales_between() -> None:
    candidates = kernels_of("int8", 64, 256).stack.candidates
    (tiles,) = [c.func for c in candidates if has_matrix_loop(c.func)]
    codes = next(p for p in tiles.params if p.dtype is u8)
    group = codes.shape[2]
    assert group == 128 * 64 + 64 * 2  # two steps of the loop, then scales
    text = emit_module(tiles, get_target("avx512-amx"))
    asked = {int(x) for x in re.findall(r"getelementptr i8, ptr %\S+, i64 (\d+)", text)}
    assert group in asked
    assert 128 * 64 not in asked


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_rows_of_activations_are_not_a_power_of_two_of_bytes_apart(format: str) -> None:
    (tiles,) = [c.func for c in kernels_of(format, 64, 128).stack.candidates if has_matrix_loop(c.func)]
    shapes = [p.shape[1:] for p in tiles.params if p.name.startswith("activations")]
    assert shapes == [(128 // 32 + 1, 32)]


def test_two_tiles_of_a_weight_for_a_matrix_unit_are_one_stream() -> None:
    target = get_target("avx512-amx")
    assert str(weight_layout(bf16, 64, transposed=False, target=target)) == "tiles(rows=32,cols=2)"
    assert str(weight_layout(f32, 64, transposed=False, target=target)) == "tiles(rows=64,cols=1)"


def test_long_rows_are_unpacked_in_parts_that_fit_the_stack() -> None:
    names = [c.name for c in kernels_of("int4", 64, 14336).stack.candidates]
    assert "cpu.qmatmul.bf16_32x32" in names


@pytest.mark.parametrize("rows", [31, 32])
def test_weights_are_not_unpacked_for_fewer_rows_than_a_tile_has(rows: int) -> None:
    names = [c.name for c in kernels_of("int4", 64, 64, rows).stack.candidates]
    assert ("cpu.qmatmul.bf16_32x32" in names) == (rows == 32)


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "page_size", "kind", "fits"),
    [
        (4, 64, 64, bf16, True),
        (32, 32, 32, bf16, True),
        (4, 64, 64, i8, True),
        (4, 48, 64, bf16, False),
        (4, 64, 64, f32, False),
    ],
)
def test_attention_of_whole_tiles_is_for_a_matrix_unit(kv_heads, head_dim, page_size, kind, fits) -> None:
    """For any number of tokens: without the unit, single ones are computed in blocks of rows, too."""
    cache = CacheType(1, kv_heads, head_dim, kind, page_size, RopeMode("none"), 0)
    q = builder.input("q", TensorType((SymDim("n", 1, 512), 32, head_dim), f32))
    attention = builder.paged_attention(q, kv := builder.input("cache", cache), 0, 1.0)
    module = run_passes("default", Module((Function("attention", (q, kv), (attention,)),)))
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    kernels = StackBuilder({}, get_target("avx512-amx"), PlanOptions(measure=False)).kernels_of(node)
    found = kernels.stack.candidates
    tiles = [c for c in found if has_matrix_loop(c.func)]
    assert [c.when for c in tiles] == [()] * fits
    if fits:
        assert {found[choice.candidate].name for choice in choose(found, kernels.rows)} == {tiles[0].name}
