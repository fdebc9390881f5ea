"""Export: several functions at once, symbolic dims, param modes, KV caches, and mistakes in specs."""

from typing import Any

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f16, f32, i32
from strata.core.errors import ShapeError, UnsupportedError, UserError
from strata.frontend import nn
from strata.frontend.nn import PagedKVCache, RopeMode, RopeScaling, RopeType, op, spec
from strata.graph import interp
from strata.graph.interp import CacheValue
from strata.graph.nodes import Node, topological
from strata.graph.types import NUM_SEQUENCES, CacheType, TensorType

HEADS, KV_HEADS, D = 4, 2, 8
CACHE = CacheType(2, KV_HEADS, D, f32, 4)


class Attention(nn.Module):
    """One attention layer of a model with two, without projections."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(((HEADS + 2 * KV_HEADS) * D,))
        self.rope = RopeMode.NORMAL

    def run(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return cache.attention_with_fused_qkv(1, x * self.scale, HEADS)

    def both(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return [(self.run(x, cache),), cache]

    def create(self, batch: Any, tokens: Any, chunk: Any, page: Any = 4, kv: int = KV_HEADS) -> Any:
        return PagedKVCache.create(batch, tokens, chunk, page, 2, HEADS, kv, D, self.rope, dtype="f32")


WIDTH = (HEADS + 2 * KV_HEADS) * D
X = spec.Tensor(["n", WIDTH])


def ops(node: Node) -> list[str]:
    return [n.op for n in topological([node])]


def test_functions_share_params_and_dims() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(4, 4)

        def a(self, x: nn.Tensor) -> nn.Tensor:
            return self.layer(x)

        def b(self, x: nn.Tensor, y: nn.Tensor) -> tuple[nn.Tensor, list[nn.Tensor]]:
            return self.layer(x) + y, [y]

    with pytest.raises(ShapeError, match=r"b: add: .*"):
        Model().export({"b": {"x": spec.Tensor(["seq_len", 4]), "y": spec.Tensor(["m", 4])}})
    module, params = Model().export(
        {
            "a": {"x": spec.Tensor([spec.dim("seq_len", 2, 64), 4])},
            "b": {"x": spec.Tensor(["seq_len", 4]), "y": spec.Tensor([1, 4])},
        }
    )
    assert [f.name for f in module.functions] == ["a", "b"]
    assert list(params) == ["layer.weight", "layer.bias"]
    assert set(module.params) == set(params)
    assert [(d.name, d.lo, d.hi) for d in module["b"].dims] == [("seq_len", 2, 64)]
    assert len(module["b"].outputs) == 2


def test_ranges_of_dims() -> None:
    class Model(nn.Module):
        def f(self, x: nn.Tensor) -> nn.Tensor:
            return x

        g = f

    def dims(shape: list, **limits: tuple[int, int]) -> list[tuple]:
        module, _ = Model().export({"f": {"x": spec.Tensor(shape)}}, dims=limits)
        return [(d.name, d.lo, d.hi, d.multiple_of) for d in module["f"].dims]

    assert dims(["a", 3]) == [("a", 1, spec.DEFAULT_MAX_EXTENT, 1)]
    assert dims(["a", "b"], a=(5, 9)) == [("a", 5, 9, 1), ("b", 1, spec.DEFAULT_MAX_EXTENT, 1)]
    assert dims([spec.dim("a", 0, 64, multiple_of=8)]) == [("a", 0, 64, 8)]
    assert dims([2 * spec.dim("a", 1, 4)]) == [("a", 1, 4, 1)]
    # The sizes of a cache's batch view are known.
    assert dims(["num_seqs"]) == [("num_seqs", NUM_SEQUENCES.lo, NUM_SEQUENCES.hi, 1)]
    with pytest.raises(UserError, match="dim 'num_seqs' is a size of the KV cache"):
        dims(["a"], num_seqs=(1, 2))
    with pytest.raises(
        ShapeError, match=r"dim 'a' has ranges 1\.\.4 and 1\.\.5; expected one range per name"
    ):
        dims([spec.dim("a", 1, 4), spec.dim("a", 1, 5)])
    with pytest.raises(ShapeError, match="expected 0 <= lo <= hi"):
        spec.dim("a", 3, 2)


# --- KV cache -------------------------------------------------------------------------------------


def test_the_last_cache_is_returned() -> None:
    """Also when the function does not return it: its appends would be lost."""
    arguments = {"x": X, "cache": spec.KVCache(CACHE)}
    module, _ = Attention().export({"run": arguments, "both": arguments})
    for function in module.functions:
        assert [n.attrs["name"] for n in function.inputs] == ["x", "cache"]
        out, cache = function.outputs
        assert cache.op == "kv_append"
        assert cache.inputs[0] is function.inputs[1]
        assert cache.attrs["layer"] == 1
        assert isinstance(out.type, TensorType)
        assert out.type.shape == (SymDim("n"), HEADS * D)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        (["n", WIDTH], "n"),
        (["n", HEADS + 2 * KV_HEADS, D], "n"),
        ([1, "n", WIDTH], "n"),
        (["n", 1, HEADS + 2 * KV_HEADS, D], "n"),
        ([1, 1, WIDTH], 1),
        ([2, 3, WIDTH], 6),
    ],
)
def test_shapes_of_fused_qkv(shape: list, tokens: int | str) -> None:
    class Model(nn.Module):
        def run(self, x: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
            return cache.attention_with_fused_qkv(0, x, HEADS, sm_scale=0.5)

    module, _ = Model().export({"run": {"x": spec.Tensor(shape), "cache": spec.KVCache(CACHE)}})
    out, cache = module["run"].outputs
    assert out.tensor.shape[:1] == (SymDim("n") if shape[0] == "n" else shape[0],)
    assert len(out.tensor.shape) == len(shape)
    (attend,) = [n for n in topological([out]) if n.op == "paged_attention"]
    assert attend.tensor.shape == (SymDim("n") if tokens == "n" else tokens, HEADS, D)
    assert attend.attrs["scale"] == 0.5
    assert cache.inputs[1].tensor.shape[1:] == (KV_HEADS, D)


@pytest.mark.parametrize(
    ("mode", "rotations"), [(RopeMode.NONE, 0), (RopeMode.NORMAL, 2), (RopeMode.INLINE, 0), ("normal", 2)]
)
def test_rope_modes(mode: RopeMode | str, rotations: int) -> None:
    model = Attention()
    model.rope = mode
    exported = model.export(
        {
            "run": {"x": X, "cache": spec.Object(PagedKVCache)},
            "create": {"batch": int, "tokens": int, "chunk": int},
        }
    )
    function = exported.module["run"]
    assert ops(function.outputs[0]).count("rope") == rotations
    assert exported.cache is not None
    assert exported.cache.rope == RopeMode(mode).value if isinstance(mode, str) else mode.value
    assert len(exported.cache.rope_inv_freq) == (0 if mode is RopeMode.NONE else D // 2)


def test_constructors_are_recorded() -> None:
    arguments = {"batch": 3, "tokens": 100, "chunk": int, "$": {"param_mode": "none"}}
    exported = Attention().export({"run": {"x": X, "cache": spec.KVCache()}, "create": arguments})
    assert [f.name for f in exported.module.functions] == ["run", "create"]
    info = exported.functions["create"].constructor
    assert info is not None
    assert (info.max_batch_size, info.max_total_seq_len) == (3, 100)
    assert info.prefill_chunk_size == spec.RuntimeInt("chunk")
    assert info.record == exported.cache
    assert info.type == exported.module["run"].inputs[1].type
    (created,) = interp.run(exported.module["create"], [])
    assert isinstance(created, CacheValue)
    assert (created.num_pages, created.max_context) == (25, 100)
    assert exported.functions["run"].constructor is None


def test_rope_scaling_reaches_the_record() -> None:
    class Model(nn.Module):
        def make(self) -> PagedKVCache:
            scaling = RopeScaling(RopeType.LINEAR, 2.0)
            return PagedKVCache.create(1, 8, 8, 8, 1, 1, 1, 4, rope_theta=100.0, rope_scaling=scaling)

    cache = Model().export({"make": {}}).cache
    assert cache is not None
    assert cache.rope_inv_freq == pytest.approx([0.5, 0.05])
    assert (cache.dtype, cache.page_size, cache.rope_attention_factor) == ("f16", 8, 1.0)


def test_last_tokens_and_positions() -> None:
    class Model(nn.Module):
        def flat(self, ids: nn.Tensor, x: nn.Tensor, cache: PagedKVCache) -> Any:
            return cache.last_tokens(x), cache.positions(ids)

        def deep(self, ids: nn.Tensor, x: nn.Tensor, cache: PagedKVCache) -> Any:
            return cache.last_tokens(x), cache.positions(ids)

    exported = Model().export(
        {
            "flat": {
                "ids": spec.Tensor(["n"], "i32"),
                "x": spec.Tensor(["n", 3]),
                "cache": spec.KVCache(CACHE),
            },
            "deep": {
                "ids": spec.Tensor([1, "n"], "i32"),
                "x": spec.Tensor([1, "n", 3]),
                "cache": spec.KVCache(CACHE),
            },
        }
    )
    n = SymDim("n")
    flat, deep = exported.module.functions
    assert [o.type for o in flat.outputs] == [TensorType((NUM_SEQUENCES, 3), f32), TensorType((n,), i32)]
    assert [o.type for o in deep.outputs] == [TensorType((NUM_SEQUENCES, 1, 3), f32), TensorType((1, n), i32)]
    view = CacheValue.empty(CACHE, 8, 32).view([3, 0], [2, 1])
    ids, x = np.zeros(3, np.int32), np.arange(9, dtype=np.float32).reshape(3, 3)
    rows, positions = interp.run(flat, [ids, x, view])
    np.testing.assert_array_equal(rows, x[[1, 2]])
    np.testing.assert_array_equal(positions, [3, 4, 0])
    rows, positions = interp.run(deep, [ids[None], x[None], view])
    np.testing.assert_array_equal(rows, x[[1, 2]][:, None])
    np.testing.assert_array_equal(positions, [[3, 4, 0]])


class Caches(nn.Module):
    """Wrong uses of a cache, one per method."""

    def wrong_qkv(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return cache.attention_with_fused_qkv(0, x, HEADS + 1)

    def wrong_layer(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return cache.attention_with_fused_qkv(2, x, HEADS)

    def flat_heads(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return cache.attention(0, x, x, x)

    def three(self, x: nn.Tensor, cache: PagedKVCache) -> Any:
        return cache.last_tokens(op.broadcast_to(x, (x.shape[0], x.shape[0], WIDTH)))


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        (
            "wrong_qkv",
            ShapeError,
            r"attention_with_fused_qkv: got qkv f32\[n,64\]; expected \[\.\.\., 9, 8\] or",
        ),
        ("wrong_layer", ShapeError, "wrong_layer: kv_append: layer 2 is out of range"),
        ("flat_heads", ShapeError, r"attention: got f32\[n,64\]; expected tokens and 2 more dims"),
        ("three", UnsupportedError, r"last_tokens: \[n, n\] tokens have two symbolic dims"),
    ],
)
def test_cache_mistakes(method: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Caches().export({method: {"x": X, "cache": spec.KVCache(CACHE)}})


# --- params ---------------------------------------------------------------------------------------


def test_plain_params_are_arguments() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.unused = nn.Parameter((3,))
            self.sub = nn.Linear(2, 2, dtype="bf16")

        def f(self, x: nn.Tensor) -> nn.Tensor:
            return self.sub(x)

        g = f

    x = spec.Tensor(["n", 2])
    exported = Model().export({"f": {"x": x, "$": {"param_mode": "plain"}}, "g": {"x": x}})
    plain, packed = exported.module.functions
    assert [n.attrs["name"] for n in plain.inputs] == ["x", "sub_weight", "sub_bias"]
    assert not plain.params
    assert exported.functions["f"].plain_params == ("sub.weight", "sub.bias")
    assert exported.functions["f"].param_mode is nn.ParamMode.PLAIN
    assert [n.attrs["name"] for n in packed.params] == ["sub.weight", "sub.bias"]
    assert exported.functions["g"].plain_params == ()
    assert exported.params["sub.bias"].dtype is bf16
    assert list(exported.params) == ["unused", "sub.weight", "sub.bias"]


# --- mistakes in specs ----------------------------------------------------------------------------


class Wrong(nn.Module):
    def __init__(self) -> None:
        self.weight = nn.Parameter((2,))
        self.value = 3

    def f(self, x: Any) -> Any:
        return x

    def nothing(self, x: Any) -> Any:
        return None

    def empty(self, x: Any) -> Any:
        return ()

    def weighted(self, x: Any) -> Any:
        return x * self.weight

    def with_cache(self, x: Any, cache: PagedKVCache) -> Any:
        return cache

    def make(self, pages: Any) -> Any:
        return PagedKVCache.create(1, 8, 8, pages, 1, 2, 1, 4)

    def make_other(self, pages: Any) -> Any:
        return PagedKVCache.create(1, 8, 8, pages, 2, 2, 1, 4)

    def make_odd(self, pages: Any) -> Any:
        return PagedKVCache.create(1, 8, 8, pages, 1, 3, 2, 4)

    def make_mode(self, pages: Any) -> Any:
        return PagedKVCache.create(1, 8, 8, pages, 1, 2, 1, 4, rope_mode="spiral")


N2 = spec.Tensor(["n", 2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got an empty spec"),
        ({"h": {"x": N2}}, "Wrong has no method 'h'"),
        ({"value": {"x": N2}}, "Wrong has no method 'value'"),
        ({"f": {"y": N2}}, r"export: f: the spec gives \(y\); the method takes \(x\)"),
        ({"f": {"x": N2, "y": N2}}, r"the spec gives \(x, y\)"),
        ({"with_cache": {"x": N2}}, r"the spec gives \(x\); the method takes \(x, cache\)"),
        ({"f": {"x": N2, "$": {"mode": 1}}}, r"got options \{'mode': 1\}"),
        (
            {"f": {"x": N2, "$": {"param_mode": "loose"}}},
            "got param_mode 'loose'; expected one of packed, plain, none",
        ),
        ({"weighted": {"x": N2, "$": {"param_mode": "none"}}}, "param_mode is none, but it uses weight"),
        ({"nothing": {"x": N2}}, "nothing: returns None; expected tensors"),
        ({"empty": {"x": N2}}, r"empty: returns \(\)"),
        (
            {"with_cache": {"x": N2, "cache": spec.KVCache()}},
            "with_cache: cache: the type of the KV cache is unknown",
        ),
        (
            {"with_cache": {"x": 2.5, "cache": spec.KVCache(CACHE)}},
            "with_cache: x: got 2.5; expected spec.Tensor",
        ),
        ({"with_cache": {"x": True, "cache": spec.KVCache(CACHE)}}, "with_cache: x: got True"),
        ({"f": {"x": int}}, r"f: returns RuntimeInt|f: takes no tensors"),
        ({"make": {"pages": int}}, "make: PagedKVCache.create: page_size is compiled into the kernels"),
        ({"make": {"pages": 0}}, "page_size must be at least 1"),
        ({"make_odd": {"pages": 4}}, "got 3 heads and 2 key/value heads"),
        ({"make_mode": {"pages": 4}}, "rope_mode: got 'spiral'; expected one of none, normal, inline"),
        (
            {"make": {"pages": 4}, "make_other": {"pages": 4}},
            "make_other: makes cache<layers=2.*expected one type",
        ),
    ],
)
def test_spec_mistakes(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wrong().export(given)


def test_constructors_return_caches() -> None:
    class Model(nn.Module):
        def make(self, x: Any) -> Any:
            return op.ones((x,))

    with pytest.raises(
        UserError, match=r"make: takes no tensors and returns Tensor\(f32\[3\]\); expected PagedKVCache"
    ):
        Model().export({"make": {"x": 3}})


@pytest.mark.parametrize("dim", [0, -1, 2.0, True, None])
def test_spec_shapes(dim: Any) -> None:
    with pytest.raises(
        ShapeError, match=r"spec.Tensor: got dim .*; expected a positive integer, a name or spec.dim"
    ):
        spec.Tensor([dim])


def test_spec_objects() -> None:
    assert spec.Object(object_type=PagedKVCache) == spec.KVCache()
    with pytest.raises(UserError, match=r"spec.Object: got <class 'dict'>; expected PagedKVCache"):
        spec.Object(dict)
    assert spec.Tensor([1, "n"], "float16").dtype is f16
