"""Global intermediates of kernels: memory of the step, handed in by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strata.core.dims import product
from strata.core.errors import VerifyError
from strata.loop.nodes import Alloc, Buffer, For, Func, MemSpace, Stmt, seq
from strata.loop.rewrite import map_stmt, walk_stmts
from strata.lower import Binding
from strata.passes.memory_plan import upper_bound

WORKSPACE = -2  # Binding.operand of an intermediate


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A function whose global intermediates became parameters (between inputs and outputs)."""

    func: Func
    buffers: tuple[Buffer, ...]


def hoist_workspace(func: Func) -> Hoisted:
    """Turn every global ``alloc`` into a parameter.

    Raises:
        VerifyError: one is inside a loop, whose iterations would share it.
    """
    found: list[Buffer] = []
    for loop in walk_stmts(func):
        for inner in walk_stmts(loop) if isinstance(loop, For) else ():
            if isinstance(inner, Alloc) and inner.buffer.space is MemSpace.GLOBAL:
                raise VerifyError(f"{func.name}: global buffer {inner.buffer.name} is allocated in a loop")

    def change(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Alloc) and stmt.buffer.space is MemSpace.GLOBAL:
            found.append(stmt.buffer)
            return stmt.body
        return stmt

    body = seq(map_stmt(func.body, stmt_fn=change))
    inputs, outputs = split_params(func)
    hoisted = Func(func.name, (*inputs, *found, *outputs), body, func.num_outputs + len(found))
    return Hoisted(hoisted, tuple(found))


def split_params(func: Func) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """Inputs and outputs of a function."""
    count = len(func.params) - func.num_outputs
    return func.params[:count], func.params[count:]


def share_workspace(hoisted: Sequence[Hoisted], num_outputs: int) -> tuple[list[Func], tuple[Buffer, ...]]:
    """Give all candidates of a stack the same parameters: each takes the intermediates of all of them.

    Intermediates of one shape and dtype are one parameter: only one of the candidates runs.

    Args:
        hoisted: The candidates.
        num_outputs: How many results each has, workspace aside.

    Returns:
        The functions, and the intermediates (of whatever candidate) in the order of the parameters.
    """
    slots: list[Buffer] = []
    for each in hoisted:
        free = list(slots)
        for buffer in each.buffers:
            found = next((s for s in free if _kind(s) == _kind(buffer)), None)
            if found is None:
                slots.append(buffer)
            else:
                free.remove(found)
    return [_with_slots(each, slots, num_outputs) for each in hoisted], tuple(slots)


def _with_slots(hoisted: Hoisted, slots: Sequence[Buffer], num_outputs: int) -> Func:
    """The function with a parameter for every slot; its own buffers take the first slots that fit."""
    func, left = hoisted.func, list(hoisted.buffers)
    if len(left) == len(slots):
        return func
    taken: list[Buffer] = []
    for k, slot in enumerate(slots):
        own = next((b for b in left if _kind(b) == _kind(slot)), None)
        if own is None:
            taken.append(Buffer(f"unused{k}", slot.shape, slot.dtype))
        else:
            left.remove(own)
            taken.append(own)
    inputs, _ = split_params(func)
    outputs = func.params[len(func.params) - num_outputs :]
    return Func(func.name, (*inputs, *taken, *outputs), func.body, num_outputs + len(taken))


def _kind(buffer: Buffer) -> tuple[object, ...]:
    return buffer.shape, buffer.dtype


def with_workspace(bindings: tuple[Binding, ...], num_outputs: int, count: int) -> tuple[Binding, ...]:
    """Bindings with ``count`` workspace parameters between inputs and outputs."""
    split = len(bindings) - num_outputs
    return (*bindings[:split], *[Binding(WORKSPACE)] * count, *bindings[split:])


def upper_bytes(buffer: Buffer, limits: Mapping[str, int]) -> int:
    """Size of a buffer at the upper bounds of its dims, or at ``limits`` by name where they are tighter."""
    return buffer.dtype.itemsize_bytes * upper_bound(product(buffer.shape), limits)
