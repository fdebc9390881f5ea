"""Node by node: what a compiled function computes against what it should, and the first node that differs.

::

    pass = model.forward_pass("decode", "def f(x):")
    report = compare(pass, Interpreter(pass))
    report.first                       # the first node that diverges, or None

What is expected comes from a *reference*: the graph interpreter on the node's actual inputs
(:class:`Interpreter`: an error is found in the node that makes it), the interpreter on its own values from
the beginning (``accumulates=True``), values that were written to a file (:class:`Recorded`), or a PyTorch
model (``compare_torch``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from strata.core.dims import evaluate
from strata.core.dtypes import dtype, f32
from strata.core.errors import UserError
from strata.core.kv_layout import pack_of, repack
from strata.engine.forward import ForwardPass
from strata.engine.generate import LanguageModel
from strata.graph.cache_value import CacheValue
from strata.graph.interp import Value, evaluate_node
from strata.graph.nodes import Function
from strata.graph.ops.fused import bind_layer
from strata.graph.text import parse_function
from strata.graph.tolerance import UNIT_ROUNDOFF, for_, for_op
from strata.graph.types import CacheType
from strata.loop.layout import parse_layout
from strata.planner.candidates.rounded import rounded_body
from strata.planner.types import Origin
from strata.runtime.nodes import NodeInfo, select
from strata.runtime.program import Program
from strata.runtime.records import ArgKind, ArgRef
from strata.runtime.safetensors_file import SafetensorsFile, TensorShape, write_safetensors
from strata.runtime.stepping import NodeEvent
from strata.runtime.tensors import dtype_name

Array = np.ndarray[Any, Any]
FORMAT = "strata-values"
F32_STEP = 2.0**-18  # error of a node of an f32 model, relative: 64 units of roundoff (for_model's bound)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a value may be from what is expected: ``atol + rtol * |expected|``.

    Attributes:
        rtol, atol: Relative and absolute part.
        why: Where they come from.
    """

    rtol: float
    atol: float
    why: str

    def __str__(self) -> str:
        return f"{self.atol:.2g} + {self.rtol:.2g} * |expected| ({self.why})"


@dataclass(frozen=True, slots=True)
class Expected:
    """What one output of a node should be.

    Attributes:
        output: Which output.
        value: Same number of elements as the output.
        tolerance: How far off it may be.
    """

    output: int
    value: Array
    tolerance: Tolerance


class Reference(Protocol):
    """Where expectations come from."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    def expected(self, event: NodeEvent) -> Sequence[Expected]:
        """What the node should compute; called before it is launched. Nothing where nothing corresponds."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """How one node's value compares.

    Attributes:
        node: The node.
        kernel: What ran.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the expected element.
        worst: Index of the element that exceeds (or comes nearest to) its tolerance by most.
        got, expected: That element.
        ratio: Its difference over its tolerance; above 1 the node diverges.
        tolerance: What was allowed.
    """

    node: NodeInfo
    kernel: str
    max_abs: float
    max_rel: float
    worst: tuple[int, ...]
    got: float
    expected: float
    ratio: float
    tolerance: Tolerance

    @property
    def diverges(self) -> bool:
        """Whether some element is further off than its tolerance."""
        return not self.ratio <= 1.0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "index": self.node.index,
            "node": self.node.name,
            "op": self.node.op,
            "kernel": self.kernel,
            "diverges": self.diverges,
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "worst": list(self.worst),
            "got": self.got,
            "expected": self.expected,
            "ratio": self.ratio,
            "rtol": self.tolerance.rtol,
            "atol": self.tolerance.atol,
            "tolerance": self.tolerance.why,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences of one run.

    Attributes:
        function: What ran.
        against: Name of the reference.
        compared: One per node that has a counterpart, in the order of execution.
        unmatched: Nodes without one.
    """

    function: str
    against: str
    compared: tuple[Difference, ...]
    unmatched: tuple[NodeInfo, ...]

    @property
    def first(self) -> Difference | None:
        """The first node that diverges."""
        return next((d for d in self.compared if d.diverges), None)

    @property
    def agrees(self) -> bool:
        """Whether no node diverges."""
        return self.first is None

    def suspects(self) -> tuple[NodeInfo, ...]:
        """Nodes that may have caused the first divergence: it, and those before it that nothing was compared
        to.
        """
        if self.first is None:
            return ()
        last = max((d.node.index for d in self.compared if d.node.index < self.first.node.index), default=-1)
        return (*(n for n in self.unmatched if last < n.index < self.first.node.index), self.first.node)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "function": self.function,
            "against": self.against,
            "agrees": self.agrees,
            "first": None if self.first is None else self.first.to_json(),
            "suspects": [n.name for n in self.suspects()],
            "compared": [d.to_json() for d in self.compared],
            "unmatched": [n.name for n in self.unmatched],
        }


