"""Expressions of kernels: Python's, evaluated as far as Python knows them, the rest as loop expressions."""

from __future__ import annotations

import ast
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from strata.core.dims import DimExpr, SymDim
from strata.core.dtypes import DType, bool_, i64
from strata.core.errors import StrataError
from strata.loop import build as b
from strata.loop.affine import Poly
from strata.loop.nodes import BinaryOp, Buffer, Const, Expr, Load, Splat, index, size

from .scope import Scope

_BINARY: dict[type[ast.operator], tuple[BinaryOp, Callable[[Any, Any], Any]]] = {
    ast.Add: (BinaryOp.ADD, operator.add),
    ast.Sub: (BinaryOp.SUB, operator.sub),
    ast.Mult: (BinaryOp.MUL, operator.mul),
    ast.Div: (BinaryOp.DIV, operator.truediv),
    ast.FloorDiv: (BinaryOp.FLOORDIV, operator.floordiv),
    ast.Mod: (BinaryOp.FLOORMOD, operator.mod),
}
_COMPARE: dict[type[ast.cmpop], tuple[BinaryOp, Callable[[Any, Any], Any]]] = {
    ast.Lt: (BinaryOp.LT, operator.lt),
    ast.LtE: (BinaryOp.LE, operator.le),
    ast.Gt: (BinaryOp.GT, operator.gt),
    ast.GtE: (BinaryOp.GE, operator.ge),
    ast.Eq: (BinaryOp.EQ, operator.eq),
    ast.NotEq: (BinaryOp.NE, operator.ne),
}
_DIM_OPS = (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL)  # polynomials stay polynomials
_MAX_POWER = 8


