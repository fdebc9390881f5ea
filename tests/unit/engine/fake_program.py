"""A model in NumPy behind the interface of ``runtime.program.Program``.

It finds everything through the addresses of the cache table, as native code does: it writes K (token and
position) and V (a vector of the token) of the new tokens at ``slots``, and reads the whole history of a
sequence through its row of the page table. Logits depend on every token of the history and on its position,
so a token in a wrong slot, a stale page or a wrong position changes them.
"""

import ctypes

import numpy as np

from strata.runtime.records import (
    CACHE_DIMS,
    CACHE_HEADER,
    CACHE_POINTERS,
    CacheRecord,
    FunctionRecord,
    ProgramRecord,
    TensorSpec,
)

CACHE = CacheRecord(
    num_layers=2, num_kv_heads=1, head_dim=4, dtype="f32", page_size=4, rope="none", rotary_dim=0
)


OUTPUTS = (TensorSpec("out0", "f32", ("num_seqs", 40)), TensorSpec("out1", "i32", ("num_seqs",)))


def logits_of_history(history: list[int], vocab: int) -> np.ndarray:
    """Logits after ``history``: what the fake model computes through the cache."""
    return _logits(np.array(history), np.arange(len(history)), vocab)


def _logits(tokens: np.ndarray, positions: np.ndarray, vocab: int) -> np.ndarray:
    mix = (tokens.astype(np.int64) * 7919 + positions * 104729 + 1).sum()
    recent = int(tokens[-1]) * 31 + int(positions[-1])
    logits = np.sin(np.arange(vocab) * (0.1 + mix % 97) + recent) * 4
    logits[:2] -= 9  # rarely a special token
    return logits.astype(np.float32)


def _memory(address: int, shape: tuple[int, ...], kind: type) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * count).from_address(address)).reshape(shape)


class FakeFunction:
    def __init__(self, program: "FakeProgram", every_row: bool, longest: int) -> None:
        self.program, self.every_row, self.longest = program, every_row, longest
        self.calls: list[tuple[int, int]] = []  # (tokens, sequences)

    def dim_range(self, dim: str) -> tuple[int, int]:
        assert dim == "n"
        return (1, self.longest)

    def __call__(self, ids, view, out=None):
        assert ids.dtype == np.int32
        assert len(ids) == view.num_tokens <= self.longest
        if self.program.fail_after is not None:
            self.program.fail_after -= 1
            if self.program.fail_after < 0:
                raise RuntimeError("the fake model fails")
        fields = dict(zip((*CACHE_POINTERS, *CACHE_DIMS), view.table.tolist(), strict=False))
        n, seqs, width = len(ids), fields["num_seqs"], fields["table_width"]
        self.calls.append((n, seqs))
        positions = _memory(fields["positions"], (n,), ctypes.c_int32)
        slots = _memory(fields["slots"], (n,), ctypes.c_int32)
        seq_ids = _memory(fields["seq_ids"], (n,), ctypes.c_int32)
        table = _memory(fields["page_table"], (seqs, width), ctypes.c_int32)
        last_rows = _memory(fields["last_rows"], (seqs,), ctypes.c_int32)
        pool = fields["num_pages"]
        rows = np.empty((n, self.program.vocab), np.float32)
        for layer in range(CACHE.num_layers):
            k_address, v_address = view.table[
                CACHE_HEADER + 4 * layer : CACHE_HEADER + 4 * layer + 2
            ].tolist()
            keys = _memory(k_address, (pool, 1, 4, 4), ctypes.c_float)
            values = _memory(v_address, (pool, 1, 4, 4), ctypes.c_float)
            keys[slots // 4, 0, layer, slots % 4] = ids
            keys[slots // 4, 0, 3, slots % 4] = positions
            values[slots // 4, 0, slots % 4, :] = ids[:, None] + layer
            for t in range(n):
                where = np.arange(positions[t] + 1)
                pages = table[seq_ids[t]][where // 4]
                tokens = keys[pages, 0, layer, where % 4]
                assert (keys[pages, 0, 3, where % 4] == where).all()
                assert (values[pages, 0, where % 4, 2] == tokens + layer).all()
                if layer == CACHE.num_layers - 1:
                    rows[t] = _logits(tokens.astype(np.int64), where, self.program.vocab)
        result = rows if self.every_row else rows[last_rows]
        if out is not None:
            assert out.shape == result.shape
            out[...] = result
            return out
        return result if self.every_row else (result, result.argmax(axis=1).astype(np.int32))


class FakeProgram:
    def __init__(
        self,
        vocab: int = 40,
        max_context: int = 64,
        max_batch: int = 4,
        chunk: int = 8,
        functions=None,
        **config,
    ) -> None:
        self.vocab = vocab
        self.fail_after: int | None = None
        self.functions = {
            "prefill": FakeFunction(self, False, 16),
            "decode": FakeFunction(self, False, max_batch),
            "score": FakeFunction(self, True, 6),
        }
        for name in set(self.functions) - set(functions or self.functions):
            del self.functions[name]
        sizes = {
            "vocab_size": vocab,
            "max_context": max_context,
            "max_batch": max_batch,
            "prefill_chunk": chunk,
        }
        self.record = ProgramRecord(
            functions=tuple(FunctionRecord(name, (), OUTPUTS, (), (), 0) for name in self.functions),
            params=(),
            cache=CACHE,
            target="fake",
            features=(),
            config={**sizes, "eos_token_ids": [], "model_name": "fake", **config},
        )

    def __getitem__(self, name: str) -> FakeFunction:
        return self.functions[name]

    def __contains__(self, name: str) -> bool:
        return name in self.functions


def greedy(prompt: list[int], count: int, vocab: int) -> list[int]:
    """The greedy continuation by definition."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(logits_of_history(history, vocab).argmax()))
    return history[len(prompt) :]
