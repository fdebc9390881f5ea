"""Order of the elements inside a page of the KV cache: one rule for compiler, interpreter and engine.

::

    K page  [D / pack, page_size * pack]    element d of token t at [d // pack, t * pack + d % pack]
    V page  [page_size / pack, D * pack]    element d of token t at [t // pack, d * pack + t % pack]

With ``pack = 1`` scores of a page are sums of vectors over tokens, outputs are sums of vectors over elements.
Bf16 dot products multiply pairs: with ``pack = 2`` the two numbers of a pair lie side by side, pairs of
elements in K, pairs of tokens in V. Keys and values in 8 bits become bf16 on the way and lie alike.
"""

from __future__ import annotations

from typing import Any

LAYER_FIELDS = ("k_pages", "v_pages", "k_scales", "v_scales")  # buffers that every layer has its own of
DEFAULT_PAGE_SIZE = 64  # tokens: docs/performance.md
KV_FORMATS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "i8"}  # what people say, and the dtype
KV_DTYPES = tuple(KV_FORMATS.values())
PAIRED = ("bf16", "i8")  # dtypes whose products are dot products of bf16 pairs
SCALED = ("i8",)  # dtypes with a scale per token and KV head


def pack_of(dtype: str, head_dim: int, page_size: int) -> int:
    """How many elements lie side by side: 2 for pairs where both dims of a page are even, else 1."""
    return 2 if dtype in PAIRED and head_dim % 2 == 0 and page_size % 2 == 0 else 1


def key_page_shape(head_dim: int, page_size: int, pack: int) -> tuple[int, int]:
    """Stored shape of one head's keys in a page."""
    return head_dim // pack, page_size * pack


def value_page_shape(head_dim: int, page_size: int, pack: int) -> tuple[int, int]:
    """Stored shape of one head's values in a page."""
    return page_size // pack, head_dim * pack


def page_bytes(dtype: str, num_layers: int, kv_heads: int, head_dim: int, page_size: int) -> int:
    """Bytes of a page in all layers: keys, values and their scales."""
    element = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}[dtype]
    scale = 4 if dtype in SCALED else 0
    return 2 * num_layers * kv_heads * page_size * (head_dim * element + scale)


def repack(pages: Any, pack: int, to: int) -> Any:
    """Pages ``[P, K, ...]`` of keys or of values in the order of another ``pack``."""
    pools, heads, rows, width = pages.shape
    inner = width // pack
    plain = pages.reshape(pools, heads, rows, inner, pack).transpose(0, 1, 2, 4, 3)
    groups = plain.reshape(pools, heads, rows * pack // to, to, inner).transpose(0, 1, 2, 4, 3)
    return groups.reshape(pools, heads, rows * pack // to, inner * to)


def key_tokens(pages: Any, pack: int) -> Any:
    """A view of key pages ``[P, K, D/pack, page*pack]`` as ``[P, page, K, D/pack, pack]``."""
    pools, heads, rows, width = pages.shape
    return pages.reshape(pools, heads, rows, width // pack, pack).transpose(0, 3, 1, 2, 4)


def value_tokens(pages: Any, pack: int) -> Any:
    """A view of value pages ``[P, K, page/pack, D*pack]`` as ``[P, page/pack, pack, K, D]``."""
    pools, heads, rows, width = pages.shape
    return pages.reshape(pools, heads, rows, width // pack, pack).transpose(0, 2, 4, 1, 3)
