"""A compiled model that can be called: checks arguments, provides outputs and workspace, calls the native
entries.

::

    arguments ──check──▶ sizes (dims, output shapes; remembered per combination of shapes)
                  │
                  ▼
    entry(inputs.., outputs.., param table, arena)          one native call per model function, through
    tvm-ffi

The native interface is that of ``records``. This module knows nothing about what a function computes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from strata.core.dims import Dim, evaluate, parse_dim
from strata.core.errors import ShapeError, UserError
from strata.core.kv_layout import LAYER_FIELDS

from .calls import invoke
from .records import (
    CACHE_DIMS,
    CACHE_POINTERS,
    CacheRecord,
    FunctionRecord,
    ProgramRecord,
    TensorSpec,
    layer_word,
)
from .tensors import address, aligned_empty, as_tensor, numpy_dtype, type_text

if TYPE_CHECKING:
    from .launches import Launches
    from .nodes import NodeInfo, PlanSource
    from .stepping import Hook, Kernel, Run

_MAX_SIZES = 4096  # remembered combinations of argument shapes per function


class Image(Protocol):
    """Loaded machine code (``runtime.image.LoadedImage``)."""

    def function(self, symbol: str) -> Callable[..., Any]:
        """The exported function called ``symbol``, on the tvm-ffi calling convention."""
        ...

    @property
    def num_threads(self) -> int:
        """Threads that work on a parallel loop, the caller included."""
        ...


class CacheView(Protocol):
    """What a function needs of a batch view of the KV cache (``engine.kv_cache.BatchView``).

    Attributes:
        table: i64 ``[CACHE_HEADER + 4 * num_layers]``: the cache table of ``records``.
        num_tokens: Tokens of this pass over all sequences.
    """

    @property
    def table(self) -> np.ndarray: ...  # noqa: D102

    @property
    def num_tokens(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sizes:
    """Values of the symbolic dims of one call, and the shapes of the outputs that follow from them."""

    dims: dict[str, int]
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class BoundCall:
    """Checked arguments of one call.

    Attributes:
        inputs: Input arrays in order; for a cache input its table.
        outputs: Output arrays in order.
        sizes: Dims of this call.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Context:
    """What all functions of a program share; they do not refer to it, so no cycle keeps its threads alive.

    Attributes:
        image: Machine code.
        cache: Description of the KV cache.
        workspace: Tensors of the param table and the arena, the last arguments of every entry.
        lock: Held during a call: there is one arena.
        params: Arrays that the param table points to: a function may outlive its program.
        record: The program.
        arena: Memory of the values between launches.
        plan: Reads ``plan.json``, where there is one.
        turn: Tells a run that goes launch by launch whether somebody else used the arena meanwhile.
    """

    image: Image
    cache: CacheRecord | None
    workspace: tuple[Any, Any]
    lock: threading.RLock
    params: Mapping[str, np.ndarray]
    record: ProgramRecord
    arena: np.ndarray
    plan: PlanSource | None
    turn: Turn


@dataclass(slots=True)
class Turn:
    """How many calls of a program have begun."""

    count: int = 0

    def take(self) -> int:
        """Begin a call; gives its number."""
        self.count += 1
        return self.count


