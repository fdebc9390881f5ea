"""Lowering of the ops on the KV cache."""

from . import cache_ops, paged  # noqa: F401  (fill the table of lowerings)
