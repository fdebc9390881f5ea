"""Knobs: typed settings of a process, from the environment (``STRATA_VERIFY=2``) or for a ``with`` block.

::

    current().verify                      # the value that holds here
    with knobs(verify=2, dump="/tmp/d"):  # this thread (and asyncio task), until the block ends
        ...
    parse_knob("verify", "2")             # one value from text, for a command line's --set verify=2

Order: ``with knobs(...)``, then the environment, then the default. A bad value raises; an unknown
``STRATA_`` variable raises too, because a misspelt knob that does nothing is worse. A knob is one field of
:class:`Knobs`; to add one, add the field. Knobs that change generated code declare ``affects_code``, and
:func:`code_key` gives them to cache keys.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import UserError

PREFIX = "STRATA_"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values are written: ``convert`` (text or value -> value; ValueError if bad), and in words."""

    convert: Callable[[Any], Any]
    expected: str


def _int(lo: int, hi: int) -> _Kind:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError
        number = int(value)
        if not lo <= number <= hi:
            raise ValueError
        return number

    return _Kind(convert, f"an integer {lo}..{hi}")


def _path() -> _Kind:
    def convert(value: Any) -> Path | None:
        if value is None or value == "":
            return None
        if not isinstance(value, (str, Path)):
            raise ValueError
        return Path(value).expanduser()

    return _Kind(convert, "a path, or nothing for none")


def _names() -> _Kind:
    def convert(value: Any) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (tuple, list)) or not all(isinstance(p, str) for p in parts):
            raise ValueError
        names = tuple(p.strip() for p in parts if p.strip())
        if not all(n.replace("_", "a").replace("-", "a").isalnum() for n in names):
            raise ValueError
        return names

    return _Kind(convert, "names separated by commas")


def _choice(*options: str) -> _Kind:
    def convert(value: Any) -> str:
        if value not in options:
            raise ValueError
        return value

    return _Kind(convert, "one of " + ", ".join(options))


def _text() -> _Kind:
    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return value

    return _Kind(convert, "text")


def _meta(kind: _Kind, doc: str, *, affects_code: bool = False) -> dict[str, Any]:
    return {"kind": kind, "doc": doc, "affects_code": affects_code}


_VERIFY = "IR checks: 0 none, 1 after a pipeline, 2 after each pass, 3 also determinism and the text form"
_PRINT = "passes after which the IR goes to stderr, stages (lower, schedule, llvm), or 'all'"
_TRACE = "file for a Chrome trace of the compilation (chrome://tracing, Perfetto)"
_CRASH = "where reproducers of failed passes go; none = the temporary directory"
_CACHE = "where compiled code is kept; none = the user's cache directory"
_THREADS = "worker threads of a compiled program; 0 = all available cores"
_LOG = "least severe messages that are logged to stderr"
_LEVELS = _choice("debug", "info", "warning", "error")
_PIPELINE = "graph passes: a named pipeline or pipeline text"
_LOOP_PIPELINE = "loop passes, before scheduling and after it: a named pipeline or pipeline text"


@dataclass(frozen=True, slots=True)
class Knobs:
    """The value of every knob. ``describe()`` lists them with their meaning."""

    verify: int = field(default=1, metadata=_meta(_int(0, 3), _VERIFY))
    dump: Path | None = field(
        default=None,
        metadata=_meta(_path(), "directory for the numbered text of the IR after each pass and stage"),
    )
    print_after: tuple[str, ...] = field(default=(), metadata=_meta(_names(), _PRINT))
    trace: Path | None = field(default=None, metadata=_meta(_path(), _TRACE))
    crash_dir: Path | None = field(default=None, metadata=_meta(_path(), _CRASH))
    cache_dir: Path | None = field(default=None, metadata=_meta(_path(), _CACHE))
    threads: int = field(default=0, metadata=_meta(_int(0, 4096), _THREADS))
    log: str = field(default="warning", metadata=_meta(_LEVELS, _LOG))
    pipeline: str = field(default="default", metadata=_meta(_text(), _PIPELINE, affects_code=True))
    loop_pipeline: str = field(
        default="loop_default", metadata=_meta(_text(), _LOOP_PIPELINE, affects_code=True)
    )


@dataclass(frozen=True, slots=True)
class KnobInfo:
    """One knob, described.

    Attributes:
        name: Field of :class:`Knobs`.
        env: Environment variable.
        default: Value when nobody sets it.
        expected: Accepted values in words.
        doc: What it does.
        affects_code: Whether compiled code depends on it (then it is part of every cache key).
    """

    name: str
    env: str
    default: Any
    expected: str
    doc: str
    affects_code: bool


def describe() -> tuple[KnobInfo, ...]:
    """All knobs, in the order of :class:`Knobs`."""
    return tuple(
        KnobInfo(
            f.name,
            PREFIX + f.name.upper(),
            f.default,
            f.metadata["kind"].expected,
            f.metadata["doc"],
            f.metadata["affects_code"],
        )
        for f in fields(Knobs)
    )


_KINDS: dict[str, _Kind] = {f.name: f.metadata["kind"] for f in fields(Knobs)}
_NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})
_overrides: ContextVar[Mapping[str, Any]] = ContextVar("strata_knobs", default=_NO_OVERRIDES)


def parse_knob(name: str, value: Any, where: str = "") -> Any:
    """The typed value of knob ``name`` from text (or checked, if it is a value already).

    Args:
        name: A field of :class:`Knobs`.
        value: Text or value.
        where: What the message calls the knob (default: its name).

    Raises:
        UserError: no such knob, or the value is bad.
    """
    if name not in _KINDS:
        close = difflib.get_close_matches(name, _KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(
            f"{f'{where}: ' if where else ''}no knob {name!r}{hint} Known: {', '.join(sorted(_KINDS))}"
        )
    try:
        return _KINDS[name].convert(value)
    except ValueError:
        label = where or f"knob {name}"
        raise UserError(f"{label}={value}: expected {_KINDS[name].expected}") from None


def _from_environment() -> Knobs:
    values: dict[str, Any] = {}
    for variable, text in sorted(os.environ.items()):
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            values[name] = parse_knob(name, text, variable)
    return Knobs(**values)


def current() -> Knobs:
    """The knobs that hold here and now.

    Raises:
        UserError: a ``STRATA_`` environment variable is unknown or has a bad value.
    """
    base = _from_environment()
    overrides = _overrides.get()
    return replace(base, **overrides) if overrides else base


def default_threads() -> int:
    """Threads to work on: the knob ``threads``, or all cores that this process may use."""
    return current().threads or len(os.sched_getaffinity(0))


@contextmanager
def knobs(**values: Any) -> Iterator[Knobs]:
    """Set knobs for a ``with`` block; blocks nest. Other threads do not see it.

    Raises:
        UserError: no such knob, or a value is bad.
    """
    checked = {name: parse_knob(name, value) for name, value in values.items()}
    token = _overrides.set({**_overrides.get(), **checked})
    try:
        yield current()
    finally:
        _overrides.reset(token)


def code_key(settings: Knobs | None = None) -> str:
    """Text of the knobs that compiled code depends on, for cache keys: ``"pipeline=default"``."""
    settings = current() if settings is None else settings
    return ",".join(f"{k.name}={getattr(settings, k.name)}" for k in describe() if k.affects_code)


def cache_folder() -> Path:
    """Where the knob ``cache_dir`` says, else ``$XDG_CACHE_HOME/strata``, else ``~/.cache/strata``."""
    chosen = current().cache_dir
    if chosen is not None:
        return chosen
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "strata"
