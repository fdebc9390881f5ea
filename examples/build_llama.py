"""Build a Llama with ``strata.nn``, compile it, and generate tokens with an explicit loop.

The model is written as in PyTorch: modules with a ``forward``. Differences to look out for:

* q, k and v come from one projection, gate and up from another: fewer, larger products;
* attention goes through a *paged KV cache* that the functions take as an argument. It appends keys and
values,
  rotates them by position (RoPE) and attends to what is stored, for several sequences of different lengths;
* modules hold no values. ``export`` traces methods into a graph with named symbolic sizes ("seq_len",
"batch");
  arrays are given when the graph is compiled.

Run it with ``python examples/build_llama.py``; ``--help`` shows the sizes that can be changed. The weights
are random, so the tokens mean nothing; ``strata generate`` runs trained models.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator

import numpy as np

import strata
from strata.core.dtypes import DType
from strata.engine.kv_cache import PagedKVCache as RuntimeKVCache
from strata.frontend import nn
from strata.frontend.nn import PagedKVCache, RopeMode, Tensor, op, spec
from strata.runtime.program import Program


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the model. The defaults make a small one; TinyLlama's are in the comments."""

    hidden_size: int = 256  # 2048
    intermediate_size: int = 704  # 5632
    num_hidden_layers: int = 4  # 22
    num_attention_heads: int = 8  # 32
    num_key_value_heads: int = 4  # 4
    head_dim: int = 32  # 64
    vocab_size: int = 1024  # 32000
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    context_window_size: int = 512  # 2048
    prefill_chunk_size: int = 256  # tokens of one prefill call
    page_size: int = 16  # tokens of one page of the KV cache


# --- the model ------------------------------------------------------------------------------------


