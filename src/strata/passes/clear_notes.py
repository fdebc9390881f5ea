"""``clear_notes``: takes notes off nodes, so that the passes that write them decide anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.graph.nodes import Function, Node, rewrite, with_notes
from strata.ir.passes import register_pass

from .base import FunctionPass


@register_pass
@dataclass(frozen=True)
class ClearNotes(FunctionPass):
    """Takes notes away.

    Stage: any graph -> the same.
    Preserves: everything but the notes.

    Attributes:
        names: Which notes (``offset``, ``kills``, ``pattern``, ``layout``, ...); none given: all.
    """

    name: ClassVar[str] = "clear_notes"
    names: tuple[str, ...] = ()

    def run_function(self, function: Function) -> Function:
        """Take them off every node."""

        def clear(node: Node) -> Node:
            return with_notes(node, **dict.fromkeys(self.names or node.notes))

        return rewrite(function, clear)
