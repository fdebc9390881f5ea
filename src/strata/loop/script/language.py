"""The words of kernels written in Python; people import them from ``strata.script``.

Annotations say what the parameters are: ``f32[n, 256]`` is an input, ``Out[f32[n, 256]]`` an output. The same
names cast: ``f32(x[i])``. Everything else here has a meaning inside of a kernel only, where
:func:`strata.loop.script.script` reads it; called anywhere else it says so. Functions of one number (``exp``,
``sqrt``, ...) also work on plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from strata.core import dtypes
from strata.core.dims import MAX_EXTENT, Dim, DimExpr, Shape, SymDim, bounds
from strata.core.dtypes import DType
from strata.core.errors import ShapeError, UserError
from strata.loop.nodes import UnaryOp
from strata.loop.values import convert, unary_value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What ``f32[n, 256]`` gives: dtype and shape of a buffer."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class OutSpec:
    """What ``Out[...]`` gives: a buffer that the kernel writes."""

    tensor: TensorSpec

    def __str__(self) -> str:
        return f"Out[{self.tensor}]"


def _spec(dtype: DType, shape: Any) -> TensorSpec:
    dims: tuple[Dim, ...] = shape if isinstance(shape, tuple) else (shape,)
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int | SymDim | DimExpr):
            raise ShapeError(f"{dtype}[...]: got the dim {dim!r}; expected ints and strata.dim(...)")
        if bounds(dim)[1] < 1:
            raise ShapeError(f"{dtype}[...]: got the dim {dim}; expected at least 1")
    return TensorSpec(dtype, dims)


def _outside(word: str) -> NoReturn:
    raise UserError(
        f"{word}: means something inside of a kernel only; decorate the function with @strata.kernel"
    )


def dim(name: str, lo: int = 1, hi: int = MAX_EXTENT, multiple_of: int = 1) -> SymDim:
    """A size that is known only when the kernel is called.

    Args:
        name: Identifier; dims of one kernel have distinct names.
        lo: Smallest value, >= 0.
        hi: Largest value.
        multiple_of: Every value is a multiple of this.

    Raises:
        ShapeError: the name is no identifier, or the range is empty.
    """
    return SymDim(name, lo, hi, multiple_of)


# ------------------------------------------------------------------------------------------------ types


class _Indexed:
    """What a parameter can do, for type checkers."""

    if TYPE_CHECKING:
        shape: tuple[Any, ...]

        def __getitem__(self, index: Any) -> Any: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...


class Element(_Indexed):
    """Base of the element types: ``T[shape]`` is a buffer type, ``T(x)`` a cast."""

    dtype: ClassVar[DType]

    def __new__(cls, value: Any) -> Any:
        """The number ``value``, rounded to this type."""
        if not isinstance(value, int | float):
            raise UserError(
                f"{cls.dtype}(...): got {value!r}; expected a number, or to be inside of a kernel"
            )
        return convert(value, cls.dtype)

    def __class_getitem__(cls, shape: Any) -> Any:
        """A buffer of this type."""
        return _spec(cls.dtype, shape)


class Out(_Indexed):
    """``Out[f32[n]]``: a parameter that the kernel writes. Outputs come after the inputs."""

    def __class_getitem__(cls, tensor: Any) -> Any:
        """An output of this type."""
        if not isinstance(tensor, TensorSpec):
            raise UserError(f"Out[...]: got {tensor!r}; expected a type with a shape, like Out[f32[8]]")
        return OutSpec(tensor)


class f64(Element):
    """64-bit float."""

    dtype = dtypes.f64


class f32(Element):
    """32-bit float."""

    dtype = dtypes.f32


class f16(Element):
    """16-bit IEEE float: storage only, cast to ``f32`` to compute."""

    dtype = dtypes.f16


class bf16(Element):
    """16-bit float with the range of ``f32``: storage only, cast to ``f32`` to compute."""

    dtype = dtypes.bf16


class i64(Element):
    """64-bit integer, the type of indices."""

    dtype = dtypes.i64


class i32(Element):
    """32-bit integer."""

    dtype = dtypes.i32


class i16(Element):
    """16-bit integer: storage only."""

    dtype = dtypes.i16


class i8(Element):
    """8-bit integer: storage only."""

    dtype = dtypes.i8


class u8(Element):
    """Unsigned 8-bit integer: storage only."""

    dtype = dtypes.u8


class u16(Element):
    """Unsigned 16-bit integer: storage only."""

    dtype = dtypes.u16


class u32(Element):
    """Unsigned 32-bit integer: storage only."""

    dtype = dtypes.u32


class bool_(Element):
    """Truth value, one byte."""

    dtype = dtypes.bool_


# ------------------------------------------------------------------------------------------------ loops


def grid(*extents: Any) -> Iterator[Any]:
    """A nest of loops from 0: ``for i, j in`` two extents."""
    _outside("grid")


def parallel(*extents: Any) -> Iterator[Any]:
    """Like ``grid``; the outermost loop runs on all threads, in any order."""
    _outside("parallel")


def unroll(*extents: Any) -> Iterator[Any]:
    """Like ``grid``, expanded by the code generator; constant extents."""
    _outside("unroll")


def vectorize(*extents: Any) -> Iterator[Any]:
    """Like ``grid``; the innermost loop becomes lanes of vectors; constant extents."""
    _outside("vectorize")


def static_range(*bounds: int) -> range:
    """``range`` that is expanded while the kernel is read: its variable is a constant of Python."""
    return range(*bounds)


# ----------------------------------------------------------------------------------------------- blocks


class block:
    """A computation that schedules can move.

    ``for i, j, k in block("dense", n, 512, reduce(256)):`` makes loops and a block in them, with one axis per
    extent. ``with block("dense", reduce(k)):`` makes a block in loops that are there: loop variables that its
    body uses become its spatial axes, those named as ``reduce`` its reduction axes. ``spatial(value,
    extent)`` and ``reduce(value, extent)`` bind an axis to an expression. ``where`` skips instances.
    """

    def __init__(self, name: str, *axes: Any, where: Any = True) -> None:
        _outside("block")

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Any]: ...
        def __enter__(self) -> Any: ...
        def __exit__(self, *error: object) -> None: ...


def reduce(value: Any, extent: Any = None) -> Any:
    """A reduction axis of a block: over an extent in its ``for`` form, of a loop in its ``with`` form."""
    _outside("reduce")


def spatial(value: Any, extent: Any = None) -> Any:
    """A spatial axis of a block; see ``block``."""
    _outside("spatial")


class init:
    """``with init():`` what a block does first, where all of its reduction axes are 0."""

    def __init__(self) -> None:
        _outside("init")

    if TYPE_CHECKING:

        def __enter__(self) -> Any: ...
        def __exit__(self, *error: object) -> None: ...


# ---------------------------------------------------------------------------------------------- buffers


def alloc(tensor: Any) -> Any:
    """A buffer in memory that all threads share, until the end of the suite."""
    _outside("alloc")


def local(tensor: Any) -> Any:
    """A buffer of the executing thread, of constant shape."""
    _outside("local")


def register(tensor: Any) -> Any:
    """A buffer in registers, indexed by constants and unrolled loops."""
    _outside("register")


# ---------------------------------------------------------------------------------------------- vectors


def ramp(base: Any, lanes: int) -> Any:
    """A vector of indices ``base, base + 1, ...``; ``x[i, j : j + 16]`` is indexed by one."""
    _outside("ramp")


def splat(value: Any, lanes: int) -> Any:
    """A scalar in all lanes; operators with a vector do it by themselves."""
    _outside("splat")


def reduce_sum(vector: Any) -> Any:
    """Sum of the lanes, in pairwise order."""
    _outside("reduce_sum")


def reduce_max(vector: Any) -> Any:
    """Largest lane."""
    _outside("reduce_max")


def reduce_min(vector: Any) -> Any:
    """Smallest lane."""
    _outside("reduce_min")


class IntrinsicName:
    """``intrinsic.fma``: a hardware operation by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        """Only in kernels."""
        _outside(f"intrinsic.{self.name}")


