"""GGUF files with random weights, for llama.cpp and for OpenVINO's reader.

Weights are written as they are stored: random codes, and scales that give them variance 1 / row length, so
that activations keep their size. Speed depends on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

_PERIOD = (1 << 16) + 1  # random blocks are made once, and repeated
_TYPES = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
_FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
_BLOCK = 32  # weights per scale of q8_0 and q4_0


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name in the file, shape, and what a vector's elements are near to (0 for biases, 1 for norms)."""

    name: str
    shape: tuple[int, ...]
    near: float = 0.0


def llama_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors of the Llama family (with biases for Qwen2)."""
    width, vocab, inner = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    with_bias = config["architectures"][0] == "Qwen2ForCausalLM"
    yield Tensor("token_embd.weight", (vocab, width))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"blk.{layer}."
        yield Tensor(f"{prefix}attn_norm.weight", (width,), 1.0)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield Tensor(f"{prefix}attn_{name}.weight", (rows, width))
            if with_bias:
                yield Tensor(f"{prefix}attn_{name}.bias", (rows,))
        yield Tensor(f"{prefix}attn_output.weight", (width, queries))
        yield Tensor(f"{prefix}ffn_norm.weight", (width,), 1.0)
        yield Tensor(f"{prefix}ffn_gate.weight", (inner, width))
        yield Tensor(f"{prefix}ffn_up.weight", (inner, width))
        yield Tensor(f"{prefix}ffn_down.weight", (width, inner))
    yield Tensor("output_norm.weight", (width,), 1.0)
    if not config.get("tie_word_embeddings"):
        yield Tensor("output.weight", (vocab, width))


def gpt2_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors of GPT-2."""
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width

    def linear(name: str, rows: int, columns: int) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (rows, columns))
        yield Tensor(f"{name}.bias", (rows,))

    def norm(name: str) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (width,), 1.0)
        yield Tensor(f"{name}.bias", (width,))

    yield Tensor("token_embd.weight", (config["vocab_size"], width))
    yield Tensor("position_embd.weight", (config["n_positions"], width))
    for layer in range(config["n_layer"]):
        prefix = f"blk.{layer}."
        yield from norm(f"{prefix}attn_norm")
        yield from linear(f"{prefix}attn_qkv", 3 * width, width)
        yield from linear(f"{prefix}attn_output", width, width)
        yield from norm(f"{prefix}ffn_norm")
        yield from linear(f"{prefix}ffn_up", inner, width)
        yield from linear(f"{prefix}ffn_down", width, inner)
    yield from norm("output_norm")


def describe(config: dict[str, Any], writer: gguf.GGUFWriter) -> list[Tensor]:
    """Write the sizes of a model; gives its tensors."""
    is_gpt2 = config["architectures"][0] == "GPT2LMHeadModel"
    heads = config["n_head" if is_gpt2 else "num_attention_heads"]
    width = config["n_embd" if is_gpt2 else "hidden_size"]
    writer.add_context_length(config["n_positions" if is_gpt2 else "max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["n_layer" if is_gpt2 else "num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    if is_gpt2:
        writer.add_feed_forward_length(config.get("n_inner") or 4 * width)
        writer.add_layer_norm_eps(1e-5)
        return list(gpt2_tensors(config))
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(config.get("head_dim") or width // heads)
    return list(llama_tensors(config))


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A tokenizer that nobody uses: bytes, two of which merge, and names."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [256 + n for n in range(256 - len(kept))]  # byte-level BPE writes the other bytes so
    tokens = [chr(c) for c in kept + moved] + ["ab"]
    tokens += [f"<{n}>" for n in range(len(tokens), size - 1)] + ["<end>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens[-size:])
    writer.add_token_types([gguf.TokenType.NORMAL] * (size - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(size - 1)
    writer.add_eos_token_id(size - 1)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def bytes_of(tensor: Tensor, precision: str, rng: np.random.Generator) -> np.ndarray:
    """Random weights as they are stored: u8 ``[rows, bytes per row]``, or an f32 vector."""
    if len(tensor.shape) == 1:
        return (tensor.near + 0.1 * (rng.random(tensor.shape) * 2 - 1)).astype(np.float32)
    rows, columns = tensor.shape
    deviation = columns**-0.5
    if precision in ("q8_0", "q4_0"):
        code_bytes = _BLOCK if precision == "q8_0" else _BLOCK // 2
        codes = rng.integers(0, 256, (_PERIOD, code_bytes), np.uint8)
        step = deviation / (74.0 if precision == "q8_0" else 4.6)  # deviations of uniform codes
        scale = np.full((_PERIOD, 1), step, np.float16).view(np.uint8)
        blocks, count = np.concatenate([scale, codes], 1), rows * columns // _BLOCK
        return np.resize(blocks, (count, code_bytes + 2)).reshape(rows, -1)
    values = ((rng.random(_PERIOD) * 2 - 1) * deviation * 3**0.5).astype(np.float32)
    match precision:
        case "f16":
            stored = values.astype(np.float16)
        case "bf16":
            stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        case _:
            stored = values
    return np.resize(stored, (rows, columns)).view(np.uint8)


Source = Callable[[Tensor], np.ndarray]  # stored bytes of a matrix, or an f32 vector


def write(config: dict[str, Any], precision: str, path: Path, source: Source | None = None) -> None:
    """Write a model of these sizes: every matrix in ``precision``, vectors in f32.

    Args:
        config: As in ``config.json``.
        precision: A key of ``_TYPES``.
        path: File to write.
        source: Where tensors come from; ``None`` = random ones.
    """
    rng = np.random.default_rng(0)
    source = source or (lambda tensor: bytes_of(tensor, precision, rng))
    names = {"GPT2LMHeadModel": "gpt2", "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, names[config["architectures"][0]])
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[precision]))
    tensors = describe(config, writer)
    add_vocabulary(writer, config["vocab_size"])
    stored = _TYPES[precision]
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    for tensor in tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), 4 * tensor.shape[0], Type.F32
            )
        else:
            shape = (tensor.shape[0], tensor.shape[1] // block * block_bytes)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), shape[0] * shape[1], stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(source(tensor))
    writer.close()
    part.replace(path)
