"""Parser of graph text; the grammar is in ``graph.text``. Every node is type-checked as it is read."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np

from strata.core.dims import Dim, SymDim
from strata.core.dtypes import ALL_DTYPES, DType
from strata.core.errors import ParseError, Span, StrataError

from .nodes import Function, LoopText, Module, Node, Note, make_node, with_notes
from .opdef import OPS, Attr
from .ops.common import np_dtype
from .types import CacheType, RopeMode, TensorType, Type

T = TypeVar("T")

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|//[^\n]*)
  | (?P<raw>\{\{\n.*?\n\s*\}\})
  | (?P<origin>\#[^\n]*)
  | (?P<float>-?0x[0-9a-f]+\.?[0-9a-f]*p[+-]?\d+)
  | (?P<int>\d+)
  | (?P<value>%(?:[\w.]+|"(?:[^"\\\n]|\\.)*"))
  | (?P<symbol>@(?:[\w.]+|"(?:[^"\\\n]|\\.)*"))
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<name>[A-Za-z_]\w*)
  | (?P<punct>->|\.\.|[{}()\[\]<>:=,*+!-])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text at ``offset``; ``kind`` is a group of the token pattern, or ``"end"``."""

    kind: str
    text: str
    offset: int


def parse_module(text: str, source: str = "<text>") -> Module:
    """Parse what ``print_module`` prints.

    Raises:
        ParseError: not the grammar, an unknown name, or an ill-typed node; with line, column and caret.
    """
    return _Parser(text, source).module()


