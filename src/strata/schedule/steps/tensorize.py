"""tensorize: replace a small loop nest by one hardware instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from strata.core.dtypes import DType, bf16, f32, i8, i32, i64, u8
from strata.core.errors import LegalityError, VerifyError
from strata.loop import build as b
from strata.loop.intrinsics import INTRINSICS
from strata.loop.matrix import nests_of
from strata.loop.nodes import (
    MATRIX,
    Binary,
    BinaryOp,
    Block,
    Cast,
    Const,
    Expr,
    For,
    Func,
    Intrinsic,
    Load,
    MemSpace,
    Ramp,
    Select,
    Stmt,
    Store,
    Unary,
    Var,
    index,
)
from strata.loop.rewrite import free_vars, substitute, walk_stmts
from strata.loop.simplify import prove, simplify
from strata.schedule.step import Step, find_loop, register, replace_stmt

from .stages import Ranges, loop_ranges

LANES = (4, 8, 16)
NIBBLES = ("low4", "high4")
ZIP = "zip_bf16"
FOUR = 4


@dataclass(frozen=True, slots=True)
class Dot:
    """An instruction that adds products of groups.

    Attributes:
        group: Products that one lane adds.
        acc, x, w: Dtypes of the sum, of the operand that all lanes share, and of the other one.
        add: The new sum from the old one, ``x`` and ``w``.
        is_exact: Sums are exact, so that several products may be added in any order.
        nibbles: Whether ``w`` may be, or must be, a half of a byte.
    """

    group: int
    acc: DType
    x: DType
    w: DType
    add: Callable[[Expr, Load, Expr], Expr]
    is_exact: bool = False
    nibbles: str = "no"

    def fits(self, x: Expr, w: Expr) -> bool:
        """Whether these are operands of it."""
        is_nibble = isinstance(w, Intrinsic)
        allowed = {"no": not is_nibble, "may": True, "must": is_nibble}[self.nibbles]
        return (x.dtype, w.dtype) == (self.x, self.w) and isinstance(x, Load) and allowed


def _dot2(acc: Expr, x: Load, w: Expr) -> Expr:
    return Intrinsic("dot2_bf16", (acc, x, w), f32, acc.lanes)


def _dot4(name: str) -> Callable[[Expr, Load, Expr], Expr]:
    return lambda acc, x, w: Intrinsic(name, (acc, w, x), i32, acc.lanes)


def _halves(acc: Expr, x: Load, w: Expr) -> Expr:
    """Two multiply-adds, by the odd elements of pairs first."""
    *row, pair = x.indices
    assert isinstance(pair, Ramp)
    for k in (1, 0):
        shared = b.splat(Load(x.buffer, (*row, b.add(pair.base, k))), acc.lanes)
        own = Intrinsic("every2", (w, index(k)), f32, acc.lanes)
        acc = Intrinsic("fma", (shared, own, acc), f32, acc.lanes)
    return acc


DOTS = {
    "dot2_bf16": Dot(2, f32, bf16, bf16, _dot2),
    "every2": Dot(2, f32, f32, bf16, _halves),
    "dot4_u8i8": Dot(4, i32, i8, u8, _dot4("dot4_u8i8"), is_exact=True, nibbles="may"),
    "dot4_u4i8": Dot(4, i32, i8, u8, _dot4("dot4_u4i8"), is_exact=True, nibbles="must"),
}


@register
@dataclass(frozen=True, slots=True)
class Tensorize(Step):
    """Replace a nest by a hardware dot product: groups of products, added to one sum per lane.

    Rewrite (L lanes; groups of 2)::

        for n in L: for k in 2:                                  acc[.., ramp(b, L)] = @dot2_bf16(
          block  acc[.., b + n] += f32(x[.., c + k])        ->       acc[.., ramp(b, L)],
                                   * f32(w[.., d + 2*n + k])         x[.., ramp(c, 2)],
                                                                     w[.., ramp(d, 2*L)])

    ============= =============== ===== ====================================================================
    intrinsic     ``acc``         group products
    ============= =============== ===== ====================================================================
    ``dot2_bf16`` f32             2     one of ``x`` and ``w``, both bf16
    ``every2``    f32             2     one of ``x``: f32, and ``w``: bf16
    ``dot4_u8i8`` i32             4     sums of products of ``x``: i8, and ``w``: u8, or a half of a byte:
                                        ``low4(w[..])``, ``high4(w[..])``
    ``dot4_u4i8`` i32             4     the same, halves of bytes only
    ============= =============== ===== ====================================================================

    ``every2`` makes two multiply-adds, for k = 1 and then for 0:
    ``acc[..] = @fma(x[.., c + k], @every2(w[..], k), acc[..])``.

    Or stores of pairs of values that are rounded to bf16 (``intrinsic=zip_bf16``), where bytes may be every
    fourth of a buffer::

        for n in L: for k in 2:                           y[.., ramp(b, 2*L)] = @zip_bf16(
          block  y[.., b + 2*n + k]                 ->      f(@every4(x[.., ramp(c, 4*L)], 0), z[ramp(d, L)]),
            = bf16(f(x[.., c + 4*n + k], z[d + n]))         f(@every4(x[.., ramp(c, 4*L)], 1), z[ramp(d, L)]))

    Legal when: the nest is exactly that, ``loop`` being the outer one (L = 4, 8 or 16); the block has no init
    left (``decompose_reduction`` first) and no predicate.
    """

    loop: str
    intrinsic: str = "dot2_bf16"

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "tensorize"

    def apply(self, func: Func) -> Func:
        """Replace the nest."""
        known = (*DOTS, ZIP)
        if self.intrinsic not in known:
            raise LegalityError(f"tensorize: got intrinsic {self.intrinsic!r}; expected {', '.join(known)}")
        dot = DOTS.get(self.intrinsic)
        outer, wanted = find_loop(func, self.loop), 2 if dot is None else dot.group
        inner = outer.body
        lanes, group = _extent(outer), _extent(inner)
        if (
            not isinstance(inner, For)
            or lanes not in LANES
            or group != wanted
            or not isinstance(inner.body, Block)
        ):
            raise LegalityError(
                f"tensorize: loop {self.loop} is not 4, 8 or 16 lanes "
                f"around a loop of {wanted} around a block"
            )
        ranges = loop_ranges([s for s in walk_stmts(func) if isinstance(s, For)])
        nest = _Nest(outer.var, inner.var, lanes, ranges)
        if dot is None:
            return replace_stmt(func, outer, _pairs(nest, inner.body, self.loop))
        acc, products = _accumulation(inner.body, self.loop, dot)
        at = nest.ramp(acc, (1, 0), lanes)
        value: Expr = Load(acc.buffer, at)
        for x, w in products:
            shared = Load(x.buffer, nest.ramp(x, (0, 1), dot.group))
            own = nest.vector(w, (dot.group, 1), lanes * dot.group)
            value = dot.add(value, shared, own)
        return replace_stmt(func, outer, Store(acc.buffer, at, value))


@register
@dataclass(frozen=True, slots=True)
class MatrixUnit(Step):
    """Let the machine's matrix unit run a loop over products of tiles (AMX: bf16, and i8 times u8).

    Rewrite::

        for k in 64:                                for k in 64 with matrix=1:
          for r in 16: for g in 16:            ->     for r in 16: for g in 16:
            acc[r, ramp(0, 16)] = @dot2_bf16(..)        acc[r, ramp(0, 16)] = @dot2_bf16(..)

    A machine without such a unit runs the loops.

    Legal when: the loop is a matrix loop (``loop.matrix``): nests of 16 rows and 16 groups of ``dot2_bf16``
    or ``dot4_u8i8`` instructions (``tensorize`` first), on rows in line, that add to up to 4 tiles of sums in
    memory.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "matrix_unit"

    def apply(self, func: Func) -> Func:
        """Check the loop and note it."""
        loop = find_loop(func, self.loop)
        try:
            nests = nests_of(loop)
        except VerifyError as error:
            raise LegalityError(f"matrix_unit: {error}") from None
        if any(nest.acc.buffer.space is MemSpace.REGISTER for nest in nests):
            raise LegalityError(
                f"matrix_unit: sums of loop {self.loop} are in registers; expected local memory"
            )
        notes = {**dict(loop.notes), MATRIX: 1}
        return replace_stmt(func, loop, replace(loop, notes=tuple(notes.items())))


