"""How a compiled model is made up: launches, kernels, memory; and running its launches one by one."""

import math
from pathlib import Path

import numpy as np
import pytest
from small_models import BY_ID, Session, compile_folder, define, tokens

from strata.compiler.api import Options, compile_definition
from strata.compiler.driver import trace
from strata.lower.attention.paged import PART_ROWS
from strata.models import build, shape_config
from strata.passes import run_passes
from strata.passes.memory_plan import plan_memory
from strata.planner.options import PlanOptions
from strata.runtime.program import Program
from strata.runtime.records import ArgKind, FunctionRecord, ProgramRecord
from strata.runtime.stepping import NodeEvent
from strata.runtime.tensors import numpy_dtype
from strata.target import get_target

MOST_LAUNCHES_PER_LAYER = 10
IDS = tokens(90, 257)


def record(tmp_path: Path, num_layers: int, case: str = "llama", **options) -> ProgramRecord:
    folder = BY_ID[case].make(tmp_path / f"{case}-{num_layers}", num_hidden_layers=num_layers)
    return compile_definition(define(folder, **options), Options("f32")).record


def function(program: ProgramRecord, name: str) -> FunctionRecord:
    return next(f for f in program.functions if f.name == name)


def kernels(f: FunctionRecord) -> set[str]:
    return {choice.kernel for launch in f.launches for choice in launch.choices}


@pytest.mark.parametrize("case", ["llama", "qwen2-tied"])
def test_launches_per_layer(tmp_path: Path, case: str) -> None:
    two, five = record(tmp_path, 2, case), record(tmp_path, 5, case)
    for name in ("prefill", "decode", "score"):
        small, large = function(two, name), function(five, name)
        assert len(large.launches) - len(small.launches) <= 3 * MOST_LAUNCHES_PER_LAYER
        # Layers share their kernels: the same names, not only as many.
        assert kernels(large) == kernels(small)
    assert len(two.kernels) == len(five.kernels)


@pytest.mark.parametrize(("target", "per_layer"), [("avx512-bf16", 9), ("avx2", 9), ("avx512-amx", 10)])
def test_swiglu_is_part_of_the_product_before_it(target: str, per_layer: int) -> None:
    definition = build(shape_config("tiny"), "bf16")
    lowered = trace(definition.module, get_target(target), definition.cache_record, definition.config).lower()
    planned = lowered.plan(PlanOptions(measure=False))
    for part in planned.functions:
        layers = [x for x in part.launches if ".layers." in x.node]
        assert len(layers) == per_layer * shape_config("tiny").num_layers
    layouts = planned.layouts
    gates = {layouts[name].parts for name in layouts if "gate_up" in name}
    assert gates == {2 if per_layer == 9 else 1}


def test_memory_of_a_pass_does_not_grow_with_layers(tmp_path: Path) -> None:
    two, five = record(tmp_path, 2), record(tmp_path, 5)
    for name in ("prefill", "decode", "score"):
        assert function(two, name).arena_bytes == function(five, name).arena_bytes


@pytest.mark.parametrize("max_tokens", [16, 256])
def test_arena_is_bounded_by_what_is_alive(tmp_path: Path, max_tokens: int) -> None:
    case = BY_ID["llama"]
    definition = define(case.make(tmp_path / "model"), max_tokens=max_tokens)
    program = compile_definition(definition, Options("f32")).record
    # Most is alive in the feed-forward block: residual stream, gate and up, and their product. A quarter more
    # is for what kernels keep aside, and attention keeps the results of parts of a context.
    hidden, ffn = 64, 112
    alive_bytes = 4 * max_tokens * (hidden + 3 * ffn)
    heads = 4
    parts_bytes = 4 * PART_ROWS * (hidden + 2 * heads)
    for name in ("prefill", "decode", "score"):
        assert function(program, name).arena_bytes <= 1.25 * alive_bytes + parts_bytes


def test_buffers_are_where_the_memory_plan_says(tmp_path: Path) -> None:
    definition = define(BY_ID["llama-odd"].make(tmp_path / "model"))
    program = compile_definition(definition, Options("f32")).record
    module = run_passes("default", definition.module)
    for compiled in program.functions:
        plan = plan_memory(module[compiled.name])
        assert compiled.arena_bytes >= plan.arena_bytes
        workspace = set()
        for launch in compiled.launches:
            for arg in launch.args:
                if arg.kind is ArgKind.ARENA:
                    assert arg.index % 64 == 0
                    assert 0 <= arg.index < compiled.arena_bytes
                    if arg.index not in plan.offsets.values():
                        workspace.add(arg.index)
        # Kernels' own intermediates lie behind the plan's values, never among them.
        assert all(start >= plan.arena_bytes for start in workspace)


class Watch:
    """Hooks that note what was launched and look for writes outside of the launches' buffers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.events: list[NodeEvent] = []
        self.before = b""

    def remember(self, event: NodeEvent) -> None:
        self.before = self.program.arena.copy()

    def check(self, event: NodeEvent) -> None:
        self.events.append(event)
        arena = self.program.arena
        may_change = np.zeros(arena.nbytes, bool)
        node = event.node
        for operand in (*node.workspace, *node.outputs):
            if operand.place.kind is ArgKind.ARENA:
                shape = node.shape(operand, event.dims)
                size_bytes = math.prod(shape) * numpy_dtype(operand.dtype).itemsize
                may_change[operand.place.index : operand.place.index + size_bytes] = True
        changed = (arena != self.before) & ~may_change
        assert not changed.any(), f"{event.kernel} wrote to byte {changed.argmax()} of the arena"


@pytest.mark.parametrize("format", ["f32", "bf16"])
@pytest.mark.parametrize("case", ["llama-mha80-bias", "qwen3-mqa20-tied", "gpt2-80-odd"])
def test_launch_by_launch_changes_no_bit(tmp_path: Path, case: str, format: str) -> None:
    program = compile_folder(BY_ID[case].make(tmp_path / "model"), format)
    native, stepped = Session(program), Session(program)

    def step_by_launches(name: str, parts: dict[int, list[int]]) -> np.ndarray:
        for key in parts:
            if key not in stepped.cache:
                stepped.cache.add_sequence(key)
        view = stepped.cache.begin_forward(list(parts), [len(p) for p in parts.values()])
        ids = np.concatenate([np.asarray(p, np.int32) for p in parts.values()])
        watch, run = Watch(program), program.step(name, ids, view)
        run.before("*", watch.remember)
        run.after("*", watch.check)
        logits = (run.finish() if name == "score" else run.finish()[0]).copy()
        stepped.cache.end_forward()
        assert len(watch.events) == len(program[name].record.launches)
        return logits

    passes = (
        ("prefill", {0: IDS[:1]}),
        ("prefill", {1: IDS[:23], 2: IDS[:50]}),
        ("decode", {0: [5], 1: [6], 2: [7]}),
        ("score", {3: IDS}),
        ("decode", {3: [1]}),
    )
    for name, parts in passes:
        np.testing.assert_array_equal(step_by_launches(name, parts), native.step(name, parts))
    for mine, theirs in zip(stepped.cache.k_pages, native.cache.k_pages, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), theirs.view(np.uint8))
