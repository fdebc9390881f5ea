"""The interpreter: binding of inputs and dims, its errors, deep graphs, caches, fused bodies."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tolerance

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import ShapeError, UserError
from strata.graph import builder as b
from strata.graph.interp import CacheValue, bind, concrete_attrs, run, run_module
from strata.graph.nodes import Function, Module
from strata.graph.ops.attention import sample_cache
from strata.graph.types import CacheType, RopeMode, TensorType

n = SymDim("n", 1, 512)
m = SymDim("m", 4, 64, 4)


def tensor(*shape: Any, dtype: str = "f32") -> TensorType:
    return b.tensor_type(shape, dtype)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_inputs_params_and_several_outputs() -> None:
    x, w = b.input("x", tensor(n, 4)), b.param("w", tensor(3, 4))
    y = b.matmul(x, b.permute_dims(w))
    module = Module((Function("f", (x,), (y, b.sum(y), x)),))
    weights = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "unused": ones(1)}
    product, total, same = run_module(module, "f", [ones(2, 4)], weights)
    np.testing.assert_array_equal(product, [[6, 22, 38]] * 2)
    assert (np.asarray(total).shape, float(np.asarray(total))) == ((), 132.0)
    np.testing.assert_array_equal(same, ones(2, 4))


def test_array_likes_are_taken() -> None:
    x = b.input("x", tensor(2, dtype="i64"))
    np.testing.assert_array_equal(run(Function("f", (x,), (b.add(x, 1),)), [[1, 2]])[0], [2, 3])


def test_dims_in_attributes() -> None:
    x = b.input("x", tensor(n, 6))
    node = b.reshape(x, (2 * n, 3))
    assert concrete_attrs(node, {"n": 5}) == {"shape": (10, 3)}
    grown = b.broadcast_to(b.const(2.0), (n, n))
    tail = b.slice(x, 0, n - 1, n)
    got = run(Function("f", (x,), (node, grown, tail)), [np.arange(18, dtype=np.float32).reshape(3, 6)])
    assert [np.asarray(v).shape for v in got] == [(6, 3), (3, 3), (1, 6)]
    np.testing.assert_array_equal(got[2], [[12, 13, 14, 15, 16, 17]])


def test_dim_from_a_polynomial() -> None:
    x = b.input("x", tensor(2 * n + 1))
    (got,) = run(Function("f", (x,), (b.broadcast_to(b.const(1.0), (n,)),)), [ones(7)])
    assert np.asarray(got).shape == (3,)


ERRORS: list[tuple[list[TensorType], list[Any], str]] = [
    ([tensor(n)], [], "@f: got 0 inputs; expected 1 (x0)"),
    ([tensor(n)], [np.ones(2)], "input x0: got dtype float64; expected f32 (f32[n])"),
    ([tensor(n)], [ones(2, 2)], "input x0: got shape (2, 2); expected f32[n]"),
    ([tensor(n, 3)], [ones(2, 2)], "input x0 axis 1: got extent 2; expected 3"),
    ([tensor(n)], [ones(0)], "input x0 axis 0: n = 0 is out of range; expected 1..512"),
    ([tensor(m)], [ones(6)], "input x0 axis 0: m = 6 is out of range; expected 4..64, a multiple of 4"),
    ([tensor(n), tensor(n)], [ones(2), ones(3)], "input x1 axis 0: n = 3, but another operand says n = 2"),
    (
        [tensor(n), tensor(n + n)],
        [ones(2), ones(6)],
        "input x1 axis 0: n = 3, but another operand says n = 2",
    ),
    ([tensor(n, n * n)], [ones(2, 5)], "input x0 axis 1: got extent 5; expected n*n = 4"),
    ([tensor(2 * n)], [ones(5)], "input x0 axis 0: got extent 5; expected 2*n"),
    ([tensor(n)], [sample_cache(f32, [0], [1])[1]], "input x0: got a cache; expected f32[n]"),
]


@pytest.mark.parametrize(("types", "values", "message"), ERRORS, ids=range(len(ERRORS)))
def test_binding_errors(types: list[TensorType], values: list[Any], message: str) -> None:
    inputs = tuple(b.input(f"x{i}", type_) for i, type_ in enumerate(types))
    with pytest.raises(UserError, match=re.escape(message)):
        run(Function("f", inputs, (inputs[0],)), values)


def test_missing_param() -> None:
    w = b.param("model.w", tensor(2))
    for params in (None, {}):
        with pytest.raises(UserError, match=re.escape("@f: param 'model.w' has no value; pass it in params")):
            run(Function("f", (), (w,)), [], params)
    with pytest.raises(ShapeError, match=re.escape("param model.w axis 0: got extent 3; expected 2")):
        run(Function("f", (), (w,)), [], {"model.w": ones(3)})


def test_undeclared_input() -> None:
    with pytest.raises(UserError, match="input x: has no value of its own"):
        run(Function("f", (), (b.input("x", tensor(1)),)), [])


def test_errors_name_the_node() -> None:
    table, ids = b.input("table", tensor(4, 1)), b.input("ids", tensor(n, dtype="i32"))
    node = b.take(table, ids, name="model.embed")
    with pytest.raises(ShapeError, match=r"take: index 9 is out of range; expected 0\.\.3 \(model\.embed\)"):
        run(Function("f", (table, ids), (node,)), [ones(4, 1), np.array([9], np.int32)])


def test_deep_graph() -> None:
    x = b.input("x", tensor(1))
    y = x
    for _ in range(10_000):
        y = b.add(y, x)
    (got,) = run(Function("deep", (x,), (y,)), [ones(1)])
    np.testing.assert_array_equal(got, [10_001])


def test_fused_body_sees_the_dims_of_its_caller() -> None:
    x = b.input("x", tensor(n))
    p = b.input("p", tensor())
    body = Function("body", (p,), (b.broadcast_to(p, (n,)),))
    (got,) = run(Function("f", (x,), (b.fused([b.sum(x)], body),)), [ones(3)])
    np.testing.assert_array_equal(got, [3, 3, 3])


def test_fused_layer_is_added() -> None:
    type_, cache = sample_cache(f32, [2], [1])
    q, c = b.input("q", tensor(n, 2, 8)), b.input("c", type_)
    body = Function("body", (q, c), (b.paged_attention(q, c, 0, 0.5),))
    query = ones(1, 2, 8)
    function = Function("f", (q, c), (b.fused([q, c], body, 1), b.paged_attention(q, c, 1, 0.5)))
    fused, plain = run(function, [query, cache])
    np.testing.assert_array_equal(fused, plain)


def test_create_cache_inside_a_function() -> None:
    type_ = CacheType(1, 1, 4, f32)
    (cache,) = run(Function("create", (), (b.create_kv_cache(type_, num_pages=2, max_context=8),)), [])
    assert isinstance(cache, CacheValue)
    assert (cache.num_pages, cache.max_context, cache.num_tokens) == (2, 8, 0)


# ---- caches ----


def test_prefill_then_decode_equals_one_pass() -> None:
    """Attention over appended tokens: 5 at once, then 1, against dense attention over all 6."""
    type_ = CacheType(1, 1, 4, f32, 2)
    x, c = b.input("x", tensor(n, 1, 4)), b.input("cache", type_)
    c2 = b.kv_append(c, x, b.mul(x, 2.0), 0)
    step = Function("step", (x, c), (b.paged_attention(x, c2, 0, 0.5), c2))
    tokens = np.random.default_rng(0).standard_normal((6, 1, 4)).astype(np.float32)
    cache = CacheValue.empty(type_, 4, 8)
    first, cache = run(step, [tokens[:5], cache.view([0], [5])])
    assert isinstance(cache, CacheValue)
    second, _ = run(step, [tokens[5:], cache.view([5], [1])])
    keys = tokens[:, 0].astype(np.float64)
    scores = np.where(np.tri(6, dtype=bool), 0.5 * keys @ keys.T, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    want = (weights / weights.sum(axis=1, keepdims=True)) @ (2 * keys)
    got = np.concatenate([first, second])[:, 0]  # type: ignore[list-item]
    np.testing.assert_allclose(got, want, **tolerance.for_(f32, 6))


def test_inline_rope_equals_rotating_first() -> None:
    x = np.random.default_rng(1).standard_normal((5, 2, 8)).astype(np.float32)
    results = []
    for mode in (RopeMode.NORMAL, RopeMode.INLINE):
        type_ = CacheType(1, 2, 8, f32, 4, mode, 6)
        node, c = b.input("x", tensor(n, 2, 8)), b.input("cache", type_)
        k = b.rope(node, c) if mode is RopeMode.NORMAL else node
        out = b.paged_attention(k, b.kv_append(c, k, node, 0), 0, 0.3)
        view = CacheValue.empty(type_, 4, 8).view([0], [5])
        results.append(run(Function("f", (node, c), (out,)), [x, view])[0])
    np.testing.assert_allclose(results[0], results[1], **tolerance.for_(f32, 8))


def test_cache_binding_errors() -> None:
    type_, cache = sample_cache(f32, [0], [2])
    node = b.input("cache", type_)
    with pytest.raises(UserError, match="input cache: got int; expected a CacheValue"):
        bind(node, 3, {})
    other = b.input("cache", replace(type_, head_dim=16))
    with pytest.raises(
        ShapeError, match=r"input cache: got cache<.*head_dim=8.*; expected cache<.*head_dim=16"
    ):
        bind(other, cache, {})
    with pytest.raises(ShapeError, match="input cache num_seqs: num_seqs = 0 is out of range; expected 1"):
        bind(node, CacheValue.empty(type_, 2, 8), {})
    with pytest.raises(ShapeError, match=re.escape("cache: positions is int64[2]; expected i32[2]")):
        bind(node, replace(cache, positions=cache.positions.astype(np.int64)), {})
    with pytest.raises(ShapeError, match="cache: k_pages has 1 layers; expected 2"):
        bind(node, replace(cache, k_pages=cache.k_pages[:1]), {})
    with pytest.raises(ShapeError, match="cache: no field 'pages'; it has: positions, slots, seq_ids"):
        _ = cache["pages"]
    assert cache["slots"] is cache.slots


def test_view() -> None:
    type_ = CacheType(1, 1, 2, f32, 4)
    cache = CacheValue.empty(type_, 6, 16)
    view = cache.view([0, 3], [2, 3])
    np.testing.assert_array_equal(view.positions, [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(view.seq_ids, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(view.page_table, [[2, 1], [5, 4]])
    np.testing.assert_array_equal(view.slots, [8, 9, 23, 16, 17])
    np.testing.assert_array_equal(view.last_rows, [1, 4])
    assert view.dims == {"num_seqs": 2, "table_width": 2, "num_pages": 6, "max_context": 16}
    view.check()
    chosen = cache.view([4], [1], page_table=[[5, 0]])
    np.testing.assert_array_equal(chosen.slots, [0])


def test_view_errors() -> None:
    cache = CacheValue.empty(CacheType(1, 1, 2, f32, 4), 4, 6)
    for past, new in (([0], [1, 1]), ([0], [0]), ([], [])):
        with pytest.raises(ShapeError, match=r"cache view: got past .* expected one entry >= 1 per sequence"):
            cache.view(past, new)
    with pytest.raises(
        ShapeError, match=re.escape("cache view: sequence 1 has 3 + 4 tokens; its pages hold 6")
    ):
        cache.view([0, 3], [1, 4])
    with pytest.raises(ShapeError, match="sequence 0 has 4 \\+ 1 tokens; its pages hold 4"):
        cache.view([4], [1], page_table=[[0]])
    with pytest.raises(ShapeError, match=re.escape("cache: inv_freq has shape (3,); expected (1,)")):
        CacheValue.empty(CacheType(1, 1, 2, f32, 4, RopeMode.NORMAL, 2), 1, 1, inv_freq=[1.0, 2.0, 3.0])


def test_rotary_tables() -> None:
    type_ = CacheType(1, 1, 4, f32, 4, RopeMode.NORMAL, 4)
    cache = CacheValue.empty(type_, 1, 5, inv_freq=[1.0, 0.5], attention_factor=2.0)
    np.testing.assert_allclose(cache.rope_cos[4], [2 * np.cos(4), 2 * np.cos(2)], **tolerance.for_(f32))
    np.testing.assert_allclose(cache.rope_sin[4], [2 * np.sin(4), 2 * np.sin(2)], **tolerance.for_(f32))
