"""What each pass changed: an instrument that watches the pipelines, and a diff that sees through renumbering.

::

    passes   ::= {"lines": [text], "runs": [run]}
    run      ::= {"pipeline", "pass", "ir", "time_s", "before", "after", "functions": [function]}
    function ::= {"name", "before", "after", "added", "removed", "hunks": [hunk]}
    hunk     ::= ["=", [line], skipped, [line]] | ["~" | "!", [old line], [new line]]     line: index in lines

``before`` and ``after`` count nodes, ``added`` and ``removed`` lines; without hunks nothing changed. Values
are numbered in order (``%7``), so one node less renumbers all that follow: two lines are the same if they are
equal up to numbers and their numbers mean the same values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum
from typing import Any

from strata.graph.nodes import Module
from strata.graph.text import print_function
from strata.ir.instruments import Instrument, Run
from strata.ir.passes import Pass

CONTEXT_LINES = 3
TEXT_BYTES = 1 << 20  # if all passes have more text than this, only changed lines and their context are kept

_VALUE = re.compile(r"%\d+")
_NODE = re.compile(r"( *)%\d+: (.+?) = (@?[\w.]*).*?(  # .*)?$")  # depth, type, op, origin


class Change(Enum):
    """How two stretches of lines differ."""

    NONE = "="
    LINE = "~"  # each line has become the one across from it
    OTHER = "!"


Hunk = tuple[Change, list[str], list[str]]  # old lines, new lines


@dataclass(frozen=True, slots=True)
class _Seen:
    run: Run
    step: str
    before: Any
    after: Any
    wall_s: float


class PassLog(Instrument):
    """Remembers what every pass got and gave.

    Args:
        functions: Names of the graph functions of interest; none = all.
    """

    def __init__(self, functions: Sequence[str] = ()) -> None:
        self._functions = functions
        self._seen: list[_Seen] = []

    def after(self, run: Run, step: Pass[Any], before: Any, after: Any, wall_s: float) -> None:
        """Remember this pass; one on loop functions only if it changed them, there are so many."""
        if isinstance(after, Module) or run.kind.print(before) != run.kind.print(after):
            self._seen.append(_Seen(run, str(step), before, after, wall_s))

    def data(self) -> dict[str, Any]:
        """The passes in the order in which they ran, with what they changed."""
        diffs = [(s, list(self._diffs(s))) for s in self._seen]
        kept = {x for _, parts in diffs for _, hunks in parts for _, old, new in hunks for x in (*old, *new)}
        lines = _Lines(all_lines=sum(map(len, kept)) <= TEXT_BYTES)
        runs = [
            {
                "pipeline": s.run.pipeline.label or str(s.run.pipeline),
                "pass": s.step,
                "ir": s.run.kind.name,
                "time_s": float(f"{s.wall_s:.3g}"),
                "before": s.run.kind.count(s.before),
                "after": s.run.kind.count(s.after),
                "functions": [
                    {"name": name, **_sizes(s, name), **lines.changes(hunks)} for name, hunks in parts
                ],
            }
            for s, parts in diffs
        ]
        return {"lines": list(lines.numbers), "runs": runs}

    def _diffs(self, seen: _Seen) -> Iterator[tuple[str, list[Hunk]]]:
        old, new = self._texts(seen, seen.before), self._texts(seen, seen.after)
        for name in {**new, **old}:
            yield name, diff(old.get(name, "").splitlines(), new.get(name, "").splitlines())

    def _texts(self, seen: _Seen, module: Any) -> dict[str, str]:
        if isinstance(module, Module):
            shown = [f for f in module.functions if not self._functions or f.name in self._functions]
            return {f.name: print_function(f) for f in shown}
        return {seen.run.kind.name: seen.run.kind.print(module)}


def _sizes(seen: _Seen, name: str) -> dict[str, int]:
    """Nodes of a function before and after a pass; of loop IR, of all of it."""

    def size(module: Any) -> int:
        if isinstance(module, Module):
            return sum(len(f.nodes) for f in module.functions if f.name == name)
        return seen.run.kind.count(module)

    return {"before": size(seen.before), "after": size(seen.after)}


class _Lines:
    """Numbers the lines that are kept, in order of first use."""

    def __init__(self, all_lines: bool) -> None:
        self.numbers: dict[str, int] = {}
        self._all = all_lines

    def _store(self, lines: Sequence[str]) -> list[int]:
        return [self.numbers.setdefault(x, len(self.numbers)) for x in lines]

    def changes(self, hunks: Sequence[Hunk]) -> dict[str, Any]:
        changed = [h for h in hunks if h[0] is not Change.NONE]
        return {
            "added": sum(len(new) for _, _, new in changed),
            "removed": sum(len(old) for _, old, _ in changed),
            "hunks": [self._hunk(h) for h in hunks] if changed else [],
        }

    def _hunk(self, hunk: Hunk) -> list[Any]:
        change, old, new = hunk
        if change is not Change.NONE:
            return [change.value, self._store(old), self._store(new)]
        if self._all or len(new) <= 2 * CONTEXT_LINES:
            return ["=", self._store(new), 0, []]
        head, tail = new[:CONTEXT_LINES], new[-CONTEXT_LINES:]
        return ["=", self._store(head), len(new) - 2 * CONTEXT_LINES, self._store(tail)]


def diff(old: Sequence[str], new: Sequence[str]) -> list[Hunk]:
    """Stretches of lines, in order; of equal ones both sides are there, as numbers may differ."""
    names = _Names()
    hunks: list[Hunk] = []
    for before, after in _aligned(old, new, (_masked, _operation, _value)):
        if before is None or after is None:
            change = Change.OTHER
        else:
            change = Change.NONE if names.agree(before, after) else Change.LINE
        if not hunks or hunks[-1][0] is not change:
            hunks.append((change, [], []))
        hunks[-1][1].extend([] if before is None else [before])
        hunks[-1][2].extend([] if after is None else [after])
    return hunks


def _aligned(
    old: Sequence[str], new: Sequence[str], keys: Sequence[Callable[[str], str]]
) -> Iterator[tuple[str | None, str | None]]:
    """Pairs of lines: equal by the first key, what lies between by the other keys; ``None`` = no partner."""
    if not keys or not old or not new:
        yield from ((x, None) for x in old)
        yield from ((None, x) for x in new)
        return
    key, *rest = keys
    matcher = SequenceMatcher(None, list(map(key, old)), list(map(key, new)), autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(old[i1:i2], new[j1:j2], strict=True)
        else:
            yield from _aligned(old[i1:i2], new[j1:j2], rest)


def _masked(line: str) -> str:
    return _VALUE.sub("%", line)


def _operation(line: str) -> str:
    """Depth, type, op and origin of the value that a line defines."""
    found = _NODE.match(line)
    return " ".join(found.groups("")) if found else _masked(line)


def _value(line: str) -> str:
    """Depth, type and origin of the value that a line defines: another op may compute the same."""
    found = _NODE.match(line)
    return f"{found[1]} {found[2]} {found[4] or ''}" if found else _masked(line)


class _Names:
    """Which value of the old text is which of the new one, per depth of indentation: bodies count anew."""

    def __init__(self) -> None:
        self._new_of: dict[tuple[int, str], str] = {}

    def agree(self, old: str, new: str) -> bool:
        """Whether two lines say the same of the same values; learns which value they define."""
        depth = len(new) - len(new.lstrip())
        if "func @" in new:  # a body begins: nothing deeper is defined
            self._new_of = {k: v for k, v in self._new_of.items() if k[0] <= depth}
        before, after = _VALUE.findall(old), _VALUE.findall(new)
        if _NODE.match(old) and _NODE.match(new):
            self._new_of[depth, before[0]] = after[0]
        return _masked(old) == _masked(new) and [self._new_of.get((depth, x)) for x in before] == after
