"""Steps on how a loop is executed: unroll, vectorize, parallel, bind, prefetch; notes on loops and blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from strata.core.errors import LegalityError
from strata.loop.nodes import (
    BOUND_KINDS,
    EVEN,
    GRAIN,
    PREFETCH,
    Block,
    Const,
    For,
    ForKind,
    Func,
    Load,
    MemSpace,
    Stmt,
)
from strata.loop.rewrite import path_to, walk, walk_stmts
from strata.schedule.dependence import carried, scope_of
from strata.schedule.step import Step, find_loop, register, replace_stmt

MAX_LANES = 64  # also of an unrolled loop: beyond it the code only grows
AXES = {kind.value: kind for kind in ForKind if kind in BOUND_KINDS}


def _set_kind(func: Func, name: str, kind: ForKind) -> Func:
    loop = find_loop(func, name)
    return replace_stmt(func, loop, replace(loop, kind=kind))


def _check_extent(func: Func, name: str, what: str) -> None:
    extent = find_loop(func, name).extent
    if not isinstance(extent, Const) or not 1 <= int(extent.value) <= MAX_LANES:
        raise LegalityError(f"{what}: loop {name} needs a constant extent of 1..{MAX_LANES}")


@register
@dataclass(frozen=True, slots=True)
class Unroll(Step):
    """Expand the loop's iterations in place (done by the code generator).

    Rewrite::

        for i in 4: S(i)   ->   unroll i in 4: S(i)        which runs as S(0); S(1); S(2); S(3)

    Legal when: the extent is a constant of at most 64.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "unroll"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _check_extent(func, self.loop, "unroll")
        return _set_kind(func, self.loop, ForKind.UNROLL)


@register
@dataclass(frozen=True, slots=True)
class Vectorize(Step):
    """Turn the loop's iterations into the lanes of vectors (done by ``finalize``).

    Rewrite::

        for i in 16: y[j, i] = x[i]   ->   vectorize i in 16: y[j, i] = x[i]

        which becomes                      y[j, ramp(0, 16)] = x[ramp(0, 16)]

    Legal when: the extent is a constant of at most 64, and no iteration touches what another one writes,
    apart from horizontal reductions ``x[j] = x[j] op f(i)``. What the body may contain is checked when the
    function is finalised.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "vectorize"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _check_extent(func, self.loop, "vectorize")
        loop = find_loop(func, self.loop)
        why = carried(loop, scope_of(func, loop), reductions=True)
        if why is not None:
            raise LegalityError(f"vectorize: {why}")
        return _set_kind(func, self.loop, ForKind.VECTORIZE)


@register
@dataclass(frozen=True, slots=True)
class Parallel(Step):
    """Run the loop's iterations on several threads.

    Rewrite::

        for i in N: S(i)   ->   parallel i in N: S(i)

    Legal when: no iteration touches what another one writes.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "parallel"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        loop = find_loop(func, self.loop)
        why = carried(loop, scope_of(func, loop))
        if why is not None:
            raise LegalityError(f"parallel: {why}")
        return _set_kind(func, self.loop, ForKind.PARALLEL)


@register
@dataclass(frozen=True, slots=True)
class Bind(Step):
    """Bind a loop to an axis of the hardware: blocks, threads or lanes of a GPU.

    Rewrite::

        for i in N: S(i)   ->   for i in N on thread_x: S(i)                                (axis=thread_x)

    A CPU runs loops over blocks on several threads, and loops over threads and lanes one after the other.

    Legal when: the loop is serial, no iteration touches what another one writes, and no loop around it or
    inside of it is bound to the same axis.
    """

    loop: str
    axis: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "bind"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        kind = AXES.get(self.axis)
        if kind is None:
            raise LegalityError(f"bind: got axis {self.axis!r}; expected one of {', '.join(AXES)}")
        loop = find_loop(func, self.loop)
        if loop.kind is not ForKind.SERIAL:
            raise LegalityError(f"bind: loop {self.loop} is {loop.kind.value}; expected a serial loop")
        near = [*path_to(func.body, loop), *walk_stmts(loop.body)]
        same = [s.var.name for s in near if isinstance(s, For) and s.kind is kind]
        if same:
            raise LegalityError(f"bind: {self.axis} is taken by loop {same[0]}; expected another axis")
        why = carried(loop, scope_of(func, loop))
        if why is not None:
            raise LegalityError(f"bind: {why}")
        return _set_kind(func, self.loop, kind)