def _extent(stmt: Stmt) -> int | None:
    return int(stmt.extent.value) if isinstance(stmt, For) and isinstance(stmt.extent, Const) else None


def _accumulation(block: Block, loop: str, dot: Dot) -> tuple[Load, list[tuple[Load, Expr]]]:
    """``acc`` and the ``x``, ``w`` of each product of ``acc = acc + ...``, over loop variables."""
    body = substitute(block.body, {a.var: a.value for a in block.axes})
    if block.init is None and block.predicate is None:
        match body:
            case Store(buffer, indices, Binary(BinaryOp.ADD, Load(mask=None) as acc, value), None) if (
                acc.buffer is buffer and acc.indices == indices
            ):
                pairs = [_factors(term) for term in (_terms(value) if dot.is_exact else [value])]
                found = [pair for pair in pairs if pair is not None]
                if len(found) == len(pairs):
                    return acc, [_operands(acc, pair, dot) for pair in found]
            case _:
                pass
    raise LegalityError(
        f"tensorize: loop {loop}: the block is not acc += {dot.acc}(x) * {dot.acc}(w) "
        "without init and predicate"
    )


def _terms(value: Expr) -> list[Expr]:
    match value:
        case Binary(BinaryOp.ADD, a, c):
            return [*_terms(a), *_terms(c)]
        case _:
            return [value]


