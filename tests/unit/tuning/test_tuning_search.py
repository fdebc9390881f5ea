"""The search and the tuner on a runner whose times are exact: no processes, no luck."""

import random
import signal
import time
from dataclasses import replace

import pytest
from tuning_cases import StaticRunner

from strata.planner.tuning.database import Database
from strata.planner.tuning.problem import Outcome
from strata.planner.tuning.search import TaskSearch
from strata.planner.tuning.tuner import SWEEP, TuneOptions, tune
from strata.schedule import trace_text


def few(**options) -> TuneOptions:
    """Options for a search that takes little: few schedules are made per trial."""
    return TuneOptions(pool=2, **options)


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "tuning.jsonl")


def started(task, database, runner, **options):
    search = TaskSearch(task, database, random.Random(0), pool=2, **options)
    points = search.first()
    search.begin([(points[k], o) for k, o in runner.run([search.trial(p) for p in points])])
    return search


def step(search, runner, count=6):
    points = search.propose(count)
    for k, outcome in runner.run([search.trial(p) for p in points]):
        search.database.add(search.record(points[k], outcome))
        search.take(points[k], outcome)
    search.end_round()
    return points


def test_no_schedule_is_proposed_twice(task, database, runner):
    search = started(task, database, runner)
    texts = [p.text for _ in range(3) for p in step(search, runner, 4)]
    assert len(texts) == 12
    assert len(set(texts)) == len(texts)


def test_from_scratch_knows_nothing_of_the_rules_and_still_gets_there(task, database, runner):
    database.add(
        started(task, database, runner).record(
            TaskSearch(task, database, random.Random(0)).first()[0], Outcome(1e-9, 5)
        )
    )
    search = started(task, database, runner, from_scratch=True)
    assert search.best == []
    assert search.untuned_s < 1
    for _ in range(5):
        step(search, runner, 8)
    assert search.found_s <= search.untuned_s


def test_with_the_rules_the_best_is_never_worse(task, database, runner):
    search = started(task, database, runner)
    assert search.best_s == search.found_s == search.untuned_s
    assert search.improvement is None
    step(search, runner)
    assert search.history == sorted(search.history, reverse=True)
    assert search.best_s <= search.untuned_s


def test_a_search_goes_on_from_its_records(task, database, runner):
    first = started(task, database, runner)
    points = step(first, runner, 4)
    second = started(task, Database(database.path), runner)
    assert second.best_s == first.best_s
    assert not {p.text for p in second.propose(4)} & {p.text for p in points}


def test_failures_are_counted_remembered_and_not_tried_again(task, database):
    failing = StaticRunner(lambda number, trial: "crashed" if number % 2 else "")
    search = started(task, database, StaticRunner())
    points = step(search, failing)
    assert (search.trials, search.errors) == (len(points), sum(1 for k in range(len(points)) if (k + 1) % 2))
    resumed = started(task, Database(database.path), StaticRunner())
    assert not {p.text for p in resumed.propose(4)} & {p.text for p in points}


def test_without_a_learned_model_the_static_one_ranks(task, database, runner):
    search = started(task, database, runner, learn=False)
    for _ in range(2):
        step(search, runner)
    assert search.best_s < search.untuned_s


# ------------------------------------------------------------------------------------------------- the tuner


def test_trials_go_where_the_time_goes(task, database, runner):
    shares = {0.7: task, 0.3: replace(task, sizes=(("n", 47),))}
    tasks = [replace(t, share=share) for share, t in shares.items()]
    report = tune(tasks, database, runner, few(trials=18, batch=3))
    assert report.trials == 18 == sum(r.trials for r in report.results)
    assert [r.share for r in report.results] == [0.7, 0.3]
    assert report.results[0].trials > report.results[1].trials
    assert all(r.tuned_s <= r.untuned_s and r.gain >= 1 for r in report.results)
    assert report.results[0].gain > 1


