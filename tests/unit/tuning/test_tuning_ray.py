"""Workers on a Ray cluster of two nodes (processes of this machine): what is lost is done again elsewhere."""

import os
import signal
import sys

import pytest
from ray_nodes import ray_cluster
from tuning_cases import mlp

from strata.core.errors import DeviceError, UserError
from strata.planner.tuning.database import Database
from strata.planner.tuning.problem import Limits, Trial
from strata.planner.tuning.remote import MAX_ATTEMPTS, RayWorkers, TrialActor
from strata.planner.tuning.tasks import ModelPass, kernel_text, model_tasks
from strata.planner.tuning.tuner import TuneOptions, tune
from strata.target import detect_host
from strata.target.machines import TARGETS

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture(scope="module")
def address():
    """A cluster with two nodes."""
    with ray_cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def task():
    return model_tasks(mlp(), detect_host(), [ModelPass("main", 48)], num_threads=1)[0]


@pytest.fixture
def workers(address):
    with RayWorkers(address, Limits(60.0, 60.0)) as found:
        yield found


def test_a_search_on_two_nodes_survives_the_death_of_a_worker(workers, task, tmp_path):
    database, killed, nodes = Database(tmp_path / "tuning.jsonl"), [], set()

    def kill_one(report):
        nodes.update(workers._actors)
        if report.trials == 3:
            node = sorted(workers._actors)[0]
            pid = workers._ray.get(workers._actors[node].process_id.remote())
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    report = tune([task], database, workers, TuneOptions(trials=12, batch=6), kill_one)
    assert len(killed) == 1
    assert len(nodes) == 2
    assert not report.interrupted
    assert report.trials == 12
    (result,) = report.results
    assert result.tuned_s <= result.untuned_s
    assert result.errors == 0
    stored = Database(database.path)
    traces = {r.trace for r in stored.records(task.task.key)}
    assert len(traces) >= 12
    assert stored.skipped == 0


def test_a_kernel_that_crashes_leaves_its_actor_alive(workers, task):
    good = kernel_text(task.untuned()[-1][2])
    crash = good.rstrip() + "\n  y[i64(a0[0, 0] * 0x1p+42), 0] = 0x0p+0\n"
    outcomes = dict(workers.run([Trial(task.problem(), crash), Trial(task.problem(), good)]))
    assert outcomes[0].error.startswith("crashed: Segmentation fault")
    assert outcomes[1].time_s is not None


def test_a_trial_whose_workers_are_lost_again_and_again_is_an_error(workers, task):
    class Suicide(TrialActor):
        def run(self, trial):
            os._exit(1)

    for node in workers._nodes():
        workers._actors[node] = None
    original = workers._actor

    def actor(node):
        workers._actors.pop(node, None)
        place = {"num_cpus": 0}
        return workers._ray.remote(**place)(Suicide).remote(Limits())

    workers._actor = actor
    (outcome,) = dict(workers.run([Trial(task.problem(), "")])).values()
    workers._actor = original
    workers._actors.clear()
    assert outcome.error == f"its worker was lost {MAX_ATTEMPTS} times"


def test_without_a_living_node_the_search_ends(workers, task, monkeypatch):
    monkeypatch.setattr(workers, "_nodes", list)
    with pytest.raises(DeviceError, match="no node of the cluster is alive"):
        next(workers.run([Trial(task.problem(), "")]))


def test_a_node_without_the_instruction_sets_says_so(task):
    other = model_tasks(mlp(), TARGETS["avx512-bf16"], [ModelPass("main", 1)], num_threads=1)[0]
    problem = other.problem()
    features = set(TARGETS["avx512-bf16"].features)
    actor = TrialActor(Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("strata.planner.tuning.remote.host_features", lambda: tuple(sorted(features - {"fma"})))
        assert actor.run(Trial(problem, "")).error == "this node lacks fma"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray: Ray is not installed; pip install 'strata-llm\[ray\]'"):
        RayWorkers("auto")


def test_without_a_cluster_the_address_is_named(address):
    with pytest.raises(UserError, match="--ray: cannot connect to nonsense"):
        RayWorkers("nonsense")
