"""From a fused function to its record: where every argument lives, and what the record says."""

import json

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import UnsupportedError
from strata.graph import builder as b
from strata.graph.nodes import Function, Module
from strata.graph.text import parse_function
from strata.graph.types import CacheType, TensorType
from strata.passes import run_passes
from strata.planner.assemble import PlannedFunction, plan_function
from strata.planner.report import plan_json
from strata.planner.stacks import StackBuilder
from strata.runtime.records import ArgKind, ArgRef, DimRange, TensorSpec
from strata.target import get_target

N = SymDim("n", 1, 64)
TARGET = get_target("zen5")
CACHE = CacheType(3, 2, 8, f32, 4)


def tensor(*shape, dtype: str = "f32") -> TensorType:
    return b.tensor_type(shape, dtype)


def planned(function: Function, params: tuple[str, ...] = ()) -> PlannedFunction:
    fused = run_passes("default", Module((function,)))[function.name]
    constants = {id(n): "const.0" for n in fused.nodes if n.op == "const"}
    positions = {name: k for k, name in enumerate((*params, *constants.values()))}
    return plan_function(fused, StackBuilder({}, TARGET), positions, constants)


def args(plan: PlannedFunction) -> dict[str, tuple[ArgRef, ...]]:
    return {x.op: launch.args for x, launch in zip(plan.launches, plan.record.launches, strict=True)}


def test_inputs_params_constants_and_outputs() -> None:
    x, w = b.input("x", tensor(N, 8)), b.param("w", tensor(4, 8))
    table = b.const(np.arange(32, dtype=np.float32).reshape(4, 8))
    y = b.matmul(x, w, transpose_b=True)
    plan = planned(Function("f", (x,), (y, b.softmax(b.matmul(x, table, transpose_b=True)))), ("w",))
    first, *rest = plan.record.launches
    assert first.args == (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.PARAM, 0), ArgRef(ArgKind.OUTPUT, 0))
    assert ArgRef(ArgKind.PARAM, 1) in rest[0].args
    assert rest[-1].args[-1] == ArgRef(ArgKind.OUTPUT, 1)
    assert plan.record.inputs == (TensorSpec("x", "f32", ("n", 8)),)
    assert plan.record.outputs == (TensorSpec("out0", "f32", ("n", 4)), TensorSpec("out1", "f32", ("n", 4)))
    assert plan.record.dims == (DimRange("n", 1, 64),)


def test_values_between_launches_are_in_the_arena() -> None:
    x = b.input("x", tensor(N, 8))
    plan = planned(Function("f", (x,), (b.softmax(b.softmax(b.softmax(x))),)))
    places = [launch.args for launch in plan.record.launches]
    assert [a[0].kind for a in places] == [ArgKind.INPUT, ArgKind.ARENA, ArgKind.ARENA]
    assert [a[-1].kind for a in places] == [ArgKind.ARENA, ArgKind.ARENA, ArgKind.OUTPUT]
    assert places[0][-1] == places[1][0]
    assert places[1][-1] == places[2][0]
    assert places[1][0] != places[1][-1]
    assert plan.record.arena_bytes == plan.memory.arena_bytes == 2 * 64 * 8 * 4


def test_outputs_through_a_reshape_are_written_in_place() -> None:
    x = b.input("x", tensor(N, 8))
    rows = b.softmax(x)
    plan = planned(Function("f", (x,), (b.reshape(rows, (N, 2, 4)),)))
    (launch,) = plan.record.launches
    assert launch.args == (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.OUTPUT, 0))
    assert plan.record.outputs[0].shape == ("n", 2, 4)


def test_views_show_the_memory_of_what_they_view() -> None:
    x = b.input("x", tensor(N, 8))
    heads = b.reshape(b.softmax(x), (N, 2, 4))
    plan = planned(Function("f", (x,), (b.softmax(heads), b.softmax(b.permute_dims(heads, (1, 0, 2))))))
    made = plan.record.launches[0].args[-1]
    assert made.kind is ArgKind.ARENA
    assert all(launch.args[0] == made for launch in plan.record.launches[1:])


def test_workspace_lies_behind_the_values() -> None:
    x = b.input("x", tensor(N, 24))
    inner = b.input("x", tensor(N, 24))
    body = Function("sum", (inner,), (b.sub(inner, b.sum(inner, (0, 1), keepdims=True)),))  # the sum first
    plan = planned(Function("f", (x,), (b.softmax(b.fused((x,), body)),)))
    (workspace,) = [
        a for a in args(plan)["sum"] if a.kind is ArgKind.ARENA and a.index >= plan.memory.arena_bytes
    ]
    assert workspace.index == plan.memory.arena_bytes
    assert plan.record.arena_bytes == plan.memory.arena_bytes + 64  # one float, rounded up


