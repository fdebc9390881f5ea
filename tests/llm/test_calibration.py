"""Calibration: second moments against NumPy, and codes that are better for it."""

from pathlib import Path

import numpy as np
import pytest
from hf_models import make_tokenizer
from quantized_folders import LLAMA, float_tensors, write_folder

from strata.compiler.api import compile_definition
from strata.compiler.artifact_cache import Options
from strata.compiler.quantize import quantize
from strata.core.errors import UserError
from strata.core.weight_format import parse_format_choice
from strata.engine.generate import LanguageModel
from strata.engine.tokenizer import Tokenizer
from strata.models import Checkpoint, build, read_config
from strata.models.quantize import convert
from strata.models.quantize.calibrate import PIPELINE, Calibration, calibration_sequences
from strata.models.quantize.convert import quantize_folder

TEXT = "def read_lines(path):\n    with open(path) as file:\n        return file.read()\n" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("float") / "model", LLAMA, float_tensors(LLAMA))
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Calibration:
    options = Options("f32", max_batch=1, pipeline=PIPELINE)
    definition = build(read_config(folder), "f32", max_tokens=64, max_batch=1)
    program = compile_definition(definition, options).program(definition.load(Checkpoint(folder)), 1)
    tokenizer = Tokenizer.from_folder(folder)
    return Calibration(LanguageModel(program, tokenizer), calibration_sequences(tokenizer, [TEXT], 128, 300))


def test_hessians_are_second_moments(folder: Path, calibration: Calibration) -> None:
    names = list(build(read_config(folder), "int4").formats)
    hessians = calibration.hessians(names)
    # The table of the embedding is read, not multiplied by.
    assert set(hessians) == set(names) - {"model.embed_tokens.weight"}
    params = dict(build(read_config(folder), "f32").load(Checkpoint(folder)))
    x = params["model.embed_tokens.weight"][np.concatenate(calibration.sequences)].astype(np.float32)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    x = x * params["model.layers.0.input_layernorm.weight"].astype(np.float32)
    qkv = hessians["model.layers.0.self_attn.qkv_proj.weight"]
    np.testing.assert_allclose(qkv, x.T @ x / calibration.num_tokens, rtol=1e-3, atol=1e-3)
    # Nothing is left behind, and some weights at a time are as good as all.
    again = calibration.hessians(["lm_head.weight"])
    assert list(again) == ["lm_head.weight"]
    np.testing.assert_array_equal(again["lm_head.weight"], hessians["lm_head.weight"])


def test_calibrated_folder(
    folder: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "HESSIAN_BYTES", 4 * 64**2 * 3)  # several rounds
    rounds: list[str] = []
    report = quantize_folder(
        folder,
        tmp_path / "out",
        parse_format_choice("int4"),
        calibration=calibration,
        progress=lambda done, total, name: rounds.append(name),
    )
    methods = {w.name: w.method for w in report.weights}
    assert methods.pop("model.embed_tokens.weight") == "search"
    assert set(methods.values()) == {"gptq"}
    assert rounds.count("(calibrating)") > 2
    ids = np.concatenate(calibration.sequences)[:100]
    errors = [logit_error(folder, other, ids) for other in (tmp_path / "out", None)]
    assert errors[0] < 0.8 * errors[1]


def logit_error(folder: Path, quantized: Path | None, ids: np.ndarray) -> float:
    """Mean squared error of logits with the values of codes (of a folder, or made by search)."""
    definition = build(read_config(folder), "f32", max_tokens=64, max_batch=1)
    compiled = compile_definition(definition, Options("f32", max_batch=1))
    plain = dict(definition.load(Checkpoint(folder)))
    if quantized is None:
        quantized = folder.parent / "search"
        quantize_folder(folder, quantized, parse_format_choice("int4"))
    rounded = dict(definition.load(Checkpoint(quantized)))
    logits = [LanguageModel(compiled.program(p, 1), None).logits(ids) for p in (plain, rounded)]
    return float(np.square(logits[0] - logits[1]).mean())


def test_sequences(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    texts = [TEXT, TEXT.upper()]
    found = calibration_sequences(tokenizer, texts, 64, 300)
    assert [len(s) for s in found] == [64, 64, 64, 64, 44]
    np.testing.assert_array_equal(found[0], tokenizer.encode(texts[0])[:64])
    np.testing.assert_array_equal(found[1], tokenizer.encode(texts[1])[:64])
    with pytest.raises(
        UserError, match=r"calibration: got 3 tokens of text; expected at least 256: give more"
    ):
        calibration_sequences(tokenizer, ["abc"], 64)
    with pytest.raises(UserError, match="calibration: got 0 tokens"):
        calibration_sequences(tokenizer, [], 64)


def test_quantize_checks_first(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tokens: got 0; expected at least 1"):
        quantize(folder, tmp_path / "out", tokens=0)
    with pytest.raises(UserError, match="method: got 'best'; expected nearest or search"):
        quantize(folder, tmp_path / "out", method="best")
    with pytest.raises(UserError, match=r"nothing\.txt: cannot read the text: No such file"):
        quantize(folder, tmp_path / "out", calibrate=[tmp_path / "nothing.txt"])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="bytes: is no UTF-8 text"):
        quantize(folder, tmp_path / "out", calibrate=[tmp_path / "bytes"])
    bare = write_folder(tmp_path / "bare", LLAMA, float_tensors(LLAMA))
    (tmp_path / "text").write_text(TEXT)
    with pytest.raises(UserError, match=r"bare: has no tokenizer\.json; calibration reads text"):
        quantize(bare, tmp_path / "out", calibrate=[tmp_path / "text"])
    assert not (tmp_path / "out").exists()
