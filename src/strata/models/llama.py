"""The Llama family: Llama 1, 2 and 3, TinyLlama, Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on q
and k).

One matrix makes q, k and v, and one gate and up: fewer and larger products. Activations are f32; weights
have the format's dtype, vectors (norms, biases) are f32. Hidden states are ``[n, d]``: n tokens of all
sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strata.core.dtypes import DType, f32
from strata.core.errors import UserError
from strata.frontend import nn
from strata.frontend.nn import op

from . import config as configs
from .config import ModelConfig, Positions
from .fields import Fields
from .registry import Architecture, ReadOptions, define_architecture
from .rope import read_rope
from .weights import NameRules, ParamSource

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, dtype: DType, layer: int) -> None:
        heads, kv_heads, d = config.num_heads, config.num_kv_heads, config.head_dim
        self.layer = layer
        self.sizes = (heads, kv_heads, kv_heads)
        self.head_dim = d
        self.scale = config.scores_scale(layer)
        self.qkv_proj = nn.Linear(
            config.hidden_size, sum(self.sizes) * d, config.qkv_bias, dtype, bias_dtype=f32
        )
        self.o_proj = nn.Linear(heads * d, config.hidden_size, config.out_bias, dtype, bias_dtype=f32)
        self.q_norm = nn.RMSNorm(d, config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(d, config.norm_eps) if config.qk_norm else None

    def forward(self, x: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        n, d = x.shape[0], self.head_dim
        qkv = self.qkv_proj(x).reshape(n, sum(self.sizes), d)  # [n, H+2K, D]
        q, k, v = op.split(qkv, self.sizes, axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out = cache.attention(self.layer, q, k, v, self.scale)  # [n, H, D]
        return self.o_proj(out.reshape(n, self.sizes[0] * d))


class LlamaMLP(nn.Module):
    """Gated feed-forward block: ``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        d, width = config.hidden_size, config.intermediate_size
        self.activation = configs.ACTIVATIONS[config.activation]
        self.gate_up_proj = nn.Linear(d, 2 * width, config.mlp_bias, dtype, bias_dtype=f32)
        self.down_proj = nn.Linear(width, d, config.mlp_bias, dtype, bias_dtype=f32)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(self.activation(gate) * up)