def _factors(value: Expr) -> tuple[Expr, Expr] | None:
    match value:
        case Binary(BinaryOp.MUL, a, c):
            first, second = (e.a if isinstance(e, Cast) else e for e in (a, c))
            return (first, second) if _is_operand(first) and _is_operand(second) else None
        case _:
            return None


def _is_operand(e: Expr) -> bool:
    match e:
        case Intrinsic(name, (Load() as load,)) if name in NIBBLES:
            return _is_operand(load)
        case Load(mask=None):
            return True
        case _:
            return False


def _operands(acc: Load, factors: tuple[Expr, Expr], dot: Dot) -> tuple[Load, Expr]:
    """``x`` and ``w``, in either order."""
    for x, w in (factors, factors[::-1]):
        if acc.dtype == dot.acc and dot.fits(x, w):
            assert isinstance(x, Load)
            return x, w
    got = " * ".join(f"{e.name}({e.dtype})" if isinstance(e, Intrinsic) else str(e.dtype) for e in factors)
    half = {"no": "", "may": " (or a half of it)", "must": " in halves"}[dot.nibbles]
    raise LegalityError(f"tensorize: got {acc.dtype} += {got}; expected {dot.acc} += {dot.x} * {dot.w}{half}")


def _pairs(nest: _Nest, block: Block, loop: str) -> Store:
    """Rounded values of ``k = 0`` and ``k = 1`` side by side."""
    body = substitute(block.body, {a.var: a.value for a in block.axes})
    match body:
        case Store(buffer, indices, Cast(dtype, value), None) if (
            dtype is bf16 and value.dtype is f32 and block.init is None and block.predicate is None
        ):
            at = nest.ramp(Load(buffer, indices), (2, 1), 2 * nest.lanes)
            each = (substitute(value, {nest.k: index(k)}) for k in (0, 1))
            both = tuple(nest.wide(simplify(e, nest.ranges)) for e in each)
            return Store(buffer, at, Intrinsic(ZIP, both, bf16, 2 * nest.lanes))
        case _:
            pass
    raise LegalityError(
        f"tensorize: loop {loop}: the block does not store a value that is rounded from f32 to bf16 "
        "without predicate"
    )


