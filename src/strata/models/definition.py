"""From a config to everything that the compiler needs of a model: graph, recipes of the weights, KV cache, "
"facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from strata.core.dtypes import DType, bf16, dtype, f32
from strata.core.errors import UserError
from strata.core.kv_layout import DEFAULT_PAGE_SIZE, KV_FORMATS
from strata.core.weight_format import FormatChoice, WeightFormat, parse_format_choice
from strata.frontend import nn
from strata.frontend.nn import spec
from strata.graph.nodes import Module
from strata.graph.types import CacheType, RopeMode
from strata.passes.quantize import CODES, quantize_weights
from strata.runtime.records import CacheRecord

from .checkpoint import Checkpoint
from .config import ModelConfig, Positions
from .registry import ARCHITECTURES
from .weights import NameRules, ParamSource, load_params

FUNCTIONS = ("prefill", "decode", "score")


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A model, ready to be compiled.

    Attributes:
        module: Functions ``prefill`` and ``decode`` (logits and likeliest token of each sequence) and
            ``score`` (logits of each token), or those that were asked for.
        sources: Recipe of each weight and vector as a float tensor, in the order of ``module.params``.
        formats: Format of the weights that are stored as codes, by the name of the recipe; each is several
            params of the module.
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
    formats: dict[str, WeightFormat] = field(default_factory=dict)

    def load(self, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """Params from a checkpoint, one at a time; see :func:`strata.models.weights.load_params`."""
        return load_params(self.sources, self.names, checkpoint, self.formats)


def build(
    config: ModelConfig,
    format: FormatChoice | WeightFormat | DType | str,
    *,
    max_tokens: int = 512,
    max_batch: int = 16,
    page_size: int = DEFAULT_PAGE_SIZE,
    kv_dtype: str | None = None,
    rope_mode: RopeMode = RopeMode.NORMAL,
    model_name: str = "",
    functions: Iterable[str] = FUNCTIONS,
) -> ModelDefinition:
    """The graph of a model and all that goes with it.

    Args:
        config: The model.
        format: How weights are stored: a float dtype, ``int8``, ``int4:group=64``, ``mixed``, ...; see
            ``core.weight_format``. Unless ``kv_dtype`` says otherwise, the KV cache has the float dtype, or
            bf16.
        max_tokens: Tokens of one pass at most; longer prompts are processed in chunks.
        max_batch: Sequences of one pass at most.
        page_size: Tokens per KV page.
        kv_dtype: Dtype of stored keys and values, a key of ``core.kv_layout.KV_FORMATS``.
        rope_mode: Where keys are rotated, for models with rotary positions.
        model_name: Name to show.
        functions: Those of ``FUNCTIONS`` that are needed.

    Raises:
        UserError: an unknown format, or limits out of range.
    """
    choice = parse_format_choice(format)
    is_float = isinstance(choice.default, DType)
    weight_dtype = choice.default if isinstance(choice.default, DType) else f32
    if not 1 <= max_batch <= max_tokens:
        raise UserError(
            f"build: got max_batch {max_batch} and max_tokens {max_tokens}; expected 1 <= batch <= tokens"
        )
    architecture = ARCHITECTURES[config.architecture]
    model = architecture.module(config, weight_dtype)
    stored = weight_dtype if is_float else bf16
    if kv_dtype is not None:
        if kv_dtype not in KV_FORMATS:
            raise UserError(f"build: kv_dtype: got {kv_dtype!r}; expected one of {', '.join(KV_FORMATS)}")
        stored = dtype(KV_FORMATS[kv_dtype])
    cache_type = _cache_type(config, stored, page_size, rope_mode)
    ids = spec.Tensor([spec.dim("n", 1, max_tokens)], "i32")
    exported = model.export({f: {"ids": ids, "cache": spec.KVCache(cache_type)} for f in functions})
    recipes = {
        name: architecture.source(config, name, exported.params[name]) for name in exported.module.params
    }
    module = quantize_weights(exported.module, choice) if choice.rules or not is_float else exported.module
    sources, formats = _stored_sources(recipes, module, choice)
    return ModelDefinition(
        module=module,
        sources=sources,
        cache_record=nn.cache_record(cache_type, config.rope_theta, config.rope_scaling),
        config={
            "architecture": config.architecture,
            "model_name": model_name,
            "format": str(choice),
            "vocab_size": config.vocab_size,
            "max_context": config.max_context,
            "max_tokens": max_tokens,
            "max_batch": max_batch,
            "eos_token_ids": list(config.eos_token_ids),
            "bos_token_id": config.bos_token_id,
        },
        names=architecture.names(config),
        formats=formats,
    )


def _stored_sources(
    recipes: dict[str, ParamSource], module: Module, choice: FormatChoice
) -> tuple[dict[str, ParamSource], dict[str, WeightFormat]]:
    """Recipes in the order of the module's params, with the dtypes that it has for them; formats of codes."""
    sources: dict[str, ParamSource] = {}
    formats: dict[str, WeightFormat] = {}
    for name, tensor in module.params.items():
        base = name.removesuffix(CODES)
        format = choice.of(base)
        if name in recipes:
            sources[name] = replace(recipes[name], dtype=tensor.dtype)
        elif base in recipes and isinstance(format, WeightFormat):
            sources[base], formats[base] = recipes[base], format
    return sources, formats


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
