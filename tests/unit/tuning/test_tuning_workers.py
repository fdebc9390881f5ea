"""Worker processes: what a trial may do wrong is its own outcome, and the others go on."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from strata.core.errors import DeviceError
from strata.planner.tuning.problem import KERNEL, BuildJob, Built, Limits, MeasureJob, Outcome, Problem, Trial
from strata.planner.tuning.worker import Bench, build, compare, perform, sample
from strata.planner.tuning.workers import LocalWorkers, _why
from strata.target import detect_host

NAIVE = """dims n in 1..64
func @task(x: f32[n,8]) -> (y: f32[n,8])
  for i in n:
    for j in 8:
      block "out" (i0: spatial n = i, i1: spatial 8 = j):
        y[i0, i1] = x[i0, i1] * 0x1p+1
"""


def kernel(*body: str) -> str:
    return "\n".join(["dims n in 1..64", f"func @{KERNEL}(x: f32[n,8]) -> (y: f32[n,8])", *body, ""])


GOOD = kernel("  for i in n:", "    y[i, ramp(0, 8)] = x[i, ramp(0, 8)] * splat(0x1p+1, 8)")
SLOW = kernel(
    "  for i in n:", "    for j in 8:", "      y[i, j] = 0x0p+0", "      y[i, j] = y[i, j] + x[i, j] * 0x1p+1"
)
WRONG = GOOD.replace("0x1p+1", "0x1.8p+1")
BEHIND = kernel(
    "  for i in n:",
    "    y[i, ramp(0, 8)] = x[i, ramp(0, 8)] * splat(0x1p+1, 8)",
    "    y[n + i64(x[i, 0] * 0x0p+0), 0] = 0x1p+1",
)
OUTSIDE = kernel("  for i in n:", "    y[i + n, 0] = x[i, 0]")
CRASH = kernel("  for i in n:", "    y[i64(x[i, 0] * 0x1p+42), 0] = x[i, 0]")
HANG = kernel(
    "  y[0, 0] = 0x0p+0",
    "  for k in 4611686018427387904:",
    "    y[0, 0] = y[0, 0] * 0x1.000002p+0 + x[0, 0]",
)


@pytest.fixture
def problem() -> Problem:
    return Problem(NAIVE, str(detect_host()), (("n", 3),), (), (), (), GOOD, 1)


@pytest.fixture(scope="module")
def workers():
    with LocalWorkers(2, Limits(20.0, 3.0)) as found:
        yield found


def run(workers, trials):
    return dict(workers.run(trials))


def test_good_kernels_get_times(workers, problem):
    outcomes = run(workers, [Trial(problem, GOOD), Trial(problem, SLOW)])
    assert sorted(outcomes) == [0, 1]
    for outcome in outcomes.values():
        assert outcome.error == ""
        assert outcome.time_s is not None
        assert 0 < outcome.time_s < 1
        assert outcome.samples >= 5


def test_a_bad_trial_costs_its_slot_and_nothing_else(workers, problem):
    texts = [GOOD, WRONG, CRASH, GOOD, "func @kernel(", HANG, BEHIND, SLOW, OUTSIDE]
    outcomes = run(workers, [Trial(problem, t) for t in texts])
    errors = [outcomes[k].error for k in range(len(texts))]
    assert errors[0] == errors[3] == errors[7] == ""
    assert errors[1].startswith("wrong result: relative error")
    assert errors[2].startswith("crashed: Segmentation fault (SIGSEGV)")
    assert errors[4].startswith("ParseError")
    assert errors[5] == "time-out: took more than 3 s"
    assert errors[6] == "wrong result: it writes behind the end of a buffer"
    assert errors[8].startswith("VerifyError: kernel at LOOP_LOWERED: index i + n of y is outside")
    assert all((outcomes[k].time_s is None) == bool(e) for k, e in enumerate(errors))


def test_workers_are_persistent_and_replaced_when_they_die(workers, problem):
    run(workers, [Trial(problem, GOOD)])
    before = workers.process_ids
    run(workers, [Trial(problem, GOOD), Trial(problem, SLOW)])
    assert workers.process_ids[: len(before)] == before
    os.kill(before[0], signal.SIGKILL)
    outcomes = run(workers, [Trial(problem, SLOW), Trial(problem, SLOW)])
    errors = [o.error for o in outcomes.values()]
    assert errors.count("") >= 1
    assert {e for e in errors if e} <= {"crashed: Killed (SIGKILL)"}
    assert run(workers, [Trial(problem, GOOD)])[0].error == ""
    assert workers.process_ids[0] != before[0]


def test_a_reference_that_does_not_build_is_named(workers, problem):
    broken = replace(problem, reference=GOOD.replace("ramp(0, 8)", "ramp(0)"))
    (outcome,) = run(workers, [Trial(broken, GOOD)]).values()
    assert outcome.error.startswith("the untuned kernel does not build: ParseError")


def test_close_ends_every_process_and_may_be_called_again(problem):
    workers = LocalWorkers(1)
    run(workers, [Trial(problem, GOOD)])
    (pid,) = workers.process_ids
    workers.close()
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_answers_nonsense_is_an_error(workers, problem, monkeypatch):
    run(workers, [Trial(problem, GOOD)])
    worker = workers._worker(0)
    monkeypatch.setattr(worker, "send", lambda job: None)
    monkeypatch.setattr(worker, "receive", lambda: Built("", b""))
    with pytest.raises(DeviceError, match="got Built; expected an outcome"):
        workers._measure(MeasureJob(problem, Built("", b""), Built("", b""), 1.0))


def test_exit_statuses_in_words():
    assert _why(-signal.SIGALRM, 2.5) == "time-out: took more than 2.5 s"
    assert _why(-signal.SIGILL, 1.0) == "crashed: Illegal instruction (SIGILL)"
    assert _why(3, 1.0) == "its worker ended with status 3"


# ---------------------------------------------------------------------- what a worker does, in this process


def test_a_bench_keeps_the_operands_of_a_problem(problem):
    bench = Bench()
    built = build(BuildJob(GOOD, problem.target, 1.0))
    bench.measure(MeasureJob(problem, built, built, 1.0))
    bed = bench._bed
    bench.measure(MeasureJob(problem, built, built, 1.0))
    assert bench._bed is bed
    bench.measure(MeasureJob(replace(problem, sizes=(("n", 5),)), built, built, 1.0))
    assert bench._bed is not bed


def test_running_out_of_memory_is_an_outcome(problem, monkeypatch):
    def full(job):
        raise MemoryError

    bench = Bench()
    monkeypatch.setattr(bench, "measure", full)
    built = Built("", b"")
    outcome = perform(MeasureJob(problem, built, built, 1.0), bench)
    assert outcome == Outcome(None, error="out of memory")


def test_a_hopeless_kernel_is_timed_once():
    calls = []
    assert len(sample(lambda: calls.append(sum(range(20000))), best_s=1e-9)) == 1
    assert len(calls) == 2
    assert len(sample(lambda: calls.append(0), best_s=1e9)) >= 5


def test_compare_takes_rounding_and_nothing_else():
    want = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert compare(want * np.float32(1 + 1e-6), want) == ""
    assert "relative error" in compare(want + np.float32(1e-2), want)
    holes = want.copy()
    holes[3] = np.nan
    assert compare(holes, want) == compare(want, holes) == "elements that are not finite differ"
    assert compare(holes, holes) == ""
    assert compare(np.array([1, 2, 3]), np.array([1, 5, 4])) == "2 of 3 elements differ"
    assert compare(np.array([np.inf]), np.array([np.inf])) == ""
