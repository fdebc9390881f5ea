"""Reader of graph-executor JSON as TVM's Relay wrote it, plain or gzipped, into a workload.

::

    file  ::= {"nodes": [node], "attrs": {"shape": ["list_shape", [shape]], "dltype"?: ["list_str", [dtype]]}}
    node  ::= {"op": "null", "name", "inputs": []}                          an input or a weight
            | {"op": "tvm_op", "name", "attrs": {"func_name", "num_outputs"}, "inputs": [[node, output, _]]}

``attrs.shape`` has one entry per *output*, so a node with several outputs shifts the entries of all later
nodes. The graph was traced at one length: dims equal to it become ``L``, dims one longer ``L + 1`` (context
of a decoder). The file says nothing of constants and attributes; none is needed for a workload.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.core.dims import Dim, Shape, SymDim, product, shape_symbols
from strata.core.errors import ParseError, UserError
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload

from .layers import infer_layers

LENGTH = SymDim("L", 1, 131072)

_MATMULS = ("dense", "pack", "matmul")
_MOVES = ("nop", "reshape", "transpose", "cast", "take", "where", "slice", "split", "concatenate")
_NO_FLOP = (*_MOVES, "broadcast_to", "scatter_nd", "squeeze", "copy")
_FLOP_PER_OUTPUT = {"softmax": 5, **dict.fromkeys(_NO_FLOP, 0)}  # else 1, as in the graph IR
_REDUCTIONS = ("mean", "sum", "max", "min", "argmax", "variance")
_READS_OUTPUT = ("take", "slice")  # of their first input, only what they return


def read_relay(path: str | Path, traced_len: int | None = None, *, bits: float = 8.0) -> Workload:
    """The workload of a graph-executor JSON file.

    A work is called ``"dense.38"``: its op and the number of its node. Its op is the last word of the
    function's name (``tvmgen_default_fused_nn_softmax_1``: ``softmax``; ``to`` and ``nd`` keep the word
    before them), or the matrix product in the name if the function fuses one with others. ``nop`` (a reshape)
    reads nothing, ``take`` and ``slice`` read as much as they return.

    Results are the values that no work reads.

    Args:
        path: The file, plain or gzipped.
        traced_len: Length that the graph was traced at; ``None``: that of ``input_ids``, or of the cached
            keys of a decoder; 0: the graph has none, all sizes are as they are.
        bits: Stored bits per number where the file gives no dtypes.

    Raises:
        ParseError: not such a file; the message names the node and what was expected.
        UserError: no such file; a length that cannot be inferred or that no dim of the graph has.
    """
    path = Path(path)
    graph = _Graph.parse(str(path), _load(path))
    length = graph.infer_length() if traced_len is None else traced_len
    return graph.workload(_symbolic(graph, length), bits)


def _load(path: Path) -> Any:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; expected a graph-executor JSON file"
        ) from None
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" or raw[:2] == b"\x1f\x8b" else raw).decode()
        return json.loads(text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ParseError(f"{path}: not a gzip file, or a broken one: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ParseError(f"{path}: not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the file: ``func`` is ``None`` for inputs; ``first`` is the entry of its first output."""

    label: str
    name: str
    func: str | None
    inputs: tuple[int, ...]  # entries
    first: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class _Graph:
    """The file, checked: nodes, and shape and bits of each entry."""

    where: str
    nodes: tuple[_Node, ...]
    shapes: tuple[tuple[int, ...], ...]
    bits: tuple[float | None, ...]

    @staticmethod
    def parse(where: str, data: Any) -> _Graph:
        listed = data.get("nodes") if isinstance(data, dict) else None
        if not isinstance(listed, list) or not listed:
            raise ParseError(f'{where}: got no "nodes"; expected a list of at least one node')
        nodes: list[_Node] = []
        firsts = [0]
        for number, node in enumerate(listed):
            nodes.append(_node(f"{where}: node {number}", node, nodes))
            firsts.append(firsts[-1] + nodes[-1].num_outputs)
        names = [n.name for n in nodes if n.func is None]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ParseError(f"{where}: two inputs are called {twice[0]!r}; expected a name each")
        shapes = _shapes(where, data, nodes)
        return _Graph(where, tuple(nodes), shapes, _bits(where, data, len(shapes)))

    def infer_length(self) -> int:
        """Length of ``input_ids``, or of the first cached keys.

        Raises:
            UserError: neither is there.
        """
        inputs = {n.name: self.shapes[n.first] for n in self.nodes if n.func is None}
        ids = inputs.get("input_ids", ())
        if ids and ids[-1] > 1:
            return ids[-1]
        for name, shape in inputs.items():
            if _kind(name) is ValueKind.STATE and len(shape) >= 2 and shape[-2] > 1:
                return shape[-2]
        raise UserError(
            f"{self.where}: the length it was traced at cannot be inferred: expected an input input_ids or "
            f"cached keys past_*, longer than 1; give it with --traced-len N (0 if no size depends on it)"
        )

    def workload(self, shapes: Sequence[Shape], bits: float) -> Workload:
        values: list[Value] = []
        works: list[Work] = []
        for number, node in enumerate(self.nodes):
            op = None if node.func is None else _op(node.func)
            kind = _kind(node.name) if op is None else ValueKind.RESULT
            name = node.name if op is None else f"{op}.{number}"
            outputs = tuple(range(node.first, node.first + node.num_outputs))
            for k in outputs:
                label = f"{name}:{k - node.first}" if len(outputs) > 1 else name
                values.append(Value(label, shapes[k], self.bits[k] or bits, kind))
            if op is not None:
                works.append(_work(node, op, name, outputs, shapes))
        read = {k for work in works for k in work.inputs}
        made = [k for work in works for k in work.outputs]
        dims = tuple({s: None for shape in shapes for s in shape_symbols(shape)})
        name = re.sub(r"\.json(\.gz)?$|\.gz$", "", Path(self.where).name)
        outputs = tuple(k for k in made if k not in read)
        return Workload(name, tuple(values), infer_layers(values, works), dims, outputs)


