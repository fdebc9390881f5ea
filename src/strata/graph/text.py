"""Text of graph modules: printer and parser. ``parse_module(print_module(m))`` prints the same text again.

::

    module   ::= "module" "{" [dims] func* loop* "}"
    loop     ::= "loop" @name "(" [%arg ("," %arg)*] ")" "{{" loop IR "}}"          arg: see nodes.LoopText
    dims     ::= "dims" dim_decl ("," dim_decl)*
    dim_decl ::= NAME "in" INT ".." INT ["multiple" "of" INT]
    func     ::= "func" @name "(" [input ("," input)*] ")" "->" "(" type ("," type)* ")" "{" node* return "}"
    input    ::= %name ":" type [notes]
    node     ::= %value ":" type "=" (@param | op "(" [%value ("," %value)*] ")" [attrs]) [notes] ["#" origin]
    return   ::= "return" %value ("," %value)*
    attrs    ::= "{" NAME "=" attr ("," NAME "=" attr)* "}"          those equal to their default are left out
    notes    ::= "!" "{" NAME "=" note ("," NAME "=" note)* "}"
    note     ::= INT | "true" | "false" | STRING | "(" [note ("," note)*] ")"
    attr     ::= INT | HEXFLOAT | "inf" | "-inf" | "nan" | "true" | "false" | "none" | STRING | DTYPE | dim
               | "(" [dim ("," dim)*] ")" | type | array | func
    array    ::= DTYPE "[" INT,* "]" ":" ("[" number,* "]" | STRING)       STRING: base64, little-endian
    type     ::= DTYPE "[" dim,* "]" | "cache" "<" key "=" value,* ">"
    dim      ::= polynomial of INT and declared names: 2*n + 1

``//`` starts a comment; ``# text`` at the end of a node is its ``Node.name``. A function alone
(:func:`print_function`) is ``[dims] func``. Names that are not plain are written ``@"..."`` / ``%"..."``
with JSON escapes. Floats are printed with ``float.hex``, so the text is exact. Which kind an attribute's
word is (dtype or dim) follows from the op's schema.
"""

from __future__ import annotations

import base64
import json
import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

from strata.core.dims import DimExpr, SymDim, symbols
from strata.core.dtypes import DType

from .nodes import Function, LoopText, Module, Node
from .ops.leaf import array_type
from .text_parser import parse_function, parse_module
from .types import CacheType, TensorType

INLINE_ELEMENTS = 16  # larger arrays are printed as base64
_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)*")

__all__ = [
    "collect_dims",
    "node_slice",
    "parse_function",
    "parse_module",
    "print_function",
    "print_module",
]


# ---- printer ----


def print_module(module: Module) -> str:
    """Text of a module, ending in a newline."""
    sections = [_dims_lines(collect_dims(module.functions), "  ")]
    sections += [_function_lines(function, "  ") for function in module.functions]
    sections += [_loop_lines(name, loop) for name, loop in module.loops.items()]
    body = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return "module {\n" + (f"{body}\n" if body else "") + "}\n"


def _loop_lines(name: str, loop: LoopText) -> list[str]:
    args = ", ".join(f"%{_name(a)}" if not a[0].isdigit() else f"%{a}" for a in loop.args)
    body = textwrap.indent(loop.text.strip("\n"), "    ").split("\n")
    return [f"  loop @{_name(name)}({args}) {{{{", *body, "  }}"]


def print_function(function: Function) -> str:
    """Text of one function with the dims it uses, ending in a newline."""
    return "\n".join([*_dims_lines(collect_dims([function]), ""), *_function_lines(function, "")]) + "\n"


def collect_dims(functions: Iterable[Function]) -> list[SymDim]:
    """Symbolic dims of all types and attributes, sorted by name; of two with one name the first wins."""
    found: dict[str, SymDim] = {}

    def add(value: Any) -> None:
        match value:
            case SymDim() | DimExpr():
                for sym in symbols(value):
                    found.setdefault(sym.name, sym)
            case TensorType():
                add(value.shape)
            case tuple():
                for item in value:
                    add(item)
            case Function():
                visit(value)
            case _:
                pass

    def visit(function: Function) -> None:
        for node in function.nodes:
            add(node.type)
            for value in node.attrs.values():
                add(value)

    for function in functions:
        visit(function)
    return [found[name] for name in sorted(found)]