class CompiledFunction:
    """One model function of a program: ``logits = program["decode"](ids, cache_view)``.

    Outputs that are not handed in live in buffers of the function that *the next call overwrites*; copy what
    is kept. Calls from several threads run one after the other.
    """

    def __init__(self, record: FunctionRecord, context: Context) -> None:
        self.record = record
        self._context = context
        self._entry = context.image.function(record.name)
        self._dtypes = tuple(None if s.dtype == "cache" else numpy_dtype(s.dtype) for s in record.inputs)
        self._input_dims = tuple(_parse_shape(s) for s in record.inputs)
        self._output_dims = tuple(_parse_shape(s) for s in record.outputs)
        self._output_dtypes = tuple(numpy_dtype(s.dtype) for s in record.outputs)
        self._ranges = {d.dim: (d.lo, d.hi) for d in record.dims}
        self._sizes: dict[tuple[Any, ...], Sizes] = {}
        self._buffers = [aligned_empty((0,), "u1") for _ in record.outputs]
        self._views: list[dict[tuple[int, ...], np.ndarray]] = [{} for _ in record.outputs]
        self._launches: Launches | None = None
        self.changes: Any = None  # stepping.Changes: what Program.swap and Program.hook asked for

    @property
    def launches(self) -> Launches:
        """Its launches, to be made one by one.

        Raises:
            UserError: the record has no signature of a kernel.
        """
        from .launches import Launches

        if self._launches is None:
            self._launches = Launches(self.record, self._context)
        return self._launches

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.record.name

    def dim_range(self, dim: str) -> tuple[int, int]:
        """Smallest and largest value of a symbolic dim that the function was compiled for.

        Raises:
            UserError: the function has no such dim.
        """
        if dim not in self._ranges:
            raise UserError(f"{self.name}: no dim {dim!r}; it has {', '.join(self._ranges) or 'none'}")
        return self._ranges[dim]

    def __call__(self, *args: Any, out: Any = None) -> Any:
        """Run the function.

        Args:
            args: One per input: an array of the dtype and shape of its spec (anything with ``__dlpack__``
                too), or for the cache a batch view.
            out: Array (or sequence of arrays, for several outputs) to write the results to.

        Returns:
            The output array, or a tuple of them where there is not exactly one.

        Raises:
            ShapeError: number, dtype or shape of an argument, or a size outside of the compiled range.
            DeviceError: the native code refused the call.
        """
        if self.changes:
            return self.step(*args, out=out).finish()
        with self._context.lock:
            self._context.turn.count += 1
            call = self.bind(args, out)
            tensors = [as_tensor(a) for a in (*call.inputs, *call.outputs)]
            invoke(self._entry, self.name, *tensors, *self._context.workspace)
        return call.outputs[0] if len(call.outputs) == 1 else call.outputs

    def step(self, *args: Any, out: Any = None, keep: Any = ()) -> Run:
        """Begin a run that launches node by node; see ``Program.step``."""
        from .stepping import Changes, Run

        with self._context.lock:
            changes = self.changes.copy() if self.changes else Changes()
            return Run(self.launches, self._context, self.bind(args, out), args, changes, keep)

    def bind(self, args: Sequence[Any], out: Any = None) -> BoundCall:
        """Check the arguments, find the sizes, provide the outputs; see :meth:`__call__`."""
        specs = self.record.inputs
        if len(args) != len(specs):
            names = ", ".join(s.name for s in specs)
            raise ShapeError(f"{self.name}: got {len(args)} arguments; expected {len(specs)}: {names}")
        inputs: list[np.ndarray] = []
        key: list[Any] = []
        for spec, dtype, arg in zip(specs, self._dtypes, args, strict=True):
            if dtype is None:
                array = self._cache_table(spec, arg)
                key.append(
                    (
                        arg.num_tokens,
                        *array[len(CACHE_POINTERS) : len(CACHE_POINTERS) + len(CACHE_DIMS)].tolist(),
                    )
                )
            else:
                array = self._input_array(spec, dtype, arg)
                key.append(array.shape)
            inputs.append(array)
        sizes = self._sizes.get(tuple(key))
        if sizes is None:
            sizes = self._find_sizes(args, inputs)
            if len(self._sizes) >= _MAX_SIZES:
                self._sizes.clear()
            self._sizes[tuple(key)] = sizes
        return BoundCall(tuple(inputs), self._outputs(sizes, out), sizes)

    def _cache_table(self, spec: TensorSpec, arg: Any) -> np.ndarray:
        table = getattr(arg, "table", None)
        if table is None:
            raise ShapeError(
                f"{self.name}: input {spec.name}: got {type(arg).__name__}; "
                "expected a batch view of a KV cache"
            )
        cache = self._context.cache
        assert cache is not None  # a cache input implies a cache record (checked by Program)
        entries = layer_word(cache.num_layers, LAYER_FIELDS[0])
        if table.dtype != np.int64 or table.shape != (entries,):
            raise ShapeError(
                f"{self.name}: input {spec.name}: got a table {type_text(table)}; expected i64[{entries}]"
            )
        return table

    def _input_array(self, spec: TensorSpec, dtype: np.dtype, arg: Any) -> np.ndarray:
        if not isinstance(arg, np.ndarray):
            if not hasattr(arg, "__dlpack__"):
                raise ShapeError(
                    f"{self.name}: input {spec.name}: got {type(arg).__name__}; expected {_spec_text(spec)}"
                )
            arg = np.from_dlpack(arg)
        if arg.dtype != dtype or arg.ndim != len(spec.shape):
            raise ShapeError(
                f"{self.name}: input {spec.name}: got {type_text(arg)}; expected {_spec_text(spec)}"
            )
        return arg if arg.flags.c_contiguous else np.ascontiguousarray(arg)

    def _find_sizes(self, args: Sequence[Any], inputs: list[np.ndarray]) -> Sizes:
        dims = self._read_dims(inputs)
        for dim, value in dims.items():
            lo, hi = self._ranges.get(dim, (0, value))
            if not lo <= value <= hi:
                raise ShapeError(f"{self.name}: {dim} = {value}; it was compiled for {dim} in {lo} .. {hi}")
        for spec, shape, array in zip(self.record.inputs, self._input_dims, inputs, strict=True):
            want = tuple(evaluate(d, dims) for d in shape)
            if spec.dtype != "cache" and array.shape != want:
                raise ShapeError(
                    f"{self.name}: input {spec.name}: got {type_text(array)}; expected {_spec_text(spec)}"
                    f"{_where_text(dims)}"
                )
        self._check_num_tokens(args, inputs)
        return Sizes(dims, tuple(tuple(evaluate(d, dims) for d in shape) for shape in self._output_dims))

    def _read_dims(self, inputs: list[np.ndarray]) -> dict[str, int]:
        """Each symbolic dim from the first input that has it as a whole entry; those of the cache from its
        table.
        """
        dims: dict[str, int] = {}
        for spec, array in zip(self.record.inputs, inputs, strict=True):
            if spec.dtype == "cache":
                start = len(CACHE_POINTERS)
                for i, name in enumerate(CACHE_DIMS):
                    dims.setdefault(name, int(array[start + i]))
            for entry, extent in zip(spec.shape, array.shape, strict=False):
                if isinstance(entry, str) and entry.isidentifier():
                    dims.setdefault(entry, extent)
        return dims

    def _check_num_tokens(self, args: Sequence[Any], inputs: list[np.ndarray]) -> None:
        """The view's token count must be the leading extent(s) of a tensor input: kernels index its arrays by
        it.
        """
        tensors = [a for a, dtype in zip(inputs, self._dtypes, strict=True) if dtype is not None]
        for arg, dtype in zip(args, self._dtypes, strict=True):
            if dtype is None and tensors:
                leading = {math.prod(t.shape[:i]) for t in tensors for i in range(1, t.ndim + 1)}
                if arg.num_tokens not in leading:
                    given = ", ".join(map(type_text, tensors))
                    raise ShapeError(
                        f"{self.name}: the batch view is for {arg.num_tokens} tokens; the inputs are {given}"
                    )

    def _outputs(self, sizes: Sizes, out: Any) -> tuple[np.ndarray, ...]:
        if out is None:
            return tuple(self._buffer(i, shape) for i, shape in enumerate(sizes.outputs))
        given = (out,) if isinstance(out, np.ndarray) else tuple(out)
        if len(given) != len(sizes.outputs):
            raise ShapeError(f"{self.name}: got {len(given)} output arrays; expected {len(sizes.outputs)}")
        for spec, dtype, shape, array in zip(
            self.record.outputs, self._output_dtypes, sizes.outputs, given, strict=True
        ):
            flags = array.flags
            if array.dtype != dtype or array.shape != shape or not (flags.c_contiguous and flags.writeable):
                raise ShapeError(
                    f"{self.name}: output {spec.name}: got {type_text(array)}; "
                    f"expected a writable C-contiguous {spec.dtype}{list(shape)}"
                )
        return given

    def _buffer(self, i: int, shape: tuple[int, ...]) -> np.ndarray:
        """The function's own array for output ``i``: a view of the front of a buffer that grows to the
        largest size.
        """
        found = self._views[i].get(shape)
        if found is not None:
            return found
        dtype = self._output_dtypes[i]
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes > self._buffers[i].nbytes or len(self._views[i]) >= _MAX_SIZES:
            self._views[i].clear()
            self._buffers[i] = aligned_empty((max(size_bytes, self._buffers[i].nbytes),), "u1")
        view = self._buffers[i][:size_bytes].view(dtype).reshape(shape)
        self._views[i][shape] = view
        return view


