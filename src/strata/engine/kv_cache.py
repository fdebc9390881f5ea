"""The paged KV cache: a pool of pages, sequences that own or share them, and the batch view of a pass.

::

    pool         k_pages[l], v_pages[l]: [P, K, ...], in the order of core.kv_layout, one pair per layer
    sequence     pages 7 2 9, length 40        token t is in page pages[t // page] at offset t % page
    fork         child: pages 7 2 9, 40        shared; whoever first writes into page 9 copies it
    batch view   positions, slots, seq_ids, page_table, last_rows, and the table of their addresses

A forward pass is ``begin_forward(ids, lengths)`` -> run the model on the view -> ``end_forward()``; when the
model fails, ``abort_forward()`` takes the reservation back. Rotary tables are part of the cache.

A sequence's pages are exactly those that its tokens need: ``ceil(length / page)``. What a page holds behind
the last token of a sequence has no meaning.

Sliding windows with attention sinks will drop pages in the middle of a sequence: ``begin_forward`` is then
where positions and page table part ways (both are written only there). Tree masks (several continuations of
one sequence in one pass) need parents of the appended tokens: an argument of ``begin_forward``, a further
array of the view.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from strata.core.errors import UserError, VerifyError
from strata.core.kv_layout import (
    LAYER_FIELDS,
    SCALED,
    key_page_shape,
    key_tokens,
    pack_of,
    page_bytes,
    value_page_shape,
    value_tokens,
)
from strata.runtime.records import CACHE_DIMS, CACHE_POINTERS, CacheRecord, layer_word
from strata.runtime.tensors import address, aligned_empty, aligned_zeros, numpy_dtype

_NUM_SEQS = len(CACHE_POINTERS) + CACHE_DIMS.index("num_seqs")
_TABLE_WIDTH = len(CACHE_POINTERS) + CACHE_DIMS.index("table_width")


def rope_tables(record: CacheRecord, max_context: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of every (position, frequency), computed in f32 as the reference models do.

    Args:
        record: Inverse frequencies and attention factor.
        max_context: Rows.

    Returns:
        Two f32 ``[max_context, max(rotary_dim / 2, 1)]`` arrays, 64-byte aligned (all zero without rotary
        dims).
    """
    inv_freq = np.array(record.rope_inv_freq, np.float32)
    positions = np.arange(max_context, dtype=np.float32)
    angles = positions[:, None] * inv_freq  # [S, rotary_dim / 2]
    factor = np.float32(record.rope_attention_factor)
    cos = aligned_zeros((max_context, max(len(inv_freq), 1)), np.dtype(np.float32))
    sin = aligned_zeros(cos.shape, cos.dtype)
    cos[:, : len(inv_freq)] = np.cos(angles) * factor
    sin[:, : len(inv_freq)] = np.sin(angles) * factor
    return cos, sin


