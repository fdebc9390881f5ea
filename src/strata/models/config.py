"""What a language model is, as read from ``config.json``: sizes, variants and position encoding.

:class:`ModelConfig` covers every decoder that Strata builds; the architecture files (``llama.py``,
``gpt2.py``) fill it from :class:`~strata.models.fields.Fields` with the helpers below. Values are checked
here, once: later stages may rely on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from strata.core.dtypes import DType, dtype
from strata.core.errors import UnsupportedError, UserError
from strata.core.weight_format import FormatChoice
from strata.frontend.nn import Tensor, op
from strata.frontend.nn.rope import DEFAULT_THETA, UNSCALED, RopeScaling

from .fields import Fields, read_object
from .quantize.stored import read_stored_format

# Bounds that no released model comes near; a config beyond them is damaged, and building it would exhaust
# memory.
MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
MAX_CONTEXT_TOKENS = 1 << 24


class Activation(Enum):
    """Nonlinearities of feed-forward blocks, by the name in ``config.json``."""

    SILU = "silu"
    SWISH = "swish"
    GELU = "gelu"
    GELU_NEW = "gelu_new"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: op.silu,
    Activation.SWISH: op.silu,
    Activation.GELU: op.gelu,
    Activation.GELU_NEW: lambda x: op.gelu(x, "tanh"),
    Activation.GELU_TANH: lambda x: op.gelu(x, "tanh"),
    Activation.RELU: op.relu,
}


class Positions(Enum):
    """How tokens know where they are."""

    ROTARY = "rotary"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        architecture: Name as in ``config.json`` (``"LlamaForCausalLM"``).
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward block.
        num_layers: Blocks.
        num_heads: Query heads H.
        num_kv_heads: Key/value heads K; divides H.
        head_dim: Elements per head D.
        max_context: Largest sequence in tokens.
        activation: Nonlinearity of the feed-forward block.
        norm_eps: Epsilon of every norm.
        tie_embeddings: The head is the transposed embedding.
        positions: Rotary or learned.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are stretched.
        num_positions: Rows of the table of learned positions (0 for rotary).
        qkv_bias, out_bias, mlp_bias: Which projections have biases.
        qk_norm: RMSNorm on each head of q and k (Qwen3).
        scale_scores: Scores are divided by the root of ``head_dim``.
        scale_scores_by_layer: Scores of layer l are also divided by ``l + 1`` (a GPT-2 variant).
        eos_token_ids: Tokens that end a text.
        bos_token_id: Token that begins one, if any.
        dtype: Dtype that the config declares for the weights (that are not quantised), if any.
        format: Formats of the weights, if some are quantised.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    activation: Activation
    norm_eps: float
    tie_embeddings: bool
    positions: Positions
    rope_theta: float = DEFAULT_THETA
    rope_scaling: RopeScaling = UNSCALED
    num_positions: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    scale_scores: bool = True
    scale_scores_by_layer: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: DType | None = None
    format: FormatChoice | None = None

    def scores_scale(self, layer: int) -> float:
        """Factor on ``q . k`` in layer ``layer``."""
        scale = self.head_dim**-0.5 if self.scale_scores else 1.0
        return scale / (layer + 1) if self.scale_scores_by_layer else scale


def read_heads(
    fields: Fields, heads_key: str, hidden_size: int, default_head_dim: int | None = None
) -> tuple[int, int, int]:
    """``(num_heads, num_kv_heads, head_dim)``.

    Raises:
        UserError: head counts that contradict each other or the hidden size.
    """
    heads = fields.integer(heads_key, 1, MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    if heads % kv_heads:
        raise UserError(
            f"{fields.where}: got {heads_key} {heads} and num_key_value_heads {kv_heads}; "
            f"expected the first to be a multiple of the second"
        )
    head_dim = fields.integer("head_dim", 1, MAX_HEAD_DIM, default_head_dim)
    if head_dim is None:
        if hidden_size % heads:
            raise UserError(
                f"{fields.where}: got hidden size {hidden_size} and {heads_key} {heads} without head_dim; "
                f"expected the first to be a multiple of the second"
            )
        head_dim = hidden_size // heads
        if head_dim > MAX_HEAD_DIM:
            raise UserError(
                f"{fields.where}: got {head_dim} elements per head; expected at most {MAX_HEAD_DIM}"
            )
    return heads, kv_heads, head_dim


def read_activation(fields: Fields, key: str, default: str) -> Activation:
    """The nonlinearity called ``fields[key]``.

    Raises:
        UnsupportedError: none that Strata has.
    """
    name = fields.string(key, default)
    known = {a.value: a for a in Activation}
    if name not in known:
        raise UnsupportedError(f"{fields.where}: {key}: got {name!r}; Strata has {', '.join(sorted(known))}")
    return known[name]


def read_dtype(fields: Fields) -> DType | None:
    """Dtype that the config declares for its weights (``dtype``, or ``torch_dtype`` before transformers 5).

    Raises:
        UserError: unknown or not a float type.
    """
    key = "dtype" if "dtype" in fields else "torch_dtype"
    name = fields.string(key, None)
    if name is None or name == "auto":
        return None
    try:
        found = dtype(name.removeprefix("torch."))
    except UserError:
        found = None
    if found is None or not found.is_float:
        raise fields.error(key, "one of float32, bfloat16, float16, float64")
    return found


def read_format(fields: Fields) -> FormatChoice | None:
    """Formats of the weights; ``None`` if all are plain floats.

    Raises:
        UserError: a ``quantization_config`` that cannot be.
        UnsupportedError: one that Strata does not read.
    """
    stored = read_stored_format(fields, read_dtype(fields))
    return None if stored is None else stored.choice


def read_context(fields: Fields, trained: int, limit: int | None, window: int | None) -> int:
    """Tokens that the model may see.

    Args:
        fields: The config.
        trained: Tokens that the checkpoint allows.
        limit: What the caller asks for at most; ``None`` = all.
        window: Sliding window in tokens (a token sees itself and ``window - 1`` before it), if any layer has
            one.

    Raises:
        UserError: ``limit`` is not in ``1..trained``.
        UnsupportedError: the context exceeds the window, so that attention would have to slide.
    """
    if limit is not None and not 1 <= limit <= trained:
        raise UserError(f"{fields.where}: got a maximum context of {limit} tokens; expected 1..{trained}")
    context = limit or trained
    if window is not None and window < context:
        raise UnsupportedError(
            f"{fields.where}: sliding_window is {window} tokens and the context {context}; sliding "
            f"attention is "
            f"not available: limit the context to {window} tokens (max_context={window})"
        )
    return context


def read_end_tokens(fields: Fields, folder: Path | None, vocab_size: int) -> tuple[int, ...]:
    """Tokens that end a text: those of ``generation_config.json`` in ``folder`` if it has some, else the
    config's.

    Raises:
        UserError: an id is no token, or the file is damaged.
    """
    ids = fields.token_ids("eos_token_id", vocab_size)
    path = None if folder is None else folder / "generation_config.json"
    if path is not None and path.is_file():
        ids = Fields(read_object(path), str(path)).token_ids("eos_token_id", vocab_size) or ids
    return ids
