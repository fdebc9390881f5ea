"""What ``partition`` asks for: its nodes prefer the library that their pattern is named after."""

from __future__ import annotations

from dataclasses import replace

from strata.graph.nodes import Module, Node
from strata.passes.partition import COMPOSITE_NOTE

from .options import PlanOptions


def node_options(options: PlanOptions, node: Node) -> PlanOptions:
    """``options`` as they hold for ``node``: ``!{composite="openblas.matmul_bias"}`` prefers ``openblas``.

    Pins go before it; where the library offers nothing, the node is compiled as any other.
    """
    composite = node.notes.get(COMPOSITE_NOTE)
    if not isinstance(composite, str):
        return options
    return replace(options, prefer=(composite.partition(".")[0], *options.prefer))


def has_composites(module: Module) -> bool:
    """Whether some node of ``module`` was made by ``partition``."""
    return any(COMPOSITE_NOTE in n.notes for f in module.functions for n in f.nodes)