def available_bytes() -> int | None:
    """Memory that can be had without swapping, as Linux estimates it; ``None`` where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def record_page_bytes(record: CacheRecord) -> int:
    """Bytes of a page in all layers."""
    return page_bytes(record.dtype, record.num_layers, record.num_kv_heads, record.head_dim, record.page_size)


def pages_that_fit(record: CacheRecord) -> int | None:
    """Pages for which there is memory now; ``None`` where nobody knows."""
    free = available_bytes()
    return None if free is None else free // record_page_bytes(record)


def check_memory(record: CacheRecord, num_pages: int) -> None:
    """Refuse a pool that does not fit, before anything is allocated.

    Pages take memory when they are first written: without this, a process would die much later.

    Raises:
        UserError: says how much is needed, for what, and what to lower.
    """
    free, size = available_bytes(), record_page_bytes(record)
    if free is None or num_pages * size <= free:
        return
    tokens = num_pages * record.page_size
    what = f"{record.num_layers} layers, {record.num_kv_heads} KV heads of {record.head_dim} {record.dtype}"
    smaller = "" if record.dtype == "i8" else ", or take --kv-dtype int8"
    raise UserError(
        f"kv cache: {num_pages * size / 2**30:.1f} GiB are needed for {tokens} tokens ({num_pages} pages of "
        f"{size / 2**20:.2f} MiB: {what}), {free / 2**30:.1f} GiB are available; "
        f"lower --max-context or --max-batch{smaller}"
    )


@dataclass(slots=True)
class BatchView:
    """What a model function sees of the cache in one forward pass. Valid until the next ``begin_forward``.

    Attributes:
        num_tokens: Tokens of this pass.
        positions: i32 ``[n]``: position of token t in its sequence.
        slots: i32 ``[n]``: ``page * page_size + offset`` where its K and V go.
        seq_ids: i32 ``[n]``: row of ``page_table`` of its sequence.
        page_table: i32 ``[num_seqs, table_width]``: pool page with positions ``j * page_size ...`` (0 where
            unused).
        last_rows: i32 ``[num_seqs]``: index of each sequence's last token in this pass.
        table: i64: the cache table of ``runtime.records``.
        pool: What owns the memory that ``table`` points to: it lives as long as the view.
    """

    num_tokens: int
    positions: np.ndarray
    slots: np.ndarray
    seq_ids: np.ndarray
    page_table: np.ndarray
    last_rows: np.ndarray
    table: np.ndarray
    pool: object = None


@dataclass(slots=True)
class _Sequence:
    """Pages of one sequence (the first ``num_pages`` entries) and its committed length in tokens."""

    pages: np.ndarray
    num_pages: int = 0
    length: int = 0


@dataclass(slots=True)
class _Reservation:
    """What ``begin_forward`` changed of one sequence, to undo it."""

    sequence: _Sequence
    new_length: int
    old_num_pages: int
    copied: tuple[int, int] | None  # (shared page, own copy of it)


@dataclass(slots=True)
class _Scratch:
    """The per-token arrays of the view, grown to the largest pass so far."""

    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    slots: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    seq_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


class PagedKVCache:
    """Keys and values of many sequences in pages of one pool.

    Args:
        record: Shape, dtype and rotary data.
        num_pages: Pages in the pool; their memory is taken when they are first written.
        max_context: Longest sequence, tokens; rows of the rotary tables.
        max_batch: Most sequences in one forward pass.

    Invariants:
        Every page is free (reference count 0, in the free list once) or referenced by exactly as many
        sequences as its count says; a sequence of length T has ``ceil(T / page_size)`` pages, all different.
        :meth:`check_integrity` checks them. Every method that raises ``UserError`` has changed nothing.

    Raises:
        UserError: a size below 1, or more pages than there is memory.
    """

    def __init__(self, record: CacheRecord, num_pages: int, max_context: int, max_batch: int) -> None:
        for name, value in (("num_pages", num_pages), ("max_context", max_context), ("max_batch", max_batch)):
            if value < 1:
                raise UserError(f"kv cache: {name}: got {value}; expected at least 1")
        check_memory(record, num_pages)
        self.record = record
        self.num_pages = num_pages
        self.max_context = max_context
        self.max_batch = max_batch
        self.page_size = record.page_size
        dtype = numpy_dtype(record.dtype)
        K, D, page = record.num_kv_heads, record.head_dim, record.page_size
        self._pack = pack = pack_of(record.dtype, D, page)
        layers, head = range(record.num_layers), (num_pages, K)
        self.k_pages = [aligned_zeros((*head, *key_page_shape(D, page, pack)), dtype) for _ in layers]
        self.v_pages = [aligned_zeros((*head, *value_page_shape(D, page, pack)), dtype) for _ in layers]
        scaled = layers if record.dtype in SCALED else ()
        self.k_scales = [aligned_zeros((*head, page), np.dtype(np.float32)) for _ in scaled]
        self.v_scales = [aligned_zeros((*head, page), np.dtype(np.float32)) for _ in scaled]
        self.page_bytes = record_page_bytes(record)
        self.rope_cos, self.rope_sin = rope_tables(record, max_context)
        self._counts = np.zeros(num_pages, np.int32)
        self._free = list(range(num_pages - 1, -1, -1))  # the last one is taken first
        self._sequences: dict[Hashable, _Sequence] = {}
        self._open: list[_Reservation] | None = None
        self._doomed: list[Hashable] = []  # to remove when the open pass ends
        self._scratch = _Scratch()
        width = -(-max_context // page)
        self._page_table = aligned_empty((max_batch * width,), np.dtype(np.int32))
        self._last_rows = np.zeros(max_batch, np.int32)
        self._table = self._make_table()

    def _make_table(self) -> np.ndarray:
        table = np.zeros(layer_word(self.record.num_layers, LAYER_FIELDS[0]), np.int64)
        fixed = {
            "page_table": address(self._page_table), "last_rows": address(self._last_rows),
            "rope_cos": address(self.rope_cos), "rope_sin": address(self.rope_sin),
        }  # fmt: skip
        for name, value in fixed.items():
            table[CACHE_POINTERS.index(name)] = value
        for name, value in (("num_pages", self.num_pages), ("max_context", self.max_context)):
            table[len(CACHE_POINTERS) + CACHE_DIMS.index(name)] = value
        for name in LAYER_FIELDS:
            for layer, array in enumerate(getattr(self, name)):
                table[layer_word(layer, name)] = address(array)
        return table

    # Sequences.

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence uses."""
        return len(self._free)

    @property
    def sequences(self) -> tuple[Hashable, ...]:
        """Ids of all sequences, oldest first."""
        return tuple(self._sequences)

    def __contains__(self, seq_id: Hashable) -> bool:
        return seq_id in self._sequences

    def length(self, seq_id: Hashable) -> int:
        """Tokens of a sequence (those of an open forward pass do not count yet).

        Raises:
            UserError: no such sequence.
        """
        return self._get(seq_id).length

    def pages_for(self, num_tokens: int) -> int:
        """Pages that a sequence of ``num_tokens`` takes."""
        return -(-num_tokens // self.page_size)

    def _get(self, seq_id: Hashable) -> _Sequence:
        found = self._sequences.get(seq_id)
        if found is None:
            known = ", ".join(map(str, list(self._sequences)[:8])) or "none"
            raise UserError(f"kv cache: no sequence {seq_id!r}; it has {known}")
        return found

    def _refuse_while_open(self, what: str) -> None:
        if self._open is not None:
            raise UserError(
                f"kv cache: {what} during a forward pass; call end_forward or abort_forward first"
            )

    def add_sequence(self, seq_id: Hashable) -> None:
        """Start an empty sequence.

        Raises:
            UserError: the id is taken, or a forward pass is open.
        """
        self._refuse_while_open("add_sequence")
        if seq_id in self._sequences:
            raise UserError(f"kv cache: sequence {seq_id!r} exists already")
        self._sequences[seq_id] = _Sequence(np.zeros(self.pages_for(self.max_context), np.int32))

    def remove_sequence(self, seq_id: Hashable) -> None:
        """Forget a sequence and free the pages that only it used.

        Raises:
            UserError: no such sequence, or a forward pass is open.
        """
        self._refuse_while_open("remove_sequence")
        sequence = self._get(seq_id)
        self._drop_pages(sequence, 0)
        del self._sequences[seq_id]

    def discard_sequence(self, seq_id: Hashable) -> None:
        """Like :meth:`remove_sequence`, but during a forward pass it waits for the end of the pass.

        For finalizers, which run at any time: a dropped stream must not disturb the pass of another one.

        Raises:
            UserError: no such sequence.
        """
        if self._open is None:
            self.remove_sequence(seq_id)
        else:
            self._get(seq_id)
            self._doomed.append(seq_id)

    def _close(self) -> None:
        self._open = None
        while self._doomed:
            self.remove_sequence(self._doomed.pop())

    def fork_sequence(self, parent: Hashable, child: Hashable, position: int | None = None) -> None:
        """Start ``child`` with the first ``position`` tokens of ``parent`` (all by default), sharing their
        pages.

        Nothing is copied now; whoever first writes into the partly filled last page copies that page.

        Raises:
            UserError: no such parent, a taken child id, a position beyond the parent's end, or an open
                forward pass.
        """
        self._refuse_while_open("fork_sequence")
        source = self._get(parent)
        length = source.length if position is None else position
        if not 0 <= length <= source.length:
            raise UserError(f"kv cache: fork of {parent!r} at {length}; it has {source.length} tokens")
        self.add_sequence(child)
        target = self._sequences[child]
        target.length, target.num_pages = length, self.pages_for(length)
        target.pages[: target.num_pages] = source.pages[: target.num_pages]
        self._counts[target.pages[: target.num_pages]] += 1

    def pop(self, seq_id: Hashable, num_tokens: int) -> None:
        """Drop the last ``num_tokens`` tokens of a sequence.

        Raises:
            UserError: no such sequence, it is shorter than that, or a forward pass is open.
        """
        self._refuse_while_open("pop")
        sequence = self._get(seq_id)
        if not 0 <= num_tokens <= sequence.length:
            raise UserError(
                f"kv cache: pop {num_tokens} of sequence {seq_id!r}; it has {sequence.length} tokens"
            )
        sequence.length -= num_tokens
        self._drop_pages(sequence, self.pages_for(sequence.length))

    def clear(self) -> None:
        """Forget all sequences, and an open forward pass with them."""
        self._open = None
        self._doomed.clear()
        self._sequences.clear()
        self._counts[:] = 0
        self._free = list(range(self.num_pages - 1, -1, -1))

    def _drop_pages(self, sequence: _Sequence, keep: int) -> None:
        """Shorten a sequence to its first ``keep`` pages."""
        for page in sequence.pages[keep : sequence.num_pages][::-1].tolist():
            self._release(page)
        sequence.num_pages = keep

    def _release(self, page: int) -> None:
        self._counts[page] -= 1
        if self._counts[page] == 0:
            self._free.append(page)

    def _take(self) -> int:
        page = self._free.pop()
        self._counts[page] = 1
        return page

    # Forward passes.

    def begin_forward(self, ids: Sequence[Hashable], lengths: Sequence[int]) -> BatchView:
        """Reserve room for new tokens and describe where they go.

        Args:
            ids: Sequences of this pass, each once; the tokens of the pass are theirs, one after the other.
            lengths: New tokens per sequence, at least 1 each.

        Returns:
            The view to hand to the model; its arrays are reused by the next pass.

        Raises:
            UserError: unknown or repeated ids, a length below 1, too many sequences, a sequence beyond
                ``max_context``, not enough free pages, or a forward pass that is open already. Nothing has
                changed then.
        """
        self._refuse_while_open("begin_forward")
        sequences = self._check_batch(ids, lengths)
        self._check_room(sequences, lengths)
        self._open = [self._reserve(s, n) for s, n in zip(sequences, lengths, strict=True)]
        return self._fill_view(sequences, lengths)

    def end_forward(self) -> None:
        """Commit the tokens of the open pass.

        Raises:
            UserError: no pass is open.
        """
        if self._open is None:
            raise UserError("kv cache: end_forward without begin_forward")
        for reservation in self._open:
            reservation.sequence.length = reservation.new_length
        self._close()

    def abort_forward(self) -> None:
        """Take back the open pass: lengths, pages and sharing are as before ``begin_forward``.

        Raises:
            UserError: no pass is open.
        """
        if self._open is None:
            raise UserError("kv cache: abort_forward without begin_forward")
        for reservation in reversed(self._open):
            sequence = reservation.sequence
            self._drop_pages(sequence, reservation.old_num_pages)
            if reservation.copied is not None:
                shared, own = reservation.copied
                # A fork left alone with the shared page may have written over what this sequence has there.
                used = sequence.length % self.page_size
                at = np.arange(used)
                for pages in self.k_pages:
                    keys = key_tokens(pages, self._pack)
                    keys[shared, at] = keys[own, at]
                for scales in (*self.k_scales, *self.v_scales):
                    scales[shared, :, :used] = scales[own, :, :used]
                at = (at // self._pack, at % self._pack)
                for pages in self.v_pages:
                    values = value_tokens(pages, self._pack)
                    values[shared, *at] = values[own, *at]
                self._release(own)
                self._counts[shared] += 1
                sequence.pages[sequence.length // self.page_size] = shared
        self._close()

    def _check_batch(self, ids: Sequence[Hashable], lengths: Sequence[int]) -> list[_Sequence]:
        if not ids or len(ids) != len(lengths):
            raise UserError(
                f"kv cache: begin_forward: got {len(ids)} ids and {len(lengths)} lengths; expected equal, > 0"
            )
        if len(ids) > self.max_batch:
            raise UserError(
                f"kv cache: {len(ids)} sequences in one pass; the limit is {self.max_batch} (--max-batch)"
            )
        if len(set(ids)) != len(ids):
            raise UserError(f"kv cache: begin_forward: a sequence occurs twice in {list(ids)}")
        sequences = [self._get(seq_id) for seq_id in ids]
        for seq_id, sequence, count in zip(ids, sequences, lengths, strict=True):
            if count < 1:
                raise UserError(f"kv cache: sequence {seq_id!r}: got {count} new tokens; expected at least 1")
            if sequence.length + count > self.max_context:
                raise UserError(
                    f"kv cache: sequence {seq_id!r} would have {sequence.length + count} tokens; "
                    f"the context is {self.max_context} (--max-context)"
                )
        return sequences

    def _shares_tail(self, sequence: _Sequence) -> int | None:
        """The partly filled last page of a sequence if others use it too."""
        if sequence.length % self.page_size == 0:
            return None
        page = int(sequence.pages[sequence.num_pages - 1])
        return page if self._counts[page] > 1 else None

    def _check_room(self, sequences: list[_Sequence], lengths: Sequence[int]) -> None:
        need = 0
        left: dict[int, int] = {}  # users of a shared tail page that have not copied it
        for sequence, count in zip(sequences, lengths, strict=True):
            need += self.pages_for(sequence.length + count) - sequence.num_pages
            tail = self._shares_tail(sequence)
            if tail is not None:
                left.setdefault(tail, int(self._counts[tail]))
                if left[tail] > 1:  # the last user keeps the page
                    need += 1
                    left[tail] -= 1
        if need > len(self._free):
            size = f"page = {self.page_size} tokens, {self.page_bytes / 2**20:.1f} MiB"
            raise UserError(
                f"kv cache: need {need} pages, {len(self._free)} free ({size}); "
                "lower --max-batch or --max-context"
            )

    def _reserve(self, sequence: _Sequence, count: int) -> _Reservation:
        reservation = _Reservation(sequence, sequence.length + count, sequence.num_pages, None)
        shared = self._shares_tail(sequence)
        if shared is not None:
            own = self._take()
            for pages in (*self.k_pages, *self.v_pages, *self.k_scales, *self.v_scales):
                pages[own] = pages[shared]
            self._counts[shared] -= 1
            sequence.pages[sequence.num_pages - 1] = own
            reservation.copied = (shared, own)
        for i in range(sequence.num_pages, self.pages_for(reservation.new_length)):
            sequence.pages[i] = self._take()
            sequence.num_pages = i + 1
        return reservation

    def _fill_view(self, sequences: list[_Sequence], lengths: Sequence[int]) -> BatchView:
        total, width = sum(lengths), max(s.num_pages for s in sequences)
        positions, slots, seq_ids = self._token_arrays(total)
        page_table = self._page_table[: len(sequences) * width].reshape(len(sequences), width)
        last_rows = self._last_rows[: len(sequences)]
        page, start = self.page_size, 0
        for row, (sequence, count) in enumerate(zip(sequences, lengths, strict=True)):
            page_table[row, : sequence.num_pages] = sequence.pages[: sequence.num_pages]
            page_table[row, sequence.num_pages :] = 0
            end, first = start + count, sequence.length
            if count == 1:  # decoding: no temporary arrays
                positions[start] = first
                slots[start] = sequence.pages[first // page] * page + first % page
            else:
                where = np.arange(first, first + count, dtype=np.int32)
                positions[start:end] = where
                slots[start:end] = sequence.pages[where // page] * page + where % page
            seq_ids[start:end] = row
            last_rows[row] = end - 1
            start = end
        self._table[_NUM_SEQS], self._table[_TABLE_WIDTH] = len(sequences), width
        return BatchView(total, positions, slots, seq_ids, page_table, last_rows, self._table, self)

    def _token_arrays(self, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scratch = self._scratch
        if total > len(scratch.positions):
            capacity = max(total, 2 * len(scratch.positions), 64)
            for name in CACHE_POINTERS[:3]:
                array = aligned_empty((capacity,), np.dtype(np.int32))
                setattr(scratch, name, array)
                self._table[CACHE_POINTERS.index(name)] = address(array)
        return scratch.positions[:total], scratch.slots[:total], scratch.seq_ids[:total]

    # Debugging.

    def debug_get_kv(self, seq_id: Hashable, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of a sequence in order: two copies ``[T, K, D]`` in the cache's dtype (i8: f32).

        Raises:
            UserError: no such sequence or layer.
        """
        sequence = self._get(seq_id)
        if not 0 <= layer < self.record.num_layers:
            raise UserError(f"kv cache: layer {layer}; expected 0 .. {self.record.num_layers - 1}")
        pages = sequence.pages[: sequence.num_pages]
        shape = (-1, self.record.num_kv_heads, self.record.head_dim)
        keys = key_tokens(self.k_pages[layer][pages], self._pack).reshape(shape)  # [P*page, K, D]
        values = value_tokens(self.v_pages[layer][pages], self._pack).reshape(shape)
        if self.k_scales:
            both = (self.k_scales[layer][pages], self.v_scales[layer][pages])  # [P, K, page]
            k_scales, v_scales = (s.transpose(0, 2, 1).reshape(*shape[:2], 1) for s in both)
            keys, values = keys * k_scales, values * v_scales
        return keys[: sequence.length].copy(), values[: sequence.length].copy()

    def check_integrity(self) -> None:
        """Check all invariants of the class.

        Raises:
            VerifyError: one is broken; says which, with the pages.
        """
        counts = np.zeros(self.num_pages, np.int32)
        pending = {id(r.sequence): r.new_length for r in self._open or ()}
        for seq_id, sequence in self._sequences.items():
            pages = sequence.pages[: sequence.num_pages]
            need = self.pages_for(pending.get(id(sequence), sequence.length))
            if sequence.num_pages != need:
                raise VerifyError(
                    f"kv cache: sequence {seq_id!r} has {sequence.num_pages} pages; expected {need}"
                )
            if len(set(pages.tolist())) != len(pages):
                raise VerifyError(f"kv cache: sequence {seq_id!r} has a page twice: {pages.tolist()}")
            counts[pages] += 1
        wrong = np.flatnonzero(counts != self._counts)
        if len(wrong):
            first = int(wrong[0])
            raise VerifyError(
                f"kv cache: page {first} is used by {counts[first]} sequences; "
                f"its count is {self._counts[first]}"
            )
        if sorted(self._free) != np.flatnonzero(counts == 0).tolist():
            raise VerifyError(f"kv cache: the free list {sorted(self._free)} is not the set of unused pages")