def parse_function(text: str, source: str = "<text>") -> Function:
    """Parse what ``print_function`` prints.

    Raises:
        ParseError: as :func:`parse_module`.
    """
    return _Parser(text, source).lone_function()


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.dims: dict[str, SymDim] = {}
        self.tokens = self.tokenize()
        self.at = 0

    # ---- tokens ----

    def tokenize(self) -> list[Token]:
        tokens: list[Token] = []
        offset = 0
        while offset < len(self.text):
            match = _TOKEN.match(self.text, offset)
            if match is None:
                self.fail_at(offset, f"unexpected character {self.text[offset]!r}")
            if match.lastgroup != "skip":
                tokens.append(Token(str(match.lastgroup), match.group(), offset))
            offset = match.end()
        tokens.append(Token("end", "", len(self.text)))
        return tokens

    def fail_at(self, offset: int, message: str) -> NoReturn:
        line = self.text.count("\n", 0, offset) + 1
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        line_text = self.text[start : end if end >= 0 else None]
        raise ParseError(message, Span(self.source, line, offset - start + 1), line_text)

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def fail(self, expected: str) -> NoReturn:
        got = repr(self.token.text) if self.token.kind != "end" else "the end of the text"
        self.fail_at(self.token.offset, f"got {got}; expected {expected}")

    def take(self, kind: str, words: str) -> str:
        if self.token.kind != kind:
            self.fail(words)
        self.at += 1
        return self.tokens[self.at - 1].text

    def expect(self, text: str) -> None:
        if self.token.text != text or self.token.kind not in ("punct", "name"):
            self.fail(repr(text))
        self.at += 1

    def skip(self, text: str) -> bool:
        found = self.token.text == text and self.token.kind in ("punct", "name")
        self.at += found
        return found

    def integer(self) -> int:
        sign = -1 if self.skip("-") else 1
        return sign * int(self.take("int", "an integer"))

    def listed(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items separated by commas up to ``close``, which is taken; one comma may follow the last item."""
        items: list[T] = []
        while not self.skip(close):
            items.append(item())
            if not self.skip(","):
                self.expect(close)
                break
        return items

    def unquoted(self, kind: str, words: str) -> str:
        """The name after the sigil of a ``%value`` or ``@symbol``."""
        offset = self.token.offset
        name = self.take(kind, words)[1:]
        return self.string(name, offset) if name.startswith('"') else name

    def string(self, text: str, offset: int) -> str:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            self.fail_at(offset, f"bad string: {error.msg}")

    # ---- structure ----

    def module(self) -> Module:
        self.expect("module")
        self.expect("{")
        self.dims_line()
        functions: list[Function] = []
        loops: dict[str, LoopText] = {}
        while not self.skip("}"):
            if self.token.text == "loop":
                self.loop(loops)
                continue
            offset = self.token.offset
            function = self.function()
            if any(f.name == function.name for f in functions):
                self.fail_at(offset, f"function @{function.name} is defined twice")
            functions.append(function)
        self.end()
        return Module(tuple(functions), loops)

    def loop(self, loops: dict[str, LoopText]) -> None:
        self.expect("loop")
        offset = self.token.offset
        name = self.unquoted("symbol", "the loop function's @name")
        if name in loops:
            self.fail_at(offset, f"loop @{name} is defined twice")
        self.expect("(")
        args = self.listed(")", lambda: self.unquoted("value", "an operand: %0, %1.k_pages or %out"))
        text = self.take("raw", "'{{', loop IR on lines of its own, and '}}'")
        loops[name] = LoopText(tuple(args), textwrap.dedent(text[3:-2].rstrip()) + "\n")

    def lone_function(self) -> Function:
        self.dims_line()
        function = self.function()
        self.end()
        return function

    def end(self) -> None:
        if self.token.kind != "end":
            self.fail("the end of the text")

    def dims_line(self) -> None:
        if not self.skip("dims"):
            return
        more = True
        while more:
            offset = self.token.offset
            name = self.take("name", "the name of a dim")
            self.expect("in")
            lo = self.integer()
            self.expect("..")
            hi, multiple_of = self.integer(), 1
            if self.skip("multiple"):
                self.expect("of")
                multiple_of = self.integer()
            if name in self.dims:
                self.fail_at(offset, f"dim {name} is declared twice")
            self.dims[name] = self.guarded(
                offset, lambda n=name, a=lo, b=hi, m=multiple_of: SymDim(n, a, b, m)
            )
            more = self.skip(",")

    def guarded(self, offset: int, build: Callable[[], T]) -> T:
        """``build()``; what it raises becomes a ParseError at ``offset``."""
        try:
            return build()
        except StrataError as error:
            self.fail_at(offset, str(error))

    def function(self) -> Function:
        self.expect("func")
        name = self.unquoted("symbol", "the function's @name")
        values: dict[str, Node] = {}
        self.expect("(")
        inputs = self.listed(")", lambda: self.input(values))
        self.expect("->")
        self.expect("(")
        offset = self.token.offset
        results = self.listed(")", self.type)
        self.expect("{")
        while not self.skip("return"):
            self.node(values)
        outputs = [self.operand(values)]
        while self.skip(","):
            outputs.append(self.operand(values))
        self.expect("}")
        if [n.type for n in outputs] != results:
            got = ", ".join(str(n.type) for n in outputs)
            self.fail_at(offset, f"@{name} returns ({got}), declared ({', '.join(map(str, results))})")
        return Function(name, tuple(inputs), tuple(outputs))

    def input(self, values: dict[str, Node]) -> Node:
        offset = self.token.offset
        name = self.unquoted("value", "an input %name")
        self.expect(":")
        type_ = self.type()
        node = self.guarded(offset, lambda: make_node("input", (), name, type=type_))
        node = with_notes(node, **self.notes())
        self.define(values, name, node, offset)
        return node

    def define(self, values: dict[str, Node], name: str, node: Node, offset: int) -> None:
        if name in values:
            self.fail_at(offset, f"%{name} is defined twice")
        values[name] = node

    def operand(self, values: dict[str, Node]) -> Node:
        offset = self.token.offset
        name = self.unquoted("value", "a %value")
        if name not in values:
            self.fail_at(offset, f"%{name} is not defined above")
        return values[name]

    def node(self, values: dict[str, Node]) -> None:
        start = self.token.offset
        name = self.unquoted("value", "a %value or 'return'")
        self.expect(":")
        declared = self.type()
        self.expect("=")
        offset = self.token.offset
        if self.token.kind == "symbol":
            param = self.unquoted("symbol", "a @param")
            node = self.guarded(offset, lambda: make_node("param", (), param, type=declared))
            node = with_notes(node, **self.notes())
        else:
            node = self.operation(values)
        if node.type != declared:
            self.fail_at(offset, f"%{name} is declared {declared}; {node.op} gives {node.type}")
        self.define(values, name, node, start)

    def operation(self, values: dict[str, Node]) -> Node:
        offset = self.token.offset
        op = self.take("name", "an op or a @param")
        if op not in OPS or op in ("input", "param"):
            self.guarded(offset, lambda: OPS[op])
            self.fail_at(
                offset, f"{op} is not written as an op; inputs stand in the function's head, params as @name"
            )
        schema = OPS[op].attrs
        self.expect("(")
        operands = self.listed(")", lambda: self.operand(values))
        attrs = dict(self.listed("}", lambda: self.attribute(op, schema))) if self.skip("{") else {}
        notes = self.notes()
        origin = ""
        if self.token.kind == "origin":
            origin = self.token.text[1:].strip()
            origin = self.string(origin, self.token.offset) if origin.startswith('"') else origin
            self.at += 1
        return with_notes(self.guarded(offset, lambda: make_node(op, operands, origin, **attrs)), **notes)

    def notes(self) -> dict[str, Note]:
        if not self.skip("!"):
            return {}
        self.expect("{")
        return dict(self.listed("}", self.note))

    def note(self) -> tuple[str, Note]:
        key = self.take("name", "the name of a note")
        self.expect("=")
        return key, tuple(self.listed(")", self.note_value)) if self.skip("(") else self.note_value()

    def note_value(self) -> bool | int | str:
        word, offset = self.token.text, self.token.offset
        if self.token.kind == "string":
            self.at += 1
            return self.string(word, offset)
        if word in ("true", "false"):
            self.at += 1
            return word == "true"
        if self.token.kind != "int" and word != "-":
            self.fail("the value of a note: an integer, true, false, a string or a list (..) of these")
        return self.integer()

    # ---- attributes ----

    def attribute(self, op: str, schema: Any) -> tuple[str, Any]:
        offset = self.token.offset
        key = self.take("name", "the name of an attribute")
        if key not in schema:
            self.fail_at(offset, f"{op} has no attribute {key!r}; it has: {', '.join(schema) or 'none'}")
        self.expect("=")
        return key, self.value(schema[key])

    def value(self, attr: Attr) -> Any:
        """A value of one of the attribute's types; the schema decides what a bare word is."""
        word = self.token.text
        if self.token.kind == "string" and str in attr.types:
            self.at += 1
            return self.string(word, self.tokens[self.at - 1].offset)
        if word in ("true", "false") and bool in attr.types:
            self.at += 1
            return word == "true"
        if word == "none" and type(None) in attr.types:
            self.at += 1
            return None
        if word == "func" and Function in attr.types:
            return self.function()
        if np.ndarray in attr.types:
            return self.array()
        if TensorType in attr.types or CacheType in attr.types:
            return self.type()
        if DType in attr.types:
            return self.dtype()
        if tuple in attr.types:
            self.expect("(")
            return tuple(self.listed(")", self.dim))
        if float in attr.types:
            return self.float()
        if int in attr.types:
            return self.dim() if SymDim in attr.types else self.integer()
        self.fail(" or ".join(t.__name__ for t in attr.types))

    def float(self) -> float:
        if self.token.kind == "float":
            return float.fromhex(self.take("float", ""))
        sign = -1.0 if self.skip("-") else 1.0
        if self.token.text in ("inf", "nan"):
            return sign * float(self.take("name", ""))
        if self.token.kind != "int":
            self.fail("a float as float.hex() prints it, an integer, inf or nan")
        return sign * self.integer()

    def dtype(self) -> DType:
        if self.token.kind != "name" or self.token.text not in ALL_DTYPES:
            self.fail(f"a dtype ({', '.join(ALL_DTYPES)})")
        self.at += 1
        return ALL_DTYPES[self.tokens[self.at - 1].text]

    def array(self) -> np.ndarray[Any, Any]:
        start = self.token.offset
        dtype = self.dtype()
        self.expect("[")
        shape = tuple(self.listed("]", self.integer))
        self.expect(":")
        offset = self.token.offset
        if self.token.kind == "string":
            flat = self.base64(self.take("string", "base64"), dtype, offset)
        else:
            self.expect("[")
            flat = np.array(self.listed("]", lambda: self.element(dtype)), dtype=self.wide(dtype))
            flat = flat.astype(np_dtype(dtype))
        if flat.size != math.prod(shape):
            self.fail_at(start, f"array has {flat.size} elements; its shape says {math.prod(shape)}")
        out = flat.reshape(shape)
        out.setflags(write=False)
        return out

    def wide(self, dtype: DType) -> type:
        return np.float64 if dtype.is_float else np.int64 if dtype.is_int else np.bool_

    def element(self, dtype: DType) -> Any:
        if dtype.is_float:
            return self.float()
        if dtype.is_int:
            return self.integer()
        if self.token.text not in ("true", "false"):
            self.fail("true or false")
        self.at += 1
        return self.tokens[self.at - 1].text == "true"

    def base64(self, text: str, dtype: DType, offset: int) -> np.ndarray[Any, Any]:
        try:
            raw = base64.b64decode(text[1:-1], validate=True)
        except binascii.Error as error:
            self.fail_at(offset, f"bad base64: {error}")
        if len(raw) % dtype.itemsize_bytes:
            self.fail_at(
                offset, f"got {len(raw)} bytes; expected a multiple of {dtype.itemsize_bytes} for {dtype}"
            )
        return np.frombuffer(raw, np_dtype(dtype).newbyteorder("<")).astype(np_dtype(dtype))

    # ---- types and dims ----

    def type(self) -> Type:
        offset = self.token.offset
        if self.skip("cache"):
            self.expect("<")
            pairs = dict(self.listed(">", self.cache_field))
            return self.guarded(offset, lambda: self.cache_type(pairs, offset))
        dtype = self.dtype()
        self.expect("[")
        return TensorType(tuple(self.listed("]", self.dim)), dtype)

    def cache_field(self) -> tuple[str, Any]:
        key = self.take("name", "a field of the cache type")
        self.expect("=")
        if key == "dtype":
            return key, self.dtype()
        return key, self.take("name", "a rope mode") if key == "rope" else self.integer()

    def cache_type(self, pairs: dict[str, Any], offset: int) -> CacheType:
        required = ("layers", "kv_heads", "head_dim", "dtype", "page_size", "rope")
        if not set(required) <= set(pairs) <= {*required, "rotary_dim"}:
            self.fail_at(
                offset, f"cache type has the fields {', '.join(pairs)}; expected {', '.join(required)}"
            )
        modes = {m.value: m for m in RopeMode}
        if pairs["rope"] not in modes:
            self.fail_at(offset, f"cache type: rope is {pairs['rope']}; expected one of {', '.join(modes)}")
        return CacheType(
            pairs["layers"],
            pairs["kv_heads"],
            pairs["head_dim"],
            pairs["dtype"],
            pairs["page_size"],
            modes[pairs["rope"]],
            pairs.get("rotary_dim", 0),
        )

    def dim(self) -> Dim:
        """Sum of terms, as ``str(dim)`` prints it."""
        total = self.term(-1 if self.skip("-") else 1)
        while self.token.text in ("+", "-"):
            sign = -1 if self.token.text == "-" else 1
            self.at += 1
            total = total + self.term(sign)
        return total

    def term(self, sign: int) -> Dim:
        total: Dim = sign * self.factor()
        while self.skip("*"):
            total = total * self.factor()
        return total

    def factor(self) -> Dim:
        if self.token.kind == "int":
            return self.integer()
        name, offset = self.token.text, self.token.offset
        self.take("name", "a dim (an integer or a declared name)")
        if name not in self.dims:
            self.fail_at(offset, f"dim {name} is not declared; add it to the dims line")
        return self.dims[name]
