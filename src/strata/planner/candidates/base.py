"""What a source of candidates sees, and what it gives: tasks and offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from strata.core.dims import Dim, SymDim, product
from strata.graph.nodes import Function, Node
from strata.loop.layout import Layout
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.lower import Lowered
from strata.planner.options import PlanOptions
from strata.planner.types import Estimate, Origin
from strata.runtime.records import DimRange
from strata.target import Target


@dataclass(frozen=True, slots=True)
class Task:
    """One distinct group of the graph: what has to be computed, whatever way.

    Attributes:
        node: The first launch site of the group.
        body: Its graph function, one result.
        anchor: The node of ``body`` that gives the group its name and cost: the heaviest op.
        layouts: Stored layout by operand number, where it is not row-major.
        lowered: The naive loop function and what its parameters are bound to.
        rows: The dim that the choice among candidates depends on (1 if it does not).
        target: The machine.
    """

    node: Node
    body: Function
    anchor: Node
    layouts: Mapping[int, Layout]
    lowered: Lowered
    rows: Dim
    target: Target
    _key: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def text(self) -> str:
        """Loop IR of the naive function, under a neutral name: equal iff the computation is the same."""
        func = self.lowered.func
        return print_func(Func("task", func.params, func.body, func.num_outputs))

    @property
    def key(self) -> str:
        """Digest of the text (ranges of the symbolic dims left out) and the CPU's instruction sets.

        What was measured for one range of a dim is as true for another one, so ranges are not part of it.
        """
        if not self._key:
            lines = [x for x in self.text.splitlines() if not x.lstrip().startswith("dims ")]
            parts = "\n".join((*lines, self.target.arch, *self.target.features))
            self._key.append(hashlib.sha256(parts.encode()).hexdigest()[:16])
        return self._key[0]

    @property
    def cache_fields(self) -> dict[str, str]:
        """By name of a parameter of the loop function: the field of the KV cache that it is bound to."""
        pairs = zip(self.lowered.func.params, self.lowered.bindings, strict=True)
        return {param.name: binding.field for param, binding in pairs if binding.field}

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the loop function's parameters that are bound to params and constants of the model."""
        pairs = zip(self.lowered.func.params, self.lowered.bindings, strict=True)
        leaves = ("param", "const")
        return tuple(p.name for p, b in pairs if b.operand >= 0 and self.node.inputs[b.operand].op in leaves)

    @property
    def within(self) -> dict[str, str]:
        """By parameter: the one in whose memory it lies, both parts of one weight in stripes."""
        striped = [
            (param, layout.stripes.begin, product(param.shape) * param.dtype.itemsize_bytes)
            for param, binding in zip(self.lowered.func.params, self.lowered.bindings, strict=True)
            if (layout := self.layouts.get(binding.operand)) is not None and layout.stripes
        ]
        owners = {size: param.name for param, begin, size in striped if begin == 0}
        return {p.name: owners[size] for p, begin, size in striped if begin and size in owners}

    @property
    def dims(self) -> tuple[SymDim, ...]:
        """Symbolic dims of the loop function's parameters."""
        return self.lowered.func.dims


Model = Callable[[int], Estimate]  # value of the task's rows -> cost


@dataclass(frozen=True, slots=True)
class Offer:
    """One implementation of a task.

    Attributes:
        name: ``"cpu.matmul.tile6x64"``, ``"openblas"``, ``"user.my_dense"``; unique within the task.
        func: Finalised loop function with the parameters of the task's lowered function (plus global
            intermediates, which get memory of the step).
        trace: Text of the schedule steps that lead to ``func`` from the task's naive function (``ROUNDED``,
            ``MATRIX``: from the one with rounded operands, or for a matrix unit).
        origin: Where it comes from.
        model: Its modelled cost; ``None`` = nobody can say, it has to be measured.
        when: Sizes for which it is correct (empty = all).
    """

    name: str
    func: Func
    trace: str
    origin: Origin
    model: Model | None
    when: tuple[DimRange, ...] = ()


Source = Callable[[Task, PlanOptions], Iterable[Offer]]
