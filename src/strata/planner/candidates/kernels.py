"""Candidates of people: kernels written in Python, and functions of this process.

A :class:`UserKernel` says that an implementation computes an op. Whether it fits a node is decided here,
from types alone:

* its parameters unify with the node's operands and result: dtypes and constants are equal, each of its
  symbolic dims stands for one size. Where a dim of the kernel has a smaller range than the size that it
  stands for, the kernel is a candidate for that range, and the choice is made at run time;
* the op's type rule, applied to the *kernel's own* parameters with the attributes of the node, gives the
  kernel's output. That tells ``y[n, m] = x[n, k] w[m, k]`` from ``x[n, k] w[k, m]``: only one of them is a
  ``matmul`` with ``transpose_b``, even where the node's matrices are square;
* attributes that no shape shows: floating-point ones (the ``eps`` of a norm) have to be named with
  ``attrs``. Of the others, ``attrs`` names those for which the kernel was written; those that it leaves open
  are checked by running it (:mod:`.verify`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from strata.core.dims import Dim, DimExpr, SymDim, bounds, substitute_dims
from strata.core.errors import ShapeError, UserError
from strata.graph.nodes import Node
from strata.graph.opdef import OPS
from strata.graph.types import TensorType
from strata.loop import build as b
from strata.loop.nests import with_blocks
from strata.loop.nodes import Alloc, Block, Buffer, For, Func, Let, Stmt, Var
from strata.loop.rewrite import map_stmt, refresh, replace_buffers, substitute, walk_stmts
from strata.loop.specialize import specialize
from strata.loop.text import print_func
from strata.lower import Emit
from strata.planner.loop_cost import issue_time_s
from strata.planner.options import PlanOptions
from strata.planner.types import Estimate, Origin
from strata.runtime.records import DimRange
from strata.schedule import finalize, propose
from strata.target import Target

from .base import Offer, Task
from .replaced import replaced_offers

PREFIX = "user"  # candidates are called user.<name>
SAMPLE_SIZE = 512  # of symbolic dims, where schedules are compared
_log = logging.getLogger("strata.planner")

Ranges = Mapping[str, tuple[int, int]]
When = Ranges | Callable[[Node], bool]
ExternOf = Callable[[Node], str]  # name of the extern that computes a node


@runtime_checkable
class LoopKernel(Protocol):
    """What ``compiler.Kernel`` is here: a loop function, scheduled or not."""

    @property
    def func(self) -> Func:
        """The function, scheduled if it was."""
        ...

    @property
    def is_scheduled(self) -> bool:
        """Whether a person has scheduled it; if not, the rules may."""
        ...


@dataclass(frozen=True, slots=True)
class UserKernel:
    """An implementation of an op.

    Attributes:
        name: Its candidates are called ``user.<name>``.
        op: The op that it computes.
        implementation: A kernel, or what names the extern for a node.
        when: Nodes that it is for: a predicate, or ranges of dims: ``{"n": (1, 16)}``.
        check: Whether it is compared with the op's reference before its first use.
        attrs: Attributes of the op that it was written for.
        source: What was decorated; a decorator above finds it again.
    """

    name: str
    op: str
    implementation: LoopKernel | ExternOf
    when: When | None = None
    check: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)
    source: object = None

    @property
    def func(self) -> Func | None:
        """The loop function, if it is a kernel."""
        return self.implementation.func if isinstance(self.implementation, LoopKernel) else None


@dataclass(frozen=True, slots=True)
class Instance:
    """A user kernel for one node.

    Attributes:
        kernel: The kernel.
        node: The node.
        emit: What computes the node, on whole row-major buffers.
        when: Sizes for which it may be used (empty = all).
        open_attrs: Other attributes of the op with which the node would have the same type: only running the
            kernel shows which of them it computes.
    """

    kernel: UserKernel
    node: Node
    emit: Emit
    when: tuple[DimRange, ...]
    open_attrs: tuple[Mapping[str, Any], ...] = ()


# ---------------------------------------------------------------------------------------------- registry

_kernels: dict[str, UserKernel] = {}


def register(kernel: UserKernel) -> UserKernel:
    """Make a kernel a candidate; one of the same name is replaced (a notebook cell that runs again).

    Raises:
        UserError: no such op or attribute; ``when`` or the kernel's results do not make sense.
    """
    definition = OPS[kernel.op]
    where = f"candidate {kernel.name}"
    unknown = [a for a in kernel.attrs if a not in definition.attrs]
    if unknown:
        known = ", ".join(definition.attrs) or "none"
        raise UserError(f"{where}: op {kernel.op} has no attribute {unknown[0]!r}; it has: {known}")
    func = kernel.func
    if func is not None and func.num_outputs != 1:
        raise UserError(
            f"{where}: got a kernel with {func.num_outputs} outputs; expected 1, the result of the op"
        )
    _check_when(kernel, where)
    _kernels[kernel.name] = kernel
    return kernel


def _check_when(kernel: UserKernel, where: str) -> None:
    if not isinstance(kernel.when, Mapping):
        return
    for name, limits in kernel.when.items():
        if not isinstance(limits, tuple) or len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
            raise UserError(f"{where}: when: got {name}={limits!r}; expected (lowest, highest)")
        known = None if kernel.func is None else [d.name for d in kernel.func.dims]
        if known is not None and name not in known:
            raise UserError(
                f"{where}: when: the kernel has no dim {name!r}; it has: {', '.join(known) or 'none'}"
            )


def adopt(source: object, implementation: LoopKernel) -> None:
    """``source`` turned out to be a kernel: candidates that were made from it have this implementation."""
    for kernel in list(_kernels.values()):
        if kernel.source is source:
            register(replace(kernel, implementation=implementation))


def forget(name: str) -> None:
    """Take a kernel out of the candidates; a name that is not there is fine."""
    _kernels.pop(name, None)


def registered(op: str | None = None) -> tuple[UserKernel, ...]:
    """All user kernels, or those for one op, in the order of their registration."""
    return tuple(k for k in _kernels.values() if op is None or k.op == op)


def registry_text() -> str:
    """What the registered kernels compute and when they apply, for cache keys.

    A kernel is its loop IR. A predicate is its byte code; a function of this process is itself, so a program
    that uses one is never found again by another process.
    """
    lines = []
    for kernel in _kernels.values():
        what = print_func(kernel.func) if kernel.func is not None else f"function {id(kernel.source)}"
        code = getattr(kernel.when, "__code__", None)
        when = str(kernel.when) if code is None else f"{code.co_code.hex()} {code.co_consts}"
        lines.append(f"{kernel.name} {kernel.op} {when} {kernel.check} {dict(kernel.attrs)}\n{what}")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------- unification


class _DoesNotFit(Exception):
    """Why a kernel is no candidate for a node."""


def instantiate(kernel: UserKernel, node: Node, target: Target) -> Instance | None:
    """The kernel for a node, or ``None`` where it does not fit; :func:`why_not` says why.

    Args:
        kernel: The kernel.
        node: A node of the graph, not a group.
        target: The machine that blocks without a schedule are scheduled for.
    """
    try:
        return _instantiate(kernel, node, target)
    except _DoesNotFit:
        return None


def why_not(kernel: UserKernel, node: Node, target: Target) -> str | None:
    """The reason why a kernel is no candidate for a node, or ``None`` where it is one."""
    try:
        _instantiate(kernel, node, target)
    except _DoesNotFit as reason:
        return f"{PREFIX}.{kernel.name}: {reason}"
    return None


def _instantiate(kernel: UserKernel, node: Node, target: Target) -> Instance:
    if node.op != kernel.op:
        raise _DoesNotFit(f"it computes {kernel.op}, the node is {node.op}")
    if not all(isinstance(x.type, TensorType) for x in (node, *node.inputs)):
        raise _DoesNotFit("the node has an operand that is no tensor")
    for name, wanted in kernel.attrs.items():
        if node.attrs[name] != wanted:
            raise _DoesNotFit(f"it is for {name}={wanted!r}, the node has {name}={node.attrs[name]!r}")
    if callable(kernel.when) and not kernel.when(node):
        raise _DoesNotFit("its condition (when) does not hold for the node")
    func = kernel.func
    if func is None:
        return _extern_instance(kernel, node)
    _check_attrs(kernel, node)
    _check_type_rule(func, node)
    dims = _unify(func, node)
    when = _ranges(func, dims, kernel.when if isinstance(kernel.when, Mapping) else {})
    lowered = _lowered(kernel, dims, target)
    return Instance(kernel, node, _emit(lowered), when, tuple(_other_attrs(kernel, func, node)))


def _extern_instance(kernel: UserKernel, node: Node) -> Instance:
    assert not isinstance(kernel.implementation, LoopKernel)
    name = kernel.implementation(node)
    ranges = kernel.when.items() if isinstance(kernel.when, Mapping) else ()
    known = {d.name: d for x in (node, *node.inputs) for d in x.tensor.shape if isinstance(d, SymDim)}
    when: list[DimRange] = []
    for dim, (lo, hi) in ranges:
        if dim not in known:
            raise _DoesNotFit(
                f"when speaks of {dim}; the dims of the node are {', '.join(known) or 'constants'}"
            )
        when.append(DimRange(dim, max(lo, known[dim].lo), min(hi, known[dim].hi)))
    if any(r.lo > r.hi for r in when):
        raise _DoesNotFit("its range (when) is outside of the node's")
    return Instance(kernel, node, lambda operands, result: b.call(name, *operands, result), tuple(when))


def _check_attrs(kernel: UserKernel, node: Node) -> None:
    """Constants of the computation cannot be seen from outside: the candidate has to say them."""
    for name, value in node.attrs.items():
        if isinstance(value, float) and name not in kernel.attrs:
            raise _DoesNotFit(
                f"it does not say for which {name} it computes {node.op}; declare it with "
                f"attrs={{{name!r}: {value!r}}}"
            )


def _check_type_rule(func: Func, node: Node) -> None:
    *inputs, output = (TensorType(p.shape, p.dtype) for p in func.params)
    if len(inputs) != len(node.inputs):
        raise _DoesNotFit(f"it takes {len(inputs)} operands, the node has {len(node.inputs)}")
    attrs = ", ".join(f"{k}={v}" for k, v in node.attrs.items())
    try:
        result = node.opdef.infer(tuple(inputs), node.attrs)
    except ShapeError as error:
        raise _DoesNotFit(f"its parameters are not those of {node.op} ({attrs}): {error}") from None
    if result != output:
        raise _DoesNotFit(f"it gives {output}; {node.op} ({attrs}) of its operands gives {result}")


def _unify(func: Func, node: Node) -> dict[str, Dim]:
    """What the kernel's dims stand for."""
    alone = {d.name for p in func.params for d in p.shape if isinstance(d, SymDim)}
    for dim in func.dims:
        if dim.name not in alone:
            raise _DoesNotFit(f"{dim} occurs in sums and products only; no size says what it is")
    types = [*(x.tensor for x in node.inputs), node.tensor]
    dims: dict[str, Dim] = {}
    for param, type_ in zip(func.params, types, strict=True):
        got = TensorType(param.shape, param.dtype)
        if param.dtype != type_.dtype or len(param.shape) != type_.rank:
            raise _DoesNotFit(f"{param.name} is {got}, the node has {type_}")
        for have, want in zip(param.shape, type_.shape, strict=True):
            if isinstance(have, SymDim) and dims.setdefault(have.name, want) != want:
                raise _DoesNotFit(f"{have} would be {dims[have.name]} and {want}")
    for param, type_ in zip(func.params, types, strict=True):
        for axis, (have, want) in enumerate(zip(param.shape, type_.shape, strict=True)):
            if substitute_dims(have, dims) != want:
                raise _DoesNotFit(f"dim {axis} of {param.name} is {have}, that of the node is {want}")
    return dims


