"""``reshape_to_view``: a reshape between launches is another view of the same memory, not a launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.graph import builder as g
from strata.graph.nodes import Function, Node, rewrite
from strata.ir.passes import register_pass

from .base import FunctionPass


@register_pass
@dataclass(frozen=True)
class ReshapeToView(FunctionPass):
    """Turns every ``reshape`` outside of groups into a ``view``, which keeps the memory of its operand alive.

    Run it after ``fuse``: the operand of a view is stored, so before ``fuse`` it keeps groups apart.

    Stage: fused graph -> fused graph.
    Preserves: values bit by bit, signatures.
    """

    name: ClassVar[str] = "reshape_to_view"

    def run_function(self, function: Function) -> Function:
        """Replace bare reshapes."""
        return rewrite(function, _viewed)


def _viewed(node: Node) -> Node:
    return g.view(node.inputs[0], node.tensor.shape, name=node.name) if node.op == "reshape" else node
