"""The interpreter's value of a paged KV cache: one batch view as NumPy arrays.

Fields are those of ``CacheType.fields``; ``k_pages`` and ``v_pages`` are tuples with one array per layer.
Values are never changed in place: appending gives a new value that shares the layers it did not touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from strata.core.dims import evaluate
from strata.core.errors import ShapeError
from strata.core.kv_layout import LAYER_FIELDS, key_page_shape, key_tokens, value_page_shape, value_tokens

from .types import CacheType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class CacheValue:
    """One batch view of a paged KV cache.

    Attributes:
        type: The cache's type.
        positions: i32 ``[n]``, position of each token in its sequence.
        slots: i32 ``[n]``, ``page * page_size + offset`` where its K and V go.
        seq_ids: i32 ``[n]``, row of ``page_table`` of its sequence.
        page_table: i32 ``[num_seqs, table_width]``, pool pages of each sequence.
        last_rows: i32 ``[num_seqs]``, index of the last token of each sequence.
        rope_cos, rope_sin: f32 ``[max_context, max(rotary_dim // 2, 1)]``.
        k_pages, v_pages: Per layer ``[num_pages, K, ...]``, pages in the order of ``core.kv_layout``.
        k_scales, v_scales: Per layer f32 ``[num_pages, K, page_size]``; none unless the dtype is i8.
    """

    type: CacheType
    positions: Array
    slots: Array
    seq_ids: Array
    page_table: Array
    last_rows: Array
    rope_cos: Array
    rope_sin: Array
    k_pages: tuple[Array, ...]
    v_pages: tuple[Array, ...]
    k_scales: tuple[Array, ...] = ()
    v_scales: tuple[Array, ...] = ()

    @classmethod
    def empty(
        cls,
        type_: CacheType,
        num_pages: int,
        max_context: int,
        *,
        inv_freq: Sequence[float] | Array | None = None,
        attention_factor: float = 1.0,
    ) -> CacheValue:
        """A cache with zeroed pages and a view of no tokens; :meth:`view` gives it tokens.

        Args:
            type_: Type of the cache.
            num_pages: Pages in the pool.
            max_context: Rows of the rotary tables.
            inv_freq: ``rotary_dim / 2`` radians per position; default ``10000 ** (-2i / rotary_dim)``.
            attention_factor: Factor on cos and sin.

        Raises:
            ShapeError: ``inv_freq`` has another length.
        """
        half = type_.rotary_dim // 2
        if inv_freq is None:
            inv_freq = 10000.0 ** (-np.arange(half) / max(half, 1))
        frequencies = np.asarray(inv_freq, np.float64)
        if frequencies.shape != (half,):
            raise ShapeError(f"cache: inv_freq has shape {frequencies.shape}; expected ({half},)")
        angles = np.arange(max_context)[:, None] * (frequencies if half else np.zeros(1))[None]
        dtype = np.dtype(type_.dtype.numpy_name)
        pages, page = (num_pages, type_.num_kv_heads), (type_.head_dim, type_.page_size, type_.pack)
        none = np.zeros(0, np.int32)

        def scales() -> tuple[Array, ...]:
            count = type_.num_layers if type_.is_scaled else 0
            return tuple(np.zeros((*pages, type_.page_size), np.float32) for _ in range(count))

        return cls(
            type_,
            none,
            none,
            none,
            np.zeros((0, 1), np.int32),
            none,
            (attention_factor * np.cos(angles)).astype(np.float32),
            (attention_factor * np.sin(angles)).astype(np.float32),
            tuple(np.zeros((*pages, *key_page_shape(*page)), dtype) for _ in range(type_.num_layers)),
            tuple(np.zeros((*pages, *value_page_shape(*page)), dtype) for _ in range(type_.num_layers)),
            *(scales(), scales()),
        )

    def fill(self, rng: np.random.Generator) -> None:
        """Random pages, in place: numbers of spread 1, or codes with scales of up to 1 / 64."""
        for pages in (*self.k_pages, *self.v_pages):
            draw = (
                rng.integers(-127, 128, pages.shape)
                if self.type.is_scaled
                else rng.standard_normal(pages.shape)
            )
            pages[...] = draw.astype(pages.dtype)
        for scales in (*self.k_scales, *self.v_scales):
            scales[...] = rng.random(scales.shape) / 64

    def view(
        self, past: Sequence[int], new: Sequence[int], *, page_table: Sequence[Sequence[int]] | None = None
    ) -> CacheValue:
        """The cache as seen by a pass that appends ``new[s]`` tokens to the ``past[s]`` tokens of sequence s.

        Args:
            past: Tokens that each sequence has already.
            new: Tokens that this pass adds to each sequence (>= 1).
            page_table: Pages of each sequence; default: sequence s owns an equal share of the pool, the
                pages taken from its end backwards, so that page order and position order differ.

        Raises:
            ShapeError: the lists differ in length, a sequence adds no token, or its tokens do not fit its
                pages or the rotary tables.
        """
        if len(past) != len(new) or not new or min(new) < 1:
            raise ShapeError(
                f"cache view: got past {list(past)}, new {list(new)}; expected one entry >= 1 per sequence"
            )
        size = self.type.page_size
        if page_table is None:
            share = self.num_pages // len(new)
            page_table = [[(s + 1) * share - 1 - j for j in range(share)] for s in range(len(new))]
        rows: list[tuple[int, int, int]] = []
        for s, (have, add) in enumerate(zip(past, new, strict=True)):
            room = min(len(page_table[s]) * size, self.max_context)
            if have + add > room:
                raise ShapeError(f"cache view: sequence {s} has {have} + {add} tokens; its pages hold {room}")
            rows += [(p, page_table[s][p // size] * size + p % size, s) for p in range(have, have + add)]
        positions, slots, seq_ids = np.array(rows, np.int32).T.copy()
        width = max(-(-(h + a) // size) for h, a in zip(past, new, strict=True))
        table = np.zeros((len(new), width), np.int32)
        for s, pages in enumerate(page_table):
            table[s, : len(pages[:width])] = pages[:width]
        return replace(
            self,
            positions=positions,
            slots=slots,
            seq_ids=seq_ids,
            page_table=table,
            last_rows=(np.cumsum(new) - 1).astype(np.int32),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens n of this pass."""
        return len(self.positions)

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""
        return self.k_pages[0].shape[0]

    @property
    def max_context(self) -> int:
        """Rows of the rotary tables."""
        return self.rope_cos.shape[0]

    @property
    def dims(self) -> dict[str, int]:
        """Values of the symbolic dims of a batch view."""
        return {
            "num_seqs": len(self.last_rows),
            "table_width": self.page_table.shape[1],
            "num_pages": self.num_pages,
            "max_context": self.max_context,
        }

    def __getitem__(self, field: str) -> Any:
        """A field by its name in ``CacheType.fields`` (``LAYER_FIELDS``: one array per layer)."""
        if field not in self.type.fields(0) and field not in LAYER_FIELDS:
            raise ShapeError(f"cache: no field {field!r}; it has: {', '.join(self.type.fields(0))}")
        return getattr(self, field)

    def append(self, layer: int, k: Array, v: Array) -> CacheValue:
        """The cache with ``k``, ``v`` ``[n, K, D]`` stored at the slots of this pass in ``layer``."""
        size, pack = self.type.page_size, self.type.pack
        pages, offsets = self.slots // size, self.slots % size
        new = {name: self[name][layer].copy() for name in LAYER_FIELDS if self[name]}
        if self.type.is_scaled:
            (k, k_scales), (v, v_scales) = codes(k), codes(v)
            new["k_scales"][pages, :, offsets], new["v_scales"][pages, :, offsets] = k_scales, v_scales
        with np.errstate(all="ignore"):
            paired = k.reshape(*k.shape[:2], -1, pack)  # [n, K, D/pack, pack]
            keys, values = key_tokens(new["k_pages"], pack), value_tokens(new["v_pages"], pack)
            keys[pages, offsets] = paired.astype(keys.dtype)
            values[pages, offsets // pack, offsets % pack] = v.astype(values.dtype)
        layers = {name: (*self[name][:layer], x, *self[name][layer + 1 :]) for name, x in new.items()}
        return replace(self, **layers)

    def history(self, layer: int, sequence: int, length: int) -> tuple[Array, Array]:
        """K and V ``[length, K, D]`` of a sequence's first ``length`` positions: f32 numbers."""
        positions = np.arange(length)
        pages = self.page_table[sequence, positions // self.type.page_size]
        offsets, pack = positions % self.type.page_size, self.type.pack
        keys = key_tokens(self.k_pages[layer], pack)[pages, offsets]  # [T, K, D/pack, pack]
        values = value_tokens(self.v_pages[layer], pack)[pages, offsets // pack, offsets % pack]
        out = [x.reshape(values.shape).astype(np.float32) for x in (keys, values)]
        if self.type.is_scaled:
            scales = (self.k_scales[layer], self.v_scales[layer])
            out = [x * s[pages, :, offsets][..., None] for x, s in zip(out, scales, strict=True)]
        return out[0], out[1]

    def rotate(self, x: Array, positions: Array) -> Array:
        """f32 ``x`` ``[n, heads, D]`` with the first ``rotary_dim`` elements of heads turned by position."""
        half = self.type.rotary_dim // 2
        cos, sin = (table[positions][:, None, :half] for table in (self.rope_cos, self.rope_sin))
        a, b = x[..., :half], x[..., half : 2 * half]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], axis=-1)

    def check(self) -> None:
        """Check that every field has the dtype and shape that the type says.

        Raises:
            ShapeError: a field does not.
        """
        env = self.dims
        for name, wanted in self.type.fields(self.num_tokens).items():
            shape = tuple(evaluate(d, env) for d in wanted.shape)
            per_layer = name in LAYER_FIELDS
            arrays = self[name] if per_layer else (self[name],)
            if per_layer and len(arrays) != self.type.num_layers:
                raise ShapeError(f"cache: {name} has {len(arrays)} layers; expected {self.type.num_layers}")
            for array in arrays:
                if array.shape != shape or array.dtype != np.dtype(wanted.dtype.numpy_name):
                    raise ShapeError(
                        f"cache: {name} is {array.dtype}{list(array.shape)}; "
                        f"expected {wanted.dtype}{list(shape)}"
                    )


def codes(x: Array) -> tuple[Array, Array]:
    """Codes -127 .. 127 (as floats) of heads ``[n, K, D]``, and their f32 scales ``[n, K]``: largest / 127.

    Codes are the nearest whole numbers to ``x * (127 / largest)``, halves to even.
    """
    x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        largest = np.abs(x).max(axis=-1)
        factor = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
        found = np.nan_to_num(np.clip(np.rint(x * factor[..., None]), -127, 127))
    return found, largest * np.float32(1 / 127)
