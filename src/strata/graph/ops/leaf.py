"""Leaves: function arguments, weights, stored constants.

``input`` and ``param`` have no reference: the interpreter binds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from strata.core.dtypes import ALL_DTYPES, bf16, dtype, f16, f32, i64
from strata.core.errors import ShapeError, UserError
from strata.graph.types import CacheType, TensorType, Type

from .common import Attr, Attrs, OpDef, Pattern, Sample, Types, check_shape, count, define_op, np_dtype


def _infer_declared(op: str, types: Types, attrs: Attrs) -> Type:
    count(op, types, ())
    if not attrs["name"]:
        raise UserError(f"{op}: got an empty name; expected the name of the argument or weight")
    declared = attrs["type"]
    if isinstance(declared, TensorType):
        check_shape(op, declared.shape)
    return declared


def _infer_input(types: Types, attrs: Attrs) -> Type:
    return _infer_declared("input", types, attrs)


def _infer_param(types: Types, attrs: Attrs) -> Type:
    return _infer_declared("param", types, attrs)


def _unbound(op: str) -> Any:
    def reference(_operands: Any, attrs: Attrs) -> Any:
        raise UserError(f"{op} {attrs['name']}: has no value of its own; graph.interp.run binds it")

    return reference


def array_type(array: np.ndarray) -> TensorType:
    """Type of a concrete array.

    Raises:
        ShapeError: its dtype is none of ours.
    """
    known = {np_dtype(d): d for d in ALL_DTYPES.values()}
    if array.dtype not in known:
        raise ShapeError(
            f"const: got an array of dtype {array.dtype}; expected one of {', '.join(ALL_DTYPES)}"
        )
    return TensorType(array.shape, known[array.dtype])


def _infer_const(types: Types, attrs: Attrs) -> Type:
    count("const", types, ())
    return array_type(attrs["value"])


def _const_samples() -> Iterator[Sample]:
    yield Sample((), {"value": np.array(1.5, np.float32)})
    yield Sample((), {"value": np.arange(7, dtype=np.int64)})
    yield Sample((), {"value": np.array([[1.0, -0.0], [np.inf, 6e-8]], np_dtype(f16))})
    yield Sample((), {"value": np.ones((1, 3, 1), np_dtype(bf16))})
    yield Sample((), {"value": np.array([True, False])})


define_op(
    OpDef(
        "input",
        _infer_input,
        _unbound("input"),
        Pattern.LEAF,
        {
            "name": Attr((str,), doc="name of the argument"),
            "type": Attr((TensorType, CacheType), doc="its type"),
        },
        flop=lambda types, attrs: 0,
        doc="An argument of the function.",
    )
)
define_op(
    OpDef(
        "param",
        _infer_param,
        _unbound("param"),
        Pattern.LEAF,
        {"name": Attr((str,), doc="name of the weight"), "type": Attr((TensorType,), doc="its type")},
        flop=lambda types, attrs: 0,
        doc="A weight of the module, by name.",
    )
)
define_op(
    OpDef(
        "const",
        _infer_const,
        lambda operands, attrs: attrs["value"],
        Pattern.LEAF,
        {"value": Attr((np.ndarray,), doc="the array")},
        _const_samples,
        flop=lambda types, attrs: 0,
        doc="A small array stored in the graph.",
    )
)


def make_array(value: Any, dtype_: Any = None) -> np.ndarray:
    """``value`` as a read-only C-contiguous array of a known dtype, for a ``const``.

    Args:
        value: An array, a nested list or a scalar.
        dtype_: A DType or its name; default: the array's own (Python floats give f32, ints i64).
    """
    if dtype_ is not None:
        array = np.array(value).astype(np_dtype(dtype(dtype_)))
    elif isinstance(value, np.ndarray | np.generic):
        array = np.array(value)
    else:
        array = np.array(value)
        default = {"f": f32, "i": i64}.get(array.dtype.kind)
        array = array if default is None else array.astype(np_dtype(default))
    array = np.ascontiguousarray(array).reshape(array.shape)
    array.setflags(write=False)
    return array
