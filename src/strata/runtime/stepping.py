"""A second executor: launches the nodes of a function one by one, when asked.

::

    run = program.step("decode", ids, view)      bound, nothing launched yet
    for node in run: ...                         each step launches one node
    run.run_to("*.mlp.down_proj")                or up to and including a node
    run.value("model.norm")                      what it computed
    run.finish()                                 the rest; gives the outputs

The native entry of a function is one call with nothing in between. A run makes the same launches on the same
buffers, with the program's own kernels and threads, so its results are the entry's bit for bit; a step costs
about a microsecond more than its kernel. Hooks see (or change) the operands before and after a node, time or
skip it; :meth:`Run.replace` puts another kernel in a node's place for this run, ``Program.swap`` for every
later call.

There is one arena per program: any other call of it ends a run that has begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import tvm_ffi

from strata.core.errors import UserError

from .calls import FAILURES, raise_failure
from .launches import Bound, Call, Launches
from .nodes import NodeInfo, holds, select, select_one

if TYPE_CHECKING:
    from .program import BoundCall, Context


class NodeEvent:
    """One launch as a hook sees it.

    Attributes:
        node: What is launched.
        kernel: Name of the kernel (of what was put in its place).
        inputs, outputs: Views of the buffers; params are read-only. Outputs are garbage before the launch.
        dims: Values of all symbolic dims of this call.
        time_ns: Duration of the kernel; 0 before it ran.
        is_skipped: Whether it is not launched.
    """

    __slots__ = ("dims", "inputs", "is_skipped", "kernel", "node", "outputs", "time_ns")

    def __init__(
        self,
        node: NodeInfo,
        kernel: str,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        dims: dict[str, int],
    ) -> None:
        self.node = node
        self.kernel = kernel
        self.inputs = inputs
        self.outputs = outputs
        self.dims = dims
        self.time_ns = 0
        self.is_skipped = False

    @property
    def value(self) -> np.ndarray:
        """The node's (first) result; assigning to it copies into it."""
        return self.outputs[0]

    @value.setter
    def value(self, array: Any) -> None:
        self.outputs[0][...] = array

    def skip(self) -> None:
        """In a hook before the launch: do not launch; the results are what is in :attr:`outputs` then."""
        self.is_skipped = True


Hook = Callable[[NodeEvent], object]
Kernel = str | Callable[..., Any]


@dataclass(slots=True)
class Changes:
    """What differs from plain launches, by index of the node."""

    kernels: dict[int, Kernel] = field(default_factory=dict)
    before: dict[int, list[Hook]] = field(default_factory=dict)
    after: dict[int, list[Hook]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.kernels or self.before or self.after)

    def copy(self) -> Changes:
        """Changes to the copy do not show here."""
        before, after = ({k: list(v) for k, v in hooks.items()} for hooks in (self.before, self.after))
        return Changes(dict(self.kernels), before, after)

    def hook(self, nodes: Iterable[NodeInfo], before: Hook | None, after: Hook | None) -> None:
        """Add hooks to nodes."""
        for node in nodes:
            for hooks, hook in ((self.before, before), (self.after, after)):
                if hook is not None:
                    hooks.setdefault(node.index, []).append(hook)

    def forget(self, nodes: Iterable[NodeInfo]) -> None:
        """Plain launches again for ``nodes``."""
        for node in nodes:
            for table in (self.kernels, self.before, self.after):
                table.pop(node.index, None)


