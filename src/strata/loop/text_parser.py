"""Parser of loop text; the grammar is in :mod:`.text`."""

from __future__ import annotations

from strata.core.dims import Dim, SymDim
from strata.core.errors import ShapeError

from .nodes import (
    BOUND_KINDS,
    Alloc,
    AxisKind,
    Block,
    BlockAxis,
    Buffer,
    Call,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Let,
    MemSpace,
    Notes,
    Seq,
    Stmt,
    Store,
    Var,
    seq,
)
from .text_expr_parser import ExprParser, shown
from .text_lexer import Token

_KINDS = {
    "for": ForKind.SERIAL,
    "parallel": ForKind.PARALLEL,
    "unroll": ForKind.UNROLL,
    "vectorize": ForKind.VECTORIZE,
}
_AXES = {kind.value: kind for kind in ForKind if kind in BOUND_KINDS}


def parse_func(text: str, source: str = "<text>") -> Func:
    """Parse what ``print_func`` prints.

    Args:
        text: The function.
        source: Name of the text in error messages.

    Raises:
        ParseError: not the grammar, or a name that is not in scope; with line, column and caret.
    """
    return _Parser(text, source).func()


class _Parser(ExprParser):
    """Functions and statements."""

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
            self.fail(f"got {shown(self.here)}; expected the end of the text")
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

    # ------------------------------------------------------------------------------------------ statements

    def suite(self) -> Stmt:
        """Indented statements."""
        if self.here.kind != "indent":
            self.fail(f"got {shown(self.here)}; expected an indented statement")
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
            self.fail(f"got {shown(self.here)}; expected an indented statement")
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
            self.fail(f"got {shown(self.here)}; expected 'spatial' or 'reduce'")
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
