"""GPT-2: learned positions, LayerNorm, a plain feed-forward block, biases everywhere.

Checkpoints store linear weights as ``[in, out]`` (``Conv1D``); they are transposed when they are loaded.
"""

from __future__ import annotations

from strata.core.dtypes import DType, f32
from strata.core.errors import UnsupportedError, UserError
from strata.frontend import nn
from strata.frontend.nn import op

from . import config as configs
from .config import ModelConfig, Positions
from .fields import Fields
from .registry import Architecture, ReadOptions, define_architecture
from .weights import NameRules, ParamSource, Transform

_CONV1D = ("c_attn", "c_proj", "c_fc")


class GPT2Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: ModelConfig, dtype: DType, layer: int) -> None:
        d = config.hidden_size
        self.layer = layer
        self.num_heads = config.num_heads
        self.scale = config.scores_scale(layer)
        self.c_attn = nn.Linear(d, 3 * d, True, dtype, bias_dtype=f32)
        self.c_proj = nn.Linear(d, d, True, dtype, bias_dtype=f32)

    def forward(self, x: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        qkv = self.c_attn(x)  # [n, 3*d]
        return self.c_proj(cache.attention_with_fused_qkv(self.layer, qkv, self.num_heads, self.scale))


class GPT2MLP(nn.Module):
    """Feed-forward block."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        self.activation = configs.ACTIVATIONS[config.activation]
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, True, dtype, bias_dtype=f32)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, True, dtype, bias_dtype=f32)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        return self.c_proj(self.activation(self.c_fc(x)))


class GPT2Block(nn.Module):
    """Attention and feed-forward block, each on normed input, added to the residual stream."""

    def __init__(self, config: ModelConfig, dtype: DType, layer: int) -> None:
        self.ln_1 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = GPT2Attention(config, dtype, layer)
        self.ln_2 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = GPT2MLP(config, dtype)

    def forward(self, x: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    """Embeddings and blocks; the last norm is a method of its own, since it is needed for fewer rows."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size, dtype, out_dtype=f32)
        self.wpe = nn.Embedding(config.num_positions, config.hidden_size, dtype, out_dtype=f32)
        self.h = nn.ModuleList(GPT2Block(config, dtype, i) for i in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``ids[n]`` to ``[n, d]``, before the last norm."""
        x = self.wte(ids) + self.wpe(cache.positions(ids))
        for block in self.h:
            x = block(x, cache)
        return x


class GPT2LMHeadModel(nn.Module):
    """The language model."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        self.transformer = GPT2Model(config, dtype)
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False, dtype)
        )

    def head(self, x: nn.Tensor) -> nn.Tensor:
        """Logits f32 ``[rows, vocab]`` of hidden states ``[rows, d]``."""
        x = self.transformer.ln_f(x)
        return self.transformer.wte.as_head(x, f32, "lm_head") if self.lm_head is None else self.lm_head(x)

    def prefill(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.Tensor, nn.PagedKVCache]:
        """Logits ``[num_seqs, vocab]`` after the last token of each sequence; the likeliest token, i32
        ``[num_seqs]``.
        """
        logits = self.head(cache.last_tokens(self.transformer(ids, cache)))
        return logits, op.argmax(logits), cache

    def decode(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.Tensor, nn.PagedKVCache]:
        """The same; compiled apart, for one token per sequence."""
        return self.prefill(ids, cache)

    def score(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.PagedKVCache]:
        """Logits ``[n, vocab]`` after every token."""
        return self.head(self.transformer(ids, cache)), cache


def _read(fields: Fields, options: ReadOptions) -> ModelConfig:
    if fields.boolean("add_cross_attention", False):
        raise UnsupportedError(f"{fields.where}: add_cross_attention is true; Strata builds decoders only")
    vocab_size = fields.integer("vocab_size", 1, configs.MAX_VOCAB)
    d = fields.integer("n_embd", 1, configs.MAX_WIDTH)
    heads = fields.integer("n_head", 1, configs.MAX_HEADS)
    if d % heads or d // heads > configs.MAX_HEAD_DIM:
        raise UserError(
            f"{fields.where}: got n_embd {d} and n_head {heads}; expected the first to be a multiple of the "
            f"second, "
            f"with at most {configs.MAX_HEAD_DIM} elements per head"
        )
    positions = fields.integer("n_positions", 1, configs.MAX_CONTEXT_TOKENS)
    return ModelConfig(
        architecture="GPT2LMHeadModel",
        vocab_size=vocab_size,
        hidden_size=d,
        intermediate_size=fields.integer("n_inner", 1, 4 * configs.MAX_WIDTH, 4 * d),
        num_layers=fields.integer("n_layer", 1, configs.MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        max_context=configs.read_context(fields, positions, options.max_context, None),
        activation=configs.read_activation(fields, "activation_function", "gelu_new"),
        norm_eps=fields.number("layer_norm_epsilon", 0.0, 1.0, 1e-5),
        tie_embeddings=fields.boolean("tie_word_embeddings", True),
        positions=Positions.LEARNED,
        num_positions=positions,
        scale_scores=fields.boolean("scale_attn_weights", True),
        scale_scores_by_layer=fields.boolean("scale_attn_by_inverse_layer_idx", False),
        eos_token_ids=configs.read_end_tokens(fields, options.folder, vocab_size),
        bos_token_id=fields.integer("bos_token_id", 0, vocab_size - 1, None),
        dtype=configs.read_dtype(fields),
        format=configs.read_format(fields),
    )


def _source(config: ModelConfig, name: str, parameter: nn.Parameter) -> ParamSource:
    layer, kind = name.split(".")[-2:]
    if layer in _CONV1D and kind == "weight":
        return ParamSource(((name, parameter.shape[::-1]),), parameter.dtype, Transform.TRANSPOSE)
    return ParamSource(((name, parameter.shape),), parameter.dtype)


def _names(config: ModelConfig) -> NameRules:
    # Old checkpoints store the causal mask of every layer; tied ones may store the head a second time.
    tied = ("lm_head.weight",) if config.tie_embeddings else ()
    return NameRules("transformer.", (".attn.bias", ".attn.masked_bias", *tied))


define_architecture(Architecture("GPT2LMHeadModel", "gpt2", _read, GPT2LMHeadModel, _source, _names))