def _node(where: str, node: Any, before: Sequence[_Node]) -> _Node:
    """One node, whose inputs are among those ``before`` it."""
    named = isinstance(node, dict) and isinstance(node.get("name"), str)
    if not named or node.get("op") not in ("null", "tvm_op"):
        raise ParseError(f'{where}: got {_short(node)}; expected "name", and "op" that is "null" or "tvm_op"')
    where = f"{where} ({node['name']})"
    first = before[-1].first + before[-1].num_outputs if before else 0
    if node["op"] == "null":
        return _Node(where, node["name"], None, (), first, 1)
    attrs = node.get("attrs")
    func = attrs.get("func_name") if isinstance(attrs, dict) else None
    count = attrs.get("num_outputs") if isinstance(attrs, dict) else None
    if not isinstance(func, str) or not str(count).isdigit() or int(str(count)) < 1:
        raise ParseError(f"{where}: got attrs {_short(attrs)}; expected func_name, and num_outputs >= 1")
    inputs = node.get("inputs")
    if not isinstance(inputs, list):
        raise ParseError(f"{where}: got inputs {_short(inputs)}; expected a list of [node, output, version]")
    entries = tuple(_entry(where, reference, before) for reference in inputs)
    return _Node(where, node["name"], func, entries, first, int(str(count)))


def _entry(where: str, reference: Any, before: Sequence[_Node]) -> int:
    """Number of the entry that ``[node, output, version]`` means."""
    match reference:
        case [int(node), int(output), *_] if node >= 0 and output >= 0:
            if node >= len(before):
                raise ParseError(
                    f"{where}: reads node {node}, which is not before it: a cycle, no such node, or nodes "
                    f"out of order; expected producers before consumers"
                )
            if output >= before[node].num_outputs:
                raise ParseError(
                    f"{where}: reads output {output} of node {node} ({before[node].name}), which has "
                    f"{before[node].num_outputs}"
                )
            return before[node].first + output
    raise ParseError(f"{where}: got input {_short(reference)}; expected [node, output, version]")


def _column(data: Any, key: str) -> Any:
    """The list of one value per output in ``attrs``: ``attrs[key] == [type, list]``."""
    attrs = data.get("attrs")
    column = attrs.get(key) if isinstance(attrs, dict) else None
    return column[1] if isinstance(column, list) and len(column) == 2 else None


