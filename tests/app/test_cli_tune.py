"""``strata tune``: searches, stores, goes on, merges; a mistake is one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strata.app.commands import tune as command
from strata.planner.tuning.database import Database
from strata.planner.tuning.problem import Outcome

STRATA = Path(sys.executable).with_name("strata")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tmp_path_factory.mktemp("tuning") / "tuning.jsonl"


@pytest.fixture
def exact(monkeypatch):
    """Workers that need no processes: every kernel takes as long as its text is."""

    class Workers:
        def run(self, trials):
            for number, trial in enumerate(trials):
                yield number, Outcome(1e-9 * len(trial.text), 5)

        def close(self):
            pass

    monkeypatch.setattr(command, "_runner", lambda address: Workers())


def test_tuning_a_model_for_real(strata, small, records):
    result = strata(
        "tune", small, "--trials", 3, "--op", "matmul", "--size", 1, "--database", records, "--json"
    )
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["trials"] == 3
    assert figures["database"] == str(records)
    assert not figures["interrupted"]
    (task, *_) = figures["tasks"]
    assert task["task"].startswith("matmul f32[")
    assert task["error"] == ""
    assert 0 < task["tuned_s"] <= task["untuned_s"]
    assert task["gain"] >= 1
    stored = Database(records)
    assert len(stored) >= 3 + 1
    assert stored.skipped == 0


def test_the_table_names_tasks_times_and_the_file(strata, small, exact, tmp_path):
    result = strata("tune", small, "--trials", 6, "--size", 4, "--database", tmp_path / "t.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "6 trials took" in result.stdout
    for word in ("task", "share", "untuned", "tuned", "gain", "trials", "failed", "f32[", "n=4", "1.00x"):
        assert word in result.stdout, word
    assert f"records: {tmp_path / 't.jsonl'}" in result.stdout
    assert result.stderr == ""


def test_records_go_to_the_cache_folder_by_default(strata, small, exact, tmp_path):
    env = {"STRATA_CACHE_DIR": str(tmp_path)}
    result = strata("tune", small, "--trials", 1, "--op", "rms_norm", "--json", env=env)
    assert json.loads(result.stdout)["database"] == str(tmp_path / "tuning.jsonl")
    assert len(Database(tmp_path / "tuning.jsonl")) > 0


def test_merging_the_records_of_another_file(strata, small, exact, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    strata("tune", small, "--trials", 2, "--op", "rms_norm", "--database", one)
    result = strata("tune", small, "--trials", 0, "--database", two, "--merge", one)
    assert result.exit_code == 0
    assert result.stderr == f"{one}: {len(Database(one))} new records\n"
    assert len(Database(two)) == len(Database(one))


def test_ctrl_c_prints_what_there_is_and_keeps_it(small, tmp_path):
    path = tmp_path / "t.jsonl"
    arguments = [str(small), "--trials", "100000", "--database", str(path), "--json"]
    process = subprocess.Popen(
        [STRATA, "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"STRATA_CACHE_DIR": str(tmp_path)},
    )
    try:
        while len(path.read_bytes().splitlines() if path.exists() else ()) < 8:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err.decode()
    figures = json.loads(out)
    assert figures["interrupted"]
    stored = Database(path)
    assert stored.skipped == 0
    assert len(stored) >= figures["trials"] >= 1
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trials", -1), "--trials: got -1; expected at least 0"),
        (("--time", 0), "--time: got 0; expected seconds above 0"),
        (("--threads", 0), "--threads: got 0; expected at least 1"),
        (("--op", "conv"), "--op: no task matches 'conv'; ops: "),
        (("--size", 100000), "tune: prefill: got size 100000; expected n in 1.."),
        (("--merge", "nothing.jsonl"), "nothing.jsonl: No such file or directory"),
        (("--shape", "tiny"), "--shape: got tiny and the model"),
        (("--ray", "127.0.0.1:1"), "--ray: cannot connect to 127.0.0.1:1"),
    ],
)
def test_mistakes_are_one_line(strata, small, tmp_path, options, message):
    result = strata("tune", small, "--database", tmp_path / "t.jsonl", *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"strata: {message}")
    assert result.stderr.count("\n") == 1


def test_a_corrupt_record_is_named_and_the_rest_is_used(strata, small, exact, tmp_path, caplog):
    path = tmp_path / "t.jsonl"
    path.write_text("{}\n")
    assert strata("tune", small, "--trials", 1, "--op", "rms_norm", "--database", path).exit_code == 0
    assert f"{path}:1: skipping a corrupt tuning record" in caplog.text
