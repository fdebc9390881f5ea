"""Typed reading of JSON objects from model folders: every wrong value becomes a :class:`UserError` naming
the key.

A value of ``null`` counts as absent, as in Hugging Face configs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from strata.core.errors import UserError

CONFIG_NAME = "config.json"
MAX_JSON_BYTES = 256 << 20
REQUIRED: Any = object()
Default = TypeVar("Default")


class Fields:
    """A JSON object whose values are read by type and range.

    Args:
        data: The object.
        where: What it is, for messages: a file name, or a file name and a key.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def error(self, key: str, expected: str) -> UserError:
        """The error that says what ``key`` is and what it should be."""
        value = self.data.get(key)
        return UserError(f"{self.where}: {key}: got {_show(value)}; expected {expected}")

    def _get(self, key: str, default: Any, expected: str) -> tuple[bool, Any]:
        """(True, value) when present, else (False, default)."""
        value = self.data.get(key)
        if value is not None:
            return True, value
        if default is REQUIRED:
            raise UserError(f"{self.where}: {key} is missing; expected {expected}")
        return False, default

    def integer(self, key: str, lo: int, hi: int, default: Default = REQUIRED) -> int | Default:
        """An integer in ``lo..hi``.

        Raises:
            UserError: missing without a default, no integer, out of range.
        """
        expected = f"an integer in {lo}..{hi}"
        found, value = self._get(key, default, expected)
        if found and (not isinstance(value, int) or isinstance(value, bool) or not lo <= value <= hi):
            raise self.error(key, expected)
        return value

    def number(self, key: str, lo: float, hi: float, default: Default = REQUIRED) -> float | Default:
        """A finite number in ``lo..hi``.

        Raises:
            UserError: missing without a default, no number, out of range.
        """
        expected = f"a number in {lo:g}..{hi:g}"
        found, value = self._get(key, default, expected)
        if not found:
            return value
        if not isinstance(value, int | float) or isinstance(value, bool) or not lo <= value <= hi:
            raise self.error(key, expected)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """``true`` or ``false``.

        Raises:
            UserError: the value is something else.
        """
        found, value = self._get(key, default, "true or false")
        if found and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def string(self, key: str, default: Default = REQUIRED) -> str | Default:
        """A string.

        Raises:
            UserError: missing without a default, or no string.
        """
        found, value = self._get(key, default, "a string")
        if found and not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def object(self, key: str) -> Fields | None:
        """A nested object, or ``None`` when it is absent.

        Raises:
            UserError: the value is no object.
        """
        found, value = self._get(key, None, "an object")
        if not found:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object {...}")
        return Fields(value, f"{self.where}: {key}")

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; ``()`` when it is absent.

        Raises:
            UserError: the value is something else.
        """
        found, value = self._get(key, (), "a list of strings")
        if found and (not isinstance(value, list) or not all(isinstance(x, str) for x in value)):
            raise self.error(key, "a list of strings")
        return tuple(value)

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """A token id or a list of them; ``()`` when it is absent.

        Raises:
            UserError: an id is no integer below ``vocab_size``.
        """
        found, value = self._get(key, (), "token ids")
        ids = value if isinstance(value, list) else [value] if found else []
        if not all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < vocab_size for x in ids):
            raise self.error(key, f"a token id, or a list of them, each in 0..{vocab_size - 1}")
        return tuple(ids)


def _show(value: Any) -> str:
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"{short} ({type(value).__name__})"


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse the JSON object ``text``.

    Raises:
        UserError: not UTF-8, not JSON, a duplicate key, or no object.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError as error:
        raise UserError(f"{where}: the JSON is nested too deeply to be a model file") from error
    except ValueError as error:
        raise UserError(
            f"{where}: not valid JSON: {error}; the file may be damaged, fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: got a JSON {type(value).__name__}; expected an object {{...}}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"key {repeated!r} occurs twice")
    return result


def _constant(name: str) -> float:
    """Infinity and NaN, which Python's JSON writes: a number that every range check refuses."""
    return math.nan


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in the file ``path``.

    Raises:
        UserError: the file cannot be read, is too large to be a description of a model, or is no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(f"{path}: got {size} bytes of JSON; expected at most {MAX_JSON_BYTES}")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_object(text, str(path))
