"""``strata.plan`` and ``strata.thresholds``: models, lengths, requests, rules, and what is refused."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import strata
from strata.compiler.machine_plan import lengths_of
from strata.compiler.workloads import WorkloadOptions, read_workload
from strata.core.errors import ParseError, UserError
from strata.frontend import nn
from strata.models import build, shape_config
from strata.models.shapes import SHAPES
from strata.models.workload import model_workload
from strata.planner.devices.request import RequestPlan
from strata.planner.devices.result import MachinePlan, totals

LIGHT = strata.Machine(
    [
        strata.CPU(clock_hz=3.208e9),
        strata.PHU(clock_hz=9.7e9, multiplex=20),
        strata.GPU(clock_hz=1.98e9),
    ],
    profile="lightcode",
)
RELAY = Path(__file__).parents[2] / "data" / "relay" / "gpt2_prefill_graph.json.gz"
MIXED = "time+10*energy"  # its plan changes at a few lengths


def plan(model: Any = "tiny", machine: Any = LIGHT, **more: Any) -> MachinePlan:
    found = strata.plan(model, machine, **more)
    assert isinstance(found, MachinePlan)
    return found


def request(model: Any = "tiny", machine: Any = LIGHT, **more: Any) -> RequestPlan:
    found = strata.plan(model, machine, phase="request", **more)
    assert isinstance(found, RequestPlan)
    return found


class Perceptron(nn.Module):
    def __init__(self) -> None:
        self.up = nn.Linear(16, 64)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return nn.op.relu(self.up(x))


def exported() -> nn.Exported:
    return Perceptron().export({"forward": {"x": nn.spec.Tensor([nn.spec.dim("n", 1, 64), 16], "f32")}})


# --- models ---------------------------------------------------------------------------------------


def test_a_model_is_whatever_strata_reads(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SHAPES["tiny"]))
    models = [
        "tiny",
        str(tmp_path),
        tmp_path,
        config,
        shape_config("tiny"),
        model_workload(shape_config("tiny")),
    ]
    models.append(build(shape_config("tiny"), "f16").module)
    energies = {plan(model, seq_len=33).energy_j for model in models}
    assert len(energies) == 1
    assert plan(exported(), seq_len=5).devices["phu"].ops == 1
    assert plan(exported().module["forward"], seq_len=5).energy_j == plan(exported(), seq_len=5).energy_j


def test_graph_executor_json(tmp_path):
    nodes = [
        {"op": "null", "name": "input_ids", "inputs": []},
        {"op": "null", "name": "w", "inputs": []},
        {
            "op": "tvm_op",
            "name": "d",
            "attrs": {"func_name": "tvmgen_default_fused_nn_dense", "num_outputs": "1"},
            "inputs": [[0, 0, 0], [1, 0, 0]],
        },
    ]
    graph = {"nodes": nodes, "attrs": {"shape": ["list_shape", [[1, 7], [32, 7], [1, 32]]]}}
    path = tmp_path / "graph.json.gz"
    path.write_bytes(gzip.compress(json.dumps(graph).encode()))
    assert plan(path, seq_len=3, traced_len=7).graph.workload.works[0].op == "dense"
    with pytest.raises(UserError, match="got format, which has no meaning for this model"):
        plan(path, seq_len=3, format="int4")
    with pytest.raises(UserError, match="got phase decode; it is one run of its own"):
        plan(path, seq_len=3, phase="decode")
    with pytest.raises(UserError, match="all its sizes are fixed: leave the length out"):
        plan(path, seq_len=3, traced_len=0)
    assert plan(path, traced_len=0).energy_j > 0
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ParseError, match='got no "nodes"'):
        plan(path, seq_len=3)


def test_models_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"got 'gpt5'; expected a folder .*one of the shapes tiny, tinyllama"):
        plan("gpt5", seq_len=1)
    with pytest.raises(UserError, match="got the module Perceptron; expected what its export"):
        plan(Perceptron(), seq_len=1)
    with pytest.raises(UserError, match="model: got int; expected a path"):
        plan(7, seq_len=1)
    with pytest.raises(UserError, match=r"has no config.json"):
        plan(tmp_path, seq_len=1)
    with pytest.raises(UserError, match="got batch, which has no meaning for this model"):
        plan(model_workload(shape_config("tiny")), seq_len=1, batch=2)
    with pytest.raises(UserError, match="plan: no option 'bits'; it has batch, format"):
        plan(seq_len=1, bits=3)


def test_options_reach_the_workload():
    options = WorkloadOptions(batch=3, format="int4", kv_dtype="int8", activations="bf16", max_context=9)
    workload = read_workload("tiny", "decode", options)
    values = {v.name: v for v in workload.values}
    assert values["model.layers.0.mlp.down_proj.weight"].bits == 4.5
    assert values["cache.0.keys"].bits == 10  # codes, and an f32 scale per head of 16
    assert values["model.layers.0.add"].bits == 16
    assert values["lm_head"].shape == (3, 512)
    assert workload.dims[0].hi == 8
    kernels = read_workload("tiny", options=WorkloadOptions(granularity="kernels"))
    assert len(kernels.works) < len(read_workload("tiny").works)


@pytest.mark.parametrize("given", [RELAY, exported(), read_workload("tiny")])
def test_graphs_are_planned_op_by_op(given):
    kernels = strata.Machine([strata.CPU(clock_hz=1e9)], "measured", "fitted")
    message = r"got granularity kernels, .* profile fitted .*; expected ops, .* add --granularity ops "
    with pytest.raises(UserError, match=message):
        strata.plan(given, kernels)
    with pytest.raises(UserError, match=message):
        strata.plan(given, "lightcode", granularity="kernels")
    with pytest.raises(UserError, match="granularity: got 'op'; expected one of ops, kernels"):
        strata.plan(given, "lightcode", granularity="op")
    with pytest.raises(UserError, match="phase: got 'score'; expected one of prefill, decode"):
        strata.plan(given, "lightcode", phase="score")
    for options in (WorkloadOptions(granularity="ops"), WorkloadOptions()):
        assert len(read_workload(given, options=options).works) > 0


# --- lengths --------------------------------------------------------------------------------------


def test_several_lengths_are_as_many_plans():
    lengths = [1, 9, 10, 300]
    found = plan(seq_len=lengths, objective=MIXED)
    alone = [plan(seq_len=n, objective=MIXED) for n in lengths]
    np.testing.assert_array_equal(found.energies_j, [p.energy_j for p in alone])
    np.testing.assert_array_equal(found.times_s, [p.time_s for p in alone])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (5, [5]),
        ("5", [5]),
        ("2..4", [2, 3, 4]),
        ("4, 9", [4, 9]),
        (range(2, 9, 3), [2, 5, 8]),
        (np.array([3, 1]), [3, 1]),
    ],
)
def test_ways_to_say_lengths(given, wanted):
    assert lengths_of(given).tolist() == wanted


@pytest.mark.parametrize("given", ["4..1", [], range(0), range(1 << 21)])
def test_too_few_or_too_many_lengths(given):
    with pytest.raises(UserError, match=r"seq_len: got \d+ lengths; expected 1..1048576"):
        lengths_of(given)


@pytest.mark.parametrize("given", ["", "x", "1..", "..3", "1..2..3", "-4", "1,,2", "1.5"])
def test_texts_that_are_no_lengths(given):
    with pytest.raises(UserError, match=r"seq_len: got .*; expected a number, LO..HI"):
        lengths_of(given)


@pytest.mark.parametrize("given", [[1.5], [[1, 2]], ["a"]])
def test_things_that_are_no_lengths(given):
    with pytest.raises(UserError, match="expected whole numbers"):
        lengths_of(given)


def test_lengths_outside_the_model():
    with pytest.raises(
        UserError, match=r"gpt2-124m prefill: got a length of 1400, outside the model; expected 1..1024"
    ):
        plan("gpt2-124m", seq_len=1400)
    message = r"got a length of 1..2000, .* add --max-context 2000 \(in Python max_context=2000\)$"
    with pytest.raises(UserError, match=message):
        plan("gpt2-124m", seq_len="1..2000")
    assert plan("gpt2-124m", seq_len="1..2000", max_context=2000).graph.num_points == 2000
    with pytest.raises(UserError, match=r"got a length of 0, outside the model; expected 1..1024$"):
        plan("gpt2-124m", seq_len=0)
    message = r"decode: got a length of 1024, outside the model; expected 1..1023; .* --max-context 1025 "
    for given in ({"phase": "decode", "seq_len": 1024}, {"seq_len": 1020, "new_tokens": 5}):
        with pytest.raises(UserError, match=message.replace("1024,", r"(?:1024|1020..1024),")):
            plan("gpt2-124m", **given)
    with pytest.raises(UserError, match=message):
        strata.sweep("gpt2-124m", "lightcode", phase="decode", seq_len=1024)
    assert plan("gpt2-124m", phase="decode", seq_len=1024, max_context=1025).energy_j > 0
    with pytest.raises(
        UserError, match=r"its sizes depend on L; say how long a sequence is: --seq-len \(in Python seq_len\)"
    ):
        plan("gpt2-124m")
    assert plan("gpt2-124m", seq_len=131072, max_context=131072).energy_j > 0


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["energy", "time", MIXED])
def test_a_request_is_the_sum_of_its_runs(objective):
    found = request(seq_len=7, new_tokens=4, batch=2, objective=objective)
    prefill = plan(seq_len=7, batch=2, objective=objective)
    steps = [plan(phase="decode", seq_len=n, batch=2, objective=objective) for n in (7, 8, 9, 10)]
    assert found.time_s == pytest.approx(sum(p.time_s for p in (prefill, *steps)), rel=1e-12)
    assert found.energy_j == pytest.approx(sum(p.energy_j for p in (prefill, *steps)), rel=1e-12)
    assert found.gap < 1e-12
    for name, load in found.devices.items():
        alone = [p.devices[name] for p in (prefill, *steps)]
        assert (load.ops, load.matmuls) == (sum(d.ops for d in alone), sum(d.matmuls for d in alone))
        assert load.energy_j == pytest.approx(sum(d.energy_j for d in alone), rel=1e-12)
        assert load.time_s == pytest.approx(sum(d.time_s for d in alone), rel=1e-12)


def test_the_product_of_a_request_is_that_of_its_sums():
    found = request(seq_len=20, new_tokens=3, objective="edp")
    assert found.value == pytest.approx(found.time_s * found.energy_j)
    assert found.gap == 0
    for part in found.plans:  # costs belong to the choices, and no run alone is better than its bound
        time_s, energy_j = totals(part.graph, part.choices)
        np.testing.assert_array_equal(time_s, part.times_s)
        np.testing.assert_array_equal(energy_j, part.energies_j)
        assert (part.values >= part.bounds * (1 - 1e-12)).all()
    weights = [f"time+{10.0**k!r}*energy" for k in range(-3, 6)]
    for other in ("time", "energy", *weights):
        p = request(seq_len=20, new_tokens=3, objective=other)
        assert found.value <= p.time_s * p.energy_j * (1 + 1e-12)


def test_a_request_without_new_tokens_is_its_prompt():
    found = request(seq_len=7)
    assert found.decode is None
    assert found.energy_j == plan(seq_len=7).energy_j


def test_requests_that_are_none():
    with pytest.raises(UserError, match="got a prompt of None tokens; expected one number"):
        request(new_tokens=3)
    with pytest.raises(UserError, match=r"got a prompt of '1..3' tokens; expected one number"):
        request(seq_len="1..3")
    with pytest.raises(UserError, match="got -1 new tokens"):
        request(seq_len=3, new_tokens=-1)
    with pytest.raises(UserError, match="got new_tokens and phase decode; expected phase request"):
        strata.plan("tiny", LIGHT, phase="decode", seq_len=3, new_tokens=2)
    with pytest.raises(UserError, match=r"tiny decode: got a length of 500..529, outside the model"):
        request(seq_len=500, new_tokens=30)


# --- machines and rules ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "gpt2-124m"])  # with a head of its own, and with a tied one
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("granularity", ["ops", "kernels"])
def test_the_head_is_called_lm_head(model, phase, granularity):
    found = strata.plan(
        model, LIGHT, seq_len=5, phase=phase, granularity=granularity, pins={"lm_head": "cpu"}, format="int8"
    )
    (head,) = (k for k, w in enumerate(found.graph.workload.works) if w.name == "lm_head")
    assert found.device_of(head) == "cpu"
    work, values = found.graph.workload.works[head], found.graph.workload.values
    assert work.contraction is not None
    assert work.contraction.cols == next(values[k].shape[-1] for k in work.outputs)


def test_rules():
    found = plan(seq_len=5, pins={"lm_head": "cpu"}, allowed={"rms_norm": ("cpu", "gpu")})
    works = {w.name: k for k, w in enumerate(found.graph.workload.works)}
    assert found.device_of(works["lm_head"]) == "cpu"
    assert plan(seq_len=5, devices=("gpu",)).devices["gpu"].ops == len(works)
    with pytest.raises(UserError, match="the rules leave no device; gpu could do it"):
        plan(seq_len=5, devices=("phu",))


def test_machines_by_name_and_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import strata\nmachine = strata.Machine([strata.GPU(clock_hz=1.98e9)], profile='lightcode')\n"
    )
    assert plan(machine=path, seq_len=5).devices["gpu"].ops > 0
    assert plan(machine="h100", seq_len=5).energy_j > 0
    with pytest.raises(UserError, match="machine: got 'h1000'"):
        plan(machine="h1000", seq_len=5)


def test_a_machine_without_electronics():
    light = strata.Machine([strata.PHU(clock_hz=9.7e9)], profile="lightcode")
    with pytest.raises(
        UserError, match=r"no device of machine custom can do the op 'take'; it has phu \(phu\)"
    ):
        plan(machine=light, seq_len=5)


def test_nothing_carries_over():
    before = plan(seq_len=64, objective=MIXED)
    plan("gpt2-124m", seq_len=9, format="int4", batch=4, pins={"softmax": "gpu"})
    request(seq_len=5, new_tokens=2)
    after = plan(seq_len=64, objective=MIXED)
    np.testing.assert_array_equal(before.choices, after.choices)
    assert (before.time_s, before.energy_j) == (after.time_s, after.energy_j)


# --- thresholds -----------------------------------------------------------------------------------


def test_thresholds_are_where_plans_change():
    found = strata.thresholds("tiny", LIGHT, MIXED, seq_len="1..200")
    assert found
    everywhere = plan(seq_len="1..200", objective=MIXED)
    for threshold in found:
        before, after = (plan(seq_len=n, objective=MIXED) for n in (threshold.length - 1, threshold.length))
        for change in threshold.changes:
            assert {before.device_of(k) for k in change.works} == {change.before}
            assert {after.device_of(k) for k in change.works} == {change.after}
    changed = (everywhere.choices[:, 1:] != everywhere.choices[:, :-1]).any(axis=0).nonzero()[0] + 2
    assert [t.length for t in found] == changed.tolist()


def test_thresholds_go_beyond_the_model():
    assert strata.thresholds("tiny", LIGHT, MIXED, seq_len=range(1, 2000)) == strata.thresholds(
        "tiny", LIGHT, MIXED, seq_len=range(1, 2000), max_context=4096
    )
    assert strata.thresholds("tiny", LIGHT, MIXED, phase="decode")[-1].length > 512


def test_thresholds_want_a_range():
    with pytest.raises(UserError, match=r"thresholds: got the lengths .*; expected all of a range"):
        strata.thresholds("tiny", LIGHT, MIXED, seq_len="1,5")


# --- size and speed -------------------------------------------------------------------------------

LEAN = """
import resource, sys
import strata
strata.plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
strata.plan("llama-2-7b", "lightcode", seq_len=1400)
heavy = [name for name in ("torch", "llvmlite", "tvm_ffi", "matplotlib") if name in sys.modules]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *heavy)
"""


def test_llama_2_7b_needs_little_memory_and_no_compiler():
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    extra_kib, *heavy = done.stdout.split()
    assert not heavy
    assert int(extra_kib) < 100 * 1024