def resolve_kernel(launches: Launches, node: NodeInfo, kernel: Kernel) -> Kernel:
    """``kernel`` as :class:`Changes` keeps it: the name of a compiled one, or a callable.

    Args:
        launches: Of the node's function.
        node: Whose kernel is replaced.
        kernel: Name of a compiled kernel or of a candidate of the node, a tvm-ffi function, or any callable.

    Raises:
        UserError: no such kernel, it was not compiled into the program, or it takes other parameters.
    """
    if not isinstance(kernel, str):
        if not callable(kernel):
            raise UserError(
                f"{node.name}: got {type(kernel).__name__} as a kernel; expected a name or a callable"
            )
        return kernel
    for candidate in node.candidates:
        if candidate.name == kernel:
            if not candidate.in_image:
                there = ", ".join(c.name for c in node.candidates if c.in_image)
                raise UserError(
                    f"{node.name}: candidate {kernel} is not in the program, which has {there}; "
                    "compile with it pinned, or hand in a compiled kernel"
                )
            kernel = candidate.kernel
            break
    mine, other = (launches.fixed.signature(k) for k in (node.choices[-1].kernel, kernel))
    if [(p.dtype, p.shape) for p in mine.params] != [(p.dtype, p.shape) for p in other.params]:
        raise UserError(f"{node.name}: {kernel} takes other parameters than {mine.name}")
    return kernel


def replaced_call(launches: Launches, bound: Bound, node: NodeInfo, kernel: Kernel) -> Call:
    """The launch of ``node`` by another kernel, without arguments.

    Raises:
        UserError: a candidate's kernel is not made for these sizes.
    """
    if isinstance(kernel, str):
        for candidate in node.candidates:
            if candidate.kernel == kernel and not holds(candidate.when, bound.dims):
                ranges = " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in candidate.when)
                raise UserError(f"{node.name}: {candidate.name} is made for {ranges}; got {bound.dims}")
        return bound.kernel_call(node.index, launches.fixed.signature(kernel), launches.fixed.kernel(kernel))
    parts = (node.read_args, node.output_args)
    if isinstance(kernel, tvm_ffi.Function):
        return partial(kernel, *(t for part in parts for t in bound.tensors(node.index, part)))
    arrays = tuple(a for part in parts for a in bound.arrays(node.index, part))
    return partial(_call_on_arrays, kernel, node.name, arrays)


def _call_on_arrays(kernel: Callable[..., Any], name: str, arrays: tuple[np.ndarray, ...]) -> None:
    """Call a Python kernel; it writes into its last arguments.

    Raises:
        UserError: it returned a new array instead.
    """
    try:
        result = kernel(*arrays)
    except Exception as error:
        error.add_note(f"in the kernel that was put in the place of node {name}")
        raise
    given = result if isinstance(result, tuple) else () if result is None else (result,)
    if not all(any(item is array for array in arrays) for item in given):
        raise UserError(
            f"{name}: its kernel returned a new {type(result).__name__}; "
            "expected that it writes its result into its last argument"
        )


def kernel_name(kernel: Kernel) -> str:
    """What to call a kernel in events and messages."""
    if isinstance(kernel, str):
        return kernel
    name = getattr(kernel, "__name__", None) or getattr(kernel, "name", None)
    return name if isinstance(name, str) else type(kernel).__name__


