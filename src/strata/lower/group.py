"""Lower one fused group (or single node) of the graph to a naive loop function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from strata.core.dims import Dim
from strata.core.dtypes import f32
from strata.core.errors import UnsupportedError
from strata.graph.nodes import Function, Node
from strata.graph.types import CacheType, TensorType
from strata.loop.layout import Layout, stored_dtype, stored_shape
from strata.loop.nodes import Alloc, Buffer, Expr, Func, Load, Stmt, Var, seq
from strata.loop.rewrite import buffers_written, replace_buffers

from .context import LOWERINGS, OUTPUT_BLOCK, Access, Binding, Context, Index

Emit = Callable[[tuple[Buffer, ...], Buffer], Stmt]  # operands and result of a node -> what computes it


@dataclass(frozen=True, slots=True)
class Lowered:
    """A loop function and what each of its buffer parameters is bound to.

    Attributes:
        func: Naive (stage LOOP_NAIVE), except for ops that lower to a finished nest.
        bindings: One per parameter of ``func``.
    """

    func: Func
    bindings: tuple[Binding, ...]


def _token_count(body: Function) -> Dim:
    """Rows of the first tensor operand that is used together with a cache: the tokens of the pass."""
    for node in body.nodes:
        if any(isinstance(x.type, CacheType) for x in node.inputs):
            for operand in node.inputs:
                if isinstance(operand.type, TensorType):
                    return operand.type.shape[0]
    for node in body.nodes:
        if node.op == "cache_positions":
            return node.tensor.shape[0]
    return 1


def _bind_inputs(ctx: Context, body: Function, layouts: Mapping[int, Layout]) -> None:
    for number, node in enumerate(body.inputs):
        if isinstance(node.type, CacheType):
            ctx.caches[id(node)] = number
            continue
        layout = layouts.get(number)
        hint = str(node.attrs["name"])
        shape = stored_shape(node.tensor.shape, layout)
        buffer = Buffer(ctx.unique(hint), shape, stored_dtype(node.tensor.dtype))
        ctx.params.append((buffer, Binding(number)))
        ctx.operands[id(node)] = buffer, layout

        def access(i: Index, buffer: Buffer = buffer, layout: Layout | None = layout) -> Expr:
            return layout.load(buffer, *i) if layout is not None else Load(buffer, i)

        ctx.accesses[id(node)] = access


def _constant(ctx: Context, node: Node) -> Access:
    from strata.loop import build as b

    value = node.attrs["value"]
    if value.size != 1:
        raise UnsupportedError(
            f"const {node.name or node.type}: {value.size} elements reach lowering; expected 1; "
            "larger constants become params"
        )
    element = b.const(value.reshape(()).item(), node.tensor.dtype)
    return lambda i: element


def lower_group(
    name: str,
    body: Function,
    layouts: Mapping[int, Layout] | None = None,
    replace: Mapping[int, Emit] | None = None,
    *,
    has_matrix_unit: bool = False,
    block: int = 0,
    unpacks: bool = False,
) -> Lowered:
    """Lower ``body`` (one output) to a loop function called ``name``.

    Args:
        name: Name of the function.
        body: Graph function; its inputs are the operands of the group.
        layouts: Stored layout per input number, for 2-d inputs that are not row-major.
        replace: By ``id`` of a node of ``body``: what computes it instead of its lowering, on whole row-major
            buffers of its operands and its result.
        has_matrix_unit: Write attention of many rows, and products of bf16 matrices, for a matrix unit.
        block: Numbers of k that products of two matrices add up before others; 0 = all.
        unpacks: Make bytes of codes of 4 bits once for all rows.

    Raises:
        UnsupportedError: an op of the body has no lowering.
    """
    ctx = Context(
        _token_count(body), dict(layouts or {}), has_matrix_unit=has_matrix_unit, block=block, unpacks=unpacks
    )
    ctx.names.add(OUTPUT_BLOCK)
    _bind_inputs(ctx, body, ctx.layouts)
    (result,) = body.outputs
    if _is_cast_attention(result):
        ctx.stored[id(result.inputs[0])] = result.tensor.dtype
    inputs = {id(n) for n in body.inputs}
    for node in body.nodes:
        if id(node) in inputs:
            continue
        emit = replace.get(id(node)) if replace else None
        if emit is not None:
            ctx.accesses[id(node)] = _replaced(ctx, node, emit)
            continue
        if node.op == "const":
            ctx.accesses[id(node)] = _constant(ctx, node)
            continue
        rule = LOWERINGS.get(node.op)
        if rule is None:
            raise UnsupportedError(f"lower {node.name or node.op}: op {node.op!r} has no lowering")
        access = rule(ctx, node)
        if access is not None:
            ctx.accesses[id(node)] = access
        elif isinstance(node.type, CacheType):
            ctx.caches[id(node)] = ctx.caches[id(node.inputs[0])]
    if isinstance(result.type, TensorType):
        _store_result(ctx, result, replace)
    return _assemble(name, ctx)


def _is_cast_attention(node: Node) -> bool:
    """Attention computes in f32, and may as well store what a cast makes of that."""
    return node.op == "cast" and node.inputs[0].op == "paged_attention" and node.inputs[0].tensor.dtype is f32


def _replaced(ctx: Context, node: Node, emit: Emit) -> Access:
    """Compute a node by foreign code: operands that are no whole buffers are staged, and so is the result."""
    operands = tuple(_whole_buffer(ctx, operand) for operand in node.inputs)
    result = ctx.buffer(node.op + "_result", node.tensor.shape, node.tensor.dtype)
    ctx.stages.append(emit(operands, result))
    return lambda i: Load(result, i)


def _whole_buffer(ctx: Context, node: Node) -> Buffer:
    """A buffer with the value of ``node`` in row-major order."""
    access, shape = ctx.access(node), node.tensor.shape
    for buffer in (*ctx.allocs, *(p for p, _ in ctx.params)):
        if buffer.shape == shape and _is_plain(access, buffer):
            return buffer
    stored = ctx.stage(node.op + "_operand", shape, node.tensor.dtype, access)
    return next(b for b in ctx.allocs if _is_plain(stored, b))


def _is_plain(access: Access, buffer: Buffer) -> bool:
    """Whether the access is a load of ``buffer`` at the very index."""
    index = tuple(Var(f"i{k}") for k in range(len(buffer.shape)))
    return access(index) == Load(buffer, index)


def _store_result(ctx: Context, result: Node, replace: Mapping[int, Emit] | None) -> None:
    """Store into the output parameter: by its last stage if that makes the whole result, else by one more."""
    output = Buffer(ctx.unique("y"), result.tensor.shape, result.tensor.dtype)
    access = ctx.accesses[id(result)]
    ctx.params.append((output, Binding(-1)))
    whole = result.op in ("concat", "paged_attention") or _is_cast_attention(result)
    finished = whole or id(result) in (replace or {})
    if finished and ctx.allocs and ctx.allocs[-1].shape == output.shape:
        old = ctx.allocs.pop()
        ctx.stages[:] = [replace_buffers(s, {old: output}) for s in ctx.stages]
        return
    ctx.names.discard(OUTPUT_BLOCK)
    ctx.stage(OUTPUT_BLOCK, output.shape, output.dtype, access, lambda i: (output, i))


def _assemble(name: str, ctx: Context) -> Lowered:
    body: Stmt = seq(*ctx.stages)
    written = buffers_written(body)
    ordered = sorted(ctx.params, key=lambda p: p[0] in written)  # stable: inputs first, then outputs
    for buffer in reversed(ctx.allocs):
        body = Alloc(buffer, body)
    outputs = sum(1 for buffer, _ in ordered if buffer in written)
    func = Func(name, tuple(buffer for buffer, _ in ordered), body, outputs)
    return Lowered(func, tuple(binding for _, binding in ordered))
