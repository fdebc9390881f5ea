"""``fuse``: groups of nodes become ``fused`` nodes, one launch each.

Afterwards every node is a leaf, a ``fused`` node, a bare ``reshape`` (another view of the same memory: no
launch) or ``create_kv_cache``. What a group reads, weights included, are operands of its ``fused`` node, and
the body computes with layer 0; so the layers of a model share one body, the same object, and with it one
kernel::

    %3: f32[n,256] = rms_norm(%1, %2) {eps=..}        %3: bf16[n,256] = fused(%1, %2) {body=func @rms_norm(
    %4: bf16[n,256] = cast(%3) {dtype=bf16}       ->      %a0: f32[n,256], %a1: f32[256]) -> (..) { .. }}

Which nodes form a group: ``passes.grouping``. ``fuse`` is two passes in one: ``annotate_patterns`` notes how
each node may fuse, ``fuse_ops`` groups by these notes. Run them apart to put a pass between them::

    annotate_patterns,my_fences,fuse_ops{max_ops=8}

where ``my_fences`` changes ``with_notes(node, pattern="opaque")``: that node is a launch of its own. A note
can only make a node harder to fuse than its op is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.core.errors import UserError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, make_node, rebuild, rewrite, with_notes
from strata.graph.opdef import Pattern
from strata.graph.types import TensorType
from strata.ir.passes import Pass, register_pass

from .base import VIEWS, FunctionPass
from .bodies import Bodies, body_input, launch
from .grouping import ALONE, PATTERN_NOTE, Grouping, default_pattern, group_nodes


@register_pass
@dataclass(frozen=True)
class AnnotatePatterns(FunctionPass):
    """Notes on every node how it may fuse: ``!{pattern="broadcast"}``; see ``graph.opdef.Pattern``.

    Stage: any graph -> the same. Notes that are there already stay.
    Preserves: everything but the notes.
    """

    name: ClassVar[str] = "annotate_patterns"

    def run_function(self, function: Function) -> Function:
        """Add the note to every node that is no leaf and not fused yet."""
        return rewrite(function, _annotated)


def _annotated(node: Node) -> Node:
    if node.opdef.pattern is Pattern.LEAF or node.op in ALONE or PATTERN_NOTE in node.notes:
        return node
    return with_notes(node, **{PATTERN_NOTE: default_pattern(node).name.lower()})


@register_pass
@dataclass(frozen=True)
class FuseOps(Pass[Module]):
    """Wraps groups of nodes into ``fused`` nodes, by the notes of ``annotate_patterns`` where there are any.

    Stage: canonical graph -> fused graph (``fused`` nodes stay as they are, those of ``partition`` too).
    Preserves: values bit by bit (bodies compute what the ops define), signatures.

    Attributes:
        max_ops: Most nodes of a group; 1 launches every node on its own.
    """

    name: ClassVar[str] = "fuse_ops"
    max_ops: int = 32

    def __post_init__(self) -> None:
        if self.max_ops < 1:
            raise UserError(f"{self.name}: max_ops is {self.max_ops}; expected at least 1")

    def run(self, module: Module) -> Module:
        """Fuse every function; equal bodies become one object.

        Raises:
            OptionError: a note names no pattern.
        """
        bodies = Bodies()
        return module.map(lambda f: _Assembler(f, group_nodes(f, self.max_ops), bodies).run())


@register_pass
@dataclass(frozen=True)
class Fuse(FuseOps):
    """Decides what is one launch: ``annotate_patterns``, then ``fuse_ops``.

    Stage: canonical graph -> fused graph (``fused`` nodes stay as they are, those of ``partition`` too).
    Preserves: values bit by bit (bodies compute what the ops define), signatures.

    Attributes:
        max_ops: Most nodes of a group; 1 launches every node on its own.
    """

    name: ClassVar[str] = "fuse"

    def run(self, module: Module) -> Module:
        """Annotate and fuse."""
        return super().run(AnnotatePatterns().run(module))


class _Assembler:
    """Builds the fused function from the decisions of ``grouping``."""

    def __init__(self, function: Function, grouping: Grouping, bodies: Bodies) -> None:
        self.function = function
        self.grouping = grouping
        self.bodies = bodies
        self.new: dict[int, Node] = {}  # stored values and views by the id of the old node

    def run(self) -> Function:
        for node in self.function.nodes:
            group = self.grouping.groups.get(id(node))
            if group is not None:
                self.new[id(node)] = launch(group, self._stored, self.bodies)
            elif node.opdef.pattern is Pattern.LEAF:
                self.new[id(node)] = node
            elif node.op in ALONE:
                self.new[id(node)] = rebuild(node, [self._stored(i) for i in node.inputs])
        outputs = self._own_storage([self._stored(n) for n in self.function.outputs])
        return self.function.with_outputs(outputs)

    def _stored(self, node: Node) -> Node:
        """The new node for an old one that is stored somewhere: a leaf, a root, or a view of one."""
        chain: list[Node] = []
        while id(node) not in self.new:
            assert node.op == "reshape", f"{node.op} {node.name} is neither stored nor a view"
            chain.append(node)
            node = node.inputs[0]
        for view in reversed(chain):
            self.new[id(view)] = g.reshape(self.new[id(view.inputs[0])], view.tensor.shape, name=view.name)
        return self.new[id(chain[0])] if chain else self.new[id(node)]

    def _own_storage(self, outputs: list[Node]) -> list[Node]:
        """Every tensor result gets memory of its own: leaves, and values returned twice, are copied."""
        taken: set[int] = set()
        own: list[Node] = []
        for node in outputs:
            storage = node
            while storage.op in VIEWS:
                storage = storage.inputs[0]
            if isinstance(node.type, TensorType) and (
                id(storage) in taken or storage.opdef.pattern is Pattern.LEAF
            ):
                node = storage = self._copy(node)
            taken.add(id(storage))
            own.append(node)
        return own

    def _copy(self, node: Node) -> Node:
        a0 = body_input(node, ())
        # A reshape to the same shape, which the builder would leave out: one launch that copies.
        body = self.bodies.intern((a0,), make_node("reshape", [a0], shape=node.tensor.shape))
        return g.fused([node], body, name=node.name)
