"""``strata plan --machine``, ``thresholds`` and ``machines``: figures, tables, one line for mistakes."""

import inspect
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import strata
from strata.app.cli import app
from strata.app.options import planning_options
from strata.models.shapes import SHAPES

PLAN = ("plan", "tiny", "--machine", "lightcode")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def figures(*arguments: object):
    return json.loads(run(*arguments, "--json"))


def refused(*arguments: object) -> str:
    """The one line that a mistake gives."""
    line = run(*arguments, code=2)
    assert line.startswith("strata: ")
    assert line.count("\n") == 1
    return line


def test_figures_are_those_of_the_python_function() -> None:
    found = figures(*PLAN, "--seq-len", 64, "--objective", "time+energy", "--batch", 2, "--format", "int4")
    plan = strata.plan("tiny", "lightcode", "time+energy", seq_len=64, batch=2, format="int4")
    assert (found["time_s"], found["energy_j"]) == (plan.time_s, plan.energy_j)
    assert found["value"] == found["lower_bound"] == plan.lower_bound
    assert (found["objective"], found["gap"], found["L"]) == ("time+energy", 0, 64)
    assert {n: (d["ops"], d["matmuls"]) for n, d in found["devices"].items()} == {
        n: (d.ops, d.matmuls) for n, d in plan.devices.items()
    }
    assert sum(c["energy_j"] for c in found["causes"].values()) == pytest.approx(plan.energy_j)


def test_several_lengths_are_a_list() -> None:
    found = figures(*PLAN, "--seq-len", "3..7", "--phase", "decode")
    assert [f["L"] for f in found] == [3, 4, 5, 6, 7]
    assert len(figures(*PLAN, "--seq-len", "9,5")) == 2


def test_a_request() -> None:
    found = figures(*PLAN, "--prompt", 5, "--new-tokens", 3)
    plan = strata.plan("tiny", "lightcode", seq_len=5, new_tokens=3)
    assert (
        found["energy_j"]
        == plan.energy_j
        == pytest.approx(found["prefill"]["energy_j"] + found["decode"]["energy_j"])
    )
    assert figures(*PLAN, "--phase", "request", "--seq-len", 5, "--new-tokens", 3) == found
    text = run(*PLAN, "--prompt", 5, "--new-tokens", 3)
    assert "prompt 5, new tokens 3, batch 1" in text
    assert "decode" in text


def test_tables() -> None:
    text = run(*PLAN, "--seq-len", 64)
    assert "tiny prefill on lightcode · L = 64" in text
    assert "phu" in text
    assert "no plan is better" in text
    text = run(*PLAN, "--seq-len", "1..100", "--objective", "time+10*energy")
    changes = strata.thresholds("tiny", "lightcode", "time+10*energy", seq_len="1..100")
    rows = [line for line in text.splitlines() if line.startswith("│")]
    shown = [int(row.split("│")[1]) for row in rows]
    assert shown == sorted({1, *(t.length for t in changes), 100})


def test_explanations() -> None:
    text = run(*PLAN, "--seq-len", 64, "--explain", "*.mlp.down_proj")
    assert "model.layers.0.mlp.down_proj (matmul) and 1 more like it" in text
    assert text.count("(chosen)") == 1
    assert "MAC" in text
    assert "more, all other choices as they are" in text
    (found,) = figures(*PLAN, "--seq-len", 64, "--explain", "*.mlp.down_proj")
    assert [c["is_chosen"] for c in found["candidates"]].count(True) == 1
    assert all(c["terms"] for c in found["candidates"])
    assert "the only candidate" in run(*PLAN, "--seq-len", 64, "--explain", "rope")


def test_explanations_of_a_request_are_those_of_its_runs() -> None:
    why, request = ("--explain", "*.mlp.down_proj"), (*PLAN, "--prompt", 20, "--new-tokens", 9)
    runs = figures(*request, *why)
    assert [(r["run"], r["L"]) for r in runs] == [
        ("tiny prefill", 20),
        ("tiny decode", 20),
        ("tiny decode", 28),
    ]
    assert runs[0]["ops"] == figures(*PLAN, "--seq-len", 20, *why)
    for found in runs[1:]:
        assert found["ops"] == figures(*PLAN, "--phase", "decode", "--seq-len", found["L"], *why)
    text = run(*request, *why)
    assert text.index("tiny prefill · L = 20") < text.index("tiny decode · L = 20") < text.index("L = 28")
    assert run(*PLAN, "--phase", "decode", "--seq-len", 28, *why) in text
    assert len(figures(*PLAN, "--prompt", 20, "--new-tokens", 1, *why)) == 2
    assert len(figures(*PLAN, "--prompt", 20, *why)) == 1


