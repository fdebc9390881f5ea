"""The staged driver: four stages, each with a text, each a place to stop and look.

::

    Traced    the graph as the front end made it         .lower()    runs the pass pipeline
    Lowered   the fused graph                            .plan()     lowers groups, proposes, chooses kernels
    Planned   loop functions, stacks, plan, memory       .compile()  machine code
    Compiled  record + image                             .program(params) loads it, .save(...) writes it
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from strata.codegen.build import build_image
from strata.codegen.compile import emit_module
from strata.codegen.externs import extern_records
from strata.codegen.object_cache import Progress
from strata.core.errors import UnsupportedError, UserError
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.ir.dump import LLVM, show_stage, wants_stage
from strata.ir.passes import Pipeline
from strata.loop.layout import Layout, stored_dtype, stored_shape
from strata.loop.nodes import Func
from strata.passes import named_pipeline, run_passes
from strata.planner.assemble import PlannedFunction, check_obeyed, plan_function
from strata.planner.gates import JoinGates
from strata.planner.layouts import choose_layouts, reads_rows, settle_layouts, shared_params
from strata.planner.options import PlanOptions
from strata.planner.report import plan_json
from strata.planner.stacks import StackBuilder
from strata.runtime.artifact import save_artifact
from strata.runtime.program import Program
from strata.runtime.records import CacheRecord, ParamRecord, ProgramRecord
from strata.target import Target, detect_host

Params = Iterable[tuple[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Traced:
    """A graph module on its way to ``target``.

    Attributes:
        module: As the front end made it.
        target: The machine to compile for.
        cache: The KV cache that its functions take, if any.
        config: Data for the engine, copied into the program.
    """

    module: Module
    target: Target
    cache: CacheRecord | None = None
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Graph IR."""
        from strata.graph.text import print_module

        return print_module(self.module)

    def lower(self, pipeline: Pipeline | str = "default") -> Lowered:
        """Run the graph passes."""
        return Lowered(self, run_passes(pipeline, self.module))


@dataclass(frozen=True, slots=True)
class Lowered:
    """The module after the pass pipeline: every launch is one ``fused`` node."""

    source: Traced
    module: Module

    @property
    def text(self) -> str:
        """Graph IR."""
        from strata.graph.text import print_module

        return print_module(self.module)

    def plan(
        self, options: PlanOptions | None = None, measuring: Callable[[str], None] | None = None
    ) -> Planned:
        """Lower every group, collect candidates, choose among them and lay out memory.

        Args:
            options: Libraries, preferences, pins, ...; default: schedule rules and the user's own kernels.
            measuring: Called with the name of a kernel before its candidates are timed.

        Raises:
            UserError: a pin or a preference fits nothing, or a user kernel is wrong.
        """
        target = self.source.target
        options = options or PlanOptions()
        by_rows = reads_rows(self.module, options)
        place = named_pipeline("place")
        if options.join_gates and not by_rows:
            place = place.prepend(JoinGates(str(target)))
        module = run_passes(place, self.module)
        layouts = choose_layouts(module, target)
        if by_rows:
            layouts = settle_layouts(module, layouts, target, options, measuring)
        constants = _array_constants(module)
        shapes: dict[str, TensorType] = dict(module.params)
        shapes.update(constants.types)
        positions = {name: k for k, name in enumerate(shapes)}
        builder = StackBuilder(layouts, target, options, module.loops, measuring)
        functions = tuple(
            plan_function(function, builder, positions, constants.names)
            for function in compiled_functions(module)
        )
        check_obeyed(functions, options)
        shared = shared_params(module, layouts)
        params = tuple(
            _param_record(name, t, layouts.get(name), shared.get(name, "")) for name, t in shapes.items()
        )
        return Planned(self, functions, params, layouts, constants.values)


@dataclass(frozen=True, slots=True)
class _Constants:
    """Array constants of a module as extra params."""

    names: dict[int, str]
    types: dict[str, TensorType]
    values: dict[str, np.ndarray]


