"""The static memory plan: where in one arena every intermediate value of a fused function lives.

:func:`plan_memory` is the analysis, which the planner uses. The pass ``plan_memory`` writes its result down
as notes, ``!{offset=4096}``, and the analysis follows the notes that it finds: what a person or another pass
pins stays where it is, as long as no two values that live together share bytes.

Launches run in the order of ``Function.nodes``; a value is *live* from the launch that makes it to the last
launch that reads it, itself or through a view, or to where the notes of ``kill_dead`` end it. Values that are
never live together may share bytes. Sizes are upper bounds over the ranges of the symbolic dims: one plan
holds for every call::

    bytes                       a: 0..3   b: 1..2   c: 3..4   (first and last launch)
    4096 ┌───────┐
         │   b   │┌───────┐     placed by falling size, each into the smallest gap that is free
       0 │   a   ││   c   │     for its whole life (best fit), else on top
         └───────┘└───────┘→ launches

Not in the arena: inputs, params, constants, results of the function (they have memory of their own, through
views too), and KV caches (appends are in place; ``graph.check`` makes sure that nobody reads an old page).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

from strata.core.dims import Dim, DimExpr, SymDim, bounds, product
from strata.core.errors import UserError, VerifyError
from strata.graph.nodes import Function, Node, rewrite, with_notes
from strata.graph.types import NUM_SEQUENCES, TensorType
from strata.ir.passes import OptionError, register_pass
from strata.runtime.tensors import ALIGNMENT_BYTES, aligned_size

from .base import VIEWS, FunctionPass
from .kill_dead import intermediates, last_launches, launches, storage

MAX_ARENA_BYTES = 1 << 46
OFFSET_NOTE = "offset"


@dataclass(frozen=True, slots=True)
class Buffer:
    """One value in the arena.

    Attributes:
        node: The launch that makes it.
        size_bytes: Upper bound, rounded up to the alignment.
        first, last: Launches (numbers) between which it is live, both included.
    """

    node: Node
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where values live.

    Attributes:
        offsets: By ``id`` of a launch node: byte offset of its value in the arena.
        arena_bytes: Size of the arena.
        views: By ``id`` of a view (``view`` or bare ``reshape``): the launch or leaf whose memory it shows.
        outputs: By ``id`` of a node that makes a tensor result of the function: the number of that result.
        order: Launches in execution order.
        buffers: What ``offsets`` places, in execution order.
        max_live_bytes: No plan for this order can have a smaller arena.
    """

    offsets: dict[int, int]
    arena_bytes: int
    views: dict[int, Node]
    outputs: dict[int, int]
    order: tuple[Node, ...]
    buffers: tuple[Buffer, ...] = field(repr=False)
    max_live_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the arena would need without reuse."""
        return sum(b.size_bytes for b in self.buffers)

    @property
    def reuse_ratio(self) -> float:
        """``total_bytes / arena_bytes``: 1.0 is no reuse."""
        return self.total_bytes / self.arena_bytes if self.arena_bytes else 1.0

    def report(self) -> str:
        """One line: sizes and how good the plan is."""
        return (
            f"arena {self.arena_bytes} bytes for {len(self.buffers)} values of {self.total_bytes} bytes "
            f"(reuse {self.reuse_ratio:.2f}x); at least {self.max_live_bytes} bytes are live at once"
        )


def upper_bound(dim: Dim, limits: Mapping[str, int]) -> int:
    """Largest value of ``dim`` where symbol ``s`` is at most ``limits[s]`` (or its own upper bound)."""
    if isinstance(dim, SymDim):
        return min(dim.hi, limits.get(dim.name, dim.hi))
    if isinstance(dim, DimExpr):
        dim = DimExpr(tuple((c, tuple(_limited(s, limits) for s in syms)) for c, syms in dim.terms))
    return bounds(dim)[1]


def _limited(sym: SymDim, limits: Mapping[str, int]) -> SymDim:
    hi = min(sym.hi, limits.get(sym.name, sym.hi))
    return SymDim(sym.name, min(sym.lo, hi), hi, sym.multiple_of)


def plan_memory(
    function: Function, limits: Mapping[str, int] | None = None, reuse: bool = True
) -> MemoryPlan:
    """Place every intermediate value of a fused function in one arena.

    Args:
        function: After the ``fuse`` pass.
        limits: Upper bounds of symbolic dims by name, where they are tighter than the dims' own. A pass has
            no more sequences than tokens, so the rows of ``last_tokens`` bound ``num_seqs`` in any case.
        reuse: Whether values that never live together may share bytes.

    Raises:
        OptionError: notes contradict each other or the graph.
        UserError: a dim has no usable upper bound, so that the arena would be larger than 64 TiB.
        VerifyError: two results of the function share memory (``fuse`` copies one of them).
    """
    known = {**sequence_limit(function, limits), **(limits or {})}
    order = launches(function)
    outputs = _outputs(function)
    buffers = _buffers(function, order, known, reuse)
    offsets = _place(buffers, len(order))
    arena_bytes = max((offsets[id(b.node)] + b.size_bytes for b in buffers), default=0)
    if arena_bytes > MAX_ARENA_BYTES:
        big = max(buffers, key=lambda b: b.size_bytes).node
        what = f"{big.name or big.op} is {big.type}"
        raise UserError(
            f"@{function.name}: the arena would have {arena_bytes} bytes; {what}; "
            "give its symbolic dims smaller upper bounds"
        )
    return MemoryPlan(
        offsets,
        arena_bytes,
        {id(n): storage(n) for n in function.nodes if n.op in VIEWS},
        outputs,
        order,
        buffers,
        _max_live_bytes(buffers, len(order)),
    )


def sequence_limit(function: Function, limits: Mapping[str, int] | None = None) -> dict[str, int]:
    """Upper bound of ``num_seqs`` by its name: rows that ``last_tokens`` chooses from; none without it."""
    rows, known = list[int](), limits or {}
    for node in function.nodes:
        inner = node.attrs["body"].nodes if node.op == "fused" else (node,)
        rows += [upper_bound(n.inputs[0].tensor.shape[0], known) for n in inner if n.op == "last_tokens"]
    return {NUM_SEQUENCES.name: min(max(rows), NUM_SEQUENCES.hi)} if rows else {}


def _outputs(function: Function) -> dict[int, int]:
    outputs: dict[int, int] = {}
    tensors = [n for n in function.outputs if isinstance(n.type, TensorType)]
    for number, node in enumerate(tensors):
        if id(storage(node)) in outputs:
            raise VerifyError(
                f"@{function.name}: results {outputs[id(storage(node))]} and {number} share memory"
            )
        outputs[id(storage(node))] = number
    return outputs


def _buffers(
    function: Function, order: tuple[Node, ...], limits: Mapping[str, int], reuse: bool
) -> tuple[Buffer, ...]:
    number = {id(n): k for k, n in enumerate(order)}
    last = last_launches(function)
    always = (0, len(order) - 1)
    return tuple(
        Buffer(n, _size_bytes(n.tensor, limits), *((number[key], last[key]) if reuse else always))
        for key, n in intermediates(function).items()
    )


def _size_bytes(type_: TensorType, limits: Mapping[str, int]) -> int:
    elements = upper_bound(product(type_.shape), limits)
    return aligned_size(elements * type_.dtype.itemsize_bytes)


def _place(buffers: tuple[Buffer, ...], num_launches: int) -> dict[int, int]:
    """Offsets by id of the node: pinned ones, then largest first, each into the tightest gap of its life."""
    offsets: dict[int, int] = {}
    live: list[list[Buffer]] = [[] for _ in range(num_launches)]  # placed so far, by launch
    pinned = {id(b.node): offset for b in buffers if (offset := _pinned(b.node)) is not None}
    for buffer in sorted(buffers, key=lambda b: (id(b.node) not in pinned, -b.size_bytes, b.first)):
        span = live[buffer.first : buffer.last + 1]
        beside = {id(b.node): b for at in span for b in at}
        if id(buffer.node) in pinned:
            offsets[id(buffer.node)] = pinned[id(buffer.node)]
            for other in beside.values():
                _check_apart(buffer, other, offsets)
        else:
            taken = sorted((offsets[k], offsets[k] + b.size_bytes) for k, b in beside.items())
            offsets[id(buffer.node)] = _best_fit(taken, buffer.size_bytes)
        for at in span:
            at.append(buffer)
    return offsets


def _pinned(node: Node) -> int | None:
    """The offset that a note on ``node`` says."""
    offset = node.notes.get(OFFSET_NOTE)
    if offset is None:
        return None
    if type(offset) is not int or offset < 0 or offset % ALIGNMENT_BYTES:
        raise OptionError(
            f"note offset of {node.op} {node.name}: got {offset!r}; expected a multiple of {ALIGNMENT_BYTES}"
        )
    return offset


def _check_apart(a: Buffer, b: Buffer, offsets: Mapping[int, int]) -> None:
    begin_a, begin_b = offsets[id(a.node)], offsets[id(b.node)]
    if begin_a < begin_b + b.size_bytes and begin_b < begin_a + a.size_bytes:
        raise OptionError(
            f"note offset of {a.node.op} {a.node.name}: bytes {begin_a}..{begin_a + a.size_bytes - 1} are "
            f"also of {b.node.op} {b.node.name} ({begin_b}..{begin_b + b.size_bytes - 1}), which lives at "
            "the same time; change the notes, or drop those of another graph: clear_notes{names=[offset]}"
        )


def _best_fit(taken: list[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of at least ``size`` between the sorted ranges ``taken``, else their end."""
    best: tuple[int, int] | None = None  # (width, start)
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = start - end, end
        end = max(end, stop)
    return best[1] if best is not None else end


