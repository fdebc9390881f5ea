"""Build the stacked graph of a function: lower each group once, collect candidates, estimate them.

Groups with the same text (one layer and the next, a step of prefill and of decode) share one stack and its
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from strata.core.dims import Dim, SymDim, substitute_dims
from strata.core.dims import bounds as dim_bounds
from strata.core.errors import UserError, VerifyError
from strata.core.knobs import current
from strata.graph.nodes import Function, LoopText, Node
from strata.graph.types import TensorType
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.layout import Layout
from strata.loop.nodes import Buffer, Func
from strata.lower import Binding
from strata.passes.base import function_key
from strata.passes.loops import LoopStage, run_loop_passes
from strata.runtime.records import DimRange
from strata.target import Target

from .calibrate import calibrated
from .candidates import Offer, Task, offers_for
from .candidates.tuned import open_database
from .composites import COMPOSITE_NOTE, node_options
from .cost import is_flat_matmul, sample_sizes
from .fuse_loops import LOOP_NOTE, lowered_node, operand_layouts
from .measure import is_worthwhile, measure_task
from .options import PlanOptions
from .types import Candidate, Estimate, Stack
from .workspace import hoist_workspace, share_workspace, with_workspace

_NOTES = (LOOP_NOTE, COMPOSITE_NOTE)  # they tell apart nodes of equal bodies
Estimates = tuple[tuple[int, Estimate], ...]


MAX_COMPARED = 4096  # rows; what is fastest there is taken for more


@dataclass(frozen=True, slots=True)
class Kernels:
    """Candidates of one distinct group.

    Attributes:
        task: The group.
        stack: The candidates; every candidate's ``func`` has the same parameters.
        bindings: What each buffer parameter is bound to.
        workspace: What the ``WORKSPACE`` parameters are bound to, in their order.
    """

    task: Task
    stack: Stack
    bindings: tuple[Binding, ...]
    workspace: tuple[Buffer, ...] = ()

    @property
    def rows(self) -> Dim:
        """Number of rows that the choice depends on."""
        return self.task.rows


@dataclass
class StackBuilder:
    """Builds and shares the stacks of a module's functions.

    Attributes:
        layouts: Stored layout by param name.
        target: The machine.
        options: What the user said.
        loops: The module's own loop functions; see the pass ``fuse_loops``.
        measuring: Called with the name of a task before its candidates are timed, which may take seconds.
    """

    layouts: Mapping[str, Layout]
    target: Target
    options: PlanOptions = field(default_factory=PlanOptions)
    loops: Mapping[str, LoopText] = field(default_factory=dict)
    measuring: Callable[[str], None] | None = None
    known: dict[Hashable, Kernels] = field(default_factory=dict)

    def kernels_of(self, node: Node) -> Kernels:
        """The kernels for one launch site.

        Raises:
            UserError: the node is no ``fused`` one, or a user kernel is wrong.
        """
        body = group_body(node)
        layouts = operand_layouts(node, self.layouts)
        dims = tuple((d.name, d.lo, d.hi, d.multiple_of) for d in body.dims)
        key = (function_key(body), dims, tuple(layouts.items()), tuple(node.notes.get(k) for k in _NOTES))
        if key not in self.known:
            anchor = anchor_op(body)
            lowered = lowered_node(node, f"k{len(self.known)}_{anchor.op}", layouts, self.loops)
            (func,) = run_loop_passes(LoopStage.NAIVE, [lowered.func])
            lowered = replace(lowered, func=func)
            task = Task(node, body, anchor, layouts, lowered, choice_rows(anchor), self.target)
            self.known[key] = self._build(task)
        return self.known[key]

    def _build(self, task: Task) -> Kernels:
        base = f"k{len(self.known)}_{task.anchor.op}"
        offers = offers_for(task, node_options(self.options, task.node))
        if not offers:
            raise VerifyError(f"{base}: no rule proposes a schedule")
        offers = [
            replace(o, func=_renamed(o.func, base if len(offers) == 1 else f"{base}_c{number}"))
            for number, o in enumerate(offers)
        ]
        hoisted = [hoist_workspace(o.func) for o in offers]
        funcs, slots = share_workspace(hoisted, task.lowered.func.num_outputs)
        funcs = run_loop_passes(LoopStage.SCHEDULED, funcs)
        for offer, func in zip(offers, funcs, strict=True):
            if current().verify:
                check(func, LOOP_LOWERED)
            if _signature(func, offer.when) != _signature(funcs[0], offer.when):
                raise VerifyError(
                    f"{func.name}: candidate {offer.name} takes other parameters than {offers[0].name}"
                )
        candidates = tuple(
            Candidate(offer.name, func, offer.trace, offer.origin, offer.when, estimates)
            for offer, func, estimates in zip(
                offers, funcs, self._estimates(task, offers, funcs), strict=True
            )
        )
        bindings = with_workspace(task.lowered.bindings, task.lowered.func.num_outputs, len(slots))
        return Kernels(task, Stack(task.node, candidates), bindings, slots)

    def _estimates(self, task: Task, offers: Sequence[Offer], funcs: Sequence[Func]) -> list[Estimates]:
        """Cost of every candidate at the same sizes: measured if asked for or if a model is missing."""
        sizes = compared_sizes(task, offers)
        models = calibrated(task, offers, open_database(self.options))
        asked = bool(self.options.measure) or any(m is None for m in models)
        if len(offers) > 1 and (asked or (self.options.measure is None and is_worthwhile(task, offers))):
            if self.measuring is not None:
                self.measuring(funcs[0].name.removesuffix("_c0"))
            return measure_task(task, offers, funcs, sizes, quick=not asked)
        return [tuple((size, m(size)) for size in sizes) for m in models if m is not None]


def compared_sizes(task: Task, offers: Sequence[Offer]) -> list[int]:
    """Values of the task's rows at which candidates are compared, borders of their ranges included."""
    lo, hi = dim_bounds(task.rows)
    if len(offers) == 1:
        return sorted({lo, min(hi, 512), hi})
    borders = {
        x
        for o in offers
        for r in o.when
        if isinstance(task.rows, SymDim) and r.dim == task.rows.name
        for x in (r.lo - 1, r.lo, r.hi, r.hi + 1)
    }
    last = max(lo, min(hi, MAX_COMPARED))
    return sorted({*sample_sizes(lo, last), *(x for x in borders if lo <= x <= hi)})


