"""Small model folders whose sizes take groups of 32, and known codes in the packings of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from strata.core.weight_format import WeightFormat
from strata.models import build, parse_config
from strata.models.quantize.codes import QuantizedMatrix

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def float_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random bf16 tensors of a model, by the names of its checkpoints."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for source in build(parse_config(dict(config)), "f32").sources.values():
        for name, shape in source.tensors:
            noise = rng.standard_normal(shape, np.float32)
            if len(shape) == 2:
                noise *= shape[-1] ** -0.5
            else:
                noise = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
            tensors[name] = noise.astype(ml_dtypes.bfloat16)
    return tensors


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **more: Any
) -> Path:
    """A model folder of these tensors, with ``more`` in its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def random_matrix(format: WeightFormat, n: int, k: int, seed: int = 0) -> QuantizedMatrix:
    """Codes over the whole range, positive scales, and zeros over the whole range."""
    rng = np.random.default_rng(seed)
    groups = format.num_groups(k)
    dtype = ml_dtypes.uint4 if format.bits == 4 else np.uint8
    codes = rng.integers(0, format.max_code + 1, (n, k), np.uint8)
    zeros = rng.integers(0, format.max_code + 1, (n, groups), np.uint8)
    return QuantizedMatrix(
        format,
        codes.view(dtype),
        rng.uniform(0.01, 0.1, (n, groups)).astype(np.float16),
        zeros if format.is_asymmetric else None,
    )


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """u32 ``[rows, columns * bits / 32]``: one code after the other, from the lowest bits on."""
    per_word = 32 // bits
    wide = codes.view(np.uint8).astype(np.uint64).reshape(len(codes), -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    return (wide << shifts).sum(axis=2).astype(np.uint32)


def gptq_tensors(stem: str, matrix: QuantizedMatrix, offset: int = 1) -> dict[str, np.ndarray]:
    """A weight as GPTQ's tools store it; ``offset`` is subtracted from the zero points (not by version 2)."""
    bits, (n, k) = matrix.format.bits, matrix.shape
    groups = matrix.scales.shape[1]
    zeros = np.full((n, groups), matrix.format.zero, np.uint8) if matrix.zeros is None else matrix.zeros
    stored = (zeros.astype(np.int64) - offset & matrix.format.max_code).astype(np.uint8)
    return {
        f"{stem}.qweight": np.ascontiguousarray(pack_words(matrix.codes, bits).T).view(np.int32),
        f"{stem}.qzeros": pack_words(np.ascontiguousarray(stored.T), bits).view(np.int32),
        f"{stem}.scales": np.ascontiguousarray(matrix.scales.T),
        f"{stem}.g_idx": (np.arange(k) // (k // groups)).astype(np.int32),
    }


def awq_tensors(stem: str, matrix: QuantizedMatrix) -> dict[str, np.ndarray]:
    """A weight as AutoAWQ stores it ("gemm")."""
    assert matrix.zeros is not None

    def packed(codes: np.ndarray) -> np.ndarray:  # [rows, N]
        eights = codes.view(np.uint8).reshape(len(codes), -1, 8)[:, :, AWQ_ORDER]
        return pack_words(np.ascontiguousarray(eights).reshape(codes.shape), 4).view(np.int32)

    return {
        f"{stem}.qweight": packed(np.ascontiguousarray(matrix.codes.T)),
        f"{stem}.qzeros": packed(np.ascontiguousarray(matrix.zeros.T)),
        f"{stem}.scales": np.ascontiguousarray(matrix.scales.T),
    }


def mlc_tensors(stem: str, matrix: QuantizedMatrix) -> dict[str, np.ndarray]:
    """A weight as MLC stores it: codes 1..15 with zero 8 become 0..14 with zero 7."""
    codes = matrix.codes.view(np.uint8) - 1
    return {f"{stem}.q_weight": pack_words(codes, 4), f"{stem}.q_scale": matrix.scales}
