"""The memory plan: reuse, views, results, bounds."""

from __future__ import annotations

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import UserError, VerifyError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node
from strata.graph.text import parse_function
from strata.graph.types import CacheType, TensorType
from strata.passes import plan_memory, run_passes
from strata.passes.memory_plan import _best_fit, storage, upper_bound

N = SymDim("n", 1, 100)


def planned(outputs: tuple[Node, ...], inputs: tuple[Node, ...]) -> Function:
    return run_passes("zero", Module((Function("f", inputs, outputs),))).functions[0]


def test_a_chain_needs_two_buffers() -> None:
    x = g.input("x", TensorType((N, 16), f32))
    y = x
    for _ in range(7):
        y = g.exp(y)
    plan = plan_memory(planned((y,), (x,)))
    assert len(plan.order) == 7
    assert len(plan.buffers) == 6  # the last value is the result
    assert plan.arena_bytes == 2 * 100 * 16 * 4
    assert plan.max_live_bytes == plan.arena_bytes
    assert plan.total_bytes == 6 * 100 * 16 * 4
    assert plan.reuse_ratio == 3.0
    assert plan.report() == (
        "arena 12800 bytes for 6 values of 38400 bytes (reuse 3.00x); at least 12800 bytes are live at once"
    )


def test_views_share_and_keep_alive() -> None:
    function = parse_function("""
      func @f(%x: f32[32]) -> (f32[4,8], f32[32]) {
        %0: f32[32] = fused(%x) {body=func @a(%a0: f32[32]) -> (f32[32]) {
          %0: f32[32] = exp(%a0)
          return %0
        }}
        %1: f32[4,8] = reshape(%0) {shape=(4, 8)}
        %2: f32[32] = fused(%x) {body=func @b(%a0: f32[32]) -> (f32[32]) {
          %0: f32[32] = tanh(%a0)
          return %0
        }}
        %3: f32[4,8] = fused(%1, %2) {body=func @c(%a0: f32[4,8], %a1: f32[32]) -> (f32[4,8]) {
          %0: f32[4,8] = reshape(%a1) {shape=(4, 8)}
          %1: f32[4,8] = add(%a0, %0)
          return %1
        }}
        %4: f32[32] = reshape(%3) {shape=(32)}
        %5: f32[32] = fused(%4) {body=func @d(%a0: f32[32]) -> (f32[32]) {
          %0: f32[32] = neg(%a0)
          return %0
        }}
        return %3, %5
      }""")
    plan = plan_memory(function)
    exp, tanh, add, neg = plan.order
    assert plan.outputs == {id(add): 0, id(neg): 1}
    assert sorted(plan.offsets.values()) == [0, 128]
    assert set(plan.offsets) == {id(exp), id(tanh)}
    views = {id(n): storage(n) for n in function.nodes if n.op == "reshape"}
    assert plan.views == views
    assert set(map(id, views.values())) == {id(exp), id(add)}


def test_a_view_of_an_input_takes_no_memory() -> None:
    x = g.input("x", TensorType((N, 16), f32))
    function = planned((g.exp(g.reshape(x, (2 * N, 8))),), (x,))
    plan = plan_memory(function)
    assert plan.arena_bytes == 0
    assert plan.reuse_ratio == 1.0
    assert list(plan.views.values()) == [x]


def test_sizes_are_bounds_and_aligned() -> None:
    m = SymDim("m", 2, 10)
    assert upper_bound(N * m - 3, {}) == 997
    assert upper_bound(N * m - 3, {"n": 7}) == 67
    assert upper_bound(N - m, {"m": 5}) == 98
    assert upper_bound(N, {"n": 200}) == 100
    assert upper_bound(12, {"n": 7}) == 12
    x = g.input("x", TensorType((N,), f32))
    function = planned((g.exp(g.exp(x)),), (x,))
    assert plan_memory(function).arena_bytes == 448  # 400 bytes in whole cache lines
    assert plan_memory(function, {"n": 3}).arena_bytes == 64


def test_sequences_are_no_more_than_tokens() -> None:
    cache = g.input("cache", CacheType(1, 1, 4, f32))
    x = g.input("x", TensorType((N, 16), f32))
    for pipeline in ("zero", "fuse"):
        last = g.tanh(g.last_tokens(g.exp(x), cache))
        module = Module(
            (
                Function(
                    "f", (x, cache), (g.exp(g.rms_norm(last, g.param("w", x.tensor.__class__((16,), f32)))),)
                ),
            )
        )
        plan = plan_memory(run_passes(pipeline, module).functions[0])
        assert max(b.size_bytes for b in plan.buffers) == 100 * 16 * 4


def test_best_fit_takes_the_smallest_gap() -> None:
    taken = [(0, 64), (256, 320), (448, 512), (512, 640)]
    assert _best_fit(taken, 128) == 320
    assert _best_fit(taken, 192) == 64
    assert _best_fit(taken, 256) == 640
    assert _best_fit([(64, 128), (64, 512), (100, 200)], 64) == 0
    assert _best_fit([], 64) == 0


def test_large_buffers_are_placed_first() -> None:
    """Placed in execution order the large value would not fit under the small ones."""
    x = g.input("x", TensorType((16,), f32))
    small = g.exp(x)
    big = g.broadcast_to(small, (64, 16))
    again = g.sum(g.tanh(big), 0)
    function = planned((g.add(again, small),), (x,))
    plan = plan_memory(function)
    assert plan.arena_bytes == plan.max_live_bytes == 2 * 64 * 64 + 64


def test_an_unbounded_dim_is_an_error() -> None:
    free = SymDim("s")
    x = g.input("x", TensorType((free, free), f32))
    function = planned((g.exp(g.exp(x, name="hidden")),), (x,))
    with pytest.raises(
        UserError, match=r"@f: the arena would have \d+ bytes; hidden is f32\[s,s\]; give its"
    ):
        plan_memory(function)
    assert plan_memory(function, {"s": 4}).arena_bytes == 64


def test_results_that_share_memory_are_an_error() -> None:
    x = g.input("x", TensorType((N, 16), f32))
    y = g.exp(x)
    with pytest.raises(VerifyError, match="@f: results 0 and 1 share memory"):
        plan_memory(Function("f", (x,), (y, g.reshape(y, (16 * N,)))))
