"""Small random models of every architecture in awkward shapes, and ways to run them step by step.

``CASES`` names an architecture of ``hf_models`` and the config values that differ. Sizes are chosen to hit
the edges of tiles and vectors: widths that no power of two divides, odd vocabularies, head sizes below, at
and above a vector, and one query head per KV head, several, or all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hf_models
import numpy as np

from strata.compiler.api import Options, compile_definition
from strata.core.dtypes import dtype
from strata.engine.kv_cache import PagedKVCache
from strata.graph.types import RopeMode
from strata.models import Checkpoint, ModelDefinition, build, read_config
from strata.runtime.program import Program

NUM_DECODED = 64  # tokens after the prompt
PROMPT_LENGTHS = (1, 2, 7, 16, 17, 64, 200)
_LLAMA3 = hf_models.ARCHITECTURES["llama3"][1]["rope_parameters"]
_LINEAR = hf_models.ARCHITECTURES["llama-linear"][1]["rope_parameters"]
_YARN = hf_models.ARCHITECTURES["llama-yarn"][1]["rope_parameters"]


def _sizes(hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
    }


# Head size 20, all query heads on one KV head (MQA); nothing is a multiple of 8 but the hidden size.
_MQA20 = _sizes(hidden=72, heads=3, kv_heads=1, head_dim=20, ffn=75, vocab=333)
# Head size 80: five vectors of 16; every query head has its own KV head (MHA).
_MHA80 = _sizes(hidden=160, heads=2, kv_heads=2, head_dim=80, ffn=129, vocab=257)
# TinyLlama's proportions (8 query heads per KV head) at head size 8.
_TINY8 = _sizes(hidden=128, heads=16, kv_heads=2, head_dim=8, ffn=352, vocab=320)
# Five query heads per KV head, a hidden size that 8 does not divide.
_GQA16 = _sizes(hidden=90, heads=10, kv_heads=2, head_dim=16, ffn=99, vocab=321)
# Everything odd that may be: hidden, feed-forward and vocabulary.
_ODD = _sizes(hidden=75, heads=3, kv_heads=3, head_dim=16, ffn=113, vocab=301)


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes:
        id: Name of the test.
        architecture: Key of ``hf_models.ARCHITECTURES``.
        values: Config values that differ from it.
    """

    id: str
    architecture: str
    values: dict[str, Any] = field(default_factory=dict)

    def make(self, folder: Path, **options: Any) -> Path:
        """Write the model folder."""
        return hf_models.make_model(folder, self.architecture, **{**self.values, **options})

    def __str__(self) -> str:
        return self.id


# With these seeds the best token leads by 1e-4 or more everywhere in test_transformers: no rounding turns it.
CASES = (
    Case("llama", "llama"),
    Case("llama-mqa20-tied", "llama", {**_MQA20, "tie_word_embeddings": True}),
    Case("llama-mha80-bias", "llama-bias", _MHA80),
    Case("llama-odd", "llama", _ODD),
    Case("tinyllama", "llama", {**_TINY8, "num_hidden_layers": 3}),
    Case("llama3", "llama3"),
    Case("llama3-mqa20-tied", "llama3", {**_MQA20, "tie_word_embeddings": True}),
    Case("llama3-gqa16", "llama", {**_GQA16, "rope_parameters": _LLAMA3}),
    Case("llama-linear", "llama-linear"),
    Case("llama-linear-odd", "llama", {**_ODD, "rope_parameters": _LINEAR}),
    Case("llama-yarn", "llama-yarn"),
    Case("llama-yarn-mha80", "llama-bias", {**_MHA80, "rope_parameters": _YARN}),
    Case("mistral", "mistral"),
    Case("mistral-gqa16", "mistral", {**_GQA16, "seed": 1}),
    Case("qwen2-tied", "qwen2"),
    Case("qwen2-mha80", "qwen2", {**_MHA80, "tie_word_embeddings": False}),
    Case("qwen2-odd", "qwen2", _ODD),
    Case("qwen3", "qwen3"),
    Case("qwen3-mqa20-tied", "qwen3", {**_MQA20, "tie_word_embeddings": True}),
    Case("gpt2-tied", "gpt2"),
    Case("gpt2-20", "gpt2", {"n_embd": 60, "n_head": 3, "vocab_size": 333, "tie_word_embeddings": False}),
    Case("gpt2-80-odd", "gpt2", {"n_embd": 80, "n_head": 1, "n_inner": 97, "vocab_size": 257}),
)
BY_ID = {case.id: case for case in CASES}


