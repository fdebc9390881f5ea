import ctypes
from dataclasses import replace

import numpy as np
import pytest

from strata.core.errors import UserError, VerifyError
from strata.engine import kv_cache
from strata.engine.kv_cache import PagedKVCache, pages_that_fit, rope_tables
from strata.runtime.records import CACHE_HEADER, CACHE_POINTERS, CacheRecord

RECORD = CacheRecord(2, 2, 8, "bf16", 4, "normal", 4, (1.0, 0.01), 1.25)


def make(num_pages: int = 8, max_context: int = 20, max_batch: int = 3) -> PagedKVCache:
    return PagedKVCache(RECORD, num_pages, max_context, max_batch)


def write(cache: PagedKVCache, layer: int, slots, value=None):
    """Fill K and V of slots with their number, or with ``value``."""
    for slot in slots:
        page, t, number = slot // 4, slot % 4, slot if value is None else value
        cache.k_pages[layer][page, :, :, 2 * t : 2 * t + 2] = number  # pairs of elements
        cache.v_pages[layer][page, :, t // 2, t % 2 :: 2] = number  # pairs of tokens


def forward(cache: PagedKVCache, ids, lengths):
    view = cache.begin_forward(ids, lengths)
    cache.end_forward()
    return view


def test_view_of_a_ragged_batch():
    cache = make()
    cache.add_sequence("a")
    cache.add_sequence("b")
    forward(cache, ["a"], [3])
    view = cache.begin_forward(["b", "a"], [5, 2])
    assert view.num_tokens == 7
    assert view.positions.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert view.seq_ids.tolist() == [0] * 5 + [1] * 2
    assert view.last_rows.tolist() == [4, 6]
    assert view.page_table.shape == (2, 2)
    assert view.page_table.tolist() == [[1, 2], [0, 3]]
    assert view.slots.tolist() == [4, 5, 6, 7, 8, 3, 12]
    assert cache.length("a") == 3
    cache.end_forward()
    assert cache.length("a") == 5
    assert cache.num_free_pages == 4


def test_native_table():
    cache = make()
    cache.add_sequence(0)
    view = forward(cache, [0], [6])
    table = view.table
    assert table.dtype == np.int64
    assert len(table) == CACHE_HEADER + 4 * RECORD.num_layers
    pointers = dict(zip(CACHE_POINTERS, table.tolist(), strict=False))
    for name in ("positions", "slots", "seq_ids", "page_table", "last_rows"):
        array = getattr(view, name)
        assert pointers[name] == array.ctypes.data
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
    assert pointers["rope_cos"] == cache.rope_cos.ctypes.data
    assert pointers["rope_sin"] == cache.rope_sin.ctypes.data
    assert table[7:CACHE_HEADER].tolist() == [1, 2, 8, 20, 0, 0, 0, 0, 0]  # seqs, width, pages, context
    rows = [[k.ctypes.data, v.ctypes.data, 0, 0] for k, v in zip(cache.k_pages, cache.v_pages, strict=True)]
    assert table[CACHE_HEADER:].reshape(2, 4).tolist() == rows
    read = (ctypes.c_int32 * 6).from_address(pointers["positions"])
    assert list(read) == [0, 1, 2, 3, 4, 5]
    assert cache.page_bytes == 2 * 2 * 2 * 8 * 4 * 2


def test_arrays_grow_and_keep_their_addresses_otherwise():
    cache = make(num_pages=64, max_context=256)
    cache.add_sequence(0)
    first = forward(cache, [0], [1]).table[0]
    assert forward(cache, [0], [1]).table[0] == first
    view = forward(cache, [0], [100])
    assert view.table[0] == view.positions.ctypes.data
    assert view.positions.tolist() == list(range(2, 102))


def test_rope_tables_are_the_reference_models():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512
    )
    reference = LlamaRotaryEmbedding(config)
    cos, sin = reference(torch.zeros(1), torch.arange(512)[None])
    record = CacheRecord(1, 1, 64, "f32", 16, "normal", 64, tuple(reference.inv_freq.tolist()))
    ours = rope_tables(record, 512)
    np.testing.assert_allclose(ours[0], cos[0, :, :32].numpy(), atol=2e-7)
    np.testing.assert_allclose(ours[1], sin[0, :, :32].numpy(), atol=2e-7)


def test_rope_tables_scale_and_none():
    cos, sin = rope_tables(RECORD, 3)
    angle = np.float32(2) * np.float32(0.01)
    assert cos[2, 1] == np.cos(angle) * np.float32(1.25)
    assert sin[2, 1] == np.sin(angle) * np.float32(1.25)
    assert cos.dtype == sin.dtype == np.float32
    cos, sin = rope_tables(CacheRecord(1, 1, 8, "f32", 4, "none", 0), 3)
    assert cos.shape == sin.shape == (3, 1)