def group_body(node: Node) -> Function:
    """The body of a fused node.

    Raises:
        UserError: it is another op.
    """
    if node.op == "fused":
        return node.attrs["body"]
    raise UserError(
        f"pipeline: left node {node.name or node.op} alone; expected fused nodes only: end it with fuse"
    )


def anchor_op(body: Function) -> Node:
    """The node that gives a group its name and cost: the heaviest pattern, the first of equals."""
    inner = [n for n in body.nodes if n.op not in ("input", "param", "const")]
    return max(inner, key=lambda n: n.opdef.pattern) if inner else body.outputs[0]


def choice_rows(anchor: Node) -> Dim:
    """The dim that a choice of kernels may depend on: the rows of a matmul, else the first symbolic dim."""
    if is_flat_matmul(anchor):
        return anchor.tensor.shape[-2]
    if isinstance(anchor.type, TensorType):
        return next((d for d in anchor.type.shape if isinstance(d, SymDim)), 1)
    return 1


def _renamed(func: Func, name: str) -> Func:
    return Func(name, func.params, func.body, func.num_outputs)


def _signature(func: Func, when: tuple[DimRange, ...]) -> tuple[object, ...]:
    """What a caller has to hand in: candidates of one stack are called in the same way.

    For one size, a symbolic dim and the number are the same.
    """
    fixed = {r.dim: r.lo for r in when if r.lo == r.hi}
    shapes = [tuple(substitute_dims(d, fixed) for d in p.shape) for p in func.params]
    return (func.num_outputs, *((shape, p.dtype) for shape, p in zip(shapes, func.params, strict=True)))
