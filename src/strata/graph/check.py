"""The graph checker: invariants that hold between passes, and what each stage of compilation may contain.

``check`` raises ``VerifyError`` (a bug in Strata or in a user's pass) with the offending node as text.
Invariants:

* names of functions are unique in the module, names of inputs in a function; a function has at least one
  output;
* a param has one type in the whole module, a symbolic dim one range;
* every reachable ``input`` node is declared by its function; bodies of ``fused`` nodes reach no params;
* attributes are complete, in schema order, and every type is the one that the op's type rule infers;
* caches are threaded: see :func:`check_caches`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from strata.core.dims import DimExpr, SymDim, symbols
from strata.core.errors import StrataError, VerifyError

from .nodes import Function, Module, Node
from .opdef import OPS
from .ops.fused import bind_layer
from .text import node_slice
from .types import CacheType, TensorType

MAX_BODY_DEPTH = 8  # fused inside fused inside ...


@dataclass(frozen=True, slots=True)
class Stage:
    """What a module may contain at a point of the pipeline.

    Attributes:
        name: For messages.
        ops: Ops that may appear, outside and inside fused bodies.
    """

    name: str
    ops: frozenset[str]


_FRONT_END = frozenset(OPS) - {"fused"}
GRAPH_RAW = Stage("GRAPH_RAW", _FRONT_END)  # what front ends make
GRAPH_CANON = Stage("GRAPH_CANON", _FRONT_END)  # after canonicalisation
GRAPH_FUSED = Stage(
    "GRAPH_FUSED", _FRONT_END | {"fused"}
)  # after fusion: each node that is no leaf is a launch
STAGES = {s.name: s for s in (GRAPH_RAW, GRAPH_CANON, GRAPH_FUSED)}


def check(module: Module, stage: Stage | None = None) -> Module:
    """Check all invariants (module docstring), and the stage's ops if one is given.

    Returns:
        The module itself.

    Raises:
        VerifyError: an invariant is broken; names function, op and IR slice.
    """
    _unique("module", "function", [f.name for f in module.functions])
    dims: dict[str, SymDim] = {}
    params: dict[str, Node] = {}
    for function in module.functions:
        check_function(function, stage)
        for node in function.nodes:
            _check_dims(function, node, dims)
            if node.op == "param":
                first = params.setdefault(node.attrs["name"], node)
                if first.type != node.type:
                    _fail(function, node, f"param {node.attrs['name']!r} has type {first.type} elsewhere")
    return module


def check_function(function: Function, stage: Stage | None = None) -> Function:
    """Check one function alone: everything but what several functions must agree on.

    Raises:
        VerifyError: an invariant is broken.
    """
    _check_body(function, stage, 0)
    return function


def _check_body(function: Function, stage: Stage | None, depth: int) -> None:
    where = f"@{function.name}"
    if not function.outputs:
        raise VerifyError(f"graph check: {where}: got no outputs; expected at least one")
    for node in function.inputs:
        if node.op != "input":
            _fail(function, node, f"listed as an input, but its op is {node.op}")
    _unique(where, "input", [n.attrs["name"] for n in function.inputs])
    declared = {id(n) for n in function.inputs}
    for node in function.nodes:
        if node.op == "input" and id(node) not in declared:
            _fail(
                function, node, f"input {node.attrs['name']!r} is used, but the function does not declare it"
            )
        if node.op == "param" and depth:
            _fail(function, node, "a fused body reaches a param; expected it as an input of the fused node")
        if stage is not None and node.op not in stage.ops:
            _fail(function, node, f"op {node.op} may not appear at stage {stage.name}")
        _check_node(function, node)
        if node.op == "fused":
            if depth == MAX_BODY_DEPTH:
                _fail(function, node, f"fused bodies are nested deeper than {MAX_BODY_DEPTH}")
            _check_body(node.attrs["body"], stage, depth + 1)
    check_caches(function)


def _unique(where: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise VerifyError(f"graph check: {where}: two {what}s are called {name!r}; names must be unique")
        seen.add(name)


def _fail(function: Function, node: Node, message: str) -> NoReturn:
    origin = f" ({node.name})" if node.name else ""
    raise VerifyError(f"graph check: @{function.name}: {node.op}{origin}: {message}\n{node_slice(node)}")


def _check_node(function: Function, node: Node) -> None:
    if node.op not in OPS:
        known = ", ".join(OPS)
        raise VerifyError(f"graph check: @{function.name}: no op {node.op!r} ({node.name}); known: {known}")
    definition = node.opdef
    try:
        if list(definition.complete_attrs(node.attrs)) != list(node.attrs):
            _fail(
                function,
                node,
                f"attributes are {', '.join(node.attrs)}; expected {', '.join(definition.attrs)}",
            )
        inferred = definition.infer(tuple(i.type for i in node.inputs), node.attrs)
    except VerifyError:
        raise
    except StrataError as error:
        raise VerifyError(f"graph check: @{function.name}: {error} ({node.name or node.op})") from None
    if inferred != node.type:
        _fail(function, node, f"type is {node.type}; its operands and attributes give {inferred}")


# ---- dims ----


def _check_dims(function: Function, node: Node, known: dict[str, SymDim]) -> None:
    for value in (node.type, *node.attrs.values()):
        for sym in _symbols(value):
            first = known.setdefault(sym.name, sym)
            if _range(first) != _range(sym):
                _fail(function, node, f"dim {sym} is {_range(sym)} here and {_range(first)} elsewhere")
    if node.op == "fused":
        for inner in node.attrs["body"].nodes:
            _check_dims(function, inner, known)


def _range(dim: SymDim) -> str:
    return f"{dim.lo}..{dim.hi} multiple of {dim.multiple_of}"


def _symbols(value: Any) -> tuple[SymDim, ...]:
    match value:
        case SymDim() | DimExpr():
            return symbols(value)
        case TensorType():
            return _symbols(value.shape)
        case tuple():
            return tuple(s for item in value for s in _symbols(item))
    return ()


# ---- caches ----


def check_caches(function: Function) -> None:
    """Check that every append can be made in place.

    The versions of a cache form a chain ``c -> kv_append -> c' -> ...``. Its pages exist once, so no cache
    value may be appended to twice, and a node that reads the pages of a layer must read the newest version
    of that layer: a read of ``c`` and an append to the same layer further down the chain would depend on
    which runs first. An output of the function must be the end of its chain.

    Raises:
        VerifyError: one of these is broken.
    """
    appended: dict[int, Node] = {}  # cache value -> the append that consumes it
    for node in function.nodes:
        for operand in node.inputs:
            if isinstance(operand.type, CacheType) and _effects(node, operand)[1]:
                if id(operand) in appended:
                    _fail(
                        function, node, "its cache is appended to by another node too; use that node's result"
                    )
                appended[id(operand)] = node
    for node in function.nodes:
        for operand in node.inputs:
            reads = _effects(node, operand)[0] if isinstance(operand.type, CacheType) else frozenset()
            if reads:
                stale = reads & _later_writes(operand, appended, node)
                if stale:
                    _fail(
                        function,
                        node,
                        f"reads layer {min(stale)} of a cache that is appended to later; use that result",
                    )
    for output in function.outputs:
        if id(output) in appended:
            _fail(function, output, "is returned, but appended to; return the newest cache")


def _effects(node: Node, cache: Node) -> tuple[frozenset[int], frozenset[int]]:
    """Layers whose pages ``node`` reads and writes through the operand ``cache``."""
    layers = frozenset({node.attrs["layer"]}) if "layer" in node.attrs else frozenset()
    match node.op:
        case "paged_attention":
            return layers, frozenset()
        case "kv_append":
            return frozenset(), layers
        case "fused":
            return _body_effects(node, cache)
    return frozenset(), frozenset()


def _body_effects(node: Node, cache: Node) -> tuple[frozenset[int], frozenset[int]]:
    body = bind_layer(node.attrs["body"], node.attrs["layer"])
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    inner = {id(x) for x, operand in zip(body.inputs, node.inputs, strict=True) if operand is cache}
    for user in body.nodes:
        for operand in user.inputs:
            if id(operand) in inner:
                more_reads, more_writes = _effects(user, operand)
                reads, writes = reads | more_reads, writes | more_writes
    return reads, writes


def _later_writes(cache: Node, appended: dict[int, Node], reader: Node) -> set[int]:
    """Layers appended to between ``cache`` and the end of its chain, other than by ``reader`` itself."""
    layers: set[int] = set()
    current = cache
    while id(current) in appended:
        user = appended[id(current)]
        if user is not reader:
            layers |= _effects(user, current)[1]
        current = user
    return layers
