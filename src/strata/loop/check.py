"""Checker of loop functions: the rules of :mod:`.nodes`, per stage.

A :class:`Stage` is data: which loop kinds, statements and expressions may occur, and which further
invariants hold.

=============== ====================================================================================
LOOP_NAIVE      what lowering makes: no vectors yet
LOOP_SCHEDULED  between schedule steps: everything may occur
LOOP_LOWERED    what the code generator takes: no blocks, no VECTORIZE loops, constant register indices
=============== ====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, assert_never

from strata.core.dims import Dim, symbols
from strata.core.dtypes import bool_, i64
from strata.core.errors import VerifyError

from . import build
from .affine import lanes_of
from .analysis import Analysis
from .check_types import TypeRuleError, check_expr_type, check_store_type
from .externs import buffers_of, call_problem, call_writes
from .nodes import (
    BOUND_KINDS,
    EVEN,
    GRAIN,
    Alloc,
    Block,
    Buffer,
    Call,
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
    Ramp,
    Reduce,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Var,
    size,
)
from .rewrite import free_vars, has_load, stmt_exprs, substitute, walk
from .text import print_expr, print_stmt

_VECTORS = (Ramp, Splat, Reduce)
_MANY = BOUND_KINDS | {ForKind.PARALLEL, ForKind.VECTORIZE}


@dataclass(frozen=True, slots=True)
class Stage:
    """What a function may contain at one point of the pipeline.

    Attributes:
        name: For messages.
        loop_kinds: Kinds of loops that may occur.
        blocks: Whether blocks may occur.
        vectors: Whether vector expressions (ramps, splats, reductions, intrinsics of vectors) may occur.
        register_indices_constant: Register buffers are indexed by constants and unrolled loops only.
    """

    name: str
    loop_kinds: frozenset[ForKind]
    blocks: bool
    vectors: bool
    register_indices_constant: bool


_ALL_KINDS = frozenset(ForKind)
LOOP_NAIVE = Stage("LOOP_NAIVE", _ALL_KINDS, True, False, False)
LOOP_SCHEDULED = Stage("LOOP_SCHEDULED", _ALL_KINDS, True, True, False)
LOOP_LOWERED = Stage("LOOP_LOWERED", _ALL_KINDS - {ForKind.VECTORIZE}, False, True, True)
STAGES = {stage.name: stage for stage in (LOOP_NAIVE, LOOP_SCHEDULED, LOOP_LOWERED)}


def check(func: Func, stage: Stage = LOOP_SCHEDULED) -> None:
    """Check every rule of ``stage``.

    Raises:
        VerifyError: a rule is broken; names the function, the stage and the rule, and shows the piece of
            text.
    """
    Checker(func, stage).run()


@dataclass(frozen=True, slots=True)
class Scope:
    """What is visible at a place.

    Attributes:
        variables: Variables that may be used.
        hidden: Variables bound around the enclosing block, which its body may not use.
        buffers: Parameters and allocated buffers.
        unrolled: Variables that are constants after unrolling.
        exact: Loop variables that take every value of their constant range; ``None`` in code that may
            never run.
        values: Lets and block axes in terms of loop variables.
        known: Ranges of loop variables.
        calls: Why no call may be here, or ``""``.
        bound: Hardware axes that loops around are bound to.
    """

    variables: frozenset[Var]
    hidden: frozenset[Var]
    buffers: frozenset[Buffer]
    unrolled: frozenset[Var]
    exact: frozenset[Var] | None
    values: Mapping[Var, Expr]
    known: Analysis
    calls: str = ""
    bound: frozenset[ForKind] = frozenset()


class Checker:
    """Checks one function against a stage; front ends extend it to say where in their source it fails."""

    def __init__(self, func: Func, stage: Stage) -> None:
        self.func, self.stage = func, stage
        self.writable = {id(p) for p in func.params[len(func.params) - func.num_outputs :]}
        self.dims = {s.name for s in func.dims}

    def fail(self, rule: str, slice_: str) -> NoReturn:
        """Raise with the piece of text that breaks the rule."""
        lines = slice_.rstrip("\n").split("\n")
        shown = "\n".join(f"    {line}" for line in lines[:4]) + ("\n    ..." if len(lines) > 4 else "")
        raise VerifyError(f"{self.func.name} at {self.stage.name}: {rule}\n{shown}")

    def run(self) -> None:
        """Signature, then the body."""
        func = self.func
        if not 0 <= func.num_outputs <= len(func.params):
            self.fail(f"got {func.num_outputs} outputs; expected at most {len(func.params)} params", "")
        if len(set(func.params)) != len(func.params):
            self.fail("a buffer is a parameter twice", ", ".join(p.name for p in func.params))
        for param in func.params:
            if param.space is not MemSpace.GLOBAL:
                self.fail(f"got parameter {param.name} in {param.space.value} memory; expected global", "")
        none: frozenset[Var] = frozenset()
        self.stmt(func.body, Scope(none, none, frozenset(func.params), none, none, {}, Analysis()))

    # ------------------------------------------------------------------------------------------ statements

    def stmt(self, stmt: Stmt, scope: Scope) -> None:
        """Check ``stmt`` and everything in it."""
        for expr in stmt_exprs(stmt):
            self.expr(expr, stmt, scope)
        match stmt:
            case For():
                self.loop(stmt, scope)
            case Block():
                self.block(stmt, scope)
            case Store():
                self.store(stmt, scope)
            case Let():
                self.let(stmt, scope)
            case If():
                self.branch(stmt, scope)
            case Alloc():
                self.alloc(stmt, scope)
            case Seq():
                for item in stmt.stmts:
                    self.stmt(item, scope)
            case Call():
                self.call(stmt, scope)
            case _:
                assert_never(stmt)

    def bind(self, var: Var, stmt: Stmt, scope: Scope) -> frozenset[Var]:
        """Variables in scope with a new one."""
        if var in scope.variables or var in scope.hidden:
            self.fail(f"variable {var.name} is bound again inside its own scope", print_stmt(stmt))
        return scope.variables | {var}

    def index_expr(self, expr: Expr, what: str, stmt: Stmt) -> None:
        """An extent, an axis value: an i64 scalar."""
        if expr.dtype != i64 or expr.lanes != 1:
            got = f"{expr.dtype} x {expr.lanes} lanes"
            self.fail(f"{what} is {got}; expected an i64 scalar", print_stmt(stmt))

    def loop(self, stmt: For, scope: Scope) -> None:
        """Kind, extent and body."""
        if stmt.kind not in self.stage.loop_kinds:
            self.fail(f"{stmt.kind.value} loop {stmt.var.name}: not allowed at this stage", print_stmt(stmt))
        self.index_expr(stmt.extent, f"extent of loop {stmt.var.name}", stmt)
        self.index_expr(stmt.var, f"variable of loop {stmt.var.name}", stmt)
        constant = isinstance(stmt.extent, Const)
        if stmt.kind in scope.bound:
            rule = f"loop {stmt.var.name} is bound to {stmt.kind.value}, as is a loop around it"
            self.fail(f"{rule}; expected different hardware axes", print_stmt(stmt))
        grain = dict(stmt.notes).get(GRAIN, 1)
        if not isinstance(grain, int) or grain < 1:
            self.fail(
                f"note {GRAIN} of loop {stmt.var.name} is {grain!r}; expected a positive integer",
                print_stmt(stmt),
            )
        even = dict(stmt.notes).get(EVEN, 0)
        if not isinstance(even, int) or even < 0:
            rule = f"note {EVEN} of loop {stmt.var.name} is {even!r}; expected 0 or a positive integer"
            self.fail(rule, print_stmt(stmt))
        if stmt.kind in (ForKind.UNROLL, ForKind.VECTORIZE) and not constant:
            rule = f"{stmt.kind.value} loop {stmt.var.name}: got a variable extent; expected a constant"
            self.fail(rule, print_stmt(stmt))
        exact = scope.exact
        if exact is not None:
            runs = scope.known.prove(build.ge(substitute(stmt.extent, scope.values), 1))
            exact = (exact | {stmt.var} if constant else exact) if runs else None
        inner = replace(
            scope,
            variables=self.bind(stmt.var, stmt, scope),
            unrolled=scope.unrolled | ({stmt.var} if stmt.kind is ForKind.UNROLL else set()),
            exact=exact,
            known=scope.known.with_range(stmt.var, 0, _last(stmt.extent, scope)),
            calls=f"inside the {stmt.kind.value} loop {stmt.var.name}" if stmt.kind in _MANY else scope.calls,
            bound=scope.bound | ({stmt.kind} & BOUND_KINDS),
        )
        self.stmt(stmt.body, inner)

    def block(self, stmt: Block, scope: Scope) -> None:
        """Axes, predicate, and a body that uses the axes only."""
        if not self.stage.blocks:
            self.fail(f'block "{stmt.name}": not allowed at this stage', print_stmt(stmt))
        if stmt.predicate is not None and (stmt.predicate.dtype != bool_ or stmt.predicate.lanes != 1):
            self.fail(f'predicate of block "{stmt.name}" is not a bool scalar', print_stmt(stmt))
        axes: set[Var] = set()
        for axis in stmt.axes:
            what = f'axis {axis.var.name} of block "{stmt.name}"'
            self.index_expr(axis.extent, f"extent of {what}", stmt)
            self.index_expr(axis.value, f"value of {what}", stmt)
            self.index_expr(axis.var, what, stmt)
            self.bind(axis.var, stmt, scope)
            if axis.var in axes:
                self.fail(f"{what} is bound twice", print_stmt(stmt))
            axes.add(axis.var)
        inner = replace(
            scope,
            variables=frozenset(axes),
            hidden=scope.hidden | scope.variables,
            exact=None if stmt.predicate is not None else scope.exact,
            calls=f'inside block "{stmt.name}"',
            values={**scope.values, **{a.var: substitute(a.value, scope.values) for a in stmt.axes}},
        )
        if stmt.init is not None:
            self.stmt(stmt.init, inner)
        self.stmt(stmt.body, inner)

    def let(self, stmt: Let, scope: Scope) -> None:
        """The variable has the value's type."""
        var, value = stmt.var, stmt.value
        if (var.dtype, var.lanes) != (value.dtype, value.lanes):
            rule = f"let {var.name}: {var.dtype} x {var.lanes} lanes = {value.dtype} x {value.lanes} lanes"
            self.fail(f"{rule}; expected the same type", print_stmt(stmt))
        constant = free_vars(value) <= scope.unrolled and not has_load(value) and not _has_size(value)
        values = scope.values if has_load(value) else {**scope.values, var: substitute(value, scope.values)}
        inner = replace(
            scope,
            variables=self.bind(var, stmt, scope),
            unrolled=scope.unrolled | ({var} if constant else set()),
            values=values,
        )
        self.stmt(stmt.body, inner)

    def branch(self, stmt: If, scope: Scope) -> None:
        """Under a condition nothing is certain to run."""
        if stmt.cond.dtype != bool_ or stmt.cond.lanes != 1:
            got = f"{stmt.cond.dtype} x {stmt.cond.lanes} lanes"
            self.fail(f"condition is {got}; expected a bool scalar", print_stmt(stmt))
        for body in (stmt.then, stmt.orelse):
            if body is not None:
                self.stmt(body, replace(scope, exact=None))

    def alloc(self, stmt: Alloc, scope: Scope) -> None:
        """A new buffer; private ones have constant shapes."""
        buffer = stmt.buffer
        if buffer in scope.buffers:
            self.fail(f"buffer {buffer.name} is allocated inside its own scope", print_stmt(stmt))
        private = buffer.space is not MemSpace.GLOBAL
        if private and not all(isinstance(d, int) for d in buffer.shape):
            rule = f"{buffer.space.value} buffer {buffer.name}: got a symbolic shape; expected constants"
            self.fail(rule, print_stmt(stmt))
        for dim in buffer.shape:
            self.dim(dim, print_stmt(stmt))
        self.writable.add(id(buffer))
        self.stmt(stmt.body, replace(scope, buffers=scope.buffers | {buffer}))

    def store(self, stmt: Store, scope: Scope) -> None:
        """Types, a writable buffer, indices inside of it."""
        if id(stmt.buffer) not in self.writable:
            rule = f"store to {stmt.buffer.name}; expected an output parameter or an allocated buffer"
            self.fail(rule, print_stmt(stmt))
        try:
            check_store_type(stmt)
        except TypeRuleError as error:
            self.fail(str(error), print_stmt(stmt))
        self.access(stmt, stmt, scope)

    def call(self, stmt: Call, scope: Scope) -> None:
        """A place where it may be, arguments that fit, buffers in scope, writable ones where it writes."""
        if scope.calls:
            self.fail(f"call @{stmt.extern} {scope.calls}; expected it outside", print_stmt(stmt))
        why = call_problem(stmt)
        if why is not None:
            self.fail(f"call @{stmt.extern}: {why}", print_stmt(stmt))
        for buffer in buffers_of(stmt):
            if buffer not in scope.buffers:
                self.fail(f"buffer {buffer.name} is not in scope", print_stmt(stmt))
        for buffer in call_writes(stmt):
            if id(buffer) not in self.writable:
                rule = f"call @{stmt.extern} writes {buffer.name}"
                self.fail(f"{rule}; expected an output parameter or an allocated buffer", print_stmt(stmt))

    # ----------------------------------------------------------------------------------------- expressions

    def expr(self, root: Expr, stmt: Stmt, scope: Scope) -> None:
        """Check an expression of ``stmt``."""
        fetched: set[int] = set()  # by identity: an address to prefetch may be outside
        for expr in walk(root):
            assert not isinstance(expr, Stmt)
            if _is_vector(expr) and not self.stage.vectors:
                self.fail(f"{print_expr(expr)}: no vectors at this stage", print_stmt(stmt))
            try:
                check_expr_type(expr)
            except TypeRuleError as error:
                self.fail(f"{print_expr(expr)}: {error}", print_stmt(stmt))
            match expr:
                case Var() if expr in scope.hidden:
                    rule = f"{expr.name} is bound outside of the block; its body may only use its axes"
                    self.fail(rule, print_stmt(stmt))
                case Var() if expr not in scope.variables:
                    self.fail(f"variable {expr.name} is not in scope", print_stmt(stmt))
                case Size():
                    self.dim(expr.dim, print_stmt(stmt))
                case Intrinsic(name="prefetch" | "prefetch1"):
                    fetched.update(map(id, expr.args))
                case Load() if id(expr) in fetched:
                    self.place(expr, stmt, scope)
                case Load():
                    self.access(expr, stmt, scope)

    def dim(self, dim: Dim, slice_: str) -> None:
        """Symbols are those of the parameters: nothing else has a value at run time."""
        for sym in symbols(dim):
            if sym.name not in self.dims:
                rule = f"dim {sym.name} is of no parameter's shape; known: {', '.join(sorted(self.dims))}"
                self.fail(rule, slice_)

    def access(self, access: Load | Store, stmt: Stmt, scope: Scope) -> None:
        """Buffer in scope; register indices; nothing that is certainly out of bounds."""
        self.place(access, stmt, scope)
        if access.mask is None:
            for axis, (index, dim) in enumerate(zip(access.indices, access.buffer.shape, strict=True)):
                if surely_outside(index, dim, scope):
                    place = f"index {print_expr(index)} of {access.buffer.name}"
                    self.fail(f"{place} is outside of 0..{dim}-1 (dim {axis})", print_stmt(stmt))

    def place(self, access: Load | Store, stmt: Stmt, scope: Scope) -> None:
        """Buffer in scope; register indices."""
        buffer = access.buffer
        if buffer not in scope.buffers:
            self.fail(f"buffer {buffer.name} is not in scope", print_stmt(stmt))
        if buffer.space is MemSpace.REGISTER and self.stage.register_indices_constant:
            for index in access.indices:
                if not free_vars(index) <= scope.unrolled or has_load(index) or _has_size(index):
                    rule = f"index {print_expr(index)} of register buffer {buffer.name} varies at run time"
                    self.fail(f"{rule}; expected constants and unrolled loops", print_stmt(stmt))


