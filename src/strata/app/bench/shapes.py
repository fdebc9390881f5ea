"""Named shapes with the context that a benchmark asks for."""

from __future__ import annotations

from typing import Any

from strata.models.shapes import SHAPES

_PEER_POSITIONS = 16384


def shape_values(name: str, max_context: int | None = None) -> dict[str, Any]:
    """The config of a named shape, stretched to ``max_context`` tokens where its own context is shorter.

    Raises:
        UserError: no such shape (lists them).
    """
    values = dict(SHAPES[name])
    key = _positions_key(values)
    values[key] = max(values[key], max_context or 0)
    return values


def peer_values(name: str, max_context: int | None = None) -> dict[str, Any]:
    """The same for peers: rotary positions cost nothing, so one model serves every context."""
    values = shape_values(name, max_context)
    if _positions_key(values) == "max_position_embeddings":
        values["max_position_embeddings"] = max(values["max_position_embeddings"], _PEER_POSITIONS)
    return values


def _positions_key(values: dict[str, Any]) -> str:
    return "n_positions" if "n_positions" in values else "max_position_embeddings"