def compare(forward: ForwardPass, reference: Reference, nodes: Any = "*") -> Comparison:
    """Launch a pass node by node and compare every value.

    Args:
        forward: What to run, with the program's own kernels or those that ``Program.swap`` put in.
        reference: Says what to expect.
        nodes: Only these; see ``runtime.nodes.select``.

    Raises:
        UserError: no such nodes, or none of them has a counterpart.
    """
    run = forward.step()
    chosen = {n.index for n in select(run.nodes, nodes)}
    found: list[Difference] = []
    unmatched: list[NodeInfo] = []
    expected: list[Expected] = []

    def before(event: NodeEvent) -> None:
        expected[:] = reference.expected(event)

    def after(event: NodeEvent) -> None:
        if event.node.index not in chosen:
            return
        if expected:
            parts = [difference(event, e) for e in expected]
            found.append(max(parts, key=lambda d: d.ratio if d.ratio == d.ratio else np.inf))
        else:
            unmatched.append(event.node)

    run.before("*", before)
    run.after("*", after)
    run.finish()
    if not found:
        raise UserError(
            f"{forward.function}: nothing to compare: no node has a counterpart in {reference.name}"
        )
    return Comparison(forward.function, reference.name, tuple(found), tuple(unmatched))


def difference(event: NodeEvent, expected: Expected) -> Difference:
    """Compare one output with what is expected of it."""
    got = event.outputs[expected.output]
    mine = got.astype(np.float64).reshape(expected.value.shape)
    want, limits = expected.value.astype(np.float64), expected.tolerance
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(mine - want)
        same = (mine == want) | (np.isnan(mine) & np.isnan(want))
        off = np.where(same, 0.0, np.where(np.isnan(off), np.inf, off))
        allowed = limits.atol + limits.rtol * np.abs(np.where(np.isfinite(want), want, 0.0))
        ratio = np.where(same, 0.0, off / allowed)
        relative = np.where(same, 0.0, off / np.abs(want))
    where = np.unravel_index(int(ratio.argmax()), ratio.shape) if ratio.size else ()
    at = tuple(int(i) for i in where)
    empty = not ratio.size
    return Difference(
        event.node,
        event.kernel,
        0.0 if empty else float(off.max()),
        0.0 if empty else float(relative.max()),
        at,
        0.0 if empty else float(mine[at]),
        0.0 if empty else float(want[at]),
        0.0 if empty else float(ratio[at]),
        limits,
    )


def _is_position(event: NodeEvent, output: int) -> bool:
    """Whether an output says which of several values is the largest.

    Where these are nearly equal, errors that add up decide, so only the node's own error tells anything.
    """
    return event.node.op == "argmax" and event.node.outputs[output].dtype == "i32"


# --- the graph interpreter --------------------------------------------------------------------------------


@cache
def _body(text: str, layer: int) -> Function:
    return bind_layer(parse_function(text), layer)


def node_body(node: NodeInfo) -> Function:
    """The graph of a node.

    Raises:
        UserError: the program has no plan.
    """
    details = node.details
    if "body" not in details:
        raise UserError(
            f"{node.function}: the program has no plan.json with the graphs of its nodes; "
            "compile the model again"
        )
    return _body(details["body"], int(details["layer"]))


class Operands:
    """Values of nodes' operands as the graph sees them: logical layouts, the cache as one value."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward
        self.program: Program = forward.program
        self.env = dict(forward.dims)

    def cache_value(self, type_: CacheType) -> CacheValue:
        """The cache as it is now; shares its memory."""
        view, pool = self.forward.view, self.forward.cache
        return CacheValue(
            *(type_, view.positions, view.slots, view.seq_ids, view.page_table, view.last_rows),
            *(pool.rope_cos, pool.rope_sin, tuple(pool.k_pages), tuple(pool.v_pages)),
            *(tuple(pool.k_scales), tuple(pool.v_scales)),
        )

    def of(self, event: NodeEvent) -> list[Value]:
        """Operands of a node's body, in order, from the buffers that the kernel reads."""
        values: list[Value] = []
        body = node_body(event.node)
        for inner, place in zip(body.inputs, event.node.details["operands"], strict=True):
            if isinstance(inner.type, CacheType):
                values.append(self.cache_value(inner.type))
                continue
            shape = tuple(evaluate(d, self.env) for d in inner.tensor.shape)
            values.append(self.logical(event.node.inputs[place].place, event.inputs[place]).reshape(shape))
        return values

    def logical(self, ref: ArgRef, array: Array) -> Array:
        """An operand in the layout of the graph."""
        if ref.kind is not ArgKind.PARAM:
            return array
        record = self.program.record.params[ref.index]
        layout = parse_layout(record.layout)
        if layout is None:
            return array
        rows, cols = record.logical_shape
        return layout.unpack(array, (rows, cols))


