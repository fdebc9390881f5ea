"""Patterns over ops: expressions that look like the graph they match.

::

    x, w, bias = any_("x"), param("w"), any_("bias")
    relu = is_op("relu")
    dense = is_op("matmul")(x, w.T) + bias >> relu        # relu(matmul(x, transpose(w)) + bias)

    found = match(node, dense)                            # a Match, or None
    found[x], found["w"], found.root                      # what a part of the pattern stands for

    @rewrite_pass("use_silu", x * is_op("sigmoid")(x))    # a graph pass, by a rule
    def use_silu(found):
        return g.silu(found[x])

    pattern ::= any_(name?) | param(name?) | const(value?, name?)      leaves: any value, a weight, a constant
              | is_op(op, ..., attr=value)(pattern, ...)               a node; several ops: one of them
              | pattern (+ | - | * | /) pattern | number               add, sub, mul, div; a number is a const
              | pattern.T                                              the last two dims swapped
              | pattern >> f                                           f(pattern)
              | pattern >> optional(f)                                 f(pattern), or pattern alone
              | pattern | pattern                                      the first that matches
              | pattern.where(lambda match: ...)                       if that holds for what matched so far
              | pattern.has_dtype(f32, ...) | pattern.has_shape(None, 64)

Python's precedence makes this read well: ``+ - * /`` bind tighter than ``>>``, and ``>>`` tighter than ``|``.
So ``a + b >> relu | c`` is ``(relu(a + b)) | c``. ``f`` is an op (``is_op("relu")``) or a function of
patterns (``lambda y: y + bias``).

* The same pattern object used twice stands for the same value twice.
* ``+`` and other commutative ops match with their operands in either order, the written one first.
* ``is_op("matmul")(x, w.T)`` also matches ``matmul(x, w) {transpose_b=true}``, which ``fold_transpose`` makes
  of it; ``is_op("matmul")(x, w)`` matches only a matmul that does not transpose.
* A match has one result, the root. With ``within=function``, and always in :func:`find` and :func:`rewrite`,
  no other value in it may be used outside of the match or be a result of the function. So what matched is
  replaced as a whole, and doing so cannot close a cycle: a path that leaves a match starts at its root.

Every choice is made in a fixed order, so equal graphs give equal matches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from strata.core.dims import Dim
from strata.core.dtypes import DType
from strata.core.errors import UserError, VerifyError
from strata.core.registry import Registry
from strata.graph.nodes import Function, Node, rebuild, topological
from strata.graph.opdef import OPS
from strata.graph.types import TensorType
from strata.ir.passes import register_pass

from .base import FunctionPass, attribute_key, uses
from .rules_algebra import COMMUTATIVE

MAX_ROUNDS = 100
_EITHER_ORDER = frozenset({*COMMUTATIVE, "maximum", "minimum"})
_LEAVES = frozenset({"input", "param", "const"})


@dataclass(frozen=True, slots=True)
class Bindings:
    """What matched so far: nodes by pattern, and the op nodes that belong to the match."""

    nodes: Mapping[NodePattern, Node] = field(default_factory=dict)
    members: Mapping[int, Node] = field(default_factory=dict)

    def bind(self, pattern: NodePattern, node: Node, is_member: bool) -> Bindings:
        """With ``pattern`` standing for ``node``."""
        members = {**self.members, id(node): node} if is_member else self.members
        return Bindings({**self.nodes, pattern: node}, members)


class NodePattern(ABC):
    """A pattern for one value; see the module for the operators. Patterns are compared by identity."""

    name: str = ""

    @abstractmethod
    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        """Every way in which ``node`` fits, and whether ``node`` becomes part of the match."""

    def __add__(self, other: Operand) -> NodePattern:
        return _Call(("add",), (self, as_pattern(other)))

    def __radd__(self, other: Operand) -> NodePattern:
        return _Call(("add",), (as_pattern(other), self))

    def __sub__(self, other: Operand) -> NodePattern:
        return _Call(("sub",), (self, as_pattern(other)))

    def __rsub__(self, other: Operand) -> NodePattern:
        return _Call(("sub",), (as_pattern(other), self))

    def __mul__(self, other: Operand) -> NodePattern:
        return _Call(("mul",), (self, as_pattern(other)))

    def __rmul__(self, other: Operand) -> NodePattern:
        return _Call(("mul",), (as_pattern(other), self))

    def __truediv__(self, other: Operand) -> NodePattern:
        return _Call(("div",), (self, as_pattern(other)))

    def __rtruediv__(self, other: Operand) -> NodePattern:
        return _Call(("div",), (as_pattern(other), self))

    def __or__(self, other: NodePattern) -> NodePattern:
        return _Either((self, other))

    def __rshift__(self, f: Callable[[NodePattern], NodePattern]) -> NodePattern:
        return f(self)

    @property
    def T(self) -> NodePattern:
        """The last two dims swapped."""
        return _Transposed(self)

    def where(self, condition: Callable[[Match], bool]) -> NodePattern:
        """Only where ``condition`` holds for what this pattern, and all before it, matched."""
        return _Where(self, condition)

    def has_dtype(self, *dtypes: DType) -> NodePattern:
        """Only a tensor of one of these dtypes."""
        return _Where(self, lambda m: isinstance(m.root.type, TensorType) and m.root.type.dtype in dtypes)

    def has_shape(self, *shape: Dim | None) -> NodePattern:
        """Only a tensor of this shape; ``None`` stands for any dim."""
        return _Where(self, lambda m: _has_shape(m.root, shape))


Operand = NodePattern | int | float


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A place where a pattern fits.

    Attributes:
        root: The node that the whole pattern stands for.
        members: The nodes that the ops of the pattern stand for, operands first; the root is the last.
    """

    root: Node
    members: tuple[Node, ...]
    _nodes: Mapping[NodePattern, Node] = field(repr=False)

    def get(self, part: NodePattern | str) -> Node | None:
        """The node of a part of the pattern (the object, or the name of a leaf); ``None`` if it has none."""
        if isinstance(part, str):
            return next((node for p, node in self._nodes.items() if p.name == part), None)
        return self._nodes.get(part)

    def __getitem__(self, part: NodePattern | str) -> Node:
        node = self.get(part)
        if node is None:
            named = ", ".join(p.name for p in self._nodes if p.name) or "none"
            shown = repr(part) if isinstance(part, str) else "that pattern"
            raise UserError(f"match of {self.root.op}: {shown} took no part in it; named parts: {named}")
        return node


