"""``strata compile``: what is written, what is printed, what is left alone."""

import json

import pytest
from folders import linked_copy, missing

from strata.engine.generate import LanguageModel
from strata.runtime.artifact import open_artifact, read_record


def test_artifact_and_figures(strata, small, tmp_path):
    out = tmp_path / "some" / "where"
    result = strata("compile", small, "-o", out, "--max-context", 64, "--max-batch", 3, "--json")
    figures = json.loads(result.stdout)
    assert figures["artifact"] == str(out)
    assert figures["weights_bytes"] == (out / "weights.safetensors").stat().st_size > 4 * 4096 * 32
    assert figures["code_bytes"] == (out / "code.bin").stat().st_size > 0
    assert figures["seconds"] > 0
    config = read_record(out).config
    assert (config["max_context"], config["max_batch"], config["format"]) == (64, 3, "f32")
    plan = json.loads((out / "plan.json").read_bytes())
    assert set(plan) == {"prefill", "decode", "score"}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (small / name).read_bytes()


def test_an_artifact_is_replaced(strata, small, tmp_path):
    out = tmp_path / "out"
    first = strata("compile", small, "-o", out, "--format", "f16")
    assert first.stdout.startswith(f"{out}: weights 0.3 MB, code 0.")
    assert strata("compile", small, "-o", out).exit_code == 0
    assert open_artifact(out).record.config["format"] == "f32"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_crash_leaves_nothing(strata, small, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("strata.runtime.artifact._take_place", crash)
    assert strata("compile", small, "-o", tmp_path / "out").exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_print_after(strata, small, tmp_path):
    result = strata(
        "compile", small, "-o", tmp_path / "out", "--print-after", "fuse", "--dump", tmp_path / "d"
    )
    assert "// graph IR after fuse" in result.stderr
    assert len(list((tmp_path / "d").iterdir())) > 5


def test_a_model_without_tokenizer_runs_on_token_ids(strata, small, tmp_path):
    folder = linked_copy(small, tmp_path / "model")
    missing("tokenizer.json")(folder)
    assert strata("compile", folder, "-o", tmp_path / "out").exit_code == 0
    model = LanguageModel.load(tmp_path / "out")
    assert len(model.generate([1, 2, 3], max_tokens=4).token_ids) == 4
    result = strata("generate", "x", "--artifact", tmp_path / "out")
    assert result.exit_code == 2
    assert "has no tokenizer.json" in result.stderr


@pytest.mark.parametrize("option", ["--max-context", "--max-batch"])
def test_limits_are_those_of_the_program(strata, small, tmp_path, option):
    strata("compile", small, "-o", tmp_path / "out", option, 2)
    model = LanguageModel.load(tmp_path / "out")
    assert getattr(model, option[2:].replace("-", "_")) == 2
