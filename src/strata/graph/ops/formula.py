"""Index formulas of ``tensor_expr``: text, typed tree, checker.

::

    formula ::= Python expression over
        i0 i1 ...            axes of the result (integer)
        n seq_len ...        symbolic dims, by name (integer)
        a0[index, ...]       element of an operand; a 0-d operand is written a0[()]
        1  2.5               numbers
        + - * / **  -x       arithmetic; / and ** give floats
        // %                 integer division and remainder (integers only, floor)
        < <= > >= == !=      comparisons;  and  or  not
        select(c, a, b)      a where c else b; both are computed
        min(a, b) max(a, b)
        exp(x) silu(x) ...   the one-operand ops (float)
        sum(k < 16, x)       sum of x over k = 0 .. 15; the extent is an integer expression of dims
        reduce_max(k < n, x) reduce_min(k < n, x)

Kinds: axes, dims, integer literals and ``+ - * // % min max select`` of them are INT (i64); comparisons are
    BOOL;
everything else is FLOAT (f32). An INT operand of a float operation is converted to f32. Operand elements
are FLOAT (converted from their dtype) except inside an index, where they are INT and must be of an integer
dtype. An index must lie inside the operand's shape for every element, also in the branch of a ``select``
that is not chosen.

``graph.ops.tensor_expr`` evaluates the tree on NumPy grids, ``lower`` turns it into loops.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from strata.core.dims import Dim, Shape, SymDim, shape_symbols
from strata.core.errors import ParseError, Span


class FormulaKind(Enum):
    """What a subexpression is computed in."""

    INT = "i64"
    FLOAT = "f32"
    BOOL = "bool"


class FormulaOp(Enum):
    """Two-operand operations; the value is the text form."""

    ADD = "+"
    SUB = "-"
    MUL = "*"
    DIV = "/"
    POW = "**"
    FLOORDIV = "//"
    FLOORMOD = "%"
    MIN = "min"
    MAX = "max"
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    EQ = "=="
    NE = "!="
    AND = "and"
    OR = "or"


class ReduceKind(Enum):
    """Reductions; the value is the function's name."""

    SUM = "sum"
    MAX = "reduce_max"
    MIN = "reduce_min"


COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})
FUNCTIONS = (
    *("exp", "log", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "silu", "gelu"),
    *("relu", "abs", "sin", "cos", "floor"),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis ``i0``, ``i1``, ... of the result, or the axis of an enclosing reduction. INT."""

    name: str

    @property
    def kind(self) -> FormulaKind:
        """INT."""
        return FormulaKind.INT


@dataclass(frozen=True, slots=True)
class Size:
    """Value of a symbolic dim. INT."""

    dim: Dim

    @property
    def kind(self) -> FormulaKind:
        """INT."""
        return FormulaKind.INT


@dataclass(frozen=True, slots=True)
class Number:
    """A literal: int gives INT, float FLOAT."""

    value: int | float

    @property
    def kind(self) -> FormulaKind:
        """INT for an int."""
        return FormulaKind.INT if isinstance(self.value, int) else FormulaKind.FLOAT


@dataclass(frozen=True, slots=True)
class Input:
    """Element of operand ``number`` at INT ``indices``; INT if it is itself part of an index, else FLOAT."""

    number: int
    indices: tuple[Formula, ...]
    in_index: bool = False

    @property
    def kind(self) -> FormulaKind:
        """INT inside an index."""
        return FormulaKind.INT if self.in_index else FormulaKind.FLOAT


@dataclass(frozen=True, slots=True)
class Binary:
    """``a op b``, computed in ``compute``; comparisons, AND and OR are BOOL."""

    op: FormulaOp
    a: Formula
    b: Formula

    @property
    def compute(self) -> FormulaKind:
        """Kind to which both operands are converted first."""
        if self.op in (FormulaOp.AND, FormulaOp.OR):
            return FormulaKind.BOOL
        if self.op in (FormulaOp.DIV, FormulaOp.POW):
            return FormulaKind.FLOAT
        return _join(self.a, self.b)

    @property
    def kind(self) -> FormulaKind:
        """BOOL for comparisons and logic, else ``compute``."""
        return FormulaKind.BOOL if self.op.value in COMPARISONS else self.compute


@dataclass(frozen=True, slots=True)
class Negate:
    """``-a``."""

    a: Formula

    @property
    def kind(self) -> FormulaKind:
        """Kind of ``a``."""
        return self.a.kind


@dataclass(frozen=True, slots=True)
class Not:
    """``not a``. BOOL."""

    a: Formula

    @property
    def kind(self) -> FormulaKind:
        """BOOL."""
        return FormulaKind.BOOL


@dataclass(frozen=True, slots=True)
class Call:
    """A one-operand op of ``FUNCTIONS`` on ``a`` converted to FLOAT."""

    function: str
    a: Formula

    @property
    def kind(self) -> FormulaKind:
        """FLOAT."""
        return FormulaKind.FLOAT


@dataclass(frozen=True, slots=True)
class Select:
    """``a`` where BOOL ``cond`` else ``b``."""

    cond: Formula
    a: Formula
    b: Formula

    @property
    def kind(self) -> FormulaKind:
        """INT if both alternatives are, else FLOAT."""
        return _join(self.a, self.b)


@dataclass(frozen=True, slots=True)
class Reduce:
    """``body`` (as FLOAT) reduced over axis ``axis`` in ``0 .. extent-1``; the sum of nothing is 0."""

    reduction: ReduceKind
    axis: str
    extent: Dim
    body: Formula

    @property
    def kind(self) -> FormulaKind:
        """FLOAT."""
        return FormulaKind.FLOAT


Formula = Axis | Size | Number | Input | Binary | Negate | Not | Call | Select | Reduce


def _join(a: Formula, b: Formula) -> FormulaKind:
    return FormulaKind.INT if a.kind is b.kind is FormulaKind.INT else FormulaKind.FLOAT


def children(node: Formula) -> tuple[Formula, ...]:
    """Direct subexpressions, left to right."""
    match node:
        case Input(indices=indices):
            return indices
        case Binary(a=a, b=b):
            return (a, b)
        case Negate(a=a) | Not(a=a) | Call(a=a):
            return (a,)
        case Select(cond=cond, a=a, b=b):
            return (cond, a, b)
        case Reduce(body=body):
            return (body,)
        case _:
            return ()


def walk(node: Formula) -> Iterator[Formula]:
    """``node`` and everything below it, parents first."""
    yield node
    for child in children(node):
        yield from walk(child)


def parse_formula(text: str, num_inputs: int, shape: Shape, dims: Iterable[SymDim] = ()) -> Formula:
    """Parse and check an index formula.

    Args:
        text: See the module docstring.
        num_inputs: Operands ``a0`` ... that it may use.
        shape: Result shape: it has axes ``i0`` ... ``i{len(shape)-1}``.
        dims: Declared dims that the formula may name besides those of ``shape``.

    Returns:
        The typed tree. Names that are neither axes nor operands are symbolic dims; an undeclared one becomes
        an unbounded ``SymDim`` (dims are equal by name), which the type rule of ``tensor_expr`` rejects.

    Raises:
        ParseError: not an expression of the grammar; points at the place.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None) or 1
        message = getattr(error, "msg", None) or type(error).__name__
        raise ParseError(f"formula: {message}", Span("<formula>", 1, column), text) from None
    declared = {d.name: d for d in (*dims, *shape_symbols(shape))}
    return _Parser(text, num_inputs, len(shape), declared).parse(tree.body)


def formula_dims(node: Formula) -> tuple[SymDim, ...]:
    """Symbolic dims that the formula names, sorted by name."""
    return shape_symbols(
        n.dim if isinstance(n, Size) else n.extent for n in walk(node) if isinstance(n, Size | Reduce)
    )


def bind_dims(text: str, env: Mapping[str, int]) -> str:
    """The formula with dim names replaced by their values; names of reduction axes that hide a dim stay."""
    tree = ast.parse(text, mode="eval")
    hidden: set[ast.AST] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Compare):
            left = call.args[0].left
            if isinstance(left, ast.Name):
                hidden |= {n for n in ast.walk(call) if isinstance(n, ast.Name) and n.id == left.id}
    for node in ast.walk(tree):
        for field, child in ast.iter_fields(node):
            items = child if isinstance(child, list) else [child]
            new = [_bound(item, env, hidden) for item in items]
            setattr(node, field, new if isinstance(child, list) else new[0])
    return ast.unparse(tree)