@dataclass(frozen=True, eq=False)
class _Leaf(NodePattern):
    name: str
    ops: frozenset[str] | None = None

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        if self.ops is None or node.op in self.ops:
            yield known, False


@dataclass(frozen=True, eq=False)
class _Number(NodePattern):
    value: float
    name: str = ""

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        if node.op != "const" or not node.attrs["value"].size:
            return
        stored = node.attrs["value"]
        # The number as the dtype holds it: 0.1 matches the f32 that is nearest to 0.1.
        if np.all(stored == np.asarray(self.value).astype(stored.dtype)):
            yield known, False


@dataclass(frozen=True, eq=False)
class _Call(NodePattern):
    ops: tuple[str, ...]
    operands: tuple[NodePattern, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    name: str = ""

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        if node.op not in self.ops or not self._attributes_fit(node):
            return
        for operands in self._operand_orders(node):
            for found in _match_all(operands, node.inputs, known):
                yield found, True

    def _attributes_fit(self, node: Node) -> bool:
        return all(
            key in node.attrs
            and attribute_key(node.attrs[key]) == attribute_key(_like(value, node.attrs[key]))
            for key, value in self.attrs
        )

    def _operand_orders(self, node: Node) -> Iterator[tuple[NodePattern, ...]]:
        """Patterns for the operands of ``node`` as it is, in the order of preference."""
        if len(self.operands) != len(node.inputs):
            return
        if node.op == "matmul" and "transpose_b" not in dict(self.attrs):
            a, b = self.operands
            if not node.attrs["transpose_b"]:
                yield a, b
            elif isinstance(b, _Transposed):
                yield a, b.inner
            return
        yield self.operands
        if node.op in _EITHER_ORDER:
            yield self.operands[::-1]


@dataclass(frozen=True, eq=False)
class _Transposed(NodePattern):
    inner: NodePattern

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        if node.op != "permute_dims":
            return
        rank = node.tensor.rank
        axes = [a % rank for a in node.attrs["axes"]]
        if rank >= 2 and axes == [*range(rank - 2), rank - 1, rank - 2]:
            for found in _match(self.inner, node.inputs[0], known):
                yield found, True


@dataclass(frozen=True, eq=False)
class _Either(NodePattern):
    choices: tuple[NodePattern, ...]

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        for choice in self.choices:
            for found in _match(choice, node, known):
                yield found, False  # the choice itself says what belongs to the match


@dataclass(frozen=True, eq=False)
class _Where(NodePattern):
    inner: NodePattern
    condition: Callable[[Match], bool]

    @property
    def name(self) -> str:  # type: ignore[override]
        """A leaf keeps its name under a condition."""
        return self.inner.name

    def matches(self, node: Node, known: Bindings) -> Iterator[tuple[Bindings, bool]]:
        for found in _match(self.inner, node, known):
            if self.condition(_as_match(node, found)):
                yield found, False


@dataclass(frozen=True)
class Op:
    """An op (or one of several) with attributes; calling it on patterns gives the pattern of a node."""

    ops: tuple[str, ...]
    attrs: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *operands: Operand) -> NodePattern:
        """The pattern of a node of this op with these operands."""
        return _Call(self.ops, tuple(as_pattern(o) for o in operands), self.attrs)


