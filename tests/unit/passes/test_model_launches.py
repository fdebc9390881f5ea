"""Launches and memory of the models: what fusion is for, as counts."""

from __future__ import annotations

from collections import Counter

import pytest

from strata.graph.nodes import Function
from strata.models.config import Activation, ModelConfig, Positions
from strata.models.definition import build
from strata.passes import plan_memory, run_passes

LLAMA = {
    "architecture": "LlamaForCausalLM",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_context": 128,
    "activation": Activation.SILU,
    "norm_eps": 1e-5,
    "tie_embeddings": False,
    "positions": Positions.ROTARY,
}
GPT2 = LLAMA | {
    "architecture": "GPT2LMHeadModel",
    "activation": Activation.GELU_TANH,
    "num_kv_heads": 4,
    "positions": Positions.LEARNED,
    "num_positions": 128,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tie_embeddings": True,
}
QWEN2 = LLAMA | {"architecture": "Qwen2ForCausalLM", "qkv_bias": True}
QWEN3 = LLAMA | {"architecture": "Qwen3ForCausalLM", "qk_norm": True}

# Llama: norm, qkv, rope of q, rope of k + append, attention, o + residual, norm, gate_up, SwiGLU, down +
# residual. Qwen3 adds the norms of q and k; GPT-2 copies q out of qkv instead of rotating it, and its GELU is
# an epilogue.
PER_LAYER = [(LLAMA, 10), (QWEN2, 10), (QWEN3, 12), (GPT2, 9)]
# Embedding; last tokens (not in score), norm, head, argmax (not in score).
OUTSIDE = {"prefill": 5, "decode": 5, "score": 3}


def launches(function: Function) -> list[str]:
    return [n.attrs["body"].name for n in function.nodes if n.op == "fused"]


@pytest.mark.parametrize("weights", ["f32", "bf16", "f16", "int8:group=32", "int4"])
@pytest.mark.parametrize(("config", "per_layer"), PER_LAYER, ids=[c["architecture"] for c, _ in PER_LAYER])
def test_launches_per_layer(config: dict[str, object], per_layer: int, weights: str) -> None:
    config = ModelConfig(**config)  # type: ignore[arg-type]
    module = run_passes("default", build(config, weights).module)
    for function in module.functions:
        assert len(launches(function)) == OUTSIDE[function.name] + per_layer * config.num_layers
        kinds = Counter(n.op for n in function.nodes)
        assert set(kinds) <= {"input", "param", "const", "fused", "reshape"}


def test_layers_and_functions_share_bodies() -> None:
    module = run_passes("default", build(ModelConfig(**LLAMA), "bf16").module)  # type: ignore[arg-type]
    bodies = [n.attrs["body"] for f in module.functions for n in f.nodes if n.op == "fused"]
    by_name = {b.name: b for b in bodies}
    assert len({id(b) for b in bodies}) == len(by_name)
    # One layer's ten, of which both norms are the same, and five outside; score's norm is that of a layer,
    # its head has other rows.
    assert len(by_name) == 9 + 5 + 1


def test_more_layers_need_no_more_memory() -> None:
    arenas = []
    for layers in (2, 8):
        config = ModelConfig(**(LLAMA | {"num_layers": layers}))  # type: ignore[arg-type]
        module = run_passes("default", build(config, "bf16", max_tokens=64).module)
        plans = [plan_memory(f) for f in module.functions]
        arenas.append([p.arena_bytes for p in plans])
        for plan in plans:
            assert plan.arena_bytes <= 1.1 * plan.max_live_bytes
    assert arenas[0] == arenas[1]


def test_fusion_saves_launches_and_memory() -> None:
    module = build(ModelConfig(**LLAMA), "bf16", max_tokens=64).module  # type: ignore[arg-type]
    fused, plain = run_passes("default", module)["decode"], run_passes("zero", module)["decode"]
    assert len(launches(plain)) > 2 * len(launches(fused))
    assert plan_memory(plain).arena_bytes >= plan_memory(fused).arena_bytes
