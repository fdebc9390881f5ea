"""Continuous batching: requests share forward passes, enter when there is room, and leave when they are done.

::

    waiting --admit--> running: prefill (chunks) --> decode, one token per pass --> finished
                          ^ at most max_batch, and only while the pool has pages for all that was promised

One step is one forward pass: a ragged prefill batch of up to ``prefill_chunk`` tokens while any prompt is
unfinished, else one decode pass over all running sequences. What a request generates does not depend on the
others, but for rounding: kernels for many rows may add up in another order, or (4-bit weights on a matrix
unit) round activations to bf16 instead of int8.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from strata.runtime.records import ProgramRecord

from .kv_cache import PagedKVCache
from .sampling import Sampler, SamplingParams
from .stop import StopBuffer
from .tokenizer import StreamDecoder


class ModelFunction(Protocol):
    """A callable model function (``runtime.program.CompiledFunction``)."""

    def __call__(self, *args: Any, out: Any = None) -> Any:
        """``logits, best = f(ids, cache_view)``; ``score`` gives logits only."""
        ...

    def dim_range(self, dim: str) -> tuple[int, int]:
        """Sizes it was compiled for."""
        ...


class Model(Protocol):
    """What the engine needs of a program (``runtime.program.Program``)."""

    @property
    def record(self) -> ProgramRecord:
        """Description of the program."""
        ...

    def __getitem__(self, name: str) -> ModelFunction: ...

    def __contains__(self, name: str) -> bool: ...


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full


@dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way through the engine.

    Attributes:
        seq_id: Its sequence in the KV cache.
        prompt_ids: i32 ``[len]``.
        params: How it is sampled and when it stops.
        stop_ids: Tokens that end it.
        sampler, stop, decoder: Its state; no decoder = token ids only.
        prefilled: Prompt tokens that the cache holds.
        token_ids: Generated so far, the one that ended it included.
        text: Generated text so far, without what is held back.
        finish_reason: ``None`` while it runs.
        stopped_by: The stop string or token that ended it.
        submitted_s, first_token_s: Moments (``time.perf_counter``).
        prefill_s, decode_s: Time in passes that read its prompt, and in its decode passes.
    """

    seq_id: int
    prompt_ids: np.ndarray
    params: SamplingParams
    stop_ids: frozenset[int]
    sampler: Sampler
    stop: StopBuffer
    decoder: StreamDecoder | None
    prefilled: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    submitted_s: float = field(default_factory=time.perf_counter)
    first_token_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class BatchRunner:
    """Runs requests to their ends, sharing forward passes.

    Args:
        program: Has the functions ``prefill`` and ``decode``.
        cache: Its pool; other users may have sequences in it.
        prefill_chunk: Most prompt tokens per pass.
        lock: Held during each step: the cache and the program serve one pass at a time.
    """

    def __init__(
        self, program: Model, cache: PagedKVCache, prefill_chunk: int, lock: threading.RLock
    ) -> None:
        self._prefill, self._decode = program["prefill"], program["decode"]
        self._cache = cache
        self._chunk = prefill_chunk
        self._lock = lock
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def run(self) -> Iterator[tuple[Request, str]]:
        """Step until all requests are finished; gives each new piece of text. Frees all sequences at the end.

        Raises:
            UserError: the KV cache has too few pages even for one request, or the logits are damaged.
        """
        try:
            while self._waiting or self._running:
                with self._lock:
                    pieces = self._step()
                yield from pieces
        finally:
            with self._lock:
                for request in self._running:
                    self._cache.discard_sequence(request.seq_id)
            self._running.clear()
            self._waiting.clear()

    def _step(self) -> list[tuple[Request, str]]:
        self._admit()
        if any(r.prefilled < len(r.prompt_ids) for r in self._running):
            pieces = self._prefill_pass()
        else:
            pieces = self._decode_pass()
        for request in [r for r in self._running if r.finish_reason is not None]:
            self._running.remove(request)
            self._cache.remove_sequence(request.seq_id)
        return pieces

    def _admit(self) -> None:
        """Let waiting requests in, in order, while the pool can hold all that they may come to."""
        while self._waiting and len(self._running) < self._cache.max_batch:
            promised = sum(self._most_pages(r) - self._pages(r) for r in self._running)
            free = self._cache.num_free_pages - promised
            if self._running and free < self._most_pages(self._waiting[0]):
                return
            request = self._waiting.popleft()
            self._cache.add_sequence(request.seq_id)
            self._running.append(request)

    def _pages(self, request: Request) -> int:
        return self._cache.pages_for(self._cache.length(request.seq_id))

    def _most_pages(self, request: Request) -> int:
        most = self._cache.max_context
        if request.params.max_tokens is not None:
            most = min(most, len(request.prompt_ids) + request.params.max_tokens)
        return self._cache.pages_for(most)

    def _decode_pass(self) -> list[tuple[Request, str]]:
        start = time.perf_counter()
        ids = np.array([r.token_ids[-1] for r in self._running], np.int32)
        rows = self._forward(self._decode, self._running, ids, [1] * len(ids))
        pieces = [(r, self._accept(r, *row)) for r, row in zip(self._running, rows, strict=True)]
        took = time.perf_counter() - start
        for request in self._running:
            request.decode_s += took
        return pieces

    def _prefill_pass(self) -> list[tuple[Request, str]]:
        room = self._chunk
        batch: list[Request] = []
        parts: list[np.ndarray] = []
        for request in self._running:
            part = request.prompt_ids[request.prefilled : request.prefilled + room]
            if len(part):
                batch.append(request)
                parts.append(part)
                room -= len(part)
        start = time.perf_counter()
        rows = self._forward(self._prefill, batch, np.concatenate(parts), [len(p) for p in parts])
        took = time.perf_counter() - start
        pieces: list[tuple[Request, str]] = []
        for request, part, row in zip(batch, parts, rows, strict=True):
            request.prefilled += len(part)
            request.prefill_s += took
            if request.prefilled == len(request.prompt_ids):
                pieces.append((request, self._accept(request, *row)))
        return pieces

    def _forward(
        self, function: ModelFunction, batch: Sequence[Request], ids: np.ndarray, lengths: list[int]
    ) -> list[tuple[np.ndarray, int]]:
        """Logits f32 ``[vocab]`` of each sequence's last token (valid until the next call), and where the
        largest is.
        """
        view = self._cache.begin_forward([r.seq_id for r in batch], lengths)
        try:
            logits, best = function(ids, view)
        except BaseException:
            self._cache.abort_forward()
            raise
        self._cache.end_forward()
        return list(zip(logits, best.tolist(), strict=True))

    def _accept(self, request: Request, logits: np.ndarray, best: int) -> str:
        """Sample the next token of a request; returns the text that it makes certain."""
        token = request.sampler.sample(logits, best)
        request.token_ids.append(token)
        if len(request.token_ids) == 1:
            request.first_token_s = time.perf_counter()
        piece = ""
        if token in request.stop_ids:
            request.finish_reason, request.stopped_by = FinishReason.STOP, token
        else:
            piece = request.stop.push(request.decoder.push(token) if request.decoder else "")
            if self._is_full(request):
                request.finish_reason = FinishReason.LENGTH
        if request.finish_reason is not None and request.decoder:
            piece += request.stop.push(request.decoder.flush())
        if request.stop.found is not None:
            request.finish_reason, request.stopped_by = FinishReason.STOP, request.stop.found
        elif request.finish_reason is not None:
            piece += request.stop.flush()
        request.text += piece
        return piece

    def _is_full(self, request: Request) -> bool:
        count, limit = len(request.token_ids), request.params.max_tokens
        total = len(request.prompt_ids) + count
        return (limit is not None and count >= limit) or total >= self._cache.max_context
