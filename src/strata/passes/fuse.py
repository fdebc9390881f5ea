"""``fuse``: groups of nodes become ``fused`` nodes, one launch each.

Afterwards every node is a leaf, a ``fused`` node, a bare ``reshape`` (another view of the same memory: no
launch) or ``create_kv_cache``. What a group reads, weights included, are operands of its ``fused`` node, and
the body computes with layer 0; so the layers of a model share one body, the same object, and with it one
kernel::

    %3: f32[n,256] = rms_norm(%1, %2) {eps=..}        %3: bf16[n,256] = fused(%1, %2) {body=func @rms_norm(
    %4: bf16[n,256] = cast(%3) {dtype=bf16}       ->      %a0: f32[n,256], %a1: f32[256]) -> (..) { .. }}

Which nodes form a group: ``passes.grouping``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from strata.core.errors import UserError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, make_node
from strata.graph.opdef import Pattern
from strata.graph.types import CacheType, TensorType
from strata.ir.passes import Pass, register_pass

from .base import Key, function_key, root_cache
from .grouping import ALONE, Group, Grouping, group_nodes

_QUIET = frozenset({"reshape", "slice", "cast", "broadcast_to", "permute_dims", "const"})
_MAX_NAME = 48


@register_pass
@dataclass(frozen=True)
class Fuse(Pass[Module]):
    """Wraps groups of nodes into ``fused`` nodes.

    Stage: canonical graph -> fused graph (a fused graph stays as it is).
    Preserves: values bit by bit (bodies compute what the ops define), signatures.

    Attributes:
        max_ops: Most nodes of a group; 1 launches every node on its own.
    """

    name: ClassVar[str] = "fuse"
    max_ops: int = 32

    def __post_init__(self) -> None:
        if self.max_ops < 1:
            raise UserError(f"fuse: max_ops is {self.max_ops}; expected at least 1")

    def run(self, module: Module) -> Module:
        """Fuse every function; equal bodies become one object."""
        bodies = _Bodies()
        return module.map(lambda f: _Assembler(f, group_nodes(f, self.max_ops), bodies).run())


@dataclass(slots=True)
class _Bodies:
    """One object per distinct body in a module, with a name of its own."""

    by_key: dict[Key, Function] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def intern(self, inputs: tuple[Node, ...], output: Node) -> Function:
        key = function_key(Function("", inputs, (output,)))
        if key not in self.by_key:
            base = _body_name(Function("", inputs, (output,)))
            count = self.names.get(base, 0)
            self.names[base] = count + 1
            self.by_key[key] = Function(f"{base}_{count}" if count else base, inputs, (output,))
        return self.by_key[key]


def _body_name(body: Function) -> str:
    ops = [n.op for n in body.nodes if n.opdef.pattern is not Pattern.LEAF]
    loud = [op for op in ops if op not in _QUIET] or ops or ["constant"]
    return "_".join(dict.fromkeys(loud))[:_MAX_NAME].rstrip("_")


class _Assembler:
    """Builds the fused function from the decisions of ``grouping``."""

    def __init__(self, function: Function, grouping: Grouping, bodies: _Bodies) -> None:
        self.function = function
        self.grouping = grouping
        self.bodies = bodies
        self.new: dict[int, Node] = {}  # stored values and views by the id of the old node

    def run(self) -> Function:
        for node in self.function.nodes:
            group = self.grouping.groups.get(id(node))
            if group is not None:
                self.new[id(node)] = self._launch(group)
            elif node.opdef.pattern is Pattern.LEAF:
                self.new[id(node)] = node
            elif node.op in ALONE:
                self.new[id(node)] = make_node(
                    node.op, [self._stored(i) for i in node.inputs], node.name, **node.attrs
                )
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

    def _launch(self, group: Group) -> Node:
        order = _members_in_order(group)
        cache = _cache_of(group)
        operands: dict[int, tuple[Node, Node]] = {}  # by id of the operand: it, and its input in the body
        inner: dict[int, Node] = {}  # by id of an old node: its node in the body
        layer = 0

        def inside(old: Node) -> Node:
            if id(old) in inner:
                return inner[id(old)]
            if _is_immediate(old):
                inner[id(old)] = make_node("const", value=old.attrs["value"])
                return inner[id(old)]
            if cache is not None and isinstance(old.type, CacheType) and root_cache(old) is root_cache(cache):
                old = cache
            stored = self._stored(old)
            if id(stored) not in operands:
                operands[id(stored)] = stored, _body_input(stored, operands)
            return operands[id(stored)][1]

        for operand in _operands_in_order(group):
            inside(operand)
        for member in order:
            attrs: dict[str, Any] = dict(member.attrs)
            if "layer" in attrs:
                layer, attrs["layer"] = attrs["layer"], 0
            inner[id(member)] = make_node(member.op, [inside(i) for i in member.inputs], **attrs)
        body = self.bodies.intern(tuple(b for _, b in operands.values()), inner[id(group.root)])
        return g.fused([o for o, _ in operands.values()], body, layer, name=_origin(group, order))

    def _own_storage(self, outputs: list[Node]) -> list[Node]:
        """Every tensor result gets memory of its own: leaves, and values returned twice, are copied."""
        taken: set[int] = set()
        own: list[Node] = []
        for node in outputs:
            storage = node
            while storage.op == "reshape":
                storage = storage.inputs[0]
            if isinstance(node.type, TensorType) and (
                id(storage) in taken or storage.opdef.pattern is Pattern.LEAF
            ):
                node = storage = self._copy(node)
            taken.add(id(storage))
            own.append(node)
        return own

    def _copy(self, node: Node) -> Node:
        a0 = _body_input(node, ())
        # A reshape to the same shape, which the builder would leave out: one launch that copies.
        body = self.bodies.intern((a0,), make_node("reshape", [a0], shape=node.tensor.shape))
        return g.fused([node], body, name=node.name)


def _body_input(operand: Node, before: Collection[object]) -> Node:
    """The input of a body for ``operand``, where ``before`` are the inputs so far."""
    return g.input(f"{'cache' if isinstance(operand.type, CacheType) else 'a'}{len(before)}", operand.type)


def _is_immediate(node: Node) -> bool:
    """Whether ``node`` is a number that goes into the body, not an operand."""
    return node.op == "const" and node.attrs["value"].size == 1


def _operands_in_order(group: Group) -> list[Node]:
    """What the group reads: first what its anchor reads, left to right."""
    found: dict[int, Node] = {}
    seen: set[int] = set()
    stack = [group.root] if group.anchor is None else [group.root, group.anchor]
    while stack:
        node = stack.pop()
        if id(node) in group.members:
            if id(node) not in seen:
                stack.extend(reversed(node.inputs))
            seen.add(id(node))
        elif not _is_immediate(node):
            found[id(node)] = node
    return list(found.values())


def _members_in_order(group: Group) -> list[Node]:
    """Members, operands first, in an order that depends on the group alone: equal groups get equal bodies."""
    order: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(group.root, False)]
    while stack:
        node, expanded = stack.pop()
        if id(node) in done or id(node) not in group.members:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.inputs))
    return order


def _cache_of(group: Group) -> Node | None:
    """The cache of a group with an append; ops that read only the batch view can take it too."""
    appends: Iterable[Node] = (m for m in group.members.values() if m.op == "kv_append")
    return next((m.inputs[0] for m in appends), None)


def _origin(group: Group, order: list[Node]) -> str:
    """Where a launch comes from: the anchor's name, else the first name from the root upwards."""
    named = [
        n.name for n in (*([group.anchor] if group.anchor is not None else []), *reversed(order)) if n.name
    ]
    return named[0] if named else ""
