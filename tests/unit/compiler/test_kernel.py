"""``strata.kernel``: what a kernel is, how it is called, scheduled and declared to compute an op."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import strata
from strata.compiler.kernel import Kernel
from strata.core.errors import LegalityError, ParseError, ShapeError, UserError, VerifyError
from strata.loop.text import parse_func, print_func
from strata.schedule import Schedule, parse_trace
from strata.script import Out, alloc, bf16, block, call, f32, grid, i32, init, parallel, reduce, vectorize
from strata.target import TARGETS

n = strata.dim("n", 1, 64)
m = strata.dim("m", 1, 64)


@strata.kernel
def add_one(a: f32[8], b: Out[f32[8]]):
    for i in grid(8):
        b[i] = a[i] + 1.0


@strata.kernel
def dense(x: f32[n, 16], w: f32[16, 32], y: Out[f32[n, 32]]):
    for i, j, k in block("dense", n, 32, reduce(16)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, k] * w[k, j]


@strata.kernel
def split(x: f32[n, 2], a: Out[f32[n]], b: Out[f32[n]]):
    for i in parallel(n):
        a[i] = x[i, 0]
        b[i] = x[i, 1]


A = np.arange(8, dtype=np.float32)


def test_a_kernel_prints():
    assert add_one.name == "add_one"
    assert str(add_one) == "func @add_one(a: f32[8]) -> (b: f32[8])\n  for i in 8:\n    b[i] = a[i] + 0x1p+0"
    assert print_func(parse_func(add_one.text)) == add_one.text
    assert repr(dense) == "<Kernel dense(x: f32[n, 16], w: f32[16, 32]) -> (y: f32[n, 32])>"
    assert add_one.trace == ()
    assert "define" in add_one.llvm()
    assert add_one.llvm(optimize=True) != add_one.llvm()
    assert "add_one.impl" in add_one.asm()


def test_a_kernel_runs():
    np.testing.assert_array_equal(add_one(A), A + 1)
    np.testing.assert_array_equal(add_one.interpret(A), A + 1)
    a, b = split(np.arange(6, dtype=np.float32).reshape(3, 2))
    np.testing.assert_array_equal(np.stack([a, b]), [[0, 2, 4], [1, 3, 5]])
    a, b = split.interpret(np.arange(6, dtype=np.float32).reshape(3, 2))
    np.testing.assert_array_equal(np.stack([a, b]), [[0, 2, 4], [1, 3, 5]])


def test_outputs_are_used_in_place():
    out = np.zeros(8, np.float32)
    assert add_one(A, out) is out
    np.testing.assert_array_equal(out, A + 1)
    again = np.zeros(8, np.float32)
    assert add_one.interpret(A, again) is again
    np.testing.assert_array_equal(again, A + 1)


def test_pytorch_tensors_are_used_in_place():
    t, out = torch.arange(8.0), torch.zeros(8)
    assert add_one(t, out) is out
    assert out.equal(t + 1)
    made = add_one(t)
    assert isinstance(made, torch.Tensor)
    assert made.equal(t + 1)
    np.testing.assert_array_equal(add_one.interpret(t), A + 1)


def test_narrow_floats_of_both_libraries():
    @strata.kernel
    def twice(x: bf16[n], y: Out[bf16[n]]):
        for i in grid(n):
            y[i] = bf16(f32(x[i]) * 2.0)

    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(twice(x.astype(ml_dtypes.bfloat16)).astype(np.float32), 2 * x)
    assert twice(torch.tensor(x, dtype=torch.bfloat16)).float().equal(torch.tensor(2 * x))


def test_workspace_is_allocated():
    @strata.kernel
    def through_memory(x: f32[n, 4], y: Out[f32[n, 4]]):
        t = alloc(f32[n, 4])
        for i, j in grid(n, 4):
            t[i, j] = x[i, j] + 1.0
        for i, j in grid(n, 4):
            y[i, j] = t[i, 3 - j]

    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(through_memory(x), (x + 1)[:, ::-1])


@pytest.mark.parametrize(
    ("kernel", "args", "match"),
    [
        (
            add_one,
            (),
            r"add_one: got 0 arrays; expected 1 inputs or 2 with the outputs: add_one\(a: f32\[8\]",
        ),
        (dense, (A,), "dense: got 1 arrays; expected 2 inputs or 3 with the outputs"),
        (add_one, ([1.0],), r"argument 0 \(a\): got list; expected an array f32\[8\]"),
        (add_one, (A.astype(np.float64),), r"argument 0 \(a\): got f64\[8\]; expected f32\[8\]"),
        (add_one, (A[:4],), r"argument 0 \(a\): got f32\[4\]; expected f32\[8\]"),
        (add_one, (np.arange(16, dtype=np.float32)[::2],), "strided"),
        (add_one, (A, np.zeros(7, np.float32)), r"argument 1 \(b\): got f32\[7\]; expected f32\[8\]"),
        (dense, (np.zeros((65, 16), np.float32), np.zeros((16, 32), np.float32)), r"n = 65; expected 1..64"),
    ],
)
def test_calls_that_do_not_fit(kernel, args, match):
    with pytest.raises(ShapeError, match=match):
        kernel(*args)


def test_sizes_that_no_input_gives():
    @strata.kernel
    def ones(y: Out[f32[n]]):
        for i in grid(n):
            y[i] = 1.0

    with pytest.raises(ShapeError, match="no input says what n is; pass the outputs as well"):
        ones()
    np.testing.assert_array_equal(ones(np.zeros(3, np.float32)), np.ones(3))


def test_the_interpreter_finds_what_cannot_be_proved():
    @strata.kernel
    def take(x: f32[n], rows: i32[m], y: Out[f32[m]]):
        for i in grid(m):
            y[i] = x[rows[i]]

    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(take(x, np.array([3, 0], np.int32)), [3, 0])
    with pytest.raises(VerifyError, match="take: x"):
        take.interpret(x, np.array([4, 0], np.int32))


def test_a_kernel_calls_functions_of_this_process():
    strata.external("test_kernel.reverse", lambda x: x[::-1], "(x: f32[n]) -> (y: f32[n])", returns=True)

    @strata.kernel
    def reversed_and_more(x: f32[n], y: Out[f32[n]]):
        t = alloc(f32[n])
        call("test_kernel.reverse", x, t)
        for i in grid(n):
            y[i] = t[i] + 1.0

    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(reversed_and_more(x), x[::-1] + 1)
    np.testing.assert_array_equal(reversed_and_more.interpret(x), x[::-1] + 1)


# --------------------------------------------------------------------------------------------- schedules


def steps(s: Schedule) -> None:
    s.split("j", 16).reorder("i", "jo", "k", "ji").decompose_reduction("dense", "k").vectorize("ji")


X, W = np.ones((3, 16), np.float32), np.arange(16 * 32, dtype=np.float32).reshape(16, 32)


@pytest.mark.parametrize("how", ["function", "trace", "text", "schedule"])
def test_a_schedule_in_every_form(how):
    made = Schedule(dense)
    steps(made)
    forms = {"function": steps, "trace": made.trace, "text": made.trace_text, "schedule": made}
    kernel = dense.schedule(forms[how])
    assert kernel.trace == made.trace
    assert "vectorize ji in 16" in kernel.text
    assert "vectorize" not in dense.text
    np.testing.assert_array_equal(kernel(X, W), X @ W)
    assert "ramp" in print_func(kernel.lowered)


def test_schedules_that_do_not_fit():
    with pytest.raises(
        UserError, match=r"dense.schedule: got 3; expected a Schedule, a trace, or a function"
    ):
        dense.schedule(3)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"dense.schedule: got a schedule of add_one; expected one of this kernel"
    ):
        dense.schedule(Schedule(add_one))
    with pytest.raises(LegalityError, match="loop 'q'"):
        dense.schedule("split(loop=q, factor=4)")
    with pytest.raises(LegalityError, match="split"):
        dense.schedule(parse_trace("split(loop=i, factor=0)"))


def test_a_kernel_that_has_no_vector_form():
    @strata.kernel
    def shifted(y: Out[f32[9]]):
        for i in vectorize(8):
            y[i + 1] = y[i]

    with pytest.raises(LegalityError, match="vectorize"):
        shifted(np.zeros(9, np.float32))


# ------------------------------------------------------------------------------------------- decorators


def test_other_forms_of_the_decorator():
    target = TARGETS["x86-64"]

    @strata.kernel(target=target)
    def plain(a: f32[8], b: Out[f32[8]]):
        for i in vectorize(8):
            b[i] = a[i] + 1.0

    assert plain.target is target
    assert "ymm" not in plain.asm()
    wide = strata.kernel(plain.func)
    assert isinstance(wide, Kernel)
    np.testing.assert_array_equal(wide(A), A + 1)


def test_annotations_as_text_see_local_names():
    size = 8

    @strata.kernel
    def local_size(a: f32[size], b: Out[f32[size]]):
        for i in grid(8):
            b[i] = a[i]

    assert local_size.func.params[0].shape == (8,)


def test_mistakes_are_shown():
    with pytest.raises(ParseError, match=r"test_kernel\.py:"):

        @strata.kernel
        def wrong(a: f32[8], b: Out[f32[8]]):
            for i in grid(9):
                b[i] = a[i]
