"""Random graphs: parse(print(g)) prints the same, means the same, and passes the checker."""

import contextlib
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strata.core.dims import SymDim
from strata.core.errors import ParseError
from strata.graph import builder as b
from strata.graph.check import check
from strata.graph.interp import run
from strata.graph.nodes import Function, Module, Node
from strata.graph.text import parse_module, print_module

n = SymDim("n", 1, 16)
UNARY = [b.neg, b.tanh, b.sigmoid, b.relu, b.abs, b.floor, b.gelu, b.sin]
BINARY = [b.add, b.sub, b.mul, b.maximum, b.minimum]
FLOATS = st.floats(-1e3, 1e3, width=32)


def shape_op(draw: Any, x: Node) -> Node:
    """A random op that changes the shape of a rank-2 ``[n, d]`` node and gives a rank-2 ``[n, d']`` node."""
    width = x.tensor.shape[1]
    assert isinstance(width, int)
    match draw(st.integers(0, 4)):
        case 0:
            return b.permute_dims(b.permute_dims(x, (1, 0)), (1, 0))
        case 1:
            begin = draw(st.integers(0, width - 1))
            return b.slice(x, 1, begin, draw(st.integers(begin + 1, width)))
        case 2:
            return b.concat([x, x], 1) if width < 64 else x
        case 3:
            return b.reshape(b.reshape(x, (width, n)), (n, width))
        case _:
            return b.softmax(x, draw(st.sampled_from([-1, 0])))


def step(draw: Any, pool: list[Node]) -> Node:
    """One more random node over the pool of ``[n, d]`` nodes."""
    x = draw(st.sampled_from(pool))
    name = draw(st.sampled_from(["", "", "model.layer", "odd # name", '"q"']))
    width = x.tensor.shape[1]
    match draw(st.integers(0, 6)):
        case 0:
            return draw(st.sampled_from(UNARY))(x, name=name)
        case 1:
            other = [y for y in pool if y.tensor.shape == x.tensor.shape]
            return draw(st.sampled_from(BINARY))(x, draw(st.sampled_from(other)), name=name)
        case 2:
            return draw(st.sampled_from(BINARY))(x, draw(FLOATS), name=name)
        case 3:
            row = draw(st.lists(FLOATS, min_size=width, max_size=width))
            return b.add(x, np.array(row, np.float32), name=name)
        case 4:
            wide = b.sum(x, -1, keepdims=True)
            return b.where(b.less(x, wide), x, draw(FLOATS), name=name)
        case 5:
            weight = b.param(f"w{width}", b.tensor_type((3, width), "f32"))
            return b.matmul(x, weight, transpose_b=True, name=name)
        case _:
            return shape_op(draw, x)


@st.composite
def functions(draw: Any) -> Function:
    inputs = [b.input("x", b.tensor_type((n, 5), "f32")), b.input("a b", b.tensor_type((n, 3), "f32"))]
    pool = list(inputs)
    for _ in range(draw(st.integers(1, 12))):
        pool.append(step(draw, pool))
    outputs = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))
    if draw(st.booleans()):
        operand = draw(st.sampled_from(pool))
        inner = b.input("p", operand.type)
        outputs.append(b.fused([operand], Function("body", (inner,), (b.exp(b.neg(inner)),))))
    return Function("main", tuple(inputs), tuple(outputs))


def weights(function: Function) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {node.attrs["name"]: node.tensor.shape for node in function.params}
    return {name: rng.standard_normal([int(d) for d in s]).astype(np.float32) for name, s in shapes.items()}  # type: ignore[arg-type]


@given(functions(), st.integers(1, 4))
def test_text_and_meaning_survive(function: Function, size: int) -> None:
    module = check(Module((function,)))
    text = print_module(module)
    again = check(parse_module(text))
    assert print_module(again) == text
    rng = np.random.default_rng(3)
    values = [rng.standard_normal((size, d)).astype(np.float32) for d in (5, 3)]
    params = weights(function)
    for a, c in zip(run(function, values, params), run(again["main"], values, params), strict=True):
        np.testing.assert_array_equal(a, c)


@given(
    st.sampled_from(["", "module {", "module { func @f(%x: f32[2]) -> (f32[2]) { %0: f32[2] = "]), st.text()
)
def test_parser_never_crashes(prefix: str, text: str) -> None:
    with contextlib.suppress(ParseError):
        parse_module(prefix + text)
