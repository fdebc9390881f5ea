"""Rotary parameters of a ``config.json``."""

from __future__ import annotations

from typing import assert_never

from strata.core.errors import UnsupportedError, UserError
from strata.frontend.nn.rope import DEFAULT_THETA, UNSCALED, RopeScaling, RopeType

from .fields import Fields

_MAX_TOKENS = 1 << 24


def read_rope(fields: Fields, max_positions: int) -> tuple[float, RopeScaling]:
    """Base and scaling of a config's rotary embedding: ``rope_parameters`` (transformers 5) or
    ``rope_theta`` and ``rope_scaling``.

    Args:
        fields: The whole config.
        max_positions: Its ``max_position_embeddings``.

    Raises:
        UserError: missing or impossible values.
        UnsupportedError: a scaling rule that Strata lacks, or a partly rotated head.
    """
    theta = fields.number("rope_theta", 1.0, 1e12, DEFAULT_THETA)
    nested = fields.object("rope_parameters") or fields.object("rope_scaling")
    partial = fields.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    if nested is not None:
        partial = nested.number("partial_rotary_factor", 0.0, 1.0, partial)
        theta = nested.number("rope_theta", 1.0, 1e12, theta)
    if partial != 1.0:
        raise UnsupportedError(
            f"{fields.where}: partial_rotary_factor is {partial:g}; Strata rotates whole heads only"
        )
    if nested is None:
        return theta, UNSCALED
    key = "rope_type" if "rope_type" in nested else "type"
    name = nested.string(key, RopeType.DEFAULT.value)
    known = {t.value: t for t in RopeType}
    if name not in known:
        raise UnsupportedError(f"{nested.where}: {key}: got {name!r}; Strata has {', '.join(known)}")
    original = fields.integer("original_max_position_embeddings", 1, _MAX_TOKENS, max_positions)
    match known[name]:
        case RopeType.DEFAULT:
            return theta, UNSCALED
        case RopeType.LINEAR:
            return theta, RopeScaling(RopeType.LINEAR, nested.number("factor", 1e-3, 1e6))
        case RopeType.LLAMA3:
            return theta, _read_llama3(nested, original)
        case RopeType.YARN:
            return theta, _read_yarn(nested, theta, original)
        case never:
            assert_never(never)


def _read_llama3(nested: Fields, original: int) -> RopeScaling:
    low = nested.number("low_freq_factor", 1e-6, 1e6)
    high = nested.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise UserError(
            f"{nested.where}: got low_freq_factor {low:g} and high_freq_factor {high:g}; expected low < high"
        )
    return RopeScaling(
        RopeType.LLAMA3,
        nested.number("factor", 1e-3, 1e6),
        nested.integer("original_max_position_embeddings", 1, _MAX_TOKENS, original),
        low,
        high,
    )


def _read_yarn(nested: Fields, theta: float, original: int) -> RopeScaling:
    if theta == 1.0:
        raise UserError(
            f"{nested.where}: got rope_theta 1; expected more than 1, since yarn divides by its logarithm"
        )
    return RopeScaling(
        RopeType.YARN,
        nested.number("factor", 1e-3, 1e6),
        nested.integer("original_max_position_embeddings", 1, _MAX_TOKENS, original),
        attention_factor=nested.number("attention_factor", 0.0, 1e6, None),
        beta_fast=nested.number("beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=nested.number("beta_slow", 1e-6, 1e6, 1.0),
        mscale=nested.number("mscale", 0.0, 1e6, 0.0),
        mscale_all_dim=nested.number("mscale_all_dim", 0.0, 1e6, 0.0),
        truncate=nested.boolean("truncate", True),
    )
