"""The builder: promotion of scalars, normalised axes, derived shapes, split."""

import re

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f32, i32, i64
from strata.core.errors import ShapeError, UserError, VerifyError
from strata.graph import builder as b
from strata.graph.interp import run
from strata.graph.nodes import Function, Module, make_node, rewrite
from strata.graph.types import CacheType

n = SymDim("n", 1, 512)
x = b.input("x", b.tensor_type((n, 12), "f32"))


def test_scalars_take_the_dtype_of_the_other_operand() -> None:
    half = b.cast(x, "bf16")
    for node in (
        b.add(half, 1),
        b.sub(2.0, half),
        b.where(b.less(half, 0), 0.0, half),
        b.power(half, np.float64(2)),
    ):
        assert node.tensor.dtype is bf16
    assert b.maximum(1.5, 2.5).tensor.dtype is f32
    assert b.add(np.arange(3), 1).tensor.dtype is i64
    assert str(b.mul(x, np.ones((12,))).type) == "f32[n,12]"
    with pytest.raises(
        UserError, match=re.escape("operand: got 'a' (str); expected a node, a number or an array")
    ):
        b.add(x, "a")  # type: ignore[arg-type]


def test_identities_make_no_node() -> None:
    assert b.cast(x, f32) is x
    assert b.reshape(x, (n, 12)) is x
    assert b.reshape(x, (n, -1)) is x


def test_axes_are_normalised() -> None:
    assert b.argmax(x, 0).type == b.tensor_type(x.tensor.shape[1:], "i32")
    assert b.softmax(x).attrs["axis"] == 1
    assert b.sum(x, -1).attrs["axes"] == (1,)
    assert b.max(x, (-2, 1), keepdims=True).attrs["axes"] == (0, 1)
    assert b.mean(x).attrs["axes"] == (0, 1)
    assert b.concat([x, x], -2).attrs["axis"] == 0
    assert b.permute_dims(x).attrs["axes"] == (1, 0)
    assert b.permute_dims(x, (-1, 0)).attrs["axes"] == (1, 0)
    assert b.take(x, b.const([0]), -1).attrs["axis"] == 1
    assert b.slice(x, -1, 0, 3).attrs["axis"] == 1
    with pytest.raises(ShapeError, match="concat: got no operands"):
        b.concat([])


def test_reshape_finds_the_missing_dim() -> None:
    assert str(b.reshape(x, (-1, 3, 4)).type) == "f32[n,3,4]"
    assert str(b.reshape(x, (-1,)).type) == "f32[12*n]"
    for shape in ((-1, -1), (-1, 5), (n, 0, -1)):
        with pytest.raises(
            ShapeError, match=r"reshape: shape .* -1 must occur once and have one exact value"
        ):
            b.reshape(x, shape)


def test_split() -> None:
    assert [str(p.type) for p in b.split(x, 3)] == ["f32[n,4]"] * 3
    parts = b.split(x, [8, 2, 2], axis=1)
    assert [(p.attrs["begin"], p.attrs["end"]) for p in parts] == [(0, 8), (8, 10), (10, 12)]
    y = b.input("y", b.tensor_type((2 * n,), "f32"))
    assert [str(p.type) for p in b.split(y, 2)] == ["f32[n]", "f32[n]"]
    value = np.arange(6, dtype=np.float32)
    got = run(Function("f", (y,), tuple(b.split(y, 2))), [value])
    np.testing.assert_array_equal(np.concatenate([np.asarray(v) for v in got]), value)
    for sections in (5, 0, [4, 4], []):
        with pytest.raises(
            ShapeError, match=r"split: x f32\[n,12\] axis 1 \(extent 12\) does not split into"
        ):
            b.split(x, sections)


def test_names_are_kept() -> None:
    assert b.exp(x, name="stage").name == "stage"
    assert b.param("w", b.tensor_type((1,), "f32")).name == "w"
    assert b.const(1.0, "bf16", name="half").name == "half"


def test_rewrite_rebuilds_users() -> None:
    function = Function("f", (x,), (b.exp(b.neg(x)),))
    same = rewrite(function, lambda node: node)
    assert same.outputs[0] is function.outputs[0]
    changed = rewrite(function, lambda node: make_node("abs", node.inputs) if node.op == "neg" else node)
    assert [node.op for node in changed.nodes] == ["input", "abs", "exp"]


def test_module_lookup_and_params() -> None:
    function = Function("f", (x,), (b.add(x, b.param("w", b.tensor_type((12,), "f32"))),))
    module = Module((function,))
    assert {k: str(v) for k, v in module.params.items()} == {"w": "f32[12]"}
    assert [d.name for d in function.dims] == ["n"]
    assert module.map(lambda f: f) == module
    with pytest.raises(UserError, match="no function 'g'; this module has: f"):
        _ = module["g"]


def test_repr_of_a_shared_graph_is_short() -> None:
    y = x
    for _ in range(100):
        y = b.add(y, y)  # as a tree: 2**100 nodes
    assert len(repr(Function("f", (x,), (y,)))) < 1000


def test_a_cache_is_no_tensor() -> None:
    cache = b.input("cache", CacheType(1, 1, 4, f32))
    with pytest.raises(VerifyError, match=r"input cache: got cache<layers=1,.*; expected a tensor"):
        _ = cache.tensor
    with pytest.raises(ShapeError, match="layers, kv_heads, head_dim and page_size must be at least 1"):
        CacheType(1, 0, 4, f32)
    with pytest.raises(ShapeError, match="dtype must be one of f32, f16, bf16, i8"):
        CacheType(1, 1, 4, i32)
