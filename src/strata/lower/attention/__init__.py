"""Lowering of the ops on the KV cache."""

from . import cache_ops  # noqa: F401  (fill the table of lowerings)
from .paged import is_for_matrix_unit

__all__ = ["is_for_matrix_unit"]