def computed_body(event: NodeEvent) -> Function:
    """The graph of a node, with operands rounded as the kernel does it that ran."""
    body = node_body(event.node)
    candidates = event.node.details.get("candidates", ())
    origins = {c["origin"] for c in candidates if c["kernel"] == event.kernel}
    return rounded_body(body) if Origin.ROUNDED.value in origins else body


def body_values(
    body: Function, operands: Sequence[Value], env: dict[str, int], known: Mapping[int, Value] | None = None
) -> dict[int, Value]:
    """Value of every node of a body, by id; those in ``known`` are taken from there."""
    values: dict[int, Value] = {id(n): v for n, v in zip(body.inputs, operands, strict=True)}
    values.update(known or {})
    for node in body.nodes:
        if id(node) not in values:
            values[id(node)] = evaluate_node(node, [values[id(i)] for i in node.inputs], env)
    return values


class Interpreter:
    """Expects what the graph interpreter computes.

    Args:
        forward: The pass.
        accumulates: Go on with the interpreter's own values, so that differences add up as they would in the
            model; otherwise every node is given the actual values, and only its own error shows.
    """

    def __init__(self, forward: ForwardPass, accumulates: bool = False) -> None:
        self.name = "the interpreter, end to end" if accumulates else "the interpreter"
        self._operands = Operands(forward)
        self._accumulates = accumulates
        self._places: dict[ArgRef, Array] = {}
        self._cache: CacheValue | None = None
        self._steps = 0

    def expected(self, event: NodeEvent) -> Sequence[Expected]:
        """Evaluate the node's body; see :class:`Reference`."""
        body = computed_body(event)
        operands = self._operands.of(event)
        if self._accumulates and not _is_position(event, 0):
            operands = self._own(event, operands)
        values = body_values(body, operands, self._operands.env)
        (result,) = body.outputs
        value = values[id(result)]
        self._steps += 1
        if isinstance(value, CacheValue):
            self._cache = value
            return list(self._pages(event, value, operands))
        if any(isinstance(o, np.ndarray) and np.may_share_memory(value, o) for o in operands):
            value = value.copy()  # the launch may overwrite its operands
        self._places[event.node.outputs[0].place] = value
        limits = group_tolerance(body, values, self._operands.env)
        if self._accumulates:
            limits = self._accumulated(value, limits, event)
        return [Expected(0, value, limits)]

    def _own(self, event: NodeEvent, actual: Sequence[Value]) -> list[Value]:
        """Operands with the interpreter's own values where it has computed them."""
        own: list[Value] = []
        for place, value in zip(event.node.details["operands"], actual, strict=True):
            if isinstance(value, CacheValue):
                own.append(value if self._cache is None else self._cache)
                continue
            ref = event.node.inputs[place].place
            computed = self._places.get(ref)
            own.append(value if computed is None else computed.reshape(value.shape))
        return own

    def _pages(self, event: NodeEvent, value: CacheValue, operands: Sequence[Value]) -> Iterator[Expected]:
        limits = for_(
            value.type.dtype, 2, scale=max(_largest(o) for o in operands if isinstance(o, np.ndarray))
        )
        tolerance = Tolerance(limits["rtol"], limits["atol"], f"rotation, rounded to {value.type.dtype}")
        for number, output in enumerate(event.node.outputs):
            pages = value[output.place.field][output.place.layer]
            if self._accumulates:
                tolerance = self._accumulated(pages, tolerance, event)
            yield Expected(number, pages, tolerance)

    def _accumulated(self, value: Array, own: Tolerance, event: NodeEvent) -> Tolerance:
        return accumulated_tolerance(value, self._steps, self._operands.forward, own)


def group_tolerance(body: Function, values: dict[int, Value], env: dict[str, int]) -> Tolerance:
    """Tolerance for the result of a group whose inner values are known.

    Each inner node may be off by its own tolerance (``graph.tolerance.for_op``). On its way to the result
    that error is taken to grow as the values do: by the largest result over the node's largest value, but not
    to shrink (a sum may cancel).
    """
    (result,) = body.outputs
    kind = result.tensor.dtype
    final = for_(kind)
    largest = _largest(values[id(result)])
    given = {id(n) for n in body.inputs}
    atol, worst, why = 0.0, -1.0, "rounding"
    for node in body.nodes:
        value = values[id(node)]
        if id(node) in given or not isinstance(value, np.ndarray) or not node.tensor.dtype.is_float:
            continue
        limits = for_op(node.op, [values[id(i)] for i in node.inputs], node.attrs, node.tensor.dtype)
        own = limits["atol"]
        if node is not result:
            own += limits["rtol"] * _largest(value)
        grown = own * max(1.0, largest / max(_largest(value), 1e-30))
        atol += grown
        if grown > worst:
            worst, why = grown, _why(node.op, values, node.inputs, node.tensor.dtype.name)
    return Tolerance(final["rtol"], atol + final["atol"], f"{why}, result in {kind}")


