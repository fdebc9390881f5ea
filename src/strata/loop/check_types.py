"""Dtype and lane rules of single nodes; :mod:`.check` applies them to whole functions."""

from __future__ import annotations

import math
from typing import assert_never

from strata.core.dtypes import DType, Kind, bool_, f32, f64, i32, i64
from strata.core.errors import VerifyError

from .intrinsics import result_type
from .nodes import (
    COMPARISONS,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Intrinsic,
    Load,
    Ramp,
    Reduce,
    Select,
    Size,
    Splat,
    Store,
    Unary,
    UnaryOp,
    Var,
)
from .values import int_range, round_float

ARITHMETIC = (f32, f64, i32, i64)


class TypeRuleError(Exception):
    """A node breaks a rule; the checker adds where."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise TypeRuleError(message)


def check_expr_type(expr: Expr) -> None:
    """Check one node against its direct operands.

    Raises:
        TypeRuleError: got vs expected.
    """
    match expr:
        case Const():
            _check_const(expr)
        case Var():
            _require(expr.lanes >= 1, f"got {expr.lanes} lanes; expected at least 1")
        case Size():
            pass
        case Binary():
            _check_binary(expr)
        case Unary():
            _check_unary(expr)
        case Cast():
            pass
        case Select():
            _same_type(expr.a, expr.b)
            _require_type("condition", expr.cond, bool_, expr.a.lanes)
        case Load():
            _check_access(expr)
        case Ramp():
            _require_type("base", expr.base, i64, 1)
            _require(expr.lanes >= 2, f"got {expr.lanes} lanes; expected at least 2")
        case Splat():
            _require(expr.a.lanes == 1, f"got a vector of {expr.a.lanes} lanes; expected a scalar")
            _require(expr.lanes >= 2, f"got {expr.lanes} lanes; expected at least 2")
        case Reduce():
            _require(expr.a.lanes >= 2, "got a scalar; expected a vector")
            _require(expr.dtype in ARITHMETIC, f"got {expr.dtype}; expected f32, f64, i32 or i64")
        case Intrinsic():
            _check_intrinsic(expr)
        case _:
            assert_never(expr)


def _shown(dtype: DType, lanes: int) -> str:
    return str(dtype) if lanes == 1 else f"{dtype} x {lanes} lanes"


def _require_type(what: str, expr: Expr, dtype: DType, lanes: int) -> None:
    got, expected = _shown(expr.dtype, expr.lanes), _shown(dtype, lanes)
    _require(got == expected, f"{what} is {got}; expected {expected}")


def _same_type(a: Expr, b: Expr) -> None:
    got = _shown(a.dtype, a.lanes), _shown(b.dtype, b.lanes)
    _require(got[0] == got[1], f"operands are {got[0]} and {got[1]}; expected one type")


def _check_const(expr: Const) -> None:
    value, dtype = expr.value, expr.dtype
    match dtype.kind:
        case Kind.FLOAT:
            fits = isinstance(value, float) and (math.isnan(value) or round_float(value, dtype) == value)
        case Kind.BOOL:
            fits = isinstance(value, bool)
        case _:
            lo, hi = int_range(dtype)
            fits = isinstance(value, int) and not isinstance(value, bool) and lo <= value <= hi
    _require(fits, f"got the {type(value).__name__} {value!r}; expected a value of {dtype}")


def _check_binary(expr: Binary) -> None:
    _same_type(expr.a, expr.b)
    dtype = expr.a.dtype
    match expr.op:
        case BinaryOp.AND | BinaryOp.OR:
            _require(dtype == bool_, f"operands are {dtype}; expected bool")
        case BinaryOp.DIV:
            _require(dtype in (f32, f64), f"operands are {dtype}; expected f32 or f64")
        case BinaryOp.FLOORDIV | BinaryOp.FLOORMOD:
            _require(dtype in (i32, i64), f"operands are {dtype}; expected i32 or i64")
        case BinaryOp.EQ | BinaryOp.NE if dtype == bool_:
            pass
        case _:
            where = "comparison" if expr.op in COMPARISONS else "arithmetic"
            _require(dtype in ARITHMETIC, f"{where} of {dtype}; expected f32, f64, i32 or i64; cast first")


def _check_unary(expr: Unary) -> None:
    dtype = expr.a.dtype
    match expr.op:
        case UnaryOp.NOT:
            _require(dtype == bool_, f"operand is {dtype}; expected bool")
        case UnaryOp.NEG | UnaryOp.ABS:
            _require(dtype in ARITHMETIC, f"operand is {dtype}; expected f32, f64, i32 or i64; cast first")
        case _:
            _require(dtype in (f32, f64), f"operand is {dtype}; expected f32 or f64; cast first")


def _check_access(access: Load | Store) -> None:
    buffer, indices = access.buffer, access.indices
    rank = len(buffer.shape)
    _require(len(indices) == rank, f"{buffer.name} got {len(indices)} indices; expected {rank}")
    for position, index in enumerate(indices):
        _require(index.dtype == i64, f"index {position} is {index.dtype}; expected i64")
        last = position == rank - 1
        _require(last or index.lanes == 1, f"index {position} is a vector; only the last one may be")
    if access.mask is not None:
        _require_type("mask", access.mask, bool_, indices[-1].lanes if indices else 1)


def _check_intrinsic(expr: Intrinsic) -> None:
    try:
        dtype, lanes = result_type(expr.name, [(a.dtype, a.lanes) for a in expr.args])
    except VerifyError as error:
        raise TypeRuleError(str(error)) from None
    got, expected = _shown(expr.dtype, expr.lanes), _shown(dtype, lanes)
    _require(got == expected, f"result is {got}; expected {expected}")


def check_store_type(store: Store) -> None:
    """Check a store against its buffer, indices and value.

    Raises:
        TypeRuleError: got vs expected.
    """
    _check_access(store)
    lanes = store.indices[-1].lanes if store.indices else 1
    _require_type("value", store.value, store.buffer.dtype, lanes)
