"""Which iterations of a loop depend on one another: what makes steps legal.

Two iterations are independent if no element that one of them writes is touched by the other. That is proved
from index expressions: the indices of an access *determine* a loop if one can compute the loop's variable
from them, as ``io`` from ``io*8 + ii`` with ``0 <= ii < 8``, or ``f`` from ``f // n`` and ``f % n``. If all
accesses to a buffer determine the loop in the same way, different iterations touch different elements.

Indices that come from memory (``pages[slots[t]]``) prove nothing; there the SPATIAL axes of a block are taken
as what they are: the promise that instances with different values write different elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from strata.loop import build as b
from strata.loop.affine import Poly, lanes_of
from strata.loop.analysis import Analysis
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    Func,
    If,
    Let,
    Load,
    Seq,
    Stmt,
    Store,
    Var,
    index,
)
from strata.loop.rewrite import free_vars, has_load, path_to, stmt_exprs, substitute, walk, walk_stmts

HORIZONTAL = frozenset({BinaryOp.ADD, BinaryOp.MIN, BinaryOp.MAX})
COMMUTATIVE = HORIZONTAL | {BinaryOp.MUL, BinaryOp.AND, BinaryOp.OR}


@dataclass(frozen=True, slots=True)
class Access:
    """One load or store below a statement, over the loop variables around it.

    Attributes:
        node: The load or store itself.
        buffer: What it touches.
        indices: Its indices with block axes and lets replaced by their values.
        promised: Values of the SPATIAL axes that its indices use in a look-up in memory.
        inner: Loops between the statement and the access, outermost first, but those of one iteration.
    """

    node: Load | Store
    buffer: Buffer
    indices: tuple[Expr, ...]
    promised: tuple[Expr, ...]
    inner: tuple[For, ...]

    @property
    def is_store(self) -> bool:
        """Whether it writes."""
        return isinstance(self.node, Store)


@dataclass(slots=True)
class _Collector:
    found: list[Access] = field(default_factory=list)

    def statement(
        self, stmt: Stmt, where: dict[Var, Expr], inner: tuple[For, ...], block: Block | None
    ) -> None:
        for root in stmt_exprs(stmt):
            for expr in walk(root):
                if isinstance(expr, Load):
                    self.add(expr, expr.indices, where, inner, block)
        match stmt:
            case Store():
                self.add(stmt, stmt.indices, where, inner, block)
            case For(extent=Const(value=1)):
                self.statement(stmt.body, {**where, stmt.var: index(0)}, inner, block)
            case For():
                loop = replace(stmt, extent=substitute(stmt.extent, where))
                self.statement(stmt.body, where, (*inner, loop), block)
            case Let():
                value = substitute(stmt.value, where)
                self.statement(stmt.body, {**where, stmt.var: value}, inner, block)
            case Block():
                axes = {a.var: substitute(a.value, where) for a in stmt.axes}
                for part in (stmt.init, stmt.body):
                    if part is not None:
                        self.statement(part, {**where, **axes}, inner, stmt)
            case If():
                for part in (stmt.then, stmt.orelse):
                    if part is not None:
                        self.statement(part, where, inner, block)
            case Alloc():
                self.statement(stmt.body, where, inner, block)
            case Seq():
                for part in stmt.stmts:
                    self.statement(part, where, inner, block)

    def add(
        self,
        node: Load | Store,
        indices: tuple[Expr, ...],
        where: dict[Var, Expr],
        inner: tuple[For, ...],
        block: Block | None,
    ) -> None:
        looked_up = {v for i in indices for e in walk(i) if isinstance(e, Load) for v in free_vars(e)}
        promised = tuple(
            where[a.var]
            for a in (block.axes if block is not None else ())
            if a.kind is AxisKind.SPATIAL and a.var in looked_up
        )
        bound = tuple(substitute(i, where) for i in indices)
        self.found.append(Access(node, node.buffer, bound, promised, inner))


def accesses(stmt: Stmt) -> list[Access]:
    """Every load and store of ``stmt``."""
    collector = _Collector()
    collector.statement(stmt, {}, (), None)
    return collector.found


def scope_of(func: Func, stmt: Stmt) -> Analysis:
    """Ranges of the loop variables (and values of the lets) around ``stmt``, itself left out.

    Raises:
        LegalityError: ``stmt`` is not in ``func``.
    """
    known = Analysis()
    for outer in path_to(func.body, stmt)[:-1]:
        known = enter(known, outer)
    return known


def enter(known: Analysis, stmt: Stmt) -> Analysis:
    """The scope of the body of ``stmt``."""
    match stmt:
        case For():
            return with_loop(known, stmt)
        case Let() if stmt.value.lanes == 1 and not has_load(stmt.value) and stmt.value.dtype.is_int:
            return known.with_range(stmt.var, stmt.value, stmt.value)
        case _:
            return known


def with_loop(known: Analysis, loop: For) -> Analysis:
    """A scope that also has the variable of ``loop``."""
    if has_load(loop.extent):
        return known.with_range(loop.var, 0, None)
    return known.with_range(loop.var, 0, b.sub(loop.extent, 1)).with_fact(b.gt(loop.extent, 0))


# ------------------------------------------------------------------------------- what indices determine


class _Solver:
    """Finds which variables can be computed from the values of some expressions."""

    def __init__(self, unknown: Iterable[Var], known: Analysis) -> None:
        self.known = known
        self.open = set(unknown)
        self.settled: set[Expr] = set()
        self.polys: list[Poly] = []

    def is_open(self, atom: Expr) -> bool:
        """Whether the value of ``atom`` is not known yet."""
        if atom in self.settled:
            return False
        return any(v in self.open or lanes_of(v) is not None for v in free_vars(atom))

    def remainder(self, poly: Poly) -> Poly:
        """``poly`` without the terms whose value is known."""
        return Poly({m: k for m, k in poly.terms.items() if any(self.is_open(a) for a in m)})

    def run(self, values: Sequence[Expr]) -> None:
        """Learn from ``values`` until nothing new follows."""
        self.polys = [self.known.poly(v) for v in values]
        progress = True
        while progress:
            before = len(self.settled), len(self.open), len(self.polys)
            for poly in list(self.polys):
                self.learn(self.remainder(poly))
            progress = before != (len(self.settled), len(self.open), len(self.polys))

    def learn(self, poly: Poly) -> None:
        """Peel off the term whose stride the others together do not reach; ``poly`` has a known value."""
        for mono, k in poly.terms.items():
            unknown = [a for a in mono if self.is_open(a)]
            if len(unknown) != 1:
                continue
            rest = poly.without(mono)
            stride = Poly({tuple(a for a in mono if a is not unknown[0]): k})
            if self.stays_below(rest, stride):
                self.settle(unknown[0])
                if rest.terms and rest not in self.polys:
                    self.polys.append(rest)
                return

    def stays_below(self, rest: Poly, stride: Poly) -> bool:
        """Whether ``rest`` stays within ``|stride|`` consecutive numbers, and the stride is not 0."""
        k = stride.constant
        if k is not None:
            lo, hi = self.known.interval(rest)
            return lo is not None and hi is not None and hi - lo < abs(k)
        if not self.known.nonneg(stride - 1):
            return False
        return self.known.nonneg(rest) and self.known.nonneg(stride - 1 - rest)

    def settle(self, atom: Expr) -> None:
        """The value of ``atom`` is known; so is ``x`` for known ``x // m`` and ``x % m``."""
        self.settled.add(atom)
        self.open -= {atom}
        for known in list(self.settled):
            match known:
                case Binary(op=BinaryOp.FLOORMOD, a=x, b=m):
                    dividend, divisor = self.known.poly(x), self.known.poly(m)
                    quotient = self.known.floordiv(dividend, divisor)
                    solved = not self.remainder(quotient).terms and not self.remainder(divisor).terms
                    if solved and dividend not in self.polys:
                        self.polys.append(dividend)


