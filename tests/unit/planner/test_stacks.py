"""Stacks of candidates: invariants, sharing, stored layouts, workspace."""

from collections.abc import Sequence

import pytest

import strata.planner.candidates.rules as rules_module
from strata.core.dims import SymDim
from strata.core.errors import UserError, VerifyError
from strata.core.knobs import knobs
from strata.graph import builder as b
from strata.graph.nodes import Function, Module, Node
from strata.graph.types import CacheType, TensorType
from strata.loop.layout import Layout
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.lower import lower_group
from strata.passes import run_passes
from strata.planner.layouts import choose_layouts
from strata.planner.stacks import Kernels, StackBuilder, anchor_op, group_body
from strata.planner.workspace import WORKSPACE, hoist_workspace, upper_bytes
from strata.schedule import Proposal, propose
from strata.target import Target, get_target

N = SymDim("n", 1, 64)
TARGET = get_target("zen5")


def tensor(*shape, dtype: str = "f32") -> TensorType:
    return b.tensor_type(shape, dtype)


def fused(*functions: Function) -> Module:
    return run_passes("default", Module(functions))


def launches(function: Function) -> list[Node]:
    return [n for n in function.nodes if n.op == "fused"]


def mlp(name: str, dtype: str = "f32") -> Function:
    """Two layers ``x = x + gelu(x @ w.T) @ v.T`` of the same shapes."""
    x = inputs = b.input("x", tensor(N, 48))
    for layer in range(2):
        w = b.param(f"{layer}.w", tensor(80, 48, dtype=dtype))
        v = b.param(f"{layer}.v", tensor(48, 80, dtype=dtype))
        h = b.matmul(b.cast(x, dtype), w, transpose_b=True, out_dtype="f32")
        x = b.add(x, b.matmul(b.cast(b.gelu(h), dtype), v, transpose_b=True, out_dtype="f32"))
    return Function(name, (inputs,), (x,))


def builder_of(module: Module, target: Target = TARGET) -> StackBuilder:
    return StackBuilder(choose_layouts(module, target), target)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("target", ["zen5", "avx2"])
def test_stacks_are_never_empty_and_candidates_take_the_same_parameters(dtype: str, target: str) -> None:
    module = fused(mlp("f", dtype))
    builder = builder_of(module, get_target(target))
    names: set[str] = set()
    for node in launches(module["f"]):
        kernels = builder.kernels_of(node)
        first = kernels.stack.candidates[0]
        for candidate in kernels.stack.candidates:
            assert candidate.func.num_outputs == first.func.num_outputs
            assert [(p.shape, p.dtype) for p in candidate.func.params] == [
                (p.shape, p.dtype) for p in first.func.params
            ]
            assert [s for s, _ in candidate.estimates] == [s for s, _ in first.estimates]
            assert all(e.time_s > 0 for _, e in candidate.estimates)
        assert len(kernels.bindings) == len(first.func.params)
        assert len({c.name for c in kernels.stack.candidates}) == len(kernels.stack.candidates)
        names |= {c.func.name for c in kernels.stack.candidates}
    matmuls = [k for k in builder.known.values() if len(k.stack.candidates) > 1]
    assert {k.rows for k in matmuls} == {N}
    assert len(names) == sum(len(k.stack.candidates) for k in builder.known.values())


def test_groups_of_one_text_share_a_stack() -> None:
    module = fused(mlp("f"), mlp("g"))
    builder = builder_of(module)
    per_function = [[builder.kernels_of(n) for n in launches(module[name])] for name in ("f", "g")]
    assert per_function[0] == per_function[1]
    half = len(per_function[0]) // 2
    assert per_function[0][:half] == per_function[0][half:]
    assert len(builder.known) == half


def test_another_range_of_a_dim_is_another_stack() -> None:
    short = SymDim("n", 1, 8)
    x, y = b.input("x", tensor(N, 8)), b.input("x", tensor(short, 8))
    builder = StackBuilder({}, TARGET)
    for value in (x, y):
        module = fused(Function("f", (value,), (b.exp(value),)))
        builder.kernels_of(launches(module["f"])[0])
    assert len(builder.known) == 2


def test_only_fused_nodes_are_planned() -> None:
    x = b.input("x", tensor(N, 8))
    with pytest.raises(
        UserError, match="pipeline: left node exp alone; expected fused nodes only: end it with fuse"
    ):
        group_body(b.exp(x))


def with_proposals(monkeypatch: pytest.MonkeyPatch, change) -> tuple[StackBuilder, Node]:
    def changed(func: Func, target: Target) -> Sequence[Proposal]:
        return change(propose(func, target))

    monkeypatch.setattr(rules_module, "propose", changed)
    module = fused(mlp("f"))
    return builder_of(module), launches(module["f"])[0]


def test_a_rule_without_a_proposal_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, node = with_proposals(monkeypatch, lambda proposals: ())
    with pytest.raises(VerifyError, match="k0_matmul: no rule proposes a schedule"):
        builder.kernels_of(node)


