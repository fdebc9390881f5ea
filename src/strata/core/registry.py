"""A named table whose failed look-ups say what exists."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name; a name is registered once.

    Args:
        what: What is registered, for messages: ``"op"``, ``"pass"``, ``"target"``.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register ``item``.

        Raises:
            UserError: the name is taken.
        """
        if name in self._items:
            raise UserError(f"{self.what} {name!r} is registered already")
        self._items[name] = item
        return item

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""
        return lambda item: self.add(name, item)

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            close = difflib.get_close_matches(name, self._items, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"no {self.what} {name!r}{hint} Known: {', '.join(sorted(self._items))}")
        return self._items[name]

    def get(self, name: str) -> T | None:
        """The item, or ``None``."""
        return self._items.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> Iterator[tuple[str, T]]:
        """All (name, item) pairs in the order of registration."""
        return iter(self._items.items())