def determines(
    values: Sequence[Expr], wanted: Iterable[Var], unknown: Iterable[Var], known: Analysis
) -> bool:
    """Whether ``wanted`` can be computed from ``values``.

    Args:
        values: i64 expressions.
        wanted: Variables, among ``unknown``.
        unknown: Variables of ``values`` that are not given; all others are.
        known: Ranges of all of them.
    """
    solver = _Solver(unknown, known)
    solver.run(values)
    ranges = {v: known.interval(known.poly(v)) for v in wanted}
    return all(v not in solver.open or (lo is not None and lo == hi) for v, (lo, hi) in ranges.items())


# ----------------------------------------------------------------------------- iterations of one loop


def carried(loop: For, known: Analysis, *, reductions: bool = False) -> str | None:
    """Why iterations of ``loop`` depend on one another, or ``None`` if they certainly do not.

    Args:
        loop: The loop.
        known: Scope of the loop (its own variable left out).
        reductions: Accept ``x[..] = x[..] op f`` with a horizontal op, where x is touched by nothing else and
            its indices do not vary.

    Returns:
        A reason, for messages: "iterations write the same elements of y".
    """
    call = next((s for s in walk_stmts(loop.body) if isinstance(s, Call)), None)
    if call is not None:
        return f"loop {loop.var.name} calls @{call.extern}, which stays as it is"
    known = with_loop(known, loop)
    private = {s.buffer for s in walk_stmts(loop.body) if isinstance(s, Alloc)}
    every = accesses(loop.body)
    written = dict.fromkeys(a.buffer for a in every if a.is_store and a.buffer not in private)
    changing = {a.buffer for a in every if a.is_store}
    for buffer in written:
        touching = [a for a in every if a.buffer is buffer]
        if reductions and _is_horizontal(touching, loop):
            continue
        if any(_looks_up(a, changing) for a in touching):
            return f"{buffer.name} is indexed by memory that the loop writes"
        reason = _overlap(touching, loop, known)
        if reason is not None:
            return reason
    return None


