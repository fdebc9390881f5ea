"""Steps on reductions: decompose_reduction, start_at_zero, rfactor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from strata.core.dims import Dim
from strata.core.dtypes import DType, bool_
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.externs import buffers_of, call_writes
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    BlockAxis,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    Load,
    MemSpace,
    Size,
    Stmt,
    Store,
    Var,
    index,
    seq,
)
from strata.loop.rewrite import buffers_read, free_vars, map_stmt, path_to, substitute, walk, walk_stmts
from strata.loop.values import int_range
from strata.schedule.dependence import (
    init_comes_first,
    is_reduction,
    one_element,
    reduction_op,
    scope_of,
    with_loop,
)
from strata.schedule.step import (
    Step,
    check_new_names,
    find_block,
    find_loop,
    loops_around,
    register,
    replace_stmt,
    with_body,
)

from .stages import Stage, check_size, conjuncts, execution_order, find_stage, names_in, only_var


@register
@dataclass(frozen=True, slots=True)
class DecomposeReduction(Step):
    """Give the initialisation of a reduction its own nest, just before ``loop``.

    Rewrite::

        for k: for i: block "p" init: B[i] = 0; B[i] += f   ->   for i: block "p_init" B[i] = 0
                                                                 for k: for i: block "p" B[i] += f

    The new loops are called like the old ones with ``_init`` appended. A predicate is kept as it is at the
    start of the reduction.

    Legal when: the block has an init and is alone inside ``loop``; every reduction loop of it is ``loop`` or
    inside; no other loop there repeats an element; init and extents do not depend on a reduction loop.
    """

    block: str
    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "decompose_reduction"

    def apply(self, func: Func) -> Func:
        """Split off the init."""
        block, loop = find_block(func, self.block), find_loop(func, self.loop)
        if block.init is None:
            raise LegalityError(f"decompose_reduction: block {self.block} has no init")
        over = self._check(func, block, loop)
        inner = _perfect_nest(loop)
        kept = [x for x in inner if x.var not in over]
        names = (block.name + "_init", *(x.var.name + "_init" for x in kept))
        check_new_names(func, "decompose_reduction", names)
        start = _init_nest(block, kept, over)
        func = replace_stmt(func, block, replace(block, init=None))
        loop = find_loop(func, self.loop)
        return replace_stmt(func, loop, seq(start, loop))

    def _check(self, func: Func, block: Block, loop: For) -> set[Var]:
        """The reduction loops.

        Raises:
            LegalityError: the init may not move.
        """
        nest = loops_around(func, self.block)
        inner = _perfect_nest(loop)
        if not any(x is loop for x in nest):
            raise LegalityError(f"decompose_reduction: block {self.block} is not inside loop {self.loop}")
        if inner[-1].body is not block:
            raise LegalityError(
                f"decompose_reduction: block {self.block} is not alone inside loop {self.loop}"
            )
        variables = {x.var for x in nest}
        reduced = [a for a in block.axes if a.kind is AxisKind.REDUCTION]
        over = {v for a in reduced for v in free_vars(a.value) if v in variables}
        if over - {x.var for x in inner}:
            raise LegalityError(
                f"decompose_reduction: a reduction loop of {self.block} is outside {self.loop}"
            )
        for x in inner:
            if x.var not in over and over & set(free_vars(x.extent)):
                raise LegalityError(
                    f"decompose_reduction: extent of {x.var.name} depends on a reduction loop"
                )
        known = scope_of(func, loop)
        for x in inner:
            known = with_loop(known, x)
        why = one_element(block) or init_comes_first(block, over, [x.var for x in inner], known)
        if why is not None:
            raise LegalityError(f"decompose_reduction: {why}")
        return over


def _perfect_nest(loop: For) -> list[For]:
    """``loop`` and the loops directly nested in it."""
    nest = [loop]
    while isinstance(nest[-1].body, For):
        nest.append(nest[-1].body)
    return nest


def _init_nest(block: Block, kept: list[For], over: set[Var]) -> Stmt:
    """The init inside copies of the loops that do not reduce."""
    assert block.init is not None
    where: dict[Var, Expr] = {x.var: Var(x.var.name + "_init") for x in kept}
    where.update((v, index(0)) for v in over)
    used = [a for a in block.axes if a.var in free_vars(block.init)]
    fresh: dict[Var, Expr] = {a.var: Var(a.var.name) for a in used}
    axes = tuple(
        BlockAxis(only_var(fresh[a.var]), a.kind, substitute(a.extent, where), substitute(a.value, where))
        for a in used
    )
    predicate = None
    if block.predicate is not None:
        start = Analysis().simplify(substitute(block.predicate, where))
        predicate = start if start != b.const(True, bool_) else None
    result: Stmt = Block(block.name + "_init", axes, substitute(block.init, fresh), None, predicate)
    for x in reversed(kept):
        result = replace(x, var=only_var(where[x.var]), extent=substitute(x.extent, where), body=result)
    return result


@register
@dataclass(frozen=True, slots=True)
class StartAtZero(Step):
    """Let a sum of integers start at zero, and add its start where it is read.

    Rewrite::

        for i, k: block "p" init: B[i] = s(i); B[i] += f   ->   for i, k: block "p" init: B[i] = 0; B[i] += f
        for i: block "c" ... B[i] ...                           for i: block "c" ... B[i] + s(i) ...

    Legal when: the block is as lowering made it, adds integers (exactly, in any order) up in an intermediate
    buffer, and starts at something else than a constant; blocks alone read the result; nothing that the start
    is made of is written after the block begins.
    """

    block: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "start_at_zero"

    def apply(self, func: Func) -> Func:
        """Move the start."""
        stage = find_stage("start_at_zero", func, self.block)
        block, target = stage.block, stage.target
        if not isinstance(block.init, Store) or isinstance(block.init.value, Const):
            raise LegalityError(f"start_at_zero: block {self.block} starts at nothing but a constant")
        init, start, axes = (
            block.init,
            block.init.value,
            [a.var for a in block.axes if a.kind is AxisKind.SPATIAL],
        )
        self._check(func, stage)

        def read(e: Expr) -> Expr:
            if not isinstance(e, Load) or e.buffer is not target:
                return e
            return b.add(e, substitute(start, dict(zip(axes, e.indices, strict=True))))

        def change(stmt: Stmt) -> Stmt:
            if not isinstance(stmt, Block):
                return stmt
            if stmt is block:
                return replace(stmt, init=replace(init, value=b.const(0, target.dtype)))
            return map_stmt(stmt, expr_fn=read)

        return with_body(func, map_stmt(func.body, stmt_fn=change))

    def _check(self, func: Func, stage: Stage) -> None:
        target, init = stage.target, stage.block.init
        assert init is not None
        what = f"start_at_zero: block {self.block}"
        if not target.dtype.is_int or not _adds(stage.block.body):
            raise LegalityError(f"{what} is no sum of integers")
        if target in func.params:
            raise LegalityError(f"{what} fills {target.name}, a parameter; expected an intermediate")
        inside = {id(s) for s in walk_stmts(stage.start)}
        order = execution_order(func)
        needed = buffers_read(init)
        blocks = [s for s in walk_stmts(func) if isinstance(s, Block)]
        read = sum(isinstance(e, Load) and e.buffer is target for x in blocks for e in walk(x))
        everywhere = sum(isinstance(e, Load) and e.buffer is target for e in walk(func))
        if read != everywhere:
            raise LegalityError(f"{what}: {target.name} is read outside of blocks")
        for stmt in walk_stmts(func):
            written = _written_by(stmt)
            later = order[id(stmt)] > order[id(stage.start)]
            if id(stmt) not in inside and (target in written or (later and written & needed)):
                raise LegalityError(f"{what}: what it starts at, or its result, is written elsewhere")


def _adds(body: Stmt) -> bool:
    return isinstance(body, Store) and reduction_op(body) is BinaryOp.ADD


def _written_by(stmt: Stmt) -> set[Buffer]:
    """Buffers that the statement itself writes, or hands out."""
    match stmt:
        case Store():
            return {stmt.buffer}
        case Call():
            return {*call_writes(stmt), *buffers_of(stmt)}
        case _:
            return set()


@register
@dataclass(frozen=True, slots=True)
class RFactor(Step):
    """Factor a reduction: a partial result for every iteration of ``loop``, combined in the end.

    Rewrite::

        for i: for ko: for ki in 4:                   ->   alloc B_rf: f32[n, 4]
          block "p"                                        for i, ki: block "p_rf_init" B_rf[i, ki] = -0
            init: B[i] = 0                                 for i, ko, ki:
            B[i] += f(i, ko*4 + ki)                          block "p_rf" B_rf[i, ki] += f(i, ko*4 + ki)
                                                           for i, ki:
                                                             block "p" init: B[i] = 0
                                                                       B[i] += B_rf[i, ki]

    What was a reduction loop is a spatial one around ``p_rf``: it may be vectorised or parallel, and sums no
    longer wait for each other. The loops of the first new nest have ``_rf_init`` appended, those of the last
    one ``_f``. A result in private memory has its partial results there, too.

    Legal when: the block is a reduction ``x = x op f`` with an init, alone inside its loops; ``loop`` has a
    constant extent or that of a dim, and is used by one reduction axis only, whose other loops reduce, too;
    every loop that reduces runs; the loops and conditions of the block's own elements do not depend on them.
    """

    block: str
    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "rfactor"

    def apply(self, func: Func) -> Func:
        """Factor the reduction."""
        factored = _Factored.of(func, self.block, find_loop(func, self.loop))
        before, update, after = factored.start(), factored.update(), factored.finish()
        names = (*names_in(before), *names_in(after), self.block + "_rf")
        check_new_names(func, "rfactor", names, leaving=(self.block,))
        stages = Alloc(factored.partial, seq(before, update, after))
        return replace_stmt(func, factored.nest[0], stages)


@dataclass(frozen=True, slots=True)
class _Factored:
    """A reduction to factor.

    Attributes:
        block: The block.
        store: Its body.
        op: Of the reduction.
        nest: The loops directly around the block, outermost first.
        loop: The one to factor out.
        over: All loops that reduce.
        partial: Buffer of the partial results.
        where: Condition on the block's elements, or ``None``.
    """

    block: Block
    store: Store
    op: BinaryOp
    nest: list[For]
    loop: For
    over: frozenset[Var]
    partial: Buffer
    where: Expr | None

    @staticmethod
    def of(func: Func, name: str, loop: For) -> _Factored:
        """The reduction at block ``name``.

        Raises:
            LegalityError: it may not be factored.
        """
        block = find_block(func, name)
        path = path_to(func.body, block)[:-1]
        inner = next((k for k in range(len(path), 0, -1) if not isinstance(path[k - 1], For)), 0)
        nest = [s for s in path[inner:] if isinstance(s, For)]
        if not any(x is loop for x in nest):
            raise LegalityError(f"rfactor: block {name} is not alone inside loop {loop.var.name}")
        op = reduction_op(block.body) if isinstance(block.body, Store) else None
        if block.init is None or op is None or not is_reduction(block):
            raise LegalityError(f"rfactor: block {name} is no reduction x = x op f with an init")
        assert isinstance(block.body, Store)
        over = _reducing(block, [s for s in path if isinstance(s, For)])
        _check_factor(block, loop, over, nest)
        known = scope_of(func, nest[0])
        for x in nest:
            known = with_loop(known, x)
        why = one_element(block) or init_comes_first(block, set(over), [x.var for x in nest], known)
        if why is not None:
            raise LegalityError(f"rfactor: {why}")
        outside = scope_of(func, nest[0])
        for x in nest:
            if x.var in over and not outside.prove(b.ge(x.extent, 1)):
                raise LegalityError(f"rfactor: loop {x.var.name} may run no iteration")
            outside = with_loop(outside, x)
        partial = _partial_buffer(block.body.buffer, loop, any(isinstance(s, For) for s in path[:inner]))
        where = _own_condition(block, over, known)
        return _Factored(block, block.body, op, nest, loop, over, partial, where)

    def start(self) -> Stmt:
        """Partial results that do not change what is combined with them."""
        neutral = _neutral(self.op, self.store.buffer.dtype)
        return self._own_nest(
            "_rf_init", "_rf_init", lambda f, i: (Store(self.partial, (*i, f), neutral), None)
        )

    def update(self) -> Stmt:
        """The reduction into the partial results."""
        factor = BlockAxis(Var("f"), AxisKind.SPATIAL, self.loop.extent, self.loop.var)
        where: dict[Var, Expr] = {self.loop.var: factor.var}
        axes = [factor]
        values: dict[Var, Expr] = {}
        loops = {x.var: x for x in self.nest}
        for axis in self.block.axes:
            if self.loop.var not in free_vars(axis.value):
                axes.append(axis)
                continue
            for var in free_vars(axis.value):
                if var is not self.loop.var:
                    inner = BlockAxis(Var(var.name), AxisKind.REDUCTION, loops[var].extent, var)
                    axes.append(inner)
                    where[var] = inner.var
            values[axis.var] = substitute(axis.value, where)
        place = (*self.store.indices, factor.var)
        assert isinstance(self.store.value, Binary)
        term = substitute(self.store.value.b, values)
        body = Store(self.partial, place, Binary(self.op, Load(self.partial, place), term))
        axes.sort(key=lambda a: a.kind is AxisKind.REDUCTION)
        result: Stmt = replace(
            self.block, name=self.block.name + "_rf", axes=tuple(axes), body=body, init=None
        )
        for x in reversed(self.nest):
            result = replace(x, body=result)
        return result

    def finish(self) -> Stmt:
        """The partial results combined."""

        def body(f: Var, i: tuple[Expr, ...]) -> tuple[Stmt, Stmt | None]:
            total = Binary(self.op, Load(self.store.buffer, i), Load(self.partial, (*i, f)))
            return Store(self.store.buffer, i, total), self.block.init

        return self._own_nest("", "_f", body)

    def _own_nest(
        self,
        name: str,
        suffix: str,
        body: Callable[[Var, tuple[Expr, ...]], tuple[Stmt, Stmt | None]],
    ) -> Stmt:
        """A block over the elements of the block and the iterations of the loop.

        Args:
            name: Appended to the name of the block.
            suffix: Appended to the names of loops.
            body: Of factor axis and place of the element: what the block does, and its init.
        """
        kept = [x for x in self.nest if x.var not in self.over] + [replace(self.loop, kind=ForKind.SERIAL)]
        where: dict[Var, Expr] = {x.var: Var(x.var.name + suffix) for x in kept}
        fresh: dict[Var, Expr] = {
            a.var: Var(a.var.name) for a in self.block.axes if a.kind is AxisKind.SPATIAL
        }
        axes = [
            BlockAxis(only_var(fresh[a.var]), a.kind, substitute(a.extent, where), substitute(a.value, where))
            for a in self.block.axes
            if a.var in fresh
        ]
        kind = AxisKind.REDUCTION if suffix == "_f" else AxisKind.SPATIAL
        factor = BlockAxis(Var("f"), kind, self.loop.extent, where[self.loop.var])
        update, init = body(factor.var, tuple(substitute(i, fresh) for i in self.store.indices))
        result: Stmt = Block(
            self.block.name + name,
            (*axes, factor),
            update,
            substitute(init, fresh) if init is not None else None,
            substitute(self.where, where) if self.where is not None else None,
        )
        for x in reversed(kept):
            result = replace(x, var=only_var(where[x.var]), extent=substitute(x.extent, where), body=result)
        return result


def _reducing(block: Block, loops: list[For]) -> frozenset[Var]:
    """Loop variables that the reduction axes of ``block`` use."""
    variables = {x.var for x in loops}
    reduced = [a for a in block.axes if a.kind is AxisKind.REDUCTION]
    return frozenset(v for a in reduced for v in free_vars(a.value) if v in variables)


def _check_factor(block: Block, loop: For, over: frozenset[Var], nest: list[For]) -> None:
    """The loop is one part of one reduction axis, and elements do not depend on the reduction."""
    name = loop.var.name
    users = [a for a in block.axes if loop.var in free_vars(a.value)]
    if len(users) != 1 or users[0].kind is not AxisKind.REDUCTION:
        raise LegalityError(f"rfactor: loop {name} is not used by exactly one axis that reduces")
    inside = {x.var for x in nest}
    if not set(free_vars(users[0].value)) <= over & inside:
        raise LegalityError(f"rfactor: axis {users[0].var.name} uses more than loops that reduce")
    if over - inside:
        raise LegalityError(f"rfactor: a reduction loop of {block.name} has other things inside")
    for x in nest:
        if x.var not in over and over & set(free_vars(x.extent)):
            raise LegalityError(f"rfactor: extent of {x.var.name} depends on a reduction loop")


def _partial_buffer(target: Buffer, loop: For, in_a_loop: bool) -> Buffer:
    """Partial results of ``target``: one more dim, for the iterations of ``loop``."""
    match loop.extent:
        case Const(value):
            dim: Dim = int(value)
        case Size(dim):
            pass
        case _:
            raise LegalityError(
                f"rfactor: extent of {loop.var.name} is neither a constant nor a dim; split the loop first"
            )
    if target.space is MemSpace.GLOBAL and in_a_loop:
        raise LegalityError(
            f"rfactor: partial results of {target.name} would be global memory inside a loop; move the "
            "stage into private memory first"
        )
    shape = (*target.shape, dim)
    if target.space is not MemSpace.GLOBAL:
        check_size("rfactor", target, shape)
    return Buffer(target.name + "_rf", shape, target.dtype, target.space)


def _own_condition(block: Block, over: frozenset[Var], known: Analysis) -> Expr | None:
    """The part of the predicate about the block's elements; the rest must hold where a reduction starts."""
    conditions = conjuncts(block.predicate)
    own = [c for c in conditions if not over & set(free_vars(c))]
    zero: dict[Var, Expr] = {v: index(0) for v in over}
    for c in own:
        known = known.with_fact(c)
    for c in conditions:
        if over & set(free_vars(c)) and not known.prove(substitute(c, zero)):
            raise LegalityError(
                f"rfactor: the predicate of block {block.name} may skip the start of the reduction"
            )
    return b.and_(*own) if own else None


def _neutral(op: BinaryOp, dtype: DType) -> Expr:
    """``e`` with ``x op e = x`` for every x."""
    match op:
        case BinaryOp.ADD:
            return b.const(-0.0 if dtype.is_float else 0, dtype)
        case BinaryOp.MUL:
            return b.const(1.0 if dtype.is_float else 1, dtype)
        case BinaryOp.AND | BinaryOp.OR:
            return b.const(op is BinaryOp.AND, dtype)
        case _:
            lo, hi = (-inf, inf) if dtype.is_float else int_range(dtype)
            return b.const(lo if op is BinaryOp.MAX else hi, dtype)
