"""Stop strings in a stream of text pieces, also where they begin in one piece and end in another."""

from __future__ import annotations

from collections.abc import Sequence


class StopBuffer:
    """Passes text on, but holds back an end that may be the beginning of a stop string.

    Args:
        stops: Stop strings, none empty. The text ends before the first one that completes.

    Attributes:
        found: The stop string that ended the text, or ``None``.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Add text; returns what is certain to be before any stop string (nothing once one was found)."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        hits = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if hits:
            end, self.found = min(hits, key=lambda hit: hit[0])
            self._held = ""
            return text[:end]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text that is still held back, when no more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
