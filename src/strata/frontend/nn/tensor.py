"""Tensors of a traced function, and parameters: the values that ``op`` functions take and return."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NoReturn, TypeAlias

from strata.core.dims import Dim, Shape
from strata.core.dtypes import DType, dtype, f32
from strata.core.errors import ShapeError
from strata.graph.nodes import Node

from . import trace

Scalar = int | float | bool
Operand: TypeAlias = "Tensor | int | float | bool"
Index = int | slice | EllipsisType


class Tensor:
    """A value in a traced function: a typed node of the graph.

    Arithmetic works as in PyTorch, with NumPy broadcasting and equal dtypes; Python numbers take the dtype
    of the
    tensor beside them. Sizes may be symbolic: ``b, s, d = x.shape`` gives dims that can be used in
    arithmetic.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def node(self) -> Node:
        """The graph node."""
        return self._node

    @property
    def shape(self) -> Shape:
        """Dims, each an int or symbolic."""
        return self.node.tensor.shape

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.node.tensor.dtype

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.node.type})"

    def astype(self, to: DType | str) -> Tensor:
        """The same values rounded to another dtype."""
        return _op().astype(self, to)

    def reshape(self, *shape: Dim | Sequence[Dim]) -> Tensor:
        """The same elements under another shape; see :func:`op.reshape`."""
        return _op().reshape(self, _varargs(shape))

    def permute_dims(self, *axes: int | Sequence[int]) -> Tensor:
        """Axes reordered; all reversed when none is given."""
        return _op().permute_dims(self, _varargs(axes) or None)

    @property
    def T(self) -> Tensor:
        """Axes reversed."""
        return self.permute_dims()

    def __add__(self, other: Operand) -> Tensor:
        return _op().add(self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return _op().add(other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return _op().subtract(self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return _op().subtract(other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return _op().multiply(self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return _op().multiply(other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return _op().divide(self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return _op().divide(other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return _op().power(self, other)

    def __matmul__(self, other: Tensor) -> Tensor:
        return _op().matmul(self, other)

    def __neg__(self) -> Tensor:
        return _op().negative(self)

    def __lt__(self, other: Operand) -> Tensor:
        return _op().less(self, other)

    def __le__(self, other: Operand) -> Tensor:
        return _op().less_equal(self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return _op().greater(self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return _op().greater_equal(self, other)

    def __bool__(self) -> bool:
        raise trace.fail(
            ShapeError,
            "a tensor has no truth value while it is traced; use op.where instead of `if`",
        )

    def __iter__(self) -> NoReturn:
        raise trace.fail(ShapeError, f"{self}: a tensor is not iterable; use op.split")

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        """Basic slices of step 1, integers (which drop the axis) and ``...``, as in NumPy."""
        return _op().getitem(self, index if isinstance(index, tuple) else (index,))


class Parameter(Tensor):
    """A weight: shape and dtype, no values. It is a tensor wherever a traced function uses it.

    Args:
        shape: Dims, all ints.
        dtype: Element type; ``None`` = f32, or what ``Module.to`` says later.

    Raises:
        ShapeError: a dim is no positive int.
    """

    def __init__(self, shape: Sequence[int], dtype: DType | str | None = None) -> None:
        for dim in shape:
            if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
                raise ShapeError(f"Parameter: got shape {list(shape)}; expected positive integers")
        self._shape = tuple(shape)
        self._dtype = f32 if dtype is None else _dtype(dtype)

    @property
    def node(self) -> Node:
        """The ``param`` node of the function being traced."""
        return trace.require(f"Parameter {self}").param(id(self), self._shape, self._dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dims."""
        return self._shape

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self._dtype

    def to(self, dtype: DType | str) -> None:
        """Change the element type."""
        self._dtype = _dtype(dtype)

    def __repr__(self) -> str:
        return f"Parameter({self._dtype}[{','.join(map(str, self._shape))}])"


_dtype = dtype  # the function, where an attribute or argument is called dtype


def _varargs(values: tuple) -> tuple:
    """``f(1, 2)`` and ``f((1, 2))`` mean the same."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], list | tuple) else values


def _op() -> Any:
    """The ``op`` namespace; imported late because it needs the classes above."""
    from . import op

    return op
