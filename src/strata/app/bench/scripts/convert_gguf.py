"""A GGUF file from a Hugging Face folder of the Llama family, with nothing rounded.

For scoring token ids: the file's tokenizer is that of random models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_gguf import Tensor, write
from safetensors.torch import load_file

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(folder: Path, path: Path) -> None:
    """Write the model of ``folder`` in f32."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")

    def source(tensor: Tensor) -> np.ndarray:
        array = tensors[_name(tensor.name)].to(torch.float32).numpy()
        return array if array.ndim == 1 else _paired(tensor.name, array, config).view(np.uint8)

    write(config, "f32", path, source)


def _name(name: str) -> str:
    """Name in the folder: ``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{_NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{kind}"


def _paired(name: str, array: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Rows of q and k in llama.cpp's order: a rotated pair is side by side, not half a head apart."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    key = next((k for part, k in heads.items() if part + "." in name), None)
    if key is None:
        return np.ascontiguousarray(array)
    rows, columns = array.shape
    halves = array.reshape(config[key], 2, rows // config[key] // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
