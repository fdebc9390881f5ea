"""The op table's samples as functions and operand values, for table-driven tests of every stage."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from strata.core.dtypes import DType, Kind
from strata.core.errors import UserError

from .builder import input as input_node
from .interp import Value
from .nodes import Function, make_node
from .opdef import OPS, Sample
from .ops.common import np_dtype
from .types import CacheType, TensorType


def op_samples() -> Iterator[tuple[str, str, Sample]]:
    """``(test id, op, sample)`` of every sample of every op, in the order of the table."""
    for op, definition in OPS.items():
        for number, sample in enumerate(definition.samples()):
            yield f"{op}-{number}", op, sample


def sample_function(op: str, sample: Sample) -> Function:
    """A function ``@{op}`` that applies ``op`` to inputs ``x0``, ``x1``, ... of the sample's types."""
    inputs = tuple(input_node(f"x{i}", type_) for i, type_ in enumerate(sample.types))
    return Function(op, inputs, (make_node(op, inputs, **sample.attrs),))


def sample_operands(op: str, sample: Sample) -> list[Value]:
    """Operand values: those of the sample, the rest random with a seed that depends on the op alone."""
    rng = np.random.default_rng(zlib.crc32(op.encode()))
    values: list[Value] = []
    for number, type_ in enumerate(sample.types):
        if number in sample.values:
            values.append(sample.values[number])
        elif isinstance(type_, CacheType):
            raise UserError(f"{op}: sample has no value for its cache operand {number}")
        else:
            values.append(random_array(type_, rng))
    return values


def random_array(type_: TensorType, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random values of a concrete type: floats normal with spread 2, integers -20..19, bools fair."""
    shape = tuple(int(d) for d in type_.shape)  # type: ignore[arg-type]
    return _draw(type_.dtype, shape, rng).astype(np_dtype(type_.dtype))


def _draw(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    match dtype.kind:
        case Kind.FLOAT:
            return np.asarray(2.0 * rng.standard_normal(shape))
        case Kind.INT:
            return np.asarray(rng.integers(-20, 20, shape))
        case Kind.UINT:
            return np.asarray(rng.integers(0, 40, shape))
        case Kind.BOOL:
            return np.asarray(rng.integers(0, 2, shape))
