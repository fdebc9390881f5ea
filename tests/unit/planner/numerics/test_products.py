"""Functions with their products computed by a callback."""

import numpy as np
import pytest
import tolerance

from strata.graph import builder as b
from strata.graph.nodes import Function
from strata.graph.samples import op_samples, sample_function, sample_operands
from strata.planner.numerics import product_names, run_with_products

SAMPLES = [(name, op, sample) for name, op, sample in op_samples() if op in ("matmul", "paged_attention")]


@pytest.mark.parametrize(("op", "sample"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_exact_products_give_what_the_op_means(op, sample):
    function, operands, seen = sample_function(op, sample), sample_operands(op, sample), []

    def product(name, x, w):
        seen.append(name)
        assert x.dtype == w.dtype
        assert x.shape[-1] == w.shape[-2]
        return x @ w

    (found,) = run_with_products(function, operands, {}, product)
    node = function.outputs[0]
    wanted = node.opdef.reference(operands, node.attrs)
    assert found.dtype == wanted.dtype
    limits = tolerance.for_op(op, operands, node.attrs, node.tensor.dtype)
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), **limits)
    assert set(seen) == set(product_names(function))


def test_results_of_products_are_used_and_the_rest_is_exact():
    x, w = b.input("x", b.tensor_type((2, 3), "f32")), b.param("w", b.tensor_type((3, 4), "f32"))
    y = b.matmul(x, w, name="first")
    function = Function("f", (x,), (b.add(y, 1.0),))
    params = {"w": np.ones((3, 4), np.float32)}
    (found,) = run_with_products(
        function, [np.ones((2, 3), np.float32)], params, lambda name, a, w: (a @ w) * {"first": 10}[name]
    )
    assert (found == 31).all()


def test_a_product_that_shares_its_name_has_that_of_its_op_too():
    ids, table = b.input("ids", b.tensor_type((2,), "i32")), b.param("t", b.tensor_type((5, 3), "f32"))
    rows = b.take(table, ids, name="embed")
    first = b.matmul(rows, b.permute_dims(table), name="embed")
    second = b.matmul(first, table, name="other")
    assert product_names(Function("f", (ids,), (second,))) == ("embed.matmul", "other")