def _bound(item: object, env: Mapping[str, int], hidden: set[ast.AST]) -> object:
    if isinstance(item, ast.Name) and item.id in env and item not in hidden:
        return ast.Constant(env[item.id])
    return item


_BINARY: dict[type[ast.AST], FormulaOp] = {
    ast.Add: FormulaOp.ADD,
    ast.Sub: FormulaOp.SUB,
    ast.Mult: FormulaOp.MUL,
    ast.Div: FormulaOp.DIV,
    ast.Pow: FormulaOp.POW,
    ast.FloorDiv: FormulaOp.FLOORDIV,
    ast.Mod: FormulaOp.FLOORMOD,
    ast.Lt: FormulaOp.LT,
    ast.LtE: FormulaOp.LE,
    ast.Gt: FormulaOp.GT,
    ast.GtE: FormulaOp.GE,
    ast.Eq: FormulaOp.EQ,
    ast.NotEq: FormulaOp.NE,
    ast.And: FormulaOp.AND,
    ast.Or: FormulaOp.OR,
}
_MAX_DEPTH = 100  # Python's own recursion limit is 1000, and ast.unparse takes several frames a level


class _Parser:
    """Turns a Python expression tree into a Formula; ``bound`` holds the axes of enclosing reductions."""

    def __init__(self, text: str, num_inputs: int, rank: int, dims: Mapping[str, SymDim]) -> None:
        self.text, self.num_inputs, self.rank, self.dims = text, num_inputs, rank, dims
        self.bound: list[str] = []
        self.in_index = False
        self.depth = 0

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        lines = self.text.splitlines() or [""]
        raise ParseError(f"formula: {message}", Span("<formula>", line, column), lines[line - 1])

    def words(self, node: ast.AST) -> str:
        """Source text of ``node``, shortened; ``ast.unparse`` would recurse."""
        found = ast.get_source_segment(self.text, node) or ""
        return found if len(found) <= 60 else f"{found[:57]}..."

    def parse(self, node: ast.expr) -> Formula:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail(node, f"nested deeper than {_MAX_DEPTH}; split it into several ops")
        out = self._parse(node)
        self.depth -= 1
        return out

    def _parse(self, node: ast.expr) -> Formula:
        match node:
            case ast.Constant(value=value) if type(value) in (int, float):
                return Number(value)  # type: ignore[arg-type]
            case ast.Name(id=name):
                return self.name(node, name)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return self.element(node, name, index)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self.binary(node, _BINARY[type(op)], self.parse(left), self.parse(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _BINARY:
                return self.binary(node, _BINARY[type(op)], self.parse(left), self.parse(right))
            case ast.BoolOp(op=op, values=values):
                parts = [self.of_kind(v, FormulaKind.BOOL, "a condition") for v in values]
                out = parts[0]
                for part in parts[1:]:
                    out = Binary(_BINARY[type(op)], out, part)
                return out
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if type(value) in (int, float):
                return Number(-value)  # type: ignore[operator]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Negate(self.value(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Not(self.of_kind(operand, FormulaKind.BOOL, "a condition"))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, args)
        self.fail(
            node, f"got {self.words(node)!r}; expected axes, a0[...], numbers, arithmetic or a function call"
        )

    def of_kind(self, node: ast.expr, kind: FormulaKind, words: str) -> Formula:
        out = self.parse(node)
        if out.kind is not kind:
            self.fail(node, f"{self.words(node)!r} is {out.kind.value}; expected {words} ({kind.value})")
        return out

    def value(self, node: ast.expr) -> Formula:
        out = self.parse(node)
        if out.kind is FormulaKind.BOOL:
            self.fail(
                node, f"{self.words(node)!r} is a condition; expected a number; use select(condition, a, b)"
            )
        return out

    def name(self, node: ast.AST, name: str) -> Formula:
        if name in self.bound or (re.fullmatch(r"i\d+", name) and int(name[1:]) < self.rank):
            return Axis(name)
        if re.fullmatch(r"i\d+", name):
            self.fail(node, f"no axis {name}; the result has rank {self.rank}")
        if re.fullmatch(r"a\d+", name):
            self.fail(
                node, f"operand {name} without an index; write {name}[i0, ...] ({name}[()] if it is 0-d)"
            )
        return Size(self.dims.get(name) or SymDim(name))

    def element(self, node: ast.AST, name: str, index: ast.expr) -> Formula:
        match = re.fullmatch(r"a(\d+)", name)
        if match is None or int(match[1]) >= self.num_inputs:
            known = ", ".join(f"a{i}" for i in range(self.num_inputs)) or "none"
            self.fail(node, f"no operand {name}; there are: {known}")
        outer, self.in_index = self.in_index, True
        parts: Sequence[ast.expr] = index.elts if isinstance(index, ast.Tuple) else [index]
        indices = tuple(self.of_kind(p, FormulaKind.INT, "an integer index") for p in parts)
        self.in_index = outer
        return Input(int(match[1]), indices, outer)

    def binary(self, node: ast.AST, op: FormulaOp, a: Formula, b: Formula) -> Formula:
        if FormulaKind.BOOL in (a.kind, b.kind):
            self.fail(
                node, f"operand of {op.value} is a condition; expected numbers; use select(condition, a, b)"
            )
        out = Binary(op, a, b)
        if op in (FormulaOp.FLOORDIV, FormulaOp.FLOORMOD) and out.kind is not FormulaKind.INT:
            self.fail(node, f"operands of {op.value} must be integers (axes, dims, integer literals)")
        return out

    def call(self, node: ast.AST, name: str, args: list[ast.expr]) -> Formula:
        reductions: dict[str, ReduceKind] = {k.value: k for k in ReduceKind}
        wanted: dict[str, int] = {
            **dict.fromkeys(FUNCTIONS, 1),
            **dict.fromkeys(("min", "max", *reductions), 2),
            "select": 3,
        }
        if name not in wanted:
            self.fail(node, f"no function {name!r}; known: {', '.join(wanted)}")
        if len(args) != wanted[name]:
            self.fail(node, f"{name} got {len(args)} arguments; expected {wanted[name]}")
        if name in reductions:
            return self.reduction(reductions[name], args[0], args[1])
        if name == "select":
            cond = self.of_kind(args[0], FormulaKind.BOOL, "a condition")
            return Select(cond, self.value(args[1]), self.value(args[2]))
        values = [self.value(a) for a in args]
        if name in FUNCTIONS:
            return Call(name, values[0])
        return Binary(FormulaOp(name), values[0], values[1])

    def reduction(self, kind: ReduceKind, head: ast.expr, body: ast.expr) -> Formula:
        match head:
            case ast.Compare(left=ast.Name(id=axis), ops=[ast.Lt()], comparators=[bound]):
                pass
            case _:
                self.fail(
                    head,
                    f"got {self.words(head)!r}; expected 'axis < extent', as in {kind.value}(k < 16, ...)",
                )
        if axis in self.bound or re.fullmatch(r"[ai]\d+", axis):
            self.fail(
                head,
                f"reduction axis {axis} is taken; choose a name other than i0.., a0.. and enclosing axes",
            )
        extent = self.extent(bound)
        self.bound.append(axis)
        out = Reduce(kind, axis, extent, self.value(body))
        self.bound.pop()
        return out

    def extent(self, node: ast.expr) -> Dim:
        """A polynomial of integers and dims."""
        arithmetic: dict[FormulaOp, Callable[[Dim, Dim], Dim]] = {
            FormulaOp.ADD: lambda a, b: a + b,
            FormulaOp.SUB: lambda a, b: a - b,
            FormulaOp.MUL: lambda a, b: a * b,
        }

        def convert(tree: Formula) -> Dim:
            match tree:
                case Number(value=int(value)):
                    return value
                case Size(dim=dim):
                    return dim
                case Binary(op=op, a=a, b=b) if op in arithmetic:
                    return arithmetic[op](convert(a), convert(b))
            self.fail(node, f"extent {self.words(node)!r}; expected integers and dims with + - *")

        return convert(self.parse(node))