class Run:
    """One call of a function, launch by launch.

    An iterator over its nodes: each step launches one and gives it. Made by ``Program.step``.

    Attributes:
        nodes: All nodes of the function, in the order of execution.
        dims: Values of the symbolic dims of this call.
        position: How many nodes were launched (or skipped) so far.
    """

    def __init__(
        self,
        launches: Launches,
        context: Context,
        call: BoundCall,
        args: tuple[Any, ...],
        changes: Changes,
        keep: Any = (),
    ) -> None:
        self.nodes = launches.nodes
        self.dims = dict(call.sizes.dims)
        self.position = 0
        self._launches = launches
        self._context = context
        self._call = call
        self._args = args  # a cache's view owns the memory that its table points to
        self._changes = changes
        self._kept: dict[int, tuple[np.ndarray, ...] | None] = {}
        if keep:
            self._kept = {n.index: None for n in select(self.nodes, "*" if keep is True else keep)}
        self._bound = launches.bound(call)
        self._turn = context.turn.take()
        self._calls = list(self._bound.calls)
        for index, kernel in changes.kernels.items():
            self._calls[index] = replaced_call(launches, self._bound, self.nodes[index], kernel)
        self._special = {*changes.before, *changes.after, *self._kept}

    # Going on.

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> NodeInfo:
        position = self.position
        if position >= len(self._calls):
            raise StopIteration
        self._launch(position + 1)
        return self.nodes[position]

    def next(self) -> NodeInfo:
        """Launch the next node and give it.

        Raises:
            UserError: all nodes were launched, or another call of the program ended this run.
            DeviceError: the kernel refused its arguments.
        """
        if self.position >= len(self._calls):
            raise UserError(f"{self._name}: all {len(self._calls)} nodes have run; begin another run")
        return self.__next__()

    @property
    def upcoming(self) -> NodeInfo | None:
        """The node that the next step launches; ``None`` at the end."""
        return self.nodes[self.position] if self.position < len(self.nodes) else None

    def run_to(self, node: Any, *, before: bool = False) -> NodeInfo:
        """Launch nodes up to and including ``node`` (with ``before``: up to the one before it).

        Args:
            node: A node, its index, name, or a pattern that only it matches.
            before: Leave ``node`` for the next step.

        Raises:
            UserError: no such node, it has run already, or as :meth:`next`.
        """
        found = select_one(self.nodes, node)
        end = found.index + (0 if before else 1)
        if end < self.position:
            raise UserError(f"{self._name}: node {found.name} has run already; begin another run")
        self._launch(end)
        return found

    def finish(self) -> Any:
        """Launch all nodes that are left; gives :attr:`outputs`.

        Raises:
            UserError, DeviceError: as :meth:`next`.
        """
        self._launch(len(self._calls))
        return self.outputs

    def timed(self) -> list[tuple[int, int]]:
        """Launch all nodes that are left; gives ``(start, duration)`` of each, in ns.

        Raises:
            UserError, DeviceError: as :meth:`next`.
        """
        clock, spans = time.perf_counter_ns, []
        for position in range(self.position, len(self._calls)):
            start = clock()
            self._launch(position + 1)
            spans.append((start, clock() - start))
        return spans

    @property
    def outputs(self) -> Any:
        """The function's output, or a tuple where there is not exactly one, as of a call.

        Raises:
            UserError: nodes are left.
        """
        if self.position < len(self._calls):
            left = len(self._calls) - self.position
            raise UserError(f"{self._name}: {left} of {len(self._calls)} nodes have not run; call finish()")
        outputs = self._call.outputs
        return outputs[0] if len(outputs) == 1 else outputs

    def _launch(self, end: int) -> None:
        """Launch the nodes up to ``end``, exclusive."""
        context, calls, special = self._context, self._calls, self._special
        with context.lock:
            self._check_turn()
            for position in range(self.position, end):
                if position in special:
                    self._launch_watched(position)
                else:
                    try:
                        calls[position]()
                    except FAILURES as error:
                        self._fail(position, error)
                self.position = position + 1

    def _check_turn(self) -> None:
        if self._context.turn.count != self._turn:
            raise UserError(
                f"{self._name}: another call of the program has used its memory "
                f"since node {self.position} of this run; begin another run"
            )

    def _launch_watched(self, position: int) -> None:
        node, bound, changes = self.nodes[position], self._bound, self._changes
        kernel = changes.kernels.get(position)
        event = NodeEvent(
            node,
            bound.kernels[position] if kernel is None else kernel_name(kernel),
            bound.arrays(position, node.read_args),
            bound.arrays(position, node.output_args),
            self.dims,
        )
        for hook in changes.before.get(position, ()):
            hook(event)
        if not event.is_skipped:
            start = time.perf_counter_ns()
            try:
                self._calls[position]()
            except FAILURES as error:
                self._fail(position, error)
            event.time_ns = time.perf_counter_ns() - start
        for hook in changes.after.get(position, ()):
            hook(event)
        if position in self._kept:
            self._kept[position] = tuple(array.copy() for array in event.outputs)

    def _fail(self, position: int, error: Exception) -> NoReturn:
        """Raise what ``error`` means: native code refused the call, Python code speaks for itself."""
        kernel = self._changes.kernels.get(position)
        if kernel is not None and not isinstance(kernel, (str, tvm_ffi.Function)):
            raise error
        name = self._bound.kernels[position] if kernel is None else kernel_name(kernel)
        raise_failure(f"{self.nodes[position].name} ({name})", error)

    # Changing what is launched, in this run.

    def before(self, node: Any, hook: Hook) -> None:
        """Call ``hook(event)`` before each node that ``node`` names is launched.

        Raises:
            UserError: no such node.
        """
        self._hook(node, hook, None)

    def after(self, node: Any, hook: Hook) -> None:
        """Call ``hook(event)`` after each node that ``node`` names was launched (or skipped).

        Raises:
            UserError: no such node.
        """
        self._hook(node, None, hook)

    def _hook(self, node: Any, before: Hook | None, after: Hook | None) -> None:
        found = select(self.nodes, node)
        self._changes.hook(found, before, after)
        self._special.update(n.index for n in found)

    def skip(self, node: Any) -> None:
        """Do not launch the nodes that ``node`` names: their results are whatever is in memory.

        Raises:
            UserError: no such node.
        """
        self.before(node, NodeEvent.skip)

    def replace(self, node: Any, kernel: Kernel) -> None:
        """Launch another kernel for ``node``, in this run only (``Program.swap``: in all later calls).

        Args:
            node: Which nodes.
            kernel: Name of a candidate or of a compiled kernel; a tvm-ffi function on tensors; or any
                callable on NumPy arrays. Callables take the node's inputs, then its outputs, into which they
                write; params come in their stored layout.

        Raises:
            UserError: no such node or kernel, or the kernel takes other parameters.
        """
        for found in select(self.nodes, node):
            chosen = resolve_kernel(self._launches, found, kernel)
            self._changes.kernels[found.index] = chosen
            self._calls[found.index] = replaced_call(self._launches, self._bound, found, chosen)

    # Values.

    def value(self, node: Any) -> np.ndarray:
        """The result of a node that has run: a view of its buffer, or the copy that was kept.

        Raises:
            UserError: no such node, it has not run or has several results, or its memory was used again
                since: name it in ``keep``.
        """
        found = select_one(self.nodes, node)
        values = self.values(found)
        if len(values) != 1:
            raise UserError(f"{self._name}: node {found.name} has {len(values)} results; use values()")
        return values[0]

    def values(self, node: Any) -> tuple[np.ndarray, ...]:
        """All results of a node; see :meth:`value`."""
        found = select_one(self.nodes, node)
        if found.index >= self.position:
            raise UserError(f"{self._name}: node {found.name} has not run yet; use run_to()")
        kept = self._kept.get(found.index)
        if kept is not None:
            return kept
        self._check_intact(found, found.output_args, found.index + 1)
        return self._bound.arrays(found.index, found.output_args)

    def inputs(self, node: Any) -> tuple[np.ndarray, ...]:
        """Views of what a node reads, in the kernel's order; of the next node or one that has run.

        Raises:
            UserError: no such node, it is not its turn yet, or the memory was used again since.
        """
        found = select_one(self.nodes, node)
        if found.index > self.position:
            raise UserError(
                f"{self._name}: what {found.name} reads is not there yet; use run_to(..., before=True)"
            )
        self._check_intact(found, found.read_args, found.index)
        return self._bound.arrays(found.index, found.read_args)

    def _check_intact(self, node: NodeInfo, part: slice, first: int) -> None:
        """Nothing that was launched from ``first`` on has written to these arguments of ``node``.

        Raises:
            UserError: something has, or another call of the program.
        """
        self._check_turn()
        spans = self._bound.spans(node.index, part)
        for later in self.nodes[first : self.position]:
            for lo, hi in self._bound.spans(later.index, later.written_args):
                if any(lo < end and start < hi for start, end in spans):
                    raise UserError(
                        f"{self._name}: the memory of {node.name} was used again by {later.name}; "
                        f"keep its value: step(..., keep={node.name!r})"
                    )

    @property
    def _name(self) -> str:
        return self._launches.fixed.record.name