class _Intrinsics:
    """``intrinsic.fma(a, b, c)``: hardware operations by their names in ``strata.loop.intrinsics``."""

    def __getattr__(self, name: str) -> IntrinsicName:
        if name.startswith("__"):
            raise AttributeError(name)
        return IntrinsicName(name)


intrinsic = _Intrinsics()


def call(extern: str, *args: Any) -> Any:
    """A statement: calls a function that was not generated, by its name in ``strata.loop.externs``."""
    _outside("call")


# ------------------------------------------------------------------------------------------ arithmetic


def _number(op: UnaryOp, value: Any) -> Any:
    if not isinstance(value, int | float):
        raise UserError(f"{op.value}: got {value!r}; expected a number, or to be inside of a kernel")
    return unary_value(op, float(value), dtypes.f64)


def exp(x: Any) -> Any:
    """Exponential, base e."""
    return _number(UnaryOp.EXP, x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _number(UnaryOp.LOG, x)


def sqrt(x: Any) -> Any:
    """Square root."""
    return _number(UnaryOp.SQRT, x)


def rsqrt(x: Any) -> Any:
    """``1 / sqrt(x)``."""
    return _number(UnaryOp.RSQRT, x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _number(UnaryOp.TANH, x)


def erf(x: Any) -> Any:
    """Error function."""
    return _number(UnaryOp.ERF, x)


def sin(x: Any) -> Any:
    """Sine of ``x`` radians."""
    return _number(UnaryOp.SIN, x)


def cos(x: Any) -> Any:
    """Cosine of ``x`` radians."""
    return _number(UnaryOp.COS, x)


def floor(x: Any) -> Any:
    """Largest whole number not above the float ``x``, as a float."""
    return _number(UnaryOp.FLOOR, x)


def rint(x: Any) -> Any:
    """The whole number nearest to the float ``x`` (halves to the even one), as a float."""
    return _number(UnaryOp.ROUND, x)


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``."""
    return _number(UnaryOp.SIGMOID, x)


FUNCTIONS: dict[Callable[[Any], Any], UnaryOp] = {
    exp: UnaryOp.EXP,
    log: UnaryOp.LOG,
    sqrt: UnaryOp.SQRT,
    rsqrt: UnaryOp.RSQRT,
    tanh: UnaryOp.TANH,
    erf: UnaryOp.ERF,
    sin: UnaryOp.SIN,
    cos: UnaryOp.COS,
    floor: UnaryOp.FLOOR,
    rint: UnaryOp.ROUND,
    sigmoid: UnaryOp.SIGMOID,
}
