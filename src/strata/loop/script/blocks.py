"""Blocks of kernels: ``for i, j in block(...)`` and ``with block(...)``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from strata.loop.nodes import AxisKind, Block, BlockAxis, Expr, ForKind, Stmt, Var

from . import language as words
from .scope import BlockFrame, axis_name
from .statements import Statements

_KINDS = {words.spatial: AxisKind.SPATIAL, words.reduce: AxisKind.REDUCTION}


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis as it is written: ``k``, ``reduce(k)``, ``reduce(256)``, ``spatial(i * 4 + j, n)``.

    Attributes:
        kind: Spatial unless it says ``reduce``.
        args: Values of its arguments.
        name: What it is called, if its first argument is a name.
        node: Where it is.
    """

    kind: AxisKind
    args: tuple[Any, ...]
    name: str | None
    node: ast.expr


class Blocks(Statements):
    """Reading of blocks; see the module docstring."""

    def head(self, call: ast.Call) -> tuple[str, list[_Axis], ast.expr | None]:
        """Name, axes and ``where`` of ``block(...)``."""
        name = self.value(call.args[0]) if call.args else None
        if not isinstance(name, str) or not name:
            self.fail(call, 'block: got no name; expected one first: block("dense", ...)')
        if name in self.taken:
            self.fail(
                call, f"block: the name {name} is taken; names of blocks and loops are unique in a kernel"
            )
        self.taken.add(name)
        where = None
        for keyword in call.keywords:
            if keyword.arg != "where":
                self.fail(call, f"block: got the argument {keyword.arg}; it has where")
            where = keyword.value
        return name, [axis for a in call.args[1:] for axis in self.written_axes(a)], where

    def written_axes(self, node: ast.expr) -> Iterator[_Axis]:
        """The axis that an argument makes (several if it is ``*shape``)."""
        kind, args = AxisKind.SPATIAL, [node]
        if isinstance(node, ast.Call):
            function = self.value(node.func)
            if function is words.reduce or function is words.spatial:
                kind, args = _KINDS[function], node.args
        name = args[0].id if args and isinstance(args[0], ast.Name) else None
        values = tuple(value for value, _ in self.spread(args))
        if isinstance(node, ast.Starred):
            yield from (_Axis(kind, (value,), None, node) for value in values)
        else:
            yield _Axis(kind, values, name, node)

    def block_loop(self, node: ast.For, call: ast.Call) -> None:
        """``for i, k in block("name", n, reduce(256))``: loops, and a block with an axis for each."""
        name, written, where = self.head(call)
        if where is not None:
            self.fail(where, "block: where belongs to the form with block(...), inside of loops")
        names = self.names_of(node.target, len(written), "axes")
        extents: list[Expr] = []
        for axis in written:
            if len(axis.args) != 1:
                self.fail(
                    axis.node,
                    "got a value and an extent; an axis of for ... in block(...) has an extent only",
                )
            extents.append(self.index_of(axis.args[0], axis.node, "the extent of an axis"))
        loops = [Var(self.unique(n.id)) for n in names]
        known = self.known
        for var, extent in zip(loops, extents, strict=True):
            self.declare(var, extent)
            if self.blocks:
                self.blocks[-1].visible.add(var)
        axes = [
            self.axis(w.kind, axis_name(v.name), e, v)
            for w, v, e in zip(written, loops, extents, strict=True)
        ]
        bound = {n.id: a.var for n, a in zip(names, axes, strict=True)}
        body = self.block_body(name, axes, bound, None, node.body, node)
        self.known = known
        self.append_nest(loops, extents, [ForKind.SERIAL] * len(loops), body, node)

    def with_(self, node: ast.With) -> None:
        """``with block("name", reduce(k)):``: a block in the loops around it."""
        item = node.items[0]
        function = self.value(item.context_expr.func) if isinstance(item.context_expr, ast.Call) else None
        if function is words.init:
            self.fail(node, "init: belongs directly into a block")
        if function is not words.block or len(node.items) != 1:
            self.fail(node, "got with of something else; expected with block(...) or with init()")
        assert isinstance(item.context_expr, ast.Call)
        name, written, where = self.head(item.context_expr)
        predicate = None
        if where is not None:
            value = self.value(where)
            predicate = None if value is True else self.condition(value, where)
        pairs = [self.bound_axis(axis) for axis in written]
        names = self.axis_names(item.optional_vars, written)
        known = self.known
        axes = []
        for inner, axis, (value, extent) in zip(names, written, pairs, strict=True):
            named = inner if item.optional_vars is not None else axis_name(inner)
            axes.append(self.axis(axis.kind, named, extent, value))
        bound = {n: a.var for n, a in zip(names, axes, strict=True)}
        self.items.append(self.block_body(name, axes, bound, predicate, node.body, node))
        self.known = known

    def bound_axis(self, axis: _Axis) -> tuple[Expr, Expr]:
        """Value and extent of an axis; a loop variable has the extent of its loop."""
        if len(axis.args) not in (1, 2):
            self.fail(axis.node, f"got {len(axis.args)} arguments; expected a value, and its extent")
        value = self.index_of(axis.args[0], axis.node, "the value of an axis")
        if len(axis.args) == 2:
            return value, self.index_of(axis.args[1], axis.node, "the extent of an axis")
        if not isinstance(value, Var) or value not in self.extents:
            word = "reduce" if axis.kind is AxisKind.REDUCTION else "spatial"
            self.fail(
                axis.node,
                f"got an axis without its extent; only a loop variable has one: {word}(value, extent)",
            )
        return value, self.extents[value]

    def axis_names(self, target: ast.expr | None, written: list[_Axis]) -> list[str]:
        """What the body calls the axes: the names after ``as``, or those of the loop variables."""
        if target is not None:
            return [n.id for n in self.names_of(target, len(written), "axes")]
        names = []
        for axis in written:
            if axis.name is None:
                self.fail(axis.node, "got an axis without a name; expected with block(...) as (vi, vj):")
            names.append(axis.name)
        return names

    def block_body(
        self,
        name: str,
        axes: list[BlockAxis],
        bound: dict[str, Var],
        predicate: Expr | None,
        body: list[ast.stmt],
        node: ast.stmt,
    ) -> Stmt:
        """The block around a body in which ``bound`` names mean axes; other loop variables become axes."""
        own = {a.value: a for a in axes if isinstance(a.value, Var)}
        frame = BlockFrame({a.var for a in axes}, dict(own))
        self.blocks.append(frame)
        with self.suite() as out:
            for inner, var in bound.items():
                self.bind(inner, var, node)
            for position, stmt in enumerate(body):
                if self.is_init(stmt):
                    self.init(stmt, frame, first=position == 0)
                else:
                    self.statement(stmt)
        self.blocks.pop()
        order = list(self.extents)
        captured = [v for v in frame.captured if v not in own]
        outer = [frame.captured[v] for v in sorted(captured, key=order.index)]
        return self.place(Block(name, (*outer, *axes), out[0], frame.init, predicate), node)

    def is_init(self, stmt: ast.stmt) -> bool:
        """Whether a statement is ``with init():``."""
        if not isinstance(stmt, ast.With) or not isinstance(stmt.items[0].context_expr, ast.Call):
            return False
        return self.value(stmt.items[0].context_expr.func) is words.init

    def init(self, stmt: Any, frame: BlockFrame, first: bool) -> None:
        """The first statements of a block."""
        if not first:
            self.fail(stmt, "init: got statements of the block before it; expected it first")
        with self.suite() as out:
            self.statements(stmt.body)
        frame.init = out[0]
