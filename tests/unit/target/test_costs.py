"""Cost functions of the user belong to the machines that they are given to, and to no others."""

import functools
import pickle
import re
from dataclasses import replace

import pytest

import strata
from strata.core.errors import UnsupportedError, UserError
from strata.planner.devices.types import Estimates, evaluate
from strata.target.hardware import CPU, GPU, Machine, machine_text, op_cost, read_machine
from strata.target.hardware.costs import costs_in, marks_of, text_of_cost
from strata.target.hardware.parameters import parameter, with_parameters

SLOW = """
import strata
from strata.planner.devices.types import Estimates, evaluate

@strata.op_cost("gpu", "softmax")
@strata.op_cost(strata.CPU, "softmax")
def slow(device, machine, workload, work, points):
    return Estimates(evaluate(0, points) + 1.0, evaluate(0, points) + 1.0)

machine = strata.Machine([strata.CPU(clock_hz=3e9), strata.GPU(clock_hz=2e9)], name="slow")
"""


@op_cost("gpu", "softmax")
def softmax(device, machine, workload, work, points):
    return Estimates(evaluate(0, points) + 1.0, evaluate(0, points) + 1.0)


@op_cost("gpu", "add")
def add(device, machine, workload, work, points):
    return None


def test_a_machine_file_costs_ops_of_its_own_machine_only(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    before = strata.plan("tiny", "lightcode", "time", seq_len=8)
    for _ in range(2):  # and reading it twice is like reading it once
        slow = read_machine(path)
        assert [marks_of(cost) for cost in slow.costs] == [(("cpu", "softmax"), ("gpu", "softmax"))]
        assert strata.plan("tiny", path, "time", seq_len=8).time_s > 1.0
    after = strata.plan("tiny", "lightcode", "time", seq_len=8)
    assert (after.time_s, after.energy_j) == (before.time_s, before.energy_j)


def test_costs_given_to_a_call_are_of_that_call():
    arguments = {"objective": "time", "seq_len": 8, "devices": ("gpu",)}
    before = strata.plan("tiny", "h100", **arguments).time_s
    assert strata.plan("tiny", "h100", costs=[softmax], **arguments).time_s > 1.0 > before
    assert strata.plan("tiny", "h100", **arguments).time_s == before
    host = Machine([CPU(clock_hz=3e9), GPU(clock_hz=2e9)])
    changes = strata.thresholds("tiny", host, "time", seq_len="1..64", costs=[softmax])
    assert changes == strata.thresholds("tiny", host.with_costs([softmax]), "time", seq_len="1..64")


def test_a_machine_keeps_its_costs():
    machine = Machine([GPU(clock_hz=2e9)], costs=[softmax, softmax])
    assert machine.costs == (softmax,)
    assert machine.cost_of(machine.devices[0], "softmax") is softmax
    assert machine.cost_of(machine.devices[0], "add") is None
    clock = parameter(machine, "devices.gpu.clock_hz")
    assert with_parameters(machine, {clock.steps: 1e9}).costs == (softmax,)
    assert pickle.loads(pickle.dumps(machine)) == machine == replace(machine)
    assert machine != Machine([GPU(clock_hz=2e9)])
    with pytest.raises(
        UnsupportedError, match="machine custom: costs: got 1 functions, which TOML cannot say"
    ):
        machine_text(machine)


def test_costs_that_are_none():
    message = "machine custom: costs: got plain; expected functions decorated with strata.op_cost(DEVICE, OP)"

    def plain(*_):
        return None

    for wrong in (plain, [1]):
        with pytest.raises(
            UserError, match=re.escape(message if wrong is plain else "costs: got [1]; expected")
        ):
            Machine([GPU(clock_hz=2e9)], costs=[wrong])  # type: ignore[list-item]


def test_only_functions_are_decorated():
    with pytest.raises(UserError, match=r"op_cost: got functools.partial\(.*; expected a function"):
        op_cost("gpu", "add")(functools.partial(add, 1))


def test_functions_of_one_name_are_not_lost(tmp_path):
    path = tmp_path / "twice.py"
    path.write_text(
        SLOW.replace("machine = ", SLOW.partition("Estimates, evaluate")[2].replace("softmax", "add"))
    )
    message = (
        "twice.py: op_cost: got two functions slow, for softmax on cpu and softmax on gpu and add on cpu; "
        "give each a name of its own"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read_machine(path)
    assert costs_in({"a": softmax, "b": add, "c": softmax, "d": 1}) == (softmax, add)


def test_the_text_of_a_cost_says_what_it_does():
    def of(source):
        names = {"op_cost": op_cost}
        exec(f"@op_cost('gpu', 'add')\ndef cost(*a):\n    {source}", names)
        return text_of_cost(names["cost"])

    assert of("return [x + 1 for x in a]") == of("return [x + 1 for x in a]")
    texts = [of(f"return {e}") for e in ("[x + 1 for x in a]", "[x + 2 for x in a]", "a in {1, 2}", "min(a)")]
    assert len({*texts}) == 4
    assert of("return a in {'y', 'x'}") == of("return a in {'x', 'y'}")
