"""Elementwise ops: arithmetic, comparisons, functions of one operand, ``where`` and ``cast``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from strata.core.dtypes import DType, bf16, bool_, f16, f32, f64, i8, i32, i64, u8
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    broadcast,
    define_op,
    is_bool,
    is_float,
    is_number,
    np_dtype,
    round_to,
    same_dtype,
    t,
    tensors,
    want_dtype,
    widen,
)

Predicate = Callable[[DType], bool]
NUMBERS = (is_number, "a float or integer dtype")
FLOATS = (is_float, "a float dtype")
BOOLS = (is_bool, "bool")
SQRT_HALF = 0.7071067811865476
GELU_TANH = (0.7978845608028654, 0.044715)  # sqrt(2/pi) and the cubic term: Hendrycks & Gimpel 2016, eq. 2


# ---- two operands ----


def _binary_infer(op: str, allowed: tuple[Predicate, str], result: DType | None) -> Any:
    def infer(types: Types, attrs: Attrs) -> Type:
        a, b = tensors(op, types, ("a", "b"))
        dtype = same_dtype(op, (("a", a), ("b", b)))
        want_dtype(op, "a", a, *allowed)
        return TensorType(broadcast(op, (("a", a), ("b", b))), result or dtype)

    return infer


def _binary_reference(function: Callable[..., Any], comparison: bool) -> Any:
    def reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        a, b = operands
        with np.errstate(all="ignore"):
            out = function(widen(a), widen(b))
        return round_to(out, np.dtype(bool) if comparison else a.dtype)

    return reference


def _specials(dtype: DType) -> np.ndarray:
    """Values where rounding, signs and ranges go wrong (no NaN; every one is exact in ``dtype``)."""
    if dtype is bool_:
        return np.array([True, False, True, True, False])
    if not dtype.is_float:
        return np.array([0, 1, -1, 7, -13, 1 << 20, -(1 << 20)], np_dtype(dtype))
    small = {"f16": 6e-8, "bf16": 1e-40, "f32": 1e-44, "f64": 5e-324}[dtype.name]
    large = {"f16": 65504.0, "bf16": 3e38, "f32": 3e38, "f64": 1e308}[dtype.name]
    return np.array([0.0, -0.0, 1.0, -1.0, small, -small, large, -large, 1 / 3, 1.0009765625]).astype(
        np_dtype(dtype)
    )


def _binary_samples(dtypes: Sequence[DType], positive: bool = False) -> Callable[[], Iterator[Sample]]:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((7,), (7,)),
        ((3, 5), (3, 5)),
        ((3, 5), (5,)),
        ((3, 1), (1, 5)),
        ((2, 3, 17), (3, 1)),
        ((), (4,)),
        ((1,), (1,)),
        ((0, 5), (1, 5)),
        ((33,), ()),
    ]

    def samples() -> Iterator[Sample]:
        rng = np.random.default_rng(1)
        for i, (a, b) in enumerate(shapes):
            for dtype in dtypes if i < 3 else dtypes[:1]:
                values = {}
                if positive:
                    values = {0: np.asarray(rng.uniform(0.25, 4.0, a)).astype(np_dtype(dtype))}
                yield Sample((t(dtype, *a), t(dtype, *b)), {}, values)
        for dtype in dtypes if not positive else ():
            left = _specials(dtype)
            right = np.roll(left, 3)[:, None] if dtype is not bool_ else left[:, None]
            yield Sample((t(dtype, len(left)), t(dtype, len(left), 1)), {}, {0: left, 1: right})

    return samples


def _div_samples() -> Iterator[Sample]:
    rng = np.random.default_rng(2)
    for dtype in (f32, f16, bf16, f64):
        for a, b in (((3, 5), (3, 5)), ((3, 5), (5,)), ((9, 1), (1, 3))):
            right = (rng.uniform(0.5, 2.0, b) * rng.choice([-1.0, 1.0], b)).astype(np_dtype(dtype))
            yield Sample((t(dtype, *a), t(dtype, *b)), {}, {1: right})
    over_zero = np.array([0.0, -0.0, 1e-30, np.inf], np.float32)
    yield Sample((t(f32, 4), t(f32, 4)), {}, {0: np.array([1.0, 1.0, 1.0, 2.0], np.float32), 1: over_zero})


_ARITHMETIC = (f32, f16, bf16, f64, i32, i64)
_BINARY: list[tuple[str, Callable[..., Any], tuple[Predicate, str], Any, str]] = [
    ("add", np.add, NUMBERS, _binary_samples(_ARITHMETIC), "a + b"),
    ("sub", np.subtract, NUMBERS, _binary_samples(_ARITHMETIC), "a - b"),
    ("mul", np.multiply, NUMBERS, _binary_samples(_ARITHMETIC), "a * b"),
    ("div", np.divide, FLOATS, _div_samples, "a / b (floats)"),
    ("maximum", np.maximum, NUMBERS, _binary_samples(_ARITHMETIC), "The larger of a and b"),
    ("minimum", np.minimum, NUMBERS, _binary_samples(_ARITHMETIC), "The smaller of a and b"),
    (
        "power",
        np.power,
        FLOATS,
        _binary_samples((f32, f16, bf16, f64), positive=True),
        "a to the power b (floats)",
    ),
]
_COMPARE: list[tuple[str, Callable[..., Any], str]] = [
    ("equal", np.equal, "=="),
    ("not_equal", np.not_equal, "!="),
    ("less", np.less, "<"),
    ("less_equal", np.less_equal, "<="),
    ("greater", np.greater, ">"),
    ("greater_equal", np.greater_equal, ">="),
]
_LOGICAL: list[tuple[str, Callable[..., Any]]] = [
    ("logical_and", np.logical_and),
    ("logical_or", np.logical_or),
]

for _name, _function, _allowed, _samples, _doc in _BINARY:
    define_op(
        OpDef(
            _name,
            _binary_infer(_name, _allowed, None),
            _binary_reference(_function, False),
            Pattern.BROADCAST,
            samples=_samples,
            doc=f"{_doc}; NumPy broadcasting, equal dtypes.",
        )
    )
for _name, _function, _sign in _COMPARE:
    define_op(
        OpDef(
            _name,
            _binary_infer(_name, NUMBERS, bool_),
            _binary_reference(_function, True),
            Pattern.BROADCAST,
            samples=_binary_samples((f32, f16, bf16, i32, i64)),
            doc=f"a {_sign} b as bool; NumPy broadcasting, equal dtypes.",
        )
    )
for _name, _function in _LOGICAL:
    define_op(
        OpDef(
            _name,
            _binary_infer(_name, BOOLS, bool_),
            _binary_reference(_function, True),
            Pattern.BROADCAST,
            samples=_binary_samples((bool_,)),
            doc=f"a {_name.removeprefix('logical_')} b on bools; NumPy broadcasting.",
        )
    )


# ---- where ----


def _where_infer(types: Types, attrs: Attrs) -> Type:
    cond, a, b = tensors("where", types, ("cond", "a", "b"))
    want_dtype("where", "cond", cond, *BOOLS)
    dtype = same_dtype("where", (("a", a), ("b", b)))
    return TensorType(broadcast("where", (("cond", cond), ("a", a), ("b", b))), dtype)


def _where_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    cond, a, b = operands
    return np.where(cond, a, b)


def _where_samples() -> Iterator[Sample]:
    for dtype in (f32, bf16, f16, i32, i64):
        yield Sample((t(bool_, 3, 5), t(dtype, 3, 5), t(dtype, 3, 5)))
    yield Sample((t(bool_, 5), t(f32, 3, 1), t(f32)))
    yield Sample((t(bool_), t(f32, 2, 3), t(f32, 3)))
    hidden = np.array([1.0, np.inf, -np.inf, np.nan], np.float32)
    yield Sample((t(bool_, 4), t(f32, 4), t(f32, 4)), {}, {0: np.array([True] * 4), 2: hidden})


define_op(
    OpDef(
        "where",
        _where_infer,
        _where_reference,
        Pattern.BROADCAST,
        samples=_where_samples,
        doc="a where cond else b; NumPy broadcasting, a and b of equal dtype.",
    )
)


# ---- one operand ----


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: np.ndarray) -> np.ndarray:
    """Error function, computed in f64 and rounded to the dtype of ``x`` (f32 or f64)."""
    return _erf(x).astype(x.dtype) if x.size else x


def gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    """GELU of f32/f64 ``x``: ``x * Phi(x)``, or the tanh approximation."""
    if approximate == "none":
        return 0.5 * x * (1 + erf(x * x.dtype.type(SQRT_HALF)))
    scale, cubic = GELU_TANH
    return 0.5 * x * (1 + np.tanh(scale * (x + cubic * x * x * x)))


UNARY_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "erf": erf,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
}
_ON_INTEGERS = ("neg", "abs", "relu")


def _unary_infer(op: str) -> Any:
    allowed = NUMBERS if op in _ON_INTEGERS else BOOLS if op == "logical_not" else FLOATS

    def infer(types: Types, attrs: Attrs) -> Type:
        (x,) = tensors(op, types, ("x",))
        want_dtype(op, "x", x, *allowed)
        if op == "gelu" and attrs["approximate"] not in ("none", "tanh"):
            raise ShapeError(f'gelu: approximate is {attrs["approximate"]!r}; expected "none" or "tanh"')
        return x

    return infer


def _unary_reference(function: Callable[[np.ndarray], np.ndarray]) -> Any:
    def reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        (x,) = operands
        with np.errstate(all="ignore"):
            return round_to(function(widen(x)), x.dtype)

    return reference


def _unary_samples(op: str) -> Callable[[], Iterator[Sample]]:
    positive = op in ("log", "sqrt", "rsqrt")

    def samples() -> Iterator[Sample]:
        rng = np.random.default_rng(3)
        dtypes = (f32, f16, bf16, f64, *((i32, i64) if op in _ON_INTEGERS else ()))
        for dtype in dtypes:
            for shape in ((7,), (3, 17), (), (0, 3)) if dtype is f32 else ((2, 19),):
                values = {}
                if positive:
                    values = {0: np.asarray(rng.uniform(0.01, 9.0, shape)).astype(np_dtype(dtype))}
                yield Sample((t(dtype, *shape),), {}, values)
        edge = np.array([0.0, -0.0, 1e-3, -1e-3, 0.5, -0.5, 5.0, -5.0, 20.0, -20.0, 88.0, -88.0])
        edge = np.abs(edge)[2:] if positive else edge
        yield Sample((t(f32, len(edge)),), {}, {0: edge.astype(np.float32)})

    return samples


for _name, _unary in UNARY_FUNCTIONS.items():
    define_op(
        OpDef(
            _name,
            _unary_infer(_name),
            _unary_reference(_unary),
            Pattern.ELEMENTWISE,
            samples=_unary_samples(_name),
            doc=f"{_name}(x), elementwise"
            + (" (floats and integers)." if _name in _ON_INTEGERS else " (floats)."),
        )
    )


def _gelu_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    (x,) = operands
    with np.errstate(all="ignore"):
        return round_to(gelu(widen(x), attrs["approximate"]), x.dtype)


def _gelu_samples() -> Iterator[Sample]:
    for approximate in ("none", "tanh"):
        for sample in _unary_samples("gelu")():
            yield Sample(sample.types, {"approximate": approximate}, sample.values)


def _not_samples() -> Iterator[Sample]:
    yield from (Sample((t(bool_, *shape),)) for shape in ((5,), (3, 7), ()))


define_op(
    OpDef(
        "gelu",
        _unary_infer("gelu"),
        _gelu_reference,
        Pattern.ELEMENTWISE,
        {"approximate": Attr((str,), "none", '"none" (erf) or "tanh"')},
        _gelu_samples,
        doc="Gaussian error linear unit: x * Phi(x), or its tanh approximation.",
    )
)
define_op(
    OpDef(
        "logical_not",
        _unary_infer("logical_not"),
        lambda operands, attrs: np.asarray(np.logical_not(operands[0])),
        Pattern.ELEMENTWISE,
        samples=_not_samples,
        doc="not x on bools.",
    )
)


# ---- cast ----


def _cast_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("cast", types, ("x",))
    return TensorType(x.shape, attrs["dtype"])


def _cast_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    return round_to(operands[0], np_dtype(attrs["dtype"]))


def _cast_samples() -> Iterator[Sample]:
    floats = (f32, f16, bf16, f64)
    for source in floats:
        for target in floats:
            yield Sample((t(source, 3, 7),), {"dtype": target})
    for source, target in (
        (i32, f32),
        (i64, f32),
        (f32, i32),
        (f32, i64),
        (i32, i64),
        (i64, i32),
        (bool_, f32),
    ):
        yield Sample((t(source, 2, 5),), {"dtype": target})
    yield Sample((t(i8, 5),), {"dtype": f32}, {0: np.array([-128, -1, 0, 1, 127], np.int8)})
    yield Sample((t(u8, 3),), {"dtype": i32}, {0: np.array([0, 1, 255], np.uint8)})
    halves = np.array([1.00390625, 1.01171875, -1.00390625, 3.3895314e38, 1e-40, -0.0], np.float32)
    yield Sample((t(f32, 6),), {"dtype": bf16}, {0: halves})  # ties to even, overflow to inf, denormal
    ties = np.array([2049.0, 2051.0, 65519.0, 65520.0, 6e-8, 2e-8], np.float32)
    yield Sample((t(f32, 6),), {"dtype": f16}, {0: ties})
    yield Sample((t(f32, 6),), {"dtype": i32}, {0: np.array([1.9, -1.9, 0.5, -0.5, 2e9, -2e9], np.float32)})
    yield Sample((t(f32, 3),), {"dtype": bool_}, {0: np.array([0.0, 0.25, -3.0], np.float32)})


define_op(
    OpDef(
        "cast",
        _cast_infer,
        _cast_reference,
        Pattern.ELEMENTWISE,
        {"dtype": Attr((DType,), doc="result dtype")},
        _cast_samples,
        doc="x as another dtype: floats round to nearest even, float to int truncates, to bool is x != 0.",
    )
)
