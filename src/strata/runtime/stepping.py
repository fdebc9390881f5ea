"""A second executor: launches the kernels of a function one by one, with hooks that see every buffer.

The native entry of a function is one call with nothing in between. This executor reads the same launches from
the record and makes them from Python, so a debugger can look at (or change) the operands of each, compare
them with an interpreter, or time them. It is not the fast way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.core.dims import evaluate, parse_dim
from strata.core.errors import UserError, VerifyError

from .program import BoundCall, CompiledFunction, Program, invoke
from .records import CACHE_HEADER, CACHE_POINTERS, ArgKind, ArgRef, KernelChoice, KernelRecord, Launch
from .tensors import address, array_at, as_tensor, numpy_dtype


@dataclass(frozen=True, slots=True)
class LaunchEvent:
    """One launch as a hook sees it.

    Attributes:
        index: Position in ``FunctionRecord.launches``.
        launch: Its record.
        kernel: Name of the chosen kernel.
        arrays: Views of the buffers in the kernel's parameter order, inputs first (params are read-only).
        num_outputs: How many of the last arrays the kernel writes.
        dims: Values of all symbolic dims of this call.
        time_ns: Duration of the kernel; 0 before it ran.
    """

    index: int
    launch: Launch
    kernel: str
    arrays: tuple[np.ndarray, ...]
    num_outputs: int
    dims: Mapping[str, int]
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class LaunchHooks:
    """What to call around each launch. A hook may change the arrays in place; what it returns is ignored."""

    before: Callable[[LaunchEvent], object] | None = None
    after: Callable[[LaunchEvent], object] | None = None


def choose(launch: Launch, dims: Mapping[str, int]) -> KernelChoice:
    """The first choice all of whose ranges hold (the last one always does).

    Raises:
        VerifyError: none holds: the record is wrong.
    """
    for choice in launch.choices:
        if all(r.lo <= dims[r.dim] <= r.hi for r in choice.when):
            return choice
    raise VerifyError(
        f"launch {launch.node}: no kernel for {dict(dims)}; the last choice must have no ranges"
    )


def run_launches(
    program: Program, function: CompiledFunction, args: Sequence[Any], hooks: LaunchHooks | None, out: Any
) -> Any:
    """See ``Program.launch_by_launch``."""
    hooks = hooks or LaunchHooks()
    kernels = {k.name: k for k in program.record.kernels}
    with program.lock:
        call = function.bind(args, out)
        for index, launch in enumerate(function.record.launches):
            name = choose(launch, call.sizes.dims).kernel
            if name not in kernels:
                raise UserError(
                    f"{function.name}: the record has no signature of kernel {name!r}; "
                    "compile the model again"
                )
            _launch(program, call, index, launch, kernels[name], hooks)
    return call.outputs[0] if len(call.outputs) == 1 else call.outputs


def _launch(
    program: Program, call: BoundCall, index: int, launch: Launch, kernel: KernelRecord, hooks: LaunchHooks
) -> None:
    dims = call.sizes.dims
    arrays = tuple(_view(program, call, launch, i, kernel) for i in range(len(kernel.params)))
    event = LaunchEvent(index, launch, kernel.name, arrays, kernel.num_outputs, dims)
    if hooks.before is not None:
        hooks.before(event)
    tensors = [as_tensor(a) for a in arrays]
    start = time.perf_counter_ns()
    invoke(
        program.kernel(kernel.name),
        f"{launch.node} ({kernel.name})",
        *tensors,
        *(dims[d] for d in kernel.dims),
    )
    took = time.perf_counter_ns() - start
    if hooks.after is not None:
        hooks.after(LaunchEvent(index, launch, kernel.name, arrays, kernel.num_outputs, dims, took))


def _view(program: Program, call: BoundCall, launch: Launch, i: int, kernel: KernelRecord) -> np.ndarray:
    """Argument ``i`` of a launch as an array of the type that the kernel's signature says."""
    ref, spec = launch.args[i], kernel.params[i]
    dims = call.sizes.dims
    shape = tuple(d if isinstance(d, int) else evaluate(parse_dim(d, {}), dims) for d in spec.shape)
    dtype = numpy_dtype(spec.dtype)
    start, room_bytes = _locate(program, call, ref)
    need_bytes = math.prod(shape) * dtype.itemsize
    if room_bytes is not None and need_bytes > room_bytes:
        raise VerifyError(
            f"launch {launch.node}: {kernel.name} parameter {spec.name} takes {need_bytes} bytes; "
            f"its buffer ({ref.kind.value} {ref.index}) has {room_bytes}"
        )
    view = array_at(start, shape, dtype, keep=(program, call))
    view.flags.writeable = ref.kind is not ArgKind.PARAM
    return view


def _locate(program: Program, call: BoundCall, ref: ArgRef) -> tuple[int, int | None]:
    """Address of a buffer and the bytes it has from there on (``None``: not known here)."""
    match ref.kind:
        case ArgKind.INPUT:
            array = call.inputs[ref.index]
        case ArgKind.OUTPUT:
            array = call.outputs[ref.index]
        case ArgKind.PARAM:
            array = program.params[program.record.params[ref.index].name]
        case ArgKind.ARENA:
            return address(program.arena) + ref.index, program.arena.nbytes - ref.index
        case ArgKind.CACHE:
            table = call.inputs[ref.index]
            if ref.field in CACHE_POINTERS:
                return int(table[CACHE_POINTERS.index(ref.field)]), None
            return int(table[CACHE_HEADER + 2 * ref.layer + (ref.field == "v_pages")]), None
    return address(array), array.nbytes
