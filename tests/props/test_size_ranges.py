"""Any length of the compiled range is right, at the borders of the kernels' ranges above all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strata
from strata.compiler.driver import trace
from strata.core.dims import SymDim
from strata.core.errors import ShapeError
from strata.graph import builder as b
from strata.graph.nodes import Function, Module
from strata.planner.options import PlanOptions

K, M = 40, 72
WEIGHT = np.random.default_rng(0).standard_normal((M, K), dtype=np.float32)


def layer() -> Module:
    """``softmax(x @ w.T)``: a matmul with several tiles, and rows that need all of them."""
    x = b.input("x", b.tensor_type((SymDim("n", 1, 4096), K), "f32"))
    w = b.param("w", b.tensor_type((M, K), "f32"))
    return Module((Function("f", (x,), (b.softmax(b.matmul(x, w, transpose_b=True)),)),))


def reference(x: np.ndarray) -> np.ndarray:
    y = x @ WEIGHT.T
    e = np.exp(y - y.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@given(
    lo=st.integers(1, 40),
    span=st.integers(0, 300),
    single=st.lists(st.integers(1, 340), max_size=2, unique=True),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_every_length_of_a_range(lo: int, span: int, single: list[int], data: st.DataObject) -> None:
    hi = lo + span
    passes = f"set_range{{dim=n,lo={lo},hi={hi}}},default"
    options = PlanOptions(sizes=(("n", tuple(single)),), pins=())
    planned = trace(layer()).lower(passes).plan(options)
    borders = {
        edge + step
        for launch in planned.functions[0].launches
        for choice in launch.choices
        for r in choice.when
        for edge in (r.lo, r.hi)
        for step in (-1, 0, 1)
    }
    some = data.draw(st.lists(st.integers(lo, hi), max_size=3))
    sizes = sorted({lo, hi, *some, *single, *borders} & set(range(lo, hi + 1)))
    program = planned.compile().program({"w": WEIGHT}, 2)
    for n in sizes:
        x = np.random.default_rng(n).standard_normal((n, K), dtype=np.float32)
        np.testing.assert_allclose(program["f"](x), reference(x), rtol=2e-4, atol=1e-6)
    for n in {lo - 1, hi + 1} - {0}:
        with pytest.raises(ShapeError, match=f"n = {n}|expected"):
            program["f"](np.zeros((n, K), np.float32))


def test_a_range_of_one_size_is_a_number() -> None:
    program = strata.compile(layer(), {"w": WEIGHT}, pipeline="set_range{dim=n,lo=7,hi=7},default")
    assert program.record.functions[0].inputs[0].shape == (7, K)
    x = np.ones((7, K), np.float32)
    np.testing.assert_allclose(program["f"](x), reference(x), rtol=2e-4)