def tokens(count: int, vocab_size: int = hf_models.VOCAB_SIZE, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def padded_logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Logits f32 ``[len, vocab]`` of every sequence by the ``transformers`` model, in one forward pass.

    Shorter sequences are padded on the right, where causal attention does not look.
    """
    import torch

    batch = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, ids in zip(batch, sequences, strict=True):
        row[: len(ids)] = ids
    with torch.no_grad():
        logits = model(torch.from_numpy(batch)).logits.float().numpy()
    return [row[: len(ids)] for row, ids in zip(logits, sequences, strict=True)]


def round_weights(model: Any, format: str) -> Any:
    """Round every matrix of the ``transformers`` model to ``format`` (vectors stay f32, as in Strata)."""
    import torch

    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[format]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(parameter.to(kind).float())
    return model


def define(folder: Path, format: str = "f32", **options: Any) -> ModelDefinition:
    """The graph of a folder; ``options`` of :func:`strata.models.build`."""
    return build(read_config(folder), format, **{"max_tokens": 256, "max_batch": 8, **options})


def compile_folder(folder: Path, format: str = "f32", num_threads: int | None = 2, **options: Any) -> Program:
    """A folder's model, compiled and loaded; ``options`` of :func:`strata.models.build`."""
    definition = define(folder, format, **options)
    compiled = compile_definition(definition, Options(format))
    return compiled.program(definition.load(Checkpoint(folder)), num_threads)


class Session:
    """A program with a KV cache, called one pass at a time.

    Args:
        program: Compiled model.
        max_context: Longest sequence, tokens.
        num_pages: Pages of the pool; default: 4 sequences of the longest length.
        cache_type: What makes the cache.
    """

    def __init__(
        self,
        program: Program,
        max_context: int = 320,
        num_pages: int | None = None,
        cache_type: type[PagedKVCache] = PagedKVCache,
    ) -> None:
        assert program.cache is not None
        self.program = program
        pages = num_pages or 4 * -(-max_context // program.cache.page_size)
        self.cache = cache_type(program.cache, pages, max_context, max_batch=8)
        # What lies in unused pages must not matter.
        for array in (*self.cache.k_pages, *self.cache.v_pages):
            array[...] = np.array(np.nan, np.dtype(dtype(program.cache.dtype).numpy_name))

    def step(self, function: str, parts: dict[int, Sequence[int]]) -> np.ndarray:
        """Append tokens to sequences (which begin when they are first named).

        Returns:
            A copy of the logits.
        """
        for name in parts:
            if name not in self.cache:
                self.cache.add_sequence(name)
        view = self.cache.begin_forward(list(parts), [len(p) for p in parts.values()])
        ids = np.concatenate([np.asarray(p, np.int32) for p in parts.values()])
        outputs = self.program[function](ids, view)
        logits = outputs if isinstance(outputs, np.ndarray) else outputs[0]
        if function != "score":
            np.testing.assert_array_equal(outputs[1], logits.argmax(axis=1))
        self.cache.end_forward()
        self.cache.check_integrity()
        return logits.copy()

    def greedy(self, first: np.ndarray, count: int, name: int = 0) -> tuple[list[int], np.ndarray]:
        """Continue a sequence greedily from the logits ``first [vocab]`` that its prompt gave.

        Returns:
            ``count + 1`` tokens, and the logits ``[count + 1, vocab]`` that each was taken from.
        """
        rows = [first]
        chosen = [int(first.argmax())]
        for _ in range(count):
            rows.append(self.step("decode", {name: chosen[-1:]})[0])
            chosen.append(int(rows[-1].argmax()))
        return chosen, np.stack(rows)


INLINE = RopeMode.INLINE