class LlamaLayer(nn.Module):
    """Attention and feed-forward block, each on normed input, added to the residual stream."""

    def __init__(self, config: ModelConfig, dtype: DType, layer: int) -> None:
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = LlamaAttention(config, dtype, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = LlamaMLP(config, dtype)

    def forward(self, x: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``[n, d]`` to ``[n, d]``."""
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Embedding and layers; the last norm is a method of its own, since it is needed for fewer rows."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype, out_dtype=f32)
        self.layers = nn.ModuleList(LlamaLayer(config, dtype, i) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> nn.Tensor:
        """``ids[n]`` to ``[n, d]``, before the last norm."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cache)
        return x


class LlamaForCausalLM(nn.Module):
    """A language model of the family."""

    def __init__(self, config: ModelConfig, dtype: DType) -> None:
        self.model = LlamaModel(config, dtype)
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False, dtype)
        )

    def head(self, x: nn.Tensor) -> nn.Tensor:
        """Logits f32 ``[rows, vocab]`` of hidden states ``[rows, d]``."""
        x = self.model.norm(x)
        return self.model.embed_tokens.as_head(x, f32, "lm_head") if self.lm_head is None else self.lm_head(x)

    def prefill(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.Tensor, nn.PagedKVCache]:
        """Logits ``[num_seqs, vocab]`` after the last token of each sequence; the likeliest token, i32
        ``[num_seqs]``.
        """
        logits = self.head(cache.last_tokens(self.model(ids, cache)))
        return logits, op.argmax(logits), cache

    def decode(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.Tensor, nn.PagedKVCache]:
        """The same; compiled apart, for one token per sequence."""
        return self.prefill(ids, cache)

    def score(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> tuple[nn.Tensor, nn.PagedKVCache]:
        """Logits ``[n, vocab]`` after every token."""
        return self.head(self.model(ids, cache)), cache


# --- configs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Variant:
    """What tells the members of the family apart.

    Attributes:
        qkv_bias: Biases on q, k, v whatever the config says.
        attention_bias: The config may ask for biases on q, k, v, o.
        mlp_bias: The config may ask for biases in the feed-forward block.
        qk_norm: Norms on the heads of q and k.
        head_dim: Elements per head if the config does not say; ``None`` = hidden size / heads.
        window: How the config says that attention slides; ``None`` = it never does.
    """

    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    window: Callable[[Fields, int], int | None] | None = None


def _mistral_window(fields: Fields, num_layers: int) -> int | None:
    """Every layer slides; the key's absence means 4096 tokens, and ``null`` no window."""
    default = None if "sliding_window" in fields.data else 4096
    return fields.integer("sliding_window", 1, configs.MAX_CONTEXT_TOKENS, default)


def _qwen_window(fields: Fields, num_layers: int) -> int | None:
    """With ``use_sliding_window``: the layers of ``layer_types``, or those from ``max_window_layers`` on."""
    if not fields.boolean("use_sliding_window", False):
        return None
    types = fields.strings("layer_types")
    full = fields.integer("max_window_layers", 0, configs.MAX_LAYERS, 28)
    slides = "sliding_attention" in types if types else full < num_layers
    return fields.integer("sliding_window", 1, configs.MAX_CONTEXT_TOKENS, 4096) if slides else None


def _reader(architecture: str, variant: _Variant) -> Callable[[Fields, ReadOptions], ModelConfig]:
    def read(fields: Fields, options: ReadOptions) -> ModelConfig:
        vocab_size = fields.integer("vocab_size", 1, configs.MAX_VOCAB)
        hidden_size = fields.integer("hidden_size", 1, configs.MAX_WIDTH)
        num_layers = fields.integer("num_hidden_layers", 1, configs.MAX_LAYERS)
        heads, kv_heads, head_dim = configs.read_heads(
            fields, "num_attention_heads", hidden_size, variant.head_dim
        )
        if head_dim % 2:
            raise UserError(
                f"{fields.where}: got {head_dim} elements per head; rotary embedding needs an even number"
            )
        trained = fields.integer("max_position_embeddings", 1, configs.MAX_CONTEXT_TOKENS)
        window = variant.window(fields, num_layers) if variant.window else None
        theta, scaling = read_rope(fields, trained)
        bias = variant.attention_bias and fields.boolean("attention_bias", False)
        return ModelConfig(
            architecture=architecture,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size", 1, 4 * configs.MAX_WIDTH),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_context=configs.read_context(fields, trained, options.max_context, window),
            activation=configs.read_activation(fields, "hidden_act", "silu"),
            norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, 1e-6),
            tie_embeddings=fields.boolean("tie_word_embeddings", False),
            positions=Positions.ROTARY,
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=variant.qkv_bias or bias,
            out_bias=bias,
            mlp_bias=variant.mlp_bias and fields.boolean("mlp_bias", False),
            qk_norm=variant.qk_norm,
            eos_token_ids=configs.read_end_tokens(fields, options.folder, vocab_size),
            bos_token_id=fields.integer("bos_token_id", 0, vocab_size - 1, None),
            dtype=configs.read_dtype(fields),
            format=configs.read_format(fields),
        )

    return read


# --- weights --------------------------------------------------------------------------------------


def _source(config: ModelConfig, name: str, parameter: nn.Parameter) -> ParamSource:
    """Fused projections are made of their parts, one below the other; the rest is taken as it is."""
    module, _, kind = name.rpartition(".")
    parent, _, layer = module.rpartition(".")
    if layer not in _FUSED:
        return ParamSource(((name, parameter.shape),), parameter.dtype)
    kv_rows = config.num_kv_heads * config.head_dim
    rows = {
        "q_proj": config.num_heads * config.head_dim,
        "k_proj": kv_rows,
        "v_proj": kv_rows,
        "gate_proj": config.intermediate_size,
        "up_proj": config.intermediate_size,
    }
    parts = tuple((f"{parent}.{part}.{kind}", (rows[part], *parameter.shape[1:])) for part in _FUSED[layer])
    return ParamSource(parts, parameter.dtype)


def _names(config: ModelConfig) -> NameRules:
    # Old checkpoints store the rotary frequencies; tied ones may store the head a second time.
    tied = ("lm_head.weight",) if config.tie_embeddings else ()
    return NameRules("model.", ("rotary_emb.inv_freq", *tied))


def _define(name: str, model_type: str, variant: _Variant) -> None:
    define_architecture(
        Architecture(name, model_type, _reader(name, variant), LlamaForCausalLM, _source, _names)
    )


_define("LlamaForCausalLM", "llama", _Variant(attention_bias=True, mlp_bias=True))
_define("MistralForCausalLM", "mistral", _Variant(window=_mistral_window))
_define("Qwen2ForCausalLM", "qwen2", _Variant(qkv_bias=True, window=_qwen_window))
_define(
    "Qwen3ForCausalLM",
    "qwen3",
    _Variant(attention_bias=True, qk_norm=True, head_dim=128, window=_qwen_window),
)
