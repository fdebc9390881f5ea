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
from dataclasses import asdict
from typing import Any

from strata.core.dims import Dim
from strata.graph.nodes import Function, Node
from strata.graph.stats import function_stats, node_stats, size_bytes
from strata.graph.text import print_function
from strata.graph.types import CacheType, TensorType

from .assemble import PlannedFunction, PlannedLaunch
from .stacks import group_body

_READS_ROWS = ("take", "slice", "last_tokens")


def plan_json(functions: Iterable[PlannedFunction]) -> dict[str, Any]:
    """Every launch of every function: its candidates with traces and estimates, and when each runs."""
    return {
        p.record.name: {"launches": [_launch(x) for x in p.launches], "arena_bytes": p.record.arena_bytes}
        for p in functions
    }


def _launch(launch: PlannedLaunch) -> dict[str, Any]:
    body = group_body(launch.group)
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
        "work": {key: str(value) for key, value in group_work(body).items()},
        "body": print_function(body),
        "layer": launch.group.attrs["layer"],
        "operands": list(launch.operands),
    }


def group_work(body: Function) -> dict[str, Dim]:
    """Work of one launch: ``flop``, and ``read_bytes`` and ``write_bytes`` with every operand touched once.

    Of an operand that is only cut or looked up, what is taken counts; of a cache, what attention reads
    (``max_context`` tokens per sequence, an upper bound).
    """
    read: Dim = 0
    for operand in body.inputs:
        users = [n for n in body.nodes if any(x is operand for x in n.inputs)]
        read = read + _read_bytes(operand, users)
    written: Dim = 0
    for node in (n for n in body.nodes if n.op == "kv_append"):
        written = written + node_stats(node).write_bytes
    for result in body.outputs:
        written = written + (size_bytes(result.type) if isinstance(result.type, TensorType) else 0)
    return {"flop": function_stats(body).flop, "read_bytes": read, "write_bytes": written}


def _read_bytes(operand: Node, users: list[Node]) -> Dim:
    """Bytes of one operand of a group that its users read."""
    if isinstance(operand.type, CacheType):
        total: Dim = 0
        for user in users:
            if user.op != "kv_append" and user.op not in _READS_ROWS:
                tensors = sum((size_bytes(x.tensor) for x in user.inputs if x is not operand), start=0)
                total = total + node_stats(user).read_bytes - tensors
        return total
    if users and all(u.op in _READS_ROWS and u.inputs[0] is operand for u in users):
        taken: Dim = 0
        for user in users:
            taken = taken + size_bytes(user.tensor)
        return taken
    return size_bytes(operand.tensor)