@dataclass(frozen=True, slots=True)
class _Nest:
    """The two loops ``n`` (``lanes``) and ``k`` that become one instruction, and ranges of those around."""

    n: Var
    k: Var
    lanes: int
    ranges: Ranges

    def wide(self, e: Expr) -> Expr:
        """An expression without ``k`` for all ``n`` at once.

        Raises:
            LegalityError: it loads elements that are neither side by side nor every fourth of bytes.
        """
        if self.n not in free_vars(e):
            return b.splat(e, self.lanes)
        match e:
            case Load(mask=None):
                return self.wide_load(e)
            case Binary() if e.dtype is not i64:
                return Binary(e.op, self.wide(e.a), self.wide(e.b))
            case Unary():
                return Unary(e.op, self.wide(e.a))
            case Cast():
                return Cast(e.dtype, self.wide(e.a))
            case Select():
                return Select(*(self.wide(x) for x in (e.cond, e.a, e.b)))
            case Intrinsic() if INTRINSICS[e.name].is_elementwise:
                return Intrinsic(e.name, tuple(self.wide(x) for x in e.args), e.dtype, self.lanes)
            case _:
                what = type(e).__name__.lower()
                raise LegalityError(f"tensorize: got {what} that depends on loop {self.n.name}")

    def wide_load(self, load: Load) -> Expr:
        """Elements side by side, or every fourth byte."""
        try:
            return Load(load.buffer, self.ramp(load, (1, 0), self.lanes))
        except LegalityError:
            if load.dtype is not u8:
                raise
        (*outer, last) = self.ramp(load, (FOUR, 0), FOUR * self.lanes)
        assert isinstance(last, Ramp)
        width = load.buffer.shape[-1]
        if not isinstance(width, int) or width % FOUR:
            raise LegalityError(f"tensorize: {load.buffer.name} has rows of {width} bytes; expected fours")
        part = simplify(b.floormod(last.base, FOUR), self.ranges)
        first = simplify(b.sub(last.base, part), self.ranges)
        whole = Load(load.buffer, (*outer, Ramp(first, last.lanes)))
        return Intrinsic("every4", (whole, part), u8, self.lanes)

    def vector(self, e: Expr, strides: tuple[int, int], lanes: int) -> Expr:
        """A load, or halves of the bytes of one, for all of the nest."""
        match e:
            case Intrinsic(name, (Load() as load,)):
                return Intrinsic(name, (self.vector(load, strides, lanes),), e.dtype, lanes)
            case Load():
                return Load(e.buffer, self.ramp(e, strides, lanes))
            case _:
                raise AssertionError(e)

    def ramp(self, load: Load, strides: tuple[int, int], lanes: int) -> tuple[Expr, ...]:
        """Indices of ``load`` at ``n = k = 0``; a ramp in the last dim, which must have these strides."""
        *outer, last = load.indices
        nest, ranges = (self.n, self.k), self.ranges
        if any(v in nest for i in outer for v in free_vars(simplify(i, ranges))):
            raise LegalityError(
                f"tensorize: {load.buffer.name} is indexed by the nest in a dim that is not its last"
            )
        base = simplify(substitute(last, {v: index(0) for v in nest}), ranges)
        offset = b.add(b.mul(self.n, strides[0]), b.mul(self.k, strides[1]))
        if not prove(b.eq(last, b.add(base, offset)), ranges):
            raise LegalityError(f"tensorize: {load.buffer.name} has other strides in the nest than {strides}")
        return (*(simplify(i, ranges) for i in outer), Ramp(base, lanes))
