"""Which params are stored in tiles: every matrix that some matmul multiplies by.

A stored layout is a property of the param: all functions and all kernels read the same bytes, an embedding
table that is also the output head included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from strata.graph.nodes import Function, Module, Node
from strata.loop.layout import Layout
from strata.schedule.rules.matmul import weight_layout
from strata.target import Target

from .assemble import favoured_by
from .options import PlanOptions
from .stacks import Kernels, StackBuilder


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


def settle_layouts(
    module: Module, tiled: Mapping[str, Layout], target: Target, options: PlanOptions
) -> dict[str, Layout]:
    """Keep params in tiles unless a candidate that reads them row by row is favoured or faster.

    Kernels of the user and libraries take matrices as they are in the graph. A param has one stored layout,
    so all launches that read it decide together.

    Args:
        module: After the ``fuse`` pass.
        tiled: What :func:`choose_layouts` gives.
        target: The machine.
        options: What the user said.

    Returns:
        The layouts that stay.
    """
    in_tiles, in_rows = StackBuilder(tiled, target, options), StackBuilder({}, target, options)
    score = dict.fromkeys(tiled, 0.0)
    for function in module.functions:
        for node in function.nodes:
            names = [i.attrs["name"] for i in node.inputs if i.op == "param" and i.attrs["name"] in tiled]
            if node.op == "fused" and names:
                gain = _score(in_rows.kernels_of(node), node, options) - _score(
                    in_tiles.kernels_of(node), node, options
                )
                for name in names:
                    score[name] += gain
    return {name: layout for name, layout in tiled.items() if score[name] <= 0}


_FAVOUR = 1e6  # outweighs any ratio of times


def _score(kernels: Kernels, node: Node, options: PlanOptions) -> float:
    """How good a stack is: minus the mean logarithm of the best times; a favoured candidate counts most."""
    favoured = favoured_by(options, node.name, kernels.task.anchor.op)
    candidates = kernels.stack.candidates
    sizes = range(len(candidates[0].estimates))
    best = [min(c.estimates[k][1].time_s for c in candidates) for k in sizes]
    mean = sum(math.log(max(t, 1e-12)) for t in best) / len(best)
    return -mean + (_FAVOUR if any(favoured(c) for c in candidates) else 0.0)
