"""What each pass changed: an instrument that watches the pipelines, and a diff that sees through renumbering.

::

    passes   ::= {"lines": [text], "runs": [run]}
    run      ::= {"pipeline", "pass", "ir", "time_s", "before", "after", "functions": [function]}
    function ::= {"name", "added", "removed", "hunks": [hunk]}          of one without hunks nothing changed
    hunk     ::= ["=", [line], skipped, [line]] | ["~", [old line], [new line]]           line: index in lines

Values are numbered in order (``%7``), so one node less renumbers all that follow. Two lines are the same if
they are equal up to numbers and their numbers mean the same values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from strata.graph.nodes import Module
from strata.graph.text import print_function
from strata.ir.instruments import Instrument, Run
from strata.ir.passes import Pass

CONTEXT_LINES = 3
TEXT_BYTES = 1 << 20  # if all passes have more text than this, only changed lines and their context are kept

_VALUE = re.compile(r"%\d+")
_DEFINED = re.compile(r"( *)(%\d+):")
Hunk = tuple[bool, list[str], list[str]]  # same?, old lines, new lines


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
                "functions": [lines.function(name, hunks) for name, hunks in parts],
            }
            for s, parts in diffs
        ]
        return {"lines": list(lines.numbers), "runs": runs}

    def _diffs(self, seen: _Seen) -> Iterable[tuple[str, list[Hunk]]]:
        old, new = self._texts(seen, seen.before), self._texts(seen, seen.after)
        for name in {**new, **old}:
            yield name, diff(old.get(name, "").splitlines(), new.get(name, "").splitlines())

    def _texts(self, seen: _Seen, module: Any) -> dict[str, str]:
        if isinstance(module, Module):
            shown = [f for f in module.functions if not self._functions or f.name in self._functions]
            return {f.name: print_function(f) for f in shown}
        return {seen.run.kind.name: seen.run.kind.print(module)}


class _Lines:
    """Numbers the lines that are kept, in order of first use."""

    def __init__(self, all_lines: bool) -> None:
        self.numbers: dict[str, int] = {}
        self._all = all_lines

    def _store(self, lines: Sequence[str]) -> list[int]:
        return [self.numbers.setdefault(x, len(self.numbers)) for x in lines]

    def function(self, name: str, hunks: Sequence[Hunk]) -> dict[str, Any]:
        changed = [h for h in hunks if not h[0]]
        return {
            "name": name,
            "added": sum(len(new) for _, _, new in changed),
            "removed": sum(len(old) for _, old, _ in changed),
            "hunks": [self._hunk(h) for h in hunks] if changed else [],
        }

    def _hunk(self, hunk: Hunk) -> list[Any]:
        same, old, new = hunk
        if not same:
            return ["~", self._store(old), self._store(new)]
        if self._all or len(new) <= 2 * CONTEXT_LINES:
            return ["=", self._store(new), 0, []]
        head, tail = new[:CONTEXT_LINES], new[-CONTEXT_LINES:]
        return ["=", self._store(head), len(new) - 2 * CONTEXT_LINES, self._store(tail)]


def diff(old: Sequence[str], new: Sequence[str]) -> list[Hunk]:
    """Equal and changed stretches, in order; of equal ones both sides are there, as numbers may differ."""
    keys = [[_VALUE.sub("%", x) for x in side] for side in (old, new)]
    names = _Names()
    hunks: list[Hunk] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if tag != "equal":
            _extend(hunks, False, old[i1:i2], new[j1:j2])
            continue
        for a, b in zip(old[i1:i2], new[j1:j2], strict=True):
            _extend(hunks, names.agree(a, b), [a], [b])
    return hunks


def _extend(hunks: list[Hunk], same: bool, old: Sequence[str], new: Sequence[str]) -> None:
    if not hunks or hunks[-1][0] is not same:
        hunks.append((same, [], []))
    hunks[-1][1].extend(old)
    hunks[-1][2].extend(new)


class _Names:
    """Which value of the old text is which of the new one, per depth of indentation: bodies count anew."""

    def __init__(self) -> None:
        self._new_of: dict[tuple[int, str], str] = {}

    def agree(self, old: str, new: str) -> bool:
        """Whether two lines, equal up to numbers, speak of the same values; learns what they define."""
        depth = len(new) - len(new.lstrip())
        if "func @" in new:  # a body begins: nothing deeper is defined
            self._new_of = {k: v for k, v in self._new_of.items() if k[0] <= depth}
        pairs = list(zip(_VALUE.findall(old), _VALUE.findall(new), strict=True))
        if _DEFINED.match(new):
            self._new_of[depth, pairs[0][0]] = pairs[0][1]
        return all(self._new_of.get((depth, a)) == b for a, b in pairs)
