"""Text of loop functions: printer, and the grammar that the parser reads.

``print_func(parse_func(print_func(f))) == print_func(f)``; structure and identities survive, nested
sequences are flattened. Indentation makes the nesting, as in Python::

    func   ::= [dims] "func" @name "(" params ")" "->" "(" params ")" NEWLINE suite
    dims   ::= "dims" NAME "in" INT ".." INT ["multiple" "of" INT] ("," ...)* NEWLINE
    params ::= [NAME ":" type ("," NAME ":" type)*]
    type   ::= DTYPE "[" dim,* "]" ["local" | "register"]
    suite  ::= INDENT stmt+ DEDENT
    stmt   ::= loop NAME "in" expr ["on" AXIS] [notes] ":" suite      AXIS: block_x, thread_x, lane, ...
             | "block" STRING "(" axis,* ")" ["where" expr] [notes] ":"
                 INDENT ["init" ":" (store | suite)] stmt+ DEDENT
             | "if" expr ":" suite ["else" ":" suite]
             | "alloc" NAME ":" type (NEWLINE | ":" suite)          without a suite: up to the end of this one
             | "let" NAME "=" expr (NEWLINE | ":" suite)
             | "call" @name "(" (NAME of a buffer | expr),* ")" NEWLINE
             | store NEWLINE
             | "pass" NEWLINE
    loop   ::= "for" | "parallel" | "unroll" | "vectorize"            only "for" with "on"
    notes  ::= "with" (NAME "=" (INT | STRING)),+
    axis   ::= NAME ":" ("spatial" | "reduce") expr "=" expr          extent = value
    store  ::= NAME "[" expr,* "]" "=" expr ["if" expr]               the expression after "if" is the mask
    expr   ::= Python's or, and, not, comparisons, + - * / // %, unary -, parentheses, and
             | NUMBER | NAME | NAME "[" expr,* "]"
             | "(" NAME "[" expr,* "]" "if" expr ")"                  masked load
             | DTYPE "(" expr ")"                                     cast
             | "min" "max" (a, b) | "select" (cond, a, b)
             | "ramp" (base, LANES) | "splat" (a, LANES) | "reduce_sum" "reduce_max" "reduce_min" (a)
             | "exp" "log" "sqrt" ... (a)
             | "size" "(" dim ")"                                     a polynomial; a symbol is just its name
             | @name "<" DTYPE ["x" LANES] ">" "(" expr,* ")"         hardware intrinsic
    NUMBER ::= INT | hexadecimal float | "inf" | "nan" | "True" | "False"
                                                                      with "_" DTYPE unless i64, f32, bool

``#`` starts a comment. Floats are ``float.hex`` without trailing zeros, so they are exact. Names are
unique in a function's text: what is called ``i`` a second time prints as ``i_1``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import assert_never

from strata.core.dims import Dim, SymDim, shape_symbols
from strata.core.dtypes import ALL_DTYPES, bool_, f32, i64

from .nodes import (
    BOUND_KINDS,
    COMPARISONS,
    Alloc,
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
    MemSpace,
    Notes,
    Ramp,
    Reduce,
    ReduceOp,
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
from .rewrite import walk
from .text_parser import parse_func as parse_func

LOOP_WORDS = {
    ForKind.SERIAL: "for",
    ForKind.PARALLEL: "parallel",
    ForKind.UNROLL: "unroll",
    ForKind.VECTORIZE: "vectorize",
    **dict.fromkeys(BOUND_KINDS, "for"),
}
REDUCE_WORDS = {ReduceOp.ADD: "reduce_sum", ReduceOp.MAX: "reduce_max", ReduceOp.MIN: "reduce_min"}
_WORDS = """
    func dims block where init if else alloc let call pass in and or not min max select ramp splat size inf
    on with nan True False spatial reduce local register global multiple of
