"""``strata nodes``: what a compiled function launches, by which candidates, and what that should cost."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported

if TYPE_CHECKING:
    from strata.runtime.nodes import NodeInfo


@reported()
def command(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, hub id or artifact; default: the demo model")
    ] = None,
    function: Annotated[str, typer.Option(help="prefill, decode or score")] = "decode",
    tokens: Annotated[int | None, typer.Option(help="Tokens of the sequence; default: 128")] = None,
    node: Annotated[str | None, typer.Option(help="Only these, in detail: a name, or like '*.mlp.*'")] = None,
    format: Annotated[
        str | None, typer.Option(help="Weights: f32, bf16, f16, int8, int4, mixed, ...; default: as stored")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """List the nodes of a compiled function: one launch each, in the order of execution.

    Prefill computes all tokens of the sequence, decode the last one.
    """
    from strata.app.sequence import example_pass, sizes_text
    from strata.app.session import Source, open_model
    from strata.runtime.nodes import select

    language_model = open_model(Source(model, format=format))
    forward = example_pass(language_model, function, tokens)
    dims = forward.work_dims
    nodes = language_model.nodes(function)
    chosen = select(nodes, node or "*")
    data = {"function": function, "dims": forward.dims, "nodes": [node_json(n, dims) for n in chosen]}
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    elif node is None:
        _print_table(data, sizes_text(forward.dims))
    else:
        sys.stdout.write("\n\n".join(_detail(n, dims) for n in chosen) + "\n")


def node_json(node: NodeInfo, dims: dict[str, int]) -> dict[str, Any]:
    """Everything about a node at these sizes. Times are estimates, each with its source."""
    chosen, work, size = node.chosen(dims), node.work(dims), node.size(dims)

    def operand(o: Any) -> dict[str, Any]:
        return {"name": o.name, "dtype": o.dtype, "shape": list(node.shape(o, dims)), "symbolic": str(o)}

    def candidate(c: Any) -> dict[str, Any]:
        cost = c.cost(size)
        return {
            "name": c.name,
            "kernel": c.kernel,
            "in_image": c.in_image,
            "is_chosen": c.kernel == chosen.kernel,
            "time_s": None if cost is None else cost.time_s,
            "source": None if cost is None else cost.source,
            "trace": c.trace,
        }

    return {
        "index": node.index,
        "name": node.name,
        "op": node.op,
        "inputs": [operand(o) for o in node.inputs],
        "outputs": [operand(o) for o in node.outputs],
        "kernel": chosen.kernel,
        "candidate": chosen.name,
        "choices": [
            {"kernel": c.kernel, "when": [{"dim": r.dim, "lo": r.lo, "hi": r.hi} for r in c.when]}
            for c in node.choices
        ],
        "candidates": [candidate(c) for c in node.candidates],
        "work": work,
    }


def _time_text(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f} us"


def _print_table(data: dict[str, Any], sizes: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{data['function']} · {len(data['nodes'])} nodes · {sizes}")
    for column in ("#", "node", "op", "result", "candidate", "of", "estimate"):
        table.add_column(
            column, justify="right" if column in ("#", "of", "estimate") else "left", overflow="fold"
        )
    for n in data["nodes"]:
        result = " ".join(f"{o['dtype']}{o['shape']}" for o in n["outputs"]).replace(" ", "")
        chosen = next((c for c in n["candidates"] if c["is_chosen"]), None)
        time_s, source = (None, None) if chosen is None else (chosen["time_s"], chosen["source"])
        cost = f"{_time_text(time_s)} {source or ''}".strip()
        row = (n["index"], n["name"], n["op"], result, n["candidate"], len(n["candidates"]), cost)
        table.add_row(*map(str, row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def _detail(node: NodeInfo, dims: dict[str, int]) -> str:
    """A node with its operands, its graph and all of its candidates."""
    data = node_json(node, dims)
    lines = [f"{node.index}: {node.name} = {node.op}"]
    for kind in ("inputs", "outputs"):
        lines += [f"  {kind[:-1]:6} {o['name']}: {o['symbolic']}" for o in data[kind]]
    if data["work"] is not None:
        lines.append("  work   " + ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in data["work"].items()))
    for c in data["candidates"]:
        mark = "*" if c["is_chosen"] else " "
        where = "" if c["in_image"] else ", not compiled"
        cost = f"{_time_text(c['time_s'])} {c['source'] or ''}"
        lines.append(f"  {mark} {c['name']} ({c['kernel']}{where}): {cost}".rstrip(": "))
        if c["trace"]:
            lines.append(f"      {{{c['trace']}}}")
    for choice in node.choices:
        when = " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in choice.when) or "otherwise"
        lines.append(f"  select {choice.kernel} {'when ' if choice.when else ''}{when}")
    body = node.details.get("body")
    return "\n".join(lines + ([] if body is None else ["  " + x for x in body.rstrip().splitlines()]))
