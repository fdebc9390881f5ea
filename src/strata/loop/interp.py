"""The slow definition of loop functions: execution on NumPy arrays.

A function is translated once to Python source (:func:`python_source` shows it), compiled and cached.
Scalars are NumPy scalars of the expression's dtype, so every operation rounds (i64 and bool are
Python's), vectors are small arrays, functions (exp, tanh, ...) are evaluated in f64 and rounded once.

Checked while running: every unmasked access is inside its buffer, block axes stay inside their extents,
    integer divisors are not 0. Allocated buffers start as NaN (floats) or as an extreme value (ints), so
    that reading before writing shows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import numpy as np

from strata.core.dims import Dim, DimExpr, SymDim, evaluate, symbols
from strata.core.dtypes import DType, bool_, i64
from strata.core.errors import ShapeError, VerifyError

from .externs import EXTERNS, call_problem
from .interp_support import SUPPORT, fresh_array
from .nodes import (
    BOUND_KINDS,
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Intrinsic,
    Let,
    Load,
    Ramp,
    Reduce,
    Select,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    Var,
)
from .text import print_expr
from .values import numpy_dtype

Array = np.ndarray[Any, Any]
_CACHED_FUNCS = 256
_LOOPS_PER_DEF = 12  # Python compiles at most 20 statically nested loops: deeper ones go to an inner function


def run(
    func: Func,
    arrays: Sequence[Array],
    dims: Mapping[str, int] | None = None,
    *,
    parallel_seed: int | None = None,
) -> None:
    """Execute ``func``; the arrays of the output parameters are written in place.

    Args:
        func: A function of any stage.
        arrays: One array per parameter, of its dtype and shape.
        dims: Values of symbolic dims that cannot be read off the shapes; they are checked against them
            otherwise.
        parallel_seed: Run the iterations of PARALLEL and bound loops in an order shuffled by this seed, to
            catch functions that depend on the order.

    Raises:
        ShapeError: number, dtype or shape of the arrays do not fit the parameters, or a dim has no value.
        VerifyError: an access outside of a buffer, an axis outside of its extent, a division by 0.
    """
    sizes = bind_dims(func, arrays, dims)
    rng = None if parallel_seed is None else np.random.default_rng(parallel_seed)
    code = _compiled(func)
    with np.errstate(all="ignore"):
        code(list(arrays), sizes, lambda count: _order(count, rng))


def _order(count: int, rng: np.random.Generator | None) -> Sequence[int]:
    return range(count) if rng is None else rng.permutation(max(count, 0)).tolist()


def bind_dims(func: Func, arrays: Sequence[Array], dims: Mapping[str, int] | None = None) -> dict[str, int]:
    """Values of the symbolic dims of ``func``, read off the shapes of ``arrays``.

    Raises:
        ShapeError: as :func:`run`.
    """
    sizes = dict(dims or {})
    if len(arrays) != len(func.params):
        raise ShapeError(f"{func.name}: got {len(arrays)} arrays; expected {len(func.params)}")
    for param, array in zip(func.params, arrays, strict=True):
        if array.dtype != numpy_dtype(param.dtype):
            raise ShapeError(f"{func.name}: {param.name} has dtype {array.dtype}; expected {param.dtype}")
        if array.ndim != len(param.shape):
            raise ShapeError(f"{func.name}: {param.name} has {array.ndim} dims; expected {len(param.shape)}")
        for dim, extent in zip(param.shape, array.shape, strict=True):
            if isinstance(dim, SymDim):
                sizes.setdefault(dim.name, extent)
    for param, array in zip(func.params, arrays, strict=True):
        expected = tuple(evaluate(dim, sizes) for dim in param.shape)
        if array.shape != expected:
            raise ShapeError(f"{func.name}: {param.name} has shape {array.shape}; expected {expected}")
    return sizes


# -------------------------------------------------------------------------------------------- translation

_Code = Callable[[list[Array], Mapping[str, int], Callable[[int], Sequence[int]]], None]
_cache: OrderedDict[int, tuple[Func, _Code]] = OrderedDict()


def _compiled(func: Func) -> _Code:
    found = _cache.get(id(func))
    if found is not None:
        _cache.move_to_end(id(func))
        return found[1]
    translator = _Translator(func)
    namespace = {**SUPPORT, **translator.constants}
    exec(compile(translator.source, f"<loop function {func.name}>", "exec"), namespace)
    code = namespace["main"]
    _cache[id(func)] = (func, code)  # holding the function keeps its id unique
    if len(_cache) > _CACHED_FUNCS:
        _cache.popitem(last=False)
    return code


def python_source(func: Func) -> str:
    """The Python program that :func:`run` executes."""
    return _Translator(func).source


_INFIX = {
    BinaryOp.ADD: "+",
    BinaryOp.SUB: "-",
    BinaryOp.MUL: "*",
    BinaryOp.DIV: "/",
    BinaryOp.LT: "<",
    BinaryOp.LE: "<=",
    BinaryOp.GT: ">",
    BinaryOp.GE: ">=",
    BinaryOp.EQ: "==",
    BinaryOp.NE: "!=",
    # Both operands are evaluated, as in machine code.
    BinaryOp.AND: "&",
    BinaryOp.OR: "|",
}


class _Translator:
    """Source text of one function, and the constants it refers to."""

    def __init__(self, func: Func) -> None:
        self.func = func
        self.names: dict[Var | Buffer, str] = {}
        self.constants: dict[str, object] = {}
        self.dims: dict[str, str] = {}
        self.counter = 0
        self.lines: list[str] = []
        for k, param in enumerate(func.params):
            self.bind(param)
            self.shape_names(param, "  ", f"arrays[{k}]")
        self.statement(func.body, "  ", 0)
        sizes = [f"  {local} = sizes[{name!r}]" for name, local in self.dims.items()]
        self.source = "\n".join(["def main(arrays, sizes, order):", *sizes, *self.lines, "  return None", ""])

    # ------------------------------------------------------------------------------------------- names

    def fresh(self, prefix: str) -> str:
        """A new Python name."""
        self.counter += 1
        return f"{prefix}{self.counter}"

    def bind(self, item: Var | Buffer) -> str:
        """The Python name of a variable or buffer defined here."""
        word = "".join(c if c.isascii() and c.isalnum() else "_" for c in item.name)
        self.names[item] = self.fresh(f"{'b' if isinstance(item, Buffer) else 'v'}_{word}_")
        return self.names[item]

    def name(self, item: Var | Buffer) -> str:
        """The Python name of something in scope."""
        found = self.names.get(item)
        if found is None:
            what = "variable" if isinstance(item, Var) else "buffer"
            raise VerifyError(f"{self.func.name}: {what} {item.name} is used outside of its scope")
        return found

    def constant(self, value: object) -> str:
        """A name for a value that has no literal."""
        name = self.fresh("c")
        self.constants[name] = value
        return name

    def dtype(self, dtype: DType) -> str:
        """Name of the NumPy scalar type."""
        name = f"t_{dtype}"
        self.constants[name] = numpy_dtype(dtype).type
        return name

    def dim(self, dim: Dim) -> str:
        """A symbolic dim as a Python expression."""
        if isinstance(dim, int):
            return str(dim)
        for sym in symbols(dim):
            self.dims.setdefault(sym.name, f"s_{sym.name}")
        if isinstance(dim, DimExpr):
            terms = ("*".join([str(k), *(self.dims[s.name] for s in syms)]) for k, syms in dim.terms)
            return f"({' + '.join(terms)})"
        return self.dims[dim.name]

    # ------------------------------------------------------------------------------------------ statements

    def emit(self, indent: str, line: str) -> None:
        """Append a line."""
        self.lines.append(indent + line)

    def shape_names(self, buffer: Buffer, indent: str, value: str) -> None:
        """Assign the array and its extents to names."""
        name = self.names[buffer]
        self.emit(indent, f"{name} = {value}")
        for axis in range(len(buffer.shape)):
            self.emit(indent, f"{name}_d{axis} = {name}.shape[{axis}]")

    def statement(self, stmt: Stmt, indent: str, depth: int) -> None:
        """Lines of one statement inside ``depth`` loops of this Python function."""
        match stmt:
            case For():
                self.loop(stmt, indent, depth)
            case Block():
                self.block(stmt, indent, depth)
            case Store():
                self.store(stmt, indent)
            case Let():
                value = self.expr(stmt.value)
                self.emit(indent, f"{self.bind(stmt.var)} = {value}")
                self.statement(stmt.body, indent, depth)
            case If():
                self.branch(stmt, indent, depth)
            case Alloc():
                self.bind(stmt.buffer)
                shape = "".join(f"{self.dim(d)}, " for d in stmt.buffer.shape)
                make = self.constant(fresh_array(stmt.buffer.dtype))
                self.shape_names(stmt.buffer, indent, f"{make}(({shape}))")
                self.statement(stmt.body, indent, depth)
            case Seq():
                for item in stmt.stmts:
                    self.statement(item, indent, depth)
                if not stmt.stmts:
                    self.emit(indent, "pass")
            case Call():
                self.call(stmt, indent)
            case _:
                assert_never(stmt)

    def loop(self, stmt: For, indent: str, depth: int) -> None:
        """A Python loop, in a function of its own where too many are nested already."""
        if depth == _LOOPS_PER_DEF:
            inner = self.fresh("part")
            self.emit(indent, f"def {inner}():")
            self.loop(stmt, indent + " ", 0)
            self.emit(indent, f"{inner}()")
            return
        extent = self.expr(stmt.extent)
        any_order = stmt.kind is ForKind.PARALLEL or stmt.kind in BOUND_KINDS
        order = "order" if any_order else "range"
        self.emit(indent, f"for {self.bind(stmt.var)} in {order}({extent}):")
        self.statement(stmt.body, indent + " ", depth + 1)

    def block(self, stmt: Block, indent: str, depth: int) -> None:
        """Axes become variables; their values are outside of the scope of the axes."""
        if stmt.predicate is not None:
            self.emit(indent, f"if {self.expr(stmt.predicate)}:")
            indent += " "
        bound = [(axis, self.expr(axis.value), self.expr(axis.extent)) for axis in stmt.axes]
        first: list[str] = []
        for axis, value, extent in bound:
            name = self.bind(axis.var)
            self.emit(indent, f"{name} = {value}")
            where = self.constant(f"{self.func.name}: block {stmt.name}: axis {axis.var.name}")
            self.emit(indent, f"if not 0 <= {name} < {extent}: bad_axis({where}, {name}, {extent})")
            if axis.kind is AxisKind.REDUCTION:
                first.append(f"{name} == 0")
        if stmt.init is not None:
            self.emit(indent, f"if {' and '.join(first) or 'True'}:")
            self.statement(stmt.init, indent + " ", depth)
        self.statement(stmt.body, indent, depth)
        if not bound and isinstance(stmt.body, Seq) and not stmt.body.stmts:
            self.emit(indent, "pass")

    def branch(self, stmt: If, indent: str, depth: int) -> None:
        """A scalar ``if``."""
        if stmt.cond.lanes != 1:
            raise VerifyError(f"{self.func.name}: if {print_expr(stmt.cond)}: the condition is a vector")
        self.emit(indent, f"if {self.expr(stmt.cond)}:")
        self.statement(stmt.then, indent + " ", depth)
        if stmt.orelse is not None:
            self.emit(indent, "else:")
            self.statement(stmt.orelse, indent + " ", depth)

    def store(self, stmt: Store, indent: str) -> None:
        """A store, checked; the value is evaluated before the mask, as in machine code."""
        value = self.expr(stmt.value)
        name = self.name(stmt.buffer)
        where = self.where(stmt.buffer)
        lanes = stmt.indices[-1].lanes if stmt.indices else 1
        if lanes > 1:
            *prefix, last = (self.expr(i) for i in stmt.indices)
            mask = "None" if stmt.mask is None else self.expr(stmt.mask)
            self.emit(indent, f"store_vector({where}, {name}, ({_tuple(prefix)}), {last}, {value}, {mask})")
            return
        temporary = self.fresh("x")
        self.emit(indent, f"{temporary} = {value}")
        if stmt.mask is not None:
            self.emit(indent, f"if {self.expr(stmt.mask)}:")
            indent += " "
        indices = [self.fresh("k") for _ in stmt.indices]
        for k, index in zip(indices, stmt.indices, strict=True):
            self.emit(indent, f"{k} = {self.expr(index)}")
        inside = " and ".join(f"0 <= {k} < {name}_d{axis}" for axis, k in enumerate(indices))
        if indices:
            self.emit(indent, f"if not ({inside}): outside({where}, {name}, ({_tuple(indices)}))")
        self.emit(indent, f"{name}[{_tuple(indices) or '()'}] = {temporary}")

    def call(self, stmt: Call, indent: str) -> None:
        """The semantics of an extern, on whole arrays."""
        why = call_problem(stmt)
        if why is not None:
            raise VerifyError(f"{self.func.name}: call @{stmt.extern}: {why}")
        function = self.constant(EXTERNS[stmt.extern].semantics)
        args = (self.name(a) if isinstance(a, Buffer) else self.expr(a) for a in stmt.args)
        self.emit(indent, f"{function}({', '.join(args)})")

    def where(self, buffer: Buffer) -> str:
        """Name of a constant that says which buffer of which function this is."""
        return self.constant(f"{self.func.name}: {buffer.name}")

    # ----------------------------------------------------------------------------------------- expressions

    def expr(self, expr: Expr) -> str:
        """Python expression for ``expr``."""
        match expr:
            case Const():
                return self.literal(expr)
            case Var():
                return self.name(expr)
            case Size():
                return self.dim(expr.dim)
            case Binary():
                return self.binary(expr)
            case Unary():
                return self.unary(expr)
            case Cast():
                return self.cast(expr)
            case Select():
                function = "select" if expr.lanes == 1 else "np.where"
                return f"{function}({self.expr(expr.cond)}, {self.expr(expr.a)}, {self.expr(expr.b)})"
            case Load():
                return self.load(expr)
            case Ramp():
                return f"({self.expr(expr.base)} + {self.constant(np.arange(expr.lanes))})"
            case Splat():
                return f"np.full({expr.lanes}, {self.expr(expr.a)}, {self.dtype(expr.dtype)})"
            case Reduce():
                return self.scalar(f"reduce_{expr.op.value}({self.expr(expr.a)})", expr.dtype)
            case Intrinsic(name="prefetch" | "prefetch1"):  # an address, which may be outside of the buffer
                return self.constant(np.int32(0))
            case Intrinsic():
                args = ", ".join(self.expr(a) for a in expr.args)
                return f"intrinsic({expr.name!r}, {expr.lanes}, {args})"
            case _:
                assert_never(expr)

    def literal(self, const: Const) -> str:
        """i64 and bool as Python literals, the rest as NumPy scalars."""
        if const.dtype == i64 or const.dtype == bool_:
            return f"({const.value})"
        return self.constant(numpy_dtype(const.dtype).type(const.value))

    def scalar(self, text: str, dtype: DType) -> str:
        """A NumPy scalar in the representation that scalars of ``dtype`` have."""
        return f"int({text})" if dtype == i64 else f"bool({text})" if dtype == bool_ else text

    def binary(self, expr: Binary) -> str:
        """Infix, or a support function."""
        a, b = self.expr(expr.a), self.expr(expr.b)
        infix = _INFIX.get(expr.op)
        if infix is not None:
            return f"({a} {infix} {b})"
        match expr.op:
            case BinaryOp.FLOORDIV | BinaryOp.FLOORMOD:
                function = "floordiv" if expr.op is BinaryOp.FLOORDIV else "floormod"
                divisor = expr.b.a if isinstance(expr.b, Splat) else expr.b
                if isinstance(divisor, Const) and divisor.value:
                    return f"({a} {expr.op.value} {b})"
                return f"{function}({self.constant(self.func.name)}, {a}, {b})"
            case _:
                vector = "_vector" if expr.lanes > 1 else ""
                return f"{expr.op.name.lower()}imum{vector}({a}, {b})"

    def unary(self, expr: Unary) -> str:
        """Prefix, or a support function that evaluates in f64."""
        a = self.expr(expr.a)
        match expr.op:
            case UnaryOp.NOT:
                return f"(~{a})" if expr.lanes > 1 else f"(not {a})"
            case UnaryOp.NEG:
                return f"(-{a})"
            case UnaryOp.ABS:
                return f"abs({a})"
            case _:
                return f"{expr.op.value}({a})"

    def cast(self, expr: Cast) -> str:
        """Conversion from dtype to dtype."""
        a, source, target = self.expr(expr.a), expr.a.dtype, expr.dtype
        if expr.lanes > 1:
            return f"cast_vector({a}, {self.dtype(target)})"
        if source.is_float and target.is_float:
            return f"{self.dtype(target)}({a})"
        return f"cast_scalar({a}, {self.constant(target)})"

    def load(self, expr: Load) -> str:
        """A checked load."""
        name, where = self.name(expr.buffer), self.where(expr.buffer)
        indices = [self.expr(i) for i in expr.indices]
        if expr.lanes > 1:
            mask = "None" if expr.mask is None else self.expr(expr.mask)
            return f"load_vector({where}, {name}, ({_tuple(indices[:-1])}), {indices[-1]}, {mask})"
        if expr.mask is not None:
            text = f"load_masked({where}, {name}, ({_tuple(indices)}), {self.expr(expr.mask)})"
            return self.scalar(text, expr.dtype)
        if not indices:
            return self.scalar(f"{name}[()]", expr.dtype)
        keys = [self.fresh("k") for _ in indices]
        inside = " and ".join(
            f"0 <= ({k} := {index}) < {name}_d{axis}"
            for axis, (k, index) in enumerate(zip(keys, indices, strict=True))
        )
        # An index after one that is outside is not evaluated: report only those that are.
        report = f"outside_lazy({where}, {name}, locals(), {keys!r})"
        return self.scalar(f"({name}[{_tuple(keys)}] if {inside} else {report})", expr.dtype)


def _tuple(items: Sequence[str]) -> str:
    return "".join(f"{item}, " for item in items)