def _has_size(expr: Expr) -> bool:
    return any(isinstance(e, Size) for e in walk(expr))


def _last(extent: Expr, scope: Scope) -> Expr | None:
    """The last value of a loop variable, if its bound stays what it is."""
    return None if has_load(extent) else build.sub(substitute(extent, scope.values), 1)


def surely_outside(index: Expr, dim: Dim, scope: Scope) -> bool:
    """Whether some execution of the access is certain, and outside of ``0 .. dim-1``."""
    if scope.exact is None:
        return False
    exact = scope.exact
    index = substitute(index, scope.values)
    if scope.known.prove(build.lt(index, 0)) or scope.known.prove(build.ge(index, size(dim))):
        return True
    # A sum of loop variables that all run over constant ranges reaches both ends of its interval.
    poly = scope.known.poly(index)
    reached = all(
        len(mono) <= 1 and all(isinstance(a, Var) and (a in exact or lanes_of(a)) for a in mono)
        for mono in poly.terms
    )
    if not reached or not isinstance(dim, int):
        return False
    lo, hi = scope.known.interval(poly)
    return (lo is not None and lo < 0) or (hi is not None and hi >= dim)


def _is_vector(expr: Expr) -> bool:
    match expr:
        case Intrinsic():
            return any(e.lanes > 1 for e in (expr, *expr.args))
        case _:
            return isinstance(expr, _VECTORS)