@register
@dataclass(frozen=True, slots=True)
class Prefetch(Step):
    """Ask for what a loop will read some iterations later, so that it waits less for memory.

    Rewrite::

        for k in K: S(w[j, k])   ->   for k in K with prefetch_w=8: S(w[j, k])          (buffer=w, distance=8)

        which becomes                 for k in K: prefetch(w[j, k + 8]); S(w[j, k])

    one prefetch per cache line that the iteration reads (done by ``finalize``, once there are vectors; the
    loop of a matrix unit keeps the note). The line comes into the level-2 cache, or with ``level=1`` (note
    ``prefetch1_w``) into that of level 1.

    Where only loops inside of it read the buffer, they ask for what they will read ``distance`` iterations
    of this loop later. If one of them (over rows) reads the same again, its first two iterations ask for
    half each; if it has but one, nobody asks.

    Legal when: the loop is serial, unrolled or parallel and reads the buffer, which lies in memory; the
    distance is positive, the level 1 or 2. That it can tell what will be read is checked when the function
    is finalised.
    """

    loop: str
    buffer: str
    distance: int
    level: int = 2

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "prefetch"

    def apply(self, func: Func) -> Func:
        """Note it on the loop."""
        loop = find_loop(func, self.loop)
        if loop.kind not in (ForKind.SERIAL, ForKind.UNROLL, ForKind.PARALLEL):
            kind = loop.kind.value
            raise LegalityError(
                f"prefetch: loop {self.loop} is {kind}; expected a serial, unrolled or parallel loop"
            )
        read = {e.buffer.name: e.buffer for e in walk(loop.body) if isinstance(e, Load)}
        if self.buffer not in read or read[self.buffer].space is MemSpace.REGISTER:
            known = ", ".join(sorted(name for name, x in read.items() if x.space is not MemSpace.REGISTER))
            raise LegalityError(
                f"prefetch: got buffer {self.buffer!r}; loop {self.loop} reads {known or 'none'}"
            )
        if self.distance < 1:
            raise LegalityError(f"prefetch: got a distance of {self.distance}; expected 1 or more")
        if self.level not in PREFETCH:
            raise LegalityError(f"prefetch: got level {self.level} of the cache; expected 1 or 2")
        notes = {**dict(loop.notes), PREFETCH[self.level] + self.buffer: self.distance}
        return replace_stmt(func, loop, replace(loop, notes=tuple(notes.items())))


@register
@dataclass(frozen=True, slots=True)
class Annotate(Step):
    """Note a key with a value on a loop or block; a note with the same key is replaced.

    Rewrite::

        parallel i in N: S(i)   ->   parallel i in N with grain=8: S(i)         (name=i, key=grain, value=8)

    Notes are printed, parsed and kept: by ``split`` on the outer loop, by ``fuse`` on the fused one, by every
    other step where they are. They mean nothing but for ``grain`` of a parallel loop (how many iterations a
    thread takes at a time), ``even`` of a parallel loop (n: threads begin with equal shares where no loop of
    variable extent inside of it runs more than n times) and those of ``prefetch`` and ``matrix_unit``.

    Legal when: exactly one loop or block has the name; the key is an identifier; the value is an integer or
    text of letters, digits and ``_ . : / + -``, that is no integer; grain is a positive integer of a loop,
    even is 0 or a positive integer of a loop.
    """

    name: str
    key: str
    value: int | str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "annotate"

    def apply(self, func: Func) -> Func:
        """Add the note."""
        found = [s for s in walk_stmts(func) if _is_called(s, self.name)]
        if len(found) != 1:
            raise LegalityError(
                f"annotate: {self.name!r} names {len(found)} loops and blocks; expected exactly one"
            )
        (stmt,) = found
        assert isinstance(stmt, For | Block)
        self._check_note(stmt)
        notes = tuple({**dict(stmt.notes), self.key: self.value}.items())
        return replace_stmt(func, stmt, replace(stmt, notes=notes))

    def _check_note(self, stmt: For | Block) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key):
            raise LegalityError(f"annotate: got key {self.key!r}; expected an identifier")
        value = self.value
        if isinstance(value, str) and (
            not re.fullmatch(r"[\w.:/+-]+", value) or re.fullmatch(r"[+-]?\d+", value)
        ):
            raise LegalityError(
                f"annotate: got value {value!r}; expected an integer, or letters, digits and _ . : / + -"
            )
        if self.key == GRAIN and not (isinstance(stmt, For) and isinstance(value, int) and value >= 1):
            raise LegalityError(f"annotate: got {GRAIN} {value!r}; expected a positive integer, on a loop")
        if self.key == EVEN and not (isinstance(stmt, For) and isinstance(value, int) and value >= 0):
            raise LegalityError(
                f"annotate: got {EVEN} {value!r}; expected 0 or a positive integer, on a loop"
            )


def _is_called(stmt: Stmt, name: str) -> bool:
    match stmt:
        case For():
            return stmt.var.name == name
        case Block():
            return stmt.name == name
        case _:
            return False
