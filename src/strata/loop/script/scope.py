"""What a name means at one place of a kernel, and which facts hold there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from strata.core.dims import DimExpr, SymDim, symbols
from strata.core.dtypes import bool_, f32, i64
from strata.core.errors import ShapeError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.check_types import TypeRuleError, check_expr_type
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    BlockAxis,
    Buffer,
    Const,
    Expr,
    Let,
    Load,
    MemSpace,
    Ramp,
    Seq,
    Stmt,
    Var,
    index,
    seq,
    size,
)
from strata.loop.rewrite import free_vars, has_load, substitute

from .source import Source, Sources


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A name that inner suites assign to again: an element (or a vector of them) of private memory.

    Attributes:
        buffer: Where it lives.
        parallel: Number of parallel loops around it.
    """

    buffer: Buffer
    parallel: int

    @property
    def indices(self) -> tuple[Expr, ...]:
        """Of the whole value."""
        return tuple(Ramp(index(0), int(lanes)) for lanes in self.buffer.shape if isinstance(lanes, int))


@dataclass(frozen=True, slots=True)
class Binding:
    """What a name means, and the assignment that made it so."""

    value: Any
    node: ast.AST


@dataclass(slots=True, eq=False)
class Frame:
    """One function being read: the kernel, or one that it calls.

    Attributes:
        source: Its text.
        suites: Names per suite around the current place, outermost first.
        ended: Names of suites that have ended, for messages.
    """

    source: Source
    suites: list[dict[str, Binding]] = field(default_factory=lambda: [{}])
    ended: dict[str, ast.AST] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class BlockFrame:
    """A block being read: its body sees its own axes only.

    Attributes:
        visible: Variables bound inside of it.
        captured: Axes for variables of the loops around it that it uses.
        init: What ``with init()`` gave.
    """

    visible: set[Var]
    captured: dict[Var, BlockAxis] = field(default_factory=dict)
    init: Stmt | None = None


@dataclass(slots=True, eq=False)
class ParallelFrame:
    """A parallel loop being read.

    Attributes:
        var: Its variable.
        varying: Variables that depend on it.
        branches: Branches around it.
        private: Buffers of each iteration.
    """

    var: Var
    varying: set[Var]
    branches: int
    private: set[Buffer] = field(default_factory=set)


class Rebound(Exception):
    """An inner suite assigns to a name: read the kernel again with that name in memory."""

    def __init__(self, node: ast.AST) -> None:
        super().__init__()
        self.node = node


