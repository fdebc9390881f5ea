"""Calibration end to end, on models that are too small to say anything but run in no time."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import strata
from strata.app import calibration
from strata.app.cli import app
from strata.core.errors import UserError
from strata.core.knobs import knobs
from strata.models.shapes import SHAPES
from strata.target.hardware.fitted import FittedCPU
from strata.target.hardware.read import read_machine, this_machine_path


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two tiny models, few passes, one repetition, and a cache of our own for the result."""
    monkeypatch.setattr(calibration, "LENGTHS", (2, 16))
    monkeypatch.setattr(calibration, "CONTEXTS", (8,))
    monkeypatch.setattr(calibration, "OTHERS_LENGTHS", (2,))
    monkeypatch.setattr(calibration, "OTHERS_CONTEXTS", (8,))
    monkeypatch.setattr(calibration, "REPEATS", 1)
    monkeypatch.setattr(calibration, "_configs", lambda format_, target: [("tiny", dict(SHAPES["tiny"]))])
    monkeypatch.setattr("strata.app.commands.calibrate._CHECKED", (("prefill", 5), ("decode", 20)))
    with knobs(cache_dir=tmp_path):
        yield tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *arguments])


def test_this_computer_becomes_a_machine_for_plans(small):
    result = run("--format", "f32", "--check", "tiny", "--threads", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["machine"] == str(this_machine_path())
    ops = {(f["op"], f["weight_bits"]) for f in found["families"]}
    assert {("matmul", 32), ("rms_norm", 0), ("paged_attention", 0), ("*", 0)} <= ops
    prefill, decode = found["predicted"]["f32"]
    assert (prefill["function"], prefill["length"]) == ("prefill", 5)
    assert (decode["function"], decode["length"]) == ("decode", 20)
    for p in (prefill, decode):
        assert p["predicted_s"] == pytest.approx(sum(time_s for *_, time_s in p["kernels"]))
        assert p["error"] == pytest.approx(p["predicted_s"] / p["measured_s"] - 1)
        assert 0 <= p["share_within_25_percent"] <= 1
        assert p["bandwidth"] > 0
    machine = read_machine("this")
    assert isinstance(machine.devices[0], FittedCPU)
    assert {source for part in (*machine.devices, *machine.memories) for _, source in part.sources}
    plan = strata.plan("tiny", "this", objective="time", seq_len=16, format="f32")
    assert plan.time_s > 0
    assert plan.gap() == 0


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_weights_of_few_bits_are_families_of_their_own(small, format):
    result = run("--format", format, "--check", "tiny", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ops = {(f["op"], f["weight_bits"]) for f in found["families"]}
    assert ("matmul", 8 if format == "int8" else 4) in ops
    assert all(time_s > 0 for p in found["predicted"][format] for *_, time_s in p["kernels"])


def test_the_table_and_a_check_later(small):
    first = run("--format", "f32", "--output", str(small / "mine.toml"))
    assert "families of kernels" in first.stdout
    again = run("--format", "f32", "--only-check", "--check", "tiny", "--output", str(small / "mine.toml"))
    assert again.exit_code == 0
    assert "lengths that the calibration did not see" in again.stdout
    assert " GB/s " in again.stdout
    assert "families" not in again.stdout


def test_bad_input(small):
    assert "--only-check needs a shape" in run("--only-check").stderr
    assert (
        "'this' is not measured yet; run: strata calibrate" in run("--only-check", "--check", "tiny").stderr
    )
    assert "no shape 'none'" in run("--check", "none").stderr
    assert run("--format", "int3").exit_code == 2


def test_this_before_it_is_measured(small):
    with pytest.raises(UserError, match="'this' is not measured yet; run: strata calibrate"):
        read_machine("this")


@pytest.mark.parametrize(
    ("bandwidths", "kernels_s", "tries"),
    [
        ([30e9] * 2, [1.02], 1),
        ([30e9, 60e9, 62e9], [1.0, 1.0], 2),  # memory changed its speed in the first one
        ([30e9] * 4, [1.3, 0.8, 1.0], 3),  # kernels together took more, then less than the whole
        ([30e9] * 9, [1.3] * 9, calibration.TRIES),
    ],
)
def test_a_disturbed_pass_is_measured_again(monkeypatch, bandwidths, kernels_s, tries):
    passes = [SimpleNamespace(total_s=t, whole_s=1.0, nodes=()) for t in kernels_s]
    left, measured_bandwidths = list(passes), iter(bandwidths)
    monkeypatch.setattr(calibration, "measure_bandwidth", lambda *_: next(measured_bandwidths))
    monkeypatch.setattr(calibration, "_profile", lambda *_: left.pop(0))
    model = SimpleNamespace(threads=2, workload=lambda function: SimpleNamespace(works=()))
    found = calibration.measured_pass(model, "decode", 8, repeats=1)
    assert len(passes) - len(left) == tries
    assert found.profile is passes[tries - 1]
    assert found.bandwidth == pytest.approx(sum(bandwidths[tries - 1 : tries + 1]) / 2)
