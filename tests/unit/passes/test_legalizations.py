"""What an op is in terms of simpler ones computes what the op does, on the op's own samples."""

from __future__ import annotations

import numpy as np
import pytest
import tolerance

from strata.core.dtypes import Kind, f32
from strata.graph import interp
from strata.graph.nodes import Function, Module, make_node
from strata.graph.opdef import OPS
from strata.graph.ops.common import np_dtype
from strata.graph.types import TensorType
from strata.passes import Legalize
from strata.passes.legalize import LEGALIZATIONS


@pytest.mark.parametrize("op", list(LEGALIZATIONS))
def test_on_the_samples_of_the_op(op: str) -> None:
    rewritten = 0
    for number, sample in enumerate(OPS[op].samples()):
        types = [t for t in sample.types if isinstance(t, TensorType)]
        inputs = tuple(make_node("input", name=f"x{k}", type=t) for k, t in enumerate(types))
        node = make_node(op, inputs, **sample.attrs)
        before = Function("f", inputs, (node,))
        (after,) = Legalize(ops=(op,)).run(Module((before,))).functions
        assert after.outputs[0].type == node.type
        if any(n.op == op for n in after.nodes):
            continue
        rewritten += 1
        rng = np.random.default_rng(number)
        arrays = [np.asarray(3 * rng.standard_normal(t.shape)).astype(np_dtype(t.dtype)) for t in types]
        with np.errstate(all="ignore"):
            wanted, got = (interp.run(f, arrays, {})[0] for f in (before, after))
        assert got.dtype == wanted.dtype
        exact = node.tensor.dtype.kind is not Kind.FLOAT
        limit = {"rtol": 0.0, "atol": 0.0} if exact else tolerance.for_(node.tensor.dtype, 256)
        wide = [a.astype(np.float64) for a in (got, wanted)]
        np.testing.assert_allclose(*wide, **limit, equal_nan=True)
    assert rewritten


@pytest.mark.parametrize("op", ["silu", "sigmoid", "relu", "softmax"])
def test_large_values(op: str) -> None:
    """No overflow where the op has none."""
    x = make_node("input", name="x", type=TensorType((6,), f32))
    before = Function("f", (x,), (make_node(op, (x,)),))
    (after,) = Legalize(ops=(op,)).run(Module((before,))).functions
    values = np.array([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4], np.float32)
    with np.errstate(all="ignore"):
        wanted, got = (interp.run(f, [values], {})[0] for f in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-30)
