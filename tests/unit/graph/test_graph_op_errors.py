"""Every error of the op table, with its message."""

import re
from typing import Any

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f16, f32, i32, i64
from strata.core.errors import ShapeError, UserError
from strata.graph.interp import run
from strata.graph.nodes import Function, Node, make_node, rebuild
from strata.graph.opdef import OPS, Sample
from strata.graph.ops.attention import sample_cache
from strata.graph.ops.leaf import array_type, make_array
from strata.graph.samples import sample_operands
from strata.graph.types import CacheType, RopeMode, TensorType, Type

n = SymDim("n", 1, 512)
m = SymDim("m", 1, 512)
CACHE = CacheType(2, 2, 8, f32, 4)
ROPE = CacheType(2, 2, 8, f32, 4, RopeMode.NORMAL, 8)
INLINE = CacheType(2, 2, 8, f32, 4, RopeMode.INLINE, 8)


def t(dtype: Any, *shape: Any) -> TensorType:
    return TensorType(shape, dtype)


def leaf(type_: Type, name: str = "x") -> Node:
    return make_node("input", name=name, type=type_)


def node(op: str, *types: Type, **attrs: Any) -> Node:
    return make_node(op, [leaf(x, f"x{i}") for i, x in enumerate(types)], **attrs)


X = t(f32, n, 8)
ERRORS: list[tuple[str, tuple[Type, ...], dict[str, Any], str]] = [
    ("add", (X,), {}, "add: got 1 operands; expected 2 (a, b)"),
    ("const", (X,), {"value": np.zeros(1)}, "const: got 1 operands; expected none"),
    ("add", (X, CACHE), {}, "add: operand b is cache<"),
    ("last_tokens", (X, X), {}, "last_tokens: operand cache is f32[n,8]; expected a KV cache"),
    ("add", (X, t(f16, 8)), {}, "add: dtypes differ: a f32[n,8], b f16[8]; cast one to the other's dtype"),
    ("add", (t(bool_, 2), t(bool_, 2)), {}, "add: operand a is bool[2]; expected a float or integer dtype"),
    ("div", (t(i32, 2), t(i32, 2)), {}, "div: operand a is i32[2]; expected a float dtype; cast it first"),
    ("logical_and", (X, X), {}, "logical_and: operand a is f32[n,8]; expected bool"),
    ("add", (X, t(f32, m, 8)), {}, "shapes do not broadcast: a f32[n,8] dim -2 = n, b f32[m,8] dim -2 = m"),
    (
        "where",
        (t(bool_, 3), t(f32, 2), t(f32, 1)),
        {},
        "where: shapes do not broadcast: cond bool[3] dim -1 = 3",
    ),
    ("where", (X, X, X), {}, "where: operand cond is f32[n,8]; expected bool"),
    ("exp", (t(i32, 3),), {}, "exp: operand x is i32[3]; expected a float dtype"),
    ("neg", (t(bool_, 3),), {}, "neg: operand x is bool[3]; expected a float or integer dtype"),
    ("gelu", (X,), {"approximate": "erf"}, 'gelu: approximate is \'erf\'; expected "none" or "tanh"'),
    ("reshape", (X,), {"shape": (n, 7)}, "reshape: x f32[n,8] has 8*n elements, shape (n,7) has 7*n"),
    ("reshape", (X,), {"shape": (n, -8)}, "reshape: shape has the entry -8; expected ints >= 0"),
    ("reshape", (X,), {"shape": (n, 8.0)}, "reshape: shape has the entry 8.0"),
    ("permute_dims", (X,), {"axes": (0,)}, "permute_dims: got 1 axes for x f32[n,8]; expected 2"),
    ("permute_dims", (X,), {"axes": (0, -2)}, "permute_dims: axes (0, -2) name an axis twice"),
    (
        "permute_dims",
        (X,),
        {"axes": (0, 2)},
        "permute_dims: axis 2 is out of range; expected an int in -2..1",
    ),
    (
        "slice",
        (X,),
        {"axis": 1, "begin": 4, "end": 9},
        "slice: 4..9 of x f32[n,8] axis 1 (extent 8): need 9 <= 8",
    ),
    ("slice", (X,), {"axis": 1, "begin": -1, "end": 2}, "need 0 <= -1"),
    ("slice", (X,), {"axis": 0, "begin": 2, "end": n}, "need 2 <= n for all values"),
    ("concat", (), {"axis": 0}, "concat: got no operands; expected at least one"),
    (
        "concat",
        (X, t(f32, n, 8, 1)),
        {"axis": 0},
        "concat: x0 f32[n,8] and x1 f32[n,8,1] differ outside axis 0",
    ),
    ("concat", (X, t(f32, m, 8)), {"axis": 1}, "concat: x0 f32[n,8] and x1 f32[m,8] differ outside axis 1"),
    ("broadcast_to", (X,), {"shape": (n, 9)}, "broadcast_to: x f32[n,8] does not broadcast to (n,9)"),
    ("broadcast_to", (X,), {"shape": (8,)}, "broadcast_to: x f32[n,8] does not broadcast to (8)"),
    ("take", (X, X), {}, "take: operand indices is f32[n,8]; expected i32 or i64"),
    ("mean", (t(i32, 3),), {"axes": (0,)}, "mean: operand x is i32[3]; expected a float dtype"),
    ("sum", (t(bool_, 3),), {"axes": (0,)}, "sum: operand x is bool[3]"),
    (
        "max",
        (t(f32, 3, 0),),
        {"axes": (1,)},
        "max: x f32[3,0] has extent 0 along axes (1,); expected at least 1",
    ),
    ("argmax", (X,), {"axis": 2}, "argmax: axis 2 is out of range; expected an int in -2..1"),
    ("argmax", (t(bool_, 3),), {}, "argmax: operand x is bool[3]; expected a float or integer dtype"),
    (
        "argmax",
        (t(f32, 3, 0),),
        {},
        "argmax: x f32[3,0] has extent 0 along axis 1; expected 1 .. 2147483648",
    ),
    (
        "argmax",
        (t(f32, 2, 2**31 + 1),),
        {},
        "has extent 2147483649 along axis 1; expected 1 .. 2147483648",
    ),
    ("softmax", (X,), {"axis": 2}, "softmax: axis 2 is out of range; expected an int in -2..1"),
    ("softmax", (t(i32, 3),), {}, "softmax: operand x is i32[3]; expected a float dtype"),
    ("rms_norm", (t(f32), t(f32)), {}, "rms_norm: got x f32[], eps 1e-05; expected rank >= 1 and eps >= 0"),
    ("rms_norm", (X, t(f32, 8)), {"eps": -1.0}, "eps -1.0; expected rank >= 1 and eps >= 0"),
    ("rms_norm", (X, t(f32, 7)), {}, "rms_norm: weight f32[7] does not fit x f32[n,8]; expected shape (8,)"),
    ("layer_norm", (X, t(f32, 8), t(f32, 1)), {}, "layer_norm: bias f32[1] does not fit x f32[n,8]"),
    ("matmul", (X, t(f32, 9, 3)), {}, "contracting dims differ: a f32[n,8] dim 1 = 8, b f32[9,3] dim 0 = 9"),
    ("matmul", (X, t(f32, 3, 8)), {}, "b f32[3,8] dim 0 = 3; b is the other way round: change transpose_b"),
    ("matmul", (X, t(f32, 8)), {}, "matmul: got a f32[n,8], b f32[8]; expected both of rank 2 or more"),
    ("matmul", (X, t(bf16, 8, 3)), {}, "matmul: dtypes differ: a f32[n,8], b bf16[8,3]"),
    ("matmul", (t(i32, 2, 2), t(i32, 2, 2)), {}, "matmul: operand a is i32[2,2]; expected a float dtype"),
    ("matmul", (X, t(f32, 8, 3)), {"out_dtype": i32}, "matmul: out_dtype is i32; expected a float dtype"),
    ("matmul", (t(f32, 2, 3, 8), t(f32, 4, 8, 3)), {}, "matmul batch dims: shapes do not broadcast"),
    ("rope", (t(f32, n, 2, 8), CACHE), {}, "rope: the cache has rope=none; expected rope=normal"),
    ("rope", (t(f32, n, 2, 8), INLINE), {}, "rope: the cache has rope=inline"),
    ("rope", (t(f32, n, 16), ROPE), {}, "rope: x is f32[n,16]; expected [n, heads, 8] (head_dim of cache<"),
    ("kv_append", (CACHE, X, X), {"layer": 2}, "kv_append: layer 2 is out of range; expected 0..1 of cache<"),
    (
        "kv_append",
        (CACHE, t(f32, n, 2, 8), t(f32, n, 1, 8)),
        {"layer": 0},
        "kv_append: k is f32[n,2,8], v is f32[n,1,8]; expected both [n, 2, 8] of one dtype",
    ),
    (
        "paged_attention",
        (t(f32, n, 3, 8), CACHE),
        {"layer": 0, "scale": 1.0},
        "paged_attention: q f32[n,3,8] has 3 heads; expected a multiple of the cache's kv heads (2)",
    ),
    ("last_tokens", (t(f32), CACHE), {}, "last_tokens: x is f32[]; expected [n, ...]"),
    (
        "create_kv_cache",
        (),
        {"type": CACHE, "num_pages": 0},
        "create_kv_cache: num_pages is 0, max_context is 1",
    ),
    (
        "tensor_expr",
        (X,),
        {"formula": "a0[i0]", "shape": (n,), "dtype": f32},
        "a0 is f32[n,8], got 1 indices",
    ),
    (
        "tensor_expr",
        (X,),
        {"formula": "i9", "shape": (n,), "dtype": f32},
        "formula: no axis i9; the result has rank 1",
    ),
    (
        "tensor_expr",
        (X,),
        {"formula": "z", "shape": (n,), "dtype": f32},
        "tensor_expr: no axis or dim 'z' in 'z'; dims: n",
    ),
    (
        "tensor_expr",
        (X, t(f32, n)),
        {"formula": "a0[a1[i0], 0]", "shape": (n,), "dtype": f32},
        "tensor_expr: a1 f32[n] is used in an index; expected i32 or i64",
    ),
    (
        "tensor_expr",
        (),
        {"formula": "reduce_max(k < n - 1, k)", "shape": (n,), "dtype": f32},
        "tensor_expr: extent n - 1 of axis k may be too small",
    ),
    (
        "tensor_expr",
        (),
        {"formula": "i0 < 3", "shape": (n,), "dtype": f32},
        "tensor_expr: the formula is a condition, dtype is f32; expected bool",
    ),
]


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"), ERRORS, ids=[f"{e[0]}-{i}" for i, e in enumerate(ERRORS)]
)
def test_type_error(op: str, types: tuple[Type, ...], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        node(op, *types, **attrs)


def test_error_names_the_node() -> None:
    with pytest.raises(ShapeError, match=r"dtypes differ.*\(model\.layers\.3\.mlp\)"):
        make_node("add", [leaf(X), leaf(t(f16, 8))], "model.layers.3.mlp")


def test_unknown_op_and_attributes() -> None:
    with pytest.raises(UserError, match=r"no op 'mull'; did you mean 'mul'\?"):
        node("mull")
    with pytest.raises(UserError, match=r"exp: unknown attribute 'base'; it has: none"):
        node("exp", X, base=2)
    with pytest.raises(UserError, match=r"take: unknown attribute 'dim'; it has: axis"):
        node("take", X, X, dim=2)
    with pytest.raises(UserError, match=r"cast: attribute 'dtype' is missing \(result dtype\)"):
        node("cast", X)
    with pytest.raises(UserError, match=r"softmax: attribute axis is '1'; expected int"):
        node("softmax", X, axis="1")
    with pytest.raises(UserError, match=r"softmax: attribute axis is True; expected int"):
        node("softmax", X, axis=True)


def test_integers_become_floats_where_the_schema_says_float() -> None:
    assert node("rms_norm", X, t(f32, 8), eps=0).attrs["eps"].hex() == "0x0.0p+0"


def test_leaves() -> None:
    with pytest.raises(UserError, match="input: got an empty name"):
        make_node("input", type=X)
    with pytest.raises(UserError, match="param: shape has the entry -1"):
        make_node("param", name="w", type=t(f32, -1))
    with pytest.raises(ShapeError, match="const: got an array of dtype complex128; expected one of f64"):
        array_type(np.zeros(1, np.complex128))
    with pytest.raises(UserError, match=r"param w: has no value of its own; graph.interp.run binds it"):
        OPS["param"].reference([], {"name": "w"})


def test_rebuild_of_leaves_and_other_nodes() -> None:
    x = leaf(X)
    assert rebuild(x, []) is x
    renamed = rebuild(x, [], type=t(f32, 1))
    assert (renamed.attrs["name"], str(renamed.type)) == ("x", "f32[1]")
    y = make_node("softmax", [x], "probabilities")
    assert rebuild(y, [x]) is y
    z = rebuild(y, [x], axis=0)
    assert (z.attrs["axis"], z.name) == (0, "probabilities")


def test_make_array() -> None:
    assert array_type(make_array(1.5)).dtype is f32
    assert array_type(make_array([1, 2])).dtype is i64
    assert array_type(make_array(1, "bf16")).dtype is bf16
    assert array_type(make_array(np.float64(2))).dtype.name == "f64"
    assert array_type(make_array(True)).dtype is bool_
    assert not make_array([1.0]).flags.writeable


def test_fused_errors() -> None:
    x = leaf(t(f32, 3))
    body = Function("body", (x,), (make_node("exp", [x]),))
    with pytest.raises(
        ShapeError, match=re.escape("fused @body: got operands (f32[4]); the body takes (f32[3])")
    ):
        node("fused", t(f32, 4), body=body)
    two = Function("two", (x,), (x, x))
    with pytest.raises(ShapeError, match="fused @two: the body has 2 outputs; expected 1"):
        node("fused", t(f32, 3), body=two)


def evaluate(op: str, operands: list[Any], types: tuple[Type, ...], **attrs: Any) -> Any:
    inputs = tuple(leaf(type_, f"x{i}") for i, type_ in enumerate(types))
    return run(Function("f", inputs, (make_node(op, inputs, **attrs),)), operands)[0]


def test_take_index_out_of_range() -> None:
    for index in (-1, 5):
        with pytest.raises(ShapeError, match=rf"take: index {index} is out of range; expected 0\.\.4"):
            evaluate("take", [np.zeros(5, np.float32), np.array([index], np.int32)], (t(f32, 5), t(i32, 1)))


def test_formula_index_out_of_range() -> None:
    with pytest.raises(
        ShapeError, match=r"tensor_expr: index 3 of a0 is out of range on axis 0; expected 0\.\.2"
    ):
        evaluate(
            "tensor_expr",
            [np.zeros(3, np.float32)],
            (t(f32, 3),),
            formula="a0[i0 + 1]",
            shape=(3,),
            dtype=f32,
        )


def test_formula_dim_without_value() -> None:
    with pytest.raises(
        ShapeError, match=r"tensor_expr: dim n has no value; run the function with graph.interp"
    ):
        OPS["tensor_expr"].reference([], {"formula": "n", "shape": (2,), "dtype": f32})


def test_tokens_must_be_those_of_the_view() -> None:
    type_, cache = sample_cache(f32, [0], [3])
    with pytest.raises(ShapeError, match="last_tokens: got 2 tokens; the cache's batch view has 3"):
        evaluate("last_tokens", [np.zeros((2, 1), np.float32), cache], (t(f32, 2, 1), type_))
    with pytest.raises(ShapeError, match="cache_positions: tokens is 2; the cache's batch view has 3"):
        evaluate("cache_positions", [cache], (type_,), tokens=2)


def test_sample_without_cache_value() -> None:
    with pytest.raises(UserError, match="last_tokens: sample has no value for its cache operand 1"):
        sample_operands("last_tokens", Sample((t(f32, 2, 1), CACHE)))