def test_exhaustion_changes_nothing():
    cache = make(num_pages=3)
    cache.add_sequence("a")
    cache.add_sequence("b")
    forward(cache, ["a"], [5])
    with pytest.raises(
        UserError, match=r"need 4 pages, 1 free \(page = 4 tokens, 0.0 MiB\); lower --max-batch or"
    ):
        cache.begin_forward(["a", "b"], [8, 7])
    cache.check_integrity()
    assert (cache.num_free_pages, cache.length("a"), cache.length("b")) == (1, 5, 0)
    forward(cache, ["a", "b"], [3, 4])
    assert cache.num_free_pages == 0


def test_fork_shares_until_written():
    cache = make()
    cache.add_sequence("a")
    view = forward(cache, ["a"], [6])
    for layer in range(2):
        write(cache, layer, view.slots)
    cache.fork_sequence("a", "b")
    cache.fork_sequence("a", "c", 4)
    assert cache.num_free_pages == 6
    view = forward(cache, ["b", "a"], [1, 1])  # one of the two copies the shared page, the other keeps it
    assert cache.num_free_pages == 5
    write(cache, 0, view.slots[:1], 77)
    assert cache.debug_get_kv("a", 0)[0][:6, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert cache.debug_get_kv("b", 0)[0][:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 77]
    assert cache.debug_get_kv("b", 1)[0][4:6, 0, 0].tolist() == [4, 5]
    cache.remove_sequence("a")
    cache.remove_sequence("b")
    assert cache.debug_get_kv("c", 0)[0].shape == (4, 2, 8)
    cache.remove_sequence("c")
    assert cache.num_free_pages == 8
    cache.check_integrity()


def test_the_last_user_of_a_shared_page_needs_no_copy():
    cache = make(num_pages=3)
    cache.add_sequence("a")
    forward(cache, ["a"], [6])
    cache.fork_sequence("a", "b")
    forward(cache, ["a", "b"], [1, 1])
    assert cache.num_free_pages == 0
    cache.check_integrity()


def test_abort_restores_what_a_lone_fork_wrote_over():
    cache = make()
    cache.add_sequence("a")
    view = forward(cache, ["a"], [4 + 3])
    write(cache, 1, view.slots)
    cache.fork_sequence("a", "b", 5)
    view = cache.begin_forward(
        ["a", "b"], [1, 2]
    )  # a copies the shared page, b is alone with it and writes at 5
    write(cache, 1, view.slots, -1)
    cache.abort_forward()
    for half in cache.debug_get_kv("a", 1):
        assert half[:, 0, 0].tolist() == half[:, 1, 7].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert cache.num_free_pages == 6
    cache.check_integrity()


def test_discard_during_a_pass_waits_for_its_end():
    for end in ("end_forward", "abort_forward"):
        cache = make()
        cache.add_sequence("a")
        forward(cache, ["a"], [6])
        cache.fork_sequence("a", "b")
        cache.begin_forward(["b"], [1])
        cache.discard_sequence("a")
        assert "a" in cache
        getattr(cache, end)()
        assert cache.sequences == ("b",)
        cache.check_integrity()
        cache.discard_sequence("b")
        assert cache.num_free_pages == 8
    cache.add_sequence("c")
    cache.begin_forward(["c"], [1])
    with pytest.raises(UserError, match="no sequence 'x'"):
        cache.discard_sequence("x")
    cache.discard_sequence("c")
    cache.clear()
    cache.check_integrity()


def test_clear():
    cache = make()
    cache.add_sequence(1)
    cache.begin_forward([1], [9])
    cache.clear()
    assert cache.sequences == ()
    assert 1 not in cache
    assert cache.num_free_pages == 8
    cache.check_integrity()


def test_user_errors():
    for sizes in ({"num_pages": 0}, {"max_context": 0}, {"max_batch": 0}):
        with pytest.raises(UserError, match=f"kv cache: {next(iter(sizes))}: got 0; expected at least 1"):
            make(**sizes)
    cache = make()
    cache.add_sequence("a")
    with pytest.raises(UserError, match="sequence 'a' exists already"):
        cache.add_sequence("a")
    for call in (
        cache.length,
        cache.remove_sequence,
        lambda i: cache.pop(i, 0),
        lambda i: cache.fork_sequence(i, 9),
    ):
        with pytest.raises(UserError, match="no sequence 'x'; it has a"):
            call("x")
    with pytest.raises(UserError, match="fork of 'a' at 1; it has 0 tokens"):
        cache.fork_sequence("a", "b", 1)
    with pytest.raises(UserError, match="sequence 'a' exists already"):
        cache.fork_sequence("a", "a")
    with pytest.raises(UserError, match="pop 1 of sequence 'a'; it has 0 tokens"):
        cache.pop("a", 1)
    with pytest.raises(UserError, match=r"layer 2; expected 0 \.\. 1"):
        cache.debug_get_kv("a", 2)
    with pytest.raises(UserError, match="end_forward without begin_forward"):
        cache.end_forward()
    with pytest.raises(UserError, match="abort_forward without begin_forward"):
        cache.abort_forward()


def test_batch_errors():
    cache = make()
    for name in "abcd":
        cache.add_sequence(name)
    for ids, lengths, match in [
        ([], [], "got 0 ids and 0 lengths"),
        (["a"], [1, 2], "got 1 ids and 2 lengths"),
        (list("abcd"), [1] * 4, r"4 sequences in one pass; the limit is 3 \(--max-batch\)"),
        (["a", "a"], [1, 1], r"a sequence occurs twice in \['a', 'a'\]"),
        (["x"], [1], "no sequence 'x'"),
        (["a"], [0], "sequence 'a': got 0 new tokens"),
        (["a"], [21], r"sequence 'a' would have 21 tokens; the context is 20 \(--max-context\)"),
    ]:
        with pytest.raises(UserError, match=match):
            cache.begin_forward(ids, lengths)
    cache.begin_forward(["a"], [1])
    for name, call in {
        "begin_forward": lambda: cache.begin_forward(["b"], [1]),
        "add_sequence": lambda: cache.add_sequence("e"),
        "remove_sequence": lambda: cache.remove_sequence("a"),
        "fork_sequence": lambda: cache.fork_sequence("a", "e"),
        "pop": lambda: cache.pop("a", 0),
    }.items():
        with pytest.raises(
            UserError, match=f"{name} during a forward pass; call end_forward or abort_forward"
        ):
            call()
    cache.abort_forward()


def test_integrity_errors():
    cache = make()
    cache.add_sequence("a")
    forward(cache, ["a"], [6])
    sequence = cache._sequences["a"]
    sequence.num_pages = 1
    with pytest.raises(VerifyError, match="sequence 'a' has 1 pages; expected 2"):
        cache.check_integrity()
    sequence.num_pages = 2
    sequence.pages[1] = sequence.pages[0]
    with pytest.raises(VerifyError, match=r"sequence 'a' has a page twice: \[0, 0\]"):
        cache.check_integrity()
    sequence.pages[1] = 2
    with pytest.raises(VerifyError, match="page 1 is used by 0 sequences; its count is 1"):
        cache.check_integrity()
    sequence.pages[1] = 1
    cache._free.pop()
    with pytest.raises(VerifyError, match=r"the free list .* is not the set of unused pages"):
        cache.check_integrity()


def test_a_pool_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_cache, "available_bytes", lambda: 3000)
    page = 2 * 2 * 2 * 8 * 4 * 2
    assert pages_that_fit(RECORD) == 3000 // page
    make(num_pages=3000 // page)
    message = (
        r"kv cache: 0.0 GiB are needed for 24 tokens "
        r"\(6 pages of 0.00 MiB: 2 layers, 2 KV heads of 8 bf16\), "
        r"0.0 GiB are available; lower --max-context or --max-batch, or take --kv-dtype int8"
    )
    with pytest.raises(UserError, match=message):
        make(num_pages=6)
    coded = replace(RECORD, dtype="i8")
    with pytest.raises(UserError, match=r"lower --max-context or --max-batch$"):
        PagedKVCache(coded, 8, 20, 3)
    monkeypatch.setattr(kv_cache, "available_bytes", lambda: None)
    assert pages_that_fit(RECORD) is None
    make(num_pages=6)


def test_codes_have_scales():
    cache = PagedKVCache(replace(RECORD, dtype="i8"), 8, 20, 3)
    assert cache.page_bytes == 2 * 2 * 2 * 4 * (8 + 4)
    table = cache.begin_forward(_one(cache), [6]).table
    rows = zip(cache.k_pages, cache.v_pages, cache.k_scales, cache.v_scales, strict=True)
    assert table[CACHE_HEADER:].tolist() == [a.ctypes.data for row in rows for a in row]
    cache.end_forward()
    for layer in range(2):
        write(cache, layer, range(6))
        cache.k_scales[layer][:2] = 0.5
        cache.v_scales[layer][:2] = 0.25
    cache.fork_sequence(0, 1)
    forward(cache, [1], [1])  # copies the shared page, scales included
    keys, values = cache.debug_get_kv(1, 1)
    assert keys[:6, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert values[:6, 1, 7].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]


def test_abort_restores_scales():
    cache = PagedKVCache(replace(RECORD, dtype="i8"), 8, 20, 3)
    forward(cache, _one(cache), [6])
    cache.k_scales[0][:2] = 1.0
    cache.fork_sequence(0, 1, 5)
    cache.begin_forward([0, 1], [1, 1])  # 0 copies the shared page, 1 writes over its sixth token
    cache.k_scales[0][1, :, 1] = 7.0
    write(cache, 0, [5], 3)
    cache.abort_forward()
    keys, _ = cache.debug_get_kv(0, 0)
    assert cache.k_scales[0][1, :, 1].tolist() == [1.0, 1.0]
    assert keys[5, 0, 0] == 0


def _one(cache: PagedKVCache) -> list[int]:
    cache.add_sequence(0)
    return [0]
