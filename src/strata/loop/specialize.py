"""A loop function for other sizes: its symbolic dims replaced by constants or by other dims."""

from __future__ import annotations

from collections.abc import Mapping

from strata.core.dims import Dim, Shape, substitute_dims

from .nodes import Alloc, Buffer, Expr, Func, Size, Stmt, size
from .rewrite import map_stmt, replace_buffers, walk_stmts


def specialize(func: Func, dims: Mapping[str, Dim]) -> Func:
    """``func`` with its symbolic dims replaced by name; its buffers are new ones."""

    def shape(old: Shape) -> Shape:
        return tuple(substitute_dims(d, dims) for d in old)

    allocated = [s.buffer for s in walk_stmts(func) if isinstance(s, Alloc)]
    mapping = {
        buffer: Buffer(buffer.name, shape(buffer.shape), buffer.dtype, buffer.space)
        for buffer in (*func.params, *allocated)
    }

    def on_expr(expr: Expr) -> Expr:
        return size(substitute_dims(expr.dim, dims)) if isinstance(expr, Size) else expr

    body: Stmt = replace_buffers(map_stmt(func.body, on_expr), mapping)
    return Func(func.name, tuple(mapping[p] for p in func.params), body, func.num_outputs)
