"""Bodies of ``fused`` nodes: a group of nodes becomes a function of what it reads; equal groups share one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from strata.graph import builder as g
from strata.graph.nodes import Function, Node, make_node
from strata.graph.opdef import Pattern
from strata.graph.types import CacheType

from .base import Key, function_key, root_cache
from .grouping import Group

_QUIET = frozenset({"reshape", "slice", "cast", "broadcast_to", "permute_dims", "const"})
_MAX_NAME = 48


@dataclass(slots=True)
class Bodies:
    """One object per distinct body in a module, with a name of its own."""

    by_key: dict[Key, Function] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def intern(self, inputs: tuple[Node, ...], output: Node) -> Function:
        """The body that computes ``output`` from ``inputs``."""
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


def launch(group: Group, stored: Callable[[Node], Node], bodies: Bodies) -> Node:
    """The ``fused`` node of a group.

    Args:
        group: Its members become nodes of the body, with layer 0; what they read become operands.
        stored: The new node for an old one that the group reads.
        bodies: Where the body is looked up, or added.
    """
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
        new = stored(old)
        if id(new) not in operands:
            operands[id(new)] = new, body_input(new, operands)
        return operands[id(new)][1]

    for operand in _operands_in_order(group):
        inside(operand)
    for member in order:
        attrs: dict[str, Any] = dict(member.attrs)
        if "layer" in attrs:
            layer, attrs["layer"] = attrs["layer"], 0
        inner[id(member)] = make_node(member.op, [inside(i) for i in member.inputs], **attrs)
    body = bodies.intern(tuple(b for _, b in operands.values()), inner[id(group.root)])
    return g.fused([o for o, _ in operands.values()], body, layer, name=_origin(group, order))


def body_input(operand: Node, before: Collection[object]) -> Node:
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
