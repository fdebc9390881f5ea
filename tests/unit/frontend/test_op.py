"""Ops on traced tensors equal NumPy, and refuse what does not fit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bool_, f16, f32, i32
from strata.core.errors import ShapeError, UserError
from strata.frontend import nn
from strata.frontend.nn import expr, op, spec
from strata.frontend.nn.formula import Element
from strata.graph import interp
from strata.graph.nodes import Function

Shapes = list[list[int | str]]


def trace(function: Callable[..., Any], shapes: Shapes, dtypes: list[str] | None = None) -> Function:
    """``function`` of tensors, exported."""

    class Model(nn.Module):
        def run(self, a, b=None, c=None):
            return function(*[x for x in (a, b, c) if x is not None])

    types = dtypes or ["f32"] * len(shapes)
    tensors = [spec.Tensor(s, d) for s, d in zip(shapes, types, strict=True)]
    return Model().export({"run": dict(zip("abc", tensors, strict=False))}).module["run"]


def evaluate(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    traced = trace(function, [list(a.shape) for a in arrays], [str(a.dtype) for a in arrays])
    return interp.run(traced, list(arrays))[0]


X = np.random.default_rng(0).uniform(0.5, 2.0, (2, 3, 4)).astype(np.float32)
Y = np.random.default_rng(1).uniform(0.5, 2.0, (2, 3, 4)).astype(np.float32)
W = np.random.default_rng(2).uniform(0.5, 2.0, (4,)).astype(np.float32)
IDS = np.array([[1, 0], [2, 2]], np.int32)
MASK = np.array([True, False, True, False])

CASES: list[tuple[Callable[..., Any], tuple[np.ndarray, ...], np.ndarray]] = [
    (lambda x, y: x + y, (X, Y), X + Y),
    (lambda x, w: x - w, (X, W), X - W),
    (lambda x, y: x * y / 2, (X, Y), X * Y / 2),
    (lambda x: 1 + x - 2, (X,), X - 1),
    (lambda x: 3 - x, (X,), 3 - X),
    (lambda x: 2 * x, (X,), 2 * X),
    (lambda x: 1 / x, (X,), 1 / X),
    (lambda x: -x, (X,), -X),
    (lambda x: x**2, (X,), X**2),
    (lambda x, y: x @ y.permute_dims(0, 2, 1), (X, Y), X @ Y.transpose(0, 2, 1)),
    (lambda x: x.T, (X,), X.T),
    (lambda x, y: x < y, (X, Y), X < Y),
    (lambda x, y: x <= y, (X, Y), X <= Y),
    (lambda x, y: x > y, (X, Y), X > Y),
    (lambda x: x >= 1.0, (X,), X >= 1.0),
    (lambda x, y: op.equal(x, y), (X, X), X == X),
    (lambda x, y: op.not_equal(x, y), (X, X), X != X),
    (lambda m: op.logical_not(m), (MASK,), ~MASK),
    (lambda a, b: op.logical_and(a, b), (MASK, MASK[::-1].copy()), MASK & MASK[::-1]),
    (lambda a, b: op.logical_or(a, b), (MASK, MASK[::-1].copy()), MASK | MASK[::-1]),
    (lambda m, x: op.where(m, x, 0.0), (MASK, X), np.where(MASK, X, 0)),
    (lambda m, x: op.where(m, 1, x), (MASK, X), np.where(MASK, 1, X)),
    (lambda x, y: op.maximum(x, y) + op.minimum(x, y), (X, Y), X + Y),
    (lambda x: op.exp(op.log(x)), (X,), X),
    (lambda x: op.sqrt(op.square(x)), (X,), X),
    (lambda x: op.rsqrt(x), (X,), X**-0.5),
    (lambda x: op.absolute(-x), (X,), X),
    (lambda x: op.sin(x) * op.sin(x) + op.cos(x) * op.cos(x), (X,), np.ones_like(X)),
    (lambda x: op.floor(x), (X,), np.floor(X)),
    (lambda x: op.tanh(x), (X,), np.tanh(X)),
    (lambda x: op.silu(x) - x * op.sigmoid(x), (X,), np.zeros_like(X)),
    (lambda x: op.gelu(x) - 0.5 * x * (1 + op.erf(x / 2**0.5)), (X,), np.zeros_like(X)),
    (lambda x: op.relu(x - 1), (X,), np.maximum(X - 1, 0)),
    (lambda x: x.astype("float16"), (X,), X.astype(np.float16)),
    (lambda x: x.reshape(6, -1), (X,), X.reshape(6, 4)),
    (lambda x: x.reshape((4, 6)), (X,), X.reshape(4, 6)),
    (lambda x: x.permute_dims([2, -3, 1]), (X,), X.transpose(2, 0, 1)),
    (lambda x: op.expand_dims(x, -1), (X,), X[..., None]),
    (lambda x: op.expand_dims(x, 1), (X,), X[:, None]),
    (lambda x: op.squeeze(op.expand_dims(x, 0), 0), (X,), X),
    (lambda x: op.split(x, 2, axis=-1)[1], (X,), X[..., 2:]),
    (lambda x: op.split(x, [1, 2], axis=1)[1], (X,), X[:, 1:]),
    (lambda x, y: op.concat([x, y], axis=1), (X, Y), np.concatenate([X, Y], 1)),
    (lambda w: op.broadcast_to(w, (2, 4)), (W,), np.broadcast_to(W, (2, 4))),
    (lambda x, i: op.take(x, i, axis=1), (X, IDS), np.take(X, IDS, 1)),
    (lambda x: x[1], (X,), X[1]),
    (lambda x: x[..., -1], (X,), X[..., -1]),
    (lambda x: x[:, 1:, -3:-1], (X,), X[:, 1:, -3:-1]),
    (lambda x: x[:, 1:99], (X,), X[:, 1:99]),
    (lambda x: x[0, ...], (X,), X[0]),
    (lambda x: op.sum(x), (X,), X.sum()),
    (lambda x: op.mean(x, -1, keepdims=True), (X,), X.mean(-1, keepdims=True)),
    (lambda x: op.max(x, (0, 2)), (X,), X.max((0, 2))),
    (lambda x: op.argmax(x, 1), (X,), X.argmax(1)),
    (lambda x: op.sum(op.softmax(x, 1), 1), (X,), np.ones((2, 4), np.float32)),
    (lambda x, w: op.rms_norm(x, w, 0.0), (X, W), X / np.sqrt((X * X).mean(-1, keepdims=True)) * W),
    (
        lambda x, w: op.layer_norm(x, w, w, 0.0),
        (X, W),
        (X - X.mean(-1, keepdims=True)) / X.std(-1, keepdims=True) * W + W,
    ),
    (lambda x: x + op.ones((4,)) - op.zeros((4,)), (X,), X + 1),
    (lambda x: op.tensor_expr("a0[i0, i1] * 2.0", [x], (2, 3)), (X[..., 0].copy(),), X[..., 0] * 2),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_equals_numpy(case: int) -> None:
    function, arrays, expected = CASES[case]
    got = evaluate(function, *arrays)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2e-5, atol=1e-6)


def test_numbers_take_the_dtype_beside_them() -> None:
    assert trace(lambda x: x * 2, [["n"]], ["f16"]).outputs[0].tensor.dtype is f16
    assert trace(lambda x: x + 1, [["n"]], ["i32"]).outputs[0].tensor.dtype is i32
    assert trace(lambda x: x < 1.5, [["n"]]).outputs[0].tensor.dtype is bool_


def test_symbolic_dims() -> None:
    n = SymDim("n")
    function = trace(lambda x: x[:, -1:], [[1, "n", 8]])
    assert function.outputs[0].attrs["begin"] == n - 1
    assert function.outputs[0].tensor.shape == (1, 1, 8)
    assert trace(lambda x: x.reshape(-1, 4), [["n", 8]]).outputs[0].tensor.shape == (2 * n, 4)
    assert trace(lambda x: x.reshape(x.shape), [["n", 8]]).outputs[0].op == "input"
    assert trace(lambda x: x.astype("f32"), [["n", 8]]).outputs[0].op == "input"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: op.add(1, 2), "run: add: got 1 and 2; expected at least one tensor"),
        (lambda x: op.where(x > 1, 1, 2), "where: got 1 and 2"),
        (lambda x: x + "a", "got 'a' beside .*expected a tensor or a number"),
        (lambda x: op.take(x, x), "run: take: .*"),
        (lambda x: x.astype("i32") * 1.5, r"got 1.5 beside Tensor\(i32.*that i32 holds"),
        (lambda x: x.reshape(-1, -1), "2 dims of -1; expected at most one"),
        (lambda x: x.reshape(-1, 3), r"reshape: .* elements are no multiple of 3"),
        (lambda x: x.reshape(5, 5), "run: reshape"),
        (lambda x: op.permute_dims(x, (0, 2)), r"permute_dims: got axis 2; expected -2\.\.1"),
        (lambda x: op.expand_dims(x, 3), r"expand_dims: got axis 3; expected -3\.\.2"),
        (lambda x: op.squeeze(x, 1), "squeeze: axis 1 .* has extent 8; expected 1"),
        (lambda x: op.split(x, 3), "split: axis -1 .* has extent 8; it is no multiple of 3"),
        (lambda x: op.split(x, 0), "no multiple of 0"),
        (lambda x: op.split(x, [3, 4]), r"sizes \[3, 4\] add up to 7; axis -1 .* has 8"),
        (lambda x: op.concat([]), "concat: got no tensors"),
        (lambda x: x[0, 0, 0], "got 3 indices; expected at most 2"),
        (lambda x: x[..., ...], "expected at most 2 and one"),
        (lambda x: x[::2], "got a slice of step 2; expected step 1"),
        (lambda x: x[True], "got index True; expected an integer"),
        (lambda x: -x if x else x, "a tensor has no truth value .* use op.where"),
        (lambda x: list(x), "a tensor is not iterable; use op.split"),
        (lambda x: x @ x.T.astype("f16"), "run: matmul"),
        (lambda x: op.tensor_expr("1.0", [], (2,)), "tensor_expr: got neither inputs nor dtype"),
        (lambda x: op.tensor_expr("a0[i0", [x], (2,)), "run: .*"),
    ],
)
def test_mistakes(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace(function, [["n", 8]])


# --- formulas -------------------------------------------------------------------------------------

A = np.random.default_rng(3).uniform(0.5, 2.0, (5, 6)).astype(np.float32)
B = np.random.default_rng(4).uniform(0.5, 2.0, (6, 7)).astype(np.float32)
C = np.array(3.0, np.float32)

FORMULAS: list[tuple[Callable[..., Any], tuple[np.ndarray, ...], np.ndarray]] = [
    (lambda a, i, j: a[i, j] * 2.0 - 1, (A,), A * 2 - 1),
    (lambda a, i, j: 1 - (2 - a[i, j]) / 4, (A,), 1 - (2 - A) / 4),
    (lambda a, i, j: 1 + 2 * a[i, j] + 1 / a[i, j], (A,), 1 + 2 * A + 1 / A),
    (lambda a, i, j: -a[i, j] ** 2, (A,), -(A**2)),
    (lambda a, c, i, j: a[i, j] * c[()], (A, C), A * 3),
    (lambda a, i, j: a[4 - i, j], (A,), A[::-1]),
    (lambda a, i, j: a[(i + 1) % 5, j // 2], (A,), np.roll(A, -1, 0)[:, np.arange(6) // 2]),
    (lambda a, i, j: expr.select(a[i, j] > 1, a[i, j], -1.5), (A,), np.where(A > 1, A, -1.5)),
    (lambda a, i, j: expr.select((i >= 1) & (j < 3), 1.0, 0.0) + 0 * a[i, j], (A,),
     ((np.arange(5)[:, None] >= 1) & (np.arange(6) < 3)).astype(np.float32)),
    (lambda a, i, j: expr.select((i <= 0) | ~(j == 2), 1.0, 0.0) + 0 * a[i, j], (A,),
     ((np.arange(5)[:, None] <= 0) | ~(np.arange(6) == 2)).astype(np.float32)),
    (lambda a, i, j: expr.select(i != j, 1.0, 0.0) + 0 * a[i, j], (A,), 1 - np.eye(5, 6, dtype=np.float32)),
    (lambda a, i, j: expr.maximum(a[i, j], 1.0) + expr.minimum(a[i, j], 1.0), (A,), A + 1),
    (lambda a, i, j: expr.exp(expr.log(a[i, j])), (A,), A),
    (lambda a, i, j: expr.sqrt(a[i, j]) * expr.rsqrt(a[i, j]), (A,), np.ones_like(A)),
    (lambda a, i, j: expr.tanh(a[i, j]), (A,), np.tanh(A)),
    (lambda a, i, j: expr.silu(a[i, j]) / expr.sigmoid(a[i, j]), (A,), A),
    (lambda a, i, j: expr.gelu(a[i, j]) - a[i, j] * (1 + expr.erf(a[i, j] / 2**0.5)) / 2, (A,), 0 * A),
    (lambda a, i, j: expr.relu(a[i, j] - 1), (A,), np.maximum(A - 1, 0)),
    (lambda a, i, j: expr.absolute(0 - a[i, j]), (A,), A),
    (lambda a, i, j: expr.sin(a[i, j]) + expr.cos(a[i, j]), (A,), np.sin(A) + np.cos(A)),
    (lambda a, i, j: expr.floor(a[i, j]), (A,), np.floor(A)),
    (lambda a, i, j: a[i, j] / expr.largest(6, lambda k: a[i, k]), (A,), A / A.max(1, keepdims=True)),
    (lambda a, i, j: a[i, j] / expr.smallest(5, lambda k: a[k, j]), (A,), A / A.min(0)),
    (lambda a, i, j: expr.sum(5, lambda k: expr.sum(6, lambda m: a[k, m])) + 0 * a[i, j], (A,),
     np.full_like(A, A.sum())),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(FORMULAS)))
def test_formulas_from_functions(case: int) -> None:
    function, arrays, expected = FORMULAS[case]
    got = evaluate(lambda *xs: op.tensor_expr(function, xs, (5, 6)), *arrays)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_a_matmul_as_a_formula() -> None:
    got = evaluate(
        lambda a, b: op.tensor_expr(
            lambda a, b, i, j: expr.sum(a_width, lambda k: a[i, k] * b[k, j]), [a, b], (5, 7), "f32"
        ),
        A,
        B,
    )
    np.testing.assert_allclose(got, A @ B, rtol=1e-5)


a_width = A.shape[1]


def test_formula_text() -> None:
    function = trace(
        lambda x: op.tensor_expr(lambda x, b, k: x[b, x_rows - 1, k], [x], (1, 4)), [[1, "s", 4]]
    )
    node = function.outputs[0]
    assert node.attrs["formula"] == "a0[i0, s - 1, i1]"
    assert node.tensor.dtype is f32
    (last,) = interp.run(function, [np.arange(12, dtype=np.float32).reshape(1, 3, 4)])
    np.testing.assert_array_equal(last, [[8, 9, 10, 11]])


x_rows = SymDim("s")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a, i: a[i, 0], "the function takes 2 arguments; expected 1 inputs and 2 indices"),
        (lambda a, i, j: a[i], "formula: a0 has 2 axes; got 1 indices"),
        (lambda a, i, j: a, "formula: got .*; expected an element of an input"),
        (lambda a, i, j: a[i, j] * float("inf"), "formula: got inf"),
        (lambda a, i, j: a[i, True], "formula: got True"),
        (
            lambda a, i, j: 1.0 if i == j else 0.0,
            r"formula: \(i0 == i1\) has no truth value; use expr.select",
        ),
    ],
)
def test_formula_mistakes(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(lambda a: op.tensor_expr(function, [a], (5, 6)), A)


def test_deeply_nested_reductions() -> None:
    taken = Element(" ".join(f"(k{depth} < 2" for depth in range(16)))
    with pytest.raises(UserError, match="nested more than 16 deep"):
        expr.sum(2, lambda k: taken)


def test_tensors_print_their_type() -> None:
    seen: list[str] = []

    def look(x: nn.Tensor) -> nn.Tensor:
        seen.append(repr(x))
        return x

    trace(look, [["n", 8]])
    assert seen == ["Tensor(f32[n,8])"]


def test_shape_errors_are_shape_errors() -> None:
    with pytest.raises(ShapeError, match="run: add"):
        trace(lambda x, y: x + y, [["n", 8], ["n", 7]])
