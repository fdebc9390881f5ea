"""The paged KV cache against a dict of lists, over random sequences of operations."""

import copy

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from strata.core.errors import UserError
from strata.engine.kv_cache import BatchView, PagedKVCache
from strata.runtime.records import CacheRecord

LAYERS, KV_HEADS, HEAD_DIM, MAX_CONTEXT, MAX_BATCH = 2, 2, 3, 40, 4


def write_tokens(cache: PagedKVCache, view: BatchView, tokens: list[int]) -> None:
    """Store K = token, V = -token (plus layer, head and element numbers) where the view says."""
    page = cache.page_size
    grid = np.arange(KV_HEADS * HEAD_DIM, dtype=np.float32).reshape(KV_HEADS, HEAD_DIM)
    for slot, token in zip(view.slots.tolist(), tokens, strict=True):
        for layer in range(LAYERS):
            cache.k_pages[layer][slot // page, :, :, slot % page] = token + layer * 1000 + grid
            cache.v_pages[layer][slot // page, :, slot % page, :] = -(token + layer * 1000 + grid)


class CacheMachine(RuleBasedStateMachine):
    """``model`` maps sequence ids to their tokens; every token ever written has its own number."""

    @initialize(page=st.sampled_from([4, 1, 3, 16]), room=st.integers(40, 120), length=st.integers(1, 20))
    def start(self, page: int, room: int, length: int) -> None:
        record = CacheRecord(LAYERS, KV_HEADS, HEAD_DIM, "f32", page, "none", 0)
        self.cache = PagedKVCache(record, room // page, MAX_CONTEXT, MAX_BATCH)
        self.model: dict[int, list[int]] = {}
        self.next_id = 0
        self.next_token = 1
        self.add()
        view = self.cache.begin_forward([0], [length])
        self.commit(view, [0], [length])
        self.fork_at(0, None)

    def some(self, data) -> int:
        return data.draw(st.sampled_from(sorted(self.model)))

    @precondition(lambda self: len(self.model) < 6)
    @rule()
    def add(self) -> None:
        self.cache.add_sequence(self.next_id)
        self.model[self.next_id] = []
        self.next_id += 1

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data())
    def remove(self, data) -> None:
        seq = self.some(data)
        self.cache.remove_sequence(seq)
        del self.model[seq]

    @precondition(lambda self: len(self.model) < 6)
    @rule(data=st.data())
    def fork(self, data) -> None:
        parent = self.some(data)
        self.fork_at(parent, data.draw(st.none() | st.integers(0, len(self.model[parent]))))

    def fork_at(self, parent: int, position: int | None) -> None:
        free = self.cache.num_free_pages
        self.cache.fork_sequence(parent, self.next_id, position)
        assert self.cache.num_free_pages == free
        self.model[self.next_id] = self.model[parent][:position]
        self.next_id += 1

    @rule(data=st.data())
    def pop(self, data) -> None:
        seq = self.some(data)
        count = data.draw(st.integers(0, len(self.model[seq])))
        self.cache.pop(seq, count)
        self.model[seq] = self.model[seq][: len(self.model[seq]) - count]

    @rule(data=st.data(), commit=st.booleans(), write=st.booleans())
    def forward(self, data, commit: bool, write: bool) -> None:
        ids = data.draw(
            st.lists(st.sampled_from(sorted(self.model)), min_size=1, max_size=MAX_BATCH, unique=True)
        )
        lengths = data.draw(st.lists(st.integers(1, 6), min_size=len(ids), max_size=len(ids)))
        free = self.cache.num_free_pages
        state = copy.deepcopy((self.cache._free, self.cache._counts.tolist()))
        view, message = None, "need"
        try:
            view = self.cache.begin_forward(ids, lengths)
        except UserError as error:
            message = str(error)
        if view is None:
            assert "need" in message or "context" in message
            assert (self.cache._free, self.cache._counts.tolist()) == state
            return
        self.cache.check_integrity()
        self.check_view(view, ids, lengths)
        if commit:
            self.commit(view, ids, lengths)
        else:
            if write:
                write_tokens(self.cache, view, [-1] * sum(lengths))
            self.cache.abort_forward()
            assert self.cache.num_free_pages == free

    def commit(self, view: BatchView, ids: list[int], lengths: list[int]) -> None:
        tokens = list(range(self.next_token, self.next_token + sum(lengths)))
        self.next_token += len(tokens)
        write_tokens(self.cache, view, tokens)
        self.cache.end_forward()
        for seq, count in zip(ids, lengths, strict=True):
            self.model[seq] = self.model[seq] + tokens[:count]
            tokens = tokens[count:]

    def check_view(self, view: BatchView, ids: list[int], lengths: list[int]) -> None:
        page, start = self.cache.page_size, 0
        for row, (seq, count) in enumerate(zip(ids, lengths, strict=True)):
            positions = view.positions[start : start + count]
            assert positions.tolist() == list(range(len(self.model[seq]), len(self.model[seq]) + count))
            pages = view.page_table[row][positions // page]
            assert (view.slots[start : start + count] == pages * page + positions % page).all()
            assert (view.seq_ids[start : start + count] == row).all()
            start += count
            assert view.last_rows[row] == start - 1
        assert view.num_tokens == start == len(view.positions)
        assert len(set(view.slots.tolist())) == start

    @invariant()
    def same_as_the_model(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert self.cache.sequences == tuple(self.model)
        grid = np.arange(KV_HEADS * HEAD_DIM, dtype=np.float32).reshape(KV_HEADS, HEAD_DIM)
        for seq, tokens in self.model.items():
            assert self.cache.length(seq) == len(tokens)
            want = np.array(tokens, np.float32)[:, None, None] + grid
            for layer in range(LAYERS):
                keys, values = self.cache.debug_get_kv(seq, layer)
                np.testing.assert_array_equal(keys, want + layer * 1000)
                np.testing.assert_array_equal(values, -(want + layer * 1000))


CacheMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestKVCache = CacheMachine.TestCase
