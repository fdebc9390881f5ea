"""Schedules written by people: a function, and the steps that have been applied to it so far.

::

    s = strata.Schedule(func)
    s.split("i", 4).split("j", 16).reorder("io", "jo", "ii", "ji")
    s.vectorize("ji").parallel("io")
    kernel = s.finalize()

Loops and blocks go by their names, which ``print(s)`` shows and ``s.loops("block")`` lists; a step names what
it makes after what it takes: ``split("i", 4)`` leaves ``io`` and ``ii``. Every method is one or more steps of
:mod:`.steps`, so what a person did is a trace that prints, is stored and is replayed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from strata.core.errors import LegalityError, UserError
from strata.loop.nodes import AxisKind, Block, For, Func
from strata.loop.rewrite import find_block, free_vars, walk_stmts
from strata.loop.text import LOOP_WORDS, print_func

from .finalize import finalize
from .step import Step, Trace, loops_around, parse_trace, trace_text
from .steps import (
    Annotate,
    Bind,
    CacheRead,
    CacheWrite,
    ComputeAt,
    ComputeInline,
    DecomposeReduction,
    Fuse,
    MatrixUnit,
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
    StartAtZero,
    Tensorize,
    Tile,
    Trim,
    Unroll,
    Vectorize,
    Widen,
)

_WIDTH = 100  # of the lines of an excerpt
_SHOWN_BELOW = 3  # lines of the function that an error shows below a loop or block that it names


@runtime_checkable
class HasFunc(Protocol):
    """Something that has a loop function: a kernel, a candidate, another schedule."""

    @property
    def func(self) -> Func:
        """The function."""
        ...


class Schedule:
    """A loop function and the steps applied to it.

    Methods return the schedule itself, so that steps chain. A step that is not legal raises
    ``LegalityError``, shows the loops around the place, and leaves the schedule as it was.

    Args:
        func: What to schedule: a naive loop function, or anything with one in ``.func``.

    Raises:
        UserError: ``func`` is neither.
    """

    def __init__(self, func: Func | HasFunc) -> None:
        found = func if isinstance(func, Func) else getattr(func, "func", None)
        if not isinstance(found, Func):
            raise UserError(
                f"Schedule: got {type(func).__name__}; expected a loop function or something that has one "
                "in .func, such as a kernel"
            )
        self._original = found
        self._func = found
        self._steps: list[Step] = []

    @classmethod
    def replay(cls, func: Func | HasFunc, trace: str | Trace) -> Schedule:
        """A schedule of ``func`` by the steps of a trace or of its text.

        Raises:
            LegalityError: a step does not apply.
            ParseError: malformed text.
            UserError: unknown step.
        """
        return cls(func).apply(*(parse_trace(trace) if isinstance(trace, str) else trace))

    # ------------------------------------------------------------------------------------------- reading

    @property
    def func(self) -> Func:
        """The function after the steps so far."""
        return self._func

    @property
    def trace(self) -> Trace:
        """The steps so far."""
        return tuple(self._steps)

    @property
    def trace_text(self) -> str:
        """Text of the steps so far; :meth:`replay` reads it."""
        return trace_text(self.trace)

    @property
    def text(self) -> str:
        """Loop-IR text of the function after the steps so far."""
        return print_func(self._func)

    def __str__(self) -> str:
        """The steps as comments, then the function; the whole text parses as a function."""
        return "".join(f"# {step}\n" for step in self._steps) + self.text

    def __repr__(self) -> str:
        return f"<Schedule of {self._func.name}: {self.trace_text or 'no steps'}>"

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of all blocks, in order of execution."""
        return tuple(s.name for s in walk_stmts(self._func) if isinstance(s, Block))

    def loops(self, block: str | None = None) -> tuple[str, ...]:
        """Names of the loops around ``block``, outermost first; of all loops without one.

        Raises:
            LegalityError: there is no such block.
        """
        if block is not None:
            return tuple(x.var.name for x in loops_around(self._func, block))
        return tuple(s.var.name for s in walk_stmts(self._func) if isinstance(s, For))

    def copy(self) -> Schedule:
        """Another schedule with the same steps, to try something on."""
        other = Schedule(self._original)
        other._func, other._steps = self._func, list(self._steps)
        return other

    def finalize(self) -> Func:
        """The function in the form that the code generator takes: no blocks, vector loops as vectors.

        Raises:
            LegalityError: a vector loop has no vector form, or a register buffer is indexed by a loop that
                is not unrolled.
        """
        return finalize(self._func)

    # ------------------------------------------------------------------------------------------- applying

    def apply(self, *steps: Step) -> Schedule:
        """Apply steps, all or none.

        Raises:
            LegalityError: a step does not apply.
        """
        func = self._func
        for number, step in enumerate(steps):
            try:
                func = step.apply(func)
            except LegalityError as error:
                position = len(self._steps) + number + 1
                raise LegalityError(f"{error}\n{_where(func, step, position)}") from None
        self._func = func
        self._steps.extend(steps)
        return self

    def split(self, loop: str, factor: int, tail: str = "guard") -> Schedule:
        """Split ``loop`` into ``<loop>o`` and, of ``factor`` iterations, ``<loop>i``.

        Args:
            loop: Name of the loop.
            factor: Iterations of the inner loop.
            tail: What happens to iterations that are left over: ``guard`` them, ``peel`` them off into a loop
                ``<loop>t``, or ``exact`` (there must be none).
        """
        return self.apply(Split(loop, factor, tail))

    def tile(self, **factors: int) -> Schedule:
        """Split loops of a nest, outer parts outside: ``tile(i=4, j=64)`` leaves ``io, jo, ii, ji``."""
        return self.apply(Tile(tuple(factors), tuple(factors.values())))

    def fuse(self, *loops: str, name: str | None = None) -> Schedule:
        """Fuse perfectly nested loops, outermost first, into one called ``name`` (default ``a_b`` of a, b).

        Raises:
            UserError: fewer than two loops.
        """
        if len(loops) < 2:
            raise UserError(f"fuse: got {len(loops)} loops; expected at least 2, outermost first")
        steps: list[Step] = []
        current = loops[0]
        for number, inner in enumerate(loops[1:], 2):
            made = name if name is not None and number == len(loops) else f"{current}_{inner}"
            steps.append(Fuse(current, inner, made))
            current = made
        return self.apply(*steps)

    def merge(self, first: str, second: str) -> Schedule:
        """Let loop ``second``, which follows loop ``first``, do the work of both."""
        return self.apply(Merge(first, second))

    def reorder(self, *loops: str) -> Schedule:
        """Put loops of one nest into the given order, outermost first; others keep their places."""
        return self.apply(Reorder(loops))

    def pad(self, loop: str, multiple: int) -> Schedule:
        """Let ``loop`` run up to a multiple of ``multiple``, with guards."""
        return self.apply(Pad(loop, multiple))

    # --------------------------------------------------------------------------------- how loops are run

    def unroll(self, *loops: str) -> Schedule:
        """Expand loops of few iterations in place."""
        return self.apply(*(Unroll(loop) for loop in loops))

    def vectorize(self, *loops: str) -> Schedule:
        """Turn loops of few iterations into the lanes of vectors."""
        return self.apply(*(Vectorize(loop) for loop in loops))

    def parallel(self, *loops: str) -> Schedule:
        """Run loops on several threads."""
        return self.apply(*(Parallel(loop) for loop in loops))

    def bind(self, loop: str, axis: str) -> Schedule:
        """Bind ``loop`` to a hardware axis: block_x, thread_x, lane, ..."""
        return self.apply(Bind(loop, axis))

    def prefetch(self, loop: str, buffer: str, distance: int, level: int = 2) -> Schedule:
        """In each iteration of ``loop``, ask for what the one ``distance`` later reads of ``buffer``."""
        return self.apply(Prefetch(loop, buffer, distance, level))

    def annotate(self, name: str, **notes: int | str) -> Schedule:
        """Note keys with values on the loop or block called ``name``."""
        return self.apply(*(Annotate(name, key, value) for key, value in notes.items()))

    # --------------------------------------------------------------------------------- stages and memory

    def compute_at(self, block: str, loop: str, space: str = "local") -> Schedule:
        """Compute the stage ``block`` inside ``loop`` of its consumer, into a private buffer."""
        return self.apply(ComputeAt(block, loop, space))

    def reverse_compute_at(self, block: str, loop: str, space: str = "keep") -> Schedule:
        """Compute the stage ``block`` inside ``loop`` of its producer.

        Args:
            block: The consumer.
            loop: Of the producer.
            space: ``local`` or ``register`` to put what is in between into a private buffer.
        """
        return self.apply(ReverseComputeAt(block, loop, space))

    def compute_inline(self, *blocks: str) -> Schedule:
        """Compute the elements of stages where they are read."""
        return self.apply(*(ComputeInline(block) for block in blocks))

    def reverse_compute_inline(self, *blocks: str) -> Schedule:
        """Apply elementwise stages to the elements of their producers as they are made."""
        return self.apply(*(ReverseComputeInline(block) for block in blocks))

    def cache_read(
        self, block: str, buffer: str, at: str | None = None, space: str | None = None
    ) -> Schedule:
        """Let ``block`` read a copy of ``buffer``, made by a block called ``<block>_<buffer>``.

        Args:
            block: The reader.
            buffer: Name of what it reads.
            at: Loop of the reader in which only the part that it reads is copied; default: a copy of all.
            space: ``global``, ``local`` or ``register``; default: local inside a loop, global outside.
        """
        if at is None:
            return self.apply(CacheRead(block, buffer, space or "global"))
        return self.apply(CacheRead(block, buffer), ComputeAt(f"{block}_{buffer}", at, space or "local"))

    def cache_write(self, block: str, space: str = "global") -> Schedule:
        """Let the stage ``block`` fill another buffer, which a block called ``<block>_<buffer>`` copies."""
        return self.apply(CacheWrite(block, space))

    def set_scope(self, buffer: str, space: str) -> Schedule:
        """Put an intermediate buffer into ``global``, ``local`` or ``register`` memory."""
        return self.apply(SetScope(buffer, space))

    def widen(self, buffer: str) -> Schedule:
        """Keep numbers of 16 bits in a private buffer as f32, which is what all that reads them makes."""
        return self.apply(Widen(buffer))

    # --------------------------------------------------------------------------------------- reductions

    def rfactor(self, block: str, loop: str) -> Schedule:
        """Reduce into partial results, one per iteration of ``loop``, which are combined in the end."""
        return self.apply(RFactor(block, loop))

    def decompose_reduction(self, block: str, loop: str | None = None) -> Schedule:
        """Give the start of a reduction a nest before ``loop`` (default: the outermost reducing one)."""
        return self.apply(DecomposeReduction(block, loop or self._first_reduction(block)))

    def start_at_zero(self, block: str) -> Schedule:
        """Let a sum of integers start at zero, and add its start where it is read."""
        return self.apply(StartAtZero(block))

    def trim(self, loop: str) -> Schedule:
        """Leave out the last iterations of a loop, those that make nothing that is read later."""
        return self.apply(Trim(loop))

    def tensorize(self, loop: str, intrinsic: str = "dot2_bf16") -> Schedule:
        """Replace the nest at ``loop`` by a hardware instruction."""
        return self.apply(Tensorize(loop, intrinsic))

    def matrix_unit(self, loop: str) -> Schedule:
        """Let the machine's matrix unit run a loop over products of tiles."""
        return self.apply(MatrixUnit(loop))

    def _first_reduction(self, block: str) -> str:
        axes = [a for a in find_block(self._func, block).axes if a.kind is AxisKind.REDUCTION]
        used = {v for a in axes for v in free_vars(a.value)}
        for loop in loops_around(self._func, block):
            if loop.var in used:
                return loop.var.name
        raise LegalityError(f"decompose_reduction: no loop around block {block} reduces; name the loop")