"""
RESERVED = frozenset(
    {
        *_WORDS.split(),
        *LOOP_WORDS.values(),
        *REDUCE_WORDS.values(),
        *ALL_DTYPES,
        *(op.value for op in UnaryOp),
    }
)

_LINE = 100  # longer parameter lists are broken, one parameter per line
_PRECEDENCE = {
    BinaryOp.OR: 1,
    BinaryOp.AND: 2,
    **dict.fromkeys(COMPARISONS, 4),
    BinaryOp.ADD: 5,
    BinaryOp.SUB: 5,
    BinaryOp.MUL: 6,
    BinaryOp.DIV: 6,
    BinaryOp.FLOORDIV: 6,
    BinaryOp.FLOORMOD: 6,
}
_NOT, _UNARY, _PRIMARY = 3, 7, 8


def print_func(func: Func) -> str:
    """Text of a function, ending in a newline."""
    return _Printer().func(func)


def canonical_text(func: Func) -> str:
    """Text that is the same for functions that differ only in names (function, variables, buffers, blocks).

    Two functions with one canonical text compile to the same code. Symbolic dims keep their names: they
    are the order of the hidden size arguments.
    """
    return _Printer(canonical=True).func(func)


def print_stmt(stmt: Stmt) -> str:
    """Text of a statement, ending in a newline; variables and buffers from outside have their own names."""
    return "\n".join(_Printer().suite(stmt, "")) + "\n"


def print_expr(expr: Expr) -> str:
    """Text of an expression; variables and buffers have their own names."""
    return _Printer().expr(expr)


def func_symbols(func: Func) -> tuple[SymDim, ...]:
    """Symbolic dims of parameters, allocated buffers and ``size`` expressions, sorted by name."""
    dims: list[Dim] = [d for p in func.params for d in p.shape]
    for node in walk(func):
        if isinstance(node, Size):
            dims.append(node.dim)
        elif isinstance(node, Alloc):
            dims.extend(node.buffer.shape)
    return shape_symbols(dims)


def number_text(value: int | float | bool) -> str:
    """An exact literal."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return re.sub(r"\.?0*p", "p", value.hex())


def _dim_text(sym: SymDim) -> str:
    multiple = f" multiple of {sym.multiple_of}" if sym.multiple_of != 1 else ""
    return f"{sym.name} in {sym.lo}..{sym.hi}{multiple}"


def _type_text(buffer: Buffer) -> str:
    space = "" if buffer.space is MemSpace.GLOBAL else f" {buffer.space.value}"
    return f"{buffer.dtype}[{','.join(str(d) for d in buffer.shape)}]{space}"


