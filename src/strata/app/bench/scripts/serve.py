"""The line protocol of peers: a JSON object per line on stdin, an answer per line on stdout.

::

    {"do": "make", "config": {...}, "precision": "q8_0", "path": "..."}    random weights, once
    {"do": "load", "path": "...", "threads": 2, "tokens": 1024, "batch": 8}
    {"do": "prefill", "tokens": 512}                                       -> {"seconds": 1.7}
    {"do": "decode", "context": 128, "tokens": 32, "batch": 1}             -> {"seconds": 0.6}
    {"do": "quit"}

``prefill`` reads a prompt of random tokens into an empty cache, to the logits of its last position.
``decode`` brings ``batch`` sequences to ``context`` tokens, and times ``tokens`` greedy steps of all of them.
A peer that cannot do what it is asked dies: its last words are on stderr.

The scripts of this folder run in an environment of their own, without Strata.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol


class Peer(Protocol):
    """What a script of this folder does."""

    def make(self, config: dict[str, Any], precision: str, path: str) -> None:
        """Write a model with random weights to ``path`` (``config``: as in ``config.json``)."""
        ...

    def load(self, path: str, threads: int, tokens: int, batch: int) -> str:
        """Load it for sequences of up to ``tokens`` tokens, ``batch`` of them; gives name and version."""
        ...

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt."""
        ...

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """Seconds for ``tokens`` steps of ``batch`` sequences with ``context`` tokens each."""
        ...


def peak_rss_bytes() -> int:
    """Most memory this process had: ``getrusage`` counts that of the one it was forked from."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def serve(peer: Peer) -> None:
    """Answer requests until ``quit`` or the end of stdin. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        if action == "quit":
            break
        start = time.perf_counter()
        value = getattr(peer, action)(**request)
        spent = time.perf_counter() - start
        answer: dict[str, Any] = {"seconds": value if isinstance(value, float) else spent}
        if isinstance(value, str):
            answer["version"] = value
        elif isinstance(value, dict):
            answer |= value
        answer["peak_rss_bytes"] = peak_rss_bytes()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