def _why(op: str, values: dict[int, Value], inputs: Sequence[Any], kind: str) -> str:
    """What an op's tolerance depends on."""
    if op == "matmul":
        left = values[id(inputs[0])]
        assert isinstance(left, np.ndarray)
        return f"matmul: f32 sums of {left.shape[-1]} terms"
    return f"{op} in {kind}"


def _largest(value: Value) -> float:
    if not isinstance(value, np.ndarray) or not value.size:
        return 0.0
    x = np.abs(value.astype(np.float64))
    return float(x[np.isfinite(x)].max(initial=0.0))


def accumulated_tolerance(value: Array, steps: int, forward: ForwardPass, own: Tolerance | None) -> Tolerance:
    """Tolerance after ``steps`` nodes whose errors add up.

    Every node rounds to the model's format ``u`` somewhere, or (with f32) to what its sums make of it: a
    random walk of ``steps`` of these has rms ``u * sqrt(steps)`` relative to the values; six standard
    deviations are allowed, as in ``graph.tolerance.for_model``.
    """
    kind = str(forward.program.record.config.get("format", "f32"))
    rms = float(np.sqrt(np.mean(np.square(value.astype(np.float64))))) if value.size else 0.0
    unit = F32_STEP if dtype(kind) is f32 else UNIT_ROUNDOFF[kind]
    atol = 6 * unit * (steps + 1) ** 0.5 * max(rms, 1e-30)
    mine = Tolerance(0.0, 0.0, "") if own is None else own
    why = f"random walk of {steps + 1} roundings to {kind}, 6 standard deviations"
    return Tolerance(mine.rtol, mine.atol + atol, why)


# --- values in a file -------------------------------------------------------------------------------------


def record_values(forward: ForwardPass, path: Path | str, nodes: Any = "*") -> int:
    """Write the values of nodes to a safetensors file, with the tokens that they are for.

    Returns:
        How many values were written.

    Raises:
        UserError: no such nodes, or the file cannot be written.
    """
    path = Path(path)
    run = forward.step(keep=nodes)
    run.finish()
    arrays: dict[str, Array] = {}
    for node in select(run.nodes, nodes):
        for output, value in zip(node.outputs, run.values(node), strict=True):
            name = node.name if len(node.outputs) == 1 else f"{node.name}.{output.place.field or output.name}"
            arrays[name] = value
    shapes = [TensorShape(name, dtype_name(a.dtype) or "f32", a.shape) for name, a in arrays.items()]
    meta = {"format": FORMAT, "function": forward.function, "tokens": json.dumps(forward.all_ids.tolist())}
    part = path.with_name(path.name + ".partial")
    try:
        write_safetensors(part, shapes, arrays.items(), meta)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from error
    return len(arrays)


class Recorded:
    """Expects the values of a file that :func:`record_values` wrote (or another tool, by nodes' names).

    Args:
        path: The safetensors file.
        model: Whose pass it will be compared with.

    Attributes:
        forward: The pass that the file is of, for this program.

    Raises:
        UserError: the file cannot be read, or does not say which function and tokens it is for.
    """

    def __init__(self, path: Path | str, model: LanguageModel) -> None:
        self.name = str(path)
        self._file = SafetensorsFile(Path(path))
        meta = self._file.metadata
        try:
            function, tokens = meta["function"], json.loads(meta["tokens"])
            ids = np.array(tokens, np.int32)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path}: its metadata must say function and tokens, as of 'strata debug record'; "
                f"got {meta!s:.80}"
            ) from error
        self.forward = model.forward_pass(function, ids)

    def _reordered(self, pages: Array, shape: Sequence[int]) -> Array:
        """Pages of a cache of another dtype, whose elements may be in another order."""
        cache = self.forward.cache.record
        if len(pages.shape) != len(shape) or pages.shape[2] == shape[2]:
            return pages
        own = pack_of(cache.dtype, cache.head_dim, cache.page_size)
        return repack(pages, own * shape[2] // pages.shape[2], own)

    def expected(self, event: NodeEvent) -> Sequence[Expected]:
        """The values under the node's name, where their sizes fit."""
        found = []
        for number, output in enumerate(event.node.outputs):
            name = event.node.name
            if len(event.node.outputs) > 1:
                name = f"{name}.{output.place.field or output.name}"
            if name in self._file.entries:
                value = self._file[name]
                if value.size == event.outputs[number].size and not _is_position(event, number):
                    if output.place.field in ("k_pages", "v_pages"):
                        value = self._reordered(value, event.outputs[number].shape)
                    limits = accumulated_tolerance(value, event.node.index, self.forward, None)
                    found.append(Expected(number, value, limits))
        return found
