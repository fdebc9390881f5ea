"""Nodes of a function: what the record and the plan say of them, and finding them by name."""

import json

import pytest
from small_program import RECORD, FakeImage, small_params

from strata.core.errors import UserError, VerifyError
from strata.runtime.nodes import Cost, choose, plan_reader, select
from strata.runtime.program import Program
from strata.runtime.records import DimRange, KernelChoice


def estimate(size: int, time_s: float) -> dict:
    return {
        "size": size,
        "time_s": time_s,
        "flop": 1.0,
        "read_bytes": 2.0,
        "write_bytes": 3.0,
        "source": "roofline",
    }


LAUNCH = {
    "node": "%1",
    "op": "mul",
    "candidates": [
        {
            "name": "small",
            "kernel": "mul_small",
            "trace": "split i 4",
            "estimates": [estimate(8, 2e-6), estimate(1, 1e-6)],
        },
        {"name": "large", "kernel": "mul_large", "estimates": [estimate(1, 3e-6)]},
        {"name": "other", "kernel": "mul_other", "when": [{"dim": "n", "lo": 2, "hi": 4}]},
    ],
    "rows": "n",
    "work": {"flop": "4*n", "read_bytes": "16*n + 8", "write_bytes": "16*n"},
}
PLAN = {
    "axpy": {"launches": [LAUNCH, {"node": "%2", "op": "add", "candidates": []}]},
    "peek": {"launches": [{"node": "%3", "op": "sum", "candidates": []}]},
}


def program(plan: object = None) -> Program:
    return Program(RECORD, FakeImage(), small_params(), plan=None if plan is None else json.dumps(plan))


def test_what_the_record_says():
    mul, add = program().nodes("axpy")
    assert (mul.index, mul.function, mul.name) == (0, "axpy", "%1")
    assert [o.name for o in mul.inputs] == ["x", "scale"]
    assert [str(o) for o in mul.outputs] == ["f32[n,4]"]
    assert add.outputs[0].name == "y"
    assert mul.shape(mul.outputs[0], {"n": 3}) == (3, 4)
    (peek,) = program().nodes("peek")
    assert [o.name for o in peek.inputs] == ["cache.last_rows", "cache.k_pages[0]"]


def test_without_a_plan():
    mul, _ = program().nodes("axpy")
    assert [(c.name, c.in_image) for c in mul.candidates] == [("mul_small", True), ("mul_large", True)]
    assert mul.kernel({"n": 2}) == "mul_small"
    assert mul.chosen({"n": 3}).kernel == "mul_large"
    assert mul.cost({"n": 3}) is None
    assert mul.work({"n": 3}) is None


def test_with_a_plan():
    mul, add = program(PLAN).nodes("axpy")
    assert [(c.name, c.in_image) for c in mul.candidates] == [
        ("small", True),
        ("large", True),
        ("other", False),
    ]
    small, large, other = mul.candidates
    assert small.trace == "split i 4"
    assert [size for size, _ in small.costs] == [1, 8]
    assert [small.cost(n).time_s for n in (1, 2, 8, 9)] == [1e-6, 2e-6, 2e-6, 2e-6]
    assert other.cost(1) is None
    assert other.when == (DimRange("n", 2, 4),)
    assert mul.chosen({"n": 2}) == small
    assert mul.work({"n": 2}) == {"flop": 8, "read_bytes": 40, "write_bytes": 32}
    assert mul.cost({"n": 2}) == Cost(2e-6, 8, 40, 32, "roofline")
    assert add.chosen({"n": 2}).kernel == "add"
    assert large.costs[0][1].source == "roofline"


def test_candidates_that_were_not_compiled():
    run = program(PLAN).step("axpy", small_params()["scale"].astype("f4").reshape(1, 4))
    with pytest.raises(
        UserError, match="%1: candidate other is not in the program, which has small, large; comp"
    ):
        run.replace("%1", "other")
    limited = [{**LAUNCH["candidates"][1], "when": [{"dim": "n", "lo": 2, "hi": 4}]}]
    plan = {"axpy": {"launches": [{**LAUNCH, "candidates": limited}, PLAN["axpy"]["launches"][1]]}}
    narrow = program(plan).step("axpy", small_params()["scale"].astype("f4").reshape(1, 4))
    with pytest.raises(UserError, match=r"%1: large is made for 2 <= n <= 4; got \{'n': 1\}"):
        narrow.replace("%1", "large")
    run.replace("%1", "large")
    run.next()
    assert run._bound.kernels[0] == "mul_small"


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ("[]", r"plan.json: got \[\]; expected an object"),
        ("{", "plan.json: is no JSON"),
        ('{"axpy": {"launches": []}}', "launch 0 of axpy is not '%1': it is of another program"),
        ('{"axpy": {"launches": [{"node": "%2"}, {"node": "%1"}]}}', "launch 0 of axpy is not '%1'"),
        ('{"axpy": 1}', "launch 0 of axpy is not '%1'"),
        (
            '{"axpy": {"launches": [{"node": "%1", "candidates": [{}]}, {"node": "%2"}]}}',
            "plan.json: axpy: %1: malformed candidate: KeyError",
        ),
    ],
)
def test_damaged_plans(plan, match):
    mul, _ = Program(RECORD, FakeImage(), small_params(), plan=plan).nodes("axpy")
    with pytest.raises(UserError, match=match):
        _ = mul.candidates


def test_plan_files(tmp_path):
    assert plan_reader(None) is None
    assert plan_reader(tmp_path / "none.json") is None
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(PLAN))
    read = plan_reader(file)
    assert read() == PLAN
    file.write_text("")
    assert read() is read()  # parsed once
    reader = plan_reader(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="cannot read: Is a directory"):
        reader()


def test_choose():
    choices = (KernelChoice("mul_small", (DimRange("n", 5, 6),)),)
    with pytest.raises(VerifyError, match=r"launch %9: no kernel for \{'n': 1\}"):
        choose("%9", choices, {"n": 1})
    assert choose("%9", choices, {"n": 6}) == "mul_small"


def test_select():
    nodes = program().nodes("axpy")
    assert select(nodes, "%*") == nodes
    assert select(nodes, -1) == nodes[1:]
    assert select(nodes, ["%2", 0, "%2"]) == (nodes[1], nodes[0])
    assert select(nodes, nodes[1]) == nodes[1:]
