"""Named pipelines, options and errors of the graph passes, the command line, and users' passes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f16, f32
from strata.core.errors import ParseError, ShapeError, UserError, VerifyError
from strata.core.knobs import knobs
from strata.core.trace import Trace
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, rewrite
from strata.graph.ops.fused import bind_layer
from strata.graph.text import parse_module, print_module
from strata.graph.types import CacheType, TensorType
from strata.ir.dump import Dumper
from strata.ir.passes import Pass, Pipeline, parse_pipeline
from strata.passes import DeadCode, Fuse, named_pipeline, plan_memory, run_passes, transform
from strata.passes.base import attribute_key, function_key

N = SymDim("n", 1, 8)
DEFAULT = "default(canonicalize,fold_transpose,fold_constants,common_subexpressions,dead_code,fuse)"


def module() -> Module:
    x = g.input("x", TensorType((N, 4), f32))
    return Module((Function("f", (x,), (g.exp(g.mul(x, 1.0)),)),))


def test_named_pipelines() -> None:
    assert str(named_pipeline("default")) == DEFAULT
    assert str(named_pipeline("zero")) == "zero(fuse{max_ops=1})"
    assert parse_pipeline(DEFAULT) == named_pipeline()
    assert named_pipeline("canonicalize,fuse{max_ops=8}").steps[1] == Fuse(max_ops=8)
    with knobs(pipeline="zero"):
        assert named_pipeline() == named_pipeline("zero")
    with pytest.raises(
        ParseError, match="no pass or pipeline 'fast'; known: annotate_patterns, canonicalize, "
    ):
        named_pipeline("fast")


def test_a_users_pass_at_any_point(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class ExpToTanh(Pass[Module]):
        name: ClassVar[str] = "exp_to_tanh"

        def run(self, module: Module) -> Module:
            return module.map(lambda f: rewrite(f, lambda n: g.tanh(n.inputs[0]) if n.op == "exp" else n))

    pipeline = named_pipeline("default").insert_after("canonicalize", ExpToTanh())
    trace = Trace()
    result = transform(pipeline, module(), dumper=Dumper(tmp_path), trace=trace)
    assert "tanh(%a0)" in print_module(result.module)
    assert [r.name for r in result.records][:3] == ["canonicalize", "exp_to_tanh", "fold_transpose"]
    assert result.records[0].ops_after < result.records[0].ops_before
    assert sorted(p.name for p in tmp_path.iterdir())[:3] == [
        "000_graph.input.ir",
        "001_canonicalize.after.ir",
        "002_exp_to_tanh.after.ir",
    ]
    assert len(trace.events) == 7


def test_a_broken_users_pass_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Break(Pass[Module]):
        name: ClassVar[str] = "break"

        def run(self, module: Module) -> Module:
            return Module((*module.functions, *module.functions))

    with (
        knobs(verify=2, crash_dir=tmp_path),
        pytest.raises(VerifyError, match=r"pass break \(of break,fuse\) broke the graph IR: "),
    ):
        run_passes(Pipeline((Break(), Fuse())), module())
    (folder,) = tmp_path.iterdir()
    assert parse_module((folder / "before.ir").read_text()).functions[0].name == "f"


def test_option_errors() -> None:
    with pytest.raises(UserError, match="fuse: max_ops is 0; expected at least 1"):
        Fuse(max_ops=0)
    with pytest.raises(UserError, match="no function 'g' to keep; the module has: f"):
        run_passes("dead_code{functions=[g]}", module())
    with pytest.raises(UserError, match="no function 'g' to keep"):
        DeadCode(functions=("g",)).run(module())


def test_pass_options_reject_bad_text_with_the_place() -> None:
    with pytest.raises(ParseError, match=r"<pipeline>:1:18: fuse: option max_ops is many"):
        named_pipeline("fuse{max_ops=many}")


def test_keys_tell_apart_what_python_does_not() -> None:
    values = [
        1,
        1.0,
        True,
        0.0,
        -0.0,
        None,
        "1",
        (1,),
        (True,),
        np.zeros(1),
        np.zeros(1, np.float32),
        np.zeros((1, 1)),
    ]
    keys = [attribute_key(v) for v in values]
    assert len(set(keys)) == len(keys)
    assert attribute_key(float("nan")) == attribute_key(float("nan"))
    a, b = module().functions[0], module().functions[0]
    assert function_key(a) == function_key(b)
    assert function_key(a) != function_key(Function("f", a.inputs, a.outputs[0].inputs))


@pytest.mark.parametrize("pipeline", ["default", "zero"])
def test_depth_is_no_limit(pipeline: str) -> None:
    """Five times Python's recursion limit, with casts that two groups could copy all the way up."""
    x = g.input("x", TensorType((N, 4), f32))
    y = x
    for k in range(5 * sys.getrecursionlimit()):
        y = g.cast(y, (bf16, f16)[k % 2]) if k % 3 else g.tanh(g.reshape(y, ((4, N), (N, 4))[k % 2]))
    for _ in range(5 * sys.getrecursionlimit()):
        y = g.cast(y, bf16 if y.tensor.dtype is f16 else f16)
    (function,) = run_passes(pipeline, Module((Function("f", (x,), (g.exp(y), g.neg(y))),))).functions
    assert plan_memory(function).arena_bytes == plan_memory(function).max_live_bytes


def test_layers_share_a_body() -> None:
    type_ = CacheType(3, 2, 4, f32)
    cache, k = g.input("cache", type_), g.input("k", TensorType((N, 2, 4), f32))
    value = cache
    for layer in range(3):
        value = g.kv_append(value, k, g.neg(k), layer)
    (function,) = run_passes("default", Module((Function("f", (cache, k), (value,)),))).functions
    launches = [n for n in function.nodes if n.op == "fused" and n.type == type_]
    assert [n.attrs["layer"] for n in launches] == [0, 1, 2]
    body = launches[0].attrs["body"]
    assert all(n.attrs["body"] is body for n in launches)
    assert bind_layer(body, 0) is body
    assert bind_layer(body, 2).outputs[0].attrs["layer"] == 2
    with pytest.raises(ShapeError, match="layer 3 is out of range"):
        g.fused([cache, k, g.neg(k)], body, 3)


def test_rope_takes_the_cache_of_its_append() -> None:
    """The batch view is the same in all versions of a cache: one cache operand is enough."""
    from strata.graph.types import RopeMode

    type_ = CacheType(2, 2, 4, f32, 4, RopeMode.NORMAL, 4)
    cache, k = g.input("cache", type_), g.input("k", TensorType((N, 2, 4), f32))
    first = g.kv_append(cache, k, k, 0)
    second = g.kv_append(first, g.rope(k, cache), k, 1)
    third = g.rope(g.neg(k), second)
    (function,) = run_passes("default", Module((Function("f", (cache, k), (third, second)),))).functions
    appends = [n for n in function.nodes if n.op == "fused" and n.type == type_]
    assert [len(n.inputs) for n in appends] == [2, 2]
    assert appends[1].inputs[0] is appends[0]
    (rope,) = [n for n in function.nodes if n.op == "fused" and n.type != type_]
    assert rope.inputs[1] is function.inputs[0]
