"""The nodes of a compiled function as people see them: operands, candidates, the chosen one, what it costs.

A node is one launch. Its name, op and buffers come from the program's record; its candidates, estimates and
graph text from ``plan.json``, which is read when somebody asks for them. Without a plan (the file is
optional) a node has the kernels that the record names and no estimates.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.core.dims import evaluate, parse_dim
from strata.core.errors import UserError, VerifyError
from strata.core.kv_layout import LAYER_FIELDS

from .records import (
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    KernelRecord,
    Launch,
    ProgramRecord,
    TensorSpec,
)

Plan = Mapping[str, Any]  # the contents of plan.json
PlanSource = Callable[[], Plan]


@dataclass(frozen=True, slots=True)
class Operand:
    """One buffer of a node.

    Attributes:
        name: Input or param of the function, field of the cache, or parameter of the kernel.
        dtype: Element type.
        shape: Ints, and symbolic dims as text.
        place: Where it is.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    place: ArgRef

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a launch does or takes at one size.

    Attributes:
        time_s: Seconds, by ``source``: ``measured``, ``roofline`` or ``model``.
        flop: Arithmetic operations.
        read_bytes, write_bytes: Memory traffic with every operand touched once.
        source: Where ``time_s`` comes from.
    """

    time_s: float
    flop: float
    read_bytes: float
    write_bytes: float
    source: str


PRODUCTS = ("matmul", "quantized_matmul")  # ops that multiply by weights
# The text of a step `tensorize`; it leaves its default intrinsic out.
_TENSORIZE = re.compile(r"\btensorize\(loop=\w+(?:, intrinsic=(\w+))?\)")
_MULTIPLIES = {"": "bf16", "dot2_bf16": "bf16", "dot4_u8i8": "int8", "dot4_u4i8": "int8"}


def multiplies(trace: str) -> str:
    """What a kernel multiplies by: dot products of ``bf16`` or ``int8``, or ``f32``; from its schedule."""
    found = (match[1] or "" for match in _TENSORIZE.finditer(trace))
    return next((_MULTIPLIES[name] for name in found if name in _MULTIPLIES), "f32")


@dataclass(frozen=True, slots=True)
class CandidateInfo:
    """One implementation of a node.

    Attributes:
        name: ``"cpu.matmul.dot6x64"``.
        kernel: Its kernel.
        in_image: Whether the kernel was compiled into the program: those that some size chooses are.
        trace: Schedule steps that made it.
        when: Sizes for which it is legal (all must hold; none = all).
        costs: ``(size, cost)`` in ascending order of size.
    """

    name: str
    kernel: str
    in_image: bool
    trace: str = ""
    when: tuple[DimRange, ...] = ()
    costs: tuple[tuple[int, Cost], ...] = ()

    def cost(self, size: int) -> Cost | None:
        """The estimate at the next sample size from ``size`` on (or the largest), if there is one."""
        if not self.costs:
            return None
        return next((cost for at, cost in self.costs if at >= size), self.costs[-1][1])


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One launch of a compiled function.

    Attributes:
        index: Position in the execution order.
        function: Name of the function.
        name: Unique in the function.
        op: Its heaviest op.
        inputs, outputs: Buffers that the kernel reads and writes; in the kernel's order inputs come first.
        workspace: Buffers between them that the kernel uses as scratch memory.
        choices: Kernels and the sizes that each is chosen for, tried in order.
    """

    index: int
    function: str
    name: str
    op: str
    inputs: tuple[Operand, ...]
    workspace: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    choices: tuple[KernelChoice, ...]
    _details: Callable[[NodeInfo], Mapping[str, Any]] = field(repr=False, compare=False)

    @property
    def details(self) -> Mapping[str, Any]:
        """What ``plan.json`` says of the node (its form is in ``planner.report``); empty without a plan.

        Raises:
            UserError: the plan is damaged or of another program.
        """
        return self._details(self)

    @property
    def candidates(self) -> tuple[CandidateInfo, ...]:
        """All implementations that were considered, in the order of the plan.

        Raises:
            UserError: as :attr:`details`.
        """
        chosen = dict.fromkeys(c.kernel for c in self.choices)
        try:
            found = [_candidate(c, chosen) for c in self.details.get("candidates", ())]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"plan.json: {self.function}: {self.name}: malformed candidate: {error!r}"
            ) from None
        return tuple(found) or tuple(CandidateInfo(kernel, kernel, True) for kernel in chosen)

    @property
    def read_args(self) -> slice:
        """Which of the launch's arguments the inputs are."""
        return slice(0, len(self.inputs))

    @property
    def written_args(self) -> slice:
        """Which of the launch's arguments are written: workspace and outputs."""
        return slice(len(self.inputs), None)

    @property
    def output_args(self) -> slice:
        """Which of the launch's arguments the outputs are."""
        return slice(len(self.inputs) + len(self.workspace), None)

    def kernel(self, dims: Mapping[str, int]) -> str:
        """Name of the kernel that runs for these sizes: of the first choice whose ranges all hold.

        Raises:
            VerifyError: none holds: the record is wrong.
        """
        return choose(self.name, self.choices, dims)

    def chosen(self, dims: Mapping[str, int]) -> CandidateInfo:
        """The candidate that runs for these sizes."""
        kernel = self.kernel(dims)
        return next(
            (c for c in self.candidates if c.kernel == kernel), CandidateInfo(kernel, kernel, in_image=True)
        )

    def size(self, dims: Mapping[str, int]) -> int:
        """The size that the estimates are for."""
        return _evaluate(self.details.get("rows", "1"), dims)

    def cost(self, dims: Mapping[str, int]) -> Cost | None:
        """Estimate of the chosen candidate: its time, and the work at exactly these sizes; ``None`` without a
        plan.
        """
        cost, work = self.chosen(dims).cost(self.size(dims)), self.work(dims)
        if cost is None or work is None:
            return cost
        return Cost(cost.time_s, work["flop"], work["read_bytes"], work["write_bytes"], cost.source)

    def work(self, dims: Mapping[str, int]) -> dict[str, int] | None:
        """``flop``, ``read_bytes`` and ``write_bytes`` of one launch; ``None`` without a plan."""
        found = self.details.get("work")
        return None if found is None else {key: _evaluate(text, dims) for key, text in found.items()}

    def shape(self, operand: Operand, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Extents of an operand."""
        return tuple(_evaluate(d, dims) for d in operand.shape)


def _evaluate(dim: int | str, dims: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else evaluate(parse_dim(dim, {}), dims)


def _candidate(data: Mapping[str, Any], chosen: Iterable[str]) -> CandidateInfo:
    costs = [
        (int(e["size"]), Cost(e["time_s"], e["flop"], e["read_bytes"], e["write_bytes"], str(e["source"])))
        for e in data.get("estimates", ())
    ]
    when = tuple(DimRange(str(r["dim"]), int(r["lo"]), int(r["hi"])) for r in data.get("when", ()))
    costs.sort(key=lambda item: item[0])
    kernel = str(data["kernel"])
    return CandidateInfo(
        str(data["name"]), kernel, kernel in chosen, str(data.get("trace", "")), when, tuple(costs)
    )


def holds(when: Iterable[DimRange], dims: Mapping[str, int]) -> bool:
    """Whether all ranges hold for these sizes."""
    return all(r.lo <= dims[r.dim] <= r.hi for r in when)


def choose(node: str, choices: Sequence[KernelChoice], dims: Mapping[str, int]) -> str:
    """The kernel of the first choice all of whose ranges hold (the last one always does).

    Raises:
        VerifyError: none holds: the record is wrong.
    """
    for choice in choices:
        if holds(choice.when, dims):
            return choice.kernel
    raise VerifyError(f"launch {node}: no kernel for {dict(dims)}; the last choice must have no ranges")


# --- from a record --------------------------------------------------------------------------------------


def function_nodes(
    function: FunctionRecord, record: ProgramRecord, plan: PlanSource | None = None
) -> tuple[NodeInfo, ...]:
    """The nodes of ``function``, in execution order.

    Args:
        function: One of ``record.functions``.
        record: The program.
        plan: Reads ``plan.json``; called on first use of what only the plan knows.

    Raises:
        UserError: the record has no signature of a kernel.
    """
    kernels = {k.name: k for k in record.kernels}

    def details(node: NodeInfo) -> Mapping[str, Any]:
        contents = {} if plan is None else plan()
        return _launch_details(contents, node, len(function.launches)) if contents else {}

    return tuple(
        _node(k, launch, function, record, kernels, details) for k, launch in enumerate(function.launches)
    )


def _node(
    index: int,
    launch: Launch,
    function: FunctionRecord,
    record: ProgramRecord,
    kernels: Mapping[str, KernelRecord],
    details: Callable[[NodeInfo], Mapping[str, Any]],
) -> NodeInfo:
    for choice in launch.choices:
        if choice.kernel not in kernels:
            raise UserError(
                f"{function.name}: the record has no signature of kernel {choice.kernel!r}; "
                "compile the model again"
            )
    kernel = kernels[launch.choices[-1].kernel]
    operands = [
        Operand(_operand_name(spec, ref, function, record), spec.dtype, spec.shape, ref)
        for spec, ref in zip(kernel.params, launch.args, strict=True)
    ]
    first = len(operands) - kernel.num_outputs
    results = first + launch.num_workspace
    return NodeInfo(
        index,
        function.name,
        launch.node,
        launch.op,
        tuple(operands[:first]),
        tuple(operands[first:results]),
        tuple(operands[results:]),
        launch.choices,
        details,
    )


def _operand_name(spec: TensorSpec, ref: ArgRef, function: FunctionRecord, record: ProgramRecord) -> str:
    match ref.kind:
        case ArgKind.INPUT:
            return function.inputs[ref.index].name
        case ArgKind.OUTPUT:
            return function.outputs[ref.index].name
        case ArgKind.PARAM:
            return record.params[ref.index].name
        case ArgKind.CACHE:
            layered = ref.field in LAYER_FIELDS
            return f"{function.inputs[ref.index].name}.{ref.field}" + (f"[{ref.layer}]" if layered else "")
        case ArgKind.ARENA:
            return spec.name


def _launch_details(plan: Plan, node: NodeInfo, count: int) -> Mapping[str, Any]:
    """The plan's entry of ``node``.

    Raises:
        UserError: it has none of that name at that position.
    """
    try:
        launches = plan[node.function]["launches"]
        found = launches[node.index]
        fits = len(launches) == count and found["node"] == node.name
    except (KeyError, IndexError, TypeError):
        fits, found = False, {}
    if not fits:
        raise UserError(
            f"plan.json: launch {node.index} of {node.function} is not {node.name!r}: "
            "it is of another program; compile the model again"
        )
    return found


def plan_reader(plan: str | Path | None) -> PlanSource | None:
    """A function that parses ``plan.json`` once.

    Args:
        plan: Its text, or where it is (a file that is not there is no plan); ``None``: no plan.
    """
    if plan is None or (isinstance(plan, Path) and not plan.is_file()):
        return None
    parsed: list[Plan] = []

    def read() -> Plan:
        if not parsed:
            where = str(plan) if isinstance(plan, Path) else "plan.json"
            try:
                data = json.loads(plan.read_text(encoding="utf-8") if isinstance(plan, Path) else plan)
            except OSError as error:
                raise UserError(f"{where}: cannot read: {error.strerror or error}") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: is no JSON: {error!s:.120}; compile the model again") from None
            if not isinstance(data, dict):
                raise UserError(f"{where}: got {data!r:.40}; expected an object; compile the model again")
            parsed.append(data)
        return parsed[0]

    return read


# --- by name --------------------------------------------------------------------------------------------


def matching(nodes: Sequence[NodeInfo], which: Any) -> tuple[NodeInfo, ...]:
    """The nodes that ``which`` (a node, index, name or pattern) names; none where nothing fits."""
    match which:
        case NodeInfo():
            return (which,) if which in nodes else ()
        case int():
            return (nodes[which],) if -len(nodes) <= which < len(nodes) else ()
    exact = tuple(n for n in nodes if n.name == which)
    return exact or tuple(n for n in nodes if fnmatch.fnmatchcase(n.name, str(which)))


def select(nodes: Sequence[NodeInfo], which: Any) -> tuple[NodeInfo, ...]:
    """The nodes that ``which`` names.

    Args:
        nodes: Of one function.
        which: A node, its index, its name, a pattern (``"*.mlp.*"``), or several of these.

    Raises:
        UserError: nothing matches; names the nearest.
    """
    if not isinstance(which, (NodeInfo, int, str)):
        return tuple(dict.fromkeys(n for item in which for n in select(nodes, item)))
    found = matching(nodes, which)
    if not found:
        raise no_such_node(nodes, which)
    return found


def no_such_node(nodes: Sequence[NodeInfo], which: Any) -> UserError:
    """The error for a node that is not among ``nodes``."""
    match which:
        case NodeInfo():
            return UserError(f"node {which.name!r} is of {which.function}; expected one of {_of(nodes)}")
        case int():
            return UserError(f"node {which}: {_of(nodes)} has {len(nodes)} nodes")
    names = [n.name for n in nodes]
    close = difflib.get_close_matches(str(which), names, 3, 0.3) or names[:3]
    return UserError(f"no node {which!r} in {_of(nodes)}; there are {', '.join(close)}, ...")


def select_one(nodes: Sequence[NodeInfo], which: Any) -> NodeInfo:
    """The one node that ``which`` names; see :func:`select`.

    Raises:
        UserError: none, or several.
    """
    found = select(nodes, which)
    if len(found) != 1:
        names = ", ".join(n.name for n in found[:4])
        raise UserError(f"node {which!r} in {_of(nodes)}: got {len(found)} nodes ({names}); expected one")
    return found[0]


def _of(nodes: Sequence[NodeInfo]) -> str:
    return nodes[0].function if nodes else "the function"
