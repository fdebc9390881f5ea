"""Copies of model and artifact folders, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from strata.app.session import DEMO_MODEL

Damage = Callable[[Path], object]


def linked_copy(source: Path, target: Path) -> Path:
    """A folder with links to the files of ``source``: a copy that costs nothing until a file is replaced."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    return target


def replace(file: Path, content: bytes) -> None:
    """Give a linked file content of its own."""
    file.unlink()
    file.write_bytes(content)


def missing(name: str) -> Damage:
    """The file is not there."""
    return lambda folder: (folder / name).unlink()


def cut_off(name: str, lost_bytes: int = 100) -> Damage:
    """The last bytes of the file are missing."""
    return lambda folder: replace(folder / name, (folder / name).read_bytes()[:-lost_bytes])


def flipped(name: str, position: int) -> Damage:
    """One bit of the file is wrong."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1
        replace(folder / name, bytes(content))

    return damage


def content(name: str, text: bytes) -> Damage:
    """The file holds something else."""
    return lambda folder: replace(folder / name, text)


def edited(name: str, *path: str | int, value: Any = None, drop: bool = False) -> Damage:
    """A value in a JSON file is another one, or absent."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_bytes())
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        replace(folder / name, json.dumps(data).encode())

    return damage


def small_model(folder: Path, num_layers: int = 1, hidden: int = 32) -> Path:
    """A Llama of random f32 weights with the demo model's tokenizer: compiles in a moment."""
    folder.mkdir(parents=True)
    for file in DEMO_MODEL.iterdir():
        if file.name.startswith(("tokenizer", "generation")):
            (folder / file.name).symlink_to(file)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 4096,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (4096, hidden), "norm": (hidden,)}
    for layer in range(num_layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (2 * hidden, hidden),
            "mlp.up_proj": (2 * hidden, hidden),
            "mlp.down_proj": (hidden, 2 * hidden),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"layers.{layer}.{name}"] = shape
    rng = np.random.default_rng(0)
    tensors = {f"model.{k}.weight": rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
