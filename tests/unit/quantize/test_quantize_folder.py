"""``quantize_folder``: what the new folder holds, from which folders, and what leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_folders import GPT2, LLAMA, float_tensors, gptq_tensors, random_matrix, write_folder

from strata.core.errors import UserError
from strata.core.weight_format import INT4, parse_format_choice
from strata.models import Checkpoint, build, read_config
from strata.models.quantize.codes import Method, QuantizedMatrix, dequantize_matrix
from strata.models.quantize.convert import quantize_folder

TIED = {**LLAMA, "tie_word_embeddings": True}


def params(folder: Path, format: str | None = None) -> dict[str, np.ndarray]:
    """All params of a folder, in a format or as it says itself."""
    config = read_config(folder)
    choice = parse_format_choice(format) if format is not None else config.format
    assert choice is not None
    return {name: np.array(array) for name, array in build(config, choice).load(Checkpoint(folder))}


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(
    ("config", "format"),
    [
        (LLAMA, "int4"),
        (TIED, "mixed"),
        (LLAMA, "int4:asymmetric;lm_head=bf16;*qkv_proj=int8:group=channel"),
        (GPT2, "int8:group=64,asymmetric"),
    ],
    ids=["llama", "tied", "choice", "gpt2"],
)
def test_same_params_as_on_the_fly(
    tmp_path: Path, config: dict[str, Any], format: str, method: Method
) -> None:
    source = write_folder(tmp_path / "source", config, float_tensors(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.md").write_text("not copied")
    report = quantize_folder(source, tmp_path / "out", parse_format_choice(format), method=method)
    stored = params(tmp_path / "out")
    definition = build(read_config(source), format)
    if method is Method.SEARCH:
        expected = dict(definition.load(Checkpoint(source)))
        assert list(stored) == list(expected)
        for name, array in expected.items():
            assert stored[name].dtype == array.dtype, name
            np.testing.assert_array_equal(stored[name], array, err_msg=name)
    assert {w.name: w.format for w in report.weights} == definition.formats
    assert all(w.method == method.value for w in report.weights)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert report.num_bytes == (tmp_path / "out/model.safetensors").stat().st_size


def test_report(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", LLAMA, float_tensors(LLAMA))
    calls: list[tuple[int, int, str]] = []
    report = quantize_folder(
        source, tmp_path / "out", parse_format_choice("int4"), progress=lambda *call: calls.append(call)
    )
    down = next(w for w in report.weights if w.name == "model.layers.1.mlp.down_proj.weight")
    assert (down.shape, down.format, down.num_bytes) == ((64, 96), INT4, 64 * (48 + 6))
    weight = Checkpoint(source)[down.name].astype(np.float32)
    made = Checkpoint(tmp_path / "out")[down.name]
    assert down.error == pytest.approx(np.linalg.norm(made - weight) / np.linalg.norm(weight), rel=1e-4)
    assert 0.05 < down.error < 0.1
    assert report.source_bytes == sum(t.nbytes for t in float_tensors(LLAMA).values())
    assert calls[0][0] == 0
    assert [done for done, _, _ in calls] == list(range(calls[0][1]))
    # The tensors have the names of the model, two codes to a byte.
    entry = Checkpoint(tmp_path / "out")._tensors.entry("model.layers.0.self_attn.k_proj.weight.codes")
    assert entry.shape == (32, 32)


def test_codes_that_are_there_are_kept(tmp_path: Path) -> None:
    """From GPTQ's packing, and from our own."""
    made: dict[str, QuantizedMatrix] = {}
    tensors: dict[str, np.ndarray] = {}
    for seed, (name, value) in enumerate(float_tensors(LLAMA).items()):
        if value.ndim == 2 and "embed" not in name and "lm_head" not in name:
            made[name] = random_matrix(INT4, *value.shape, seed)
            tensors.update(gptq_tensors(name.removesuffix(".weight"), made[name]))
        else:
            tensors[name] = value
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    source = write_folder(tmp_path / "gptq", LLAMA, tensors, quantization_config=config)
    first = quantize_folder(source, tmp_path / "first", parse_format_choice("int4"))
    second = quantize_folder(tmp_path / "first", tmp_path / "second", parse_format_choice("int4"))
    for name, matrix in made.items():
        np.testing.assert_array_equal(Checkpoint(tmp_path / "second")[name], dequantize_matrix(matrix))
    assert [w.method for w in first.weights].count("stored") == 8
    assert {w.method for w in second.weights} == {"stored"}
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    # Another format is made of the values.
    report = quantize_folder(tmp_path / "first", tmp_path / "third", parse_format_choice("int8"))
    assert {w.method for w in report.weights} == {"search"}


def test_bad_weights_leave_nothing_behind(tmp_path: Path) -> None:
    tensors = float_tensors(LLAMA)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 4] = np.nan
    source = write_folder(tmp_path / "source", LLAMA, tensors)
    with pytest.raises(UserError, match=f"{name}: has weights that are NaN or infinite"):
        quantize_folder(source, tmp_path / "out", parse_format_choice("int4"))
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_wrong_requests(tmp_path: Path) -> None:
    odd = {**LLAMA, "intermediate_size": 80}
    source = write_folder(tmp_path / "source", odd, float_tensors(odd))
    int4 = parse_format_choice("int4")
    with pytest.raises(
        UserError, match=r"down_proj\.weight: got rows of 80 elements; expected a multiple of"
    ):
        quantize_folder(source, tmp_path / "out", int4)
    with pytest.raises(UserError, match="format: got bf16, which quantizes nothing"):
        quantize_folder(source, tmp_path / "out", parse_format_choice("bf16"))
    with pytest.raises(UserError, match=r"pattern '.*up' fits no weight"):
        quantize_folder(source, tmp_path / "out", parse_format_choice("int8:group=channel;*up=int4"))
    with pytest.raises(UserError, match="source: exists already; it is not overwritten: choose another name"):
        quantize_folder(source, source, int4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: exists already"):
        quantize_folder(source, tmp_path / "file", int4)
    channel = parse_format_choice("int8:group=channel")
    with pytest.raises(UserError, match="cannot write the model: Not a directory"):
        quantize_folder(source, tmp_path / "file/out", channel)
    (tmp_path / "empty").mkdir()
    assert quantize_folder(source, tmp_path / "empty", channel).folder == tmp_path / "empty"


def test_damaged_folders(tmp_path: Path) -> None:
    """What config.json says of a tensor has to be true, and every tensor is announced."""
    source = write_folder(tmp_path / "source", LLAMA, float_tensors(LLAMA))
    quantize_folder(source, tmp_path / "out", parse_format_choice("int4"))
    path = tmp_path / "out/config.json"
    config = json.loads(path.read_text())
    name = "model.layers.0.mlp.up_proj.weight"
    config["quantization_config"]["weights"][name] = "int8"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"up_proj\.weight: got .*scales"):
        Checkpoint(tmp_path / "out")
    del config["quantization_config"]["weights"][name]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"tensor '{name}.codes' is no part of a weight quantized by strata"):
        Checkpoint(tmp_path / "out")
