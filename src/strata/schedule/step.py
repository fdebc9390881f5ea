"""Schedule steps: small, legal rewrites of loop functions, as data.

A :class:`Step` is a frozen record; ``step.apply(func)`` returns the rewritten function or raises
``LegalityError``. Loops and blocks are referred to by name (unique in a function), so a trace (tuple of
steps) prints, parses and replays::

    split(loop=out_i0, factor=6); reorder(loops=out_i1|out_i0o|out_i0i); unroll(loop=out_i0i)
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import TypeVar

from strata.core.errors import LegalityError, ParseError
from strata.core.registry import Registry
from strata.loop.nodes import Alloc, Block, For, Func, If, Let, Seq, Stmt
from strata.loop.rewrite import rebuild_stmt, walk_stmts

STEPS: Registry[type[Step]] = Registry("schedule step")

Trace = tuple["Step", ...]
S = TypeVar("S", bound="type[Step]")


@dataclass(frozen=True, slots=True)
class Step:
    """One rewrite. Subclasses' fields are its options: names (str), tuples of names, ints."""

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

    def __str__(self) -> str:
        options = []
        for f in fields(self):
            value = getattr(self, f.name)
            text = "|".join(value) if isinstance(value, tuple) else str(value)
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
    """Parse what :func:`trace_text` prints.

    Raises:
        ParseError: malformed text; UserError: unknown step.
    """
    steps: list[Step] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        match = re.fullmatch(r"(\w+)\((.*)\)", part)
        if match is None:
            raise ParseError(f"trace: got {part!r}; expected name(option=value, ...)")
        cls = STEPS[match[1]]
        given = dict(o.split("=", 1) for o in match[2].split(", ") if "=" in o)
        values: dict[str, object] = {}
        for f in fields(cls):
            if f.name not in given:
                raise ParseError(f"trace: {match[1]} lacks {f.name}; got {part!r}")
            raw = given[f.name]
            kind = str(f.type)
            values[f.name] = tuple(raw.split("|")) if "tuple" in kind else int(raw) if kind == "int" else raw
        steps.append(cls(**values))
    return tuple(steps)


def apply_trace(func: Func, trace: Trace) -> Func:
    """Apply every step in order."""
    for step in trace:
        func = step.apply(func)
    return func


def find_loop(func: Func, name: str) -> For:
    """The loop whose variable is called ``name``.

    Raises:
        LegalityError: there is none; lists those that exist.
    """
    loops = [s for s in walk_stmts(func.body) if isinstance(s, For)]
    for loop in loops:
        if loop.var.name == name:
            return loop
    raise LegalityError(f"{func.name}: no loop {name!r}; loops: {', '.join(x.var.name for x in loops)}")


def find_block(func: Func, name: str) -> Block:
    """The block called ``name``.

    Raises:
        LegalityError: there is none; lists those that exist.
    """
    blocks = [s for s in walk_stmts(func.body) if isinstance(s, Block)]
    for block in blocks:
        if block.name == name:
            return block
    raise LegalityError(f"{func.name}: no block {name!r}; blocks: {', '.join(x.name for x in blocks)}")


def loops_around(func: Func, block_name: str) -> list[For]:
    """Loops around a block, outermost first."""

    def search(stmt: Stmt, path: list[For]) -> list[For] | None:
        match stmt:
            case Block():
                return path if stmt.name == block_name else None
            case For():
                return search(stmt.body, [*path, stmt])
            case Let() | Alloc():
                return search(stmt.body, path)
            case If():
                found = search(stmt.then, path)
                return found if found is not None or stmt.orelse is None else search(stmt.orelse, path)
            case Seq():
                for part in stmt.stmts:
                    found = search(part, path)
                    if found is not None:
                        return found
        return None

    found = search(func.body, [])
    if found is None:
        find_block(func, block_name)
        return []
    return found


def with_body(func: Func, body: Stmt) -> Func:
    """The function with another body."""
    return Func(func.name, func.params, body, func.num_outputs)


def replace_stmt(func: Func, old: Stmt, new: Stmt) -> Func:
    """The function with one statement (by identity) replaced."""

    def go(stmt: Stmt) -> Stmt:
        return new if stmt is old else rebuild_stmt(stmt, lambda e: e, go)

    return with_body(func, go(func.body))