def _where(func: Func, step: Step, position: int) -> str:
    """The step, and the loops around the places that it names."""
    lines = [f"  step {position} of the schedule of {func.name}: {step}"]
    return "\n".join(lines + [f"    {line}" for line in _excerpt(func, _names(step))])


def _names(step: Step) -> Iterable[str]:
    """Every name in the options of a step."""
    for option in step.options():
        if isinstance(option, str):
            yield option
        elif isinstance(option, tuple):
            yield from (x for x in option if isinstance(x, str))


def _excerpt(func: Func, names: Iterable[str]) -> list[str]:
    """Lines of loops and blocks of these names with what is around them, marked with ``>``."""
    wanted = set(names)
    lines = print_func(func).rstrip("\n").split("\n")
    marked = [k for k, line in enumerate(lines) if _head_name(line) in wanted]
    shown: set[int] = set()
    for k in marked:
        indent = _indent(lines[k])
        shown |= set(range(k, min(k + 1 + _SHOWN_BELOW, len(lines))))
        for above in range(k - 1, -1, -1):
            if _indent(lines[above]) < indent and _head_name(lines[above]):
                indent = _indent(lines[above])
                shown.add(above)
    out: list[str] = []
    for k in sorted(shown):
        if out and k - 1 not in shown:
            out.append("  ...")
        line = lines[k] if len(lines[k]) <= _WIDTH else f"{lines[k][:_WIDTH]} ..."
        out.append(f"{'>' if k in marked else ' '} {line}")
    return out


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _head_name(line: str) -> str | None:
    """Name of the loop or block that starts on a line of a function's text."""
    words = line.split(maxsplit=2)
    if len(words) > 2 and words[0] in _HEADS:
        return words[1].strip('"')
    return None


_HEADS = frozenset({*LOOP_WORDS.values(), "block"})