class LlamaFFN(nn.Module):
    """Gated feed-forward block: ``down(silu(gate(x)) * up(x))``, gate and up in one matrix."""

    def __init__(self, config: LlamaConfig) -> None:
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, seq_len, d]`` to the same."""
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class LlamaAttention(nn.Module):
    """Grouped-query attention: H query heads share K key and value heads."""

    def __init__(self, config: LlamaConfig) -> None:
        self.head_dim = config.head_dim
        self.num_q_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        heads = self.num_q_heads + 2 * self.num_kv_heads
        self.qkv_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_q_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, paged_kv_cache: PagedKVCache, layer_id: int) -> Tensor:
        """``[batch, seq_len, d]`` to the same."""
        d, h_q, h_kv = self.head_dim, self.num_q_heads, self.num_kv_heads
        b, s, _ = x.shape  # symbolic sizes: they can be used like numbers
        qkv = self.qkv_proj(x).reshape(b, s, h_q + 2 * h_kv, d)
        out = paged_kv_cache.attention_with_fused_qkv(layer_id, qkv, h_q, sm_scale=d**-0.5)
        return self.o_proj(out.reshape(b, s, h_q * d))


class LlamaDecoderLayer(nn.Module):
    """Attention and feed-forward block, each on normed input, each added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaFFN(config)

    def forward(self, x: Tensor, paged_kv_cache: PagedKVCache, layer_id: int) -> Tensor:
        """``[batch, seq_len, d]`` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), paged_kv_cache, layer_id)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Embedding, layers, last norm."""

    def __init__(self, config: LlamaConfig) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> Tensor:
        """``[batch, seq_len, d]`` to the same."""
        x = input_embed
        for layer_id, layer in enumerate(self.layers):
            x = layer(x, paged_kv_cache, layer_id)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """The language model: one method per function that will be compiled."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, out_dtype="float32")
        self.dtype: DType | str = "float32"

    def to(self, dtype: DType | str | None = None) -> LlamaForCausalLM:
        """Change the dtype of weights, activations and KV cache."""
        super().to(dtype)
        self.dtype = dtype or self.dtype
        return self

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids ``[seq_len]`` to hidden states ``[seq_len, d]``."""
        return self.model.embed_tokens(input_ids)

    def prefill(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """Process a prompt ``[1, seq_len, d]``; logits ``[1, 1, vocab]`` after its last token."""
        x = self.model(input_embed, paged_kv_cache)
        b, s, d = x.shape
        # An op given by an index formula: the last row. (x[:, -1:] would do as well.)
        last = op.tensor_expr(lambda x, i, _, k: x[i, s - 1, k], [x], (b, 1, d))
        return self.lm_head(last), paged_kv_cache

    def decode(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """Process one token ``[1, 1, d]``; logits ``[1, 1, vocab]``."""
        return self.lm_head(self.model(input_embed, paged_kv_cache)), paged_kv_cache

    def batch_prefill(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """Process several prompts, one after the other in ``[1, seq_len, d]``; logits ``[num_seqs, 1,
        vocab]``.
        """
        x = self.model(input_embed, paged_kv_cache)
        return self.lm_head(paged_kv_cache.last_tokens(x)), paged_kv_cache

    def batch_decode(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """Process one token of each sequence, ``[batch, 1, d]``; logits ``[batch, 1, vocab]``."""
        return self.decode(input_embed, paged_kv_cache)

    def create_kv_cache(
        self, max_batch_size: int, max_total_seq_len: int, prefill_chunk_size: int, page_size: int
    ) -> PagedKVCache:
        """The KV cache that the functions take. Keys are rotated by position before they are stored."""
        return PagedKVCache.create(
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            num_hidden_layers=self.config.num_hidden_layers,
            num_attention_heads=self.config.num_attention_heads,
            num_key_value_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            rope_mode=RopeMode.NORMAL,
            rope_theta=self.config.rope_theta,
            dtype=self.dtype,
        )

    def get_default_spec(self) -> dict[str, dict[str, object]]:
        """Arguments of each function. A name is one size wherever it occurs; ``int`` comes at run time."""
        d, dtype = self.config.hidden_size, self.dtype
        seq_len = spec.dim("seq_len", 1, self.config.prefill_chunk_size)
        batch = spec.dim("batch", 1, 8)
        cache = spec.Object(object_type=PagedKVCache)
        packed = {"param_mode": "packed"}  # weights in one table that is bound once ("plain": as arguments)
        return {
            "embed": {"input_ids": spec.Tensor([seq_len], "int32"), "$": packed},
            "prefill": {
                "input_embed": spec.Tensor([1, "seq_len", d], dtype),
                "paged_kv_cache": cache,
                "$": packed,
            },
            "decode": {"input_embed": spec.Tensor([1, 1, d], dtype), "paged_kv_cache": cache, "$": packed},
            "batch_prefill": {
                "input_embed": spec.Tensor([1, "seq_len", d], dtype),
                "paged_kv_cache": cache,
                "$": packed,
            },
            "batch_decode": {
                "input_embed": spec.Tensor([batch, 1, d], dtype),
                "paged_kv_cache": cache,
                "$": packed,
            },
            "create_kv_cache": {
                "max_batch_size": int,
                "max_total_seq_len": int,
                "prefill_chunk_size": int,
                "page_size": self.config.page_size,  # compiled into the kernels: a number
                "$": {"param_mode": "none"},
            },
        }


# --- compile and generate -------------------------------------------------------------------------


def random_weights(params: dict[str, nn.Parameter], seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """An array for each parameter: norms are 1, matrices keep the size of what they multiply."""
    rng = np.random.default_rng(seed)
    for name, parameter in params.items():
        dtype = np.dtype(parameter.dtype.numpy_name)
        if parameter.ndim == 1:
            yield name, np.ones(parameter.shape, dtype)
        else:
            noise = rng.standard_normal(parameter.shape, np.float32)
            yield name, (noise * parameter.shape[-1] ** -0.5).astype(dtype)


def sample(logits: np.ndarray) -> int:
    """The most likely token."""
    return int(logits.reshape(-1).argmax())


def generate(program: Program, cache: RuntimeKVCache, prompt: list[int], num_tokens: int) -> list[int]:
    """The loop of every language model, step by step.

    Args:
        program: Compiled functions.
        cache: KV cache with room for prompt and answer.
        prompt: Token ids.
        num_tokens: Tokens to generate.

    Returns:
        Token ids.
    """
    sequence = 0
    cache.add_sequence(sequence)

    # Prefill: the whole prompt in one pass. begin_forward reserves pages for its tokens and says where they
    # go.
    hidden = program["embed"](np.array(prompt, np.int32))  # [seq_len, d]
    view = cache.begin_forward([sequence], [len(prompt)])
    logits = program["prefill"](hidden[None], view)  # [1, 1, vocab]
    cache.end_forward()
    tokens = [sample(logits)]

    # Decode: one token at a time; attention sees all tokens before it through the cache.
    while len(tokens) < num_tokens:
        hidden = program["embed"](np.array(tokens[-1:], np.int32))  # [1, d]
        view = cache.begin_forward([sequence], [1])
        logits = program["decode"](hidden[None], view)
        cache.end_forward()
        tokens.append(sample(logits))

    cache.remove_sequence(sequence)
    return tokens


def main() -> None:
    """Build, compile, run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden-size", type=int, default=LlamaConfig.hidden_size)
    parser.add_argument("--layers", type=int, default=LlamaConfig.num_hidden_layers)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    config = LlamaConfig(hidden_size=arguments.hidden_size, num_hidden_layers=arguments.layers)

    model = LlamaForCausalLM(config).to(arguments.dtype)
    exported = model.export(model.get_default_spec())
    module, params = exported  # the graph, and shapes and dtypes of the weights by name
    print(f"functions: {', '.join(f.name for f in module.functions)}")
    print(f"parameters: {sum(int(np.prod(p.shape)) for p in params.values()):,} in {len(params)} tensors")

    start = time.perf_counter()
    program = strata.compile(exported, params=random_weights(params))
    print(f"compiled in {time.perf_counter() - start:.1f} s")

    assert exported.cache is not None  # the spec has a constructor of one
    pages = config.context_window_size // config.page_size
    cache = RuntimeKVCache(
        exported.cache, num_pages=pages, max_context=config.context_window_size, max_batch=1
    )
    prompt = [1, 5, 9, 2, 6, 5, 3, 5]
    start = time.perf_counter()
    tokens = generate(program, cache, prompt, arguments.tokens)
    seconds = time.perf_counter() - start
    print(f"prompt {prompt}\ntokens {tokens}\n{len(tokens) / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
