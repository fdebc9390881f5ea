"""Text of option values (``8``, ``true``, ``none``, ``fast``, ``"a b"``, ``[1,2]``), and their types."""

from __future__ import annotations

import re
import types
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from strata.core.errors import ParseError, Span, UserError

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|inf|nan)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KEYWORDS = {"true": True, "false": False, "none": None}


def is_word(text: str) -> bool:
    """Whether ``text`` can stand for itself, without quotes."""
    return bool(_WORD.fullmatch(text)) and text not in _KEYWORDS and not _NUMBER.fullmatch(text)


class Word(str):
    """A bare word in option text: an enum's value, or a string."""

    __slots__ = ()


class Scanner:
    """Reads tokens off a one-line text.

    Args:
        text: What to read.
        source: What the text is, for messages.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.at = 0

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def error(self, message: str) -> ParseError:
        """An error at the current place."""
        return ParseError(message, Span(f"<{self.source}>", 1, self.at + 1), " ".join(self.text.splitlines()))

    def _got(self) -> str:
        return repr(self.text[self.at]) if self.at < len(self.text) else "the end"

    def accept(self, token: str) -> bool:
        """Read ``token`` if it comes next; ``""`` stands for the end of the text."""
        self._skip()
        if not token:
            return self.at == len(self.text)
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def expect(self, token: str, what: str) -> None:
        """Read ``token``.

        Raises:
            ParseError: something else comes next.
        """
        if not self.accept(token):
            raise self.error(f"got {self._got()}; expected {what}")

    def word(self, what: str) -> str:
        """Read a name.

        Raises:
            ParseError: no name comes next.
        """
        self._skip()
        match = _WORD.match(self.text, self.at)
        if match is None:
            raise self.error(f"got {self._got()}; expected {what}")
        self.at = match.end()
        return match[0]

    def value(self) -> Any:
        """Read a value: int, float, bool, None, str, tuple, or :class:`Word`.

        Raises:
            ParseError: no value comes next.
        """
        if self.accept("["):
            items: list[Any] = []
            while not self.accept("]"):
                if items:
                    self.expect(",", "',' or ']'")
                items.append(self.value())
            return tuple(items)
        if match := _STRING.match(self.text, self.at):
            self.at = match.end()
            return re.sub(r"\\(.)", r"\1", match[1])
        if (match := _NUMBER.match(self.text, self.at)) and not _WORD.match(self.text, match.end()):
            self.at = match.end()
            return int(match[0]) if match[0].lstrip("+-").isdigit() else float(match[0])
        word = self.word("a value")
        return _KEYWORDS[word] if word in _KEYWORDS else Word(word)


def format_value(value: Any) -> str:
    """Text of an option value, which :meth:`Scanner.value` reads back."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case Enum():
            return format_value(value.value)
        case tuple():
            return "[" + ",".join(format_value(v) for v in value) + "]"
        case str():
            return value if is_word(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
        case _:
            return repr(value)


@cache
def option_types(cls: type) -> dict[str, Any]:
    """Option names and types of a pass class (looked up once: the module that defines it may go away).

    Raises:
        UserError: an option has no default, or a type without text form.
    """
    hints = get_type_hints(cls)
    for f in fields(cls):
        if f.default is MISSING:
            raise UserError(f"pass {cls.__name__}: option {f.name!r} has no default; give it one")
        if not _has_text(hints[f.name]):
            raise UserError(
                f"pass {cls.__name__}: option {f.name!r} has type {hints[f.name]}; "
                "expected int, float, bool, str, an Enum, tuple[T, ...] or T | None"
            )
    return {f.name: hints[f.name] for f in fields(cls)}


def _has_text(kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return all(a is types.NoneType or _has_text(a) for a in get_args(kind))
    if get_origin(kind) is tuple:
        return len(get_args(kind)) == 2 and get_args(kind)[1] is ... and _has_text(get_args(kind)[0])
    return kind in (int, float, bool, str) or (isinstance(kind, type) and issubclass(kind, Enum))


_NO_VALUE = object()


def convert_option(scan: Scanner, where: str, value: Any, kind: Any) -> Any:
    """``value`` as the option's type.

    Raises:
        ParseError: it is no such value.
    """
    converted = _convert(value, kind)
    if converted is _NO_VALUE:
        raise scan.error(f"{where} is {format_value(value)}; expected {_describe(kind)}")
    return converted


def _convert(value: Any, kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        for choice in get_args(kind):
            converted = _convert(value, choice)
            if converted is not _NO_VALUE:
                return converted
        return _NO_VALUE
    if get_origin(kind) is tuple:
        items = [_convert(v, get_args(kind)[0]) for v in value] if isinstance(value, tuple) else [_NO_VALUE]
        return _NO_VALUE if any(i is _NO_VALUE for i in items) else tuple(items)
    if isinstance(kind, type) and issubclass(kind, Enum):
        members = [m for m in kind if format_value(m) == format_value(value)]
        return members[0] if members else _NO_VALUE
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, Word):
        return str(value)
    return value if type(value) is kind else _NO_VALUE


def _describe(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list [..] of {_describe(get_args(kind)[0])}"
    if kind is types.NoneType:
        return "none"
    if issubclass(kind, Enum):
        return "one of " + ", ".join(str(m.value) for m in kind)
    return {int: "an integer", float: "a number", bool: "true or false", str: "a word or string"}[kind]
