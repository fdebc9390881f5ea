"""Lowering of the ops on the KV cache."""

from . import cache_ops  # noqa: F401  (fill the table of lowerings)
from .paged import fewest_tokens

__all__ = ["fewest_tokens"]
