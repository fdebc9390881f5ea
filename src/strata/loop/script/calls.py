"""Calls in kernels: casts, words of the language, Python's ``min`` and ``sum``, other Python functions."""

from __future__ import annotations

import ast
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from strata.core.errors import UserError, VerifyError
from strata.loop import build as b
from strata.loop.intrinsics import INTRINSICS, result_type
from strata.loop.nodes import BinaryOp, Buffer, Expr, Intrinsic, MemSpace, Ramp, ReduceOp, UnaryOp

from . import language as words
from .expressions import Expressions
from .scope import Frame

_DEPTH = 32  # nested calls of Python functions; more is a recursion
_REDUCE = {words.reduce_sum: ReduceOp.ADD, words.reduce_max: ReduceOp.MAX, words.reduce_min: ReduceOp.MIN}
SPACES = {words.alloc: MemSpace.GLOBAL, words.local: MemSpace.LOCAL, words.register: MemSpace.REGISTER}
_STRUCTURAL = (zip, enumerate, reversed, list, tuple, len)  # do not look at the values that they arrange
_LOOPS = {
    words.grid: "for i in grid(8): ...",
    words.parallel: "for i in parallel(8): ...",
    words.unroll: "for i in unroll(8): ...",
    words.vectorize: "for i in vectorize(8): ...",
    words.block: 'for i in block("name", 8): ...  or  with block("name"): ...',
    words.reduce: 'block("name", reduce(8))',
    words.spatial: 'block("name", spatial(i, 8))',
    words.init: "with init(): ...",
}
_CASTS = {float: "f32", int: "i32 or i64", bool: "a comparison"}


