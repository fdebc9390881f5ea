"""Which nodes become one launch: the decisions of the ``fuse`` pass.

A group is a set of nodes with one result, the *root*: every other member is read by members only. So a group
needs no check for convexity: a path that leaves it starts at the root, and what follows the root precedes
nothing in the group.

Three rounds over a function:

1. every *anchor* (matmul, reduction, tensor_expr, paged_attention) starts a group and takes its consumers,
   one after the other, while the last member has one consumer and that is elementwise on the same elements;
2. every append to the cache starts a group;
3. all other nodes, consumers before producers, join the group of their consumers where that group can compute
   them in place; slices, reshapes, casts and broadcasts rather join several groups (and are computed in each)
   than be stored; what can join none starts a group of its own. A reshape that cannot join is a *view*.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from strata.core.dims import product
from strata.graph.nodes import Function, Node
from strata.graph.opdef import Pattern
from strata.graph.types import TensorType
from strata.ir.passes import OptionError

from .base import uses

_ANCHORS = frozenset({"matmul", "quantized_matmul", "paged_attention", "tensor_expr"})
# Cheap enough to compute several times, and to compute in each of several groups rather than store.
_COPIED = frozenset({"slice", "reshape", "cast", "broadcast_to", "cache_positions"})
_CHEAP = _COPIED | {
    *("add", "sub", "mul", "neg", "abs", "relu", "maximum", "minimum", "where", "permute_dims"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_not"),
}
# How often a loop reads one element of operand 0: passes over a row, or the two halves of a rotation.
_READS = {"rms_norm": 2, "layer_norm": 3, "softmax": 3, "argmax": 2, "rope": 2}
_NEVER_INSIDE = frozenset(
    {"concat", "tensor_expr"}
)  # they fill a buffer piece by piece, or have loops of their own
_MOVES = frozenset({"slice", "reshape", "permute_dims", "concat"})  # read every element at most once
ALONE = frozenset({"fused", "create_kv_cache", "view"})
MAX_READS = 8
PATTERN_NOTE = "pattern"


@dataclass(slots=True)
class Group:
    """One launch.

    Attributes:
        root: The member whose value is stored.
        anchor: The matmul, reduction, ... that shapes its loops; ``None`` for all others.
        members: All members by id; ``reads`` says how often each is computed per element that is read of it.
    """

    root: Node
    anchor: Node | None = None
    members: dict[int, Node] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)

    def add(self, node: Node, reads: int = 1) -> None:
        """Make ``node`` a member."""
        self.members[id(node)] = node
        self.reads[id(node)] = reads


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups by the id of their root, in no particular order, and the ids of reshapes that are mere views."""

    groups: dict[int, Group]
    views: frozenset[int]


def default_pattern(node: Node) -> Pattern:
    """How the op of ``node`` fuses; positions of tokens are opaque to the op table, but one load here."""
    return Pattern.INJECTIVE if node.op == "cache_positions" else node.opdef.pattern


def pattern(node: Node) -> Pattern:
    """How ``node`` fuses: what its note ``pattern`` says, which cannot make it fuse more easily than its op.

    Raises:
        OptionError: the note names no pattern.
    """
    note = node.notes.get(PATTERN_NOTE)
    if note is None:
        return default_pattern(node)
    if not isinstance(note, str) or note.upper() not in Pattern.__members__:
        known = ", ".join(p.name.lower() for p in Pattern)
        raise OptionError(f"note pattern of {node.op} {node.name}: got {note!r}; expected one of {known}")
    return max(Pattern[note.upper()], default_pattern(node))


def is_fenced(node: Node) -> bool:
    """Whether a note keeps ``node`` out of all groups but its own."""
    return pattern(node) is Pattern.OPAQUE and default_pattern(node) is not Pattern.OPAQUE


def is_anchor(node: Node) -> bool:
    """Whether ``node`` has loops of its own that consumers can join but producers hardly."""
    return (node.op in _ANCHORS or pattern(node) is Pattern.REDUCTION) and not is_fenced(node)


def group_nodes(function: Function, max_ops: int) -> Grouping:
    """Decide the groups of ``function``.

    Args:
        function: What to group.
        max_ops: Most members of a group.
    """
    work = _Grouper(function, max_ops)
    for node in function.nodes:
        if is_anchor(node) and id(node) not in work.member_of:
            work.start(node, node)
            work.take_consumers(work.member_of[id(node)][0])
        elif node.op == "kv_append":
            work.start(node, None)
    for node in reversed(function.nodes):
        if id(node) not in work.member_of and node.op not in ALONE and pattern(node) is not Pattern.LEAF:
            work.place(node)
    for group in work.groups.values():
        _drop_entry_reshapes(group)
    return Grouping(work.groups, frozenset(work.views))


