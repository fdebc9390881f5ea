"""What is passed to a traced function: for ``Module.export``.

::

    spec = {
        "embed": {"input_ids": spec.Tensor(["seq_len"], "int32")},
        "prefill": {
            "input_embed": spec.Tensor([1, "seq_len", 2048], "float16"),
            "paged_kv_cache": spec.KVCache(),
            "$": {"param_mode": "packed"},
        },
        "create_kv_cache": {"max_batch_size": int, "max_total_seq_len": int, "page_size": 16},
    }

A name stands for the same size wherever it occurs. ``int`` is an integer given at run time; a number is a
constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from strata.core.dims import Dim, DimExpr, SymDim
from strata.core.dtypes import DType, f32
from strata.core.dtypes import dtype as _dtype
from strata.core.errors import ShapeError, UserError
from strata.graph.types import CacheType

DEFAULT_MAX_EXTENT = 2048  # largest value of a dim that is given by its name only; memory plans use it


class ParamMode(Enum):
    """How a function gets the weights."""

    PACKED = "packed"  # as one table that is bound once
    PLAIN = "plain"  # as arguments after the others, in the order of named_parameters
    NONE = "none"  # it uses none


def dim(name: str, lo: int = 1, hi: int = DEFAULT_MAX_EXTENT, multiple_of: int = 1) -> SymDim:
    """A named size in ``lo..hi``.

    Raises:
        ShapeError: no identifier, or an empty range.
    """
    return SymDim(name, lo, hi, multiple_of)


@dataclass(frozen=True, slots=True, init=False)
class Tensor:
    """A tensor argument.

    Attributes:
        shape: Dims: ints, names, or symbolic dims.
        dtype: Element type.

    Raises:
        ShapeError: a dim is something else.
        UserError: no such dtype.
    """

    shape: tuple[Dim | str, ...]
    dtype: DType

    def __init__(self, shape: Sequence[Dim | str], dtype: DType | str = f32) -> None:
        for entry in shape:
            known = isinstance(entry, str | SymDim | DimExpr) or (
                isinstance(entry, int) and not isinstance(entry, bool) and entry >= 1
            )
            if not known:
                raise ShapeError(
                    f"spec.Tensor: got dim {entry!r}; expected a positive integer, a name or spec.dim(...)"
                )
        object.__setattr__(self, "shape", tuple(shape))
        object.__setattr__(self, "dtype", _dtype(dtype))


@dataclass(frozen=True, slots=True)
class KVCache:
    """A KV cache argument.

    Attributes:
        type: Its type; ``None`` = that of the cache that the exported module creates.
    """

    type: CacheType | None = None


def Object(object_type: type) -> KVCache:
    """An argument of the class ``object_type``, which must be ``PagedKVCache``.

    Raises:
        UserError: another class.
    """
    from .kv_cache import PagedKVCache

    if object_type is not PagedKVCache:
        raise UserError(
            f"spec.Object: got {object_type!r}; expected PagedKVCache, the one object that functions take"
        )
    return KVCache()


@dataclass(frozen=True, slots=True)
class RuntimeInt:
    """An integer that the caller of a constructor gives: argument ``name``."""

    name: str


ArgSpec: TypeAlias = "Tensor | KVCache | type[int] | int"
FunctionSpec: TypeAlias = Mapping[str, Mapping[str, Any]]
