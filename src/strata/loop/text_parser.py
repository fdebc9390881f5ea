"""Parser of loop text; the grammar is in :mod:`.text`."""

from __future__ import annotations

import re
from typing import NoReturn

from strata.core.dims import Dim, SymDim
from strata.core.dtypes import ALL_DTYPES, DType, bool_, f32, i64
from strata.core.errors import ShapeError

from .nodes import (
    BOUND_KINDS,
    COMPARISONS,
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    BlockAxis,
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
    seq,
)
from .text_lexer import Source, Token

_SPECIAL = re.compile(r"(inf|nan)(?:_(\w+))?")
_KINDS = {
    "for": ForKind.SERIAL,
    "parallel": ForKind.PARALLEL,
    "unroll": ForKind.UNROLL,
    "vectorize": ForKind.VECTORIZE,
}
_AXES = {kind.value: kind for kind in ForKind if kind in BOUND_KINDS}
_REDUCTIONS = {"reduce_sum": ReduceOp.ADD, "reduce_max": ReduceOp.MAX, "reduce_min": ReduceOp.MIN}
_UNARY = {op.value: op for op in UnaryOp if op not in (UnaryOp.NEG, UnaryOp.NOT)}
_COMPARE = {op.value: op for op in COMPARISONS}
_SUM = {"+": BinaryOp.ADD, "-": BinaryOp.SUB}
_TERM = {"*": BinaryOp.MUL, "/": BinaryOp.DIV, "//": BinaryOp.FLOORDIV, "%": BinaryOp.FLOORMOD}


