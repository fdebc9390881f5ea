"""The op table: what each graph op means.

An :class:`OpDef` has everything that the rest of the code may ask about an op: attribute schema, type rule,
NumPy reference (the op's *definition*), fusion pattern, flop count, samples for the table-driven tests.
Families live in ``graph/ops/<family>.py`` and register on import; loop lowering lives in
``lower/<family>.py`` under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from strata.core.dims import Dim
from strata.core.errors import UserError
from strata.core.registry import Registry

from .types import Type


class Pattern(IntEnum):
    """How an op may fuse; larger is harder to fuse (names as in TVM's operator patterns)."""

    LEAF = 0  # input, param, const
    ELEMENTWISE = 1  # out[i] = f(a[i], b[i]) with equal shapes
    BROADCAST = 2  # out[i, j] = f(a[i, j], b[j])
    INJECTIVE = 3  # every output element reads O(1) input elements: reshape, slice, take, rope
    REDUCTION = 4  # sum, mean, softmax, rms_norm: reads a row per element or row
    MATMUL = 5  # the heavy ones; elementwise consumers fuse into them
    OPAQUE = 6  # effects or own kernels: kv_append, paged_attention; nothing fuses


@dataclass(frozen=True, slots=True)
class Attr:
    """Schema of one attribute: accepted Python types and default (``REQUIRED`` if it has none)."""

    types: tuple[type, ...]
    default: Any = ...
    doc: str = ""


REQUIRED = ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated test case of an op: operand types (small, concrete), attributes, optional operand values.

    Attributes:
        types: Types of the operands (dims are ints).
        attrs: Attributes.
        values: For operands that cannot be random (indices): operand number -> ndarray.
    """

    types: tuple[Type, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpDef:
    """Everything known about one op.

    Attributes:
        name: Op name in text and in ``make_node``.
        infer: ``(operand types, attrs) -> result type``; raises ShapeError with op, operand and dims named.
        reference: ``(operand arrays, attrs) -> array``: the definition, on concrete NumPy arrays of the
            operands' dtypes; computes in f32 (f64 for f64) and rounds once to the result dtype.
        pattern: How it fuses.
        attrs: Attribute schema, in print order.
        samples: Generator of test cases (odd sizes and 1 included).
        flop: ``(operand types, attrs) -> Dim``: arithmetic operations; ``None`` = one per output element.
        doc: One line for ``docs/ops.md``.
    """

    name: str
    infer: Callable[[tuple[Type, ...], Mapping[str, Any]], Type]
    reference: Callable[[Sequence[Any], Mapping[str, Any]], Any]
    pattern: Pattern
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    samples: Callable[[], Iterator[Sample]] = lambda: iter(())
    flop: Callable[[tuple[Type, ...], Mapping[str, Any]], Dim] | None = None
    doc: str = ""

    def complete_attrs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` with defaults filled in, in schema order.

        Raises:
            UserError: an attribute is unknown, missing or of the wrong type.
        """
        unknown = [k for k in given if k not in self.attrs]
        if unknown:
            raise UserError(
                f"{self.name}: unknown attribute {unknown[0]!r}; it has: {', '.join(self.attrs) or 'none'}"
            )
        full: dict[str, Any] = {}
        for key, attr in self.attrs.items():
            value = given.get(key, attr.default)
            if value is REQUIRED:
                raise UserError(f"{self.name}: attribute {key!r} is missing ({attr.doc})")
            if float in attr.types and type(value) is int:
                value = float(value)
            # bool is a subclass of int, but True is no axis.
            wrong_bool = isinstance(value, bool) and bool not in attr.types
            if wrong_bool or not isinstance(value, attr.types):
                names = " or ".join(t.__name__ for t in attr.types)
                raise UserError(f"{self.name}: attribute {key} is {value!r}; expected {names}")
            full[key] = value
        return full


OPS: Registry[OpDef] = Registry("op")


def define_op(definition: OpDef) -> OpDef:
    """Add an op to the table."""
    return OPS.add(definition.name, definition)
