"""The plan as data: every choice with the candidates that lost, for ``plan.json`` and the command line.

::

    plan     ::= {function: {"launches": [launch], "arena_bytes": int}}
    launch   ::= {"node", "op", "candidates": [candidate], "choices": [{"candidate": index, "when": [range]}],
                  "rows": dim, "work": work, "body": graph IR, "layer": int, "operands": [position | null]}
    candidate ::= {"name", "kernel", "origin", "when": [range], "trace", "estimates": [estimate]}
    estimate ::= {"size": value of rows, "time_s", "flop", "read_bytes", "write_bytes", "source"}
    work     ::= {"flop": dim, "read_bytes": dim, "write_bytes": dim}         dims as text: "512*n"

``body`` is what the node computes and ``operands`` says where among the launch's arguments each of its
operands is (``null``: a cache): with the program's record, that is the whole graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from strata.graph.stats import group_stats
from strata.graph.text import print_function

from .assemble import PlannedFunction, PlannedLaunch
from .stacks import group_body


def plan_json(functions: Iterable[PlannedFunction]) -> dict[str, Any]:
    """Every launch of every function: its candidates with traces and estimates, and when each runs."""
    return {
        p.record.name: {"launches": [_launch(x) for x in p.launches], "arena_bytes": p.record.arena_bytes}
        for p in functions
    }


def _launch(launch: PlannedLaunch) -> dict[str, Any]:
    body = group_body(launch.group)
    work = group_stats(body)
    return {
        "node": launch.node,
        "op": launch.op,
        "candidates": [
            {
                "name": c.name,
                "kernel": c.func.name,
                "origin": c.origin.value,
                "when": [asdict(r) for r in c.when],
                "trace": c.trace,
                "estimates": [{"size": size, **asdict(e)} for size, e in c.estimates],
            }
            for c in launch.stack.candidates
        ],
        "choices": [{"candidate": c.candidate, "when": [asdict(r) for r in c.when]} for c in launch.choices],
        "rows": str(launch.rows),
        "work": {f.name: str(getattr(work, f.name)) for f in fields(work)},
        "body": print_function(body),
        "layer": launch.group.attrs["layer"],
        "operands": list(launch.operands),
    }