def _max_live_bytes(buffers: tuple[Buffer, ...], launches: int) -> int:
    """The most bytes that are live during one launch."""
    change = [0] * (launches + 1)
    for buffer in buffers:
        change[buffer.first] += buffer.size_bytes
        change[buffer.last + 1] -= buffer.size_bytes
    return max(accumulate(change))


@register_pass
@dataclass(frozen=True)
class PlanMemory(FunctionPass):
    """Notes on every launch where in the arena its value lives: ``!{offset=4096}``, in bytes.

    Stage: fused graph -> the same; offsets that are there already stay.
    Preserves: everything but the notes.

    Attributes:
        reuse: Whether values that never live together may share bytes; without, every value can be read after
            a run.
    """

    name: ClassVar[str] = "plan_memory"
    reuse: bool = True

    def run_function(self, function: Function) -> Function:
        """Add the notes.

        Raises:
            OptionError: notes contradict each other or the graph.
            UserError: a dim has no usable upper bound.
        """
        offsets = plan_memory(function, reuse=self.reuse).offsets
        order = iter([offsets.get(id(n)) for n in function.nodes])
        return rewrite(function, lambda node: _noted(node, next(order)))


def _noted(node: Node, offset: int | None) -> Node:
    return node if offset is None else with_notes(node, **{OFFSET_NOTE: offset})