def _is_horizontal(touching: list[Access], loop: For) -> bool:
    """Whether the accesses are one reduction into elements that do not depend on the loop."""
    stores = [a for a in touching if a.is_store]
    if len(stores) != 1 or len(touching) != 2 or any(loop.var in free_vars(i) for i in stores[0].indices):
        return False
    return reduction_op(stores[0].node) in HORIZONTAL


def reduction_op(stmt: Load | Store) -> BinaryOp | None:
    """The op of ``x[i] = x[i] op f`` with the load on the left and no masks."""
    match stmt:
        case Store(buffer, indices, Binary(op, Load(same, at, None)), None) if (
            same is buffer and at == indices
        ):
            return op
        case _:
            return None


def _looks_up(access: Access, changing: set[Buffer]) -> bool:
    return any(isinstance(e, Load) and e.buffer in changing for i in access.indices for e in walk(i))


def _overlap(touching: list[Access], loop: For, known: Analysis) -> str | None:
    """Why two iterations may touch the same element that one of them writes."""
    first = next(a for a in touching if a.is_store)
    name = loop.var.name
    if not _determines_loop(first, first.indices, loop, known):
        return f"iterations of {name} write the same elements of {first.buffer.name}"
    shape = _shape(first, known)
    for other in touching:
        if _shape(other, known) == shape and _determines_loop(other, other.indices, loop, known):
            continue
        inner = {x.var for a in (first, other) for x in a.inner}
        common = [
            i
            for i, j in zip(first.indices, other.indices, strict=True)
            if known.poly(i) == known.poly(j) and not inner & set(free_vars(i))
        ]
        if not determines(common, [loop.var], [loop.var], known):
            what = "write" if other.is_store else "read"
            return f"iterations of {name} may {what} elements of {first.buffer.name} that others write"
    return None