def any_(name: str = "") -> NodePattern:
    """Any value; ``name`` is for ``match["name"]``."""
    return _Leaf(name)


def param(name: str = "") -> NodePattern:
    """A weight (``name`` is the pattern's, not the weight's)."""
    return _Leaf(name, frozenset({"param"}))


def const(value: float | None = None, name: str = "") -> NodePattern:
    """A constant; with ``value`` one whose elements all are that number."""
    return _Leaf(name, frozenset({"const"})) if value is None else _Number(value, name)


def is_op(*ops: str, **attrs: Any) -> Op:
    """An op to call on patterns, or to put behind ``>>``.

    Args:
        ops: Names of ops: any of them matches.
        attrs: Attributes that the node must have.

    Raises:
        UserError: no such op, or an op without such an attribute.
    """
    if not ops:
        raise UserError("is_op: got no op; expected at least one name")
    for op in ops:
        schema = OPS[op].attrs
        for key in attrs:
            if key not in schema:
                raise UserError(
                    f"is_op: {op} has no attribute {key!r}; it has: {', '.join(schema) or 'none'}"
                )
    return Op(ops, tuple(attrs.items()))


def optional(f: Callable[[NodePattern], NodePattern]) -> Callable[[NodePattern], NodePattern]:
    """A part that may be missing: behind ``>>`` it gives ``f(pattern) | pattern``."""
    return lambda pattern: f(pattern) | pattern


def as_pattern(value: Operand) -> NodePattern:
    """The pattern itself; a number as the pattern of a constant.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, NodePattern):
        return value
    if isinstance(value, (int, float)):
        return _Number(value)
    if isinstance(value, Op):
        raise UserError(f"pattern: got the op {value.ops[0]}; call it on its operands: is_op(...)(x)")
    raise UserError(f"pattern: got {type(value).__name__}; expected a pattern or a number")


def _like(value: Any, stored: Any) -> Any:
    return float(value) if isinstance(stored, float) and type(value) is int else value


def _has_shape(node: Node, shape: tuple[Dim | None, ...]) -> bool:
    if not isinstance(node.type, TensorType) or node.type.rank != len(shape):
        return False
    return all(want is None or want == got for want, got in zip(shape, node.type.shape, strict=True))


def _same_value(a: Node, b: Node) -> bool:
    """One node, or two leaves that stand for the same weight or constant."""
    if a is b:
        return True
    if a.op != b.op or a.op not in ("param", "const"):
        return False
    key = "name" if a.op == "param" else "value"
    return attribute_key(a.attrs[key]) == attribute_key(b.attrs[key])


def _match(pattern: NodePattern, node: Node, known: Bindings) -> Iterator[Bindings]:
    bound = known.nodes.get(pattern)
    if bound is not None:
        if _same_value(bound, node):
            yield known
        return
    for found, is_member in pattern.matches(node, known):
        yield found.bind(pattern, node, is_member)


def _match_all(
    patterns: tuple[NodePattern, ...], nodes: tuple[Node, ...], known: Bindings
) -> Iterator[Bindings]:
    if not patterns:
        yield known
        return
    for found in _match(patterns[0], nodes[0], known):
        yield from _match_all(patterns[1:], nodes[1:], found)


def _as_match(root: Node, found: Bindings) -> Match:
    # A node is bound after its operands were, so members are in order.
    return Match(root, tuple(found.members.values()), found.nodes)


class _Scope:
    """A function as the matcher sees it: who uses what."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.consumers = uses(function)
        self.outputs = {id(n) for n in function.outputs}

    def closed(self, root: Node, members: Mapping[int, Node]) -> bool:
        """Whether only members use what members compute, except for the root."""
        for key in members:
            if key == id(root):
                continue
            if key in self.outputs or any(id(c) not in members for c in self.consumers.get(key, ())):
                return False
        return True

    def first(self, node: Node, pattern: NodePattern, taken: frozenset[int] | set[int]) -> Match | None:
        for found in _match(pattern, node, Bindings()):
            if self.closed(node, found.members) and not any(key in taken for key in found.members):
                return _as_match(node, found)
        return None


def match(node: Node, pattern: NodePattern, within: Function | None = None) -> Match | None:
    """How ``pattern`` fits ``node``, or ``None``.

    Args:
        node: What the whole pattern should stand for.
        pattern: The pattern.
        within: A function that contains ``node``; then values inside of the match may not be used outside.
    """
    if within is not None:
        return _Scope(within).first(node, pattern, set())
    return next((_as_match(node, found) for found in _match(pattern, node, Bindings())), None)


