"""Lowering of groups: bindings, stored layouts, what is refused, and values at the edges."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.dims import SymDim, product
from strata.core.dtypes import bf16, f32
from strata.core.errors import UnsupportedError
from strata.graph import builder as b
from strata.graph.interp import run as run_graph
from strata.graph.nodes import Function, Node
from strata.graph.types import CacheType
from strata.loop.check import LOOP_NAIVE, check
from strata.loop.interp import run
from strata.loop.layout import Layout
from strata.loop.nodes import Block, Const, index
from strata.loop.rewrite import walk_stmts
from strata.loop.text import print_func
from strata.loop.values import numpy_dtype
from strata.lower import Binding, lower_group
from strata.lower.attention.tiles import lanes_for, largest_divisor
from strata.lower.shape import reshaped_index

N = SymDim("n", 1, 32)


def tensor(*shape, dtype: str = "f32"):
    return b.tensor_type(shape, dtype)


def computed(output: Node, *operands: np.ndarray, inputs: tuple[Node, ...]) -> np.ndarray:
    """The loop function of ``output`` on these operands; the shape of the result is the graph's."""
    body = Function("f", inputs, (output,))
    lowered = lower_group("f", body)
    check(lowered.func, LOOP_NAIVE)
    (expected,) = run_graph(body, list(operands))
    result = np.zeros(expected.shape, numpy_dtype(output.tensor.dtype))
    run(lowered.func, [*operands, result])
    return result


def test_operands_in_order_then_the_result() -> None:
    x, w = b.input("x", tensor(N, 8)), b.input("w", tensor(8))
    lowered = lower_group("f", Function("f", (x, w), (b.mul(x, w),)))
    assert lowered.bindings == (Binding(0), Binding(1), Binding(-1))
    assert [p.name for p in lowered.func.params] == ["x", "w", "y"]
    assert lowered.func.num_outputs == 1


def test_cache_fields_are_bound_when_used() -> None:
    q, cache = b.input("q", tensor(N, 4, 8)), b.input("cache", CacheType(2, 2, 8, f32, 4))
    body = Function("f", (q, cache), (b.paged_attention(q, cache, 1, 0.5),))
    fields = {x.field: x.layer for x in lower_group("f", body).bindings if x.operand == 1}
    index = ("page_table", "positions", "seq_ids", "last_rows")
    assert fields == {**dict.fromkeys(index, 0), "k_pages": 1, "v_pages": 1}


def test_an_append_writes_the_pages() -> None:
    k, cache = b.input("k", tensor(N, 2, 8)), b.input("cache", CacheType(2, 2, 8, bf16, 4))
    lowered = lower_group("f", Function("f", (cache, k), (b.kv_append(cache, k, k, 1),)))
    outputs = lowered.bindings[-lowered.func.num_outputs :]
    assert set(outputs) == {Binding(0, "k_pages", 1), Binding(0, "v_pages", 1)}


def test_pages_of_two_layers_are_two_parameters() -> None:
    q, cache = b.input("q", tensor(N, 4, 8)), b.input("cache", CacheType(2, 2, 8, f32, 4))
    first = b.paged_attention(q, cache, 0, 0.5)
    body = Function("f", (q, cache), (b.paged_attention(first, cache, 1, 0.5),))
    pages = [x for x in lower_group("f", body).bindings if x.field == "k_pages"]
    assert sorted(x.layer for x in pages) == [0, 1]


def test_stored_layouts_are_read_through() -> None:
    x, w = b.input("x", tensor(3, 10)), b.input("w", tensor(7, 10))
    body = Function("f", (x, w), (b.matmul(x, w, transpose_b=True),))
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((3, 10)).astype(np.float32), rng.standard_normal((7, 10)).astype(np.float32)
    for layout in (Layout(4), Layout(4, 2), Layout(16, 3), Layout(8, 1, True)):
        lowered = lower_group("f", body, {1: layout})
        assert lowered.func.params[1].shape == layout.physical_shape((7, 10))
        out = np.zeros((3, 7), np.float32)
        run(lowered.func, [a, layout.pack(c), out])
        np.testing.assert_allclose(out, a @ c.T, rtol=1e-5, atol=1e-6)


def test_what_is_staged_last_may_be_the_result() -> None:
    """A concat, and attention, store into the output; others add a stage called ``out``."""
    x, y = b.input("x", tensor(N, 3)), b.input("y", tensor(N, 4))
    joined = lower_group("f", Function("f", (x, y), (b.concat([x, y], 1),))).func
    assert [s.name for s in walk_stmts(joined) if isinstance(s, Block)] == ["concat", "concat_1"]
    assert "alloc" not in print_func(joined)
    total = lower_group("f", Function("f", (x,), (b.sum(x, 1),))).func
    assert [s.name for s in walk_stmts(total) if isinstance(s, Block)] == ["sum", "out"]


def test_names_are_unique() -> None:
    x, y = b.input("out", tensor(N, 3)), b.input("y", tensor(N, 3))
    func = lower_group("f", Function("f", (x, y), (b.softmax(b.softmax(b.add(x, y))),))).func
    names = [s.name for s in walk_stmts(func) if isinstance(s, Block)]
    assert names == ["row_max", "row_sum", "row_max_1", "row_sum_1", "out"]
    assert len({p.name for p in func.params}) == 3