def _determines_loop(access: Access, indices: Sequence[Expr], loop: For, known: Analysis) -> bool:
    for inner in access.inner:
        known = with_loop(known, inner)
    unknown = [loop.var, *(x.var for x in access.inner)]
    return determines([*indices, *access.promised], [loop.var], unknown, known)


def _shape(access: Access, known: Analysis) -> tuple[Expr, ...]:
    """Indices with the inner loops' variables numbered by first use, then the extents of these loops.

    Equal for two accesses that are the same function of the outer loops and of loops with equal ranges.
    """
    extents = {x.var: x.extent for x in access.inner}
    for inner in access.inner:
        known = with_loop(known, inner)
    pending = [known.simplify(i) for i in access.indices]
    numbers: dict[Var, Expr] = {}
    out: list[Expr] = []
    while pending:
        expr = pending.pop(0)
        for var in free_vars(expr):
            if var in extents and var not in numbers:
                numbers[var] = _placeholder(len(numbers))
                pending.append(known.simplify(extents[var]))
        out.append(substitute(expr, numbers))
    return tuple(out)


_placeholders: list[Var] = []


def _placeholder(number: int) -> Var:
    while len(_placeholders) <= number:
        _placeholders.append(Var(f"inner{len(_placeholders)}"))
    return _placeholders[number]


# ------------------------------------------------------------------------------- instances of one block


def one_element(block: Block) -> str | None:
    """Why an instance of ``block`` may touch elements that other instances write, or ``None``.

    An instance may read and write one element of each buffer that the block writes; where instances differ in
    that element they are independent.
    """
    every = [a for part in (block.init, block.body) if part is not None for a in accesses(part)]
    changing = {a.buffer for a in every if a.is_store}
    for buffer in changing:
        touching = [a for a in every if a.buffer is buffer]
        if any(a.indices != touching[0].indices or a.inner for a in touching):
            return f"block {block.name} touches several elements of {buffer.name} at once"
        if any(_looks_up(a, changing) for a in touching):
            return f"block {block.name} indexes {buffer.name} by memory that it writes"
    return None


def stores_of(block: Block) -> list[Access]:
    """Stores of ``block`` over the loops around it."""
    return [a for a in accesses(block) if a.is_store]


def is_reduction(block: Block) -> bool:
    """Whether the body is ``x[i] = x[i] op f`` with an op whose operands may come in any order."""
    stores = [s for s in walk_stmts(block.body) if isinstance(s, Store)]
    loads = [e for e in walk(block.body) if isinstance(e, Load) and stores and e.buffer is stores[0].buffer]
    return len(stores) == 1 and len(loads) == 1 and reduction_op(stores[0]) in COMMUTATIVE


def init_comes_first(block: Block, over: set[Var], variables: list[Var], known: Analysis) -> str | None:
    """Why ``init`` may not be the first thing that happens to an element in any order of loops, or ``None``.

    Args:
        block: A reduction with an init.
        over: Loop variables that its reduction axes use.
        variables: All loop variables that change order.
        known: Their scope.
    """
    zero: dict[Var, Expr] = {v: index(0) for v in over}
    if any(
        v in over
        for a in block.axes
        if a.var in free_vars(block.init or block.body)
        for v in free_vars(a.value)
    ):
        return f"init of block {block.name} depends on a loop that it reduces over"
    for axis in block.axes:
        if axis.kind is AxisKind.REDUCTION and not known.prove(b.eq(substitute(axis.value, zero), index(0))):
            return f"axis {axis.var.name} of block {block.name} does not start at 0"
    own = [v for v in variables if v not in over]
    if not all(determines([*x.indices, *x.promised], own, variables, known) for x in stores_of(block)):
        return f"several iterations of block {block.name} start the same element"
    if not determines([a.value for a in block.axes], variables, variables, known):
        return f"init of block {block.name} runs in several iterations"
    return None
