"""Schedule steps: small, legal rewrites of loop functions, as data.

A :class:`Step` is a frozen record; ``step.apply(func)`` returns the rewritten function or raises
``LegalityError``. Loops and blocks are referred to by name (unique in a function), so a trace (tuple of
steps) prints, parses and replays::

    split(loop=out_i0, factor=6); reorder(loops=out_i1|out_i0o|out_i0i); unroll(loop=out_i0i)
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import TypeVar

from strata.core.errors import LegalityError, ParseError
from strata.core.registry import Registry
from strata.loop.nodes import Block, For, Func, Stmt
from strata.loop.rewrite import find_block as find_block
from strata.loop.rewrite import find_loop as find_loop
from strata.loop.rewrite import path_to, walk_stmts
from strata.loop.rewrite import replace_stmt as replace_in

STEPS: Registry[type[Step]] = Registry("schedule step")

Trace = tuple["Step", ...]
S = TypeVar("S", bound="type[Step]")


@dataclass(frozen=True, slots=True)
class Step:
    """One rewrite. Subclasses' fields are its options: names (str), ints, tuples of either.

    The text leaves out options that have their default value.
    """

    @classmethod
    @abstractmethod
    def step_name(cls) -> str:
        """Name in the text form."""

    @abstractmethod
    def apply(self, func: Func) -> Func:
        """The rewritten function.

        Raises:
            LegalityError: the step does not apply.
        """

    def options(self) -> tuple[object, ...]:
        """Values of the options, in the order of the fields."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def __str__(self) -> str:
        options = []
        for f, value in zip(fields(self), self.options(), strict=True):
            if value == f.default:
                continue
            text = "|".join(map(str, value)) if isinstance(value, tuple) else str(value)
            options.append(f"{f.name}={text}")
        return f"{self.step_name()}({', '.join(options)})"


def register(cls: S) -> S:
    """Class decorator: add a step to the table."""
    STEPS.add(cls.step_name(), cls)
    return cls


def trace_text(trace: Trace) -> str:
    """Text of a trace; :func:`parse_trace` is its inverse."""
    return "; ".join(str(step) for step in trace)


def parse_trace(text: str) -> Trace:
    """Parse what :func:`trace_text` prints; one per line and options left out for defaults are fine too.

    Raises:
        ParseError: malformed text.
        UserError: unknown step.
    """
    return tuple(_parse_step(part) for part in (p.strip() for p in re.split(r"[;\n]", text)) if part)


def _parse_step(text: str) -> Step:
    match = re.fullmatch(r"(\w+)\((.*)\)", text)
    if match is None:
        raise ParseError(f"trace: got {text!r}; expected name(option=value, ...)")
    cls = STEPS[match[1]]
    known = {f.name: f for f in fields(cls)}
    values: dict[str, object] = {}
    for option in filter(None, (o.strip() for o in match[2].split(","))):
        name, eq, raw = option.partition("=")
        if not eq or name not in known or name in values:
            expected = ", ".join(known)
            raise ParseError(f"trace: {match[1]}: got {option!r}; expected each of {expected} once")
        values[name] = _parse_value(match[1], name, str(known[name].type), raw)
    for name, f in known.items():
        if name not in values and f.default is MISSING:
            raise ParseError(f"trace: {match[1]} lacks {name}; got {text!r}")
    return cls(**values)


def _parse_value(step: str, option: str, kind: str, text: str) -> object:
    if kind == "int":
        if not re.fullmatch(r"-?\d+", text):
            raise ParseError(f"trace: {step}: got {option}={text}; expected an integer")
        return int(text)
    if kind == "int | str":
        return int(text) if re.fullmatch(r"-?\d+", text) else text
    if "tuple" not in kind:
        return text
    parts = tuple(filter(None, text.split("|")))
    if "int" not in kind:
        return parts
    return tuple(_parse_value(step, option, "int", part) for part in parts)


def apply_trace(func: Func, trace: Trace) -> Func:
    """Apply every step in order.

    Raises:
        LegalityError: a step does not apply.
    """
    for step in trace:
        func = step.apply(func)
    return func


def loops_around(func: Func, block: str) -> list[For]:
    """Loops around a block, outermost first.

    Raises:
        LegalityError: there is no such block.
    """
    return [s for s in path_to(func.body, find_block(func, block)) if isinstance(s, For)]


def check_new_names(func: Func, step: str, names: tuple[str, ...], leaving: tuple[str, ...] = ()) -> None:
    """Names that a step gives out must be free.

    Args:
        func: Before the step.
        step: Name of the step, for the message.
        names: Of new loops and blocks.
        leaving: Of those that the step removes.

    Raises:
        LegalityError: a loop or block has one of the names.
    """
    taken = {s.var.name for s in walk_stmts(func) if isinstance(s, For)}
    taken |= {s.name for s in walk_stmts(func) if isinstance(s, Block)}
    for name in names:
        if name in taken and name not in leaving:
            raise LegalityError(f"{step}: the name {name} is taken by another loop or block")


def with_body(func: Func, body: Stmt) -> Func:
    """The function with another body."""
    return Func(func.name, func.params, body, func.num_outputs)


def replace_stmt(func: Func, old: Stmt, new: Stmt) -> Func:
    """The function with one statement (by identity) replaced."""
    return with_body(func, replace_in(func.body, old, new))
