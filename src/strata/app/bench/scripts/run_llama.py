"""llama.cpp, through the C interface that llama-cpp-python wraps."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from serve import serve


class LlamaCpp:
    """A model and a context; the sequences of a batch share nothing."""

    def make(self, config: dict[str, Any], precision: str, path: str) -> None:
        """As in :class:`serve.Peer`."""
        from make_gguf import write

        write(config, precision, Path(path))

    def load(self, path: str, threads: int, tokens: int, batch: int) -> str:
        """As in :class:`serve.Peer`."""
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"llama.cpp cannot read {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * -(-tokens // 256) * 256, batch
        params.n_batch = 2048
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self._clear()
        self.rng = np.random.default_rng(0)
        return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    def prefill(self, tokens: int) -> float:
        """As in :class:`serve.Peer`."""
        self._clear()
        return self._fill(0, tokens)

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """As in :class:`serve.Peer`."""
        if len(self.lengths) < batch or min(self.lengths) < context:
            self._clear()
            for sequence in range(batch):
                self._fill(sequence, context)
        for sequence in range(batch):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, context, -1)
        last = np.zeros(batch, np.int64)
        self.lengths[:batch] = [context + tokens] * batch
        start = time.perf_counter()
        for step in range(tokens):
            self._set([(int(last[s]), context + step, s, True) for s in range(batch)])
            self._run()
            for sequence in range(batch):
                last[sequence] = self._logits(sequence).argmax()
        return time.perf_counter() - start

    def convert(self, folder: str, path: str) -> None:
        """Write the GGUF file of a Hugging Face folder, in f32."""
        from convert_gguf import convert

        convert(Path(folder), Path(path))

    def quantize(self, source: str, path: str, precision: str, is_pure: bool) -> None:
        """Write a file in another precision, as llama.cpp does it; pure: every matrix, also the head."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
        params.pure = is_pure
        status = llama_cpp.llama_model_quantize(source.encode(), path.encode(), ctypes.byref(params))
        if status:
            raise SystemExit(f"llama_model_quantize: status {status}")

    def score(self, ids: list[int], windows: list[tuple[int, int, int]]) -> dict[str, Any]:
        """Nats of tokens given those before them in their window.

        Args:
            ids: The text.
            windows: ``(begin, first, end)``: rows ``first .. end - 1`` predict the tokens after them, from
                ``begin`` on.
        """
        nats = 0.0
        for begin, first, end in windows:
            self._clear()
            self._set([(ids[t], t - begin, 0, True) for t in range(begin, end)])
            self._run()
            for row in range(first, end):
                logits = self._logits(row - begin).astype(np.float64)
                peak = logits.max()
                nats += float(np.log(np.exp(logits - peak).sum()) + peak - logits[ids[row + 1]])
        return {"nats": nats}

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)
        self.lengths: list[int] = []

    def _fill(self, sequence: int, tokens: int) -> float:
        ids = self.rng.integers(0, self.vocab, tokens)
        start = time.perf_counter()
        for begin in range(0, tokens, 2048):
            part = range(begin, min(begin + 2048, tokens))
            self._set([(int(ids[t]), t, sequence, t == tokens - 1) for t in part])
            self._run()
        self._logits(-1)
        self.lengths.append(tokens)
        return time.perf_counter() - start

    def _set(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Fill the batch: token, position, sequence, whether its logits are wanted."""
        b = self.batch
        b.n_tokens = len(entries)
        for n, (token, position, sequence, wanted) in enumerate(entries):
            b.token[n], b.pos[n], b.n_seq_id[n], b.logits[n] = token, position, 1, wanted
            b.seq_id[n][0] = sequence

    def _run(self) -> None:
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status:
            raise SystemExit(f"llama_decode: status {status}")

    def _logits(self, row: int) -> np.ndarray:
        """Logits of a batch entry (-1: the last that was wanted); waits for them."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab,))


if __name__ == "__main__":
    serve(LlamaCpp())
