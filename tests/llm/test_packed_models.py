"""Models that other tools quantised, compiled as they are, against the same values as floats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_folders import (
    GPT2,
    LLAMA,
    awq_tensors,
    float_tensors,
    gptq_tensors,
    random_matrix,
    write_folder,
)

from strata.compiler.api import compile_definition
from strata.compiler.artifact_cache import Options
from strata.core.weight_format import INT4, WeightFormat
from strata.engine.generate import LanguageModel
from strata.models import Checkpoint, build, read_config
from strata.models.quantize.codes import QuantizedMatrix

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}


def packed_folder(
    folder: Path,
    config: dict[str, Any],
    quantization: dict[str, Any],
    pack: Callable[[str, QuantizedMatrix], dict[str, np.ndarray]],
    format: WeightFormat,
) -> Path:
    """Layers of random codes whose values have the size of float weights."""
    tensors: dict[str, np.ndarray] = {}
    for seed, (name, value) in enumerate(float_tensors(config).items()):
        if value.ndim != 2 or any(part in name for part in ("embed", "lm_head", "wte", "wpe")):
            tensors[name] = value
            continue
        k, n = value.shape if config is GPT2 else value.shape[::-1]
        made = random_matrix(format, n, k, seed)
        scales = (made.scales.astype(np.float32) * 3 / k**0.5).astype(np.float16)
        zeros = None if made.zeros is None else np.full_like(made.zeros, 7)
        tensors |= pack(name.removesuffix(".weight"), QuantizedMatrix(format, made.codes, scales, zeros))
    return write_folder(folder, config, tensors, quantization_config=quantization, torch_dtype="bfloat16")


def logits(folder: Path, format: str | None, ids: np.ndarray) -> np.ndarray:
    config = read_config(folder)
    definition = build(config, format or config.format or "f32", max_tokens=64, max_batch=1)
    compiled = compile_definition(definition, Options(format, max_batch=1))
    return LanguageModel(compiled.program(definition.load(Checkpoint(folder)), 1), None).logits(ids)


@pytest.mark.parametrize(
    ("config", "quantization", "pack", "format"),
    [(LLAMA, GPTQ, gptq_tensors, INT4), (GPT2, AWQ, awq_tensors, WeightFormat(4, 32, True))],
    ids=["llama-gptq", "gpt2-awq"],
)
def test_as_the_same_floats(
    tmp_path: Path,
    config: dict[str, Any],
    quantization: dict[str, Any],
    pack: Callable[[str, QuantizedMatrix], dict[str, np.ndarray]],
    format: WeightFormat,
) -> None:
    folder = packed_folder(tmp_path, config, quantization, pack, format)
    ids = np.random.default_rng(0).integers(0, 320, 60)
    expected, got = logits(folder, "f32", ids), logits(folder, None, ids)
    # Inputs of products are rounded to 8 bits in groups: an error of at most 1/254 of the largest of 32,
    # a few of which add up over the layers.
    error = np.sqrt(np.square(got - expected).mean()) / expected.std()
    assert 0 < error < 0.03
