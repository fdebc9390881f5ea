"""``strata debug``: agreement, divergence and mistakes by exit code, text and JSON."""

import json

import numpy as np
import pytest
from folders import edited, linked_copy

from strata.app import session

DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def broken(monkeypatch):
    """Every model that a command opens has a wrong kernel in one node."""
    real = session.open_model

    def open_model(source):
        model = real(source)
        model.stepping_program.swap(DOWN, lambda x, w, residual, out: np.copyto(out, residual))
        return model

    monkeypatch.setattr(session, "open_model", open_model)


@pytest.fixture(scope="module")
def for_torch(small, tmp_path_factory):
    """The small model as transformers knows it."""
    folder = linked_copy(small, tmp_path_factory.mktemp("torch") / "small")
    edited("config.json", "model_type", value="llama")(folder)
    return folder


def test_agreement(strata, small):
    for options in ((), ("--end-to-end", "--function", "prefill")):
        result = strata("debug", "compare", small, *options)
        assert result.exit_code == 0, result.stdout
        assert "were compared with the interpreter" in result.stdout
        assert ": all agree\nnearest to its tolerance: " in result.stdout


def test_divergence(strata, small, broken):
    result = strata("debug", "compare", small)
    assert result.exit_code == 1
    assert "were compared with the interpreter: 1 diverge\n" in result.stdout
    assert f" of {DOWN} (matmul, <lambda>): max abs error" in result.stdout
    assert "x its tolerance" in result.stdout
    assert "\n  at [0, " in result.stdout


def test_json(strata, small, broken):
    result = strata("debug", "compare", small, "--prompt", "x = 1", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert (data["agrees"], data["first"]["node"], data["against"]) == (False, DOWN, "the interpreter")
    only = strata("debug", "compare", small, "--node", "*norm*", "--json")
    assert only.exit_code == 0
    assert all("norm" in d["node"] for d in json.loads(only.stdout)["compared"])


def test_json_has_no_infinities(strata, small, monkeypatch):
    real = session.open_model

    def open_model(source):
        model = real(source)
        model.stepping_program.swap("model.norm", lambda x, w, out: out.fill(np.nan))
        return model

    monkeypatch.setattr(session, "open_model", open_model)
    result = strata("debug", "compare", small, "--json")
    data = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))
    assert data["first"]["node"] == "model.norm"
    assert data["first"]["ratio"] == "inf"


def test_pytorch(strata, for_torch):
    result = strata("debug", "compare", for_torch, "--against", "torch", "--function", "prefill")
    assert result.exit_code == 0, result.stdout
    assert "were compared with PyTorch: all agree" in result.stdout


def test_pytorch_finds_a_wrong_kernel(strata, for_torch, monkeypatch):
    real = session.open_model

    def open_model(source):
        model = real(source)
        model.stepping_program.swap("*paged_attention", lambda *arrays: arrays[-1].fill(3))
        return model

    monkeypatch.setattr(session, "open_model", open_model)
    result = strata("debug", "compare", for_torch, "--against", "torch")
    assert result.exit_code == 1
    assert "model.layers.0.self_attn.o_proj" in result.stdout
    assert "or a node before it that nothing was compared with: " in result.stdout


def test_record_and_compare(strata, small, tmp_path, broken):
    file = tmp_path / "values.safetensors"
    result = strata("debug", "record", small, "-o", file, "--function", "score", "--prompt", "a = b")
    assert result.exit_code == 0
    assert f"{file}: " in result.stdout
    assert " values of score over " in result.stdout
    same = strata("debug", "compare", small, "--against", file)
    assert same.exit_code == 0
    assert f"were compared with {file}: all agree" in same.stdout


def test_another_program_than_was_recorded(strata, small, tmp_path, monkeypatch):
    file = tmp_path / "values.safetensors"
    assert strata("debug", "record", small, "-o", file).exit_code == 0
    real = session.open_model

    def open_model(source):
        model = real(source)
        model.stepping_program.swap(DOWN, lambda x, w, residual, out: np.copyto(out, residual))
        return model

    monkeypatch.setattr(session, "open_model", open_model)
    result = strata("debug", "compare", small, "--against", file)
    assert result.exit_code == 1
    assert DOWN in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--against", "onnx"),
            "--against: got 'onnx'; expected interpreter, torch, or a file that is there",
        ),
        (("--against", "torch", "--end-to-end"), "--end-to-end: got --against torch; expected interpreter"),
        (("--function", "encode"), "no function 'encode'; it has prefill, decode, score"),
        (("--node", "nothing"), "no node 'nothing' in decode"),
        (("--prompt", ""), "prompt: is empty"),
    ],
)
def test_mistakes(strata, small, options, message):
    result = strata("debug", "compare", small, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_pytorch_needs_the_model_folder(strata, artifact):
    result = strata("debug", "compare", artifact, "--against", "torch")
    assert result.exit_code == 2
    assert "is a compiled artifact; expected the model folder" in result.stderr