def _ranges(func: Func, dims: Mapping[str, Dim], limits: Ranges) -> tuple[DimRange, ...]:
    """The sizes for which the kernel may be used: where its dims have narrower ranges than the node's."""
    out: list[DimRange] = []
    for dim in func.dims:
        value = dims[dim.name]
        lo, hi = limits.get(dim.name, (dim.lo, dim.hi))
        lo, hi = max(lo, dim.lo), min(hi, dim.hi)
        least, most = bounds(value)
        if dim.multiple_of > 1 and not _is_multiple(value, dim.multiple_of):
            raise _DoesNotFit(f"{dim} is a multiple of {dim.multiple_of}, the node's {value} need not be one")
        if least >= lo and most <= hi:
            continue
        if most < lo or least > hi or not isinstance(value, SymDim):
            raise _DoesNotFit(f"{dim} is in {lo}..{hi}, the node's is {value} in {least}..{most}")
        out.append(DimRange(value.name, max(lo, least), min(hi, most)))
    return tuple(out)


def _is_multiple(value: Dim, of: int) -> bool:
    match value:
        case int():
            return value % of == 0
        case SymDim():
            return value.multiple_of % of == 0
        case DimExpr():
            return all(
                coefficient % of == 0 or any(s.multiple_of % of == 0 for s in symbols)
                for coefficient, symbols in value.terms
            )


