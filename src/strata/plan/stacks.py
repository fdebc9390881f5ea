"""Build the stacked graph of a function: lower each group once, propose schedules, estimate them.

Groups with the same text (one layer and the next, a step of prefill and of decode) share one stack and its
kernels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from strata.core.dims import Dim
from strata.core.dims import bounds as dim_bounds
from strata.core.errors import UserError, VerifyError
from strata.core.knobs import current
from strata.graph.nodes import Function, Node
from strata.graph.types import CACHE_SYMBOLS
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.layout import Layout
from strata.loop.nodes import Alloc, Buffer, For, Func, MemSpace, Stmt, seq
from strata.loop.rewrite import map_stmt, walk_stmts
from strata.lower import Binding, Lowered, lower_group
from strata.passes.base import function_key
from strata.schedule import Proposal, propose, trace_text
from strata.target import Target

from .cost import generic_estimate, matmul_estimate, sample_sizes
from .types import Candidate, Estimate, Stack

SAMPLE_SIZE = 512  # value of symbolic dims where the cost of a group does not decide anything
WORKSPACE = -2  # Binding.operand of an intermediate that needs memory of the step


@dataclass(frozen=True, slots=True)
class Kernels:
    """Candidates of one distinct group.

    Attributes:
        stack: The candidates; every candidate's ``func`` has the same parameters.
        bindings: What each buffer parameter is bound to.
        rows: Number of rows that the choice depends on.
        workspace_bytes: Extra memory per ``WORKSPACE`` parameter, at the upper bounds of the dims.
    """

    stack: Stack
    bindings: tuple[Binding, ...]
    rows: Dim
    workspace_bytes: tuple[int, ...] = ()


@dataclass
class StackBuilder:
    """Builds and shares the stacks of a module's functions.

    Attributes:
        layouts: Stored layout by param name.
        target: The machine.
    """

    layouts: Mapping[str, Layout]
    target: Target
    known: dict[Hashable, Kernels] = field(default_factory=dict)

    def kernels_of(self, node: Node) -> Kernels:
        """The kernels for one launch site."""
        body = group_body(node)
        layouts = {
            number: self.layouts[operand.attrs["name"]]
            for number, operand in enumerate(node.inputs)
            if operand.op == "param" and operand.attrs["name"] in self.layouts
        }
        dims = tuple((d.name, d.lo, d.hi, d.multiple_of) for d in body.dims)
        key = (function_key(body), dims, tuple(layouts.items()))
        if key not in self.known:
            self.known[key] = self._build(node, body, lower_group("naive", body, layouts))
        return self.known[key]

    def _build(self, node: Node, body: Function, lowered: Lowered) -> Kernels:
        anchor = anchor_op(body)
        rows: Dim = anchor.tensor.shape[-2] if anchor.op == "matmul" and anchor.tensor.rank == 2 else 1
        base = f"k{len(self.known)}_{anchor.op}"
        proposals = propose(lowered.func, self.target)
        candidates: list[Candidate] = []
        workspace: tuple[Buffer, ...] = ()
        for number, proposal in enumerate(proposals):
            name = base if len(proposals) == 1 else f"{base}_c{number}"
            hoisted = hoist_workspace(_renamed(proposal.func, name))
            if current().verify:
                check(hoisted.func, LOOP_LOWERED)
            if number and _signature(hoisted.func) != _signature(candidates[0].func):
                raise VerifyError(
                    f"{name}: candidate {proposal.name} takes other parameters than {candidates[0].name}"
                )
            workspace = hoisted.buffers
            estimates = self._estimates(anchor, body, rows, proposal)
            candidates.append(
                Candidate(proposal.name, hoisted.func, trace_text(proposal.trace), {}, (), estimates)
            )
        if not candidates:
            raise VerifyError(f"{base}: no rule proposes a schedule")
        sizes = tuple(_upper_bytes(b) for b in workspace)
        return Kernels(Stack(node, tuple(candidates)), with_workspace(lowered, len(sizes)), rows, sizes)

    def _estimates(
        self, anchor: Node, body: Function, rows: Dim, proposal: Proposal
    ) -> tuple[tuple[int, Estimate], ...]:
        lo, hi = dim_bounds(rows)
        if anchor.op == "matmul" and anchor.tensor.rank == 2:
            n, k = (dim_bounds(d)[1] for d in (anchor.tensor.shape[-1], anchor.inputs[0].tensor.shape[-1]))
            weight_bytes = float(n * k * anchor.inputs[1].tensor.dtype.itemsize_bytes)
            return tuple(
                (m, matmul_estimate(m, n, k, weight_bytes, proposal.rows, self.target, proposal.dot))
                for m in sample_sizes(lo, hi)
            )
        env = {d.name: min(d.hi, SAMPLE_SIZE) for d in (*body.dims, *CACHE_SYMBOLS)}
        return ((1, generic_estimate(body, env, self.target)),)


def group_body(node: Node) -> Function:
    """The body of a fused node, or a body of its own for any other op."""
    if node.op == "fused":
        return node.attrs["body"]
    raise UserError(
        f"pipeline: left node {node.name or node.op} alone; expected fused nodes only: end it with fuse"
    )


def anchor_op(body: Function) -> Node:
    """The node that gives a group its name and cost: the heaviest pattern, the first of equals."""
    inner = [n for n in body.nodes if n.op not in ("input", "param", "const")]
    return max(inner, key=lambda n: n.opdef.pattern) if inner else body.outputs[0]


def _renamed(func: Func, name: str) -> Func:
    return Func(name, func.params, func.body, func.num_outputs)


def _signature(func: Func) -> tuple[object, ...]:
    """What a caller has to hand in: candidates of one stack are called in the same way."""
    return (func.num_outputs, *((p.shape, p.dtype) for p in func.params))


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A function whose global intermediates became parameters (between inputs and outputs)."""

    func: Func
    buffers: tuple[Buffer, ...]


def hoist_workspace(func: Func) -> Hoisted:
    """Turn every global ``alloc`` into a parameter.

    Raises:
        VerifyError: one is inside a loop, whose iterations would share it.
    """
    found: list[Buffer] = []
    for loop in walk_stmts(func):
        for inner in walk_stmts(loop) if isinstance(loop, For) else ():
            if isinstance(inner, Alloc) and inner.buffer.space is MemSpace.GLOBAL:
                raise VerifyError(f"{func.name}: global buffer {inner.buffer.name} is allocated in a loop")

    def change(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Alloc) and stmt.buffer.space is MemSpace.GLOBAL:
            found.append(stmt.buffer)
            return stmt.body
        return stmt

    body = seq(map_stmt(func.body, stmt_fn=change))
    inputs = func.params[: len(func.params) - func.num_outputs]
    outputs = func.params[len(inputs) :]
    hoisted = Func(func.name, (*inputs, *found, *outputs), body, func.num_outputs + len(found))
    return Hoisted(hoisted, tuple(found))


def with_workspace(lowered: Lowered, count: int) -> tuple[Binding, ...]:
    """Bindings with ``count`` workspace parameters between inputs and outputs."""
    split = len(lowered.bindings) - lowered.func.num_outputs
    return (*lowered.bindings[:split], *[Binding(WORKSPACE)] * count, *lowered.bindings[split:])


def _upper_bytes(buffer: Buffer) -> int:
    total = buffer.dtype.itemsize_bytes
    for dim in buffer.shape:
        total *= dim_bounds(dim)[1]
    return total
