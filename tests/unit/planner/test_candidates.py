"""Sources of candidates: libraries, single sizes, tuned traces; how they change the plan and stay correct."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import strata
from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.graph import builder as b
from strata.graph.nodes import Function, Module
from strata.lower import lower_group
from strata.passes import run_passes
from strata.planner.calibrate import calibrated
from strata.planner.candidates import Offer, Task, offers_for
from strata.planner.candidates.tuned import open_database
from strata.planner.layouts import choose_layouts, settle_layouts
from strata.planner.options import PlanOptions, parse_pin
from strata.planner.stacks import StackBuilder, choice_rows, compared_sizes
from strata.planner.tuning.database import Database, Record
from strata.planner.types import Origin
from strata.runtime.program import Program
from strata.runtime.records import DimRange
from strata.target import detect_host

TARGET = detect_host()
N = SymDim("n", 1, 64)


def mlp() -> Module:
    """``relu(x @ w.T + c) @ v``: one weight by rows of outputs, one by rows of inputs."""
    x = b.input("x", b.tensor_type((N, 96), "f32"))
    w, c = b.param("w", b.tensor_type((80, 96), "f32")), b.param("c", b.tensor_type((80,), "f32"))
    v = b.param("v", b.tensor_type((80, 72), "f32"))
    h = b.relu(b.add(b.matmul(x, w, transpose_b=True), c))
    return Module((Function("f", (x,), (b.matmul(h, v),)),))


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(type_.shape, dtype=np.float32) / 8 for name, type_ in mlp().params.items()
    }


def check(program: Program) -> None:
    given = params()
    for rows in (1, 2, 3, 15, 16, 17, 63, 64):
        x = np.random.default_rng(rows).standard_normal((rows, 96), dtype=np.float32)
        want = np.maximum(x @ given["w"].T + given["c"], 0) @ given["v"]
        np.testing.assert_allclose(program["f"](x), want, rtol=1e-4, atol=1e-4)


def kernels_by_size(program) -> list[list[str]]:
    return [[node.chosen({"n": n}).name for n in (1, 16, 64)] for node in program.nodes("f")]


def task_of(module: Module, index: int = 0) -> Task:
    fused = run_passes("default", module)
    node = [n for n in fused["f"].nodes if n.op == "fused"][index]
    return StackBuilder(choose_layouts(fused, TARGET), TARGET).kernels_of(node).task


# ------------------------------------------------------------------------------------- libraries, layouts


def test_a_preferred_library_computes_every_matmul_and_weights_stay_in_rows() -> None:
    program = strata.compile(mlp(), params(), prefer="openblas")
    assert kernels_by_size(program) == [["openblas"] * 3] * 2
    assert {p.layout for p in program.record.params} == {""}
    check(program)


def test_a_pin_for_one_node_leaves_the_other_in_tiles() -> None:
    fused = run_passes("default", mlp())
    first = next(n for n in fused["f"].nodes if n.op == "fused")
    options = PlanOptions(libraries=("openblas",), pins=(parse_pin(f"{first.name or 'matmul'}=openblas"),))
    tiled = choose_layouts(fused, TARGET)
    kept = settle_layouts(fused, tiled, TARGET, options)
    assert set(tiled) == {"w", "v"}
    assert len(kept) < 2
    check(strata.compile(mlp(), params(), options=options))


def test_without_being_asked_no_library_is_a_candidate() -> None:
    names = {o.name for o in offers_for(task_of(mlp()), PlanOptions())}
    assert names
    assert not any(name.startswith(("openblas", "onednn")) for name in names)


# ----------------------------------------------------------------------------------------- single sizes


def test_a_size_gets_a_kernel_of_its_own() -> None:
    options = PlanOptions(sizes=(("n", (1, 16, 1000)),), prefer=("cpu",))
    offers = offers_for(task_of(mlp()), options)
    single = [o for o in offers if o.origin is Origin.SIZE]
    assert {o.when for o in single} == {(DimRange("n", 1, 1),), (DimRange("n", 16, 16),)}
    assert all(not o.func.dims for o in single)
    pinned = PlanOptions(sizes=options.sizes, pins=(parse_pin("matmul=*@n=16"),))
    program = strata.compile(mlp(), params(), options=pinned)
    for at_1, at_16, at_64 in kernels_by_size(program):
        assert at_16.endswith("@n=16")
        assert "@n=16" not in at_1 + at_64
    check(program)


# ---------------------------------------------------------------------------------- records of the tuner


@pytest.fixture
def database(tmp_path: Path) -> Callable[..., PlanOptions]:
    """Options with a database of (trace, rows, seconds) for a task."""

    def make(task: Task, *found: tuple[str, int, float]) -> PlanOptions:
        records = Database(tmp_path / "records.jsonl")
        records.add(*(Record(task.key, trace, (("n", n),), time_s, 5) for trace, n, time_s in found))
        return PlanOptions(database=records.path)

    return make


def test_a_recorded_trace_is_a_candidate_once(database) -> None:
    task = task_of(mlp())
    rules = offers_for(task, PlanOptions())
    other = "; ".join(rules[0].trace.split("; ")[:2])  # two steps less is another schedule
    options = database(task, (rules[0].trace, 1, 1e-6), (other, 16, 1e-6))
    tuned = [o for o in offers_for(task, options) if o.origin is Origin.TUNED]
    assert [o.trace for o in tuned] == [other]
    assert tuned[0].name.startswith("tuned.")
    program = strata.compile(mlp(), params(), options=replace(options, prefer=("tuned",)))
    assert kernels_by_size(program)[0] == [tuned[0].name] * 3
    check(program)


def test_a_record_that_no_longer_applies_is_skipped(database) -> None:
    task = task_of(mlp())
    options = database(task, ("split(loop=gone, factor=4)", 1, 1e-9), ("no step", 1, 1e-9))
    assert [o.origin for o in offers_for(task, options)] == [Origin.RULE] * len(
        offers_for(task, PlanOptions())
    )


def test_measured_times_correct_the_models(database) -> None:
    task = task_of(mlp())
    offers = offers_for(task, PlanOptions())
    first, second = offers[0], offers[1]
    assert first.model is not None
    assert second.model is not None
    options = database(task, (first.trace, 1, 3 * first.model(1).time_s), (first.trace, 64, 1e-3))
    models = calibrated(task, offers, open_database(options))
    here, there = models[0](1), models[0](64)  # type: ignore[misc]
    assert (here.time_s, here.source) == (pytest.approx(3 * first.model(1).time_s), "measured")
    assert (there.time_s, there.source) == (pytest.approx(1e-3), "measured")
    between = models[0](8)  # type: ignore[misc]
    ratio = between.time_s / first.model(8).time_s
    ends = sorted((3.0, 1e-3 / first.model(64).time_s))
    assert ends[0] * 0.999 <= ratio <= ends[1] * 1.001
    assert between.source == "model"
    # What was not measured gets the mean ratio of what was.
    mean = math.sqrt(3 * 1e-3 / first.model(64).time_s)
    assert models[1](1).time_s == pytest.approx(mean * second.model(1).time_s)  # type: ignore[misc]
    assert calibrated(task, offers, Database(Path("nowhere"))) == [o.model for o in offers]


def test_keys_of_tasks_do_not_depend_on_ranges() -> None:
    def key(hi: int, extent: int = 96) -> str:
        x = b.input("x", b.tensor_type((SymDim("n", 1, hi), extent), "f32"))
        body = Function("g", (x,), (b.softmax(x),))
        return Task(x, body, body.outputs[0], {}, lower_group("naive", body), 1, TARGET).key

    assert key(8) == key(800)
    assert key(8) != key(8, 97)


# -------------------------------------------------------------------------------------------- measuring


def test_measured_plan_is_correct_and_remembered() -> None:
    options = PlanOptions(measure=True)
    program = strata.compile(mlp(), params(), options=options)
    check(program)
    for node in program.nodes("f"):
        if len(node.candidates) > 1:
            assert {c.cost(n).source for c in node.candidates for n in (1, 64)} == {"measured"}
    again = strata.compile(mlp(), params(), options=options)
    assert kernels_by_size(again) == kernels_by_size(program)  # the same times, from the files


# ----------------------------------------------------------------------------------------------- options


def test_rows_and_sizes_that_are_compared() -> None:
    x = b.input("x", b.tensor_type((4, N, 8), "f32"))
    w = b.input("w", b.tensor_type((8, 6), "f32"))
    assert choice_rows(b.exp(x)) == N
    assert choice_rows(b.matmul(b.reshape(x, (4 * N, 8)), w)) == 4 * N
    assert choice_rows(b.exp(w)) == 1
    task = task_of(mlp())
    offer = offers_for(task, PlanOptions())[0]
    ranged = Offer("user.x", offer.func, "", Origin.KERNEL, offer.model, (DimRange("n", 5, 37),))
    assert {4, 5, 37, 38} <= set(compared_sizes(task, [offer, ranged]))
    assert compared_sizes(task, [offer]) == [1, 64]


def test_pins() -> None:
    pin = parse_pin("*.mlp.*=cpu.matmul.*")
    assert str(pin) == "*.mlp.*=cpu.matmul.*"
    assert pin.holds_for("layers.0.mlp.up", "matmul")
    assert not pin.holds_for("layers.0.attn", "matmul")
    assert parse_pin("matmul=openblas").holds_for("anything", "matmul")
    some = parse_pin("*.mlp.*@1..8=user.skinny@n=4")
    assert (some.node, some.candidate, some.sizes) == ("*.mlp.*", "user.skinny@n=4", (1, 8))
    assert str(some) == "*.mlp.*@1..8=user.skinny@n=4"
    assert [some.covers(size) for size in (None, 1, 8, 9)] == [False, True, True, False]
    assert pin.covers(None)
    for text in ("matmul", "=x", "x=", "x@8..1=y"):
        with pytest.raises(UserError, match=f"--pin: got '{text}'; expected NODE=CANDIDATE"):
            parse_pin(text)
    options = PlanOptions(prefer=("openblas",), pins=(pin,))
    assert options.prefers("openblas")
    assert options.prefers("openblas.x")
    assert not options.prefers("openblasx")
    assert options.wants("cpu")
    assert not options.wants("onednn")


def test_pins_and_preferences_must_say_something() -> None:
    for options, message in (
        ({"prefer": "nothing"}, "--prefer nothing: no such candidate; there are cpu"),
        ({"pins": {"head": "cpu.rows"}}, "--pin head=cpu.rows: no node has this name or op; there are "),
        ({"pins": {"matmul": "cpu.none"}}, "--pin matmul=cpu.none: no such candidate; there are cpu"),
    ):
        with pytest.raises(UserError, match=message):
            strata.compile(mlp(), params(), **options)  # type: ignore[arg-type]
