"""The graph checker: every invariant, broken once."""

import re
from dataclasses import replace

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f16, f32
from strata.core.errors import VerifyError
from strata.graph import builder as b
from strata.graph.check import GRAPH_CANON, GRAPH_FUSED, GRAPH_RAW, STAGES, check, check_function
from strata.graph.nodes import Function, Module, Node
from strata.graph.samples import op_samples, sample_function
from strata.graph.types import CacheType, TensorType

n = SymDim("n", 1, 512)
T = b.tensor_type((n,), "f32")
HEADS = b.tensor_type((n, 1, 4), "f32")
CACHE = CacheType(3, 1, 4, f32)


def one(*outputs: Node, inputs: tuple[Node, ...] = ()) -> Module:
    return Module((Function("f", inputs, outputs),))


def broken(module: Module, message: str, **options: object) -> str:
    with pytest.raises(VerifyError, match=re.escape(message)) as caught:
        check(module, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_every_sample_passes() -> None:
    for _, op, sample in op_samples():
        module = Module((sample_function(op, sample),))
        assert check(module) is module


def test_function_alone() -> None:
    x = b.input("x", T)
    function = Function("f", (x,), (b.exp(x),))
    assert check_function(function, GRAPH_RAW) is function


def test_names() -> None:
    x, y = b.input("x", T), b.input("x", T)
    broken(one(b.add(x, y), inputs=(x, y)), "@f: two inputs are called 'x'; names must be unique")
    function = Function("f", (x,), (x,))
    broken(Module((function, function)), "module: two functions are called 'f'")


def test_outputs_and_inputs() -> None:
    x = b.input("x", T)
    broken(one(inputs=(x,)), "@f: got no outputs; expected at least one")
    broken(one(b.exp(x)), "input (x): input 'x' is used, but the function does not declare it")
    y = b.exp(x, name="stage")
    message = broken(one(y, inputs=(x, y)), "@f: exp (stage): listed as an input, but its op is exp")
    assert message.endswith("\n  %0: f32[n] = input(...)  # x\n  %1: f32[n] = exp(%0)  # stage")


def test_wrong_type() -> None:
    x = b.input("x", T)
    wrong = replace(b.exp(x), type=TensorType((n,), f16))
    broken(one(wrong, inputs=(x,)), "exp: type is f16[n]; its operands and attributes give f32[n]")
    ill = replace(b.add(x, x), inputs=(x,))
    broken(one(ill, inputs=(x,)), "@f: add: got 1 operands; expected 2 (a, b) (add)")


def test_attributes() -> None:
    x = b.input("x", T)
    node = b.take(b.param("w", b.tensor_type((4, 4), "f32")), b.const([0, 1]))
    broken(one(replace(node, attrs={})), "take: attributes are ; expected axis")
    broken(one(replace(node, attrs={"axis": 0, "z": 1})), "take: unknown attribute 'z'")
    broken(one(replace(b.exp(x), op="exq"), inputs=(x,)), "@f: no op 'exq' (); known: ")


def test_params_have_one_type() -> None:
    first, second = (
        Function(name, (), (b.param("w", b.tensor_type((d,), "f32")),)) for name, d in (("f", 2), ("g", 3))
    )
    broken(Module((first, second)), "@g: param (w): param 'w' has type f32[2] elsewhere")


def test_dims_have_one_range() -> None:
    x, y = b.input("x", T), b.input("y", b.tensor_type((SymDim("n", 1, 100),), "f32"))
    message = "@f: input (y): dim n is 1..100 multiple of 1 here and 1..512 multiple of 1 elsewhere"
    broken(one(b.add(x, y), inputs=(x, y)), message)
    inner = Function("body", (y,), (b.exp(y),))
    broken(one(b.fused([x], inner), inputs=(x,)), "@f: fused: dim n is 1..100 multiple of 1 here")


def test_fused_bodies_are_checked() -> None:
    x, z = b.input("x", T), b.input("z", T)
    loose = Function("body", (x,), (b.add(x, b.input("y", T)),))
    broken(one(b.fused([z], loose), inputs=(z,)), "@body: input (y): input 'y' is used")
    weight = Function("body", (x,), (b.add(x, b.param("w", b.tensor_type((1,), "f32"))),))
    broken(
        one(b.fused([z], weight), inputs=(z,)), "a fused body reaches a param; expected it as an input of the"
    )
    nested = Function("body0", (x,), (b.exp(x),))
    for level in range(1, 10):
        x = b.input("x", T)
        nested = Function(f"body{level}", (x,), (b.fused([x], nested),))
    broken(one(b.fused([z], nested), inputs=(z,)), "fused bodies are nested deeper than 8")


def test_stages() -> None:
    x, z = b.input("x", T), b.input("z", T)
    module = one(b.fused([z], Function("body", (x,), (b.exp(x),))), inputs=(z,))
    check(module, GRAPH_FUSED)
    broken(module, "@f: fused: op fused may not appear at stage GRAPH_RAW", stage=GRAPH_RAW)
    assert GRAPH_CANON.ops <= GRAPH_RAW.ops
    assert set(STAGES) == {"GRAPH_RAW", "GRAPH_CANON", "GRAPH_FUSED"}


# ---- caches ----


def layers(count: int = 3) -> tuple[Node, Node, list[Node], list[Node]]:
    """Inputs, cache versions and attentions of a small well-threaded function."""
    cache, x = b.input("cache", CACHE), b.input("x", HEADS)
    versions, reads = [cache], []
    for layer in range(count):
        versions.append(b.kv_append(versions[-1], x, x, layer))
        reads.append(b.paged_attention(x, versions[-1], layer, 0.5))
    return cache, x, versions, reads


def test_threaded_caches_pass() -> None:
    cache, x, versions, reads = layers()
    check(one(*reads, versions[-1], inputs=(cache, x)), GRAPH_RAW)
    early = b.paged_attention(x, cache, 2, 0.5)  # layer 2 is not appended to below
    check(one(early, versions[1], inputs=(cache, x)))


def test_two_appends_to_one_cache() -> None:
    cache, x, versions, _ = layers()
    other = b.kv_append(cache, x, x, 1)
    message = "kv_append: its cache is appended to by another node too; use that node's result"
    broken(one(b.last_tokens(x, other), versions[1], inputs=(cache, x)), message)


def test_stale_read() -> None:
    cache, x, versions, _ = layers()
    stale = b.paged_attention(x, cache, 2, 0.5)
    message = "paged_attention: reads layer 2 of a cache that is appended to later; use that result"
    broken(one(stale, versions[-1], inputs=(cache, x)), message)


def test_stale_output() -> None:
    cache, x, versions, _ = layers()
    broken(
        one(versions[-2], versions[-1], inputs=(cache, x)), "is returned, but appended to; return the newest"
    )


def test_caches_in_fused_bodies() -> None:
    cache, x, versions, _ = layers()
    inner_x, inner_cache = b.input("x", HEADS), b.input("cache", CACHE)
    body = Function("body", (inner_x, inner_cache), (b.paged_attention(inner_x, inner_cache, 0, 0.5),))
    fresh = b.fused([x, versions[-1]], body, 1)
    check(one(fresh, versions[-1], inputs=(cache, x)))
    stale = b.fused([x, versions[1]], body, 1)
    broken(
        one(stale, versions[-1], inputs=(cache, x)),
        "fused: reads layer 1 of a cache that is appended to later",
    )
    append = Function("append", (inner_x, inner_cache), (b.kv_append(inner_cache, inner_x, inner_x, 0),))
    twice = [b.fused([x, cache], append, layer) for layer in (0, 1)]
    message = "fused: its cache is appended to by another node too"
    broken(one(*twice, inputs=(cache, x)), message)