def _shapes(where: str, data: Any, nodes: Sequence[_Node]) -> tuple[tuple[int, ...], ...]:
    shapes = _column(data, "shape")
    outputs = nodes[-1].first + nodes[-1].num_outputs
    if not isinstance(shapes, list) or len(shapes) != outputs:
        got = f"{len(shapes)}" if isinstance(shapes, list) else "none"
        raise ParseError(
            f"{where}: attrs.shape[1]: got {got} shapes; expected {outputs}, one per output of the "
            f"{len(nodes)} nodes"
        )
    for node in nodes:
        for shape in shapes[node.first : node.first + node.num_outputs]:
            if not isinstance(shape, list) or not all(type(d) is int and d >= 1 for d in shape):
                raise ParseError(f"{node.label}: got shape {_short(shape)}; expected a list of integers >= 1")
    return tuple(tuple(shape) for shape in shapes)


def _bits(where: str, data: Any, outputs: int) -> tuple[float | None, ...]:
    dtypes = _column(data, "dltype")
    if dtypes is None:
        return (None,) * outputs
    if not isinstance(dtypes, list) or len(dtypes) != outputs:
        raise ParseError(
            f"{where}: attrs.dltype[1]: got {_short(dtypes)}; expected {outputs} dtypes, one per output"
        )
    found = [8 if d == "bool" else re.fullmatch(r"[a-z]+(\d+)", str(d)) for d in dtypes]
    if None in found:
        raise ParseError(
            f"{where}: attrs.dltype[1]: got {dtypes[found.index(None)]!r}; expected one like 'float32'"
        )
    return tuple(float(m if isinstance(m, int) else m[1]) for m in found if m is not None)


def _symbolic(graph: _Graph, length: int) -> tuple[Shape, ...]:
    """All shapes, with ``L`` for the traced length."""
    if length == 0:
        return graph.shapes
    if length < 2:
        raise UserError(
            f"--traced-len: got {length}; expected >= 2, as dims of 1 mean other things (0 = no length)"
        )
    if not any(length in shape for shape in graph.shapes):
        raise UserError(f"--traced-len: got {length}; {graph.where} has no dim of that size")
    dims: dict[int, Dim] = {length: LENGTH, length + 1: LENGTH + 1}
    return tuple(tuple(dims.get(d, d) for d in shape) for shape in graph.shapes)


def _kind(name: str) -> ValueKind:
    """What a node without a function is: TVM calls bound weights p0, p1, ..."""
    if re.fullmatch(r"p\d+|.*(weight|bias)", name):
        return ValueKind.WEIGHT
    return ValueKind.STATE if name.startswith("past") else ValueKind.INPUT


def _op(func: str) -> str:
    words = [word for word in func.split("_") if word and not word.isdigit()]
    fused = [word for word in words if word in _MATMULS]
    if fused or not words:
        return fused[0] if fused else func
    return "_".join(words[-2:]) if words[-1] in ("to", "nd") else words[-1]


def _work(node: _Node, op: str, name: str, outputs: tuple[int, ...], shapes: Sequence[Shape]) -> Work:
    inputs = tuple(dict.fromkeys(node.inputs))
    out = product(shapes[outputs[0]])
    reads = [product(shapes[k]) for k in inputs]
    if op == "nop":
        reads = [0 for _ in inputs]
    elif op in _READS_OUTPUT and reads:
        reads[0] = out
    contraction = _contraction(node, shapes) if op in _MATMULS else None
    if contraction is not None:
        flop = 2 * contraction.macs
    elif op in _REDUCTIONS:
        flop = product(shapes[inputs[0]]) if inputs else 0
    else:
        flop = _FLOP_PER_OUTPUT.get(op, 1) * out
    return Work(name, op, inputs, tuple(reads), outputs, flop, contraction)


def _contraction(node: _Node, shapes: Sequence[Shape]) -> Contraction:
    """``[..., rows, depth]`` times the second input, in whatever layout, gives ``[..., rows, cols]``."""
    out = shapes[node.first]
    given = [shapes[k] for k in node.inputs[:2]]
    if len(given) == 2 and len(given[0]) >= 1 and len(out) >= 2 and given[0][:-1] == out[:-1]:
        depth, (*batch, rows, cols) = given[0][-1], out
        if product(given[1]) in (depth * cols, product(batch) * depth * cols):
            return Contraction(product(batch), rows, cols, depth)
    raise ParseError(
        f"{node.label}: got shapes {' x '.join(_show(s) for s in given) or 'none'} -> {_show(out)}; expected "
        f"[..., rows, depth] x a matrix of depth * cols numbers -> [..., rows, cols]"
    )


def _show(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _short(thing: Any) -> str:
    text = json.dumps(thing)
    return text if len(text) <= 80 else f"{text[:77]}..."