def test_commands_that_plan_take_the_same_options() -> None:
    shared = list(inspect.signature(planning_options).parameters)
    assert len(shared) == 10
    found = []
    for name in ("plan", "sweep", "thresholds"):
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        options = {p.name: p for p in command.params}
        found.append([(p.opts, p.help, p.default, p.multiple) for p in (options[n] for n in shared)])
    assert found[0] == found[1] == found[2]


def test_rules() -> None:
    found = figures(*PLAN, "--seq-len", 64, "--devices", "gpu")
    assert (found["devices"]["phu"]["ops"], found["devices"]["cpu"]["ops"]) == (0, 0)
    found = figures(*PLAN, "--seq-len", 64, "--pin", "lm_head=cpu", "--allow", "matmul=cpu,gpu")
    assert found["devices"]["phu"]["ops"] == 0
    assert found["devices"]["cpu"]["matmuls"] >= 1


def test_a_report(tmp_path: Path) -> None:
    run(*PLAN, "--seq-len", "8,64", "--report", tmp_path / "plan.html")
    assert "tiny prefill" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize("objective", ["energy", "edp", "makespan"])
def test_a_report_of_a_request(tmp_path: Path, objective: str) -> None:
    request = ("plan", "tiny", "--machine", "lightcode", "--objective", objective, "--prompt", "20")
    found = figures(*request, "--new-tokens", "3", "--report", tmp_path / "plan.html")
    page, data = (tmp_path / "plan.html").read_text(), json.loads((tmp_path / "plan.json").read_text())
    assert "tiny prefill" in page
    assert "tiny decode · the last of 3 runs" in page
    assert (data["time_s"], data["energy_j"]) == (found["time_s"], found["energy_j"])
    assert sum(data["times_s"]) == pytest.approx(found["time_s"])
    assert sum(data["energies_j"]) == pytest.approx(found["energy_j"])
    prefill, decode = data["phases"]
    assert (prefill["lengths"], decode["lengths"]) == ([20], [20, 21, 22])
    assert decode["length"] == 22
    run(*request, "--report", tmp_path / "prompt.html")
    assert "decode" not in (tmp_path / "prompt.html").read_text()


def test_devices_and_costs_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import strata\n"
        "from strata.planner.devices.types import Cause, Estimates, Term, evaluate\n"
        "class Abacus(strata.Device):\n"
        "    pass\n"
        "@strata.op_cost(Abacus, 'softmax')\n"
        "def softmax(device, machine, workload, work, points):\n"
        "    beads = evaluate(work.flop, points)\n"
        "    term = Term(Cause.COMPUTE, device.name, beads * 1e-12, beads * 1e-18, beads, 'bead')\n"
        "    return Estimates.of([term], overlapped=False)\n"
        "devices = [strata.CPU(clock_hz=3e9), strata.GPU(clock_hz=2e9), Abacus(clock_hz=1.0)]\n"
        "machine = strata.Machine(devices)\n"
    )
    found = figures("plan", "tiny", "--machine", file, "--seq-len", 64)
    assert found["devices"]["abacus"]["ops"] == 2


COST = """
import strata
from strata.planner.devices.types import Estimates, evaluate

@strata.op_cost("gpu", "softmax")
def cost(device, machine, workload, work, points):
    return Estimates(evaluate(0, points) + 1.0, evaluate(0, points) + 1.0)
"""


def test_costs_of_a_loaded_file(tmp_path: Path) -> None:
    file = tmp_path / "costs.py"
    file.write_text(COST)
    arguments = ("plan", "tiny", "--machine", "lightcode", "--seq-len", 64, "--devices", "gpu")
    before = figures(*arguments)
    assert figures(*arguments, "--load", file)["time_s"] > 1.0 > before["time_s"]
    assert figures(*arguments) == before


def test_thresholds() -> None:
    arguments = ("thresholds", "tiny", "--machine", "lightcode", "--objective", "time+10*energy")
    found = figures(*arguments, "--seq-len", "1..500")
    wanted = strata.thresholds("tiny", "lightcode", "time+10*energy", seq_len="1..500")
    assert found["lengths"] == [t.length for t in wanted]
    first = found["thresholds"][0]
    assert (first["length"], len(first["changes"])) == (wanted[0].length, len(wanted[0].changes))
    assert set(first["changes"][0]) == {"op", "name", "works", "before", "after"}
    assert str(wanted[0].length) in run(*arguments)
    never = run(*arguments, "--seq-len", "400..401", "--devices", "gpu")
    assert "one plan is the best at all lengths" in never