def test_every_outcome_is_in_the_database(tasks, database, runner):
    seen = []
    options = few(trials=12, batch=4)
    tune(tasks, database, runner, options, lambda report: seen.append(report.trials))
    assert seen == list(range(1, 13))
    stored = Database(database.path)
    assert len(stored) >= 12 + len(tasks[0].untuned())
    best = stored.best(tasks[0].task.key)
    assert {r.sizes for r in best} >= {tasks[0].sizes}
    assert all(r.threads == 1 and r.features == tasks[0].task.target.features for r in best)


def test_winners_are_measured_at_other_sizes_too(task, database, runner):
    tune([task], database, runner, few(trials=20))
    (winner, *_) = Database(database.path).best(task.task.key)
    best = next(r for r in Database(database.path).best(task.task.key) if r.sizes == task.sizes)
    sizes = {dict(s)["n"] for s, _ in database.times(task.task.key, best.trace)}
    assert {n for n in SWEEP if n <= 64} <= sizes
    rule = task.untuned()[0][1]
    assert sizes <= {dict(s)["n"] for s, _ in database.times(task.task.key, rule)}
    assert winner.time_s > 0


def test_the_time_limit_ends_the_search(tasks, database, runner):
    report = tune(tasks, database, runner, few(trials=10_000, time_s=1e-9))
    assert report.trials == 0
    assert not report.interrupted


def test_ctrl_c_ends_cleanly_and_everything_is_stored(tasks, database):
    untuned = len(tasks[0].untuned())

    def hook(number, trial):
        if number == untuned + 3:
            raise KeyboardInterrupt
        return ""

    runner = StaticRunner(hook)
    report = tune(tasks, database, runner, few(trials=100, batch=4))
    assert report.interrupted
    assert report.trials == 2
    assert len(Database(database.path)) == untuned + 2
    assert report.results[0].tuned_s <= report.results[0].untuned_s


class Finalised:
    """Python drops what a finaliser raises, a signal's ``KeyboardInterrupt`` too."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # where handlers of signals run


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_python_dropped_ends_the_search_too(tasks, database):
    def hook(number, trial):
        if number == 2:
            Finalised()
        return ""

    report = tune(tasks, database, StaticRunner(hook), few(trials=100, batch=4))
    assert report.interrupted
    assert len(Database(database.path)) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_task_whose_untuned_kernels_fail_is_reported_and_the_others_go_on(tasks, database):
    key = tasks[0].problem().text
    runner = StaticRunner(lambda number, trial: "crashed" if trial.problem.text == key else "")
    report = tune(tasks, database, runner, few(trials=8, batch=4))
    failed = [r for r in report.results if r.error]
    assert failed
    assert all((r.error, r.trials, r.gain) == ("crashed", 0, 1.0) for r in failed)
    assert sum(r.trials for r in report.results) == 8


def test_tasks_with_nothing_to_schedule_end_the_search(task, database, runner):
    finished = replace(task.task, lowered=replace(task.task.lowered, func=task.untuned()[0][2]))
    report = tune([replace(task, task=finished)], database, runner, few(trials=50))
    assert report.trials == 0
    assert report.results[0].tuned_s == report.results[0].untuned_s


def test_no_tasks_no_trials(database, runner):
    assert tune([], database, runner).results == ()


def test_the_same_seed_gives_the_same_search(task, tmp_path):
    def search(name, seed):
        database = Database(tmp_path / name)
        tune([task], database, StaticRunner(), few(trials=4, batch=2, seed=seed))
        return [r.trace for r in database.records(task.task.key)]

    first = search("a", 0)
    assert first == search("b", 0)
    assert first != search("c", 1)


def test_records_name_the_trace_of_the_point(task, database, runner):
    search = started(task, database, runner)
    point = search.propose(1)[0]
    record = search.record(point, Outcome(1.0, 3, 0.1))
    assert record.trace == trace_text(point.trace)
    assert (record.task, record.sizes, record.samples, record.spread_s) == (task.name, task.sizes, 3, 0.1)