class _Printer:
    """Names as they were assigned so far, and the recursion over nodes."""

    def __init__(self, canonical: bool = False) -> None:
        self.canonical = canonical
        self.taken: set[str] = set()
        self.names: dict[Var | Buffer, str] = {}
        self.blocks = 0

    # ------------------------------------------------------------------------------------------- names

    def bind(self, item: Var | Buffer) -> str:
        """A new name for an occurrence of a binder."""
        if self.canonical:
            base = f"{'v' if isinstance(item, Var) else 'b'}{len(self.taken)}"
        else:
            base = re.sub(r"\W", "_", item.name) or "_"
            base = f"_{base}" if base[0].isdigit() or not base.isascii() else base
            base = re.sub(r"[^\x00-\x7f]", "_", base)
        name, k = base, 1
        while name in self.taken or name in RESERVED:
            name, k = f"{base}_{k}", k + 1
        self.taken.add(name)
        self.names[item] = name
        return name

    def name(self, item: Var | Buffer) -> str:
        """The name of something in scope (or from outside of what is printed)."""
        return self.names.get(item) or self.bind(item)

    # ------------------------------------------------------------------------------------------ functions

    def func(self, func: Func) -> str:
        """Header and body."""
        symbols = func_symbols(func)
        self.taken.update(s.name for s in symbols)
        head = [f"dims {', '.join(_dim_text(s) for s in symbols)}"] if symbols else []
        split = len(func.params) - func.num_outputs
        params = [f"{self.bind(p)}: {_type_text(p)}" for p in func.params]
        name = "f" if self.canonical else re.sub(r"[^\w.]", "_", func.name)
        line = f"func @{name}({', '.join(params[:split])}) -> ({', '.join(params[split:])})"
        if len(line) > _LINE and not self.canonical:  # which must not depend on the lengths of names
            inputs, outputs = (",\n    ".join(part) for part in (params[:split], params[split:]))
            line = f"func @{name}(\n    {inputs}\n) -> (\n    {outputs}\n)"
        return "\n".join([*head, line, *self.suite(func.body, "  ")]) + "\n"

    def suite(self, stmt: Stmt, indent: str) -> list[str]:
        """Lines of a statement that stands alone in its suite."""
        stmts = _flat(stmt)
        lines: list[str] = []
        for position, item in enumerate(stmts):
            lines += self.stmt(item, indent, last=position == len(stmts) - 1)
        return lines or [f"{indent}pass"]

    def stmt(self, stmt: Stmt, indent: str, last: bool) -> list[str]:
        """Lines of one statement; ``last`` in its suite."""
        deeper = indent + "  "
        match stmt:
            case For():
                extent = self.expr(stmt.extent)
                on = f" on {stmt.kind.value}" if stmt.kind in BOUND_KINDS else ""
                head = f"{indent}{LOOP_WORDS[stmt.kind]} {self.bind(stmt.var)} in {extent}{on}"
                return [f"{head}{_notes_text(stmt.notes)}:", *self.suite(stmt.body, deeper)]
            case Block():
                return self.block(stmt, indent)
            case Store():
                return [indent + self.store(stmt)]
            case If():
                lines = [f"{indent}if {self.expr(stmt.cond)}:", *self.suite(stmt.then, deeper)]
                if stmt.orelse is not None:
                    lines += [f"{indent}else:", *self.suite(stmt.orelse, deeper)]
                return lines
            case Let():
                value = self.expr(stmt.value)
                head = f"{indent}let {self.bind(stmt.var)} = {value}"
                return self.scoped(head, stmt.body, indent, last)
            case Alloc():
                head = f"{indent}alloc {self.bind(stmt.buffer)}: {_type_text(stmt.buffer)}"
                return self.scoped(head, stmt.body, indent, last)
            case Seq():
                return self.suite(stmt, indent)
            case Call():
                args = (self.name(a) if isinstance(a, Buffer) else self.expr(a) for a in stmt.args)
                return [f"{indent}call @{stmt.extern}({', '.join(args)})"]
            case _:
                assert_never(stmt)

    def scoped(self, head: str, body: Stmt, indent: str, last: bool) -> list[str]:
        """A let or alloc: its scope is the rest of the suite, or a suite of its own."""
        if last:
            return [head, *self.suite(body, indent)]
        return [f"{head}:", *self.suite(body, indent + "  ")]

    def block(self, block: Block, indent: str) -> list[str]:
        """A block; its axes' values are outside of the scope of its axes."""
        bound = [(self.expr(a.extent), self.expr(a.value)) for a in block.axes]
        where = "" if block.predicate is None else f" where {self.expr(block.predicate)}"
        axes = ", ".join(
            f"{self.bind(a.var)}: {a.kind.value} {extent} = {value}"
            for a, (extent, value) in zip(block.axes, bound, strict=True)
        )
        self.blocks += 1
        name = f"b{self.blocks}" if self.canonical else block.name.replace('"', "'")
        lines = [f'{indent}block "{name}" ({axes}){where}{_notes_text(block.notes)}:']
        deeper = indent + "  "
        if isinstance(block.init, Store):
            lines.append(f"{deeper}init: {self.store(block.init)}")
        elif block.init is not None:
            lines += [f"{deeper}init:", *self.suite(block.init, deeper + "  ")]
        return lines + self.suite(block.body, deeper)

    def store(self, store: Store) -> str:
        """One line."""
        mask = "" if store.mask is None else f" if {self.expr(store.mask)}"
        return f"{self.access(store.buffer, store.indices)} = {self.expr(store.value)}{mask}"

    # ---------------------------------------------------------------------------------------- expressions

    def access(self, buffer: Buffer, indices: Iterable[Expr]) -> str:
        """``buffer[indices]``."""
        return f"{self.name(buffer)}[{', '.join(self.expr(i) for i in indices)}]"

    def expr(self, expr: Expr, level: int = 0) -> str:
        """Text of an expression, in parentheses if it binds more loosely than ``level``."""
        text, own = self.term(expr)
        return text if own >= level else f"({text})"

    def term(self, expr: Expr) -> tuple[str, int]:
        """Text and binding strength."""
        match expr:
            case Const():
                return _const_text(expr)
            case Var():
                return self.name(expr), _PRIMARY
            case Size():
                name = isinstance(expr.dim, SymDim)
                return str(expr.dim) if name else f"size({expr.dim})", _PRIMARY
            case Binary():
                return self.binary(expr)
            case Unary(op=UnaryOp.NOT):
                return f"not {self.expr(expr.a, _NOT)}", _NOT
            case Unary(op=UnaryOp.NEG):
                # -(3) is the negation of 3, -3 a constant.
                inner = f"({self.expr(expr.a)})" if isinstance(expr.a, Const) else self.expr(expr.a, _UNARY)
                return f"-{inner}", _UNARY
            case Load(mask=mask) if mask is not None:
                return f"({self.access(expr.buffer, expr.indices)} if {self.expr(mask)})", _PRIMARY
            case Load():
                return self.access(expr.buffer, expr.indices), _PRIMARY
            case _:
                return self.call(expr), _PRIMARY

    def binary(self, expr: Binary) -> tuple[str, int]:
        """An operator with its operands, or ``min``/``max``."""
        if expr.op in (BinaryOp.MIN, BinaryOp.MAX):
            return f"{expr.op.value}({self.expr(expr.a)}, {self.expr(expr.b)})", _PRIMARY
        own = _PRECEDENCE[expr.op]
        # Operators group to the left; comparisons do not chain.
        left = self.expr(expr.a, own + (expr.op in COMPARISONS))
        return f"{left} {expr.op.value} {self.expr(expr.b, own + 1)}", own

    def call(self, expr: Expr) -> str:
        """What is written like a function call."""
        match expr:
            case Unary():
                return f"{expr.op.value}({self.expr(expr.a)})"
            case Cast():
                return f"{expr.dtype}({self.expr(expr.a)})"
            case Select():
                return f"select({self.expr(expr.cond)}, {self.expr(expr.a)}, {self.expr(expr.b)})"
            case Ramp():
                return f"ramp({self.expr(expr.base)}, {expr.lanes})"
            case Splat():
                return f"splat({self.expr(expr.a)}, {expr.lanes})"
            case Reduce():
                return f"{REDUCE_WORDS[expr.op]}({self.expr(expr.a)})"
            case Intrinsic():
                lanes = f"x{expr.lanes}" if expr.lanes > 1 else ""
                args = ", ".join(self.expr(a) for a in expr.args)
                return f"@{expr.name}<{expr.dtype}{lanes}>({args})"
        raise AssertionError(type(expr))


def _notes_text(notes: Notes) -> str:
    if not notes:
        return ""
    items = (f"{key}={value}" if isinstance(value, int) else f'{key}="{value}"' for key, value in notes)
    return " with " + ", ".join(items)


def _flat(stmt: Stmt) -> list[Stmt]:
    if not isinstance(stmt, Seq):
        return [stmt]
    return [inner for item in stmt.stmts for inner in _flat(item)]


def _const_text(const: Const) -> tuple[str, int]:
    suffix = "" if const.dtype in (i64, f32, bool_) else f"_{const.dtype}"
    text = number_text(const.value) + suffix
    return text, _UNARY if text.startswith("-") else _PRIMARY
