"""Types of graph values: tensors and the paged KV cache.

::

    Type       ::= TensorType | CacheType
    TensorType ::= f32[n,256]                                     text form; a 0-d tensor is f32[]
    CacheType  ::= cache<layers=8,kv_heads=4,head_dim=32,dtype=bf16,page_size=16,rope=normal>

A ``CacheType`` value is one *batch view* of the paged KV cache: the pages of all layers plus the index arrays
that say, for the ``n`` tokens of this forward pass, where they live. Its fields are named buffers
(:meth:`CacheType.fields`); lowering turns a cache operand into the fields that a kernel uses, the runtime
fills them (``engine.kv_cache``), and the interpreter holds them in a ``CacheValue``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from strata.core.dims import Shape, SymDim
from strata.core.dtypes import DType, bf16, f32, i32
from strata.core.errors import ShapeError
from strata.core.kv_layout import (
    KV_DTYPES,
    LAYER_FIELDS,
    PAIRED,
    SCALED,
    key_page_shape,
    pack_of,
    value_page_shape,
)


class RopeMode(Enum):
    """Where rotary embedding is applied."""

    NONE = "none"
    NORMAL = "normal"  # q and k are rotated before k is stored
    INLINE = "inline"  # k is stored as it is; attention rotates q and k


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of a tensor."""

    shape: Shape
    dtype: DType

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(d) for d in self.shape)}]"


# Sizes of a batch view. ``n`` (the tokens of this pass) belongs to each model function and is not among them.
NUM_SEQUENCES = SymDim("num_seqs", 1, 1 << 16)  # sequences in this pass
TABLE_WIDTH = SymDim("table_width", 1, 1 << 20)  # pages of the longest sequence in this pass
NUM_PAGES = SymDim("num_pages", 1, 1 << 24)  # pages in the pool
MAX_CONTEXT = SymDim("max_context", 1, 1 << 24)  # rows of the rotary tables
CACHE_SYMBOLS = (NUM_SEQUENCES, TABLE_WIDTH, NUM_PAGES, MAX_CONTEXT)


@dataclass(frozen=True, slots=True)
class CacheType:
    """A paged KV cache.

    Attributes:
        num_layers: Attention layers that store into it.
        num_kv_heads: Key/value heads K.
        head_dim: Elements per head D.
        dtype: Element type of stored keys and values: f32, f16, bf16, or i8 with a scale per token and head.
        page_size: Tokens per page.
        rope: Where rotary embedding is applied.
        rotary_dim: Leading elements of a head that are rotated (even, <= head_dim; 0 when rope is NONE).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    page_size: int = 16
    rope: RopeMode = RopeMode.NONE
    rotary_dim: int = 0

    def __post_init__(self) -> None:
        if min(self.num_layers, self.num_kv_heads, self.head_dim, self.page_size) < 1:
            raise ShapeError(f"{self}: layers, kv_heads, head_dim and page_size must be at least 1")
        if self.dtype.name not in KV_DTYPES:
            raise ShapeError(f"{self}: dtype must be one of {', '.join(KV_DTYPES)}")
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ShapeError(f"{self}: rotary_dim must be even and at most head_dim {self.head_dim}")

    def __str__(self) -> str:
        rotary = f",rotary_dim={self.rotary_dim}" if self.rotary_dim else ""
        return (
            f"cache<layers={self.num_layers},kv_heads={self.num_kv_heads},head_dim={self.head_dim},"
            f"dtype={self.dtype},page_size={self.page_size},rope={self.rope.value}{rotary}>"
        )

    @property
    def pack(self) -> int:
        """Elements of a page that lie side by side; see :mod:`strata.core.kv_layout`."""
        return pack_of(self.dtype.name, self.head_dim, self.page_size)

    @property
    def is_scaled(self) -> bool:
        """Whether keys and values are codes: each token's head has a scale, its largest element / 127."""
        return self.dtype.name in SCALED

    @property
    def product_dtype(self) -> DType:
        """What attention rounds the factors of its products to: bf16 where keys and values have no more bits
        than that, else f32. Sums are f32.
        """
        return bf16 if self.dtype.name in PAIRED else f32

    def fields(self, n: SymDim | int) -> dict[str, TensorType]:
        """The buffers of a batch view over ``n`` tokens, by name, in the order of the run-time table.

        ``positions[t]``: position of token t in its sequence. ``slots[t]``: ``page * page_size + offset``
        where its K and V are stored. ``seq_ids[t]``: row of ``page_table`` of its sequence. ``page_table[s,
        j]``: pool page that holds positions ``j*page_size ...`` of sequence s. ``last_rows[s]``: index of
        the last token of sequence s in this pass. ``rope_cos/sin[p, i]``: rotary tables.
        ``k_pages``/``v_pages``: one layer's pages, elements in the order of :mod:`strata.core.kv_layout`;
        ``k_scales``/``v_scales[page, head, offset]``: what their codes are multiplied by (i8 only). The
        tokens of a sequence stand together, in order of their positions, which have no gaps. Token t attends
        to positions ``0 .. positions[t]`` of its sequence.
        """
        pages = (NUM_PAGES, self.num_kv_heads)
        page = (self.head_dim, self.page_size, self.pack)
        tables = (MAX_CONTEXT, max(self.rotary_dim // 2, 1))
        found = {
            "positions": TensorType((n,), i32),
            "slots": TensorType((n,), i32),
            "seq_ids": TensorType((n,), i32),
            "page_table": TensorType((NUM_SEQUENCES, TABLE_WIDTH), i32),
            "last_rows": TensorType((NUM_SEQUENCES,), i32),
            "rope_cos": TensorType(tables, f32),
            "rope_sin": TensorType(tables, f32),
            "k_pages": TensorType((*pages, *key_page_shape(*page)), self.dtype),
            "v_pages": TensorType((*pages, *value_page_shape(*page)), self.dtype),
        }
        if self.is_scaled:
            found |= dict.fromkeys(LAYER_FIELDS[2:], TensorType((*pages, self.page_size), f32))
        return found


Type = TensorType | CacheType
