"""The profiler on a program whose kernels are Python: what is counted, put together and written."""

import json

import numpy as np
import pytest
from small_program import RECORD, FakeImage, small_params

from strata.core.errors import UserError
from strata.runtime.nodes import multiplies
from strata.runtime.profile import Ceilings, Timing, profile
from strata.runtime.program import Program
from strata.schedule import trace_text
from strata.schedule.steps import Tensorize, Vectorize

ESTIMATE = {
    "size": 8,
    "time_s": 2e-6,
    "flop": 1.0,
    "read_bytes": 2.0,
    "write_bytes": 3.0,
    "source": "measured",
}
WORK = {"flop": "2*n", "read_bytes": "40*n", "write_bytes": "10*n"}
PLAN = {
    "axpy": {
        "launches": [
            {
                "node": "%1",
                "candidates": [{"name": "small", "kernel": "mul_small", "estimates": [ESTIMATE]}],
                "rows": "n",
                "work": WORK,
            },
            {"node": "%2", "candidates": [{"name": "plus", "kernel": "add"}]},
        ]
    }
}
CEILINGS = Ceilings({"f32": 1.0, "bf16": 4.0}, 10.0, "modelled")
X = np.ones((2, 4), np.float32)


@pytest.fixture
def program() -> Program:
    return Program(RECORD, FakeImage(), small_params(), plan=json.dumps(PLAN))


def run(program: Program, **options):
    return profile(lambda: program.step("axpy", X), lambda: program["axpy"](X), **options)


def test_every_node_is_timed(program):
    result = run(program, repeats=3)
    assert (result.function, result.dims, result.repeats) == ("axpy", {"n": 2}, 3)
    assert [t.name for t in result.nodes] == ["%1", "%2"]
    assert all(t.time_s > 0 and t.spread >= 0 for t in result.nodes)
    assert result.total_s == sum(t.time_s for t in result.nodes)
    assert result.whole_s > 0
    # Two repetitions do not count; each makes the launches one by one and in one call.
    assert program.image.calls == ["mul_small", "add", "axpy"] * 5


def test_work_and_estimates(program):
    mul, add = run(program, repeats=1, ceilings=CEILINGS).nodes
    assert (mul.kernel, mul.candidate, mul.launches) == ("mul_small", "small", 1)
    assert (mul.flop, mul.read_bytes, mul.write_bytes) == (4, 80, 20)
    assert mul.floor_s == 10.0  # 100 bytes at 10 per second; 4 flop take 4 seconds
    assert (mul.estimate_s, mul.estimate_source) == (2e-6, "measured")
    assert mul.flop_per_s == 4 / mul.time_s
    assert mul.bytes_per_s == 100 / mul.time_s
    assert mul.roofline_fraction == 10.0 / mul.time_s
    assert (add.flop, add.flop_per_s, add.bytes_per_s, add.roofline_fraction) == (None,) * 4
    (other, _) = run(program, repeats=1, work_dims={"n": 5}).nodes
    assert (other.flop, other.floor_s) == (10, None)


def timing(name: str, op: str, time_s: float, flop: int | None) -> Timing:
    return Timing(name, op, f"k_{op}", op, 1, time_s, 0.5, flop, 1, 1, 1.0)


def test_nodes_are_put_together(program):
    from dataclasses import replace

    parts = (timing("a", "mul", 1.0, 6), timing("b", "add", 3.0, None), timing("c", "mul", 1.0, 2))
    result = replace(run(program, repeats=1), nodes=parts)
    add, mul = result.by("op")
    assert (mul.name, mul.launches, mul.time_s, mul.flop, mul.read_bytes, mul.floor_s) == (
        "mul",
        2,
        2.0,
        8,
        2,
        2.0,
    )
    assert (mul.kernel, mul.roofline_fraction) == ("k_mul", 1.0)
    assert (add.name, add.flop) == ("add", None)
    data = result.to_json()
    assert [t["share"] for t in data["by_kernel"]] == [0.6, 0.4]
    assert data["nodes"][0]["flop_per_s"] == 6.0
    assert json.loads(json.dumps(data)) == data


def test_trace(program, tmp_path):
    result = run(program, repeats=3)
    result.trace().write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(e["name"], e["ph"]) for e in events] == [("%1", "X"), ("%2", "X")]
    assert events[0]["ts"] == 0
    assert events[1]["ts"] >= events[0]["dur"]


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([Tensorize("i")], "bf16"),
        ([Tensorize("i", "dot4_u8i8")], "int8"),
        ([Tensorize("i", "dot4_u4i8")], "int8"),
        ([Tensorize("i", "zip_bf16"), Tensorize("j")], "bf16"),
        ([Vectorize("i")], "f32"),
        ([], "f32"),
    ],
)
def test_what_a_schedule_multiplies_by(steps, kind):
    assert multiplies(trace_text(tuple(steps))) == kind


def test_nothing_to_time(program):
    from dataclasses import replace

    with pytest.raises(UserError, match="profile: got 0 repetitions; expected at least 1"):
        run(program, repeats=0)
    empty = replace(RECORD, functions=(replace(RECORD.functions[0], launches=()),))
    with pytest.raises(UserError, match="profile: the function launches nothing"):
        run(Program(empty, FakeImage(), small_params()))
