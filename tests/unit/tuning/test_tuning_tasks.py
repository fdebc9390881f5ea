"""Tuning tasks: the distinct groups of a model, weighted by their share of the run time."""

import pytest
from tuning_cases import TARGET, mlp

from strata.assets import DEMO_MODEL
from strata.compiler.api import Options, define
from strata.compiler.driver import trace
from strata.core.errors import UserError
from strata.core.kv_layout import DEFAULT_PAGE_SIZE
from strata.loop.text_parser import parse_func
from strata.models import read_config
from strata.planner.tuning.problem import BuildJob
from strata.planner.tuning.tasks import ModelPass, default_passes, model_tasks, sizes_text
from strata.planner.tuning.worker import build
from strata.target.machines import TARGETS


@pytest.fixture(scope="module")
def demo():
    definition = define(read_config(DEMO_MODEL), Options())
    return trace(definition.module, TARGET, definition.cache_record).lower().module


@pytest.fixture(scope="module")
def demo_tasks(demo):
    return model_tasks(demo, TARGET)


def test_a_language_model_is_tuned_for_decoding_one_and_prefilling_many(demo, demo_tasks):
    assert default_passes(demo) == (ModelPass("decode", 1), ModelPass("prefill", 128))
    assert {dict(t.sizes).get("n", 1) for t in demo_tasks} == {1, 128}
    assert sum(t.share for t in demo_tasks) == pytest.approx(1.0)
    assert [t.share for t in demo_tasks] == sorted((t.share for t in demo_tasks), reverse=True)


def test_distinct_groups_are_one_task_however_often_they_are_launched(demo, demo_tasks):
    matmuls = [t for t in demo_tasks if t.name.startswith("matmul") and dict(t.sizes).get("n") == 128]
    launches = sum(n.op == "fused" for n in demo["prefill"].nodes)
    prefill = [t for t in demo_tasks if dict(t.sizes).get("n", 1) == 128]
    assert max(t.launches for t in matmuls) == 8  # layers
    assert len(prefill) < launches
    keys = [(t.task.key, t.sizes) for t in demo_tasks]
    assert len(set(keys)) == len(keys)


def test_shares_follow_the_work(tasks):
    wide = {dict(t.sizes)["n"]: t.share for t in tasks if t.task.anchor.tensor.shape[-1] == 96}
    narrow = {dict(t.sizes)["n"]: t.share for t in tasks if t.task.anchor.tensor.shape[-1] == 32}
    assert wide[48] > narrow[48]
    assert sum(wide.values()) + sum(narrow.values()) == pytest.approx(1.0)


def test_a_problem_says_which_operands_are_weights_and_cache_fields(demo_tasks):
    matmul = next(t for t in demo_tasks if t.name.startswith("matmul"))
    problem = matmul.problem()
    assert [p.name for p in parse_func(problem.text).params if p.name in problem.weights] == ["a1"]
    append = next(t for t in demo_tasks if t.name.startswith("kv_append")).problem()
    assert {"positions", "slots", "k_pages", "v_pages"} <= {f for _, f in append.fields}
    assert append.weights == ()
    sizes = dict(append.sizes)
    assert sizes["num_pages"] * DEFAULT_PAGE_SIZE >= sizes["max_context"] >= 128


def test_the_reference_of_a_problem_builds(tasks):
    problem = tasks[0].problem()
    assert build(BuildJob(problem.reference, problem.target, 1.0)).image


def test_models_without_decode_are_tuned_at_few_and_many_rows():
    assert default_passes(mlp()) == (ModelPass("main", 1), ModelPass("main", 128))


def test_other_sizes_stay_in_range(task):
    found = [dict(s)["n"] for s in task.other_sizes((1, 16, 1024))]
    assert found == [1, 16, 64]


def test_tasks_of_one_size_have_no_others(demo_tasks):
    append = next(t for t in demo_tasks if t.name.startswith("kv_append"))
    assert append.other_sizes((1, 16)) == []


def test_labels_name_op_types_and_sizes(task):
    assert task.label == "matmul f32[nx64] [96x64] n=48"
    assert sizes_text(task.sizes) == "n=48"


def test_an_unknown_function_lists_the_others():
    with pytest.raises(UserError, match=r"tune: got function 'decode'; expected one of main"):
        model_tasks(mlp(), TARGET, [ModelPass("decode", 1)])


def test_a_size_out_of_range_names_the_range():
    with pytest.raises(UserError, match=r"tune: main: got size 65; expected n in 1\.\.64"):
        model_tasks(mlp(), TARGET, [ModelPass("main", 65)])


def test_the_key_depends_on_the_instruction_sets(tasks):
    other = model_tasks(mlp(), TARGETS["avx2"], [ModelPass("main", 1)])
    assert not {t.task.key for t in tasks} & {t.task.key for t in other}