def test_machines() -> None:
    text = run("machines")
    assert "lightcode-honest" in text
    assert "h200" in text
    text = run("machines", "h100")
    assert "3.35 TB/s" in text
    assert "datasheet" in text
    found = figures("machines", "h100")
    assert found["devices"] == {"gpu": "gpu"}
    assert all(n["source"] for n in found["numbers"])
    assert "h100" in {m["name"] for m in figures("machines")}
    assert "machine: got 'h1000'" in refused("machines", "h1000")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seq-len", "513"), "got a length of 513, outside the model; expected 1..512"),
        ((), "its sizes depend on L; say how long a sequence is"),
        (("--seq-len", "x"), "seq_len: got 'x'; expected a number, LO..HI"),
        (("--seq-len", "5", "--objective", "watts"), "objective: got 'watts'"),
        (("--seq-len", "5", "--pin", "softmax"), "--pin: got 'softmax'; expected PATTERN=DEVICE"),
        (("--seq-len", "5", "--allow", "=cpu"), "--allow: got '=cpu'; expected PATTERN=DEVICE,DEVICE"),
        (("--seq-len", "5", "--devices", "phu"), "the rules leave no device; gpu could do it"),
        (("--seq-len", "5", "--devices", "tpu"), "no device 'tpu'; it has cpu, phu, gpu"),
        (("--seq-len", "5", "--pin", "lstm=cpu"), "'lstm' fits no op of tiny prefill"),
        (("--seq-len", "5", "--explain", "lstm"), "explain: 'lstm' fits no op of tiny prefill"),
        (("--seq-len", "5,6", "--explain", "rope"), "--explain: got 2 lengths; expected one"),
        (("--prompt", "5", "--simulate"), "--simulate runs the model over a text; expected --phase prefill"),
        (("--prompt", "5", "--explain", "rope", "--objective", "edp"), "edp of a request is not a sum"),
        (("--prompt", "5", "--explain", "lstm"), "explain: 'lstm' fits no op of tiny prefill"),
        (("--prompt", "5", "--seq-len", "6"), "got --prompt and --seq-len; expected one of them"),
        (("--prompt", "5", "--phase", "decode"), "--prompt and --new-tokens describe a request"),
        (("--prompt", "500", "--new-tokens", "50"), "got a length of 500..549, outside the model"),
        (("--seq-len", "5", "--format", "int3"), "format: got 'int3'"),
        (("--seq-len", "5", "--phase", "score"), "phase: got 'score'; expected one of prefill, decode"),
        (("--seq-len", "5", "--graph", "x.json"), "got the model tiny and --graph x.json"),
        (("--seq-len", "5", "--shape", "tiny"), "got the model tiny and --shape tiny"),
        (("--seq-len", "5", "--dispatch"), "plan: got --dispatch; with --machine, devices are planned"),
        (("--seq-len", "5", "--range", "n=1..2"), "plan: got --range; with --machine"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*PLAN, *arguments)


def test_without_a_machine_plan_is_about_kernels() -> None:
    assert "--machine is missing" in refused("plan", "--shape", "tiny", "--seq-len", "5")
    assert "got --objective" in refused("plan", "--shape", "tiny", "--objective", "energy")


def test_bad_files(tmp_path: Path) -> None:
    graph, machine, config = tmp_path / "g.json", tmp_path / "m.toml", tmp_path / "config.json"
    graph.write_text("{}")
    assert 'got no "nodes"' in refused("plan", "--graph", graph, "--machine", "lightcode", "--seq-len", 5)
    graph.write_text("{")
    assert "not JSON" in refused("plan", "--graph", graph, "--machine", "lightcode", "--seq-len", 5)
    machine.write_text("[devices.cpu]\nkind = 'cpu'\nclock_hz = '3 GB'\n")
    assert "expected a frequency" in refused("plan", "tiny", "--machine", machine, "--seq-len", 5)
    machine.write_text(
        "profile = 'lightcode'\n[devices.phu]\nkind = 'phu'\nclock_hz = '9.7 GHz'\nsource = 'x'\n"
    )
    assert "can do the op 'take'" in refused("plan", "tiny", "--machine", machine, "--seq-len", 5)
    config.write_text(json.dumps(SHAPES["tiny"]))
    assert figures("plan", tmp_path, "--machine", "lightcode", "--seq-len", 5)["energy_j"] > 0
    config.write_text(json.dumps({"architectures": ["Mamba"]}))
    assert "Mamba" in refused("plan", config, "--machine", "lightcode", "--seq-len", 5)
