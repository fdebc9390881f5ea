"""Random and changed schedules are legal, compute the same, and differ; features tell them apart."""

import random

import numpy as np
import pytest
from tuning_cases import TARGET, mlp

from strata.core.errors import LegalityError, VerifyError
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.interp import run
from strata.loop.text_parser import parse_func
from strata.planner.tuning.cost_model import CostModel, is_available
from strata.planner.tuning.features import NAMES, features
from strata.planner.tuning.mutate import mutate
from strata.planner.tuning.sketches import applicable, random_schedule, rows, tile
from strata.planner.tuning.space import Space
from strata.planner.tuning.tasks import ModelPass, model_tasks
from strata.schedule import apply_trace, finalize, parse_trace, trace_text


@pytest.fixture
def space(task):
    return Space(task.naive, dict(task.sizes), TARGET)


def results(text: str, naive) -> np.ndarray:
    func = parse_func(text)
    rng = np.random.default_rng(0)
    shapes = [tuple(d if isinstance(d, int) else 7 for d in p.shape) for p in func.params]
    count = len(naive.params) - naive.num_outputs
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes[:count]]
    arrays += [np.full(s, np.nan, np.float32) for s in shapes[count:]]
    run(func, arrays)
    return arrays[-1]


def test_random_schedules_compute_what_the_rules_compute(space, task):
    rng = random.Random(1)
    want = results(task.problem().reference, task.naive)
    points = [p for p in (space.random(rng) for _ in range(12)) if p is not None]
    assert len({p.text for p in points}) >= 4
    for point in points:
        check(parse_func(point.text), LOOP_LOWERED)
        np.testing.assert_allclose(results(point.text, task.naive), want, rtol=1e-4, atol=1e-4)


def test_changed_schedules_compute_what_the_rules_compute(space, task):
    rng = random.Random(2)
    want = results(task.problem().reference, task.naive)
    trace = parse_trace(task.untuned()[-1][1])
    points = [p for p in (space.changed(trace, rng) for _ in range(30)) if p is not None]
    assert len({p.text for p in points}) >= 5
    for point in points[:8]:
        np.testing.assert_allclose(results(point.text, task.naive), want, rtol=1e-4, atol=1e-4)


def test_draws_depend_on_the_seed_only(task):
    def draw(seed):
        rng = random.Random(seed)
        found = []
        for _ in range(5):
            try:
                found.append(trace_text(random_schedule(task.naive, TARGET, rng)[1]))
            except LegalityError:
                found.append("")
        return found

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_mutations_change_traces_and_leave_the_original(task):
    rng = random.Random(5)
    trace = parse_trace(task.untuned()[0][1])
    text = trace_text(trace)
    changed = {trace_text(mutate(task.naive, trace, rng)) for _ in range(40)}
    assert len(changed) > 15
    assert trace_text(trace) == text
    for other in changed:
        assert trace_text(parse_trace(other)) == other


def test_mutations_of_nothing_add_steps(task):
    rng = random.Random(6)
    found = {trace_text(mutate(task.naive, (), rng)) for _ in range(40)}
    assert any("split(" in t for t in found)
    assert any("parallel(" in t for t in found)


def test_an_illegal_trace_is_no_point(space, task):
    assert space.point(parse_trace("split(loop=nothing, factor=2)")) is None
    assert space.point(parse_trace(task.untuned()[0][1])) is not None


def test_too_much_code_is_no_point(space):
    def unrolled(loops):
        steps = "; ".join(f"split(loop={x}, factor=16); unroll(loop={x}i)" for x in loops)
        return space.point(parse_trace(steps))

    assert unrolled(["matmul_k0"]) is not None
    assert unrolled(["matmul_i0", "matmul_i1", "matmul_k0"]) is None


def test_sketches_fit_the_shape_of_the_function(task):
    assert set(applicable(task.naive)) == {tile, rows}
    assert not Space(task.naive, dict(task.sizes), TARGET).is_trivial
    finished = finalize(apply_trace(task.naive, parse_trace(task.untuned()[0][1])))
    assert Space(finished, dict(task.sizes), TARGET).is_trivial


def test_features_see_what_matters(space, task):
    good, bad = (space.point(parse_trace(t)) for t in (task.untuned()[-1][1], ""))
    row = dict(zip(NAMES, good.row, strict=True))
    naive = dict(zip(NAMES, bad.row, strict=True))
    assert row["issue_time"] < naive["issue_time"]
    assert row["lanes"] > naive["lanes"] + 2
    assert row["parallel_trips"] > naive["parallel_trips"] == 1.0
    assert row["register_vectors"] > naive["register_vectors"] == 0.0
    assert row["code"] > naive["code"]
    assert row["hot_trips"] == pytest.approx(np.log2(1 + 64))  # the loop over k
    assert row["gathers"] == naive["gathers"] == 0.0


def test_features_of_every_task_of_a_module_are_finite():
    for task in model_tasks(mlp(), TARGET, [ModelPass("main", 1)]):
        for _, _, func in task.untuned():
            assert np.isfinite(features(func, dict(task.sizes), TARGET)).all()


def test_loops_of_unknown_extent_count_as_some(task):
    text = task.problem().reference.replace("matmul_k0 in 64", "matmul_k0 in i64(a0[0, 0])")
    row = features(parse_func(text), dict(task.sizes), TARGET)
    assert np.isfinite(row).all()


def test_the_model_learns_an_order_that_the_static_one_has_wrong(space):
    assert is_available()
    rng = random.Random(0)
    points = [p for p in (space.random(rng) for _ in range(48)) if p is not None]
    slow_is = NAMES.index("code")

    def time_s(point):  # the more code, the slower; unrolled loops issue less, so that the static one errs
        return 2.0 ** point.row[slow_is]

    learned, static = CostModel(True), CostModel(False)
    for point in points[: len(points) // 2]:
        learned.add(point.row, time_s(point))
        static.add(point.row, time_s(point))
    learned.add(points[0].row, None)
    rest = points[len(points) // 2 :]

    def agreement(model):
        return np.corrcoef(model.scores([p.row for p in rest]), [np.log(time_s(p)) for p in rest])[0, 1]

    assert agreement(learned) > 0.8 > 0 > agreement(static)
    assert static.scores([points[0].row]) == [points[0].row[NAMES.index("issue_time")]]
    assert learned.scores([]) == []


def test_a_model_of_failures_only_ranks_by_the_static_one(space):
    point = space.random(random.Random(0))
    model = CostModel(True)
    for _ in range(20):
        model.add(point.row, None)
    assert model.scores([point.row]) == [point.row[NAMES.index("issue_time")]]


def test_what_the_checker_refuses_is_no_point(space, monkeypatch):
    """A changed factor may leave vectors longer than the register buffer that holds them."""

    def refuse(func, stage):
        raise VerifyError(f"{func.name} at {stage}: index out of bounds")

    assert space.point(()) is not None
    monkeypatch.setattr("strata.planner.tuning.space.check", refuse)
    assert space.point(()) is None