def _array_constants(module: Module) -> _Constants:
    names: dict[int, str] = {}
    types: dict[str, TensorType] = {}
    values: dict[str, np.ndarray] = {}
    taken = set(module.params)
    for function in module.functions:
        for node in function.nodes:
            if node.op == "const" and id(node) not in names:
                name = next(n for k in itertools.count(len(values)) if (n := f"const.{k}") not in taken)
                taken.add(name)
                names[id(node)] = name
                types[name] = node.tensor
                values[name] = np.asarray(node.attrs["value"], order="C")
    return _Constants(names, types, values)


def _param_record(name: str, tensor: TensorType, layout: Layout | None, within: str) -> ParamRecord:
    shape = tuple(d for d in tensor.shape if isinstance(d, int))
    if len(shape) != tensor.rank:
        raise UnsupportedError(f"param {name}: got {tensor}; expected a constant shape; make it an input")
    stored = tuple(int(d) for d in stored_shape(shape, layout))  # type: ignore[arg-type]
    dtype = stored_dtype(tensor.dtype).name
    return ParamRecord(name, dtype, stored, shape, str(layout) if layout is not None else "", within)


@dataclass(frozen=True, slots=True)
class Planned:
    """Loop functions and choices of every function.

    Attributes:
        functions: One per compiled model function.
        params: Stored params; position = index in the param table.
        layouts: Stored layout by param name (row-major ones are absent).
        constants: Values of the params that come from the graph itself.
    """

    source: Lowered
    functions: tuple[PlannedFunction, ...]
    params: tuple[ParamRecord, ...]
    layouts: Mapping[str, Layout]
    constants: Mapping[str, np.ndarray]

    @property
    def text(self) -> str:
        """Loop IR of every kernel."""
        from strata.loop.text import print_func

        return "\n\n".join(map(print_func, self.funcs.values()))

    @property
    def funcs(self) -> dict[str, Func]:
        """Loop functions of all model functions, which share some, by kernel name."""
        return {name: func for p in self.functions for name, func in p.funcs.items()}

    def compile(self, progress: Progress | None = None) -> Compiled:
        """Generate machine code."""
        traced = self.source.source
        funcs = list(self.funcs.values())
        records = [p.record for p in self.functions]
        if wants_stage(LLVM):
            for func in funcs:
                show_stage(LLVM, func.name, emit_module(func, traced.target), "ll")
        image = build_image(funcs, records, traced.target, progress=progress)
        record = ProgramRecord(
            tuple(records),
            self.params,
            traced.cache,
            str(traced.target),
            traced.target.features,
            dict(traced.config),
            tuple({k.name: k for p in self.functions for k in p.kernels}.values()),
            extern_records(funcs),
        )
        plan = json.dumps(plan_json(self.functions))
        return Compiled(record, image.blob, plan, self.constants)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled model without its weights.

    Attributes:
        record: What the runtime reads.
        image: Machine code.
        plan: Text of ``plan.json``: every choice with its estimates.
        constants: Values of the params that come from the graph itself.
    """

    record: ProgramRecord
    image: bytes
    plan: str
    constants: Mapping[str, np.ndarray]

    def stored_params(self, params: Params) -> Iterator[tuple[str, np.ndarray]]:
        """Params with memory of their own in their stored layouts, one at a time.

        Raises:
            UserError: a param is missing, unknown, there twice, or has another shape or dtype.
        """
        yield from store_params(self.record.params, params, self.constants)

    def program(self, params: Params | Mapping[str, np.ndarray], num_threads: int | None = None) -> Program:
        """Load into this process with these params."""
        pairs = cast("Params", params.items()) if isinstance(params, Mapping) else params
        places = _side_by_side(self.record.params)
        stored = dict(store_params(self.record.params, pairs, self.constants, places))
        return Program(self.record, self.image, stored, num_threads, self.plan)

    def save(self, folder: Path | str, params: Params, extra_files: Mapping[str, Any] | None = None) -> None:
        """Write an artifact folder; see ``runtime.artifact``."""
        save_artifact(folder, self.record, self.image, self.stored_params(params), self.plan, extra_files)


def store_params(
    records: tuple[ParamRecord, ...],
    params: Params,
    constants: Mapping[str, np.ndarray],
    places: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Check params against the record and bring them into their stored layouts, one after the other.

    Args:
        records: The params that there must be.
        params: Them, as the graph has them.
        constants: Those that come from the graph itself.
        places: Arrays to pack params with a layout into, by name; for others there is new memory.

    Returns:
        Params with memory of their own, complete with those that lie within.
    """
    from strata.loop.layout import parse_layout

    known = {r.name: r for r in records}
    left = dict.fromkeys(known)
    memory = _Memory(known, places or {})

    def chained() -> Iterator[tuple[str, np.ndarray]]:
        yield from params
        yield from constants.items()

    for name, array in chained():
        if name not in left:
            why = "comes twice" if name in known else f"is unknown; the graph has: {_some(known)}"
            raise UserError(f"params: {name!r} {why}")
        record = known[name]
        if not isinstance(array, np.ndarray):
            raise UserError(f"params: {name}: got a {type(array).__name__}; expected a NumPy array")
        layout = parse_layout(record.layout)
        is_packed = layout is not None and layout.nibbles
        if array.dtype.name == "uint4":
            array = array.view(np.uint8)  # one to a byte
        elif is_packed:
            raise UserError(f"params: {name}: got {array.dtype}; expected uint4: it is stored two to a byte")
        if array.shape != record.logical_shape or array.dtype != np.dtype(_numpy_name(record.dtype)):
            raise UserError(
                f"params: {name}: got {array.dtype}{list(array.shape)}; "
                f"expected {record.dtype}{list(record.logical_shape)}"
            )
        del left[name]
        stored = memory.packed(record, array, layout) if layout else np.ascontiguousarray(array)
        del array  # it may be large, and the consumer takes its time
        if stored is not None:
            yield record.within or name, stored
        del stored
    if left:
        raise UserError(f"params: {len(left)} missing, e.g. {next(iter(left))!r}")


