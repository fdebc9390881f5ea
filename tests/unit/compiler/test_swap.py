"""Other kernels in the place of a node's own: candidates, compiled kernels, foreign functions."""

from math import erf

import numpy as np
import pytest
import tvm_ffi
from small_graphs import mlp, mlp_params

import strata
from strata.core.dims import SymDim
from strata.core.errors import ShapeError, UserError
from strata.graph import builder as b
from strata.graph.nodes import Function, Module
from strata.runtime.program import Program
from strata.script import Out, f32, grid

RNG = np.random.default_rng(2)
n = strata.dim("n", 1, 64)
X = RNG.normal(size=(5, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled() -> Program:
    return strata.compile(mlp(), mlp_params())


@pytest.fixture
def program(compiled):
    compiled.restore()
    return compiled


def norm_node(program: Program):
    return next(n for n in program.nodes("forward") if n.op == "rms_norm")


@strata.kernel
def halved(x: f32[n, 24], w: f32[24], y: Out[f32[n, 24]]):
    for i, j in grid(n, 24):
        y[i, j] = x[i, j] * w[j] * 0.5


def with_norm(change) -> np.ndarray:
    """The network with another function in the place of its norm, by NumPy."""
    p = mlp_params()
    up = change(X, p["norm"]) @ p["up"].T
    hidden = up * 0.5 * (1 + np.vectorize(erf)(up / np.sqrt(2)))
    return (hidden @ p["down"].T + X).astype(np.float32)


def test_a_compiled_kernel(program):
    node = norm_node(program)
    assert [o.dtype for o in (*node.inputs, *node.outputs)] == ["f32", "f32", "f32"]
    program.swap(node, halved)
    want = with_norm(lambda x, w: x * w * 0.5)
    np.testing.assert_allclose(program["forward"](X), want, rtol=1e-4, atol=1e-4)
    run = program.step("forward", X)
    kernels = []
    run.after(node.name, lambda event: kernels.append(event.kernel))
    np.testing.assert_allclose(run.finish(), want, rtol=1e-4, atol=1e-4)
    assert kernels == ["halved"]


def test_a_compiled_kernel_of_other_shapes(program):
    @strata.kernel
    def short(x: f32[n, 23], w: f32[24], y: Out[f32[n, 23]]):
        for i, j in grid(n, 23):
            y[i, j] = x[i, j] * w[j]

    program.swap(norm_node(program), short)
    with pytest.raises(ShapeError) as caught:
        program["forward"](X)
    assert "short" in str(caught.value)


def test_a_foreign_function_and_a_kernel_of_another_program(program):
    name = norm_node(program).name
    seen = []
    program.swap(name, tvm_ffi.convert(lambda x, w, y: seen.append((x.shape, y.shape))))
    program["forward"](X)
    assert seen == [((5, 24), (5, 24))]
    x, w = (
        b.input(name_, b.tensor_type(s, "f32"))
        for name_, s in (("x", (SymDim("n", 1, 64), 24)), ("w", (24,)))
    )
    other = strata.compile(Module((Function("f", (x, w), (b.mul(x, w),)),)))
    (mul,) = other.nodes("f")
    program.swap(name, other.kernel(mul.choices[-1].kernel))
    np.testing.assert_allclose(program["forward"](X), with_norm(lambda x, w: x * w), rtol=1e-4, atol=1e-4)


def test_another_candidate_by_name(program):
    want = program["forward"](X).copy()
    for node in program.nodes("forward"):
        there = [c for c in node.candidates if c.in_image]
        for candidate in there:
            run = program.step("forward", X)
            run.replace(node, candidate.name)
            np.testing.assert_allclose(run.finish(), want, rtol=1e-4, atol=1e-4)
        absent = next((c for c in node.candidates if not c.in_image), None)
        if absent is not None:
            with pytest.raises(UserError, match=f"candidate {absent.name} is not in the program"):
                program.swap(node, absent.name)


def test_all_sizes_after_a_swap(program):
    """A function that is launched node by node takes any size in range, in any order."""
    inputs = [RNG.normal(size=(count, 24)).astype(np.float32) for count in (1, 64, 2, 17, 64, 1, 33)]
    native = [program["forward"](x).copy() for x in inputs]
    program.hook("*", after=lambda event: None)
    for x, want in zip(inputs, native, strict=True):
        np.testing.assert_array_equal(program["forward"](x), want)
    with pytest.raises(ShapeError, match="n = 65; it was compiled for n in"):
        program["forward"](np.zeros((65, 24), np.float32))
