"""Parser of the expressions in loop text, and of the tokens of all of it; the grammar is in :mod:`.text`."""

from __future__ import annotations

import re
from typing import NoReturn

from strata.core.dims import Dim, SymDim
from strata.core.dtypes import ALL_DTYPES, DType, bool_, f32, i64

from .nodes import (
    COMPARISONS,
    Binary,
    BinaryOp,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrinsic,
    Load,
    Ramp,
    Reduce,
    ReduceOp,
    Select,
    Size,
    Splat,
    Unary,
    UnaryOp,
    Var,
)
from .text_lexer import Source, Token

_SPECIAL = re.compile(r"(inf|nan)(?:_(\w+))?")
_REDUCTIONS = {"reduce_sum": ReduceOp.ADD, "reduce_max": ReduceOp.MAX, "reduce_min": ReduceOp.MIN}
_UNARY = {op.value: op for op in UnaryOp if op not in (UnaryOp.NEG, UnaryOp.NOT)}
_COMPARE = {op.value: op for op in COMPARISONS}
_SUM = {"+": BinaryOp.ADD, "-": BinaryOp.SUB}
_TERM = {"*": BinaryOp.MUL, "/": BinaryOp.DIV, "//": BinaryOp.FLOORDIV, "%": BinaryOp.FLOORMOD}


class ExprParser:
    """Recursive descent over the tokens: dims and expressions in the names that are known."""

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
            self.fail(f"got {shown(self.here)}; expected {word!r}")
        return self.next()

    def take(self, kind: str, what: str) -> Token:
        """Take a token of a kind."""
        if self.here.kind != kind:
            self.fail(f"got {shown(self.here)}; expected {what}")
        return self.next()

    def integer(self) -> int:
        """A plain integer."""
        token = self.take("number", "an integer")
        if not token.text.isdigit():
            self.fail(f"got {token.text!r}; expected an integer", token)
        return int(token.text)

    # ------------------------------------------------------------------------------------- dtypes and dims

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
        self.fail(f"got {shown(token)}; expected an expression", token)

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


def shown(token: Token) -> str:
    """What a token is called in messages."""
    return {
        "newline": "the end of the line",
        "end": "the end of the text",
        "indent": "a deeper indentation",
        "dedent": "the end of the indentation",
    }.get(token.kind) or repr(token.text)