class _Memory:
    """Where params with a layout are packed.

    Args:
        records: All params, by name.
        places: Arrays for them, by name; for others there is new memory.
    """

    def __init__(self, records: Mapping[str, ParamRecord], places: Mapping[str, np.ndarray]) -> None:
        self._records = records
        self._places = dict(places)
        self._left = Counter(r.within or name for name, r in records.items())

    def packed(self, record: ParamRecord, array: np.ndarray, layout: Layout) -> np.ndarray | None:
        """The memory of ``array``, once everything that lies in it is there."""
        owner = self._records[record.within or record.name]
        if owner.name not in self._places and self._left[owner.name] > 1:
            self._places[owner.name] = np.zeros(owner.shape, _numpy_name(owner.dtype))
        place = self._places.get(owner.name)
        own = None if place is None else place.view(_numpy_name(record.dtype)).reshape(record.shape)
        packed = layout.pack(array, own)
        self._left[owner.name] -= 1
        if self._left[owner.name]:
            return None
        return packed if place is None else self._places.pop(owner.name)


def _side_by_side(records: tuple[ParamRecord, ...]) -> dict[str, np.ndarray]:
    """Where params with a layout go that are not written to a file: one piece of memory.

    Huge pages cover it whole; of memory of its own, they would cover the middle of a large param alone.
    """
    from strata.runtime.tensors import aligned_empty, aligned_size, numpy_dtype

    packed = [(r, r.own_bytes) for r in records if r.layout and not r.within]
    memory = aligned_empty((sum(aligned_size(size) for _, size in packed),), "u1")
    places: dict[str, np.ndarray] = {}
    for record, size in packed:
        places[record.name] = memory[:size].view(numpy_dtype(record.dtype)).reshape(record.shape)
        memory = memory[aligned_size(size) :]
    return places


def _some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names."""
    every = list(names)
    return ", ".join(every[:limit]) + (", ..." if len(every) > limit else "") if every else "none"


def _numpy_name(name: str) -> str:
    from strata.core.dtypes import dtype

    return dtype(name).numpy_name


def trace(
    module: Module,
    target: Target | None = None,
    cache: CacheRecord | None = None,
    config: Mapping[str, object] | None = None,
) -> Traced:
    """Start compiling ``module`` for ``target`` (default: this machine)."""
    return Traced(module, target or detect_host(), cache, dict(config or {}))


def compiled_functions(module: Module) -> tuple[Function, ...]:
    """Functions that are compiled: all but constructors of caches."""
    return tuple(f for f in module.functions if not any(n.op == "create_kv_cache" for n in f.nodes))
