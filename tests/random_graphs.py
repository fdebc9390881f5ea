"""Random graph functions for property tests: every op family, symbolic rows, a KV cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from strata.core.dims import SymDim
from strata.core.dtypes import DType, bf16, f16, f32, i32
from strata.core.errors import ShapeError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node
from strata.graph.types import CacheType, RopeMode, TensorType

N = SymDim("n", 1, 32)
CACHE = CacheType(2, 2, 4, bf16, 4, RopeMode.NORMAL, 4)
SHAPES = ((N, 8), (N, 2, 4), (1, N, 8), (2 * N, 4), (8 * N,), (N, 1, 8), (4, 2 * N), (2, N, 4), (N, 1))
CASTS = (f32, bf16, f16)
NUMBERS = (0.0, -0.0, 1.0, 2.0, -0.5)
UNARY = (g.neg, g.tanh, g.silu, g.sigmoid, g.relu, g.abs, g.gelu)
BINARY = (g.add, g.sub, g.mul, g.maximum, g.minimum)


class _State:
    """What the next node may use."""

    def __init__(self) -> None:
        self.cache = g.input("cache", CACHE)
        self.inputs = (
            g.input("x", TensorType((N, 8), f32)),
            g.input("h", TensorType((1, N, 8), f32)),
            g.input("i", TensorType((N,), i32)),
            self.cache,
        )
        self.newest = self.cache
        self.appended: set[int] = set()
        self.pool: list[Node] = list(self.inputs[:2])
        self.params = 0

    def param(self, *shape: int, dtype: DType = f32) -> Node:
        self.params += 1
        return g.param(f"w{self.params}", TensorType(shape, dtype))

    def last(self, x: Node) -> int:
        extent = x.tensor.shape[-1] if x.tensor.rank else None
        if not isinstance(extent, int):
            raise ShapeError("rows of symbolic length")
        return extent


def _axis(x: Node, k: int) -> int:
    if not x.tensor.rank:
        raise ShapeError("no axes")
    return k % x.tensor.rank


def _linear(s: _State, x: Node, y: Node, k: int) -> Node:
    width = s.last(x)
    out = 4 * (1 + k % 3)
    if k % 2:
        return g.matmul(x, s.param(width, out, dtype=x.tensor.dtype))
    weight = s.param(out, width, dtype=x.tensor.dtype)
    return g.matmul(x, g.permute_dims(weight, (1, 0)), out_dtype=f32)


def _heads(s: _State, x: Node) -> Node:
    return g.reshape(x, (N, 2, 4))  # raises where the number of elements differs


def _rope(s: _State, x: Node, y: Node, k: int) -> Node:
    return g.rope(_heads(s, x), s.newest if k % 2 else s.cache)


def _attention(s: _State, x: Node, y: Node, k: int) -> Node:
    """An append to the next layer, and attention over it."""
    layer = len(s.appended)
    if layer == CACHE.num_layers:
        raise ShapeError("all layers are appended")
    key, value = _heads(s, x), _heads(s, y)
    s.newest = g.kv_append(s.newest, g.rope(key, s.newest) if k % 2 else key, value, layer)
    s.appended.add(layer)
    return g.paged_attention(_heads(s, x), s.newest, layer, 0.5)


def _last(s: _State, x: Node, y: Node, k: int) -> Node:
    if not x.tensor.rank or x.tensor.shape[0] != N:
        raise ShapeError("not one row per token")
    return g.last_tokens(x, s.newest)


def _slice(s: _State, x: Node, y: Node, k: int) -> Node:
    axis = _axis(x, k)
    extent = x.tensor.shape[axis]
    if not isinstance(extent, int):
        raise ShapeError("symbolic")
    begin = k % extent
    return g.slice(x, axis, begin, begin + 1 + (extent - begin - 1) // 2)


def _resplit(s: _State, x: Node, y: Node, k: int) -> Node:
    """Halves of the last axis, joined again, perhaps the other way round."""
    half = s.last(x) // 2
    if not half:
        raise ShapeError("nothing to split")
    a, b = g.slice(x, x.tensor.rank - 1, 0, half), g.slice(x, x.tensor.rank - 1, half, 2 * half)
    return g.concat([a, b] if k % 2 else [b, a], x.tensor.rank - 1)


def _permute(s: _State, x: Node, y: Node, k: int) -> Node:
    axes, first = list(range(x.tensor.rank)), _axis(x, k)
    return g.permute_dims(x, axes[first:] + axes[:first])


STEPS: tuple[Callable[[_State, Node, Node, int], Node], ...] = (
    lambda s, x, y, k: UNARY[k % len(UNARY)](x),
    lambda s, x, y, k: BINARY[k % len(BINARY)](x, y),
    lambda s, x, y, k: BINARY[k % len(BINARY)](x, NUMBERS[k % len(NUMBERS)]),
    lambda s, x, y, k: g.cast(x, CASTS[k % len(CASTS)]),
    lambda s, x, y, k: g.reshape(x, SHAPES[k % len(SHAPES)]),
    lambda s, x, y, k: g.rms_norm(x, s.param(s.last(x), dtype=x.tensor.dtype)),
    lambda s, x, y, k: g.softmax(x, _axis(x, k)),
    lambda s, x, y, k: (g.sum, g.mean, g.max)[k % 3](x, _axis(x, k), keepdims=k % 2 == 0),
    lambda s, x, y, k: g.broadcast_to(x, SHAPES[k % len(SHAPES)]),
    lambda s, x, y, k: g.concat([x, y], _axis(x, k)),
    lambda s, x, y, k: g.where(g.less(x, y), x, y),
    lambda s, x, y, k: g.take(s.param(5, 8), s.inputs[2]),
    lambda s, x, y, k: g.mul(x, s.param(s.last(x), dtype=x.tensor.dtype)),
    lambda s, x, y, k: BINARY[k % len(BINARY)](NUMBERS[k % len(NUMBERS)], x),
    lambda s, x, y, k: g.mul(x, np.full(s.last(x), 1.0)),
    lambda s, x, y, k: g.cast(g.cast(x, f32), CASTS[k % len(CASTS)]),
    lambda s, x, y, k: g.add(x, g.broadcast_to(s.param(s.last(x), dtype=x.tensor.dtype), x.tensor.shape)),
    _resplit,
    _slice,
    _permute,
    _last,
    _linear,
    _rope,
    _attention,
)


@st.composite
def modules(draw: st.DrawFn, min_steps: int = 4, max_steps: int = 14) -> Module:
    """A module with one function of some ops (steps that do not type are left out), and a few results."""
    state = _State()
    small = st.integers(0, 63)
    step = st.tuples(small, small, small, small)
    for op, a, b, k in draw(st.lists(step, min_size=min_steps, max_size=max_steps)):
        # Mostly the newest node: chains, with now and then a second reader.
        x, y = (state.pool[-1 - (i // 4 if i % 4 == 0 else i % 2) % len(state.pool)] for i in (a, b))
        try:
            state.pool.append(STEPS[op % len(STEPS)](state, x, y, k))
        except ShapeError:
            continue
    read = {id(i) for n in state.pool for i in n.inputs}
    picks = draw(st.lists(small, min_size=0, max_size=2))
    outputs = [n for n in state.pool if id(n) not in read][-3:] or [state.pool[-1]]
    outputs += [state.pool[p % len(state.pool)] for p in picks]
    if state.newest is not state.cache:
        outputs.append(state.newest)
    return Module((Function("f", state.inputs, tuple(outputs)),))
