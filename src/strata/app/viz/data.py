"""Everything that the page shows about a model, as plain data for JSON.

::

    data      ::= {"model", "functions": [function], "stacks": [stack], "dispatch": [dispatch],
                   "kernels": {name: kernel}, "passes": passes}                  kernels.py, passes.py
    model     ::= {"name", "target", "strata", "params", "params_bytes", "options": [[name, value]]}
    function  ::= {"name", "dims": [dim], "inputs": [value], "outputs": [value], "arena_bytes",
                   "nodes": [node], "blocks": [block]}                                      graph.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import strata
from strata.compiler.artifact_cache import Options
from strata.compiler.driver import Planned, Traced
from strata.core.errors import UserError
from strata.ir.instruments import instruments
from strata.planner.assemble import PlannedFunction

from .graph import blocks_of, function_values, nodes_of
from .kernels import StackTable
from .passes import PassLog

START_TOKENS = 128  # sizes at which the page opens: this many tokens at most, one of anything else


@dataclass(frozen=True, slots=True)
class Subject:
    """What to draw.

    Attributes:
        name: Of the model, for the title.
        traced: Its graph.
        options: How it is compiled.
        functions: Names of the functions to show; none = all that are compiled.
    """

    name: str
    traced: Traced
    options: Options
    functions: tuple[str, ...] = ()


def model_data(subject: Subject) -> dict[str, Any]:
    """Lower and plan the model, watching the passes, and collect what there is to see.

    Raises:
        UserError: no such function, or the options do not fit the model.
    """
    known = [f.name for f in subject.traced.module.functions]
    for name in subject.functions:
        if name not in known:
            raise UserError(f"--function: got {name!r}; this model has: {', '.join(known)}")
    log = PassLog(subject.functions)
    with instruments(log):
        planned = subject.traced.lower(subject.options.passes).plan(subject.options.plan)
    parts = [p for p in planned.functions if not subject.functions or p.record.name in subject.functions]
    stacks = StackTable(planned)
    functions = [_function(p, planned, stacks) for p in parts]
    return {
        "model": _model(subject, planned),
        "functions": functions,
        "stacks": stacks.stacks,
        "dispatch": stacks.dispatch,
        "kernels": stacks.kernel_texts(),
        "passes": log.data(),
    }


def _model(subject: Subject, planned: Planned) -> dict[str, Any]:
    target = subject.traced.target
    return {
        "name": subject.name,
        "target": str(target),
        "strata": strata.__version__,
        "params": len(planned.params),
        "params_bytes": sum(p.own_bytes for p in planned.params),
        "options": [list(pair) for pair in _options(subject.options)],
    }


def _options(options: Options) -> list[tuple[str, str]]:
    """What the user said, and the pipeline that follows from it."""
    plan = options.plan
    pairs = [
        ("format", options.format or "as stored"),
        ("pipeline", options.passes),
        ("prefer", ", ".join(plan.prefer)),
        ("pin", ", ".join(map(str, plan.pins))),
        ("libraries", ", ".join(plan.libraries)),
        ("estimates", "measured where candidates compete" if plan.measure else ""),
    ]
    return [(name, value) for name, value in pairs if value]


def _function(part: PlannedFunction, planned: Planned, stacks: StackTable) -> dict[str, Any]:
    dispatch = stacks.add(part.launches)
    nodes = nodes_of(part, planned, dispatch)
    inputs, outputs = function_values(part, planned)
    return {
        "name": part.record.name,
        "dims": _dims(part.record.name, nodes, stacks.dispatch),
        "inputs": inputs,
        "outputs": outputs,
        "arena_bytes": part.record.arena_bytes,
        "nodes": nodes,
        "blocks": blocks_of(nodes),
    }


def _dims(
    function: str, nodes: Sequence[dict[str, Any]], dispatch: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The sizes that estimates of this function depend on: name, range, and where the page starts."""
    found: dict[str, tuple[int, int]] = {}
    for node in nodes:
        entry = dispatch[node["dispatch"]]
        scale = entry["scale"]
        name = scale["dim"] if scale else entry["dim"]
        lo, hi = (scale["lo"], scale["hi"]) if scale else (entry["ranges"][0][0], entry["ranges"][-1][1])
        if lo < hi:
            before = found.get(name, (lo, hi))
            found[name] = min(before[0], lo), max(before[1], hi)
    tokens = next(iter(found), "")  # the first node looks up or takes the tokens
    start = 1 if function == "decode" else START_TOKENS
    return [
        {"name": name, "lo": lo, "hi": hi, "start": min(max(start if name == tokens else 1, lo), hi)}
        for name, (lo, hi) in found.items()
    ]
