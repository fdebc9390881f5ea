"""Logits of every position of a token sequence, chunk by chunk, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from strata.core.errors import UserError

from .batch import Model
from .kv_cache import PagedKVCache


def score(
    program: Model,
    cache: PagedKVCache,
    ids: np.ndarray,
    seq_id: int,
    chunk: int,
    out: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Run ``ids`` as a sequence of its own; gives the logits of one chunk after the other.

    Args:
        program: Has the function ``score``.
        cache: Its pool; the sequence is removed at the end.
        ids: i32 ``[len]``, at most the cache's context.
        seq_id: A free id.
        chunk: Most tokens per forward pass.
        out: f32 ``[len, vocab]``: where to put the logits of all chunks; otherwise a chunk is valid until the
            next.

    Yields:
        f32 ``[chunk, vocab]``.

    Raises:
        UserError: the program has no ``score``, or the pool has too few pages.
    """
    if "score" not in program:
        raise UserError("logits: the program was compiled without the function 'score'; compile it with it")
    function = program["score"]
    chunk = min(chunk, function.dim_range("n")[1])
    cache.add_sequence(seq_id)
    try:
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            view = cache.begin_forward([seq_id], [len(part)])
            try:
                logits = function(part, view, out=None if out is None else out[start : start + len(part)])
            except BaseException:
                cache.abort_forward()
                raise
            cache.end_forward()
            yield logits
    finally:
        cache.remove_sequence(seq_id)


def negative_log_likelihood(chunks: Iterable[np.ndarray], targets: np.ndarray, first: int) -> float:
    """Sum of ``-log softmax(logits[t])[targets[t]]`` over rows ``t >= first``, in nats.

    Args:
        chunks: f32 ``[chunk, vocab]`` each; together one row per target.
        targets: Token after each row.
        first: Rows before this one are context only.
    """
    total, row = 0.0, 0
    for logits in chunks:
        begin = min(max(first - row, 0), len(logits))
        rows, wanted = logits[begin:], targets[row + begin : row + len(logits)]
        row += len(logits)
        if len(rows):
            total += float(token_nats(rows, wanted).sum())
    return total


def token_nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """``-log softmax(logits[t])[targets[t]]`` of each row, f64 ``[rows]``; logits f32 ``[rows, vocab]``."""
    return _log_sums(logits) - logits[np.arange(len(logits)), targets]


def token_divergences(exact: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each row's prediction from the exact one, in nats, f64 ``[rows]``, >= 0.

    What the exact model would lose on text of its own by predicting it with ``logits``; both are f32
    ``[rows, vocab]``.
    """
    exact_sums = _log_sums(exact)
    probabilities = np.exp(exact - exact_sums[:, None])
    crossed = (probabilities * (exact - logits)).sum(axis=1) / probabilities.sum(axis=1)
    return np.maximum(crossed - exact_sums + _log_sums(logits), 0.0)


def _log_sums(logits: np.ndarray) -> np.ndarray:
    """``log(sum(exp(logits)))`` of each row, f64."""
    peak = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - peak).sum(axis=1, dtype=np.float64)) + peak[:, 0]