def _other_attrs(kernel: UserKernel, func: Func, node: Node) -> Iterable[Mapping[str, Any]]:
    """Flags of the op that could be the other way round without any difference in types."""
    inputs = tuple(TensorType(p.shape, p.dtype) for p in func.params[:-1])
    for name, value in node.attrs.items():
        if not isinstance(value, bool) or name in kernel.attrs:
            continue
        other = {**node.attrs, name: not value}
        try:
            if node.opdef.infer(inputs, other) == node.opdef.infer(inputs, node.attrs):
                yield other
        except ShapeError:
            continue


# ------------------------------------------------------------------------------------------------ emission


def _lowered(kernel: UserKernel, dims: Mapping[str, Dim], target: Target) -> Func:
    """The kernel for the node's sizes, finalised; blocks without a schedule are scheduled by the rules."""
    assert isinstance(kernel.implementation, LoopKernel)
    func = specialize(kernel.implementation.func, dims)
    if kernel.implementation.is_scheduled:
        return finalize(func)
    return best_schedule(func, target)


def best_schedule(func: Func, target: Target) -> Func:
    """The cheapest of the schedules that the rules propose, finalised; other loops stay as they are."""
    func = with_blocks(func)
    if not any(isinstance(s, Block) for s in walk_stmts(func)):
        return finalize(func)
    env = {d.name: min(d.hi, SAMPLE_SIZE) for d in func.dims}
    return min((p.func for p in propose(func, target)), key=lambda f: issue_time_s(f, env, target))