class Expressions(Scope, ABC):
    """Evaluation of expressions; see the module docstring."""

    def value(self, node: ast.expr) -> Any:
        """The value of an expression: of Python, or a loop expression, or a buffer."""
        found = self.evaluated(node)
        return found.item() if isinstance(found, np.generic) else found

    def evaluated(self, node: ast.expr) -> Any:
        """The value as it comes."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self.lookup(node)
            case ast.Attribute():
                return self.attribute(node)
            case ast.BinOp():
                return self.arithmetic(node.op, self.value(node.left), self.value(node.right), node)
            case ast.UnaryOp():
                return self.unary(node)
            case ast.BoolOp():
                return self.logic(node)
            case ast.Compare():
                return self.comparison(node)
            case ast.IfExp():
                return self.conditional(node)
            case ast.Subscript():
                return self.subscript(node)
            case ast.Call():
                return self.call(node)
            case ast.Tuple() | ast.List():
                return tuple(self.elements(node.elts))
            case ast.ListComp() | ast.GeneratorExp():
                return tuple(self.comprehension(node.elt, node.generators))
            case ast.JoinedStr():
                return "".join(
                    str(self.value(p.value if isinstance(p, ast.FormattedValue) else p)) for p in node.values
                )
        self.fail(node, f"got {_kind(node)}; kernels have arithmetic, comparisons, indexing, calls, tuples")

    @abstractmethod
    def call(self, node: ast.Call) -> Any:
        """A call; see ``calls``."""

    def expr(self, node: ast.expr) -> Expr:
        """The value of an expression as a loop expression."""
        return self.expr_of(self.value(node), node)

    def spread(self, nodes: Iterable[ast.expr]) -> list[tuple[Any, ast.expr]]:
        """Values of arguments, ``*more`` unpacked, each with what it is written as."""
        return [(value, node) for node in nodes for value in self.elements([node])]

    def elements(self, nodes: Iterable[ast.expr]) -> Iterator[Any]:
        """Values of the elements of a tuple or of arguments, ``*more`` unpacked."""
        for node in nodes:
            if isinstance(node, ast.Starred):
                yield from self.iterable(self.value(node.value), node)
            else:
                yield self.value(node)

    def iterable(self, value: Any, node: ast.AST) -> Sequence[Any]:
        """The items of something that Python knows the length of."""
        if isinstance(value, Expr | Buffer | str) or not isinstance(value, Iterable):
            self.fail(node, "got something without a constant length; expected a tuple, list or static_range")
        return tuple(value)

    def attribute(self, node: ast.Attribute) -> Any:
        """``buffer.shape``, ``buffer.dtype``, or an attribute of a Python object."""
        value = self.value(node.value)
        if isinstance(value, Buffer):
            match node.attr:
                case "shape":
                    return value.shape
                case "dtype":
                    return value.dtype
            self.fail(node, f"got {value.name}.{node.attr}; a buffer has .shape and .dtype")
        if isinstance(value, Expr):
            self.fail(node, f"got .{node.attr} of a value of the kernel; values have no attributes")
        try:
            return getattr(value, node.attr)
        except AttributeError as error:
            self.fail(node, str(error))

    # ------------------------------------------------------------------------------------------ operators

    def arithmetic(self, op: ast.operator, a: Any, c: Any, node: ast.AST) -> Any:
        """``a op c``."""
        if isinstance(op, ast.Pow) and not (self.is_static(a) and self.is_static(c)):
            return self.power(a, c, node)
        if type(op) not in _BINARY and not (self.is_static(a) and self.is_static(c)):
            self.fail(node, f"got the operator {_kind(op)}; kernels have + - * / // % **")
        found = _BINARY.get(type(op))
        if self.is_static(a) and self.is_static(c):
            dims = any(isinstance(x, SymDim | DimExpr) for x in (a, c))
            if found is None or not dims or found[0] in _DIM_OPS:
                return self.static(node, lambda: _operator(op)(a, c))
        assert found is not None
        return self.binary(found[0], a, c, node)

    def binary(self, op: BinaryOp, a: Any, c: Any, node: ast.AST) -> Expr:
        """An operation of which Python does not know both operands."""
        x, y = self.operands(op.value, a, c, node)
        with self.at(node):
            return self.typed(b.binary(op, x, y), node)

    def operands(self, what: str, a: Any, c: Any, node: ast.AST) -> tuple[Expr, Expr]:
        """Two operands; a number takes the dtype of the other one."""
        if _is_number(a) and not _is_number(c):
            y = self.expr_of(c, node)
            return self.number(a, y.dtype, node), y
        x = self.expr_of(a, node)
        y = self.number(c, x.dtype, node) if _is_number(c) else self.expr_of(c, node)
        if x.dtype != y.dtype:
            self.fail(
                node,
                f"{what}: got {x.dtype} and {y.dtype}; cast one of them, e.g. {x.dtype}(...) on the right",
            )
        if x.lanes != y.lanes and 1 not in (x.lanes, y.lanes):
            self.fail(node, f"{what}: got vectors of {x.lanes} and {y.lanes} lanes; expected as many")
        return x, y

    def number(self, value: Any, dtype: DType, node: ast.AST) -> Expr:
        """A number of Python as a constant of ``dtype``; floats do not become integers silently."""
        if isinstance(value, float) and not dtype.is_float:
            self.fail(node, f"got the float {value!r} where {dtype} is expected; cast explicitly")
        with self.at(node):
            return b.const(value, dtype)

    def power(self, a: Any, c: Any, node: ast.AST) -> Expr:
        """A small whole power, by multiplication."""
        x = self.expr_of(a, node)
        if isinstance(c, bool) or not isinstance(c, int) or not 1 <= c <= _MAX_POWER:
            self.fail(node, f"**: got the exponent {c!r}; expected a constant int 1..{_MAX_POWER}")
        out = x
        for _ in range(c - 1):
            out = self.binary(BinaryOp.MUL, out, x, node)
        return out

    def unary(self, node: ast.UnaryOp) -> Any:
        """``-a``, ``+a``, ``not a``."""
        a = self.value(node.operand)
        if self.is_static(a) and not isinstance(a, SymDim | DimExpr):
            return self.static(node, lambda: _operator(node.op)(a))
        match node.op:
            case ast.USub():
                if self.is_static(a):
                    return -a
                with self.at(node):
                    return self.typed(b.neg(self.expr_of(a, node)), node)
            case ast.UAdd():
                return a
            case ast.Not():
                with self.at(node):
                    return self.typed(b.not_(self.expr_of(a, node)), node)
        self.fail(node, f"got the operator {_kind(node.op)}; kernels have - and not")

    def logic(self, node: ast.BoolOp) -> Any:
        """``and``, ``or``: both sides are evaluated, but memory is read only where Python would."""
        conjunction = isinstance(node.op, ast.And)
        out: Any = conjunction
        for part in node.values:
            if self.is_static(out):
                if bool(out) != conjunction:
                    return out  # decided, as in Python
                out = self.value(part)
                continue
            before = self.condition(out, node)
            with self.guarded(before if conjunction else b.not_(before)):
                value = self.condition(self.value(part), part)
            out = self.binary(BinaryOp.AND if conjunction else BinaryOp.OR, before, value, node)
        return out

    def comparison(self, node: ast.Compare) -> Any:
        """Comparisons, also chained ones."""
        values = [self.value(node.left), *(self.value(n) for n in node.comparators)]
        out: Any = True
        for op, a, c in zip(node.ops, values, values[1:], strict=False):
            found = _COMPARE.get(type(op))
            if self.is_static(a) and self.is_static(c) and (found is None or not self.has_dim(a, c)):
                part: Any = self.static(node, lambda op=op, a=a, c=c: _operator(op)(a, c))
            elif found is None:
                self.fail(node, f"got the operator {_kind(op)}; kernels have < <= > >= == !=")
            else:
                part = self.binary(found[0], a, c, node)
            out = (
                part
                if out is True
                else self.binary(BinaryOp.AND, out, part, node)
                if part is not True
                else out
            )
        return out

    def has_dim(self, *values: Any) -> bool:
        """Whether a symbolic dim is among them: equality of two of those is known, their order is not."""
        return any(isinstance(v, SymDim | DimExpr) for v in values)

    def conditional(self, node: ast.IfExp) -> Any:
        """``a if cond else c``: both sides are evaluated, but memory is read only where Python would."""
        test = self.value(node.test)
        if self.is_static(test) and not self.has_dim(test):
            return self.value(node.body if test else node.orelse)
        cond = self.condition(test, node.test)
        with self.guarded(cond):
            a = self.value(node.body)
        with self.guarded(b.not_(cond)):
            c = self.value(node.orelse)
        x, y = self.operands("conditional expression", a, c, node)
        masked = isinstance(x, Load) and x.mask is not None and x.mask == b.splat(cond, x.lanes)
        if masked and _is_zero(y):
            return x  # lanes that a mask switches off are 0 anyway
        with self.at(node):
            return self.typed(b.select(cond, x, y), node)

    def condition(self, value: Any, node: ast.AST) -> Expr:
        """A value as a bool expression."""
        expr = self.expr_of(value, node)
        if expr.dtype != bool_:
            self.fail(node, f"got a condition of {expr.dtype}; expected bool: compare it with something")
        return expr

    @contextmanager
    def guarded(self, cond: Expr) -> Iterator[None]:
        """A place that counts only where ``cond`` holds, without being a branch."""
        self.guards.append(cond)
        yield
        self.guards.pop()

    # -------------------------------------------------------------------------------------------- memory

    def subscript(self, node: ast.Subscript) -> Any:
        """``buffer[...]`` or an item of a tuple, list or dict of Python."""
        value = self.value(node.value)
        if isinstance(value, Buffer):
            return self.load(value, node)
        if isinstance(value, Expr):
            self.fail(node, f"got an index into a value of {value.dtype}; expected a buffer")
        if isinstance(node.slice, ast.Slice):
            ends = (node.slice.lower, node.slice.upper, node.slice.step)
            item: Any = slice(*(None if e is None else self.value(e) for e in ends))
        else:
            item = self.value(node.slice)
        if not self.is_static(item):
            self.fail(
                node, "got an index that is known at run time only, into a constant of Python; use a buffer"
            )
        return self.static(node, lambda: value[item])

    def load(self, buffer: Buffer, node: ast.Subscript) -> Expr:
        """A load; where conditions around it do not hold it reads nothing, unless it is certainly inside."""
        return self.load_at(buffer, self.indices(buffer, node), node)

    def load_at(self, buffer: Buffer, where: tuple[Expr, ...], node: ast.AST) -> Expr:
        """The element or vector at these indices."""
        with self.at(node):
            load = b.load(buffer, *where)
            assert isinstance(load, Load)
            if self.guards and not self.inside(load):
                load = b.load(buffer, *where, mask=self.mask(load.lanes, node))
        return self.place(self.typed(load, node), node)

    def indices(self, buffer: Buffer, node: ast.Subscript) -> tuple[Expr, ...]:
        """Index expressions of ``buffer[...]``; a slice of constant length is a vector."""
        nodes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        rank = len(buffer.shape)
        if len(nodes) != rank:
            dims = ", ".join(map(str, buffer.shape))
            self.fail(
                node, f"{buffer.name}: got {len(nodes)} indices; expected {rank}: its shape is [{dims}]"
            )
        out = []
        for axis, part in enumerate(nodes):
            if isinstance(part, ast.Slice):
                out.append(self.slice(part, size(buffer.shape[axis])))
                continue
            expr = self.expr(part)
            if not expr.dtype.is_int:
                self.fail(part, f"index {axis} of {buffer.name} is {expr.dtype}; expected an integer")
            out.append(b.cast(i64, expr))
        return tuple(out)

    def slice(self, node: ast.Slice, extent: Expr) -> Expr:
        """``start : stop`` as a vector of indices."""
        if node.step is not None:
            self.fail(node, "got a slice with a step; expected start : stop; index with a vector for others")
        start = index(0) if node.lower is None else self.index_of(self.value(node.lower), node, "slice start")
        stop = extent if node.upper is None else self.index_of(self.value(node.upper), node, "slice stop")
        length: Poly = self.known.poly(stop) - self.known.poly(start)
        if length.constant is None or length.constant < 1:
            what = "a varying length" if length.constant is None else f"the length {length.constant}"
            self.fail(
                node, f"got a slice of {what}; expected a constant length of at least 1, like i : i + 16"
            )
        return b.ramp(start, length.constant)

    # ---------------------------------------------------------------------------------------------- Python

    def static(self, node: ast.AST, compute: Callable[[], Any]) -> Any:
        """What Python computes; what it raises is the kernel's mistake."""
        try:
            return compute()
        except StrataError as error:
            self.fail(node, str(error))
        except Exception as error:  # noqa: BLE001  (code of the user, which may raise anything)
            self.fail(node, f"Python raised {type(error).__name__}: {error}")

    def comprehension(self, element: ast.expr, loops: Sequence[ast.comprehension]) -> Iterator[Any]:
        """Values of a comprehension over things of constant length."""
        if not loops:
            yield self.value(element)
            return
        first, *rest = loops
        for item in self.iterable(self.value(first.iter), first.iter):
            self.frame.suites.append({})
            self.unpack(first.target, item)
            tests = [self.value(test) for test in first.ifs]
            for node, test in zip(first.ifs, tests, strict=True):
                if not self.is_static(test):
                    self.fail(
                        node, "got a condition that is known at run time only; use a conditional expression"
                    )
            if all(tests):
                yield from list(self.comprehension(element, rest))
            self.frame.suites.pop()

    def unpack(self, target: ast.expr, value: Any) -> None:
        """Give the names of ``target`` the items of ``value``, as constants."""
        if isinstance(target, ast.Name):
            self.bind(target.id, value, target)
            return
        if not isinstance(target, ast.Tuple | ast.List):
            self.fail(target, f"got {_kind(target)}; expected a name or a tuple of names")
        items = self.iterable(value, target)
        if len(items) != len(target.elts):
            self.fail(target, f"got {len(items)} values for {len(target.elts)} names")
        for inner, item in zip(target.elts, items, strict=True):
            self.unpack(inner, item)


_PYTHON: dict[type[ast.AST], Callable[..., Any]] = {
    **{op: function for op, (_, function) in _BINARY.items()},
    **{op: function for op, (_, function) in _COMPARE.items()},
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.MatMult: operator.matmul,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, c: a in c,
    ast.NotIn: lambda a, c: a not in c,
}


def _operator(op: ast.AST) -> Callable[..., Any]:
    return _PYTHON[type(op)]


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _is_zero(expr: Expr) -> bool:
    value = expr.a if isinstance(expr, Splat) else expr
    return isinstance(value, Const) and value.value == 0 and math.copysign(1.0, value.value) > 0


def _kind(node: ast.AST) -> str:
    return type(node).__name__
