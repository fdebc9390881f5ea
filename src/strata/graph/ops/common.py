"""What the op families share: dtype rules, broadcasting, operand checks, sample values.

Numeric rule of every reference: 16-bit floats are widened to f32, computed there, and rounded once to the
result dtype; f32 and f64 are computed as they are. NaN operands of maximum and minimum, and
float-to-integer casts outside the integer's range, have no defined result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from strata.core.dims import Dim, DimExpr, Shape, SymDim, bounds, product
from strata.core.dtypes import DType, Kind, f32, f64
from strata.core.errors import ShapeError
from strata.graph.opdef import Attr, OpDef, Pattern, Sample, define_op
from strata.graph.types import CacheType, TensorType, Type

Attrs = Mapping[str, Any]
Types = tuple[Type, ...]
DIM_TYPES = (int, SymDim, DimExpr)


def np_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype of ``dtype`` (bf16 through ml_dtypes)."""
    return np.dtype(dtype.numpy_name)


def compute_dtype(dtype: DType) -> DType:
    """Dtype in which values of ``dtype`` are computed: f32 for 16-bit floats, else itself."""
    return f32 if dtype.is_float and dtype is not f64 else dtype


def widen(array: np.ndarray) -> np.ndarray:
    """``array`` in its compute dtype: 16-bit floats become f32."""
    narrow = array.dtype.name in ("float16", "bfloat16")
    return array.astype(np.float32) if narrow else array


def round_to(array: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """``array`` rounded (once) to ``dtype``, C-contiguous."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(np.asarray(array).astype(dtype, copy=False)).reshape(np.shape(array))


def tensors(op: str, types: Types, names: Sequence[str]) -> tuple[TensorType, ...]:
    """``types`` checked to be one tensor per name in ``names``.

    Raises:
        ShapeError: wrong number of operands, or an operand that is no tensor.
    """
    count(op, types, names)
    return tuple(as_tensor(op, t, name) for t, name in zip(types, names, strict=True))


def count(op: str, types: Types, names: Sequence[str]) -> None:
    """Check the number of operands."""
    if len(types) != len(names):
        wanted = f"{len(names)} ({', '.join(names)})" if names else "none"
        raise ShapeError(f"{op}: got {len(types)} operands; expected {wanted}")


def as_tensor(op: str, type_: Type, name: str) -> TensorType:
    """``type_``, which must be a tensor's."""
    if not isinstance(type_, TensorType):
        raise ShapeError(f"{op}: operand {name} is {type_}; expected a tensor")
    return type_


def as_cache(op: str, type_: Type, name: str) -> CacheType:
    """``type_``, which must be a cache's."""
    if not isinstance(type_, CacheType):
        raise ShapeError(f"{op}: operand {name} is {type_}; expected a KV cache")
    return type_


def want_dtype(op: str, name: str, got: TensorType, allowed: Callable[[DType], bool], words: str) -> None:
    """Check an operand's dtype against a predicate; ``words`` names what is allowed."""
    if not allowed(got.dtype):
        raise ShapeError(f"{op}: operand {name} is {got}; expected {words}; cast it first")


def same_dtype(op: str, named: Sequence[tuple[str, TensorType]]) -> DType:
    """The one dtype of all ``named`` operands.

    Raises:
        ShapeError: they differ.
    """
    first_name, first = named[0]
    for name, type_ in named[1:]:
        if type_.dtype != first.dtype:
            raise ShapeError(
                f"{op}: dtypes differ: {first_name} {first}, {name} {type_}; cast one to the other's dtype"
            )
    return first.dtype


def is_float(dtype: DType) -> bool:
    """Predicate for :func:`want_dtype`."""
    return dtype.is_float


def is_number(dtype: DType) -> bool:
    """Predicate for :func:`want_dtype`: anything but bool."""
    return dtype.kind is not Kind.BOOL


def is_bool(dtype: DType) -> bool:
    """Predicate for :func:`want_dtype`."""
    return dtype.kind is Kind.BOOL


def is_index(dtype: DType) -> bool:
    """Predicate for :func:`want_dtype`: i32 or i64."""
    return dtype.name in ("i32", "i64")


def broadcast(op: str, named: Sequence[tuple[str, TensorType]]) -> Shape:
    """NumPy broadcasting: dims aligned from the right must be equal or 1.

    Raises:
        ShapeError: two dims are neither equal nor 1 (a symbolic dim is equal only to itself).
    """
    rank = max(t.rank for _, t in named)
    out: list[Dim] = [1] * rank
    owner = [named[0]] * rank
    for name, type_ in named:
        for i, dim in enumerate(type_.shape):
            at = rank - type_.rank + i
            if dim == 1 or dim == out[at]:
                continue
            if out[at] != 1:
                other, other_type = owner[at]
                raise ShapeError(
                    f"{op}: shapes do not broadcast: {other} {other_type} dim {at - rank} = {out[at]}, "
                    f"{name} {type_} dim {at - rank} = {dim}; dims must be equal or 1"
                )
            out[at], owner[at] = dim, (name, type_)
    return tuple(out)


def normal_axis(op: str, axis: Any, rank: int) -> int:
    """``axis`` counted from the left.

    Raises:
        ShapeError: not an int in ``-rank .. rank-1``.
    """
    if not isinstance(axis, int) or isinstance(axis, bool) or not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis {axis!r} is out of range; expected an int in {-rank}..{rank - 1}")
    return axis % rank


def normal_axes(op: str, axes: Sequence[Any], rank: int) -> tuple[int, ...]:
    """Distinct axes counted from the left, in the given order.

    Raises:
        ShapeError: an axis is out of range or occurs twice.
    """
    normal = tuple(normal_axis(op, a, rank) for a in axes)
    if len(set(normal)) != len(normal):
        raise ShapeError(f"{op}: axes {tuple(axes)} name an axis twice")
    return normal


def check_shape(op: str, shape: Sequence[Any]) -> Shape:
    """A shape attribute: every entry an int >= 0 or a symbolic dim.

    Raises:
        ShapeError: another kind of entry, or a negative one.
    """
    for dim in shape:
        if not isinstance(dim, DIM_TYPES) or isinstance(dim, bool) or bounds(dim)[0] < 0:
            raise ShapeError(f"{op}: shape has the entry {dim!r}; expected ints >= 0 or symbolic dims")
    return tuple(shape)


def elements(type_: TensorType) -> Dim:
    """Number of elements."""
    return product(type_.shape)


def t(dtype: DType, *shape: Dim) -> TensorType:
    """Short form for sample tables."""
    return TensorType(shape, dtype)


__all__ = [
    "DIM_TYPES",
    "Attr",
    "Attrs",
    "OpDef",
    "Pattern",
    "Sample",
    "Types",
    "as_cache",
    "as_tensor",
    "broadcast",
    "check_shape",
    "compute_dtype",
    "count",
    "define_op",
    "elements",
    "is_bool",
    "is_float",
    "is_index",
    "is_number",
    "normal_axes",
    "normal_axis",
    "np_dtype",
    "round_to",
    "same_dtype",
    "t",
    "tensors",
    "want_dtype",
    "widen",
]
