"""Which params are stored in tiles: every matrix that some matmul multiplies by.

A stored layout is a property of the param: all functions and all kernels read the same bytes, an embedding table that is
also the output head included.
"""

from __future__ import annotations

from strata.graph.nodes import Function, Module, Node
from strata.loop.layout import Layout
from strata.schedule.rules.matmul import column_tile
from strata.target import Target


def matmul_weights(function: Function) -> dict[str, bool]:
    """Names of 2-d params that are the right operand of a matmul, and whether the matmul takes them transposed."""
    found: dict[str, bool] = {}
    for node in function.nodes:
        if node.op == "fused":
            body: Function = node.attrs["body"]
            outer = {id(inner): operand for inner, operand in zip(body.inputs, node.inputs, strict=True)}
            _collect(body, outer, found)
    _collect(function, {id(n): n for n in function.nodes}, found)
    return found


def _collect(body: Function, outer: dict[int, Node], found: dict[str, bool]) -> None:
    for node in body.nodes:
        if node.op != "matmul":
            continue
        operand = outer.get(id(node.inputs[1]))
        if operand is not None and operand.op == "param" and operand.tensor.rank == 2:
            found[operand.attrs["name"]] = bool(node.attrs["transpose_b"])


def choose_layouts(module: Module, target: Target) -> dict[str, Layout]:
    """Stored layout of every param that is not row-major."""
    layouts: dict[str, Layout] = {}
    for function in module.functions:
        for name, transposed in matmul_weights(function).items():
            layouts.setdefault(name, Layout(column_tile(target), 1, not transposed))
    return layouts
