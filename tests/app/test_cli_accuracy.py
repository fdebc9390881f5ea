"""``strata accuracy`` and ``strata plan --machine ... --simulate``."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from strata.app.cli import app
from strata.app.simulation import simulated
from strata.assets import DEMO_MODEL
from strata.compiler.accuracy import measure_sensitivity, sweep_numerics
from strata.compiler.machine_plan import plan
from strata.compiler.simulate import simulate
from strata.core.errors import UserError

MACHINE = ("--machine", "lightening-transformer")
PINS = ("--pin", "*_proj=phu", "--pin", "*.scores=gpu", "--pin", "*.mix=gpu", "--pin", "lm_head=gpu")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def short(monkeypatch):
    """Simulations of few tokens."""
    monkeypatch.setattr("strata.compiler.simulate.simulate", partial(simulate, tokens=32))


def test_a_plan_and_its_perplexity(short):
    words = ("plan", *MACHINE, *PINS, "--seq-len", 64, "--simulate")
    figures = json.loads(run(*words, "--json"))
    simulation = figures["simulation"]
    assert (simulation["photonic"], simulation["products"], simulation["num_tokens"]) == (32, 49, 32)
    assert figures["devices"]["phu"]["matmuls"] == 32
    assert simulation["divergence_nats"] > 0
    text = run(*words)
    assert f"32 of 49 products on photonic units: perplexity {simulation['perplexity']:.4f}" in text
    assert f"exact {simulation['exact_perplexity']:.4f} (32 tokens)" in text
    assert "simulation" not in json.loads(run(*words[:-1], "--json"))


def test_plans_that_have_no_perplexity(short, tmp_path):
    words = ("plan", *MACHINE, "--simulate")
    assert "--simulate: got 16 lengths; expected one" in run(*words, "--seq-len", "1..16", code=2)
    assert "--simulate runs the model over a text" in run(*words, "--prompt", 8, "--new-tokens", 2, code=2)
    assert "gpt2-124m: no such folder" in run(*words, "--shape", "gpt2-124m", "--seq-len", 8, code=2)
    assert "--machine is missing" in run("plan", "--simulate", code=2)


def test_graphs_have_no_weights(tmp_path):
    found = plan("tiny", "lightcode", seq_len=8)
    with pytest.raises(UserError, match=r"--simulate: .*graph\.json has no weights; expected a model folder"):
        simulated(found, None, tmp_path / "graph.json")


def test_a_sweep_of_bits_and_noise():
    words = ("accuracy", *MACHINE, *PINS, "--bits", "4,7", "--noise", "0,0.02", "--tokens", 32)
    rows = json.loads(run(*words, "--json"))
    pins = {"*_proj": "phu", "*.scores": "gpu", "*.mix": "gpu", "lm_head": "gpu"}
    other = json.loads(run(*words, "--seed", 5, "--json"))
    same = sweep_numerics(DEMO_MODEL, MACHINE[1], bits=(4, 7), noise=(0.0, 0.02), tokens=32, pins=pins)
    assert [(r["bits"], r["noise"]) for r in rows] == [(4, 0), (4, 0.02), (7, 0), (7, 0.02)]
    assert [r["perplexity"] for r in rows] == [r.perplexity for r in same]
    changed = [a["perplexity"] != b["perplexity"] for a, b in zip(rows, other, strict=True)]
    assert changed == [False, True, False, True]  # a seed matters where there is noise
    assert [r["front"] for r in rows] == [True, True, True, True]  # more bits: more energy, less divergence
    text = run(*words)
    assert "demo model on lightening-transformer, 32 tokens" in text
    assert f"{rows[3]['perplexity']:.4f}" in text


def test_losses_of_kinds_of_products():
    words = ("accuracy", *MACHINE, "--losses", "--tokens", 32)
    found = json.loads(run(*words, "--json"))
    same = measure_sensitivity(DEMO_MODEL, MACHINE[1], tokens=32)
    assert [g["divergence_nats"] for g in found["groups"]] == [
        g.simulation.divergence_nats for g in same.groups
    ]
    assert found["together"][0]["additivity"] == same.additivity("phu")
    text = run(*words)
    assert "model.layers.*.mlp.down_proj" in text
    assert f"over the sum of the groups: {same.additivity('phu'):.3f}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "4,x"), "--bits: got '4,x'; expected whole numbers with commas"),
        (("--noise", ""), "--noise: got ''; expected numbers with commas"),
        (("--bits", "1"), "dac_bits: got 1; expected 2..20 bits or None"),
        (("--machine", "h100"), "machine h100: no photonic unit; it has gpu (gpu)"),
        (("--pin", "phu"), "--pin: got 'phu'; expected PATTERN=DEVICE"),
        (("--seed", "-1"), "simulate: seed: got -1; expected 0 or more"),
    ],
)
def test_mistakes(options, message):
    line = run("accuracy", "--tokens", 8, *options, code=2)
    assert line.startswith("strata: ")
    assert message in line
    assert line.count("\n") == 1