class Calls(Expressions):
    """What a call means."""

    def call(self, node: ast.Call) -> Any:
        """The value of a call."""
        function = self.value(node.func)
        if is_word(function) and function in _LOOPS:
            self.fail(node, f"{function.__name__}: is no value; it is written as: {_LOOPS[function]}")
        if is_word(function) and function in SPACES:
            self.fail(
                node, f"{function.__name__}: a buffer needs a name of its own: t = {function.__name__}(...)"
            )
        args = tuple(self.elements(node.args))
        named = {k.arg: self.value(k.value) for k in node.keywords if k.arg is not None}
        if len(named) < len(node.keywords):
            self.fail(node, "got ** in a call; name the arguments")
        if isinstance(function, words.IntrinsicName):
            return self.intrinsic(function.name, args, node)
        found = self.word(function, args, node) if not named and is_word(function) else NotImplemented
        if found is not NotImplemented:
            return found
        return self.python_call(function, args, named, node)

    def word(self, function: Any, args: tuple[Any, ...], node: ast.Call) -> Any:
        """A word of the language or a builtin that it has; ``NotImplemented`` for others."""
        known = all(self.is_static(a) and not self.has_dim(a) for a in args)
        if isinstance(function, type) and issubclass(function, words.Element):
            return NotImplemented if known else self.cast(function, args, node)
        if function in words.FUNCTIONS:
            return NotImplemented if known else self.unary_call(words.FUNCTIONS[function], args, node)
        if function in (words.ramp, words.splat):
            return self.vector(function, args, node)
        if function in _REDUCE:
            return self.reduction(function, args, node)
        if function is words.call:
            return self.extern_call(args, node)
        if known:
            return NotImplemented
        if function in (min, max):
            op = BinaryOp.MIN if function is min else BinaryOp.MAX
            return self.fold_call(op, self.iterable(args[0], node) if len(args) == 1 else args, node)
        if function is sum:
            return self.fold_call(BinaryOp.ADD, (*args[1:], *self.iterable(args[0], node)), node)
        if function is abs:
            return self.unary_call(UnaryOp.ABS, args, node)
        if function in _CASTS:
            self.fail(node, f"{function.__name__}: got a value of the kernel; use {_CASTS[function]}")
        return NotImplemented

    def one(self, args: tuple[Any, ...], node: ast.Call, count: int = 1) -> None:
        """Check the number of arguments."""
        if len(args) != count:
            self.fail(node, f"got {len(args)} arguments; expected {count}")

    def cast(self, function: type[words.Element], args: tuple[Any, ...], node: ast.Call) -> Expr:
        """``f32(x)``."""
        self.one(args, node)
        return self.typed(b.cast(function.dtype, self.expr_of(args[0], node)), node)

    def unary_call(self, op: UnaryOp, args: tuple[Any, ...], node: ast.Call) -> Expr:
        """``exp(x)``."""
        self.one(args, node)
        with self.at(node):
            return self.typed(b.unary(op, self.expr_of(args[0], node)), node)

    def fold_call(self, op: BinaryOp, values: Sequence[Any], node: ast.Call) -> Any:
        """``min``, ``max`` or ``sum`` of at least one value."""
        out = values[0]
        for value in values[1:]:
            both = self.is_static(out) and self.is_static(value) and not self.has_dim(out, value)
            if both:
                plain = {BinaryOp.MIN: min, BinaryOp.MAX: max}.get(op, lambda x, y: x + y)
                out = self.static(node, lambda f=plain, x=out, y=value: f(x, y))
            else:
                out = self.binary(op, out, value, node)
        return out

    def vector(self, function: Callable[..., Any], args: tuple[Any, ...], node: ast.Call) -> Expr:
        """``ramp(base, lanes)`` and ``splat(value, lanes)``."""
        self.one(args, node, 2)
        lanes = self.static_int(args[1], node, "the number of lanes")
        if lanes < 2:
            self.fail(node, f"the number of lanes is {lanes}; expected at least 2")
        if function is words.ramp:
            return Ramp(self.index_of(args[0], node, "the base of a ramp"), lanes)
        with self.at(node):
            return b.splat(self.expr_of(args[0], node), lanes)

    def reduction(self, function: Callable[..., Any], args: tuple[Any, ...], node: ast.Call) -> Expr:
        """``reduce_sum(vector)``."""
        self.one(args, node)
        vector = self.expr_of(args[0], node)
        if vector.lanes == 1:
            self.fail(node, f"{function.__name__}: got a scalar; expected a vector, like x[i, j : j + 16]")
        return self.typed(b.reduction(_REDUCE[function], vector), node)

    def intrinsic(self, name: str, args: tuple[Any, ...], node: ast.Call) -> Expr:
        """``intrinsic.fma(a, b, c)``."""
        values = [self.expr_of(a, node) for a in args]
        lanes = max((v.lanes for v in values), default=1)
        try:
            INTRINSICS[name]
            try:
                dtype, width = result_type(name, [(v.dtype, v.lanes) for v in values])
            except VerifyError:  # scalars beside vectors stand for all lanes
                values = [b.splat(v, lanes) if v.lanes == 1 else v for v in values]
                dtype, width = result_type(name, [(v.dtype, v.lanes) for v in values])
        except (UserError, VerifyError) as error:
            self.fail(node, f"intrinsic.{name}: {str(error).removeprefix(f'@{name}: ')}")
        return Intrinsic(name, tuple(values), dtype, width)

    def extern_call(self, args: tuple[Any, ...], node: ast.Call) -> None:
        """``call("openblas.sgemm", ...)``."""
        if not args or not isinstance(args[0], str):
            self.fail(
                node, 'call: got no name; expected that of an extern first: call("library.function", ...)'
            )
        values = [a if _is_argument(a) else self.expr_of(a, node) for a in args[1:]]
        self.emit(self.static(node, lambda: b.call(args[0], *values)), node)

    # ------------------------------------------------------------------------------------------ functions

    def python_call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any], node: ast.Call) -> Any:
        """A Python function: called where it gets constants, read like the kernel where it does not."""
        if not callable(function):
            self.fail(node, f"got a call of {function!r}; expected a function")
        if is_word(function) and function in _STRUCTURAL and args and not isinstance(args[0], Expr | Buffer):
            return self.static(node, lambda: function(*args, **named))
        if all(self.is_static(v) for v in (*args, *named.values())):
            return self.static(node, lambda: function(*args, **named))
        if not isinstance(function, FunctionType):
            name = getattr(function, "__name__", repr(function))
            self.fail(
                node,
                f"{name}: cannot take a value of the kernel; strata.script has functions that do "
                "(exp, sqrt, ...), and functions written with def are read like the kernel",
            )
        return self.inline(function, args, named, node)

    def inline(
        self, function: FunctionType, args: tuple[Any, ...], named: dict[str, Any], node: ast.Call
    ) -> Any:
        """Read the body of another function in place of its call."""
        if self.frames == _DEPTH:
            self.fail(
                node, f"{function.__name__}: calls are nested more than {_DEPTH} deep; expected no recursion"
            )
        bound = self.static(node, lambda: inspect.signature(function).bind(*args, **named))
        bound.apply_defaults()
        outer, self.frame = self.frame, Frame(self.static(node, lambda: self.sources.of(function)))
        self.frames += 1
        for name, value in bound.arguments.items():
            self.bind(name, self.named(name, value, node), self.frame.source.tree)
        *body, last = self.frame.source.tree.body
        self.statements(body)
        result = None
        if isinstance(last, ast.Return):
            result = None if last.value is None else self.value(last.value)
        else:
            self.statements([last])
        self.frame = outer
        self.frames -= 1
        return result

    @abstractmethod
    def statements(self, body: list[ast.stmt]) -> None:
        """Read statements of the current suite; see ``statements``."""


def _is_argument(value: Any) -> bool:
    """Numbers take the dtypes of an extern's params."""
    return isinstance(value, Buffer | bool | int | float)


def is_word(value: Any) -> bool:
    """Whether a value can be looked up in a table of functions."""
    return isinstance(value, type) or callable(value)
