"""Python functions of indices, traced into the text that the ``tensor_expr`` op takes.

``lambda x, w, i, j: x[i, j] * 2.0 + exp(w[j])`` becomes ``"a0[i0, i1] * 2.0 + exp(a1[i1])"``. Every
operation is put in parentheses, so that the text means what Python computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from strata.core.dims import Dim, DimExpr, SymDim
from strata.core.errors import UserError

from . import trace


class Element:
    """A number in a formula: an element of an input, an index, or something computed from them."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: Value) -> Element:
        return _infix(self, "+", other)

    def __radd__(self, other: Value) -> Element:
        return _infix(other, "+", self)

    def __sub__(self, other: Value) -> Element:
        return _infix(self, "-", other)

    def __rsub__(self, other: Value) -> Element:
        return _infix(other, "-", self)

    def __mul__(self, other: Value) -> Element:
        return _infix(self, "*", other)

    def __rmul__(self, other: Value) -> Element:
        return _infix(other, "*", self)

    def __truediv__(self, other: Value) -> Element:
        return _infix(self, "/", other)

    def __rtruediv__(self, other: Value) -> Element:
        return _infix(other, "/", self)

    def __floordiv__(self, other: Value) -> Element:
        return _infix(self, "//", other)

    def __mod__(self, other: Value) -> Element:
        return _infix(self, "%", other)

    def __pow__(self, other: Value) -> Element:
        return _infix(self, "**", other)

    def __neg__(self) -> Element:
        return Element(f"(-{self.text})")

    def __lt__(self, other: Value) -> Element:
        return _infix(self, "<", other)

    def __le__(self, other: Value) -> Element:
        return _infix(self, "<=", other)

    def __gt__(self, other: Value) -> Element:
        return _infix(self, ">", other)

    def __ge__(self, other: Value) -> Element:
        return _infix(self, ">=", other)

    def __eq__(self, other: Value) -> Element:  # type: ignore[override]
        return _infix(self, "==", other)

    def __ne__(self, other: Value) -> Element:  # type: ignore[override]
        return _infix(self, "!=", other)

    def __and__(self, other: Value) -> Element:
        return _infix(self, "and", other)

    def __or__(self, other: Value) -> Element:
        return _infix(self, "or", other)

    def __invert__(self) -> Element:
        return Element(f"(not {self.text})")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise trace.fail(
            UserError,
            f"formula: {self.text} has no truth value; use expr.select(condition, a, b) instead of `if`",
        )


Value: TypeAlias = Element | Dim | float


class Operand:
    """An input of the op: ``x[i, j]`` is one of its elements."""

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank

    def __getitem__(self, index: Value | tuple[Value, ...]) -> Element:
        """The element at ``index``.

        Raises:
            UserError: not one index per axis.
        """
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) != self.rank:
            raise trace.fail(
                UserError, f"formula: {self.name} has {self.rank} axes; got {len(indices)} indices"
            )
        text = ", ".join(_bare(_text(i)) for i in indices)
        return Element(f"{self.name}[{text or '()'}]")


def call(function: str, *args: Value) -> Element:
    """``function(args)``."""
    return Element(f"{function}({', '.join(_bare(_text(a)) for a in args)})")


def reduce(function: str, extent: Dim, body: Callable[[Any], Value]) -> Element:
    """``function(k < extent, body(k))``; nested reductions get names k0, k1, ... by depth of the inner "
    "text.
    """
    for depth in range(16):
        name = f"k{depth}"
        inner = _text(body(Element(name)))
        if f"({name} <" not in inner:
            return Element(f"{function}({name} < {_bare(_text(extent))}, {_bare(inner)})")
    raise trace.fail(UserError, f"formula: reductions {function} are nested more than 16 deep")


def formula_of(function: Callable[..., object], ranks: Sequence[int], num_axes: int) -> str:
    """The formula that ``function`` computes.

    Args:
        function: Takes one operand per input, then one index per axis of the result.
        ranks: Rank of each input.
        num_axes: Rank of the result.

    Raises:
        UserError: it does something that a formula cannot express, or takes another number of arguments.
    """
    operands = [Operand(f"a{i}", rank) for i, rank in enumerate(ranks)]
    axes = [Element(f"i{i}") for i in range(num_axes)]
    code = getattr(function, "__code__", None)
    if code is not None and code.co_argcount != len(operands) + len(axes):
        raise trace.fail(
            UserError,
            f"tensor_expr: the function takes {code.co_argcount} arguments; expected {len(operands)} inputs "
            f"and {len(axes)} indices",
        )
    return _bare(_text(function(*operands, *axes)))


def _text(value: object) -> str:
    match value:
        case Element():
            return value.text
        case bool():
            pass
        case int() | SymDim():
            return str(value) if not isinstance(value, int) or value >= 0 else f"({value})"
        case DimExpr():
            return f"({value})"
        case float() if math.isfinite(value):
            return repr(value) if value >= 0 else f"({value!r})"
    raise trace.fail(
        UserError, f"formula: got {value!r}; expected an element of an input, an index or a finite number"
    )


def _infix(a: Value, operator: str, b: Value) -> Element:
    return Element(f"({_text(a)} {operator} {_text(b)})")


def _bare(text: str) -> str:
    """Without the outer parentheses: every text that begins with one is enclosed as a whole."""
    return text[1:-1] if text.startswith("(") else text
