"""Which params are stored in tiles: every matrix that some matmul multiplies by.

A stored layout is a property of the param: all functions and all kernels read the same bytes, an embedding
table that is also the output head included.
"""

from __future__ import annotations

from strata.graph.nodes import Function, Module, Node
from strata.loop.layout import Layout
from strata.schedule.rules.matmul import weight_layout
from strata.target import Target


def matmul_weights(function: Function) -> dict[str, Node]:
    """The matmul node that multiplies by it, for every 2-d param that is the right operand of one."""
    found: dict[str, Node] = {}
    for node in function.nodes:
        if node.op == "fused":
            body: Function = node.attrs["body"]
            outer = {id(inner): operand for inner, operand in zip(body.inputs, node.inputs, strict=True)}
            _collect(body, outer, found)
    return found


def _collect(body: Function, outer: dict[int, Node], found: dict[str, Node]) -> None:
    for node in body.nodes:
        if node.op != "matmul":
            continue
        operand = outer.get(id(node.inputs[1]))
        if operand is not None and operand.op == "param" and operand.tensor.rank == 2:
            found.setdefault(operand.attrs["name"], node)


def choose_layouts(module: Module, target: Target) -> dict[str, Layout]:
    """Stored layout of every param that is not row-major."""
    layouts: dict[str, Layout] = {}
    for function in module.functions:
        for name, matmul in matmul_weights(function).items():
            transposed = not matmul.attrs["transpose_b"]
            weight = matmul.inputs[1].tensor
            contracted = weight.shape[0 if transposed else 1]
            layouts.setdefault(name, weight_layout(weight.dtype, contracted, transposed, target))
    return layouts
