"""IR text with parts replaced: what tests of refused input are made of."""

from collections.abc import Iterable


def changed(text: str, changes: Iterable[tuple[str, str]]) -> str:
    """``text`` with every change made, each of which must apply."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text
