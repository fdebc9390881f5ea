"""Lowering of ``tensor_expr``: its tree as expressions; a reduction is a stage over the axes it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import assert_never

from strata.core.dims import Dim, Shape, SymDim, product, shape_symbols
from strata.core.dtypes import DType, bool_, f32, i64
from strata.graph.nodes import Node
from strata.graph.ops import formula as f
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.nodes import Expr, Var, size

from .context import LOWERINGS, Access, Context, Index
from .elementwise import gelu, power, silu

_BINARY: dict[f.FormulaOp, Callable[[Expr, Expr], Expr]] = {
    f.FormulaOp.ADD: b.add,
    f.FormulaOp.SUB: b.sub,
    f.FormulaOp.MUL: b.mul,
    f.FormulaOp.DIV: b.div,
    f.FormulaOp.POW: power,
    f.FormulaOp.FLOORDIV: b.floordiv,
    f.FormulaOp.FLOORMOD: b.floormod,
    f.FormulaOp.MIN: b.minimum,
    f.FormulaOp.MAX: b.maximum,
    f.FormulaOp.LT: b.lt,
    f.FormulaOp.LE: b.le,
    f.FormulaOp.GT: b.gt,
    f.FormulaOp.GE: b.ge,
    f.FormulaOp.EQ: b.eq,
    f.FormulaOp.NE: b.ne,
    f.FormulaOp.AND: b.and_,
    f.FormulaOp.OR: b.or_,
}
_CALLS: dict[str, Callable[[Expr], Expr]] = {
    "exp": b.exp,
    "log": b.log,
    "sqrt": b.sqrt,
    "rsqrt": b.rsqrt,
    "tanh": b.tanh,
    "erf": b.erf,
    "sigmoid": b.sigmoid,
    "silu": silu,
    "gelu": lambda x: gelu(x, "none"),
    "relu": lambda x: b.maximum(x, b.const(0.0, f32)),
    "abs": b.abs_,
    "sin": b.sin,
    "cos": b.cos,
    "floor": b.floor,
}
_REDUCE: dict[f.ReduceKind, tuple[float, Callable[[Expr, Expr], Expr]]] = {
    f.ReduceKind.SUM: (0.0, b.add),
    f.ReduceKind.MAX: (-inf, b.maximum),
    f.ReduceKind.MIN: (inf, b.minimum),
}
_DTYPES: dict[f.FormulaKind, DType] = {
    f.FormulaKind.INT: i64,
    f.FormulaKind.FLOAT: f32,
    f.FormulaKind.BOOL: bool_,
}


@dataclass(frozen=True, slots=True)
class _Lowering:
    ctx: Context
    operands: tuple[Access, ...]
    shapes: tuple[Shape, ...]  # of the operands
    dims: Mapping[str, SymDim]  # by name, with their ranges
    extents: Mapping[str, Dim]  # of all axes in scope

    def convert(self, node: f.Formula, axes: Mapping[str, Expr], kind: f.FormulaKind) -> Expr:
        """Value of ``node`` as ``kind``."""
        return b.cast(_DTYPES[kind], self.value(node, axes))

    def value(self, node: f.Formula, axes: Mapping[str, Expr]) -> Expr:
        """Value of ``node`` at the axes' expressions."""
        match node:
            case f.Axis(name=name):
                return axes[name]
            case f.Size(dim=dim):
                return size(self.dim(dim))
            case f.Number(value=value):
                return b.const(value, _DTYPES[node.kind])
            case f.Input(number=number, indices=indices):
                places = zip(indices, self.shapes[number], strict=True)
                element = self.operands[number](tuple(self.position(i, d, axes) for i, d in places))
                return b.cast(_DTYPES[node.kind], element)
            case f.Binary(op=op, a=x, b=y):
                return _BINARY[op](self.convert(x, axes, node.compute), self.convert(y, axes, node.compute))
            case f.Negate(a=x):
                return b.neg(self.value(x, axes))
            case f.Not(a=x):
                return b.not_(self.value(x, axes))
            case f.Call(function=function, a=x):
                return _CALLS[function](self.convert(x, axes, f.FormulaKind.FLOAT))
            case f.Select(cond=cond, a=x, b=y):
                return b.select(
                    self.value(cond, axes), self.convert(x, axes, node.kind), self.convert(y, axes, node.kind)
                )
            case f.Reduce():
                return self.reduce(node, axes)
            case _:
                assert_never(node)

    def position(self, node: f.Formula, dim: Dim, axes: Mapping[str, Expr]) -> Expr:
        """An index; where it is not certainly inside of ``dim``, the nearest one that is.

        A formula that runs out of range is an error of its author; compiled, it reads no foreign memory.
        """
        value = self.value(node, axes)
        if not any(isinstance(n, f.Reduce) for n in f.walk(node)):
            anywhere: dict[str, Expr] = {name: Var(name) for name in self.extents}
            known = Analysis()
            for name, extent in self.extents.items():
                known = known.with_range(_var(anywhere[name]), 0, b.sub(size(extent), 1))
            index = self.value(node, anywhere)
            if known.prove(b.ge(index, 0)) and known.prove(b.lt(index, size(dim))):
                return value
        return b.minimum(b.maximum(value, b.const(0, i64)), b.sub(size(dim), 1))

    def dim(self, dim: Dim) -> Dim:
        """``dim`` with the declared ranges of its symbols (a formula knows names only)."""
        if isinstance(dim, int):
            return dim
        if isinstance(dim, SymDim):
            return self.dims[dim.name]
        total: Dim = 0
        for coefficient, syms in dim.terms:
            total = total + coefficient * product(self.dims[s.name] for s in syms)
        return total

    def reduce(self, node: f.Reduce, axes: Mapping[str, Expr]) -> Expr:
        """Stage the reduction over the enclosing axes that its body uses."""
        own = {n.axis for n in f.walk(node) if isinstance(n, f.Reduce)}
        used = [n.name for n in f.walk(node) if isinstance(n, f.Axis) and n.name not in own]
        kept = [name for name in self.extents if name in used]
        extent = self.dim(node.extent)
        init, combine = _REDUCE[node.reduction]
        inner = _Lowering(
            self.ctx, self.operands, self.shapes, self.dims, {**self.extents, node.axis: extent}
        )

        def element(spatial: Index, reduction: Index) -> Expr:
            at = {**dict(zip(kept, spatial, strict=True)), node.axis: reduction[0]}
            return inner.convert(node.body, at, f.FormulaKind.FLOAT)

        shape = tuple(self.extents[name] for name in kept)
        total = self.ctx.reduce("reduce", shape, f32, (extent,), b.const(init, f32), combine, element)
        return total(tuple(axes[name] for name in kept))


def _var(expr: Expr) -> Var:
    assert isinstance(expr, Var)
    return expr


@LOWERINGS.register("tensor_expr")
def lower_tensor_expr(ctx: Context, node: Node) -> Access:
    """The formula, with reductions staged once."""
    shape = node.tensor.shape
    tree = f.parse_formula(node.attrs["formula"], len(node.inputs), shape)
    known = shape_symbols(d for x in (*node.inputs, node) for d in x.tensor.shape)
    extents: dict[str, Dim] = {f"i{k}": dim for k, dim in enumerate(shape)}
    operands = tuple(ctx.access(x) for x in node.inputs)
    shapes = tuple(x.tensor.shape for x in node.inputs)
    lowering = _Lowering(ctx, operands, shapes, {d.name: d for d in known}, extents)

    def element(i: Index) -> Expr:
        value = lowering.value(tree, {f"i{k}": e for k, e in enumerate(i)})
        return b.cast(node.tensor.dtype, value)

    # With reductions the value is staged, so that they are computed once however often it is read.
    has_stages = any(isinstance(n, f.Reduce) for n in f.walk(tree))
    return ctx.stage("formula", shape, node.tensor.dtype, element) if has_stages else element