def _dims_lines(dims: list[SymDim], indent: str) -> list[str]:
    def text(d: SymDim) -> str:
        return f"{d.name} in {d.lo}..{d.hi}" + (f" multiple of {d.multiple_of}" if d.multiple_of != 1 else "")

    return [f"{indent}dims {', '.join(map(text, dims))}"] if dims else []


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _function_lines(function: Function, indent: str) -> list[str]:
    values: dict[int, str] = {id(n): f"%{_name(n.attrs['name'])}" for n in function.inputs}
    args = ", ".join(f"{values[id(n)]}: {n.type}{_notes(n)}" for n in function.inputs)
    results = ", ".join(str(n.type) for n in function.outputs)
    lines = [f"{indent}func @{_name(function.name)}({args}) -> ({results}) {{"]
    for node in function.nodes:
        if id(node) in values:
            continue
        operands = ", ".join(values[id(i)] for i in node.inputs)
        values[id(node)] = f"%{len(values) - len(function.inputs)}"
        lines += _node_lines(node, values[id(node)], operands, indent + "  ")
    outputs = ", ".join(values[id(n)] for n in function.outputs)
    return [*lines, f"{indent}  return {outputs}", f"{indent}}}"]


def _node_lines(node: Node, value: str, operands: str, indent: str) -> list[str]:
    head = f"{indent}{value}: {node.type} = "
    tail = _notes(node)
    if node.op == "param":
        return [f"{head}@{_name(node.attrs['name'])}{tail}"]
    if node.name:
        tail += f"  # {_origin(node.name)}"
    head += f"{node.op}({operands})"
    attrs = printed_attrs(node)
    if not attrs:
        return [head + tail]
    nested = [(k, v) for k, v in attrs.items() if isinstance(v, Function)]
    if not nested:
        return [f"{head} {{{', '.join(f'{k}={attr_text(v)}' for k, v in attrs.items())}}}{tail}"]
    ((key, body),) = nested  # ``fused`` has one function, the other attributes stay on its first line
    plain = "".join(f"{k}={attr_text(v)}, " for k, v in attrs.items() if k != key).rstrip()
    first, *rest = _function_lines(body, indent + "  ")
    return [f"{head} {{{plain}", f"{indent}  {key}={first.lstrip()}", *rest, f"{indent}}}{tail}"]


def _notes(node: Node) -> str:
    return f" !{{{', '.join(f'{k}={attr_text(v)}' for k, v in node.notes.items())}}}" if node.notes else ""


def node_slice(node: Node) -> str:
    """The text of ``node`` alone, its operands defined by op and type only; for error messages."""
    values: dict[int, str] = {}
    lines: list[str] = []
    for operand in node.inputs:
        if id(operand) not in values:
            values[id(operand)] = f"%{len(values)}"
            head = f"  {values[id(operand)]}: {operand.type} = {operand.op}(...)"
            lines.append(head + (f"  # {_origin(operand.name)}" if operand.name else ""))
    operands = ", ".join(values[id(i)] for i in node.inputs)
    return "\n".join([*lines, *_node_lines(node, f"%{len(values)}", operands, "  ")])


def _origin(name: str) -> str:
    plain = name.isprintable() and name == name.strip() and not name.startswith('"')
    return name if plain else json.dumps(name)


def printed_attrs(node: Node) -> dict[str, Any]:
    """Attributes that the text shows: those that differ from their default."""
    schema = node.opdef.attrs
    return {
        key: value
        for key, value in node.attrs.items()
        if type(value) is not type(schema[key].default) or value != schema[key].default
    }


def attr_text(value: Any) -> str:
    """Text of one attribute value (not of a function)."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "none"
        case float():
            return value.hex() if math.isfinite(value) else str(value)
        case str():
            return json.dumps(value)
        case tuple():
            return f"({', '.join(attr_text(v) for v in value)})"
        case np.ndarray():
            return _array_text(value)
        case int() | SymDim() | DimExpr() | DType() | TensorType() | CacheType():
            return str(value)
    raise TypeError(f"attribute value {value!r} has no text form")


def _array_text(array: np.ndarray[Any, Any]) -> str:
    flat = array.reshape(-1)
    # A NaN carries bits that no decimal or hex literal shows.
    if array.size <= INLINE_ELEMENTS and not (
        array.dtype.kind in "fV" and np.isnan(flat.astype(np.float64)).any()
    ):
        items = ", ".join(attr_text(v) for v in flat.astype(_python_kind(array)).tolist())
        return f"{array_type(array)}:[{items}]"
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return f'{array_type(array)}:"{base64.b64encode(little.tobytes()).decode()}"'


def _python_kind(array: np.ndarray[Any, Any]) -> Any:
    """Dtype whose ``tolist`` gives Python floats, ints or bools."""
    return {"b": np.bool_, "i": np.int64, "u": np.int64}.get(array.dtype.kind, np.float64)
