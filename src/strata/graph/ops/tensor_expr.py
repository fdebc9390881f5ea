"""``tensor_expr``: an op given by an index formula (grammar: ``graph.ops.formula``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, assert_never

import numpy as np

from strata.core.dims import Dim, bounds, product, shape_symbols
from strata.core.dtypes import DType, bf16, bool_, f16, f32, i32, i64
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    as_tensor,
    check_shape,
    define_op,
    is_index,
    np_dtype,
    round_to,
    t,
)
from .elementwise import UNARY_FUNCTIONS, gelu
from .formula import (
    Axis,
    Binary,
    Call,
    Formula,
    FormulaKind,
    FormulaOp,
    Input,
    Negate,
    Not,
    Number,
    Reduce,
    ReduceKind,
    Select,
    Size,
    children,
    formula_dims,
    parse_formula,
    walk,
)


def _infer(types: Types, attrs: Attrs) -> Type:
    operands = [as_tensor("tensor_expr", type_, f"a{i}") for i, type_ in enumerate(types)]
    shape = check_shape("tensor_expr", attrs["shape"])
    known = shape_symbols(d for s in (shape, *(o.shape for o in operands)) for d in s)
    tree = parse_formula(attrs["formula"], len(operands), shape, known)
    unknown = [d.name for d in formula_dims(tree) if d not in known]
    if unknown:
        names = ", ".join(d.name for d in known) or "none"
        raise ShapeError(f"tensor_expr: no axis or dim {unknown[0]!r} in {attrs['formula']!r}; dims: {names}")
    for node in walk(tree):
        if isinstance(node, Input):
            _check_input(node, operands[node.number])
        if isinstance(node, Reduce) and bounds(node.extent)[0] < (node.reduction is not ReduceKind.SUM):
            raise ShapeError(f"tensor_expr: extent {node.extent} of axis {node.axis} may be too small")
    if tree.kind is FormulaKind.BOOL and attrs["dtype"] is not bool_:
        raise ShapeError(f"tensor_expr: the formula is a condition, dtype is {attrs['dtype']}; expected bool")
    return TensorType(shape, attrs["dtype"])


def _check_input(node: Input, type_: TensorType) -> None:
    if len(node.indices) != type_.rank:
        raise ShapeError(
            f"tensor_expr: a{node.number} is {type_}, got {len(node.indices)} indices; expected {type_.rank}"
        )
    if node.in_index and not is_index(type_.dtype):
        raise ShapeError(f"tensor_expr: a{node.number} {type_} is used in an index; expected i32 or i64")


class _Grid:
    """Evaluates formulas on index grids that broadcast to (result dims..., enclosing reduction dims...)."""

    def __init__(self, operands: Sequence[np.ndarray], axes: Mapping[str, np.ndarray], depth: int) -> None:
        self.operands, self.axes, self.depth = operands, axes, depth

    def run(self, node: Formula, kind: FormulaKind) -> np.ndarray:
        """Value of ``node`` converted to ``kind``."""
        return self.value(node).astype(kind_dtype(kind))

    def value(self, node: Formula) -> np.ndarray:
        """Value of ``node`` in its own kind."""
        match node:
            case Axis(name=name):
                return self.axes[name]
            case Number(value=value):
                return np.array(value, kind_dtype(node.kind))
            case Size(dim=dim):
                raise ShapeError(
                    f"tensor_expr: dim {dim} has no value; run the function with graph.interp.run"
                )
            case Input():
                return self.element(node)
            case Binary(op=op, a=a, b=b):
                return _NUMPY[op](self.run(a, node.compute), self.run(b, node.compute))
            case Negate(a=a):
                return -self.value(a)
            case Not(a=a):
                return np.logical_not(self.value(a))
            case Call(function=function, a=a):
                x = self.run(a, FormulaKind.FLOAT)
                return gelu(x, "none") if function == "gelu" else UNARY_FUNCTIONS[function](x)
            case Select(cond=cond, a=a, b=b):
                return np.where(self.value(cond), self.run(a, node.kind), self.run(b, node.kind))
            case Reduce():
                return self.reduce(node)
            case _:
                assert_never(node)

    def element(self, node: Input) -> np.ndarray:
        operand = self.operands[node.number]
        indices = [self.value(i) for i in node.indices]
        for axis, (index, extent) in enumerate(zip(indices, operand.shape, strict=True)):
            wrong = index[(index < 0) | (index >= extent)]
            if wrong.size:
                raise ShapeError(
                    f"tensor_expr: index {wrong.flat[0]} of a{node.number} is out of range on axis {axis}; "
                    f"expected 0..{extent - 1}"
                )
        return np.asarray(operand[tuple(indices)]).astype(kind_dtype(node.kind))

    def reduce(self, node: Reduce) -> np.ndarray:
        assert isinstance(node.extent, int)  # dims are bound before evaluation
        axes = {name: grid[..., None] for name, grid in self.axes.items()}
        axes[node.axis] = np.arange(node.extent)
        body = _Grid(self.operands, axes, self.depth + 1).run(node.body, FormulaKind.FLOAT)
        # The body may not depend on the axis: the axis still counts.
        body = np.broadcast_to(body, np.broadcast_shapes(body.shape, (node.extent,)))
        function = {ReduceKind.SUM: np.sum, ReduceKind.MAX: np.max, ReduceKind.MIN: np.min}[node.reduction]
        return np.asarray(function(body, axis=-1))


_NUMPY: dict[FormulaOp, np.ufunc] = {
    FormulaOp.ADD: np.add,
    FormulaOp.SUB: np.subtract,
    FormulaOp.MUL: np.multiply,
    FormulaOp.DIV: np.divide,
    FormulaOp.POW: np.power,
    FormulaOp.FLOORDIV: np.floor_divide,
    FormulaOp.FLOORMOD: np.remainder,
    FormulaOp.MIN: np.minimum,
    FormulaOp.MAX: np.maximum,
    FormulaOp.LT: np.less,
    FormulaOp.LE: np.less_equal,
    FormulaOp.GT: np.greater,
    FormulaOp.GE: np.greater_equal,
    FormulaOp.EQ: np.equal,
    FormulaOp.NE: np.not_equal,
    FormulaOp.AND: np.logical_and,
    FormulaOp.OR: np.logical_or,
}


def kind_dtype(kind: FormulaKind) -> np.dtype[Any]:
    """NumPy dtype in which a kind is computed."""
    return np.dtype({FormulaKind.INT: "int64", FormulaKind.FLOAT: "float32", FormulaKind.BOOL: "bool"}[kind])


def _reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    shape: tuple[int, ...] = attrs["shape"]
    tree = parse_formula(attrs["formula"], len(operands), shape)
    grids = np.indices(shape, dtype=np.int64)
    with np.errstate(all="ignore"):
        value = _Grid(operands, {f"i{a}": grid for a, grid in enumerate(grids)}, 0).value(tree)
    return round_to(np.broadcast_to(value, shape), np_dtype(attrs["dtype"]))


def _count(node: Formula) -> Dim:
    own = 0 if isinstance(node, Axis | Size | Number | Input) else 1
    below: Dim = own
    for child in children(node) if not isinstance(node, Input) else ():
        below = below + _count(child)
    return below * node.extent if isinstance(node, Reduce) else below


def _flop(types: Types, attrs: Attrs) -> Dim:
    return product(attrs["shape"]) * _count(parse_formula(attrs["formula"], len(types), attrs["shape"]))


def _samples() -> Iterator[Sample]:
    def case(
        formula: str, shape: tuple[int, ...], *types: TensorType, dtype: DType = f32, **values: Any
    ) -> Sample:
        bound = {int(k[1:]): v for k, v in values.items()}
        return Sample(types, {"formula": formula, "shape": shape, "dtype": dtype}, bound)

    for dtype in (f32, f16, bf16):
        yield case("a0[i0, i1] * 2.0 + exp(a1[i1])", (3, 5), t(dtype, 3, 5), t(dtype, 5), dtype=dtype)
        yield case("sum(k < 16, a0[i0, k] * a1[k, i1])", (3, 7), t(dtype, 3, 16), t(dtype, 16, 7), dtype=f32)
    yield case("a0[i1, i0]", (5, 3), t(f32, 3, 5))
    yield case("select(i0 >= i1, 0.0, -1e9)", (4, 4))
    yield case("a0[max(i0 - 1, 0), i1] + a0[min(i0 + 1, 4), i1]", (5, 2), t(f32, 5, 2))
    yield case(
        "a0[a1[i0], i1 // 2] * (i1 % 2 + 1)",
        (3, 6),
        t(f32, 4, 3),
        t(i32, 3),
        a1=np.array([3, 0, 3], np.int32),
    )
    yield case("i0 * 10 + i1", (2, 3), dtype=i64)
    yield case("a0[i0] > 0 and not (a0[i0] > 1)", (9,), t(f32, 9), dtype=bool_)
    yield case("a0[i0, i1] / sum(k < 4, sum(l < 3, abs(a0[k, l]) + 1))", (4, 3), t(f32, 4, 3))
    yield case("reduce_max(k < 5, a0[i0, k]) - reduce_min(k < 5, a0[i0, k])", (3,), t(f32, 3, 5))
    yield case("-a0[()] * silu(a1[i0]) ** 2", (7,), t(f32), t(bf16, 7))
    yield case("sum(k < 3, 1.5)", ())


define_op(
    OpDef(
        "tensor_expr",
        _infer,
        _reference,
        Pattern.INJECTIVE,
        {
            "formula": Attr((str,), doc="index formula, grammar in graph/ops/formula.py"),
            "shape": Attr((tuple,), doc="result dims"),
            "dtype": Attr((DType,), doc="result dtype"),
        },
        _samples,
        _flop,
        "An op given by an index formula such as 'a0[i0, k] + 1'; f32 arithmetic, rounded once to dtype.",
    )
)
