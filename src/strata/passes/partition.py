"""``partition``: what a registered pattern matches becomes one ``fused`` node with the pattern's name on it.

::

    %1 = matmul(%x, %w)                     %2 = fused(%x, %w, %b) {
    %2 = add(%1, %b)             ->           body=func @matmul_add(...)
                                            } !{composite="openblas.matmul_bias"}

The rest of the graph is untouched, ``fuse`` leaves the new nodes alone, and the planner sees the note:
sources of candidates can offer the library for it. The body says what it computes, so all others stay
possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from strata.graph.nodes import Function, Module, Node, rebuild, with_notes
from strata.ir.passes import OptionError, Pass, register_pass

from .bodies import Bodies, launch
from .grouping import Group, pattern
from .patterns import PATTERNS, Match, NodePattern, find_named, patterns

COMPOSITE_NOTE = "composite"


@register_pass
@dataclass(frozen=True)
class Partition(Pass[Module]):
    """Wraps what patterns match into ``fused`` nodes with the note ``composite``, the name of the pattern.

    Where two patterns match the same node, the one registered first wins; of one pattern, the match nearer
    to the results.

    Stage: any graph -> graph with ``fused`` nodes.
    Preserves: values bit by bit, signatures, and every node that no pattern matches.

    Attributes:
        patterns: Names of registered patterns, or beginnings of names that end in a dot (``"openblas."``).
    """

    name: ClassVar[str] = "partition"
    patterns: tuple[str, ...] = ()

    def run(self, module: Module) -> Module:
        """Partition every function; equal bodies become one object.

        Raises:
            OptionError: no pattern has such a name.
        """
        chosen = self._chosen()
        bodies = Bodies()
        return module.map(lambda f: _partitioned(f, chosen, bodies))

    def _chosen(self) -> dict[str, NodePattern]:
        wanted: set[str] = set()
        for word in self.patterns:
            found = list(patterns(word)) if word.endswith(".") else [word] if word in PATTERNS else []
            if not found:
                known = ", ".join(PATTERNS) or "none"
                raise OptionError(f"partition: no pattern {word!r}; registered: {known}")
            wanted.update(found)
        return {name: pattern for name, pattern in PATTERNS.items() if name in wanted}


def _partitioned(function: Function, chosen: Mapping[str, NodePattern], bodies: Bodies) -> Function:
    places = {id(found.root): (name, found) for name, found in find_named(function, chosen)}
    inside = {id(m) for _, found in places.values() for m in found.members}
    new: dict[int, Node] = {}
    for node in function.nodes:
        if id(node) in places:
            name, found = places[id(node)]
            made = launch(_group(found), lambda old: new[id(old)], bodies)
            new[id(node)] = with_notes(made, **{COMPOSITE_NOTE: name})
        elif id(node) not in inside:
            new[id(node)] = rebuild(node, [new[id(i)] for i in node.inputs])
    return function.with_outputs([new[id(n)] for n in function.outputs])


def _group(found: Match) -> Group:
    # The heaviest op, the first of equals, gives the launch its name.
    group = Group(found.root, max(found.members, key=pattern))
    for member in found.members:
        group.add(member)
    return group
