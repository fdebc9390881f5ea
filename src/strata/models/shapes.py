"""Named architectures without weights, for benchmarks and tests: configs, and random params of their "
"shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np

from strata.core.dtypes import f32
from strata.core.registry import Registry
from strata.core.weight_format import WeightFormat
from strata.graph.types import TensorType
from strata.passes.quantize import CODES, stored_types

from .config import ModelConfig
from .definition import ModelDefinition
from .registry import ReadOptions, parse_config

# Random numbers are made once per tensor up to this many and then repeated: memory speed instead of
# generator speed. The length has no common factor with any row length that is a multiple of a small number,
# so rows differ.
_PERIOD = (1 << 20) + 7

SHAPES: Registry[dict[str, Any]] = Registry("shape")
SHAPES.add(
    "tiny",
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    },
)
SHAPES.add(
    "tinyllama-1.1b",
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "bos_token_id": 1,
    },
)
SHAPES.add(
    "llama-3.2-1b",
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "eos_token_id": [128001],
        "bos_token_id": 128000,
    },
)
SHAPES.add(
    "llama-2-7b",
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "bos_token_id": 1,
    },
)
SHAPES.add(
    "llama-3-70b",
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "eos_token_id": 128001,
        "bos_token_id": 128000,
    },
)
SHAPES.add(
    "qwen2.5-0.5b",
    {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 151643,
        "bos_token_id": 151643,
    },
)
SHAPES.add(
    "gpt2-124m",
    {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "eos_token_id": 50256,
        "bos_token_id": 50256,
    },
)


def shape_config(name: str, max_context: int | None = None) -> ModelConfig:
    """The config called ``name``.

    Args:
        name: A name in ``SHAPES``.
        max_context: Largest context in tokens; ``None`` = that of the architecture.

    Raises:
        UserError: no such shape (lists them), or a context out of range.
    """
    return parse_config(SHAPES[name], f"shape {name}", ReadOptions(max_context=max_context))


def random_params(definition: ModelDefinition, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Params with random values, one at a time: ``(name, array)`` in the order of ``definition.sources``.

    Matrices are uniform with variance 1 / row length, so that activations keep their size through the layers;
    vectors are 1 (weights of norms) or 0 (biases) plus a little.

    Args:
        definition: The model.
        seed: The same seed gives the same values.
    """
    for index, (name, source) in enumerate(definition.sources.items()):
        shape, target = source.shape, np.dtype(source.dtype.numpy_name)
        count = int(np.prod(shape))
        rng = np.random.default_rng([seed, index])
        block = rng.random(min(count, _PERIOD), np.float32) * 2 - 1
        if len(shape) == 1:
            block = 0.1 * block + (0.0 if name.endswith(".bias") else 1.0)
        else:
            block *= (3.0 / shape[-1]) ** 0.5
        if name in definition.formats:
            yield from _random_codes(name, definition.formats[name], shape, rng)
        else:
            yield name, np.resize(block.astype(target), shape)


def _random_codes(
    name: str, format: WeightFormat, shape: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Codes over their whole range, with scales that give the matrix a variance of about 1 / row length."""
    n, k = shape
    for part, tensor in stored_types(name, TensorType((n, k), f32), format).items():
        size = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        target = np.dtype(tensor.dtype.numpy_name)
        if tensor.dtype.is_float:
            block = rng.uniform(0.9, 1.1, min(math.prod(size), _PERIOD)) * (3.0 / k) ** 0.5 / format.zero
        elif part.endswith(CODES):
            block = rng.integers(0, format.max_code + 1, min(n * k, _PERIOD))
        else:
            block = np.array([format.zero])
        yield part, np.resize(block.astype(target), size)
