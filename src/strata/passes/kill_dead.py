"""``kill_dead``: where each intermediate value is read for the last time, as notes on launches.

``!{kills=(0, 2)}`` says that the memory of operands 0 and 2 is free after this launch. ``plan_memory`` gives
it to others then, and follows these notes where a function has any: what no launch kills keeps its memory to
the end of the function. So ``kill_dead{keep=["*norm*"]}`` leaves the values of these launches to be read
after a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from strata.graph.nodes import Function, Node, rewrite, with_notes
from strata.graph.types import TensorType
from strata.ir.passes import OptionError, register_pass

from .base import VIEWS, FunctionPass

KILLS_NOTE = "kills"
_LEAVES = frozenset({"input", "param", "const"})


def storage(node: Node) -> Node:
    """The node whose memory holds the value of ``node``: itself, or what a chain of views shows."""
    while node.op in VIEWS:
        node = node.inputs[0]
    return node


def launches(function: Function) -> tuple[Node, ...]:
    """Nodes that run, in execution order: all but leaves and views."""
    return tuple(n for n in function.nodes if n.op not in _LEAVES and n.op not in VIEWS)


def intermediates(function: Function) -> dict[int, Node]:
    """Launches whose value lives in the arena, by id: tensors that are no results of the function."""
    results = {id(storage(n)) for n in function.outputs}
    return {id(n): n for n in launches(function) if isinstance(n.type, TensorType) and id(n) not in results}


@register_pass
@dataclass(frozen=True)
class KillDead(FunctionPass):
    """Notes on every launch which of its operands it is the last to read: ``!{kills=(0, 2)}``.

    Stage: fused graph -> the same; earlier notes of this kind are replaced.
    Preserves: everything but the notes.

    Attributes:
        keep: Launches by name (as in a shell) whose values stay to the end of the function.
    """

    name: ClassVar[str] = "kill_dead"
    keep: tuple[str, ...] = ()

    def run_function(self, function: Function) -> Function:
        """Add the note to every launch; ``()`` where it kills nothing."""
        last = last_reads(function)
        mortal = {
            key
            for key, n in intermediates(function).items()
            if not any(fnmatchcase(n.name, p) for p in self.keep)
        }
        kills: dict[int, tuple[int, ...]] = {}
        for number, node in enumerate(launches(function)):
            dying: dict[int, int] = {}  # by id of the value: the first operand that shows it
            for place, operand in enumerate(node.inputs):
                value = id(storage(operand))
                if value in mortal and last[value] == number:
                    dying.setdefault(value, place)
            kills[id(node)] = tuple(dying.values())
        order = iter([kills.get(id(n)) for n in function.nodes])
        return rewrite(function, lambda node: _noted(node, next(order)))


def _noted(node: Node, kills: tuple[int, ...] | None) -> Node:
    return node if kills is None else with_notes(node, **{KILLS_NOTE: kills})


def last_reads(function: Function) -> dict[int, int]:
    """By id of a launch: the number of the last launch that reads its value, through views too."""
    order = launches(function)
    last = {id(n): number for number, n in enumerate(order)}
    for number, node in enumerate(order):
        for operand in node.inputs:
            if id(storage(operand)) in last:
                last[id(storage(operand))] = number
    return last


def last_launches(function: Function) -> Mapping[int, int]:
    """By id of a launch: the number of the last launch during which its value has memory.

    By the notes ``kills`` if the function has any, else the last launch that reads it.

    Raises:
        OptionError: a note kills an operand that there is not, or a value that is read later.
    """
    order = launches(function)
    last = last_reads(function)
    if not any(KILLS_NOTE in n.notes for n in order):
        return last
    end = {key: len(order) - 1 for key in last}
    for number, node in enumerate(order):
        for place in _kills(node):
            value = storage(node.inputs[place])
            if last.get(id(value), number) > number:
                raise OptionError(
                    f"note kills of {node.op} {node.name}: operand {place} is read later, by "
                    f"{order[last[id(value)]].op} {order[last[id(value)]].name}; run kill_dead again"
                )
            end[id(value)] = number
    return end


def _kills(node: Node) -> tuple[int, ...]:
    note = node.notes.get(KILLS_NOTE, ())
    places = (
        [p for p in note if type(p) is int and 0 <= p < len(node.inputs)] if isinstance(note, tuple) else []
    )
    if not isinstance(note, tuple) or len(places) != len(note):
        raise OptionError(
            f"note kills of {node.op} {node.name}: got {note!r}; expected numbers of its {len(node.inputs)} "
            "operands; run kill_dead again"
        )
    return tuple(places)
