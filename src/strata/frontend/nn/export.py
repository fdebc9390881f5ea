"""From a module to a graph: its methods are called with tensors that record what is done to them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from strata.core.dims import Dim, SymDim, symbols
from strata.core.errors import ShapeError, UserError
from strata.graph import nodes as graph
from strata.graph import types as graph_types
from strata.graph.types import CacheType, TensorType
from strata.runtime.records import CacheRecord

from . import spec as specs
from . import trace
from .kv_cache import CacheDeclaration, PagedKVCache
from .module import Module
from .spec import DEFAULT_MAX_EXTENT, FunctionSpec, KVCache, ParamMode, RuntimeInt
from .tensor import Parameter, Tensor

_OPTIONS = "$"
# Sizes that the cache's batch view has already.
_CACHE_DIMS = (
    graph_types.NUM_SEQUENCES,
    graph_types.TABLE_WIDTH,
    graph_types.NUM_PAGES,
    graph_types.MAX_CONTEXT,
)


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """How one exported function is called.

    Attributes:
        param_mode: How it gets the weights.
        plain_params: With ``PLAIN``: names of the params that it takes, in the order of its arguments.
        constructor: For a function that makes a KV cache: the cache. It has no kernels; the runtime makes
            the cache.
    """

    param_mode: ParamMode
    plain_params: tuple[str, ...] = ()
    constructor: CacheDeclaration | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What :func:`export` makes; ``module, params = model.export(spec)`` takes the two parts that one needs
    most.

    Attributes:
        module: The graph.
        params: Every parameter of the exported module by name.
        functions: How to call each function.
        cache: KV cache of the module, for the runtime; ``None`` without one.
    """

    module: graph.Module
    params: dict[str, Parameter]
    functions: dict[str, FunctionInfo]
    cache: CacheRecord | None

    def __iter__(self) -> Iterator[Any]:
        yield self.module
        yield self.params


def export(module: Module, spec: FunctionSpec, dims: Mapping[str, tuple[int, int]] | None = None) -> Exported:
    """Trace methods of ``module`` into one graph module; parameters are shared by name.

    Args:
        module: The model.
        spec: Method name -> argument name -> ``spec.Tensor``, ``spec.KVCache``, ``int`` or a number. The key
            ``"$"``
            holds options: ``{"param_mode": "packed" | "plain" | "none"}``.
        dims: ``(smallest, largest)`` value of symbolic dims by name; others that are given by name only lie
            in ``1..2048``.

    Raises:
        ShapeError: an op's operands do not fit; the message begins with the module path.
        UserError: a mistake in the spec or in a method.
    """
    if not spec:
        raise UserError("export: got an empty spec; expected at least one function")
    tracer = _Exporter(module, _symbols(spec, dims or {}))
    # Constructors first: they say what the KV cache of the other functions is.
    order = sorted(spec, key=lambda name: not _is_constructor(spec[name]))
    traced = {name: tracer.function(name, spec[name]) for name in order}
    functions = tuple(traced[name][0] for name in spec)
    infos = {name: traced[name][1] for name in spec}
    declared = tracer.declared
    return Exported(graph.Module(functions), tracer.params, infos, declared.record if declared else None)