def _emit(func: Func) -> Emit:
    def emit(operands: tuple[Buffer, ...], result: Buffer) -> Stmt:
        body = _renamed(refresh(func.body), result.name)
        return replace_buffers(body, dict(zip(func.params, (*operands, result), strict=True)))

    return emit


def _renamed(body: Stmt, prefix: str) -> Stmt:
    """``body`` with a prefix on every name that it binds: names of loops are unique in a function."""
    variables: dict[Var, Var] = {}
    buffers: dict[Buffer, Buffer] = {}

    def change(stmt: Stmt) -> Stmt:
        match stmt:
            case For() | Let():
                var = stmt.var
                variables[var] = Var(f"{prefix}_{var.name}", var.dtype, var.lanes)
                return replace(stmt, var=variables[var])
            case Alloc():
                old = stmt.buffer
                buffers[old] = Buffer(f"{prefix}_{old.name}", old.shape, old.dtype, old.space)
        return stmt

    changed = map_stmt(body, stmt_fn=change)
    return replace_buffers(substitute(changed, variables), buffers)


# -------------------------------------------------------------------------------------------------- source


def kernel_offers(task: Task, options: PlanOptions) -> Iterable[Offer]:
    """Candidates of a task in which user kernels compute some of its ops.

    A kernel that fails its check is left out, with a warning in the log; where a pin or a preference asks
    for it, that is an error.

    Raises:
        UserError: a kernel that is asked for computes something else than its op.
    """
    for kernel in registered():
        instances = []
        for node in task.body.nodes:
            found = instantiate(kernel, node, task.target) if node.op == kernel.op else None
            if found is not None and _is_checked(found, options):
                instances.append(found)
        if not instances:
            continue
        when = _common(i.when for i in instances)
        if when is not None:
            name = f"{PREFIX}.{kernel.name}"
            emits = [(i.node, i.emit) for i in instances]
            cost = None if kernel.func is None else _nothing_more
            yield from replaced_offers(task, name, Origin.KERNEL, emits, cost, when)


def _nothing_more(size: int) -> Estimate:
    """The loops of a kernel are part of the group's, which are modelled as a whole."""
    return Estimate(0.0, 0.0, 0.0, 0.0, "roofline")


def _is_checked(instance: Instance, options: PlanOptions) -> bool:
    from .verify import verify_kernel

    kernel = instance.kernel
    if not (kernel.check and options.verify_kernels):
        return True
    try:
        return verify_kernel(instance)
    except UserError as error:
        if options.wants(PREFIX) or options.wants(f"{PREFIX}.{kernel.name}"):
            raise
        _log.warning("%s; it is left out", error)
        return False


def _common(conditions: Iterable[tuple[DimRange, ...]]) -> tuple[DimRange, ...] | None:
    """The sizes for which all conditions hold; ``None`` for none."""
    ranges: dict[str, DimRange] = {}
    for condition in conditions:
        for r in condition:
            old = ranges.get(r.dim, r)
            ranges[r.dim] = DimRange(r.dim, max(r.lo, old.lo), min(r.hi, old.hi))
    return None if any(r.lo > r.hi for r in ranges.values()) else tuple(ranges.values())
