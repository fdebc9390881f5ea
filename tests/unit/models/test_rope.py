"""Rotary frequencies equal those of transformers."""

import numpy as np
import pytest

from strata.frontend.nn.rope import RopeScaling, RopeType, attention_factor, inverse_frequencies
from strata.models import parse_config
from strata.models.fields import Fields
from strata.models.rope import read_rope

CASES = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 2048},
    {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "attention_factor": 1.5,
    },
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0.5, "original_max_position_embeddings": 4096},
]


@pytest.mark.parametrize("parameters", CASES, ids=lambda c: f"{c['rope_type']}-{c.get('factor', 1)}")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_equal_transformers(parameters: dict, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=65536,
        rope_parameters=dict(parameters),
    )
    reference = LlamaRotaryEmbedding(config)
    theta, scaling = read_rope(Fields({"rope_parameters": parameters}, "config"), 65536)
    got = inverse_frequencies(theta, head_dim, scaling)
    assert got.dtype == np.float32
    # One unit in the last place: the two libraries' powers differ by that much.
    np.testing.assert_allclose(got, reference.inv_freq.numpy(), rtol=3e-7)
    assert attention_factor(scaling) == pytest.approx(reference.attention_scaling)


def test_degenerate_ramp() -> None:
    """Equal borders of the ramp do not divide by zero."""
    scaling = RopeScaling(RopeType.YARN, 4.0, 4096, beta_fast=2.0, beta_slow=2.0, truncate=False)
    assert np.isfinite(inverse_frequencies(1e4, 32, scaling)).all()


def test_original_context_defaults_to_the_whole_one() -> None:
    data = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    }
    assert parse_config(data).rope_scaling.original_context == 77