class _Exporter:
    """Traces the functions of one module."""

    def __init__(self, module: Module, symbols: dict[str, SymDim]) -> None:
        self.module = module
        self.symbols = symbols
        self.params = dict(module.named_parameters())
        self.paths: dict[int, str] = {id(m): p for p, m in module.named_modules()}
        self.declared: CacheDeclaration | None = None

    def function(self, name: str, args: Mapping[str, Any]) -> tuple[graph.Function, FunctionInfo]:
        """Trace the method ``name``."""
        method, mode = _method(self.module, name, args), _param_mode(name, args)
        active = trace.Trace(
            paths={**self.paths, id(self.module): name},
            param_names={id(p): n for n, p in self.params.items()},
            as_inputs=mode is ParamMode.PLAIN,
            where=[name],
        )
        given = {key: value for key, value in args.items() if key != _OPTIONS}
        with trace.tracing(active):
            values = {key: self._argument(f"{name}: {key}", key, value) for key, value in given.items()}
            result = method(**values)
        caches = [v for v in values.values() if isinstance(v, PagedKVCache)]
        inputs = [v.node for v in values.values() if isinstance(v, Tensor | PagedKVCache)]
        # A cache that attention appended to has another node by now; its argument is the first one.
        inputs = [_origin(node) for node in inputs]
        outputs = list(_outputs(name, result))
        for cache in caches:
            if all(cache.node is not out for out in outputs) and cache.node.op != "input":
                outputs.append(cache.node)
        declaration = self._declaration(name, args, result)
        if mode is ParamMode.NONE and active.params:
            raise UserError(
                f"{name}: param_mode is none, but it uses {next(iter(active.params))}; use packed or plain"
            )
        plain = tuple(n for n in self.params if n in active.params) if mode is ParamMode.PLAIN else ()
        inputs += [active.params[n] for n in plain]
        function = graph.Function(name, tuple(inputs), tuple(outputs))
        return function, FunctionInfo(mode, plain, declaration)

    def _argument(self, where: str, name: str, value: Any) -> Tensor | PagedKVCache | int | RuntimeInt:
        match value:
            case specs.Tensor():
                shape = tuple(self._dim(d) for d in value.shape)
                return Tensor(graph.make_node("input", (), name, type=TensorType(shape, value.dtype)))
            case KVCache():
                type_ = value.type or self._cache_type(where)
                return PagedKVCache(graph.make_node("input", (), name, type=type_), type_)
            case bool():
                pass
            case int():
                return value
            case _ if value is int:
                return RuntimeInt(name)
        raise UserError(f"{where}: got {value!r}; expected spec.Tensor(...), spec.KVCache(), int or a number")

    def _cache_type(self, where: str) -> CacheType:
        if self.declared is None:
            raise UserError(
                f"{where}: the type of the KV cache is unknown; export a constructor too (a function of "
                f"ints that "
                f"returns PagedKVCache.create(...)), or give spec.KVCache(type)"
            )
        return self.declared.type

    def _dim(self, dim: Dim | str) -> Dim:
        return self.symbols[dim] if isinstance(dim, str) else dim

    def _declaration(self, name: str, args: Mapping[str, Any], result: Any) -> CacheDeclaration | None:
        """The cache that a constructor makes; the first one is that of the module."""
        if not _is_constructor(args):
            return None
        if not isinstance(result, PagedKVCache) or result.declaration is None:
            raise UserError(
                f"{name}: takes no tensors and returns {result!r}; expected PagedKVCache.create(...)"
            )
        if self.declared is not None and self.declared.type != result.type:
            raise UserError(
                f"{name}: makes {result.type}, another function {self.declared.type}; expected one type"
            )
        self.declared = result.declaration
        return result.declaration


def _origin(node: graph.Node) -> graph.Node:
    """The argument that a cache value began as."""
    while node.op == "kv_append":
        node = node.inputs[0]
    return node


def _is_constructor(args: Mapping[str, Any]) -> bool:
    return not any(isinstance(v, specs.Tensor | KVCache) for v in args.values())


def _symbols(spec: FunctionSpec, dims: Mapping[str, tuple[int, int]]) -> dict[str, SymDim]:
    """Every symbolic dim of the spec, by name, with its range."""
    found: dict[str, SymDim] = {s.name: s for s in _CACHE_DIMS}
    for name, limits in dims.items():
        if name in found:
            raise UserError(f"export: dim {name!r} is a size of the KV cache; choose another name")
        found[name] = SymDim(name, *limits)
    shapes = [a.shape for args in spec.values() for a in args.values() if isinstance(a, specs.Tensor)]
    for shape in shapes:
        for symbol in (s for d in shape if not isinstance(d, str) for s in symbols(d)):
            known = found.setdefault(symbol.name, symbol)
            if (known.lo, known.hi, known.multiple_of) != (symbol.lo, symbol.hi, symbol.multiple_of):
                raise ShapeError(
                    f"export: dim {symbol.name!r} has ranges {known.lo}..{known.hi} and "
                    f"{symbol.lo}..{symbol.hi}; "
                    f"expected one range per name"
                )
    for shape in shapes:
        for dim in shape:
            if isinstance(dim, str) and dim not in found:
                found[dim] = SymDim(dim, 1, DEFAULT_MAX_EXTENT)
    return found


def _method(module: Module, name: str, args: Mapping[str, Any]) -> Any:
    method = getattr(module, name, None)
    if not callable(method):
        raise UserError(f"export: {type(module).__name__} has no method {name!r}, which the spec names")
    wanted = inspect.signature(method).parameters
    given = [key for key in args if key != _OPTIONS]
    required = [k for k, p in wanted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if set(given) - set(wanted) or set(required) - set(given):
        raise UserError(
            f"export: {name}: the spec gives ({', '.join(given)}); the method takes ({', '.join(wanted)})"
        )
    return method


def _param_mode(name: str, args: Mapping[str, Any]) -> ParamMode:
    options = args.get(_OPTIONS, {})
    if not isinstance(options, Mapping) or set(options) - {"param_mode"}:
        raise UserError(f"export: {name}: got options {options!r}; expected {{'param_mode': ...}}")
    modes = {m.value: m for m in ParamMode}
    mode = options.get("param_mode", ParamMode.PACKED.value)
    if mode not in modes:
        raise UserError(f"export: {name}: got param_mode {mode!r}; expected one of {', '.join(modes)}")
    return modes[mode]


def _outputs(name: str, result: Any) -> Iterator[graph.Node]:
    """Nodes of what a function returns: tensors, caches, and tuples or lists of them."""
    match result:
        case Tensor() | PagedKVCache():
            yield result.node
        case tuple() | list() if result:
            for item in result:
                yield from _outputs(name, item)
        case _:
            raise UserError(f"{name}: returns {result!r}; expected tensors, KV caches, or tuples of them")