class Program:
    """All functions of a compiled model, its params and one workspace for all calls.

    Args:
        record: What the compiler wrote.
        image: Machine code: bytes or path of the image file, or an image that is loaded already.
        params: Every param of ``record`` in its stored shape, C-contiguous; referenced, not copied.
        num_threads: Threads of the pool (where ``image`` is not loaded yet); ``None`` = one per CPU.
        plan: ``plan.json``, its text or where it is: what the compiler considered, for people.

    Raises:
        UserError: a param is missing or has another dtype or shape than the record says; a symbol is not in
            the image.
    """

    def __init__(
        self,
        record: ProgramRecord,
        image: Image | bytes | Path,
        params: Mapping[str, np.ndarray],
        num_threads: int | None = None,
        plan: str | Path | None = None,
    ) -> None:
        from .nodes import plan_reader

        if isinstance(image, (bytes, Path)):
            from .image import (
                load_image,
            )  # the loader maps executable memory; fake images in tests need none of it

            image = load_image(image, num_threads)
        assert not isinstance(image, (bytes, Path))
        self.record = record
        self.image = image
        self.params = {p.name: params[p.name] for p in record.params if p.name in params and not p.within}
        self._check_params()
        for spec in (p for p in record.params if p.within):
            whole = self.params[spec.within].view(numpy_dtype(spec.dtype))
            self.params[spec.name] = whole.reshape(spec.shape)
        self.lock = threading.RLock()
        self.param_table = np.array([address(self.params[p.name]) for p in record.params], np.int64)
        self.arena = aligned_empty((max([64, *(f.arena_bytes for f in record.functions)]),), "u1")
        workspace = (as_tensor(self.param_table), as_tensor(self.arena))
        self._kernels: dict[str, Callable[..., Any]] = {}
        for function in record.functions:
            if record.cache is None and any(s.dtype == "cache" for s in function.inputs):
                raise UserError(f"program: {function.name} takes a KV cache, but the record describes none")
        self.plan = plan
        context = Context(
            *(image, record.cache, workspace, self.lock, self.params),
            *(record, self.arena, plan_reader(plan), Turn()),
        )
        self.functions = {f.name: CompiledFunction(f, context) for f in record.functions}

    @classmethod
    def load(cls, folder: Path | str, num_threads: int | None = None) -> Program:
        """The program in an artifact folder; see ``artifact.open_artifact`` for the errors."""
        from .artifact import open_artifact

        artifact = open_artifact(folder)
        return cls(artifact.record, artifact.image, artifact.params, num_threads, artifact.plan)

    @property
    def cache(self) -> CacheRecord | None:
        """Description of the KV cache that the functions take."""
        return self.record.cache

    @property
    def num_threads(self) -> int:
        """Threads that work on a parallel loop, the caller included."""
        return self.image.num_threads

    def _check_params(self) -> None:
        for spec in (p for p in self.record.params if not p.within):
            array = self.params.get(spec.name)
            want = f"{spec.dtype}[{','.join(map(str, spec.shape))}]"
            if array is None:
                raise UserError(f"program: param {spec.name!r} is missing; expected {want}")
            if (
                array.dtype != numpy_dtype(spec.dtype)
                or array.shape != spec.shape
                or not array.flags.c_contiguous
            ):
                raise UserError(
                    f"program: param {spec.name!r}: got {type_text(array)}; expected C-contiguous {want}"
                )

    def __getitem__(self, name: str) -> CompiledFunction:
        """The function called ``name``.

        Raises:
            UserError: no such function; lists those that exist.
        """
        if name not in self.functions:
            raise UserError(f"program: no function {name!r}; it has {', '.join(self.functions) or 'none'}")
        return self.functions[name]

    def __contains__(self, name: str) -> bool:
        return name in self.functions

    def kernel(self, name: str) -> Callable[..., Any]:
        """One kernel as a tvm-ffi function: tensors (inputs, outputs), then its symbolic dims as integers.

        Raises:
            UserError: no launch names such a kernel.
        """
        if name not in self._kernels:
            known = {c.kernel for f in self.record.functions for step in f.launches for c in step.choices}
            known |= {k.name for k in self.record.kernels}
            if name not in known:
                raise UserError(
                    f"program: no kernel {name!r}; it has {', '.join(sorted(known)[:8]) or 'none'}"
                )
            self._kernels[name] = self.image.function(name)
        return self._kernels[name]

    def nodes(self, function: str) -> tuple[NodeInfo, ...]:
        """The nodes of a function, in the order of execution: names, shapes, candidates, costs.

        Raises:
            UserError: no such function, or the record has no signature of a kernel.
        """
        return self[function].launches.nodes

    def step(self, function: str, *args: Any, out: Any = None, keep: Any = ()) -> Run:
        """Like ``program[function](*args, out=out)``, but launching one node after the other, when asked.

        Args:
            function: Name.
            *args: As of a call.
            out: As of a call.
            keep: Nodes (names, patterns; ``True`` = all) whose results are copied, because later nodes write
                to the same memory.

        Returns:
            A run: ``run.next()``, ``for node in run``, ``run.run_to(name)``, ``run.value(name)``.

        Raises:
            UserError: as a call; also when the record has no signature of a kernel.
            VerifyError: a buffer is smaller than the kernel's parameter.
        """
        return self[function].step(*args, out=out, keep=keep)

    def swap(self, node: Any, kernel: Kernel, function: str | None = None) -> tuple[NodeInfo, ...]:
        """Put another kernel in the place of a node's, for all later calls and runs; nothing is compiled.

        A function with such nodes is run launch by launch from then on, which costs about a microsecond per
        node; :meth:`restore` ends that.

        Args:
            node: Which nodes: a name, a pattern (``"*.mlp.down_proj"``), a node, or several.
            kernel: See ``Run.replace``.
            function: Only in this function; ``None``: in every function that has such nodes.

        Returns:
            The nodes whose kernel is another one now.

        Raises:
            UserError: no such node, function or kernel; the kernel takes other parameters.
        """
        from .stepping import resolve_kernel

        chosen = [(f, n, resolve_kernel(f.launches, n, kernel)) for f, n in self._select(node, function)]
        with self.lock:
            for owner, found, call in chosen:
                self._changes(owner).kernels[found.index] = call
        return tuple(n for _, n, _ in chosen)

    def hook(
        self, node: Any, before: Hook | None = None, after: Hook | None = None, function: str | None = None
    ) -> tuple[NodeInfo, ...]:
        """Call ``before(event)`` and ``after(event)`` around nodes in all later calls and runs.

        As with :meth:`swap` the function is run launch by launch from then on.

        Raises:
            UserError: no such node or function.
        """
        chosen = self._select(node, function)
        with self.lock:
            for owner, found in chosen:
                self._changes(owner).hook([found], before, after)
        return tuple(n for _, n in chosen)

    def restore(self, node: Any = "*", function: str | None = None) -> None:
        """Take back what :meth:`swap` and :meth:`hook` did to nodes (by default: to all).

        Raises:
            UserError: no such node or function.
        """
        with self.lock:
            for owner, found in self._select(node, function):
                self._changes(owner).forget([found])

    def _changes(self, function: CompiledFunction) -> Any:
        from .stepping import Changes

        if function.changes is None:
            function.changes = Changes()
        return function.changes

    def _select(self, node: Any, function: str | None) -> list[tuple[CompiledFunction, NodeInfo]]:
        """Nodes that ``node`` names, with their functions."""
        from .nodes import NodeInfo, matching, no_such_node

        if function is None and isinstance(node, NodeInfo):
            function = node.function
        owners = [self[function]] if function is not None else list(self.functions.values())
        wanted = [node] if isinstance(node, (NodeInfo, int, str)) else list(node)
        found: list[tuple[CompiledFunction, NodeInfo]] = []
        for item in wanted:
            new = [(owner, n) for owner in owners for n in matching(owner.launches.nodes, item)]
            if not new:
                raise no_such_node(owners[0].launches.nodes, item)
            found += [pair for pair in new if pair not in found]
        return found


def _parse_shape(spec: TensorSpec) -> tuple[Dim, ...]:
    return tuple(parse_dim(d, {}) if isinstance(d, str) else d for d in spec.shape)


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _where_text(dims: Mapping[str, int]) -> str:
    return " where " + ", ".join(f"{k} = {v}" for k, v in dims.items()) if dims else ""