def test_cache_fields_and_layers() -> None:
    q, k = b.input("q", tensor(N, 4, 8)), b.input("k", tensor(N, 2, 8))
    cache = later = b.input("cache", CACHE)
    for layer in range(2):
        later = b.kv_append(later, k, k, layer)
    out = b.paged_attention(q, later, 1, 0.5)
    plan = planned(Function("f", (q, k, cache), (out, later)))
    appends = [launch for launch in plan.record.launches if launch.args[0].index == 1]
    assert [launch.choices for launch in appends] == [appends[0].choices] * 2
    pages = [{(a.field, a.layer) for a in launch.args if a.field.endswith("pages")} for launch in appends]
    assert pages == [{("k_pages", 0), ("v_pages", 0)}, {("k_pages", 1), ("v_pages", 1)}]
    refs = args(plan)["paged_attention"]
    assert all(a.index == 2 for a in refs if a.kind is ArgKind.CACHE)
    assert {(a.field, a.layer) for a in refs if a.kind is ArgKind.CACHE} >= {
        ("k_pages", 1),
        ("v_pages", 1),
        ("page_table", 0),
        ("positions", 0),
    }
    assert plan.record.inputs[2] == TensorSpec("cache", "cache", ())
    assert [o.name for o in plan.record.outputs] == ["out0"]
    assert [d.dim for d in plan.record.dims] == ["n", "max_context", "num_pages", "num_seqs", "table_width"]


@pytest.mark.parametrize("which", ["input", "view of an input", "param"])
def test_outputs_have_memory_of_their_own(which: str) -> None:
    """The fuse pass copies such outputs; a function made by hand is refused."""
    x, w = b.input("x", tensor(N, 8)), b.param("w", tensor(4))
    outputs = {
        "input": (x,),
        "view of an input": (b.reshape(x, (N, 2, 4)),),
        "param": (w,),
    }
    if which == "the same value twice":
        assert len(planned(Function("f", (x,), (b.exp(x), b.exp(x)))).record.launches) == 2
        return
    builder = StackBuilder({}, TARGET)
    with pytest.raises(
        UnsupportedError, match="f: output 0 is an input, a param or another output; return a comp"
    ):
        plan_function(Function("f", (x,), outputs[which]), builder, {"w": 0}, {})
    assert len(planned(Function("f", (x,), outputs[which]), ("w",)).record.launches) == 1


def test_kernels_describe_their_parameters() -> None:
    x, w = b.input("x", tensor(N, 48)), b.param("w", tensor(80, 48))
    plan = planned(Function("f", (x,), (b.matmul(x, w, transpose_b=True),)), ("w",))
    names = [c.kernel for c in plan.record.launches[0].choices]
    assert set(names) == set(plan.funcs) == {k.name for k in plan.kernels}
    for kernel in plan.kernels:
        assert [p.shape for p in kernel.params] == [("n", 48), (80, 48), ("n", 80)]
        assert (kernel.num_outputs, kernel.dims) == (1, ("n",))
    assert plan.record.launches[0].choices[-1].when == ()


def test_launches_have_distinct_names() -> None:
    x = b.input("x", tensor(N, 8))
    plan = planned(Function("f", (x,), (b.softmax(b.softmax(b.sum(b.exp(x), 1))),)))
    names = [launch.node for launch in plan.record.launches]
    assert names == ["exp_sum", "softmax#0", "softmax#1"]
    assert [launch.op for launch in plan.record.launches] == ["sum", "softmax", "softmax"]


def test_plan_has_the_graph_of_every_launch() -> None:
    q, k = b.input("q", tensor(N, 4, 8)), b.input("k", tensor(N, 2, 8))
    cache = later = b.input("cache", CACHE)
    for layer in range(2):
        later = b.kv_append(later, k, k, layer)
    out = b.paged_attention(q, later, 1, 0.5)
    append, again, attention = plan_json([planned(Function("f", (q, k, cache), (out, later)))])["f"][
        "launches"
    ]
    assert (append["layer"], again["layer"]) == (0, 1)
    assert parse_function(again["body"]).outputs[0].op == "kv_append"
    assert attention["operands"] == [0, None]
    assert append["operands"] == [None, 0]
    assert append["work"] == {"flop": "0", "read_bytes": "64*n", "write_bytes": "128*n"}
    assert attention["work"]["read_bytes"] == "128*max_context*num_seqs + 128*n"


def test_work_of_a_group_counts_what_is_read() -> None:
    table, ids = b.input("table", tensor(1000, 8)), b.input("ids", tensor(N, dtype="i32"))
    (launch,) = plan_json([planned(Function("f", (table, ids), (b.exp(b.take(table, ids)),)))])["f"][
        "launches"
    ]
    assert launch["work"] == {"flop": "8*n", "read_bytes": "36*n", "write_bytes": "32*n"}


def test_plan_as_json() -> None:
    x, w = b.input("x", tensor(N, 48)), b.param("w", tensor(80, 48))
    plan = planned(Function("f", (x,), (b.softmax(b.matmul(x, w, transpose_b=True)),)), ("w",))
    data = json.loads(json.dumps(plan_json([plan])))
    assert list(data) == ["f"]
    assert data["f"]["arena_bytes"] == plan.record.arena_bytes
    for launch, planned_launch in zip(data["f"]["launches"], plan.launches, strict=True):
        assert set(launch) == {
            *("node", "op", "candidates", "choices"),
            *("rows", "work", "body", "layer", "operands"),
        }
        assert launch["op"] == planned_launch.op
        for candidate in launch["candidates"]:
            assert set(candidate) == {"name", "kernel", "origin", "when", "trace", "estimates"}
            for estimate in candidate["estimates"]:
                assert set(estimate) == {"size", "time_s", "flop", "read_bytes", "write_bytes", "source"}
        assert launch["choices"][-1]["when"] == []
        for choice in launch["choices"]:
            assert 0 <= choice["candidate"] < len(launch["candidates"])
            assert all(set(r) == {"dim", "lo", "hi"} for r in choice["when"])
