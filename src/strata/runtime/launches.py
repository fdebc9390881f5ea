"""Calls of single kernels, ready to be made: everything that a launch needs, bound once per sizes.

::

    Launches    one per function: remembers what was bound
      ├ Bound   one per combination of sizes: for every launch the kernel and its arguments as one callable;
      │         only what lies outside (inputs, outputs, arrays of the cache) is looked at again per call
      └ Fixed   what depends on no call: signatures of the kernels, tensors over params and arena

Making a launch is then one call of a C function, a fraction of a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.core.dims import Dim, evaluate, parse_dim
from strata.core.errors import UserError, VerifyError

from .nodes import NodeInfo, choose, function_nodes
from .records import CACHE_POINTERS, ArgKind, ArgRef, FunctionRecord, KernelRecord, layer_word
from .tensors import address, array_at, as_tensor, numpy_dtype

if TYPE_CHECKING:
    from .program import BoundCall, Context

Call = Callable[[], Any]
_MAX_BOUND = 64  # remembered combinations of sizes
_MAX_TENSORS = 1 << 16  # remembered tensors over params and arena


@dataclass(frozen=True, slots=True)
class _Param:
    """A kernel parameter, parsed."""

    dims: tuple[Dim, ...]
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class Memory:
    """One argument of a launch at given sizes: where, and as what."""

    ref: ArgRef
    shape: tuple[int, ...]
    dtype: np.dtype


class Bound:
    """The launches of a function at one combination of sizes, for the call that was bound last.

    Attributes:
        calls: One callable without arguments per launch; replace entries in a copy.
        kernels: Name of the kernel of each launch.
        dims: Values of the symbolic dims.
    """

    def __init__(self, fixed: Fixed, call: BoundCall) -> None:
        self.dims = call.sizes.dims
        self.kernels: list[str] = []
        self.calls: list[Call] = []
        self._fixed = fixed
        self._call = call
        self._memory: list[tuple[Memory, ...]] = []
        self._views: dict[int, tuple[np.ndarray, ...]] = {}
        self._outside: dict[ArgRef, list[int]] = {}
        self._addresses: dict[ArgRef, int] = {}
        self._table: dict[int, list[int]] = {}
        self._read_tables()
        for launch in fixed.record.launches:
            kernel = fixed.signature(choose(launch.node, launch.choices, self.dims))
            self.kernels.append(kernel.name)
            self._memory.append(fixed.memory(kernel, launch.args, self.dims))
            for ref in dict.fromkeys(launch.args):
                if ref.kind not in (ArgKind.PARAM, ArgKind.ARENA):
                    self._outside.setdefault(ref, []).append(len(self._memory) - 1)
        self._addresses = {ref: self._address(ref) for ref in self._outside}
        self.calls = [self._bind(k) for k in range(len(self._memory))]

    def rebind(self, call: BoundCall) -> None:
        """Go over to another call of the same sizes: only what lies elsewhere than before is bound again."""
        self._call = call
        self._read_tables()
        moved: set[int] = set()
        for ref, launches in self._outside.items():
            place = self._address(ref)
            if place != self._addresses[ref]:
                self._addresses[ref] = place
                moved.update(launches)
        for k in moved:
            self._views.pop(k, None)
            self.calls[k] = self._bind(k)

    def kernel_call(self, index: int, kernel: KernelRecord, function: Callable[..., Any]) -> Call:
        """Launch ``index`` by another compiled kernel of the same parameters."""
        tensors = [self._tensor(m) for m in self._memory[index]]
        return partial(function, *tensors, *(self.dims[d] for d in kernel.dims))

    def tensors(self, index: int, part: slice) -> list[Any]:
        """tvm-ffi tensors over some arguments of launch ``index``."""
        return [self._tensor(m) for m in self._memory[index][part]]

    def arrays(self, index: int, part: slice) -> tuple[np.ndarray, ...]:
        """NumPy views of some arguments of launch ``index``; params are read-only."""
        found = self._views.get(index)
        if found is None:
            found = self._views[index] = tuple(self._array(m) for m in self._memory[index])
        return found[part]

    def spans(self, index: int, part: slice) -> list[tuple[int, int]]:
        """Begin and end of the memory of some arguments, as addresses."""
        found = []
        for m in self._memory[index][part]:
            start = self._place(m.ref)
            found.append((start, start + math.prod(m.shape) * m.dtype.itemsize))
        return found

    def _bind(self, index: int) -> Call:
        kernel = self._fixed.signature(self.kernels[index])
        return self.kernel_call(index, kernel, self._fixed.kernel(kernel.name))

    def _tensor(self, m: Memory) -> Any:
        if m.ref.kind in (ArgKind.PARAM, ArgKind.ARENA):
            return self._fixed.tensor(m)
        return as_tensor(self._array(m))

    def _array(self, m: Memory) -> np.ndarray:
        if m.ref.kind in (ArgKind.PARAM, ArgKind.ARENA):
            return self._fixed.array(m)
        return array_at(self._addresses[m.ref], m.shape, m.dtype, keep=self._call)

    def _place(self, ref: ArgRef) -> int:
        found = self._addresses.get(ref)
        return self._fixed.address(ref) if found is None else found

    def _read_tables(self) -> None:
        for number, spec in enumerate(self._fixed.record.inputs):
            if spec.dtype == "cache":
                self._table[number] = self._call.inputs[number].tolist()

    def _address(self, ref: ArgRef) -> int:
        match ref.kind:
            case ArgKind.INPUT:
                return address(self._call.inputs[ref.index])
            case ArgKind.OUTPUT:
                return address(self._call.outputs[ref.index])
            case _:
                table = self._table[ref.index]
                if ref.field in CACHE_POINTERS:
                    return table[CACHE_POINTERS.index(ref.field)]
                return table[layer_word(ref.layer, ref.field)]


class Launches:
    """The launches of one function.

    Raises:
        UserError: the record has no signature of a kernel.
    """

    def __init__(self, record: FunctionRecord, context: Context) -> None:
        self.fixed = Fixed(record, context)
        self._bound: dict[tuple[int, ...], Bound] = {}

    @property
    def nodes(self) -> tuple[NodeInfo, ...]:
        """What is launched."""
        return self.fixed.nodes

    def bound(self, call: BoundCall) -> Bound:
        """The launches, bound to ``call``; valid until the next call is bound.

        Raises:
            VerifyError: a buffer is smaller than the kernel's parameter.
        """
        key = tuple(call.sizes.dims.values())
        found = self._bound.get(key)
        if found is not None:
            found.rebind(call)
            return found
        if len(self._bound) >= _MAX_BOUND:
            self._bound.clear()
        self._bound[key] = made = Bound(self.fixed, call)
        return made


class Fixed:
    """What the launches of one function share. Refers to nothing that refers to it.

    Attributes:
        record: The function.
        nodes: Its nodes.
    """

    def __init__(self, record: FunctionRecord, context: Context) -> None:
        self.record = record
        self.nodes: tuple[NodeInfo, ...] = function_nodes(record, context.record, context.plan)
        self._context = context
        self._signatures = {k.name: k for k in context.record.kernels}
        self._params: dict[str, tuple[_Param, ...]] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._tensors: dict[Memory, Any] = {}

    def signature(self, kernel: str) -> KernelRecord:
        """The kernel's record.

        Raises:
            UserError: the program has no such kernel.
        """
        if kernel not in self._signatures:
            known = ", ".join(sorted(self._signatures)[:8]) or "none"
            raise UserError(f"program: no kernel {kernel!r}; it has {known}")
        return self._signatures[kernel]

    def kernel(self, name: str) -> Callable[..., Any]:
        """A compiled kernel as a tvm-ffi function."""
        if name not in self._functions:
            self._functions[name] = self._context.image.function(name)
        return self._functions[name]

    def memory(
        self, kernel: KernelRecord, refs: tuple[ArgRef, ...], dims: Mapping[str, int]
    ) -> tuple[Memory, ...]:
        """Place, shape and dtype of every argument.

        Raises:
            VerifyError: a buffer is smaller than the kernel's parameter.
        """
        params = self._params.get(kernel.name)
        if params is None:
            params = tuple(
                _Param(
                    tuple(parse_dim(d, {}) if isinstance(d, str) else d for d in spec.shape),
                    numpy_dtype(spec.dtype),
                )
                for spec in kernel.params
            )
            self._params[kernel.name] = params
        found = []
        for spec, ref, param in zip(kernel.params, refs, params, strict=True):
            shape = tuple(d if isinstance(d, int) else evaluate(d, dims) for d in param.dims)
            self._check_room(
                ref, math.prod(shape) * param.dtype.itemsize, f"{kernel.name} parameter {spec.name}"
            )
            found.append(Memory(ref, shape, param.dtype))
        return tuple(found)

    def _check_room(self, ref: ArgRef, need_bytes: int, what: str) -> None:
        match ref.kind:
            case ArgKind.PARAM:
                room_bytes = self._param(ref).nbytes
            case ArgKind.ARENA:
                room_bytes = self._context.arena.nbytes - ref.index
            case _:  # checked against the record when the call was bound
                return
        if need_bytes > room_bytes:
            raise VerifyError(
                f"{self.record.name}: {what} takes {need_bytes} bytes; "
                f"its buffer ({ref.kind.value} {ref.index}) has {room_bytes}"
            )

    def _param(self, ref: ArgRef) -> np.ndarray:
        return self._context.params[self._context.record.params[ref.index].name]

    def address(self, ref: ArgRef) -> int:
        """Address of a param or a place in the arena."""
        if ref.kind is ArgKind.ARENA:
            return address(self._context.arena) + ref.index
        return address(self._param(ref))

    def array(self, m: Memory) -> np.ndarray:
        """View of a param (read-only) or of the arena."""
        view = array_at(self.address(m.ref), m.shape, m.dtype, keep=self._context)
        view.flags.writeable = m.ref.kind is not ArgKind.PARAM
        return view

    def tensor(self, m: Memory) -> Any:
        """tvm-ffi tensor over a param or the arena: made once, they stay where they are."""
        found = self._tensors.get(m)
        if found is None:
            if len(self._tensors) >= _MAX_TENSORS:
                self._tensors.clear()
            found = self._tensors[m] = as_tensor(self.array(m))
        return found
