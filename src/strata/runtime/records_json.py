"""Program records as JSON and back, with every mistake in a manifest named by file and key.

::

    record  ::= {field: value, ...}     fields equal to their defaults may be left out; no others may be there
    enum    ::= its value               tuple ::= list

:func:`program_from_json` accepts only what a correct compiler can have written: after the types it checks
what the runtime relies on (indices in range, known dims, an unconditional last choice, ...).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any

from strata.core.dims import parse_dim, symbols
from strata.core.dtypes import ALL_DTYPES
from strata.core.errors import ShapeError, UserError
from strata.core.kv_layout import LAYER_FIELDS

from .records import (
    CACHE_DIMS,
    CACHE_POINTERS,
    ArgKind,
    ArgRef,
    CacheRecord,
    FunctionRecord,
    KernelRecord,
    Launch,
    ParamRecord,
    ProgramRecord,
    TensorSpec,
)

Decoder = Callable[[Any, str], Any]

CACHE_FIELDS = (*CACHE_POINTERS, *LAYER_FIELDS)
ROPE_MODES = ("none", "normal", "inline")
_MAX_INT = 2**62


def program_to_json(record: ProgramRecord) -> dict[str, Any]:
    """``record`` as plain lists, dicts, numbers and texts; fields that have their default are left out."""
    return _encode(record)


def program_from_json(data: object, source: str = "manifest.json") -> ProgramRecord:
    """Inverse of :func:`program_to_json`.

    Args:
        data: What ``json.loads`` gave.
        source: File name for messages.

    Raises:
        UserError: anything that is no correct program record; names ``source``, key, got and expected.
    """
    record = _decoder(ProgramRecord)(data, f"{source}: program")
    _check_program(record, f"{source}: program")
    return record


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            f.name: _encode(v)
            for f in dataclasses.fields(value)
            if (v := getattr(value, f.name)) != f.default or f.default is dataclasses.MISSING
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {k: _encode(v) for k, v in value.items()}
    return value


def _wrong(where: str, got: object, expected: str) -> UserError:
    return UserError(f"{where}: got {got!r:.60}; expected {expected}")


def _text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise _wrong(where, value, "a text")
    return value


def _int(value: Any, where: str) -> int:
    if type(value) is not int or not -_MAX_INT <= value <= _MAX_INT:
        raise _wrong(where, value, "an integer of 63 bits")
    return value


def _float(value: Any, where: str) -> float:
    if type(value) is int and abs(value) <= _MAX_INT:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise _wrong(where, value, "a finite number")
    return value


def _int_or_text(value: Any, where: str) -> int | str:
    return value if type(value) is str else _int(value, where)


def _object(value: Any, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


_LEAVES: dict[Any, Decoder] = {
    str: _text,
    int: _int,
    float: _float,
    int | str: _int_or_text,
    dict[str, object]: _object,
}


@cache
def _decoder(kind: Any) -> Decoder:
    """The function that turns JSON into a value of type ``kind``: a record class, enum, tuple or leaf."""
    if kind in _LEAVES:
        return _LEAVES[kind]
    if dataclasses.is_dataclass(kind):
        return _record_decoder(typing.cast(type, kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple_decoder(_decoder(arguments[0]))
    if origin in (types.UnionType, typing.Union):  # "X | None"
        inner = _decoder(next(a for a in arguments if a is not types.NoneType))
        return lambda value, where: None if value is None else inner(value, where)
    assert issubclass(kind, Enum)
    return _enum_decoder(kind)


def _tuple_decoder(inner: Decoder) -> Decoder:
    def decode(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(inner(item, f"{where}[{i}]") for i, item in enumerate(value))

    return decode


def _enum_decoder(kind: type[Enum]) -> Decoder:
    members = {str(m.value): m for m in kind}

    def decode(value: Any, where: str) -> Enum:
        if not isinstance(value, str) or value not in members:
            raise _wrong(where, value, f"one of {', '.join(members)}")
        return members[value]

    return decode


def _record_decoder(kind: type) -> Decoder:
    hints = typing.get_type_hints(kind)
    fields = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(kind)}
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}

    def decode(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, value, f"an object with {', '.join(fields)}")
        for key in value:
            if key not in fields:
                raise UserError(f"{where}: got unknown key {key!r:.60}; expected {', '.join(fields)}")
        for key in required:
            if key not in value:
                raise UserError(
                    f"{where}: key {key!r} is missing; got {', '.join(map(repr, value)) or 'none'}"
                )
        return kind(**{key: fields[key](item, f"{where}.{key}") for key, item in value.items()})

    return decode


# What the types cannot say.


def _check_program(record: ProgramRecord, where: str) -> None:
    _distinct([f.name for f in record.functions], f"{where}.functions")
    _distinct([p.name for p in record.params], f"{where}.params")
    _distinct([k.name for k in record.kernels], f"{where}.kernels")
    _distinct([e.name for e in record.externs], f"{where}.externs")
    params = {p.name: p for p in record.params}
    for i, param in enumerate(record.params):
        _check_param(param, params, f"{where}.params[{i}]")
    if record.cache is not None:
        _check_cache(record.cache, f"{where}.cache")
    for i, kernel in enumerate(record.kernels):
        _check_kernel(kernel, f"{where}.kernels[{i}]")
    kernels = {k.name: k for k in record.kernels}
    for i, function in enumerate(record.functions):
        _check_function(function, record, kernels, f"{where}.functions[{i}]")


def _distinct(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{where}: name {name!r:.60} occurs twice; names must be distinct")
        seen.add(name)


def _check_dtype(name: str, where: str) -> None:
    if name not in ALL_DTYPES:
        raise _wrong(f"{where}.dtype", name, f"one of {', '.join(ALL_DTYPES)}")


def _check_param(param: ParamRecord, params: dict[str, ParamRecord], where: str) -> None:
    _check_dtype(param.dtype, where)
    for key in ("shape", "logical_shape"):
        if min(getattr(param, key), default=0) < 0:
            raise _wrong(f"{where}.{key}", getattr(param, key), "sizes that are not negative")
    if param.within:
        owner = params.get(param.within)
        if (
            owner is None
            or owner.within
            or owner.own_bytes != dataclasses.replace(param, within="").own_bytes
        ):
            raise _wrong(f"{where}.within", param.within, "a param of as many bytes, with memory of its own")


def _check_cache(cache: CacheRecord, where: str) -> None:
    for key in ("num_layers", "num_kv_heads", "head_dim", "page_size"):
        if not 1 <= getattr(cache, key) < 1 << 24:
            raise _wrong(f"{where}.{key}", getattr(cache, key), "an integer in 1 .. 2^24")
    _check_dtype(cache.dtype, where)
    if cache.rope not in ROPE_MODES:
        raise _wrong(f"{where}.rope", cache.rope, f"one of {', '.join(ROPE_MODES)}")
    if cache.rotary_dim % 2 or not 0 <= cache.rotary_dim <= cache.head_dim:
        raise _wrong(
            f"{where}.rotary_dim", cache.rotary_dim, f"an even integer in 0 .. head_dim ({cache.head_dim})"
        )
    if len(cache.rope_inv_freq) != cache.rotary_dim // 2:
        raise _wrong(
            f"{where}.rope_inv_freq",
            len(cache.rope_inv_freq),
            f"rotary_dim / 2 = {cache.rotary_dim // 2} numbers",
        )


def _check_spec(spec: TensorSpec, where: str, dims: set[str] | None) -> set[str]:
    """The symbols in the shape of ``spec``; with ``dims`` given, each must be one of them."""
    found: set[str] = set()
    if spec.dtype == "cache":
        if spec.shape:
            raise _wrong(f"{where}.shape", spec.shape, "[] for a cache")
        return found
    _check_dtype(spec.dtype, where)
    for i, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            if dim < 0:
                raise _wrong(f"{where}.shape[{i}]", dim, "a size that is not negative")
            continue
        try:
            names = {s.name for s in symbols(parse_dim(dim, {}))}
        except ShapeError as error:
            raise _wrong(f"{where}.shape[{i}]", dim, "a sum of products of dims") from error
        if dims is not None and not names <= dims:
            raise _wrong(f"{where}.shape[{i}]", dim, f"dims among {', '.join(sorted(dims)) or 'none'}")
        found |= names
    return found


def _check_kernel(kernel: KernelRecord, where: str) -> None:
    for i, spec in enumerate(kernel.params):
        _check_spec(spec, f"{where}.params[{i}]", set(kernel.dims))
    if not 0 <= kernel.num_outputs <= len(kernel.params):
        raise _wrong(f"{where}.num_outputs", kernel.num_outputs, f"0 .. {len(kernel.params)}")
    if list(kernel.dims) != sorted(set(kernel.dims)):
        raise _wrong(f"{where}.dims", kernel.dims, "distinct names in sorted order")


def _known_dims(function: FunctionRecord) -> set[str]:
    """Dims that the runtime can read off the arguments."""
    known = {d for spec in function.inputs for d in spec.shape if isinstance(d, str) and d.isidentifier()}
    return known | set(CACHE_DIMS) if any(s.dtype == "cache" for s in function.inputs) else known


def _check_function(
    function: FunctionRecord, record: ProgramRecord, kernels: dict[str, KernelRecord], where: str
) -> None:
    if not 0 <= function.arena_bytes < 1 << 48:
        raise _wrong(f"{where}.arena_bytes", function.arena_bytes, "bytes in 0 .. 2^48")
    known = _known_dims(function)
    for i, dim in enumerate(function.dims):
        if not dim.dim.isidentifier() or not 0 <= dim.lo <= dim.hi:
            raise _wrong(f"{where}.dims[{i}]", (dim.dim, dim.lo, dim.hi), "a name and 0 <= lo <= hi")
    for i, spec in enumerate(function.inputs):
        _check_spec(spec, f"{where}.inputs[{i}]", known)
        if spec.dtype == "cache" and record.cache is None:
            raise _wrong(f"{where}.inputs[{i}].dtype", "cache", "no cache input in a program without a cache")
    for i, spec in enumerate(function.outputs):
        if spec.dtype == "cache":
            raise _wrong(f"{where}.outputs[{i}].dtype", "cache", "a tensor: cache outputs are not listed")
        _check_spec(spec, f"{where}.outputs[{i}]", known)
    lost = sorted({d.dim for d in function.dims} - known)
    if lost:
        raise _wrong(f"{where}.dims", lost, "dims that are a whole entry of an input's shape")
    for i, launch in enumerate(function.launches):
        _check_launch(launch, function, record, kernels, f"{where}.launches[{i}]")


def _check_launch(
    launch: Launch,
    function: FunctionRecord,
    record: ProgramRecord,
    kernels: dict[str, KernelRecord],
    where: str,
) -> None:
    if not launch.choices:
        raise _wrong(f"{where}.choices", [], "at least one kernel")
    if launch.choices[-1].when:
        raise _wrong(
            f"{where}.choices[{len(launch.choices) - 1}].when", "ranges", "none: the last choice always holds"
        )
    dims = _known_dims(function)
    for i, choice in enumerate(launch.choices):
        if kernels and choice.kernel not in kernels:
            raise _wrong(f"{where}.choices[{i}].kernel", choice.kernel, "a kernel listed in program.kernels")
        outputs = kernels[choice.kernel].num_outputs if kernels else len(launch.args)
        if not 0 <= launch.num_workspace <= outputs:
            raise _wrong(
                f"{where}.num_workspace", launch.num_workspace, f"0 .. {outputs}, outputs of the kernel"
            )
        if kernels and len(kernels[choice.kernel].params) != len(launch.args):
            expected = f"{len(kernels[choice.kernel].params)} buffers, as {choice.kernel} takes"
            raise _wrong(f"{where}.args", len(launch.args), expected)
        for j, item in enumerate(choice.when):
            if item.dim not in dims:
                names = ", ".join(sorted(dims)) or "none"
                raise _wrong(f"{where}.choices[{i}].when[{j}].dim", item.dim, f"one of {names}")
    for i, arg in enumerate(launch.args):
        _check_arg(arg, function, record, f"{where}.args[{i}]")


def _check_arg(arg: ArgRef, function: FunctionRecord, record: ProgramRecord, where: str) -> None:
    limits = {
        ArgKind.INPUT: len(function.inputs),
        ArgKind.CACHE: len(function.inputs),
        ArgKind.OUTPUT: len(function.outputs),
        ArgKind.PARAM: len(record.params),
        ArgKind.ARENA: max(function.arena_bytes, 1),
    }
    if not 0 <= arg.index < limits[arg.kind]:
        raise _wrong(f"{where}.index", arg.index, f"{arg.kind.value} index in 0 .. {limits[arg.kind] - 1}")
    if arg.kind in (ArgKind.INPUT, ArgKind.CACHE):
        is_cache = function.inputs[arg.index].dtype == "cache"
        if is_cache != (arg.kind is ArgKind.CACHE):
            raise _wrong(f"{where}.kind", arg.kind.value, "cache for a cache input, input for a tensor")
    if arg.kind is ArgKind.CACHE:
        if arg.field not in CACHE_FIELDS:
            raise _wrong(f"{where}.field", arg.field, f"one of {', '.join(CACHE_FIELDS)}")
        assert record.cache is not None
        if not 0 <= arg.layer < record.cache.num_layers:
            raise _wrong(f"{where}.layer", arg.layer, f"0 .. {record.cache.num_layers - 1}")
