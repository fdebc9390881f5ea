"""The paged KV cache as models see it: an object that attention layers append to and read from.

Underneath it is functional: each append is a ``kv_append`` node that makes a new cache value, and the object
keeps the latest one; the exported function returns it.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.dims import Dim, SymDim, product
from strata.core.dtypes import DType
from strata.core.dtypes import dtype as _dtype
from strata.core.errors import ShapeError, UnsupportedError, UserError
from strata.graph.nodes import Node
from strata.graph.types import CacheType, RopeMode
from strata.runtime.records import CacheRecord

from . import op, trace
from .rope import DEFAULT_THETA, UNSCALED, RopeScaling, attention_factor, inverse_frequencies
from .spec import RuntimeInt
from .tensor import Tensor

Size = int | RuntimeInt


@dataclass(frozen=True, slots=True)
class CacheDeclaration:
    """A cache as a model's constructor describes it.

    Attributes:
        type: Type of the values in the graph.
        record: The same with rotary frequencies, for the runtime.
        max_batch_size: Sequences at once.
        max_total_seq_len: Tokens of all sequences together.
        prefill_chunk_size: Tokens of one pass.
    """

    type: CacheType
    record: CacheRecord
    max_batch_size: Size
    max_total_seq_len: Size
    prefill_chunk_size: Size


def cache_record(
    type_: CacheType, rope_theta: float = DEFAULT_THETA, rope_scaling: RopeScaling = UNSCALED
) -> CacheRecord:
    """The runtime's description of a cache of ``type_`` with these rotary frequencies."""
    is_rotary = type_.rope is not RopeMode.NONE
    frequencies = inverse_frequencies(rope_theta, type_.rotary_dim, rope_scaling) if is_rotary else ()
    return CacheRecord(
        num_layers=type_.num_layers,
        num_kv_heads=type_.num_kv_heads,
        head_dim=type_.head_dim,
        dtype=type_.dtype.name,
        page_size=type_.page_size,
        rope=type_.rope.value,
        rotary_dim=type_.rotary_dim,
        rope_inv_freq=tuple(float(x) for x in frequencies),
        rope_attention_factor=attention_factor(rope_scaling) if is_rotary else 1.0,
    )


