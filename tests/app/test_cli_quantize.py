"""``strata quantize`` and ``strata perplexity`` on a small model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hf_models import make_tokenizer
from quantized_folders import LLAMA, float_tensors, write_folder

from strata.app.commands.perplexity import split_formats
from strata.core.errors import UserError

TEXT = "def read_lines(path):\n    with open(path) as file:\n        return file.read()\n" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("quantize") / "model", LLAMA, float_tensors(LLAMA))
    make_tokenizer(folder)
    (folder / "heldout.txt").write_text(TEXT[:200])
    return folder


@pytest.fixture(scope="module")
def quantized(folder: Path, strata) -> Path:
    output = folder.parent / "int4"
    result = strata("quantize", folder, "--format", "q4", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert "int4 by search: 8 weights" in result.stdout
    assert "int4:asymmetric by search: 2 weights" in result.stdout
    assert f"{output}: 4.60 bits per weight" in result.stdout
    return output


def test_quantized_folder_generates(strata, quantized):
    result = strata("generate", "def f", "-m", quantized, "--max-tokens", 3, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["generated_tokens"] == 3


def test_calibrated(strata, folder, tmp_path):
    text = tmp_path / "text.py"
    text.write_text(TEXT)
    options = ("--format", "int4;lm_head=int8", "--calibrate", text, "--tokens", 256, "--json")
    result = strata("quantize", folder, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["format"] == "int4;lm_head=int8"
    assert report["bytes"] < report["source_bytes"] / 2
    by_name = {w["name"]: w for w in report["weights"]}
    head = by_name["lm_head.weight"]
    assert (head["format"], head["method"], head["shape"]) == ("int8", "gptq", [320, 64])
    assert head["relative_error"] < 0.01
    assert by_name["model.embed_tokens.weight"]["method"] == "search"


def test_perplexity_of_formats(strata, folder):
    options = ("--window", 64, "--stride", 32, "--json")
    result = strata("perplexity", folder, "--format", "f32,int8:group=32,asymmetric", *options)
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)
    assert (first["format"], second["format"]) == ("f32", "int8:group=32,asymmetric")
    assert first["difference"] == 0.0
    assert abs(second["difference"]) < 0.01
    assert first["tokens"] == second["tokens"]
    assert 100 < first["perplexity"] < 2000  # random weights: about as good as guessing among 320
    bits = np.log2(first["perplexity"]) * first["tokens"]
    assert first["bits_per_byte"] == pytest.approx(bits / 200)


def test_perplexity_of_models(strata, folder, quantized, tmp_path):
    """Quantised folders are run as they are stored; the text may be another, or only its beginning."""
    text = tmp_path / "text"
    text.write_text(TEXT)
    options = ("--text", text, "--tokens", 50, "--window", 64)
    result = strata("perplexity", quantized, *options, "--json")
    assert result.exit_code == 0, result.stderr
    (score,) = json.loads(result.stdout)
    assert (score["model"], score["format"], score["tokens"]) == (str(quantized), "int4", 49)
    result = strata("perplexity", folder, quantized, "--format", "f32", *options)
    assert result.exit_code == 0, result.stderr
    assert "49 tokens" in result.stdout
    assert result.stdout.count("f32") == 2
    assert "+0.000%" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("quantize", "{folder}", "-o", "{folder}"), "exists already; it is not overwritten"),
        (("quantize", "{folder}", "-o", "x", "--format", "int5"), "format: got 'int5'; expected f32"),
        (("quantize", "{folder}", "-o", "x", "--method", "y"), "method: got 'y'; expected nearest or search"),
        (("quantize", "{folder}", "-o", "x", "--format", "int4;*up=int8"), "pattern '*up' fits no weight"),
        (("quantize", "nowhere", "-o", "x"), "nowhere: no such folder"),
        (("perplexity", "{folder}", "--format", "f32,int9"), "format: got 'int9'; expected f32"),
        (("perplexity", "{folder}", "--format", ","), "--format: got ','; expected formats like f32,bf16"),
        (("perplexity", "{folder}", "--format", "f32", "--window", "1000"), "got window 1000, stride 500"),
        (("perplexity", "{folder}", "--format", "f32", "--tokens", "1"), "perplexity: got 1 tokens"),
        (("perplexity", "{folder}", "--format", "f32", "--text", "missing"), "missing: No such file"),
        (("perplexity", "{folder}", "--format", "f32", "--text", "{folder}/model.safetensors"), "no UTF-8"),
    ],
)
def test_mistakes(strata, folder, options, message):
    result = strata(*(option.format(folder=folder) for option in options))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_formats_with_commas():
    assert split_formats("f32, int4:group=64,asymmetric,int8") == ["f32", "int4:group=64,asymmetric", "int8"]
    assert split_formats("int4;a=int8:asymmetric,group=64,stored") == [
        "int4;a=int8:asymmetric,group=64",
        "stored",
    ]
    with pytest.raises(UserError, match="--format: got ' '; expected formats like"):
        split_formats(" ")
