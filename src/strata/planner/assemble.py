"""From a fused graph function to its record: launches, places of buffers, and the kernels to compile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from strata.core.dims import Dim
from strata.core.errors import UnsupportedError, UserError
from strata.graph.nodes import Function, Node
from strata.graph.types import CACHE_SYMBOLS, CacheType, TensorType
from strata.loop.nodes import Func
from strata.lower.context import PAGED_FIELDS
from strata.passes.memory_plan import MemoryPlan, plan_memory, sequence_limit, storage
from strata.runtime.records import (
    CACHE_DIMS,
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    KernelRecord,
    Launch,
    TensorSpec,
)
from strata.runtime.tensors import aligned_size

from .choose import Favour, choose
from .composites import node_options
from .options import PlanOptions
from .stacks import Kernels, StackBuilder, group_body
from .types import Candidate, Choice, Stack
from .workspace import WORKSPACE, upper_bytes


@dataclass(frozen=True, slots=True)
class PlannedLaunch:
    """One launch with its stack and choices, for reports and ``plan.json``.

    Attributes:
        node: Name of the node, unique in its function.
        op: Its heaviest op.
        stack: All candidates.
        choices: Which of them runs when.
        group: The node itself (the stack's is the first of those that share the stack).
        operands: For each operand of ``group`` the position of its buffer among the launch's arguments;
            ``None`` for a cache, whose fields have several.
        rows: The size that the candidates' estimates are for.
    """

    node: str
    op: str
    stack: Stack
    choices: tuple[Choice, ...]
    group: Node
    operands: tuple[int | None, ...]
    rows: Dim


@dataclass(frozen=True, slots=True)
class PlannedFunction:
    """Everything about one compiled function.

    Attributes:
        record: What the runtime reads.
        funcs: Loop functions to compile, by kernel name.
        kernels: Their signatures.
        launches: The plan.
        memory: The memory plan of the graph values.
    """

    record: FunctionRecord
    funcs: dict[str, Func]
    kernels: tuple[KernelRecord, ...]
    launches: tuple[PlannedLaunch, ...]
    memory: MemoryPlan


@dataclass
class _Assembler:
    function: Function
    params: Mapping[str, int]
    constants: Mapping[int, str]
    memory: MemoryPlan
    limits: Mapping[str, int]  # upper bounds of dims that are tighter than their own
    places: dict[int, ArgRef] = field(default_factory=dict)
    workspace_bytes: int = 0

    def locate(self, node: Node) -> ArgRef:
        """Where the value of a node lives."""
        node = storage(node)
        known = self.places.get(id(node))
        if known is not None:
            return known
        if node.op == "param":
            return ArgRef(ArgKind.PARAM, self.params[node.attrs["name"]])
        if node.op == "const":
            return ArgRef(ArgKind.PARAM, self.params[self.constants[id(node)]])
        if isinstance(node.type, CacheType):
            return self.locate(next(x for x in node.inputs if isinstance(x.type, CacheType)))
        return ArgRef(ArgKind.ARENA, self.memory.offsets[id(node)])

    def place_boundary(self) -> None:
        """Inputs and outputs; a reshaped output is written by the producer of what it views."""
        for number, node in enumerate(self.function.inputs):
            kind = ArgKind.CACHE if isinstance(node.type, CacheType) else ArgKind.INPUT
            self.places[id(node)] = ArgRef(kind, number)
        number = 0
        for output in self.function.outputs:
            if isinstance(output.type, CacheType):
                continue
            producer = storage(output)
            if id(producer) in self.places or producer.op in ("param", "const"):
                raise UnsupportedError(
                    f"{self.function.name}: output {number} is an input, a param or another output; "
                    "return a computed value (multiply by 1 to copy)"
                )
            self.places[id(producer)] = ArgRef(ArgKind.OUTPUT, number)
            number += 1

    def args(self, node: Node, kernels: Kernels) -> tuple[ArgRef, ...]:
        """Buffer arguments of a launch."""
        refs: list[ArgRef] = []
        offset = self.memory.arena_bytes
        sizes = iter(upper_bytes(buffer, self.limits) for buffer in kernels.workspace)
        for binding in kernels.bindings:
            if binding.operand == WORKSPACE:
                refs.append(ArgRef(ArgKind.ARENA, offset))
                offset += aligned_size(next(sizes))
            elif binding.operand < 0:
                refs.append(self.locate(node))
            elif binding.field:
                cache = self.locate(node.inputs[binding.operand])
                layer = node.attrs["layer"] + binding.layer if binding.field in PAGED_FIELDS else 0
                refs.append(ArgRef(ArgKind.CACHE, cache.index, binding.field, layer))
            else:
                refs.append(self.locate(node.inputs[binding.operand]))
        self.workspace_bytes = max(self.workspace_bytes, offset - self.memory.arena_bytes)
        return tuple(refs)


def plan_function(
    function: Function, builder: StackBuilder, params: Mapping[str, int], constants: Mapping[int, str]
) -> PlannedFunction:
    """Choose kernels for every launch of a fused function and lay out its memory.

    Args:
        function: After the ``fuse`` pass.
        builder: Lowers and schedules.
        params: Position of every param in the param table.
        constants: Param name of every array constant, by node id.
    """
    asm = _Assembler(function, params, constants, plan_memory(function), sequence_limit(function))
    asm.place_boundary()
    launches: list[Launch] = []
    planned: list[PlannedLaunch] = []
    funcs: dict[str, Func] = {}
    groups = launch_nodes(function)
    for node, name in zip(groups, launch_names(groups), strict=True):
        kernels = builder.kernels_of(node)
        candidates = kernels.stack.candidates
        op = kernels.task.anchor.op
        choices = choose(candidates, kernels.rows, favour(node_options(builder.options, node), name, op))
        for choice in choices:
            func = candidates[choice.candidate].func
            funcs[func.name] = func
        picked = tuple(KernelChoice(candidates[c.candidate].func.name, c.when) for c in choices)
        launches.append(Launch(name, picked, asm.args(node, kernels), op, len(kernels.workspace)))
        operands = _operands(kernels, len(node.inputs))
        planned.append(PlannedLaunch(name, op, kernels.stack, choices, node, operands, kernels.rows))
    record = FunctionRecord(
        function.name,
        tuple(_spec(n.attrs["name"], n) for n in function.inputs),
        tuple(_spec(f"out{k}", n) for k, n in enumerate(function.outputs) if isinstance(n.type, TensorType)),
        _dims(function, funcs),
        tuple(launches),
        asm.memory.arena_bytes + asm.workspace_bytes,
    )
    kernel_records = tuple(kernel_record(f) for f in funcs.values())
    return PlannedFunction(record, funcs, kernel_records, tuple(planned), asm.memory)


def launch_nodes(function: Function) -> list[Node]:
    """The nodes of a fused function that are launches."""
    return [n for n in function.nodes if n.op not in ("input", "param", "const", "reshape", "view")]


def launch_names(groups: Sequence[Node]) -> list[str]:
    """A distinct name for every launch: the node's own; nodes that share one also get what they compute
    (``"layers.0.attn:kv_append"``) and, if that is not enough, a number.
    """
    bodies = [re.sub(r"_\d+$", "", group_body(node).name) for node in groups]
    shared = Counter(node.name for node in groups)
    names = [
        (f"{node.name}:{body}" if shared[node.name] > 1 else node.name) if node.name else body
        for node, body in zip(groups, bodies, strict=True)
    ]
    repeated = Counter(names)
    seen: Counter[str] = Counter()
    for k, name in enumerate(names):
        if repeated[name] > 1:
            names[k] = f"{name}#{seen[name]}"
            seen[name] += 1
    return names


def _operands(kernels: Kernels, count: int) -> tuple[int | None, ...]:
    """Where each operand of a group is among the arguments; ``None`` for caches."""
    places = {b.operand: k for k, b in enumerate(kernels.bindings) if not b.field}
    return tuple(places.get(number) for number in range(count))


def favour(options: PlanOptions, name: str, op: str) -> Favour:
    """Which candidates of a node the user wants: those of its first pin, else those that are preferred."""
    pins = options.pins_of(name, op)

    def holds(candidate: Candidate, size: int | None) -> bool:
        pin = next((p for p in pins if p.covers(size)), None)
        return options.prefers(candidate.name) if pin is None else fnmatchcase(candidate.name, pin.candidate)

    ranges = [p.sizes for p in pins if p.sizes is not None]
    return Favour(holds, tuple(border for lo, hi in ranges for border in (lo - 1, hi)))


def check_obeyed(functions: Iterable[PlannedFunction], options: PlanOptions) -> None:
    """Every pin and every preference has to say something about the model at hand.

    Raises:
        UserError: one does not; lists the candidates that there are.
    """
    launches = [x for f in functions for x in f.launches]
    for pin in options.pins:
        nodes = [x for x in launches if pin.holds_for(x.node, x.op)]
        _require(f"--pin {pin}", nodes, launches, lambda c, pin=pin: fnmatchcase(c.name, pin.candidate))
    for prefix in options.prefer:
        only = PlanOptions(prefer=(prefix,))
        _require(f"--prefer {prefix}", launches, launches, lambda c, only=only: only.prefers(c.name))


def _require(
    what: str,
    nodes: Sequence[PlannedLaunch],
    launches: Sequence[PlannedLaunch],
    holds: Callable[[Candidate], bool],
) -> None:
    if not nodes:
        names = list(dict.fromkeys(x.node for x in launches))
        raise UserError(f"{what}: no node has this name or op; there are {shorten(names)}")
    if not any(holds(c) for x in nodes for c in x.stack.candidates):
        names = list(dict.fromkeys(c.name for x in nodes for c in x.stack.candidates))
        raise UserError(f"{what}: no such candidate; there are {shorten(names)}")


def shorten(names: Sequence[str], limit: int = 12) -> str:
    """The first few names."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _spec(name: str, node: Node) -> TensorSpec:
    if isinstance(node.type, CacheType):
        return TensorSpec(name, "cache", ())
    shape = tuple(d if isinstance(d, int) else str(d) for d in node.type.shape)
    return TensorSpec(name, node.type.dtype.name, shape)


def _dims(function: Function, funcs: Mapping[str, Func]) -> tuple[DimRange, ...]:
    """Every symbolic dim that the function's inputs or kernels need; cache dims come from the cache table."""
    found = {d.name: d for func in funcs.values() for d in func.dims}
    found.update({d.name: d for d in function.dims})
    if any(isinstance(n.type, CacheType) for n in function.inputs):
        for dim in CACHE_SYMBOLS:
            found.setdefault(dim.name, dim)
    order = sorted(found, key=lambda name: (name in CACHE_DIMS, name))
    return tuple(DimRange(name, found[name].lo, found[name].hi) for name in order)


def kernel_record(func: Func) -> KernelRecord:
    """Signature of a kernel for the runtime."""
    specs = tuple(
        TensorSpec(p.name, p.dtype.name, tuple(d if isinstance(d, int) else str(d) for d in p.shape))
        for p in func.params
    )
    return KernelRecord(func.name, specs, func.num_outputs, tuple(d.name for d in func.dims))