def test_ops_without_a_lowering_are_refused() -> None:
    x = b.input("x", tensor(N, 3))
    inner = Function("g", (x,), (b.exp(x),))
    with pytest.raises(UnsupportedError, match="lower g: op 'fused' has no lowering"):
        lower_group("f", Function("f", (x,), (b.fused((x,), inner, name="g"),)))


def test_arrays_do_not_reach_lowering() -> None:
    x = b.input("x", tensor(N, 3))
    body = Function("f", (x,), (b.add(x, b.const(np.ones(3, np.float32), name="ones")),))
    with pytest.raises(UnsupportedError, match="const ones: 3 elements reach lowering; expected 1; larger"):
        lower_group("f", body)


def test_scalar_constants_become_part_of_the_code() -> None:
    x = b.input("x", tensor(2, 3))
    for value in (np.full((1, 1), 2.5, np.float32), np.asarray(2.5, np.float32)):
        out = computed(b.mul(x, b.const(value)), np.ones((2, 3), np.float32), inputs=(x,))
        np.testing.assert_array_equal(out, np.full((2, 3), 2.5))


SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=4).map(tuple)


@given(SHAPES, st.data())
@settings(max_examples=100)
def test_reshape_keeps_the_linear_position(source: tuple[int, ...], data: st.DataObject) -> None:
    total = product(source)
    assert isinstance(total, int)
    target = data.draw(st.sampled_from(factorizations(total)))
    for position in itertools.product(*map(range, target)):
        found = reshaped_index(tuple(index(k) for k in position), source, target)
        values = [i.value for i in found if isinstance(i, Const)]
        assert len(values) == len(source)
        flat = int(np.ravel_multi_index(position, target)) if target else 0
        assert tuple(values) == (tuple(map(int, np.unravel_index(flat, source))) if source else ())


def factorizations(total: int) -> list[tuple[int, ...]]:
    """Shapes of up to four dims with ``total`` elements."""
    dims = [d for d in range(1, total + 1) if total % d == 0]
    return [s for k in range(5) for s in itertools.product(dims, repeat=k) if product(s) == total][:200]


def test_symbolic_reshapes_divide_by_constants_only() -> None:
    x = b.input("x", tensor(N, 12))
    text = print_func(lower_group("f", Function("f", (x,), (b.reshape(x, (N, 3, 4)),))).func)
    assert "y[i0, i1, i2] = x[i0, i1 * 4 + i2]" in text


def test_power_at_the_edges() -> None:
    x, y = b.input("x", tensor(100)), b.input("y", tensor(100))
    bases = np.array([-2, -1, -0.5, 0, 0.5, 1, 2, 3, np.inf, 1e10], np.float32)
    exponents = np.array([-2, -1, -0.5, 0, 0.5, 1, 2, 3, np.inf, -np.inf], np.float32)
    p, q = (a.ravel().copy() for a in np.meshgrid(bases, exponents))
    with np.errstate(all="ignore"):
        expected = p**q
        got = computed(b.power(x, y), p, q, inputs=(x, y))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_indices_out_of_range_read_the_nearest_row() -> None:
    """The reference refuses them; compiled code reads no foreign memory."""
    table, ids = b.input("t", tensor(5, 3)), b.input("ids", tensor(4, dtype="i32"))
    func = lower_group("f", Function("f", (table, ids), (b.take(table, ids),))).func
    rows, out = np.arange(15, dtype=np.float32).reshape(5, 3), np.zeros((4, 3), np.float32)
    run(func, [rows, np.array([-7, 0, 4, 99], np.int32), out])
    np.testing.assert_array_equal(out, rows[[0, 0, 4, 4]])


def test_formulas_out_of_range_read_the_nearest_element() -> None:
    x = b.input("a", tensor(5))
    shifted = b.tensor_expr([x], "a0[i0 + 2] - a0[i0 - 1]", (5,), "f32")
    func = lower_group("f", Function("f", (x,), (shifted,))).func
    assert "min(" in print_func(func)
    values, out = np.arange(5, dtype=np.float32) ** 2, np.zeros(5, np.float32)
    run(func, [values, out])
    at = np.arange(5)
    np.testing.assert_array_equal(out, values[np.minimum(at + 2, 4)] - values[np.maximum(at - 1, 0)])
    inside = b.tensor_expr([x], "a0[4 - i0]", (5,), "f32")
    assert "min(" not in print_func(lower_group("f", Function("f", (x,), (inside,))).func)


def test_integer_maxima_start_at_the_smallest_number() -> None:
    x = b.input("x", tensor(2, 3, dtype="i64"))
    values = np.full((2, 3), -(2**40), np.int64)
    np.testing.assert_array_equal(computed(b.max(x, 1), values, inputs=(x,)), values[:, 0])


@pytest.mark.parametrize(("extent", "lanes"), [(16, 16), (64, 16), (8, 8), (24, 8), (33, 1), (1, 1), (6, 2)])
def test_lanes_divide_the_extent(extent: int, lanes: int) -> None:
    assert lanes_for(extent) == lanes


@pytest.mark.parametrize(("value", "divisor"), [(1, 1), (4, 4), (8, 8), (12, 6), (16, 8), (7, 7), (11, 1)])
def test_largest_divisors_up_to_8(value: int, divisor: int) -> None:
    assert largest_divisor(value, 8) == divisor
