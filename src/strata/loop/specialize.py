"""A loop function for other sizes: its symbolic dims replaced by constants or by other dims."""

from __future__ import annotations

from collections.abc import Mapping

from strata.core.dims import Dim, DimExpr, Shape, SymDim

from .nodes import Alloc, Buffer, Expr, Func, Size, Stmt, size
from .rewrite import map_stmt, replace_buffers, walk_stmts


def substitute_dim(dim: Dim, dims: Mapping[str, Dim]) -> Dim:
    """``dim`` with symbols replaced by name; those that are not in ``dims`` stay."""
    match dim:
        case int():
            return dim
        case SymDim():
            return dims.get(dim.name, dim)
        case DimExpr():
            total: Dim = 0
            for coefficient, symbols in dim.terms:
                term: Dim = coefficient
                for symbol in symbols:
                    term = term * dims.get(symbol.name, symbol)
                total = total + term
            return total


def specialize(func: Func, dims: Mapping[str, Dim]) -> Func:
    """``func`` with its symbolic dims replaced by name; its buffers are new ones."""

    def shape(old: Shape) -> Shape:
        return tuple(substitute_dim(d, dims) for d in old)

    allocated = [s.buffer for s in walk_stmts(func) if isinstance(s, Alloc)]
    mapping = {
        buffer: Buffer(buffer.name, shape(buffer.shape), buffer.dtype, buffer.space)
        for buffer in (*func.params, *allocated)
    }

    def on_expr(expr: Expr) -> Expr:
        return size(substitute_dim(expr.dim, dims)) if isinstance(expr, Size) else expr

    body: Stmt = replace_buffers(map_stmt(func.body, on_expr), mapping)
    return Func(func.name, tuple(mapping[p] for p in func.params), body, func.num_outputs)
