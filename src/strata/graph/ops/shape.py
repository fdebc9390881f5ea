"""Ops that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from strata.core.dims import Dim, bounds, product
from strata.core.dtypes import DType, bf16, bool_, f16, f32, i32, i64
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    DIM_TYPES,
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    as_tensor,
    check_shape,
    define_op,
    is_index,
    normal_axes,
    normal_axis,
    t,
    tensors,
    want_dtype,
)

_DTYPES: tuple[DType, ...] = (f32, bf16, i64)


def _no_flop(types: Types, attrs: Attrs) -> Dim:
    return 0


# ---- reshape ----


def _reshape_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("reshape", types, ("x",))
    shape = check_shape("reshape", attrs["shape"])
    if product(shape) != product(x.shape):
        raise ShapeError(
            f"reshape: x {x} has {product(x.shape)} elements, shape ({_dims(shape)}) has {product(shape)}; "
            "they must be equal for every value of the symbolic dims"
        )
    return TensorType(shape, x.dtype)


def _dims(shape: Sequence[Dim]) -> str:
    return ",".join(str(d) for d in shape)


def _reshape_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    return np.ascontiguousarray(operands[0]).reshape(attrs["shape"])


def _reshape_samples() -> Iterator[Sample]:
    cases = [
        ((6,), (2, 3)),
        ((2, 3, 5), (6, 5)),
        ((1,), ()),
        ((), (1, 1)),
        ((3, 4), (4, 3)),
        ((0, 3), (3, 0, 2)),
    ]
    for source, target in cases:
        for dtype in _DTYPES if source == (6,) else (f32,):
            yield Sample((t(dtype, *source),), {"shape": target})


define_op(
    OpDef(
        "reshape",
        _reshape_infer,
        _reshape_reference,
        Pattern.INJECTIVE,
        {"shape": Attr((tuple,), doc="result dims")},
        _reshape_samples,
        _no_flop,
        "The same elements in row-major order under another shape.",
    )
)

define_op(
    OpDef(
        "view",
        _reshape_infer,
        _reshape_reference,
        Pattern.INJECTIVE,
        {"shape": Attr((tuple,), doc="result dims")},
        _reshape_samples,
        _no_flop,
        "The very memory of x under another shape, so no launch; `reshape_to_view` makes it of a reshape.",
    )
)


# ---- permute_dims ----


def _permute_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("permute_dims", types, ("x",))
    axes = normal_axes("permute_dims", attrs["axes"], x.rank)
    if len(axes) != x.rank:
        raise ShapeError(f"permute_dims: got {len(axes)} axes for x {x}; expected {x.rank}")
    return TensorType(tuple(x.shape[a] for a in axes), x.dtype)


def _permute_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    return np.transpose(operands[0], attrs["axes"]).copy(order="C")


def _permute_samples() -> Iterator[Sample]:
    for dtype in _DTYPES:
        yield Sample((t(dtype, 3, 5),), {"axes": (1, 0)})
    yield Sample((t(f32, 2, 3, 5),), {"axes": (2, 0, 1)})
    yield Sample((t(f32, 2, 3, 5),), {"axes": (-1, 1, 0)})
    yield Sample((t(f16, 1, 7, 1, 3),), {"axes": (0, 2, 1, 3)})
    yield Sample((t(f32, 33, 17),), {"axes": (1, 0)})
    yield Sample((t(f32),), {"axes": ()})


define_op(
    OpDef(
        "permute_dims",
        _permute_infer,
        _permute_reference,
        Pattern.INJECTIVE,
        {"axes": Attr((tuple,), doc="axis of x that becomes each result axis")},
        _permute_samples,
        _no_flop,
        "Axes reordered: result axis i is axis axes[i] of x.",
    )
)


# ---- slice ----


def _slice_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("slice", types, ("x",))
    axis = normal_axis("slice", attrs["axis"], x.rank)
    begin, end, extent = attrs["begin"], attrs["end"], x.shape[axis]
    for low, high in ((0, begin), (begin, end), (end, extent)):
        if bounds(high - low)[0] < 0:
            raise ShapeError(
                f"slice: {begin}..{end} of x {x} axis {axis} (extent {extent}): need {low} <= {high} for all "
                "values of the symbolic dims; bound the dims or change the range"
            )
    shape = list(x.shape)
    shape[axis] = end - begin
    return TensorType(tuple(shape), x.dtype)


def _slice_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    (x,) = operands
    index: list[slice] = [slice(None)] * x.ndim
    index[attrs["axis"]] = slice(attrs["begin"], attrs["end"])
    return np.ascontiguousarray(x[tuple(index)])


def _slice_samples() -> Iterator[Sample]:
    for dtype in _DTYPES:
        yield Sample((t(dtype, 4, 7),), {"axis": 1, "begin": 2, "end": 5})
    yield Sample((t(f32, 4, 7),), {"axis": 0, "begin": 0, "end": 4})
    yield Sample((t(f32, 4, 7),), {"axis": -1, "begin": 6, "end": 7})
    yield Sample((t(f32, 4, 7),), {"axis": 1, "begin": 3, "end": 3})
    yield Sample((t(f16, 2, 33, 3),), {"axis": 1, "begin": 16, "end": 33})


define_op(
    OpDef(
        "slice",
        _slice_infer,
        _slice_reference,
        Pattern.INJECTIVE,
        {
            "axis": Attr((int,), doc="axis to cut"),
            "begin": Attr(DIM_TYPES, doc="first index"),
            "end": Attr(DIM_TYPES, doc="index after the last"),
        },
        _slice_samples,
        _no_flop,
        "Indices begin .. end-1 of one axis.",
    )
)


# ---- concat ----


def _concat_infer(types: Types, attrs: Attrs) -> Type:
    if not types:
        raise ShapeError("concat: got no operands; expected at least one")
    named = [(f"x{i}", as_tensor("concat", type_, f"x{i}")) for i, type_ in enumerate(types)]
    _, first = named[0]
    axis = normal_axis("concat", attrs["axis"], first.rank)
    total: Dim = 0
    for name, type_ in named:
        ranks_fit = type_.rank == first.rank
        if not ranks_fit or type_.dtype != first.dtype or _without(type_, axis) != _without(first, axis):
            raise ShapeError(
                f"concat: x0 {first} and {name} {type_} differ outside axis {axis}; "
                "dtypes, ranks and all other dims must be equal"
            )
        total = total + type_.shape[axis]
    return TensorType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)


def _without(type_: TensorType, axis: int) -> tuple[Dim, ...]:
    return (*type_.shape[:axis], *type_.shape[axis + 1 :])


def _concat_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    return np.concatenate(operands, axis=attrs["axis"])


def _concat_samples() -> Iterator[Sample]:
    for dtype in (*_DTYPES, bool_):
        yield Sample((t(dtype, 2, 3), t(dtype, 2, 5)), {"axis": 1})
    yield Sample((t(f32, 2, 3), t(f32, 1, 3), t(f32, 4, 3)), {"axis": 0})
    yield Sample((t(f32, 2, 0), t(f32, 2, 1)), {"axis": -1})
    yield Sample((t(f16, 7),), {"axis": 0})


define_op(
    OpDef(
        "concat",
        _concat_infer,
        _concat_reference,
        Pattern.INJECTIVE,
        {"axis": Attr((int,), doc="axis along which operands follow one another")},
        _concat_samples,
        _no_flop,
        "Operands one after another along an axis.",
    )
)


# ---- broadcast_to ----


def _broadcast_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("broadcast_to", types, ("x",))
    shape = check_shape("broadcast_to", attrs["shape"])
    aligned = shape[len(shape) - x.rank :] if x.rank else ()
    if x.rank > len(shape) or any(a not in (1, b) for a, b in zip(x.shape, aligned, strict=True)):
        raise ShapeError(
            f"broadcast_to: x {x} does not broadcast to ({_dims(shape)}); "
            "dims aligned from the right must be equal, or 1 in x"
        )
    return TensorType(shape, x.dtype)


def _broadcast_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    return np.broadcast_to(operands[0], attrs["shape"]).copy()


def _broadcast_samples() -> Iterator[Sample]:
    for dtype in _DTYPES:
        yield Sample((t(dtype, 5),), {"shape": (3, 5)})
    yield Sample((t(f32, 3, 1),), {"shape": (2, 3, 7)})
    yield Sample((t(f32),), {"shape": (2, 2)})
    yield Sample((t(f32, 4),), {"shape": (4,)})
    yield Sample((t(f32, 1),), {"shape": (0,)})


define_op(
    OpDef(
        "broadcast_to",
        _broadcast_infer,
        _broadcast_reference,
        Pattern.BROADCAST,
        {"shape": Attr((tuple,), doc="result dims")},
        _broadcast_samples,
        _no_flop,
        "x repeated along its dims of extent 1 and new leading dims.",
    )
)


# ---- take ----


def _take_infer(types: Types, attrs: Attrs) -> Type:
    table, indices = tensors("take", types, ("table", "indices"))
    want_dtype("take", "indices", indices, is_index, "i32 or i64")
    axis = normal_axis("take", attrs["axis"], table.rank)
    return TensorType((*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :]), table.dtype)


def _take_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    table, indices = operands
    extent = table.shape[attrs["axis"]]
    wrong = indices[(indices < 0) | (indices >= extent)]
    if wrong.size:
        raise ShapeError(f"take: index {wrong.flat[0]} is out of range; expected 0..{extent - 1}")
    return np.asarray(np.take(table, indices, axis=attrs["axis"]))


def _take_samples() -> Iterator[Sample]:
    rows = np.array([4, 0, 0, 2], np.int32)
    for dtype in (f32, f16, bf16, i64):
        yield Sample((t(dtype, 5, 7), t(i32, 4)), {}, {1: rows})
    yield Sample((t(f32, 5, 7), t(i64, 2, 2)), {}, {1: rows.astype(np.int64).reshape(2, 2)})
    yield Sample((t(f32, 5), t(i32)), {}, {1: np.array(3, np.int32)})
    yield Sample((t(f32, 2, 5, 3), t(i32, 4)), {"axis": 1}, {1: rows})
    yield Sample((t(f32, 1, 33), t(i32, 1)), {}, {1: np.zeros(1, np.int32)})


define_op(
    OpDef(
        "take",
        _take_infer,
        _take_reference,
        Pattern.INJECTIVE,
        {"axis": Attr((int,), 0, "axis of table that the indices replace")},
        _take_samples,
        _no_flop,
        "Rows of a table by index (embedding look-up); indices are i32 or i64 in 0..extent-1.",
    )
)
