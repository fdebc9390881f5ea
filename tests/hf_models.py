"""Small Hugging Face model folders with random weights, one per architecture, for everybody's tests.

``make_model(folder, "qwen2")`` writes config.json, safetensors, tokenizer.json and a chat template;
``reference_logits(folder, ids)`` runs the model with ``transformers`` on the CPU in f32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 320
END_OF_TEXT = "<|endoftext|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = (
    "def read_lines(path):\n    with open(path, encoding='utf-8') as file:\n        return file.read()\n",
    "The quick brown fox jumps over the lazy dog; the dog does not mind.\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    "for index, value in enumerate(values):\n    print(index, value)\n",
)

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
_ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ROPE_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

# name -> (class of the transformers model, values of its config)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "llama-mha": ("LlamaForCausalLM", {**_LLAMA, "num_key_value_heads": 4}),
    "llama-tied": ("LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "llama-bias": ("LlamaForCausalLM", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("LlamaForCausalLM", {**_LLAMA, "head_dim": 24, "num_key_value_heads": 1}),
    "llama3": ("LlamaForCausalLM", {**_LLAMA, "rope_parameters": _ROPE_LLAMA3}),
    "llama-linear": (
        "LlamaForCausalLM",
        {**_LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama-yarn": ("LlamaForCausalLM", {**_LLAMA, "rope_parameters": _ROPE_YARN}),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 32}),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 3,
            "n_positions": 512,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}


def make_model(
    folder: Path,
    name: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str | None = None,
    **overrides: Any,
) -> Path:
    """Write a model folder.

    Args:
        folder: Where; made if it does not exist.
        name: A key of ``ARCHITECTURES``.
        seed: Of the weights.
        dtype: Dtype of the stored weights.
        max_shard_size: ``"50KB"`` splits the weights into shards of at most this size.
        overrides: Changed values of the config.

    Returns:
        The folder.
    """
    import torch
    import transformers

    class_name, values = ARCHITECTURES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**{**values, **overrides}, architectures=[class_name])
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                # Activations keep their size, so that logits are of the order of 1 and errors show.
                fan_in = parameter.shape[0] if "c_" in path else parameter.shape[-1]
                parameter.copy_(noise * fan_in**-0.5)
            else:
                parameter.copy_(0.1 * noise + (0.0 if path.endswith("bias") else 1.0))
    model.to(getattr(torch, dtype))
    options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.save_pretrained(folder, **options)
    make_tokenizer(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer of ``VOCAB_SIZE`` tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=[END_OF_TEXT, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def reference_model(folder: Path) -> Any:
    """The folder's model in ``transformers``, f32, eager attention, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    # Small models gain nothing from more threads, and on a busy machine these wait for each other.
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def reference_logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits f32 ``[len(ids), vocab]`` after every token.

    Args:
        model: Model folder, or what :func:`reference_model` gave for it.
        ids: Token ids.
    """
    import torch

    loaded = reference_model(model) if isinstance(model, Path) else model
    with torch.no_grad():
        return loaded(torch.tensor([list(ids)])).logits[0].float().numpy()
