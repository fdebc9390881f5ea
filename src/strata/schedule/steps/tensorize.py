"""tensorize: replace a small loop nest by one hardware instruction."""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.dtypes import bf16, f32
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.nodes import (
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
    Ramp,
    Stmt,
    Store,
    Var,
    index,
)
from strata.loop.rewrite import free_vars, substitute, walk_stmts
from strata.loop.simplify import prove, simplify
from strata.schedule.step import Step, find_loop, register, replace_stmt

from .stages import Ranges, loop_ranges


@register
@dataclass(frozen=True, slots=True)
class Tensorize(Step):
    """Replace a nest by the intrinsic ``dot2_bf16``: bf16 pairs multiplied and added to f32 sums.

    Rewrite (L lanes)::

        for n in L: for k in 2:                                  acc[.., ramp(b, L)] = @dot2_bf16(
          block  acc[.., b + n] += f32(x[.., c + k])        ->       acc[.., ramp(b, L)],
                                   * f32(w[.., d + 2*n + k])         x[.., ramp(c, 2)],
                                                                     w[.., ramp(d, 2*L)])

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
        if self.intrinsic != "dot2_bf16":
            raise LegalityError(f"tensorize: got intrinsic {self.intrinsic!r}; expected dot2_bf16")
        outer = find_loop(func, self.loop)
        inner = outer.body
        lanes, pair = _extent(outer), _extent(inner) if isinstance(inner, For) else None
        if (
            not isinstance(inner, For)
            or lanes not in (4, 8, 16)
            or pair != 2
            or not isinstance(inner.body, Block)
        ):
            raise LegalityError(
                f"tensorize: loop {self.loop} is not 4, 8 or 16 lanes around a loop of 2 around a block"
            )
        acc, x, w = _accumulation(inner.body, self.loop)
        if {acc.dtype, x.dtype, w.dtype} != {f32, bf16} or x.dtype is not bf16 or w.dtype is not bf16:
            raise LegalityError(
                f"tensorize: got {acc.dtype} += {x.dtype} * {w.dtype}; expected f32 += bf16 * bf16"
            )
        n, k = outer.var, inner.var
        ranges = loop_ranges([s for s in walk_stmts(func) if isinstance(s, For)])
        sums = Load(acc.buffer, _ramp(acc, n, k, (1, 0), lanes, ranges))
        pair_of_x = Load(x.buffer, _ramp(x, n, k, (0, 1), 2, ranges))
        weights = Load(w.buffer, _ramp(w, n, k, (2, 1), 2 * lanes, ranges))
        value = Intrinsic("dot2_bf16", (sums, pair_of_x, weights), f32, lanes)
        return replace_stmt(func, outer, Store(acc.buffer, sums.indices, value))


def _extent(stmt: Stmt) -> int | None:
    return int(stmt.extent.value) if isinstance(stmt, For) and isinstance(stmt.extent, Const) else None


def _accumulation(block: Block, loop: str) -> tuple[Load, Load, Load]:
    """``acc``, ``x`` and ``w`` of the block's body ``acc = acc + f32(x) * f32(w)``, over loop variables."""
    body = substitute(block.body, {a.var: a.value for a in block.axes})
    if block.init is None and block.predicate is None:
        match body:
            case Store(
                buffer,
                indices,
                Binary(
                    BinaryOp.ADD,
                    Load(mask=None) as acc,
                    Binary(BinaryOp.MUL, Cast(_, Load(mask=None) as x), Cast(_, Load(mask=None) as w)),
                ),
                None,
            ) if acc.buffer is buffer and acc.indices == indices:
                return acc, x, w
            case _:
                pass
    raise LegalityError(
        f"tensorize: loop {loop}: the block is not acc += f32(x) * f32(w) without init and predicate"
    )


def _ramp(
    load: Load, n: Var, k: Var, strides: tuple[int, int], lanes: int, ranges: Ranges
) -> tuple[Expr, ...]:
    """Indices of ``load`` at ``n = k = 0``, with a ramp in the last dim, which must have these strides."""
    *outer, last = load.indices
    if any(v in (n, k) for i in outer for v in free_vars(simplify(i, ranges))):
        raise LegalityError(
            f"tensorize: {load.buffer.name} is indexed by the nest in a dim that is not its last"
        )
    base = simplify(substitute(last, {n: index(0), k: index(0)}), ranges)
    linear = b.add(base, b.add(b.mul(n, strides[0]), b.mul(k, strides[1])))
    if not prove(b.eq(last, linear), ranges):
        raise LegalityError(f"tensorize: {load.buffer.name} has other strides in the nest than {strides}")
    return (*(simplify(i, ranges) for i in outer), Ramp(base, lanes))