def find(function: Function, *patterns: NodePattern) -> tuple[Match, ...]:
    """All places where a pattern fits, no two with a node in common, in the order of execution.

    An earlier pattern goes first; of one pattern, matches nearer to the results go first, so that
    ``optional`` takes as much as it can.
    """
    return tuple(found for _, found in find_named(function, {str(k): p for k, p in enumerate(patterns)}))


def find_named(function: Function, wanted: Mapping[str, NodePattern]) -> list[tuple[str, Match]]:
    """As :func:`find`, with the name of the pattern that matched."""
    scope = _Scope(function)
    taken: set[int] = set()
    found: dict[int, tuple[str, Match]] = {}
    for name, pattern in wanted.items():
        for node in reversed(function.nodes):
            if node.op in _LEAVES or id(node) in taken:
                continue
            place = scope.first(node, pattern, taken)
            if place is not None and place.members:
                taken.update(id(m) for m in place.members)
                found[id(node)] = name, place
    return [found[id(n)] for n in function.nodes if id(n) in found]


Build = Callable[[Match], Node | None]


def rewrite(function: Function, pattern: NodePattern, build: Build, name: str = "rewrite") -> Function:
    """Replace what ``pattern`` matches by what ``build`` makes of the match, until nothing matches.

    Args:
        function: What to rewrite; unchanged.
        pattern: What to look for.
        build: The new node, of the same type as the root; ``None`` leaves the match as it is.
        name: The rule's name, for messages.

    Raises:
        VerifyError: ``build`` gave a node of another type, or new matches without end.
    """
    for _ in range(MAX_ROUNDS):
        better: dict[int, Node] = {}
        for place in find(function, pattern):
            node = build(place)
            if node is None or node is place.root:
                continue
            if node.type != place.root.type:
                raise VerifyError(
                    f"{name}: {place.root.op} {place.root.name}: got {node.type}; expected {place.root.type}"
                )
            better[id(place.root)] = node
        if not better:
            return function
        function = _replaced(function, better)
    raise VerifyError(f"{name}: still matches after {MAX_ROUNDS} rounds; what it builds matches its pattern")


def _replaced(function: Function, better: Mapping[int, Node]) -> Function:
    """``function`` with other nodes in place of some; those are made of its old nodes, and keep the name."""
    new: dict[int, Node] = {}
    old = {id(n) for n in function.nodes}
    for node in function.nodes:
        if id(node) not in better:
            new[id(node)] = rebuild(node, [new[id(i)] for i in node.inputs])
            continue
        built: dict[int, Node] = {}
        for part in topological([better[id(node)]]):
            if id(part) in new:
                built[id(part)] = new[id(part)]
            elif id(part) in old:
                raise VerifyError(
                    f"rewrite of {node.op} {node.name}: the new node reads {part.op}, "
                    "which does not come before it"
                )
            else:
                built[id(part)] = rebuild(part, [built[id(i)] for i in part.inputs])
        top = built[id(better[id(node)])]
        new[id(node)] = (
            replace(top, name=node.name) if id(better[id(node)]) not in old and not top.name else top
        )
    return function.with_outputs([new[id(n)] for n in function.outputs])


def rewrite_pass(name: str, pattern: NodePattern) -> Callable[[Build], FunctionPass]:
    """Decorator: makes a registered graph pass of a rule, see :func:`rewrite`.

    Args:
        name: The pass's word in pipelines.
        pattern: What to look for.

    Returns:
        The pass itself, to put into a pipeline.

    Raises:
        UserError: the name is taken.
    """

    def make(build: Build) -> FunctionPass:
        def run_function(self: FunctionPass, function: Function) -> Function:
            return rewrite(function, pattern, build, name)

        members = {
            "name": name,
            "run_function": run_function,
            "__doc__": build.__doc__ or f"Rewrites by the rule ``{name}``.",
            "__module__": build.__module__,
        }
        cls = type(name, (FunctionPass,), members)
        return register_pass(dataclass(frozen=True)(cls))()

    return make


PATTERNS: Registry[NodePattern] = Registry("pattern")


def register_pattern(name: str, pattern: NodePattern) -> NodePattern:
    """Make ``pattern`` known as ``name`` (``"library.what_it_computes"``), to ``partition`` for one.

    Where two match the same node, the one that was registered first wins: larger ones first.

    Raises:
        UserError: the name is taken.
    """
    return PATTERNS.add(name, pattern)


def patterns(prefix: str = "") -> dict[str, NodePattern]:
    """Registered patterns whose name begins with ``prefix``, in the order of registration."""
    return {name: p for name, p in PATTERNS.items() if name.startswith(prefix)}
