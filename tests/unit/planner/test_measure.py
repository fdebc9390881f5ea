"""Measured products on a machine whose last-level cache may hold what is measured."""

from dataclasses import replace

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.knobs import knobs
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.passes import run_passes
from strata.planner.layouts import choose_layouts
from strata.planner.measure import QUICK_BYTES, QUICK_CACHES, QUICK_CALLS, TaskBench
from strata.planner.options import PlanOptions
from strata.planner.stacks import StackBuilder
from strata.planner.tuning.operands import EVICT
from strata.target import detect_host


@pytest.mark.parametrize("share", [1.0, 1.1])
def test_weights_leave_a_cache_that_copies_would_not_fill(tmp_path, monkeypatch, share):
    target = replace(detect_host(), l3_bytes=int(share * QUICK_BYTES / QUICK_CACHES))
    x = builder.input("x", TensorType((SymDim("m", 1, 8), 64), f32))
    w = builder.param("w", TensorType((64, 64), f32))
    product = builder.matmul(x, w, transpose_b=True, out_dtype=f32)
    module = run_passes("default", Module((Function("product", (x,), (product,)),)))
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    kernels = stacks.kernels_of(node)
    evicted: list[int] = []

    def compiled(self, func, original=TaskBench._compiled):
        function = original(self, func)

        def evict(part, count):
            evicted.append(count)
            function(part, count)

        return evict if func is EVICT else function

    monkeypatch.setattr(TaskBench, "_compiled", compiled)
    with knobs(cache_dir=tmp_path):
        funcs = [c.func for c in kernels.stack.candidates]
        times = TaskBench(kernels.task, funcs, num_threads=1, is_quick=True).times_s(1)
    assert len(times) > 1
    assert np.isfinite(times).all()
    # The whole weight before each call.
    calls = (QUICK_CALLS + 1) * len(funcs) if share > 1 else 0
    assert evicted == [64 * 64 * 4] * calls
