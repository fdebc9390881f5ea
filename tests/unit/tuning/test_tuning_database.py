"""The tuning database: records round trip, survive damage and concurrent writers."""

import json
import logging
import multiprocessing
from dataclasses import replace

import pytest

from strata.core.errors import UserError
from strata.core.knobs import knobs
from strata.planner.tuning.database import Database, Record, default_path, parse_record

TRACE = "split(loop=i, factor=4); unroll(loop=ii)"
RECORD = Record("task0", TRACE, (("n", 1),), 2e-3, samples=5, spread_s=1e-5, threads=2, task="matmul")


def test_a_record_round_trips_through_its_line():
    record = replace(RECORD, features=("avx2", "fma"), sizes=(("m", 3), ("n", 1)))
    assert parse_record(record.line) == record
    assert "\n" not in record.line


def test_add_then_open_again_gives_the_same_records(tmp_path):
    path = tmp_path / "deep" / "tuning.jsonl"
    database = Database(path)
    failed = replace(RECORD, time_s=None, error="crashed")
    database.add(RECORD, failed)
    assert Database(path).records("task0") == database.records("task0") == [RECORD, failed]
    assert len(database) == 2


def test_the_default_place_is_the_cache_folder(tmp_path):
    with knobs(cache_dir=tmp_path):
        assert default_path() == tmp_path / "tuning.jsonl" == Database().path


def test_best_is_per_sizes_the_newest_of_a_trace_and_no_errors(tmp_path):
    database = Database(tmp_path / "t")
    at = {n: (("n", n),) for n in (1, 128)}
    database.add(
        replace(RECORD, trace="unroll(loop=a)", time_s=1.0),
        replace(RECORD, trace="unroll(loop=a)", time_s=4.0),
        replace(RECORD, trace="unroll(loop=b)", time_s=3.0),
        replace(RECORD, trace="unroll(loop=c)", time_s=5.0),
        replace(RECORD, trace="unroll(loop=d)", time_s=None, error="crashed"),
        replace(RECORD, trace="unroll(loop=c)", time_s=7.0, sizes=at[128]),
        replace(RECORD, task_key="other", time_s=0.1),
    )
    best = database.best("task0", 2)
    assert [(r.trace, r.sizes, r.time_s) for r in best] == [
        ("unroll(loop=b)", at[1], 3.0),
        ("unroll(loop=a)", at[1], 4.0),
        ("unroll(loop=c)", at[128], 7.0),
    ]
    assert database.best("nothing") == []
    assert database.times("task0", "unroll(loop=c)") == [(at[1], 5.0), (at[128], 7.0)]
    assert database.times("task0", "unroll(loop=a)") == [(at[1], 4.0)]


def test_a_torn_last_line_is_skipped_by_number_and_stays_alone(tmp_path, caplog):
    path = tmp_path / "tuning.jsonl"
    Database(path).add(RECORD)
    path.write_bytes(path.read_bytes() + RECORD.line.encode()[:40])
    with caplog.at_level(logging.WARNING, "strata.tuning"):
        torn = Database(path)
    assert f"{path}:2: skipping a corrupt tuning record: it is no JSON object" in caplog.text
    assert torn.skipped == 1
    torn.add(replace(RECORD, time_s=9.0))
    assert [r.time_s for r in Database(path).records("task0")] == [2e-3, 9.0]


def test_bytes_that_are_no_text_cost_their_line_only(tmp_path):
    path = tmp_path / "tuning.jsonl"
    line = RECORD.line.encode()
    path.write_bytes(line + b"\n\xff\x00\xfe\n\n" + line + b"\n")
    database = Database(path)
    assert (len(database), database.skipped) == (2, 1)


def _changed(**values):
    return json.dumps(json.loads(RECORD.line) | values)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "it is no JSON object"),
        ('{"task_key": "x"}', "it has no field 'trace'"),
        (_changed(colour="red"), "it has an unknown field 'colour'"),
        (_changed(trace=3), "its field 'trace' is 3"),
        (_changed(samples=True), "its field 'samples' is True"),
        (_changed(sizes={"n": "1"}), "its field 'sizes' is"),
        (_changed(sizes={"n": 0}), "its field 'sizes' is"),
        (_changed(time_s=None), "its field 'time_s' is None with error ''"),
        (_changed(time_s=-1.0), "its field 'time_s' is -1.0"),
        (_changed(time_s=float("inf")), "its field 'time_s' is inf"),
        (_changed(error="crashed"), "with error 'crashed'"),
    ],
)
def test_a_line_that_is_no_record_says_why(line, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_record(line)


def test_a_trace_with_an_unknown_step_is_corrupt(tmp_path, caplog):
    path = tmp_path / "tuning.jsonl"
    path.write_text(_changed(trace="teleport(loop=i)") + "\n")
    with caplog.at_level(logging.WARNING, "strata.tuning"):
        assert len(Database(path)) == 0
    assert ":1: skipping" in caplog.text
    assert "teleport" in caplog.text


def test_merge_adds_what_is_new_once(tmp_path):
    one, two = Database(tmp_path / "1"), Database(tmp_path / "2")
    one.add(RECORD)
    two.add(RECORD, replace(RECORD, task_key="other"))
    assert one.merge(two) == 1
    assert one.merge(two) == 0
    assert Database(tmp_path / "1").records("other") == two.records("other")


def _write_many(path, number):
    database = Database(path)
    for k in range(50):
        database.add(replace(RECORD, task_key=f"writer{number}", samples=k, task="x" * 5000))


def test_several_processes_write_to_one_file(tmp_path):
    path = tmp_path / "tuning.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, k)) for k in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    database = Database(path)
    assert database.skipped == 0
    for k in range(2):
        assert [r.samples for r in database.records(f"writer{k}")] == list(range(50))


def test_a_folder_in_its_place_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="directory"):
        Database(tmp_path)
