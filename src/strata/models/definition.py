"""From a config to everything that the compiler needs of a model: graph, recipes of the weights, KV cache, "
"facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from strata.core.dtypes import DType, bf16, dtype, f16, f32
from strata.core.errors import UserError
from strata.frontend import nn
from strata.frontend.nn import spec
from strata.graph.nodes import Module
from strata.graph.types import CacheType, RopeMode
from strata.runtime.records import CacheRecord

from .checkpoint import Checkpoint
from .config import ModelConfig, Positions
from .registry import ARCHITECTURES
from .weights import NameRules, ParamSource, load_params

FORMATS: dict[str, DType] = {"f32": f32, "bf16": bf16, "f16": f16}
FUNCTIONS = ("prefill", "decode", "score")


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A model, ready to be compiled.

    Attributes:
        module: Functions ``prefill``, ``decode`` and ``score``.
        sources: Recipe of each param, in the order of ``module.params``.
        cache_record: The KV cache that the functions take.
        config: Facts for the engine: ``max_context``, ``max_batch``, ``max_tokens`` (of one pass),
            ``vocab_size``, ``eos_token_ids``, ``bos_token_id``, ``format``, ``architecture``, ``model_name``.
        names: Freedom of checkpoints with tensor names.
    """

    module: Module
    sources: dict[str, ParamSource]
    cache_record: CacheRecord
    config: dict[str, object]
    names: NameRules

    def load(self, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Params from a checkpoint, one at a time; see :func:`strata.models.weights.load_params`."""
        return load_params(self.sources, self.names, checkpoint)


def build(
    config: ModelConfig,
    format: DType | str,
    *,
    max_tokens: int = 512,
    max_batch: int = 16,
    page_size: int = 16,
    rope_mode: RopeMode = RopeMode.NORMAL,
    model_name: str = "",
) -> ModelDefinition:
    """The graph of a model and all that goes with it.

    Args:
        config: The model.
        format: Dtype of weights and KV cache: f32, bf16 or f16.
        max_tokens: Tokens of one pass at most; longer prompts are processed in chunks.
        max_batch: Sequences of one pass at most.
        page_size: Tokens per KV page.
        rope_mode: Where keys are rotated, for models with rotary positions.
        model_name: Name to show.

    Raises:
        UserError: an unknown format, or limits out of range.
    """
    weight_dtype = dtype(format)
    if weight_dtype not in FORMATS.values():
        raise UserError(f"format: got {format}; expected one of {', '.join(FORMATS)}")
    if not 1 <= max_batch <= max_tokens:
        raise UserError(
            f"build: got max_batch {max_batch} and max_tokens {max_tokens}; expected 1 <= batch <= tokens"
        )
    architecture = ARCHITECTURES[config.architecture]
    model = architecture.module(config, weight_dtype)
    cache_type = _cache_type(config, weight_dtype, page_size, rope_mode)
    ids = spec.Tensor([spec.dim("n", 1, max_tokens)], "i32")
    exported = model.export({f: {"ids": ids, "cache": spec.KVCache(cache_type)} for f in FUNCTIONS})
    names = exported.module.params
    return ModelDefinition(
        module=exported.module,
        sources={name: architecture.source(config, name, exported.params[name]) for name in names},
        cache_record=nn.cache_record(cache_type, config.rope_theta, config.rope_scaling),
        config={
            "architecture": config.architecture,
            "model_name": model_name,
            "format": weight_dtype.name,
            "vocab_size": config.vocab_size,
            "max_context": config.max_context,
            "max_tokens": max_tokens,
            "max_batch": max_batch,
            "eos_token_ids": list(config.eos_token_ids),
            "bos_token_id": config.bos_token_id,
        },
        names=architecture.names(config),
    )


def _cache_type(config: ModelConfig, dtype: DType, page_size: int, rope_mode: RopeMode) -> CacheType:
    is_rotary = config.positions is Positions.ROTARY
    return CacheType(
        config.num_layers,
        config.num_kv_heads,
        config.head_dim,
        dtype,
        page_size,
        rope_mode if is_rotary else RopeMode.NONE,
        config.head_dim if is_rotary and rope_mode is not RopeMode.NONE else 0,
    )