class PagedKVCache:
    """Keys and values of all tokens so far, in pages, for a batch of sequences of different lengths.

    Models get one as an argument (``spec.KVCache()``) or make one with :meth:`create` in a constructor
    function.

    Attributes:
        type: Layers, heads, dtype, page size, rotary mode.
    """

    def __init__(self, node: Node, type_: CacheType, declaration: CacheDeclaration | None = None) -> None:
        self.node = node
        self.type = type_
        self.declaration = declaration

    @classmethod
    def create(
        cls,
        max_batch_size: Size,
        max_total_seq_len: Size,
        prefill_chunk_size: Size,
        page_size: Size,
        num_hidden_layers: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        rope_mode: RopeMode | str = RopeMode.NORMAL,
        rope_theta: float = DEFAULT_THETA,
        rope_scaling: RopeScaling = UNSCALED,
        dtype: DType | str = "float16",
    ) -> PagedKVCache:
        """A new, empty cache.

        Args:
            max_batch_size: Sequences at once.
            max_total_seq_len: Tokens of all sequences together.
            prefill_chunk_size: Tokens of one pass.
            page_size: Tokens per page; compiled into the kernels, so it must be a number in the spec.
            num_hidden_layers: Attention layers.
            num_attention_heads: Query heads H.
            num_key_value_heads: Key/value heads K; divides H.
            head_dim: Elements per head D.
            rope_mode: ``"none"``, ``"normal"`` (keys are rotated before they are stored) or ``"inline"``
                (attention rotates).
            rope_theta: Base of the rotary frequencies.
            rope_scaling: How they are stretched.
            dtype: Dtype of stored keys and values.

        Raises:
            UserError: sizes that contradict each other, or a page size that is not a number.
        """
        if not isinstance(page_size, int):
            raise trace.fail(
                UserError,
                "PagedKVCache.create: page_size is compiled into the kernels; give a number in the spec, "
                "such as 16",
            )
        if num_key_value_heads < 1 or num_attention_heads % num_key_value_heads:
            raise trace.fail(
                UserError,
                f"PagedKVCache.create: got {num_attention_heads} heads and {num_key_value_heads} key/value "
                f"heads; "
                f"expected the first to be a multiple of the second",
            )
        mode = _rope_mode(rope_mode)
        rotary_dim = 0 if mode is RopeMode.NONE else head_dim
        type_ = CacheType(
            num_hidden_layers, num_key_value_heads, head_dim, _dtype(dtype), page_size, mode, rotary_dim
        )
        record = cache_record(type_, rope_theta, rope_scaling)
        declaration = CacheDeclaration(type_, record, max_batch_size, max_total_seq_len, prefill_chunk_size)
        tokens = max_total_seq_len if isinstance(max_total_seq_len, int) else 1
        node = trace.emit(
            "create_kv_cache",
            (),
            type=type_,
            num_pages=max(1, -(-tokens // page_size)),
            max_context=max(1, tokens),
            rope_theta=float(rope_theta),
        )
        return cls(node, type_, declaration)

    def attention_with_fused_qkv(
        self, layer_id: int, qkv: Tensor, num_qo_heads: int, sm_scale: float | None = None
    ) -> Tensor:
        """Rotate, append and attend, from one projection that holds queries, keys and values.

        Args:
            layer_id: Attention layer.
            qkv: ``[..., H + 2K, D]`` or ``[..., (H + 2K) * D]``: the heads of q, then k, then v. The leading
                dims
                hold the tokens of this pass: ``[n]``, ``[1, seq_len]`` or ``[batch, 1]``.
            num_qo_heads: Query heads H.
            sm_scale: Factor on the scores; ``D ** -0.5`` by default.

        Returns:
            ``[..., H, D]`` (or ``[..., H * D]``), dtype of ``qkv``.

        Raises:
            ShapeError: the last dims are neither.
        """
        heads, d = num_qo_heads + 2 * self.type.num_kv_heads, self.type.head_dim
        if qkv.ndim >= 3 and qkv.shape[-2:] == (heads, d):
            lead, flat = qkv.shape[:-2], False
        elif qkv.ndim >= 2 and qkv.shape[-1] == heads * d:
            lead, flat = qkv.shape[:-1], True
        else:
            raise trace.fail(
                ShapeError,
                f"attention_with_fused_qkv: got qkv {qkv.node.type}; expected [..., {heads}, {d}] or [..., "
                f"{heads * d}] "
                f"({num_qo_heads} query heads, {self.type.num_kv_heads} key heads, as many value heads)",
            )
        tokens = op.reshape(qkv, (*lead, heads, d))
        q, k, v = op.split(tokens, [num_qo_heads, self.type.num_kv_heads, self.type.num_kv_heads], axis=-2)
        out = self.attention(layer_id, q, k, v, sm_scale)
        return op.reshape(out, (*lead, num_qo_heads * d)) if flat else out

    def attention(
        self, layer_id: int, q: Tensor, k: Tensor, v: Tensor, sm_scale: float | None = None
    ) -> Tensor:
        """Rotate q and k, append k and v, attend with q.

        Args:
            layer_id: Attention layer.
            q: ``[..., H, D]``.
            k: ``[..., K, D]``.
            v: ``[..., K, D]``.
            sm_scale: Factor on the scores; ``D ** -0.5`` by default.

        Returns:
            ``[..., H, D]``, dtype of ``q``.
        """
        shape = q.shape
        q, k, v = (self._tokens("attention", x, keep=2) for x in (q, k, v))
        if self.type.rope is RopeMode.NORMAL:
            q, k = (Tensor(trace.emit("rope", (x.node, self.node))) for x in (q, k))
        self.node = trace.emit("kv_append", (self.node, k.node, v.node), layer=layer_id)
        scale = self.type.head_dim**-0.5 if sm_scale is None else float(sm_scale)
        out = Tensor(trace.emit("paged_attention", (q.node, self.node), layer=layer_id, scale=scale))
        return op.reshape(out, shape)

    def last_tokens(self, x: Tensor) -> Tensor:
        """Rows of the last token of each sequence in this pass.

        Args:
            x: ``[n, d]``, ``[1, seq_len, d]`` or ``[batch, 1, d]``.

        Returns:
            ``[num_seqs, d]``, or ``[num_seqs, 1, d]`` for a tensor of three dims.
        """
        rows = Tensor(trace.emit("last_tokens", (self._tokens("last_tokens", x, keep=1).node, self.node)))
        return rows if x.ndim == 2 else op.expand_dims(rows, 1)

    def positions(self, like: Tensor) -> Tensor:
        """Position in its sequence of each token of this pass.

        Args:
            like: A tensor whose dims are those of the tokens: ``ids[n]`` or ``ids[1, seq_len]``.

        Returns:
            i32, shape of ``like``.
        """
        tokens = _one_dim("positions", like.shape)
        return op.reshape(Tensor(trace.emit("cache_positions", (self.node,), tokens=tokens)), like.shape)

    def _tokens(self, what: str, x: Tensor, keep: int) -> Tensor:
        """``x`` with its leading dims joined to one, the last ``keep`` left as they are."""
        if x.ndim < keep + 1:
            raise trace.fail(ShapeError, f"{what}: got {x.node.type}; expected tokens and {keep} more dims")
        split = x.ndim - keep
        return op.reshape(x, (_one_dim(what, x.shape[:split]), *x.shape[split:]))


def _one_dim(what: str, dims: tuple[Dim, ...]) -> Dim:
    """Number of tokens in a pass: one symbolic dim or a number, since the cache's view has one token axis."""
    tokens = product(dims)
    if not isinstance(tokens, int | SymDim):
        raise trace.fail(
            UnsupportedError,
            f"{what}: {list(dims)} tokens have two symbolic dims; give one, and put the tokens of all "
            f"sequences "
            f"one after the other along it",
        )
    return tokens


def _rope_mode(mode: RopeMode | str) -> RopeMode:
    names = {m.value: m for m in RopeMode}
    if isinstance(mode, str):
        if mode not in names:
            raise trace.fail(UserError, f"rope_mode: got {mode!r}; expected one of {', '.join(names)}")
        return names[mode]
    return mode
