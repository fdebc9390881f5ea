"""Statements of kernels: loops, branches, assignments. Blocks are in ``blocks``."""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
    If,
    MemSpace,
    Seq,
    Stmt,
    Var,
    index,
)
from strata.loop.rewrite import free_vars, has_load

from . import language as words
from .calls import SPACES, Calls, is_word
from .scope import Cell, ParallelFrame, Rebound

_LOOPS = {
    words.grid: ForKind.SERIAL,
    words.parallel: ForKind.PARALLEL,
    words.unroll: ForKind.UNROLL,
    words.vectorize: ForKind.VECTORIZE,
}
_UNKNOWN = {
    ast.While: "while: a kernel has for loops, whose extents are known when they start",
    ast.Return: "return: a kernel returns nothing, it writes its outputs; in other functions it comes last",
    ast.AnnAssign: "an annotation inside of the function; buffers are made by t = local(f32[8])",
    ast.FunctionDef: "a function inside of a kernel; define it outside",
    ast.Break: "break: all iterations of a loop run",
    ast.Continue: "continue: put the rest of the body under an if",
}


class Statements(Calls):
    """Reading of statements; see the module docstring."""

    def statements(self, body: Sequence[ast.stmt]) -> None:
        """Statements of the current suite."""
        for stmt in body:
            self.statement(stmt)

    def statement(self, node: ast.stmt) -> None:
        """One statement."""
        match node:
            case ast.For():
                self.loop(node)
            case ast.With():
                self.with_(node)
            case ast.If():
                self.branch(node)
            case ast.Assign():
                self.assignment(node)
            case ast.AugAssign():
                self.augmented(node)
            case ast.Expr():
                if not isinstance(node.value, ast.Constant):  # a docstring is one
                    self.value(node.value)
            case ast.Assert():
                self.assertion(node)
            case ast.Pass():
                pass
            case _:
                what = _UNKNOWN.get(type(node), f"{type(node).__name__.lower()}, which kernels do not have")
                self.fail(node, f"got {what}")

    @abstractmethod
    def with_(self, node: ast.With) -> None:
        """``with block(...)``; see ``blocks``."""

    @abstractmethod
    def block_loop(self, node: ast.For, call: ast.Call) -> None:
        """``for ... in block(...)``; see ``blocks``."""

    # ---------------------------------------------------------------------------------------------- loops

    def loop(self, node: ast.For) -> None:
        """A loop of the kernel, or one over constants, which is expanded here."""
        if node.orelse:
            self.fail(node.orelse[0], "got else of a loop, which kernels do not have")
        if isinstance(node.iter, ast.Call):
            function = self.value(node.iter.func)
            if function is words.block:
                return self.block_loop(node, node.iter)
            if function is range or (is_word(function) and function in _LOOPS):
                return self.nest(node, node.iter, function)
        for item in self.iterable(self.value(node.iter), node.iter):
            self.assign(node.target, item)
            self.statements(node.body)
        return None

    def nest(self, node: ast.For, call: ast.Call, function: Any) -> None:
        """``for i, j in grid(...)`` or ``for i in range(...)``."""
        if call.keywords:
            self.fail(
                call, f"{function.__name__}: got the argument {call.keywords[0].arg}; expected extents only"
            )
        written = self.spread(call.args)
        args = [self.index_of(value, a, "the extent of a loop") for value, a in written]
        kinds = [_LOOPS.get(function, ForKind.SERIAL)] * len(args)
        if function is words.parallel:
            kinds[1:] = [ForKind.SERIAL] * (len(args) - 1)
        if function is words.vectorize:
            kinds[:-1] = [ForKind.SERIAL] * (len(args) - 1)
        start, step = index(0), 1
        if function is range:
            start, extent, step = self.range_of(args, call)
            args, kinds = [extent], [ForKind.SERIAL]
        for kind, extent, (_, arg) in zip(kinds, args, written, strict=False):
            if kind in (ForKind.UNROLL, ForKind.VECTORIZE) and not isinstance(extent, Const):
                self.fail(arg, f"{kind.value}: got an extent that varies; expected a constant")
        names = self.names_of(node.target, len(args), "loops")
        variables = [Var(self.unique(n.id)) for n in names]
        values = {n.id: b.add(b.mul(v, index(step)), start) for n, v in zip(names, variables, strict=True)}
        body = self.loop_body(variables, args, kinds, values, node)
        self.append_nest(variables, args, kinds, body, node)

    def range_of(self, args: list[Expr], call: ast.Call) -> tuple[Expr, Expr, int]:
        """First value, number of iterations and step of a ``range``."""
        if not 1 <= len(args) <= 3:
            self.fail(call, f"range: got {len(args)} arguments; expected 1 to 3")
        start, stop = (index(0), args[0]) if len(args) == 1 else (args[0], args[1])
        step = args[2] if len(args) == 3 else index(1)
        if not isinstance(step, Const) or step.value < 1:
            self.fail(call, "range: got a step that is no positive constant")
        by = int(step.value)
        return start, b.ceildiv(b.sub(stop, start), by), by

    def names_of(self, target: ast.expr, count: int, what: str) -> list[ast.Name]:
        """The names that are given to ``count`` things."""
        nodes = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        names = [n for n in nodes if isinstance(n, ast.Name)]
        if len(names) != len(nodes) or len(nodes) != count or not count:
            self.fail(target, f"got {len(nodes)} names for {count} {what}; expected one name for each")
        return names

    def loop_body(
        self,
        variables: list[Var],
        extents: list[Expr],
        kinds: list[ForKind],
        names: dict[str, Expr],
        node: ast.For,
    ) -> Stmt:
        """The body of a nest over new variables, in which ``names`` have these values."""
        known = self.known
        for var, extent in zip(variables, extents, strict=True):
            self.declare(var, extent)
            if self.blocks:
                self.blocks[-1].visible.add(var)
        threads = [v for v, kind in zip(variables, kinds, strict=True) if kind is ForKind.PARALLEL]
        self.threads += [ParallelFrame(v, {v}, self.branches) for v in threads]
        self.depth += 1
        with self.suite() as out:
            for name, value in names.items():
                self.bind(name, value, node)
            self.statements(node.body)
        del self.threads[len(self.threads) - len(threads) :]
        self.depth -= 1
        self.known = known
        return out[0]

    def append_nest(
        self, variables: list[Var], extents: list[Expr], kinds: list[ForKind], body: Stmt, node: ast.For
    ) -> None:
        """Append the loops around ``body``."""
        for var, extent, kind in zip(variables[::-1], extents[::-1], kinds[::-1], strict=True):
            body = self.place(For(var, extent, kind, body), node)
        self.items.append(body)

    # ------------------------------------------------------------------------------------------- branches

    def branch(self, node: ast.If) -> None:
        """``if``: decided here, a branch of the kernel, or (for a vector) a mask of what is inside."""
        test = self.value(node.test)
        if self.is_static(test) and not self.has_dim(test):
            self.statements(node.body if test else node.orelse)
            return
        cond = self.condition(test, node.test)
        if cond.lanes > 1:
            self.masked(cond, node.body)
            self.masked(b.not_(cond), node.orelse)
            return
        then = self.under(cond, True, node.body)
        orelse = self.under(cond, False, node.orelse) if node.orelse else None
        self.emit(If(cond, then, orelse), node)

    def under(self, cond: Expr, holds: bool, body: list[ast.stmt]) -> Stmt:
        """A suite that runs where ``cond`` holds (or does not)."""
        with self.suite() as out:
            if not has_load(cond):
                self.known = self.known.with_fact(cond, holds)
            self.branches += 1
            self.statements(body)
            self.branches -= 1
        return out[0]

    def masked(self, cond: Expr, body: list[ast.stmt]) -> None:
        """A suite whose loads and stores are masked."""
        with self.suite() as out, self.guarded(cond):
            self.statements(body)
        self.items.append(out[0])

    def assertion(self, node: ast.Assert) -> None:
        """``assert`` of something that Python knows."""
        test = self.value(node.test)
        if not self.is_static(test):
            self.fail(node, "got assert of something that is known at run time only; expected constants")
        if not test:
            message = "the assertion does not hold" if node.msg is None else self.value(node.msg)
            self.fail(node, str(message))

    # ----------------------------------------------------------------------------------------- assignments

    def assignment(self, node: ast.Assign) -> None:
        """``name = value``, ``buffer[...] = value``, ``a, b = ...``."""
        if isinstance(node.value, ast.Call):
            function = self.value(node.value.func)
            if is_word(function) and function in SPACES:
                return self.allocation(node, node.value, SPACES[function])
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)
        return None

    def allocation(self, node: ast.Assign, call: ast.Call, space: MemSpace) -> None:
        """``t = local(f32[8])``."""
        target = node.targets[0]
        if len(node.targets) != 1 or not isinstance(target, ast.Name):
            self.fail(node, f"got a {space.value} buffer without a name of its own; expected t = ...(f32[8])")
        tensor = self.value(call.args[0]) if len(call.args) == 1 and not call.keywords else None
        if not isinstance(tensor, words.TensorSpec):
            self.fail(call, "expected one type with a shape, like f32[4, 16]")
        if space is not MemSpace.GLOBAL and not all(isinstance(d, int) for d in tensor.shape):
            self.fail(
                call, f"got the shape of {tensor}; {space.value} memory has a constant one; use alloc(...)"
            )
        if space is MemSpace.GLOBAL and self.depth:
            self.fail(
                call, "alloc: got a place inside of a loop; expected it before the loops, or local(...)"
            )
        for dim in tensor.shape:
            self.expr_of(dim, call)  # its symbols are those of parameters
        if self.find(target.id)[1]:
            self.fail(target, f"the name {target.id} is taken; give the buffer another one")
        buffer = Buffer(self.unique(target.id), tensor.shape, tensor.dtype, space)
        self.emit(Alloc(buffer, Seq(())), node)
        self.private(buffer)
        self.bind(target.id, buffer, node)

    def assign(self, target: ast.expr, value: Any) -> None:
        """Give a target a value."""
        match target:
            case ast.Name():
                self.assign_name(target, value)
            case ast.Subscript():
                buffer, where = self.place_of(target)
                self.store(buffer, where, value, target)
            case ast.Tuple() | ast.List():
                items = self.iterable(value, target)
                if len(items) != len(target.elts):
                    self.fail(target, f"got {len(items)} values for {len(target.elts)} names")
                for inner, item in zip(target.elts, items, strict=True):
                    self.assign(inner, item)
            case _:
                self.fail(target, "expected a name, buffer[...] or a tuple of them on the left of =")

    def assign_name(self, target: ast.Name, value: Any) -> None:
        """``name = value``: a new name for a value, or another value of a name in memory."""
        name = target.id
        binding, here = self.find(name)
        if binding is not None:
            if isinstance(binding.value, Buffer):
                self.fail(target, f"{name} is a buffer; assign to its elements: {name}[...] = ...")
            if isinstance(binding.value, Cell):
                dtype = binding.value.buffer.dtype
                self.set_cell(binding.value, self.value_for(value, dtype, target), target)
                return
            if not here:
                self.rebind(name, binding.node, target)
        if target in self.cells:
            self.bind(name, self.cell(name, self.expr_of(value, target), target), target)
            return
        self.bind(name, self.named(name, value, target), target)

    def rebind(self, name: str, first: ast.AST, target: ast.Name) -> None:
        """An inner suite changes a name of an outer one: that name has to live in memory."""
        if isinstance(first, ast.Name) and first not in self.cells:
            raise Rebound(first)
        self.fail(
            target, f"{name} is a loop variable or parameter; expected a name of its own for another value"
        )

    def value_for(self, value: Any, dtype: Any, node: ast.AST) -> Expr:
        """A value; a number takes ``dtype``."""
        if isinstance(value, bool | int | float):
            return self.number(value, dtype, node)
        return self.expr_of(value, node)

    def augmented(self, node: ast.AugAssign) -> None:
        """``target op= value``."""
        value = self.value(node.value)
        if isinstance(node.target, ast.Subscript):
            buffer, where = self.place_of(node.target)
            old = self.load_at(buffer, where, node.target)
            self.store(buffer, where, self.arithmetic(node.op, old, value, node), node.target)
            return
        if not isinstance(node.target, ast.Name):
            self.fail(node.target, "expected a name or buffer[...] on the left")
        old = self.lookup(ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target))
        self.assign_name(node.target, self.arithmetic(node.op, old, value, node))

    def place_of(self, target: ast.Subscript) -> tuple[Buffer, tuple[Expr, ...]]:
        """Buffer and indices of an element that is written."""
        buffer = self.value(target.value)
        if not isinstance(buffer, Buffer):
            self.fail(target, "expected a buffer on the left; tuples and lists are constants")
        if buffer in self.inputs:
            dims = ", ".join(map(str, buffer.shape))
            kind = f"{buffer.dtype}[{dims}]"
            self.fail(target, f"{buffer.name} is an input; annotate it as Out[{kind}] to write it")
        return buffer, self.indices(buffer, target)

    def store(self, buffer: Buffer, where: tuple[Expr, ...], value: Any, node: ast.AST) -> None:
        """``buffer[where] = value``."""
        expr = self.value_for(value, buffer.dtype, node)
        if expr.dtype != buffer.dtype:
            self.fail(node, f"{buffer.name}: got a value of {expr.dtype}; cast it: {buffer.dtype}(...)")
        lanes = where[-1].lanes if where else 1
        if expr.lanes not in (1, lanes):
            self.fail(node, f"{buffer.name}: got a value of {expr.lanes} lanes for {lanes} element(s)")
        self.check_race(buffer, where, node)
        with self.at(node):
            self.emit(b.store(buffer, where, expr, self.mask(lanes, node)), node)

    def check_race(self, buffer: Buffer, where: tuple[Expr, ...], node: ast.AST) -> None:
        """Iterations of a parallel loop must not all write one element (a branch may choose one of them)."""
        if self.guards or any(has_load(i) for i in where):
            return
        used = {v for i in where for v in free_vars(i)}
        for frame in self.threads:
            shared = buffer not in frame.private and frame.branches == self.branches
            if shared and not used & frame.varying:
                name = frame.var.name
                self.fail(
                    node,
                    f"{buffer.name}: all iterations of the parallel loop over {name} write this element "
                    f"at once; index it with {name}, or make the loop a grid",
                )
