"""``dead_code``: what no result needs goes away.

Nodes that no output reaches are not part of a function in this IR. What can be dead is an operand that a
fused group does not read, and a function that nobody wants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from strata.graph.nodes import Function, Module, Node, rebuild, rewrite, topological, with_notes
from strata.ir.passes import OptionError, Pass, register_pass

from .kill_dead import KILLS_NOTE


@register_pass
@dataclass(frozen=True)
class DeadCode(Pass[Module]):
    """Drops unread operands of fused groups, and functions not asked for.

    Stage: any graph -> the same.
    Preserves: values and signatures of the functions that stay.

    Attributes:
        functions: Names of the functions to keep; none given keeps all.
    """

    name: ClassVar[str] = "dead_code"
    functions: tuple[str, ...] = ()

    def run(self, module: Module) -> Module:
        """Drop functions, then operands.

        Raises:
            OptionError: a function to keep does not exist.
        """
        known = [f.name for f in module.functions]
        for name in self.functions:
            if name not in known:
                raise OptionError(
                    f"dead_code: no function {name!r} to keep; the module has: {', '.join(known)}"
                )
        kept = [f for f in module.functions if not self.functions or f.name in self.functions]
        return replace(module, functions=tuple(rewrite(f, _drop_operands) for f in kept))


def _drop_operands(node: Node) -> Node:
    if node.op != "fused":
        return node
    body: Function = node.attrs["body"]
    reached = {id(n) for n in topological(body.outputs)}
    live = [k for k, n in enumerate(body.inputs) if id(n) in reached]
    if len(live) == len(body.inputs):
        return node
    smaller = body.with_outputs(body.outputs, [body.inputs[k] for k in live])
    kept = with_notes(node, **{KILLS_NOTE: None})  # it counts operands
    return rebuild(kept, [node.inputs[k] for k in live], body=smaller)