def test_candidates_with_other_parameters_are_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    other = parse_func("func @f(x: f32[4]) -> (y: f32[4])\n  for i in 4:\n    y[i] = x[i]\n")
    builder, node = with_proposals(
        monkeypatch, lambda proposals: [*proposals[:1], Proposal("cpu.odd", other, ())]
    )
    with pytest.raises(
        VerifyError, match=r"k0_matmul_c1: candidate cpu\.odd takes other parameters than cpu"
    ):
        builder.kernels_of(node)


def test_kernels_are_checked_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "func @f(x: f32[4]) -> (y: f32[4])\n  for i in 4:\n    y[i + 4] = x[i]\n"
    builder, node = with_proposals(monkeypatch, lambda _: [Proposal("cpu.bad", parse_func(bad), ())])
    with pytest.raises(VerifyError, match=r"k0_matmul at LOOP_LOWERED: index i \+ 4 of y is outside"):
        builder.kernels_of(node)
    with knobs(verify=0):
        builder.kernels_of(node)


def test_workspace_becomes_a_parameter() -> None:
    """Columns, of a number known at run time only, are summed first: the sums need memory of the step."""
    x = b.input("x", tensor(24, N))
    body = Function("f", (x,), (b.sub(x, b.sum(x, 0, keepdims=True)),))
    lowered = lower_group("f", body)
    proposal = next(p for p in propose(lowered.func, TARGET) if p.name == "cpu.rows")
    hoisted = hoist_workspace(proposal.func)
    assert [p.shape for p in hoisted.buffers] == [(N,)]
    assert [p.name for p in hoisted.func.params] == ["x", "sum_buf", "y"]
    assert hoisted.func.num_outputs == 2
    node = b.fused((x,), body)
    kernels = StackBuilder({}, TARGET).kernels_of(node)
    assert [k.operand for k in kernels.bindings] == [0, WORKSPACE, -1]
    (buffer,) = kernels.workspace
    assert (buffer.shape, upper_bytes(buffer, {}), upper_bytes(buffer, {"n": 8})) == ((N,), N.hi * 4, 32)


def test_a_global_buffer_in_a_loop_is_our_bug() -> None:
    text = "func @f(x: f32[4]) -> (y: f32[4])\n  for i in 4:\n    alloc t: f32[4]\n    t[i] = x[i]\n"
    with pytest.raises(VerifyError, match="f: global buffer t is allocated in a loop"):
        hoist_workspace(parse_func(text))


def test_the_heaviest_node_names_a_group() -> None:
    x, w = b.input("x", tensor(N, 8)), b.input("w", tensor(8))
    assert anchor_op(Function("f", (x, w), (b.exp(b.rms_norm(b.neg(x), w)),))).op == "rms_norm"
    assert anchor_op(Function("f", (x,), (b.exp(b.neg(x)),))).op == "neg"
    assert anchor_op(Function("f", (x,), (x,))) is x


def test_layouts_are_a_property_of_the_param() -> None:
    x, ids = b.input("x", tensor(N, 48)), b.input("ids", tensor(N, dtype="i32"))
    table = b.param("table", tensor(100, 48))
    kn, batched = b.param("kn", tensor(48, 96)), b.param("batched", tensor(2, 48, 96))
    embed = Function("embed", (ids,), (b.take(table, ids),))
    head = Function("head", (x,), (b.matmul(x, table, transpose_b=True),))
    plain = Function("plain", (x,), (b.matmul(x, kn),))
    batch = b.input("x", tensor(2, 8, 48))
    other = Function("other", (batch,), (b.matmul(batch, batched),))
    module = fused(embed, head, plain, other)
    layouts = choose_layouts(module, TARGET)
    assert layouts == {"table": Layout(64), "kn": Layout(64, 1, True)}
    builder = StackBuilder(layouts, TARGET)
    kernels = builder.kernels_of(launches(module["embed"])[0])
    (stored,) = [p for p in kernels.stack.candidates[0].func.params if len(p.shape) == 3]
    assert stored.shape == layouts["table"].physical_shape((100, 48))


def test_bf16_pairs_where_the_machine_multiplies_them() -> None:
    for target, cols in (("zen5", 2), ("avx2", 1)):
        layouts = choose_layouts(fused(mlp("f", "bf16")), get_target(target))
        assert {layout.cols for layout in layouts.values()} == {cols}


def test_layers_of_a_cache_share_kernels() -> None:
    type_ = CacheType(3, 2, 8, b.tensor_type((1,), "f32").dtype, 4)
    q, cache = b.input("q", tensor(N, 4, 8)), b.input("cache", type_)
    body = Function("a", (q, cache), (b.paged_attention(q, cache, 1, 0.5),))
    builder = StackBuilder({}, TARGET)
    kernels: list[Kernels] = [builder.kernels_of(b.fused((q, cache), body, layer)) for layer in (0, 1)]
    assert kernels[0] is kernels[1]
    assert {(x.field, x.layer) for x in kernels[0].bindings if x.field.endswith("pages")} == {
        ("k_pages", 1),
        ("v_pages", 1),
    }
