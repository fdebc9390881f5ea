"""Properties of all passes on random graphs: meaning, form, determinism, memory."""

from __future__ import annotations

import equivalence
import pytest
import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.knobs import knobs
from strata.graph.nodes import Function, Module, Node
from strata.graph.opdef import Pattern
from strata.graph.text import print_module
from strata.passes import plan_memory, run_passes
from strata.passes.memory_plan import storage
from strata.runtime.tensors import ALIGNMENT_BYTES

LAUNCH_FREE = {"input", "param", "const", "reshape"}
PIPELINES = (
    "canonicalize",
    "fold_transpose",
    "fold_constants",
    "common_subexpressions",
    "dead_code",
    "fuse",
    "fuse{max_ops=3}",
    "zero",
    "default",
    "annotate_patterns,fuse_ops{max_ops=5}",
    "canonicalize,partition{patterns=[openblas.,onednn.]},fuse",
    "reshape_to_view,fuse,place",
)


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=40)
@given(module=random_graphs.modules(), tokens=st.integers(1, 5), seed=st.integers(0, 9))
def test_passes_keep_meaning(pipeline: str, module: Module, tokens: int, seed: int) -> None:
    with knobs(verify=3):
        after = run_passes(pipeline, module)
    equivalence.assert_same(module, after, {"n": tokens}, seed)


@settings(max_examples=60)
@given(module=random_graphs.modules())
def test_canonical_form_is_a_fixpoint(module: Module) -> None:
    once = run_passes("canonicalize,fold_transpose,fold_constants,common_subexpressions", module)
    twice = run_passes("canonicalize,common_subexpressions", run_passes("canonicalize", once))
    assert print_module(run_passes("canonicalize,common_subexpressions", twice)) == print_module(twice)


@settings(max_examples=60)
@given(module=random_graphs.modules(), max_ops=st.sampled_from([1, 2, 32]))
def test_fused_form(module: Module, max_ops: int) -> None:
    after = run_passes(f"canonicalize,fuse{{max_ops={max_ops}}}", module)
    (function,) = after.functions
    bodies: dict[str, Function] = {}
    for node in function.nodes:
        assert node.op in LAUNCH_FREE | {"fused"}
        if node.op == "fused":
            body: Function = node.attrs["body"]
            assert bodies.setdefault(body.name, body) is body, "one name, one body"
            inner = [n for n in body.nodes if n.opdef.pattern is not Pattern.LEAF]
            assert len(inner) <= max_ops
            assert all(n.attrs["layer"] == 0 for n in inner if "layer" in n.attrs)
            assert len({id(i) for i in node.inputs}) == len(node.inputs), "no operand twice"
    assert print_module(run_passes("fuse", after)) == print_module(after)


@settings(max_examples=40)
@given(module=random_graphs.modules(), max_ops=st.sampled_from([1, 32]))
def test_the_planner_finds_what_place_wrote_down(module: Module, max_ops: int) -> None:
    fused = run_passes(f"fuse{{max_ops={max_ops}}}", module)
    placed = run_passes("place", fused)
    for before, after in zip(fused.functions, placed.functions, strict=True):
        wanted, got = plan_memory(before), plan_memory(after)
        assert [(b.first, b.last, got.offsets[id(b.node)]) for b in got.buffers] == [
            (b.first, b.last, wanted.offsets[id(b.node)]) for b in wanted.buffers
        ]
        assert got.arena_bytes == wanted.arena_bytes
        apart = plan_memory(before, reuse=False)
        assert apart.arena_bytes == apart.total_bytes == wanted.total_bytes


@settings(max_examples=60)
@given(module=random_graphs.modules(), max_ops=st.sampled_from([1, 32]))
def test_live_values_never_share_bytes(module: Module, max_ops: int) -> None:
    (function,) = run_passes(f"canonicalize,fuse{{max_ops={max_ops}}}", module).functions
    plan = plan_memory(function)
    owner: dict[int, int] = {}  # offset // alignment -> id of the node whose value is there
    wanted = {id(b.node): b for b in plan.buffers}
    assert plan.max_live_bytes <= plan.arena_bytes <= plan.total_bytes

    def intact(node: Node) -> bool:
        buffer = wanted.get(id(storage(node)))
        return buffer is None or all(
            owner[line] == id(buffer.node) for line in lines(plan.offsets[id(buffer.node)], buffer.size_bytes)
        )

    def lines(offset: int, size: int) -> range:
        assert offset % ALIGNMENT_BYTES == 0
        assert offset + size <= plan.arena_bytes
        return range(offset // ALIGNMENT_BYTES, (offset + size) // ALIGNMENT_BYTES)

    # Run the launches: each writes its bytes, and must find those of its operands as they were written.
    for node in plan.order:
        if id(node) in wanted:
            owner |= dict.fromkeys(lines(plan.offsets[id(node)], wanted[id(node)].size_bytes), id(node))
        assert all(intact(i) for i in node.inputs)
        assert id(node) not in wanted or intact(node)
