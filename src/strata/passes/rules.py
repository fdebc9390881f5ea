"""Rewrite rules as data, and the engine that applies them bottom-up until none fires.

A rule sees a node whose operands are in normal form and returns a node of the same type that computes the
same, or ``None``. Rules must make progress: :func:`simplify` stops after ``MAX_STEPS`` rewrites of one node
and names the rules that chase each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from strata.core.errors import VerifyError
from strata.graph.nodes import Function, Node, rebuild

MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewrite.

    Attributes:
        name: For messages and traces.
        ops: Ops of the nodes that it looks at.
        apply: Node to better node of the same type, or ``None``.
        why: Why the result is the same, or better.
    """

    name: str
    ops: tuple[str, ...]
    apply: Callable[[Node], Node | None]
    why: str


@dataclass(slots=True)
class _Engine:
    by_op: dict[str, list[Rule]]
    normal: dict[int, Node] = field(default_factory=dict)  # id -> itself: the nodes on which no rule fires
    fired: dict[str, int] = field(default_factory=dict)

    def normalize(self, node: Node) -> Node:
        """The normal form. Operands are normal already, so recursion is as deep as what one rule builds."""
        trail: list[str] = []
        while id(node) not in self.normal:
            node = rebuild(node, [self.normalize(i) for i in node.inputs])
            rule, better = self._first(node)
            if rule is None or better is None:
                self.normal[id(node)] = node
                break
            if better.type != node.type:
                raise VerifyError(
                    f"rule {rule.name}: {node.op} {node.name}: got {better.type}; expected {node.type}"
                )
            trail.append(rule.name)
            self.fired[rule.name] = self.fired.get(rule.name, 0) + 1
            if len(trail) > MAX_STEPS:
                names = ", ".join(dict.fromkeys(trail[-10:]))
                raise VerifyError(f"rules do not end on {node.op} {node.name}; the last ones: {names}")
            node = better
        return node

    def _first(self, node: Node) -> tuple[Rule | None, Node | None]:
        for rule in self.by_op.get(node.op, ()):
            better = rule.apply(node)
            if better is not None:
                return rule, better
        return None, None


def simplify(function: Function, rules: Iterable[Rule], fired: dict[str, int] | None = None) -> Function:
    """Apply ``rules`` to every node of ``function`` until none fires.

    Args:
        function: What to rewrite; unchanged.
        rules: Tried in this order on each node.
        fired: If given, counts how often each rule fired.

    Raises:
        VerifyError: a rule changed a type, or rules chase each other.
    """
    engine = _Engine({}, fired={} if fired is None else fired)
    for rule in rules:
        for op in rule.ops:
            engine.by_op.setdefault(op, []).append(rule)
    new: dict[int, Node] = {}
    for node in function.nodes:
        new[id(node)] = engine.normalize(rebuild(node, [new[id(i)] for i in node.inputs]))
    return function.with_outputs([new[id(n)] for n in function.outputs])