def parse_func(text: str, source: str = "<text>") -> Func:
    """Parse what ``print_func`` prints.

    Args:
        text: The function.
        source: Name of the text in error messages.

    Raises:
        ParseError: not the grammar, or a name that is not in scope; with line, column and caret.
    """
    return _Parser(text, source).func()


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str, source: str) -> None:
        self.source = Source(text, source)
        self.tokens = self.source.tokens
        self.position = 0
        self.in_body = False
        self.dims: dict[str, SymDim] = {}
        self.scope: dict[str, Var | Buffer] = {}

    # ---------------------------------------------------------------------------------------------- tokens

    @property
    def here(self) -> Token:
        """The next token."""
        return self.tokens[self.position]

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Raise a ParseError at ``token`` (default: the next one)."""
        self.source.fail(message, token or self.here)

    def next(self) -> Token:
        """Take a token."""
        token = self.here
        self.position += token.kind != "end"
        return token

    def at(self, *words: str) -> bool:
        """Whether the next token is one of these words."""
        return self.here.kind in ("punct", "name") and self.here.text in words

    def accept(self, word: str) -> bool:
        """Take the word if it is next."""
        found = self.at(word)
        self.position += found
        return found

    def expect(self, word: str) -> Token:
        """Take the word."""
        if not self.at(word):
            self.fail(f"got {_shown(self.here)}; expected {word!r}")
        return self.next()

    def take(self, kind: str, what: str) -> Token:
        """Take a token of a kind."""
        if self.here.kind != kind:
            self.fail(f"got {_shown(self.here)}; expected {what}")
        return self.next()

    def integer(self) -> int:
        """A plain integer."""
        token = self.take("number", "an integer")
        if not token.text.isdigit():
            self.fail(f"got {token.text!r}; expected an integer", token)
        return int(token.text)

    # -------------------------------------------------------------------------------------------- function

    def func(self) -> Func:
        """The whole text."""
        if self.accept("dims"):
            self.dim_declarations()
        self.expect("func")
        name = self.take("symbol", "@name").text[1:]
        inputs = self.params()
        self.expect("->")
        outputs = self.params()
        self.take("newline", "the end of the line")
        self.in_body = True
        body = self.suite()
        if self.here.kind != "end":
            self.fail(f"got {_shown(self.here)}; expected the end of the text")
        return Func(name, (*inputs, *outputs), body, len(outputs))

    def dim_declarations(self) -> None:
        """Names and ranges of symbolic dims."""
        while True:
            token = self.take("name", "the name of a dim")
            self.expect("in")
            lo = self.integer()
            self.expect("..")
            hi = self.integer()
            multiple = 1
            if self.accept("multiple"):
                self.expect("of")
                multiple = self.integer()
            try:
                self.dims[token.text] = SymDim(token.text, lo, hi, multiple)
            except ShapeError as error:
                self.fail(str(error), token)
            if not self.accept(","):
                break
        self.take("newline", "',' or the end of the line")

    def params(self) -> list[Buffer]:
        """``(name: type, ...)``."""
        self.expect("(")
        out: list[Buffer] = []
        while not self.accept(")"):
            if out:
                self.expect(",")
            out.append(self.buffer())
        return out

    def buffer(self) -> Buffer:
        """``name: type`` of a new buffer."""
        name = self.new_name()
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        shape: list[Dim] = []
        while not self.accept("]"):
            if shape:
                self.expect(",")
            shape.append(self.dim())
        space = MemSpace.GLOBAL
        if self.at("local", "register"):
            space = MemSpace(self.next().text)
        buffer = Buffer(name.text, tuple(shape), dtype, space)
        self.scope[name.text] = buffer
        return buffer

    def new_name(self) -> Token:
        """A name that is not in use."""
        token = self.take("name", "a name")
        if token.text in self.scope or token.text in self.dims:
            self.fail(f"got {token.text!r} again; expected a name that is not in use here", token)
        return token

    def dtype(self) -> DType:
        """Name of a dtype."""
        token = self.take("name", "a dtype")
        if token.text not in ALL_DTYPES:
            self.fail(f"got {token.text!r}; expected a dtype: {', '.join(ALL_DTYPES)}", token)
        return ALL_DTYPES[token.text]

    def dim(self) -> Dim:
        """A polynomial of dims."""
        negative = self.accept("-")
        total = self.dim_term() * (-1 if negative else 1)
        while self.at("+", "-"):
            sign = 1 if self.next().text == "+" else -1
            total = total + sign * self.dim_term()
        return total

    def dim_term(self) -> Dim:
        """A product of integers and names."""
        out = self.dim_factor()
        while self.accept("*"):
            out = out * self.dim_factor()
        return out

    def dim_factor(self) -> Dim:
        """An integer, or a name; parameters introduce names that no ``dims`` line declares."""
        if self.here.kind == "number":
            return self.integer()
        token = self.take("name", "an integer or the name of a dim")
        if token.text not in self.dims:
            if self.in_body or token.text in self.scope:
                self.fail(
                    f"got the unknown dim {token.text!r}; known: {', '.join(self.dims) or 'none'}", token
                )
            self.dims[token.text] = SymDim(token.text)
        return self.dims[token.text]

    # ------------------------------------------------------------------------------------------ statements

    def suite(self) -> Stmt:
        """Indented statements."""
        if self.here.kind != "indent":
            self.fail(f"got {_shown(self.here)}; expected an indented statement")
        self.next()
        body = self.rest()
        self.next()  # the dedent: nothing else ends self.rest()
        return body

    def rest(self) -> Stmt:
        """Statements up to the end of this suite; names defined here end with it."""
        outer = dict(self.scope)
        stmts: list[Stmt] = []
        while self.here.kind not in ("dedent", "end"):
            stmts.append(self.stmt())
        self.scope = outer
        return seq(*stmts)

    def stmt(self) -> Stmt:
        """One statement (a let or alloc without a suite takes the rest of this one)."""
        token = self.here
        if token.kind == "indent":
            self.fail("got a deeper indentation; expected a statement of this suite")
        if token.kind == "name":
            match token.text:
                case word if word in _KINDS:
                    return self.loop(_KINDS[self.next().text])
                case "block":
                    return self.block()
                case "if":
                    return self.branch()
                case "let":
                    return self.let()
                case "alloc":
                    self.next()
                    outer = dict(self.scope)
                    buffer = self.buffer()
                    return Alloc(buffer, self.scoped(outer))
                case "call":
                    return self.extern_call()
                case "pass":
                    self.next()
                    self.take("newline", "the end of the line")
                    return Seq(())
        return self.store()

    def colon_suite(self) -> Stmt:
        """``:`` and a suite."""
        self.expect(":")
        self.take("newline", "the end of the line")
        return self.suite()

    def scoped(self, outer: dict[str, Var | Buffer]) -> Stmt:
        """Scope of a let or alloc whose name is defined already; ``outer``: names before it."""
        if self.at(":"):
            body = self.colon_suite()
        else:
            self.take("newline", "':' or the end of the line")
            body = self.rest()
        self.scope = outer
        return body

    def loop(self, kind: ForKind) -> For:
        """After the word that starts a loop."""
        name = self.new_name()
        self.expect("in")
        extent = self.expr()
        if kind is ForKind.SERIAL and self.accept("on"):
            token = self.take("name", "a hardware axis")
            if token.text not in _AXES:
                self.fail(f"got {token.text!r}; expected one of {', '.join(_AXES)}", token)
            kind = _AXES[token.text]
        notes = self.notes()
        var = Var(name.text)
        outer = dict(self.scope)
        self.scope[name.text] = var
        body = self.colon_suite()
        self.scope = outer
        return For(var, extent, kind, body, notes)

    def notes(self) -> Notes:
        """``with key=value, ...``."""
        found: dict[str, int | str] = {}
        more = self.accept("with")
        while more:
            token = self.take("name", "the key of a note")
            if token.text in found:
                self.fail(f"got the key {token.text!r} again", token)
            self.expect("=")
            if self.here.kind == "string":
                found[token.text] = self.next().text[1:-1]
            else:
                found[token.text] = -self.integer() if self.accept("-") else self.integer()
            more = self.accept(",")
        return tuple(found.items())

    def branch(self) -> If:
        """``if``."""
        self.next()
        cond = self.expr()
        then = self.colon_suite()
        orelse = self.colon_suite() if self.accept("else") else None
        return If(cond, then, orelse)

    def let(self) -> Let:
        """``let``."""
        self.next()
        name = self.new_name()
        self.expect("=")
        value = self.expr()
        var = Var(name.text, value.dtype, value.lanes)
        outer = dict(self.scope)
        self.scope[name.text] = var
        return Let(var, value, self.scoped(outer))

    def block(self) -> Block:
        """``block``: values and predicate are outside of the axes' scope."""
        self.next()
        name = self.take("string", "the block's name in double quotes").text[1:-1]
        self.expect("(")
        axes: list[BlockAxis] = []
        while not self.accept(")"):
            if axes:
                self.expect(",")
            token = self.here
            axes.append(self.axis())
            if any(axis.var.name == token.text for axis in axes[:-1]):
                self.fail(f"got the axis {token.text!r} again; expected a new name", token)
        predicate = self.expr() if self.accept("where") else None
        notes = self.notes()
        self.expect(":")
        self.take("newline", "the end of the line")
        if self.here.kind != "indent":
            self.fail(f"got {_shown(self.here)}; expected an indented statement")
        self.next()
        outer = dict(self.scope)
        self.scope.update((axis.var.name, axis.var) for axis in axes)
        init = self.init() if self.accept("init") else None
        body = self.rest()
        self.next()
        self.scope = outer
        return Block(name, tuple(axes), body, init, predicate, notes)

    def axis(self) -> BlockAxis:
        """``name: spatial extent = value``."""
        name = self.new_name()
        self.expect(":")
        if not self.at("spatial", "reduce"):
            self.fail(f"got {_shown(self.here)}; expected 'spatial' or 'reduce'")
        kind = AxisKind(self.next().text)
        extent = self.expr()
        self.expect("=")
        return BlockAxis(Var(name.text), kind, extent, self.expr())

    def init(self) -> Stmt:
        """After ``init``: a store on the same line, or a suite."""
        if self.tokens[self.position + 1].kind == "newline":
            return self.colon_suite()
        self.expect(":")
        return self.store()

    def store(self) -> Store:
        """``buffer[indices] = value [if mask]``."""
        token = self.take("name", "a statement")
        buffer = self.lookup(token)
        if not isinstance(buffer, Buffer):
            self.fail(f"got {token.text!r}; expected a buffer to store to", token)
        indices = self.indices()
        self.expect("=")
        value = self.expr()
        mask = self.expr() if self.accept("if") else None
        self.take("newline", "the end of the line")
        return Store(buffer, indices, value, mask)

    def extern_call(self) -> Call:
        """``call @name(arguments)``; a buffer without indices is passed as a whole."""
        self.next()
        name = self.take("symbol", "@name of an extern").text[1:]
        self.expect("(")
        args: list[Buffer | Expr] = []
        while not self.accept(")"):
            if args:
                self.expect(",")
            found = self.scope.get(self.here.text) if self.here.kind == "name" else None
            if isinstance(found, Buffer) and self.tokens[self.position + 1].text != "[":
                self.next()
                args.append(found)
            else:
                args.append(self.expr())
        self.take("newline", "the end of the line")
        return Call(name, tuple(args))

    # ----------------------------------------------------------------------------------------- expressions

    def lookup(self, token: Token) -> Var | Buffer | Size:
        """What a name means here."""
        found = self.scope.get(token.text)
        if found is not None:
            return found
        if token.text in self.dims:
            return Size(self.dims[token.text])
        known = ", ".join((*self.scope, *self.dims)) or "none"
        self.fail(f"got the unknown name {token.text!r}; known here: {known}", token)

    def indices(self) -> tuple[Expr, ...]:
        """``[expr, ...]``."""
        self.expect("[")
        out: list[Expr] = []
        while not self.accept("]"):
            if out:
                self.expect(",")
            out.append(self.expr())
        return tuple(out)

    def expr(self) -> Expr:
        """An expression of any precedence."""
        out = self.conjunction()
        while self.accept("or"):
            out = Binary(BinaryOp.OR, out, self.conjunction())
        return out

    def conjunction(self) -> Expr:
        """``and``."""
        out = self.negation()
        while self.accept("and"):
            out = Binary(BinaryOp.AND, out, self.negation())
        return out

    def negation(self) -> Expr:
        """``not``."""
        if self.accept("not"):
            return Unary(UnaryOp.NOT, self.negation())
        out = self.sum()
        if self.at(*_COMPARE):
            op = _COMPARE[self.next().text]
            out = Binary(op, out, self.sum())
        return out

    def sum(self) -> Expr:
        """``+ -``."""
        out = self.product()
        while self.at(*_SUM):
            out = Binary(_SUM[self.next().text], out, self.product())
        return out

    def product(self) -> Expr:
        """``* / // %``."""
        out = self.unary()
        while self.at(*_TERM):
            out = Binary(_TERM[self.next().text], out, self.unary())
        return out

    def unary(self) -> Expr:
        """``-``: of a literal, a negative constant."""
        if not self.accept("-"):
            return self.primary()
        literal = self.here.kind == "number" or (
            self.here.kind == "name" and _SPECIAL.fullmatch(self.here.text)
        )
        if literal:
            const = self.number(self.next())
            return Const(-const.value, const.dtype)
        return Unary(UnaryOp.NEG, self.unary())

    def number(self, token: Token) -> Const:
        """A literal; without a suffix i64 or f32."""
        special = _SPECIAL.fullmatch(token.text)
        digits, _, suffix = token.text.partition("_")
        is_float = special is not None or "x" in digits
        if suffix and suffix not in ALL_DTYPES:
            self.fail(f"got the suffix {suffix!r}; expected a dtype: {', '.join(ALL_DTYPES)}", token)
        dtype = ALL_DTYPES[suffix] if suffix else (f32 if is_float else i64)
        if dtype.is_float != is_float:
            self.fail(f"got {token.text!r}; expected a literal that {dtype} can hold", token)
        if not is_float:
            return Const(int(digits), dtype)
        return Const(float(digits) if special else float.fromhex(digits), dtype)

    def primary(self) -> Expr:
        """Literal, name, load, call or parentheses."""
        token = self.next()
        match token.kind, token.text:
            case "number", _:
                return self.number(token)
            case "symbol", _:
                return self.intrinsic(token.text[1:])
            case "punct", "(":
                return self.parenthesised()
            case "name", "True" | "False":
                return Const(token.text == "True", bool_)
            case "name", word if _SPECIAL.fullmatch(word):
                return self.number(token)
            case "name", _:
                if self.at("("):
                    return self.call(token)
                found = self.lookup(token)
                return Load(found, self.indices()) if isinstance(found, Buffer) else found
        self.fail(f"got {_shown(token)}; expected an expression", token)

    def parenthesised(self) -> Expr:
        """After ``(``: an expression, or a load with its mask."""
        out = self.expr()
        if self.at("if"):
            if not isinstance(out, Load) or out.mask is not None:
                self.fail("got 'if' after something else than a plain load; expected ')'")
            self.next()
            out = Load(out.buffer, out.indices, self.expr())
        self.expect(")")
        return out

    def call(self, token: Token) -> Expr:
        """``name(arguments)``."""
        name = token.text
        self.expect("(")
        if name == "size":
            out: Expr = Size(self.dim())
        elif name in ALL_DTYPES:
            out = Cast(ALL_DTYPES[name], self.expr())
        elif name in _UNARY:
            out = Unary(_UNARY[name], self.expr())
        elif name in _REDUCTIONS:
            out = Reduce(_REDUCTIONS[name], self.expr())
        elif name in ("min", "max"):
            a, b = self.arguments(2)
            out = Binary(BinaryOp(name), a, b)
        elif name == "select":
            cond, a, b = self.arguments(3)
            out = Select(cond, a, b)
        elif name in ("ramp", "splat"):
            a = self.expr()
            self.expect(",")
            out = (Ramp if name == "ramp" else Splat)(a, self.integer())
        else:
            self.fail(f"got the unknown function {name!r}", token)
        self.expect(")")
        return out

    def arguments(self, count: int) -> list[Expr]:
        """That many expressions, separated by commas."""
        out = [self.expr()]
        while len(out) < count:
            self.expect(",")
            out.append(self.expr())
        return out

    def intrinsic(self, name: str) -> Intrinsic:
        """After ``@name``."""
        self.expect("<")
        token = self.take("name", "a type like f32 or f32x16")
        match = re.fullmatch(r"(\w+?)(?:x(\d+))?", token.text)
        if match is None or match[1] not in ALL_DTYPES:
            self.fail(f"got {token.text!r}; expected a type like f32 or f32x16", token)
        self.expect(">")
        self.expect("(")
        args: list[Expr] = []
        while not self.accept(")"):
            if args:
                self.expect(",")
            args.append(self.expr())
        return Intrinsic(name, tuple(args), ALL_DTYPES[match[1]], int(match[2] or 1))


def _shown(token: Token) -> str:
    return {
        "newline": "the end of the line",
        "end": "the end of the text",
        "indent": "a deeper indentation",
        "dedent": "the end of the indentation",
    }.get(token.kind) or repr(token.text)
