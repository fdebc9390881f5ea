"""Measured products on a machine whose last-level cache may hold what is measured."""

from dataclasses import replace

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.knobs import knobs
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.passes import run_passes
from strata.planner.layouts import choose_layouts
from strata.planner.measure import QUICK_BYTES, QUICK_CACHES, TaskBench
from strata.planner.options import PlanOptions
from strata.planner.stacks import StackBuilder
from strata.target import detect_host

WEIGHT_BYTES = 64 * 64 * 4


def one_row_s(folder, l3_bytes: int) -> list[float]:
    """Seconds of every candidate of a small product, on a machine that reads one byte per second."""
    target = replace(detect_host(), l3_bytes=l3_bytes, bandwidth_bytes_per_s=1.0)
    x = builder.input("x", TensorType((SymDim("m", 1, 8), 64), f32))
    w = builder.param("w", TensorType((64, 64), f32))
    product = builder.matmul(x, w, transpose_b=True, out_dtype=f32)
    module = run_passes("default", Module((Function("product", (x,), (product,)),)))
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    kernels = stacks.kernels_of(node)
    with knobs(cache_dir=folder):
        funcs = [c.func for c in kernels.stack.candidates]
        return TaskBench(kernels.task, funcs, num_threads=1, is_quick=True).times_s(1)


@pytest.mark.parametrize("share", [1.0, 1.1])
def test_a_cache_larger_than_the_copies_does_not_make_memory_faster(tmp_path, share):
    times = one_row_s(tmp_path, int(share * QUICK_BYTES / QUICK_CACHES))
    assert len(times) > 1
    if share > 1:
        assert times == [WEIGHT_BYTES] * len(times)
    else:
        assert max(times) < WEIGHT_BYTES