class Scope:
    """State of reading a kernel that expressions and statements share.

    Args:
        source: The kernel.
        sources: Functions that it calls.
        cells: Assignments whose names live in memory.
    """

    def __init__(self, source: Source, sources: Sources, cells: frozenset[ast.AST]) -> None:
        self.kernel = source
        self.sources = sources
        self.cells = cells
        self.frame = Frame(source)
        self.frames = 1
        self.items: list[Stmt | Let | Alloc] = []
        self.blocks: list[BlockFrame] = []
        self.extents: dict[Var, Expr] = {}
        self.threads: list[ParallelFrame] = []
        self.branches = 0
        self.depth = 0
        self.known = Analysis()
        self.guards: list[Expr] = []
        self.taken: set[str] = set()
        self.dims: dict[str, SymDim] = {}
        self.outputs: set[Buffer] = set()
        self.inputs: set[Buffer] = set()
        self.places: dict[int, tuple[object, Source, ast.AST]] = {}

    # -------------------------------------------------------------------------------------------- errors

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        """Raise a ParseError at ``node``."""
        self.frame.source.fail(node, message)

    def place(self, item: Any, node: ast.AST) -> Any:
        """Remember where a statement or load comes from."""
        self.places[id(item)] = (item, self.frame.source, node)
        return item

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """Errors of the constructors, at ``node``."""
        try:
            yield
        except (ShapeError, TypeRuleError) as error:
            self.fail(node, str(error))

    # -------------------------------------------------------------------------------------------- values

    def typed(self, expr: Expr, node: ast.AST) -> Expr:
        """A new expression, checked."""
        with self.at(node):
            check_expr_type(expr)
        return expr

    def is_static(self, value: Any) -> bool:
        """Whether Python knows the value."""
        if isinstance(value, tuple | list):
            return all(self.is_static(v) for v in value)
        return not isinstance(value, Expr | Buffer | Cell)

    def expr_of(self, value: Any, node: ast.AST) -> Expr:
        """A value as an expression; a bare float is an f32, an int an i64."""
        match value:
            case SymDim() | DimExpr():
                for sym in symbols(value):
                    if sym.name not in self.dims:
                        known = ", ".join(self.dims) or "none"
                        self.fail(node, f"dim {sym} is of no parameter's shape; known: {known}")
                return size(value)
            case bool():
                return b.const(value, bool_)
            case int():
                with self.at(node):
                    return b.const(value, i64)
            case float():
                return b.const(value, f32)
            case Buffer():
                self.fail(node, f"got the buffer {value.name}; expected a value: index it, {value.name}[...]")
            case _ if isinstance(value, Expr):
                return value
        self.fail(node, f"got {_shown(value)}; expected a number or an expression of this kernel")

    def index_of(self, value: Any, node: ast.AST, what: str) -> Expr:
        """A value as an i64 scalar."""
        expr = self.expr_of(value, node)
        if not expr.dtype.is_int or expr.lanes != 1:
            lanes = f" x {expr.lanes} lanes" if expr.lanes > 1 else ""
            self.fail(node, f"{what} is {expr.dtype}{lanes}; expected an integer")
        return b.cast(i64, expr)

    def static_int(self, value: Any, node: ast.AST, what: str) -> int:
        """A value that has to be an int of Python."""
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(node, f"{what} is {_shown(value)}; expected a constant int")
        return value

    # --------------------------------------------------------------------------------------------- names

    def unique(self, name: str) -> str:
        """``name``, numbered if it is taken: schedules refer to loops and blocks by name."""
        found, k = name, 1
        while found in self.taken:
            found, k = f"{name}_{k}", k + 1
        self.taken.add(found)
        return found

    def lookup(self, node: ast.Name) -> Any:
        """What a name means here."""
        name = node.id
        for suite in reversed(self.frame.suites):
            if name in suite:
                return self.visible(suite[name].value, node)
        if name in self.frame.ended:
            line = self.frame.source.span(self.frame.ended[name]).line
            self.fail(
                node,
                f"{name} is assigned in an inner suite only (line {line}); give it a value before that "
                "suite, or use a buffer",
            )
        if name not in self.frame.source.names:
            here = [n for suite in self.frame.suites for n in suite]
            self.fail(node, f"the name {name} is not defined; known here: {', '.join(here) or 'nothing yet'}")
        return self.frame.source.names[name]

    def visible(self, value: Any, node: ast.AST) -> Any:
        """``value`` as the block around this place sees it: loop variables become axes."""
        if isinstance(value, Cell):
            with self.at(node):
                return b.load(value.buffer, *value.indices)
        if isinstance(value, tuple):
            return tuple(self.visible(v, node) for v in value)
        if not isinstance(value, Expr) or not self.blocks:
            return value
        frame = self.blocks[-1]
        mapping = {
            var: self.capture(var, frame, node) for var in free_vars(value) if var not in frame.visible
        }
        return substitute(value, mapping) if mapping else value

    def capture(self, var: Var, frame: BlockFrame, node: ast.AST) -> Var:
        """The spatial axis of a block for a variable of a loop around it."""
        if var not in frame.captured:
            if var not in self.extents:
                self.fail(
                    node,
                    f"{var.name} is computed outside of the block, whose body sees loop variables only; "
                    "compute it inside of the block, or keep it in a buffer",
                )
            axis = self.axis(AxisKind.SPATIAL, axis_name(var.name), self.extents[var], var)
            frame.captured[var] = axis
            frame.visible.add(axis.var)
        return frame.captured[var].var

    def axis(self, kind: AxisKind, name: str, extent: Expr, value: Expr) -> BlockAxis:
        """A block axis with a new variable, whose range is known from here on."""
        var = Var(self.unique(name))
        self.declare(var, extent)
        self.depends(var, value)
        return BlockAxis(var, kind, extent, value)

    def depends(self, var: Var, value: Expr) -> None:
        """``var`` varies with whatever ``value`` varies with."""
        for frame in self.threads:
            if frame.varying & free_vars(value):
                frame.varying.add(var)

    def private(self, buffer: Buffer) -> None:
        """A new buffer of each iteration of the loops around this place."""
        for frame in self.threads:
            frame.private.add(buffer)

    def declare(self, var: Var, extent: Expr) -> None:
        """A new loop variable or axis: ``0 <= var < extent``."""
        self.extents[var] = extent
        self.known = self.known.with_range(var, 0, None if has_load(extent) else b.sub(extent, 1))

    def find(self, name: str) -> tuple[Binding | None, bool]:
        """The binding of a local name, and whether it is of this very suite."""
        for suite in reversed(self.frame.suites):
            if name in suite:
                return suite[name], suite is self.frame.suites[-1]
        return None, False

    def bind(self, name: str, value: Any, node: ast.AST) -> None:
        """Give a name of the current suite a meaning."""
        self.frame.suites[-1][name] = Binding(value, node)

    # ----------------------------------------------------------------------------------------- statements

    def emit(self, stmt: Stmt, node: ast.AST) -> None:
        """Append a statement to the current suite."""
        self.items.append(self.place(stmt, node))

    @contextmanager
    def suite(self) -> Iterator[list[Stmt]]:
        """A new suite; gives the list that holds its one statement after the end."""
        out: list[Stmt] = []
        items, self.items = self.items, []
        known = self.known
        self.frame.suites.append({})
        yield out
        for name, binding in self.frame.suites.pop().items():
            self.frame.ended[name] = binding.node
        out.append(self.fold())
        self.items, self.known = items, known

    def fold(self) -> Stmt:
        """The statements of the current suite as one; a let or an allocation reaches to the end."""
        body: Stmt = Seq(())
        for item in reversed(self.items):
            place = self.places.get(id(item))
            match item:
                case Let():
                    body = Let(item.var, item.value, body)
                case Alloc():
                    body = Alloc(item.buffer, body)
                case _:
                    body = seq(item, body)
                    continue
            if place is not None:
                self.places[id(body)] = (body, place[1], place[2])
        return body

    def named(self, name: str, value: Any, node: ast.AST) -> Any:
        """A value that a name stands for: what is computed is computed here, once."""
        if isinstance(value, tuple):
            return tuple(self.named(f"{name}{k}", v, node) for k, v in enumerate(value))
        return self.let(name, value, node) if isinstance(value, Expr) else value

    def let(self, name: str, value: Expr, node: ast.AST) -> Expr:
        """``value`` under a name: index expressions and conditions stand for themselves."""
        if isinstance(value, Var | Const) or (not has_load(value) and value.dtype in (bool_, i64)):
            return value
        var = Var(self.unique(name), value.dtype, value.lanes)
        self.emit(Let(var, value, Seq(())), node)
        self.depends(var, value)
        if self.blocks:
            self.blocks[-1].visible.add(var)
        return var

    def cell(self, name: str, value: Expr, node: ast.AST) -> Cell:
        """A new name in memory."""
        shape = (value.lanes,) if value.lanes > 1 else ()
        buffer = Buffer(self.unique(name), shape, value.dtype, MemSpace.REGISTER)
        self.emit(Alloc(buffer, Seq(())), node)
        self.private(buffer)
        cell = Cell(buffer, len(self.threads))
        self.set_cell(cell, value, node)
        return cell

    def set_cell(self, cell: Cell, value: Expr, node: ast.AST) -> None:
        """Assign to a name in memory."""
        name = cell.buffer.name
        if cell.parallel != len(self.threads):
            self.fail(
                node,
                f"{name} is one value that all iterations of a parallel loop would change at once; "
                "give it its first value inside of that loop",
            )
        lanes = value.lanes
        wanted = int(cell.buffer.shape[0]) if cell.buffer.shape else 1  # type: ignore[arg-type]
        if value.dtype != cell.buffer.dtype or lanes not in (1, wanted):
            got, expected = (f"{d} x {n}" for d, n in ((value.dtype, lanes), (cell.buffer.dtype, wanted)))
            self.fail(node, f"{name} gets a value of {got} lanes; its first value was {expected}; cast it")
        with self.at(node):
            self.emit(b.store(cell.buffer, cell.indices, value, self.mask(wanted, node)), node)

    def mask(self, lanes: int, node: ast.AST) -> Expr | None:
        """The conditions around this place that are no branches, for an access of ``lanes`` lanes."""
        out: Expr | None = None
        for outer in self.guards:
            guard = self.visible(outer, node)
            if guard.lanes not in (1, lanes):
                self.fail(
                    node, f"got {lanes} lane(s) under a condition of {guard.lanes} lanes; expected as many"
                )
            out = guard if out is None else b.and_(out, guard)
        return out

    def inside(self, load: Load) -> bool:
        """Whether an access is certainly inside of its buffer, wherever this place is reached."""
        return all(
            self.known.prove(b.ge(i, b.splat(index(0), i.lanes)))
            and self.known.prove(b.lt(i, b.splat(size(d), i.lanes)))
            for i, d in zip(load.indices, load.buffer.shape, strict=True)
        )


def axis_name(loop: str) -> str:
    """Name of the block axis for a loop variable."""
    return "v" + loop.lstrip("_")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