class _Grouper:
    def __init__(self, function: Function, max_ops: int) -> None:
        self.max_ops = max_ops
        self.consumers = uses(function)
        self.outputs = {id(n) for n in function.outputs}
        self.member_of: dict[int, list[Group]] = {}
        self.groups: dict[int, Group] = {}
        self.views: set[int] = set()

    def start(self, root: Node, anchor: Node | None) -> None:
        """A new group of one."""
        group = Group(root, anchor)
        group.add(root)
        self.groups[id(root)] = group
        self.member_of[id(root)] = [group]

    def take_consumers(self, group: Group) -> None:
        """Round 1: grow an anchor's group downwards."""
        assert group.anchor is not None
        while len(group.members) < self.max_ops and id(group.root) not in self.outputs:
            distinct = {id(c): c for c in self.consumers[id(group.root)]}
            if len(distinct) != 1:
                return
            (consumer,) = distinct.values()
            if id(consumer) in self.member_of or not _is_epilogue(group, consumer):
                return
            del self.groups[id(group.root)]
            group.root = consumer
            group.add(consumer)
            self.groups[id(consumer)] = group
            self.member_of[id(consumer)] = [group]

    def place(self, node: Node) -> None:
        """Round 3: join the groups of all consumers, or be stored."""
        targets = self._targets(node)
        if targets and (len(targets) == 1 or self._may_copy(node)):
            for group, reads in targets:
                group.add(node, reads)
            self.member_of[id(node)] = [group for group, _ in targets]
        elif node.op == "reshape" and not is_fenced(node):
            self.views.add(id(node))
        else:
            self.start(node, None)

    def _targets(self, node: Node) -> list[tuple[Group, int]]:
        """The groups of all consumers, with the reads in each; none if one of them cannot take ``node``."""
        if id(node) in self.outputs or node.op in _NEVER_INSIDE:
            return []
        found: dict[int, Group] = {}
        for consumer in self.consumers[id(node)]:
            if id(consumer) not in self.member_of:
                return []
            found |= {id(g): g for g in self.member_of[id(consumer)]}
        targets: list[tuple[Group, int]] = []
        for group in found.values():
            inside = [c for c in self.consumers[id(node)] if id(c) in group.members]
            reads = sum(group.reads[id(c)] * _reads(c, node) for c in _distinct(inside))
            fits = len(group.members) < self.max_ops and reads <= MAX_READS
            if not fits or not all(_can_compute_for(node, c, group, reads) for c in inside):
                return []
            targets.append((group, reads))
        return targets

    def _may_copy(self, node: Node) -> bool:
        """Whether computing ``node`` in several groups beats storing it.

        Not where it could close a chain that has to be stored anyway: then its own result is what to store.
        """
        stack = [node]
        while stack:
            copied = stack.pop()
            if copied.op not in _COPIED:
                return False
            for operand in copied.inputs:
                lone = len({id(c) for c in self.consumers[id(operand)]}) == 1
                stored = pattern(operand) is Pattern.LEAF or id(operand) in self.member_of
                if lone and not stored and pattern(operand) <= Pattern.INJECTIVE:
                    stack.append(operand)
        return True


def _distinct(nodes: list[Node]) -> list[Node]:
    return list({id(n): n for n in nodes}.values())


def _reads(consumer: Node, node: Node) -> int:
    """How often ``consumer`` reads an element of ``node``, over all its operands."""
    return sum(
        _READS.get(consumer.op, 1) if k == 0 else 1
        for k, operand in enumerate(consumer.inputs)
        if operand is node
    )


def _elements(node: Node) -> object:
    return product(node.type.shape) if isinstance(node.type, TensorType) else None


def _is_epilogue(group: Group, consumer: Node) -> bool:
    """Whether ``consumer`` can be computed on the results of the group's anchor as they come."""
    anchor = group.anchor
    assert anchor is not None
    if is_fenced(anchor) or pattern(consumer) > Pattern.BROADCAST or consumer.op == "broadcast_to":
        return False
    if anchor.op == "paged_attention":
        return consumer.op == "cast"
    shape = consumer.tensor.shape
    if shape == group.root.tensor.shape:
        return True
    # x * rsqrt(mean(x * x)): the statistic of a row goes back to the row that it was taken of.
    kept = anchor.attrs.get("keepdims", False)
    return kept and group.root.tensor.shape == anchor.tensor.shape and shape == anchor.inputs[0].tensor.shape


def _can_compute_for(node: Node, consumer: Node, group: Group, reads: int) -> bool:
    """Whether ``group`` can compute ``node`` in place of loading it for its member ``consumer``."""
    if pattern(node) > Pattern.INJECTIVE or consumer.op in _ANCHORS or is_fenced(consumer):
        return False
    if consumer.op == "kv_append":
        return isinstance(node.type, TensorType)
    if consumer.op in ("sum", "mean", "max"):
        return pattern(node) <= Pattern.BROADCAST or node.op in _CHEAP
    if pattern(consumer) is Pattern.REDUCTION or consumer.op in ("rope", "take", "last_tokens"):
        return node.op in _CHEAP or (node.op == "dequantize" and consumer.op == "take")
    if (
        group.anchor is not None
        and pattern(group.anchor) is Pattern.MATMUL
        and pattern(node) > Pattern.BROADCAST
    ):
        return node.op in _COPIED  # a gather in the epilogue of a register tile costs more than a launch
    once = consumer.op in _MOVES or _elements(node) == _elements(consumer)
    return node.op in _CHEAP or (once and reads == 1)


def _drop_entry_reshapes(group: Group) -> None:
    """Take out reshapes of stored values: views are free, and the group sees the shape that it works on."""
    again = True
    while again:
        again = False
        for node in list(group.members.values()):
            (x, *_) = node.inputs
            if (
                node.op == "reshape"
                and node is not group.root
                and id(x) not in group.members
                and x.op != "const"
            ):
                del group.members[id(node)], group.reads[id(node)]
                again = True
