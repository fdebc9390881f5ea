"""The graph of a function: its launches in order of execution, their operands, and layers that repeat.

::

    value   ::= {"name", "type", "from": index of the launch that makes it}
    node    ::= {"name", "op", "does", "type", "place", "dispatch": index, "inputs": [operand]}
    operand ::= {"from": index of a launch | -1, "name", "kind", "type", "place", "stored"}
    block   ::= {"start", "length", "repeats", "name"}           nodes start .. start + length * repeats - 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from strata.compiler.driver import Planned
from strata.graph.nodes import Node
from strata.planner.assemble import PlannedFunction, PlannedLaunch
from strata.planner.stacks import group_body
from strata.runtime.records import ArgKind, ArgRef, Launch

_VIEWS = ("reshape", "view")  # nodes that cost nothing
_DIGITS = re.compile(r"\d+")


def nodes_of(part: PlannedFunction, planned: Planned, dispatch: Mapping[str, int]) -> list[dict[str, Any]]:
    """One entry per launch; ``dispatch``: index of its choice of kernels, by name."""
    makers = _makers(part)
    layouts = {p.name: p.layout for p in planned.params}
    return [
        {
            "name": planned_launch.node,
            "op": planned_launch.op,
            "does": group_body(planned_launch.group).name,
            "type": str(planned_launch.group.type),
            "place": _place(launch.args[-1]),
            "dispatch": dispatch[planned_launch.node],
            "inputs": _operands(planned_launch, launch, makers, layouts),
        }
        for planned_launch, launch in zip(part.launches, part.record.launches, strict=True)
    ]


def function_values(
    part: PlannedFunction, planned: Planned
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of the function."""
    makers = _makers(part)
    function = next(f for f in planned.source.module.functions if f.name == part.record.name)
    inputs = [{"name": n.attrs["name"], "type": str(n.type), "from": -1} for n in function.inputs]
    launches = part.record.launches
    outputs = []
    for number, node in enumerate(function.outputs):
        at = next(
            (k for k, x in enumerate(launches) if ArgRef(ArgKind.OUTPUT, number) in x.args),
            _last_writer(part, makers, str(node.type)),
        )
        outputs.append({"name": f"out{number}", "type": str(node.type), "from": at})
    return inputs, outputs


def _last_writer(part: PlannedFunction, makers: Mapping[int, int], type_: str) -> int:
    """The last launch with a result of this type: the one whose cache the function returns."""
    return max((makers[id(x.group)] for x in part.launches if str(x.group.type) == type_), default=-1)


def _makers(part: PlannedFunction) -> dict[int, int]:
    return {id(x.group): k for k, x in enumerate(part.launches)}


def _operands(
    planned: PlannedLaunch, launch: Launch, makers: Mapping[int, int], layouts: Mapping[str, str]
) -> list[dict[str, Any]]:
    found = []
    for operand, position in zip(planned.group.inputs, planned.operands, strict=True):
        source = _behind_views(operand)
        name = source.attrs["name"] if source.op in ("input", "param") else source.name
        found.append(
            {
                "from": makers.get(id(source), -1),
                "name": name or source.op,
                "kind": source.op if source.op in ("input", "param", "const") else "node",
                "type": str(operand.type),
                "place": _place(launch.args[position]) if position is not None else "cache",
                "stored": layouts.get(name, "") if source.op == "param" else "",
            }
        )
    return found


def _behind_views(node: Node) -> Node:
    while node.op in _VIEWS:
        node = node.inputs[0]
    return node


def _place(ref: ArgRef) -> str:
    """Where a buffer is: ``"arena +4096"`` (bytes), ``"param 3"``, ``"cache k_pages, layer 2"``."""
    if ref.kind is ArgKind.ARENA:
        return f"arena +{ref.index}"
    if ref.kind is ArgKind.CACHE:
        return f"cache {ref.field}, layer {ref.layer}"
    return f"{ref.kind.value} {ref.index}"


def blocks_of(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs of nodes that repeat, as the layers of a model do; numbers in names are ignored."""
    marks = [(_DIGITS.sub("#", n["name"]), n["op"], n["type"], n["dispatch"]) for n in nodes]
    blocks: list[dict[str, Any]] = []
    start = 0
    while start < len(marks):
        length, repeats = _repetition(marks, start)
        if repeats > 1:
            name = _common_name([m[0] for m in marks[start : start + length]])
            blocks.append({"start": start, "length": length, "repeats": repeats, "name": name})
        start += length * repeats
    return blocks


def _repetition(marks: Sequence[object], start: int) -> tuple[int, int]:
    """Length and number of the repetition from ``start`` on that covers most; ``(1, 1)`` if there is none."""
    best = (1, 1)
    for length in range(2, (len(marks) - start) // 2 + 1):
        repeats = 1
        while _same(marks, start, start + length * repeats, length):
            repeats += 1
        if repeats > 1 and length * repeats > best[0] * best[1]:
            best = (length, repeats)
    return best


def _same(marks: Sequence[object], first: int, second: int, length: int) -> bool:
    end = second + length
    if end > len(marks) or marks[first] != marks[second]:
        return False
    return marks[first : first + length] == marks[second:end]


def _common_name(names: Sequence[str]) -> str:
    """What the names of a layer's nodes begin with, up to its number: ``"model.layers.#"``."""
    parts = [re.split(r"[.:]", name) for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)
