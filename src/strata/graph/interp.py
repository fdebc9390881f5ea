"""The graph interpreter: the definition of what a function computes.

Each node is evaluated once, in canonical order, by its op's NumPy reference on concrete arrays; symbolic
dims take their values from the shapes of inputs, params and cache views. Slow and obvious: every pass,
lowering and kernel is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from strata.core.dims import Dim, DimExpr, Shape, SymDim, evaluate
from strata.core.errors import ShapeError, UserError

from .cache_value import CacheValue
from .nodes import Function, Module, Node
from .ops.common import np_dtype
from .ops.formula import bind_dims
from .ops.fused import bind_layer
from .types import CacheType, TensorType, Type

Value = np.ndarray[Any, Any] | CacheValue
Evaluate = Callable[[Node, Sequence[Value], Mapping[str, int]], Value]  # node, operands, values of its dims

__all__ = ["CacheValue", "Evaluate", "Value", "bind", "concrete_attrs", "evaluate_node", "run", "run_module"]


def run(
    function: Function,
    inputs: Sequence[Any],
    params: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
) -> list[Value]:
    """Evaluate ``function``.

    Args:
        function: What to run.
        inputs: One array (or array-like, or CacheValue) per input, of the input's dtype and shape.
        params: Arrays by param name; names that the function does not use are ignored.
        evaluate: What gives the value of a node; default: :func:`evaluate_node`.

    Returns:
        One array or CacheValue per output.

    Raises:
        UserError: wrong number of inputs, a missing param, or a value that is no array or cache.
        ShapeError: a value's dtype or shape is not the declared one, or two shapes give a dim different
            values.
    """
    if len(inputs) != len(function.inputs):
        names = ", ".join(n.attrs["name"] for n in function.inputs)
        raise UserError(
            f"@{function.name}: got {len(inputs)} inputs; expected {len(function.inputs)} ({names})"
        )
    env: dict[str, int] = {}
    values: dict[int, Value] = {}
    for node, given in zip(function.inputs, inputs, strict=True):
        values[id(node)] = bind(node, given, env)
    for node in function.params:
        name = node.attrs["name"]
        if params is None or name not in params:
            raise UserError(f"@{function.name}: param {name!r} has no value; pass it in params")
        values[id(node)] = bind(node, params[name], env)
    return _evaluate(function, values, env, evaluate or evaluate_node)


def _evaluate(
    function: Function, values: dict[int, Value], env: Mapping[str, int], evaluate: Evaluate
) -> list[Value]:
    """Outputs of ``function`` where ``values`` holds its inputs and params by node id."""
    last_use = _last_uses(function)
    for step, node in enumerate(function.nodes):
        if id(node) not in values:
            values[id(node)] = evaluate(node, [values[id(i)] for i in node.inputs], env)
        for dead in last_use.get(step, ()):
            del values[dead]
    return [values[id(n)] for n in function.outputs]


def run_module(
    module: Module, name: str, inputs: Sequence[Any], params: Mapping[str, Any] | None = None
) -> list[Value]:
    """Evaluate function ``name`` of ``module``; see :func:`run`."""
    return run(module[name], inputs, params)


def _last_uses(function: Function) -> dict[int, list[int]]:
    """Step -> ids of values that no later step or output reads: a deep graph holds few arrays at a time."""
    last: dict[int, int] = {}
    for step, node in enumerate(function.nodes):
        for value in (node, *node.inputs):
            last[id(value)] = step
    keep = {id(n) for n in function.outputs}
    out: dict[int, list[int]] = {}
    for value, step in last.items():
        if value not in keep:
            out.setdefault(step, []).append(value)
    return out


def evaluate_node(node: Node, operands: Sequence[Value], env: Mapping[str, int]) -> Value:
    """Value of one node, checked against its type.

    Args:
        node: What to compute; neither ``input`` nor ``param``.
        operands: Values of its operands.
        env: Values of the symbolic dims.

    Raises:
        ShapeError: a dim has no value, or an operand's value is illegal (an index out of range).
        UserError: the node is an ``input`` that the function does not declare.
    """
    where = f" ({node.name})" if node.name else ""
    if node.op == "fused":  # the body's dims are those of the caller
        body = bind_layer(node.attrs["body"], node.attrs["layer"])
        values = {id(n): v for n, v in zip(body.inputs, operands, strict=True)}
        return _evaluate(body, values, env, evaluate_node)[0]
    try:
        value = node.opdef.reference(operands, concrete_attrs(node, env))
    except ShapeError as error:
        raise ShapeError(f"{error}{where}") from None
    if isinstance(node.type, TensorType):
        wanted = tuple(evaluate(d, env) for d in node.type.shape)
        assert value.shape == wanted, (
            f"{node.op}{where}: reference gave {value.shape}, its type says {wanted}"
        )
        assert value.dtype == np_dtype(node.type.dtype), f"{node.op}{where}: reference gave {value.dtype}"
    return value


def concrete_attrs(node: Node, env: Mapping[str, int]) -> dict[str, Any]:
    """Attributes of ``node`` with symbolic dims (also those named in a formula) replaced by their values."""
    attrs = {key: _concrete(value, env) for key, value in node.attrs.items()}
    if node.op == "tensor_expr":
        attrs["formula"] = bind_dims(attrs["formula"], env)
    return attrs


def _concrete(value: Any, env: Mapping[str, int]) -> Any:
    match value:
        case SymDim() | DimExpr():
            return evaluate(value, env)
        case tuple():
            return tuple(_concrete(v, env) for v in value)
    return value


# ---- binding ----


def bind(node: Node, given: Any, env: dict[str, int]) -> Value:
    """``given`` as the value of an ``input`` or ``param`` node; adds the dims of its shape to ``env``.

    Raises:
        UserError: ``given`` is no array or cache.
        ShapeError: its dtype or shape is not the node's.
    """
    what = f"{node.op} {node.attrs['name']}"
    if isinstance(node.type, CacheType):
        return _bind_cache(what, node.type, given, env)
    if isinstance(given, CacheValue):
        raise UserError(f"{what}: got a cache; expected {node.type}")
    array = given if isinstance(given, np.ndarray) else np.asarray(given)
    if array.dtype != np_dtype(node.type.dtype):
        raise ShapeError(f"{what}: got dtype {array.dtype}; expected {node.type.dtype} ({node.type})")
    if array.ndim != node.type.rank:
        raise ShapeError(f"{what}: got shape {array.shape}; expected {node.type}")
    for axis, (dim, extent) in enumerate(zip(node.type.shape, array.shape, strict=True)):
        _bind_dim(f"{what} axis {axis}", dim, extent, env)
    _check_sums(what, node.type, array.shape, env)
    return array


def _bind_cache(what: str, type_: Type, given: Any, env: dict[str, int]) -> CacheValue:
    if not isinstance(given, CacheValue):
        raise UserError(f"{what}: got {type(given).__name__}; expected a CacheValue")
    if given.type != type_:
        raise ShapeError(f"{what}: got {given.type}; expected {type_}")
    given.check()
    for name, extent in given.dims.items():
        _bind_dim(f"{what} {name}", SymDim(name), extent, env)
    return given


def _bind_dim(what: str, dim: Dim, extent: int, env: dict[str, int]) -> None:
    """Give the one symbol of ``dim`` its value, or compare; other polynomials are checked later."""
    if isinstance(dim, DimExpr):
        linear = _linear(dim)
        if linear is None:
            return
        coefficient, sym, constant = linear
        value, rest = divmod(extent - constant, coefficient)
        if rest:
            raise ShapeError(f"{what}: got extent {extent}; expected {dim} for some {sym}")
    elif isinstance(dim, SymDim):
        sym, value = dim, extent
    else:
        if dim != extent:
            raise ShapeError(f"{what}: got extent {extent}; expected {dim}")
        return
    if not sym.lo <= value <= sym.hi or value % sym.multiple_of:
        multiple = f", a multiple of {sym.multiple_of}" if sym.multiple_of > 1 else ""
        raise ShapeError(f"{what}: {sym} = {value} is out of range; expected {sym.lo}..{sym.hi}{multiple}")
    if env.setdefault(sym.name, value) != value:
        raise ShapeError(f"{what}: {sym} = {value}, but another operand says {sym} = {env[sym.name]}")


def _linear(dim: DimExpr) -> tuple[int, SymDim, int] | None:
    """``(c, s, d)`` where ``dim`` is ``c*s + d``, else ``None``."""
    constant = sum(c for c, syms in dim.terms if not syms)
    terms = [(c, syms) for c, syms in dim.terms if syms]
    if len(terms) != 1 or len(terms[0][1]) != 1:
        return None
    ((coefficient, (sym,)),) = terms
    return coefficient, sym, constant


def _check_sums(what: str, type_: TensorType, shape: Shape, env: Mapping[str, int]) -> None:
    """Compare the polynomial dims whose symbols are known by now."""
    for axis, (dim, extent) in enumerate(zip(type_.shape, shape, strict=True)):
        if isinstance(dim, DimExpr) and all(s.name in env for _, syms in dim.terms for s in syms):
            value = evaluate(dim, env)
            if value != extent:
                raise ShapeError(f"{what} axis {axis}: got extent {extent}; expected {dim} = {value}")
