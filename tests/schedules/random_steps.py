"""Random schedule steps: all that a function has names for, legal or not, and traces of the legal ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product
from random import Random

from hypothesis import strategies as st

from strata.core.errors import LegalityError
from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.nodes import Alloc, Block, For, Func, Seq
from strata.loop.rewrite import buffers_read, walk_stmts
from strata.schedule import finalize
from strata.schedule.step import Step, Trace, loops_around
from strata.schedule.steps import (
    Annotate,
    Bind,
    CacheRead,
    CacheWrite,
    ComputeAt,
    ComputeInline,
    DecomposeReduction,
    Fuse,
    Merge,
    Pad,
    Parallel,
    Prefetch,
    Reorder,
    ReverseComputeAt,
    ReverseComputeInline,
    RFactor,
    SetScope,
    Split,
    Tile,
    Unroll,
    Vectorize,
)

SPACES = ("global", "local", "register")
NESTS = ("split", "split", "fuse", "merge", "reorder", "reorder", "tile", "pad")
MARKS = ("unroll", "vectorize", "vectorize", "parallel", "bind", "annotate", "prefetch")
PLACES = ("compute_at", "compute_at", "reverse_compute_at", "compute_inline", "reverse_compute_inline")
MEMORY = ("cache_read", "cache_write", "set_scope", "decompose_reduction", "rfactor")


def loops(func: Func) -> list[For]:
    return [s for s in walk_stmts(func) if isinstance(s, For)]


def names(func: Func) -> list[str]:
    return [x.var.name for x in loops(func)]


def blocks(func: Func) -> list[Block]:
    return [s for s in walk_stmts(func) if isinstance(s, Block)]


def nests(func: Func) -> list[list[str]]:
    """Names of perfectly nested loops, from each loop inwards."""
    out = []
    for loop in loops(func):
        chain = [loop.var.name]
        while isinstance(loop.body, For):
            loop = loop.body
            chain.append(loop.var.name)
        out.append(chain)
    return out


def _neighbours(func: Func) -> Iterator[tuple[str, str]]:
    """Two loops, one after the other."""
    for stmt in walk_stmts(func):
        for a, b in pairwise(stmt.stmts if isinstance(stmt, Seq) else ()):
            if isinstance(a, For) and isinstance(b, For):
                yield a.var.name, b.var.name


def _pairs(func: Func) -> Iterator[tuple[str, str]]:
    """A block and a loop around another one."""
    for block, other in product(blocks(func), repeat=2):
        if block is not other:
            yield from ((block.name, x.var.name) for x in loops_around(func, other.name))


def _around(func: Func) -> Iterator[tuple[str, str]]:
    """A block and a loop around it."""
    for block in blocks(func):
        yield from ((block.name, x.var.name) for x in loops_around(func, block.name))


def _reads(func: Func) -> Iterator[tuple[str, str]]:
    for block in blocks(func):
        yield from ((block.name, x.name) for x in buffers_read(block.body))


CANDIDATES: dict[str, Callable[[Func], list[Step]]] = {
    "split": lambda f: [Split(x, k, t) for x in names(f) for k in (1, 2, 3, 4, 8) for t in ("guard", "peel")],
    "tile": lambda f: [
        Tile((a, b), k) for chain in nests(f) for a, b in pairwise(chain) for k in ((2, 2), (4, 3), (3, 8))
    ],
    "fuse": lambda f: [Fuse(a, b, f"{a}_{b}") for a, b in {tuple(c[:2]) for c in nests(f) if len(c) > 1}],
    "merge": lambda f: [Merge(a, b) for a, b in _neighbours(f)],
    "reorder": lambda f: [
        Reorder(tuple(order))
        for chain in nests(f)
        for order in (
            tuple(chain[::-1]),
            tuple(chain[1::-1]),
            (*chain[2:], *chain[:2]),
            (chain[-1], chain[0]),
        )
        if len(order) > 1 and len(set(order)) == len(order)
    ],
    "pad": lambda f: [Pad(x, k) for x in names(f) for k in (2, 4, 8)],
    "unroll": lambda f: [Unroll(x) for x in names(f)],
    "vectorize": lambda f: [Vectorize(x) for x in names(f)],
    "parallel": lambda f: [Parallel(x) for x in names(f)],
    "bind": lambda f: [Bind(x, a) for x in names(f) for a in ("block_x", "thread_y", "lane")],
    "annotate": lambda f: [
        Annotate(x, k, v)
        for x in [*names(f), *(s.name for s in blocks(f))]
        for k, v in (("why", "tests.1/2"), ("depth", -4), ("grain", 2))
    ],
    "prefetch": lambda f: [
        Prefetch(x.var.name, b.name, 2, level)
        for x in loops(f)
        for b in buffers_read(x.body)
        for level in (1, 2)
    ],
    "compute_at": lambda f: [ComputeAt(a, x, s) for a, x in _pairs(f) for s in SPACES[1:]],
    "reverse_compute_at": lambda f: [
        ReverseComputeAt(a, x, s) for a, x in _pairs(f) for s in ("keep", "local", "register")
    ],
    "compute_inline": lambda f: [ComputeInline(x.name) for x in blocks(f)],
    "reverse_compute_inline": lambda f: [ReverseComputeInline(x.name) for x in blocks(f)],
    "cache_read": lambda f: [CacheRead(a, x, s) for a, x in _reads(f) for s in SPACES],
    "cache_write": lambda f: [CacheWrite(x.name, s) for x in blocks(f) for s in SPACES],
    "set_scope": lambda f: [
        SetScope(s.buffer.name, to) for s in walk_stmts(f) if isinstance(s, Alloc) for to in SPACES
    ],
    "rfactor": lambda f: [RFactor(a, x) for a, x in _around(f)],
    "decompose_reduction": lambda f: [DecomposeReduction(a, x) for a, x in _around(f)],
}
# What makes a step possible that a naive function rarely has a place for.
BEFORE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NESTS, NESTS),
    **dict.fromkeys(MARKS, NESTS),
    "vectorize": ("split",),
    "tile": (),
    "merge": ("cache_write",),
    "compute_at": ("cache_read",),
    "reverse_compute_at": ("cache_write", "tile"),
    "rfactor": ("split", "reorder"),
    "decompose_reduction": ("reorder",),
    "set_scope": ("cache_read", "cache_write"),
    "reverse_compute_inline": ("cache_write",),
}


def attempt(draw: st.DrawFn, func: Func, kind: str, tries: int) -> tuple[Func, Step] | None:
    """The first legal one of some steps of a kind, and what it makes."""
    candidates, rng = CANDIDATES[kind](func), Random(draw(st.integers(0, 2**16)))
    for step in rng.sample(candidates, min(tries, len(candidates))):
        try:
            after = step.apply(func)
            if isinstance(step, Vectorize | Prefetch) and rng.random() < 0.75:
                finalize(after)  # mostly what can be made
        except LegalityError:
            continue
        check(after, LOOP_SCHEDULED)
        return after, step
    return None


def random_trace(draw: st.DrawFn, func: Func, attempts: int) -> tuple[Func, Trace]:
    """Apply random steps, those that are legal. Early ones rather move stages."""
    steps: list[Step] = []
    eager = draw(st.integers(0, 3))
    for number in range(attempts):
        early = (*PLACES, *MEMORY, "tile")
        kinds = early if number < eager else (*NESTS, *NESTS, *MARKS, *MARKS, *PLACES, *MEMORY)
        done = attempt(draw, func, draw(st.sampled_from(kinds)), 2)
        if done is not None:
            func = done[0]
            steps.append(done[1])
    return func, tuple(steps)


def targeted_trace(draw: st.DrawFn, func: Func, kind: str) -> tuple[Func, Trace]:
    """A step of ``kind`` if one is found, after some that make it possible, before some others."""
    steps: list[Step] = []
    before = [k for k in BEFORE.get(kind, ()) if draw(st.booleans())]
    after = draw(st.lists(st.sampled_from((*NESTS, *MARKS)), max_size=2))
    for name, tries in [*((k, 3) for k in before), (kind, 60), *((k, 2) for k in after)]:
        done = attempt(draw, func, name, tries)
        if done is not None:
            func = done[0]
            steps.append(done[1])
    return func, tuple(steps)
