"""What translated loop functions call (:mod:`.interp`): checked accesses, conversions, functions in f64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from strata.core.dtypes import DType, bool_, i64
from strata.core.errors import VerifyError

from .intrinsics import INTRINSICS
from .values import convert, int_range, numpy_dtype
from .values import sigmoid as sigmoid_f64

Array = np.ndarray[Any, Any]
Index = tuple[int, ...]


def fresh_array(dtype: DType) -> Callable[[Index], Array]:
    """Makes arrays of ``dtype`` whose contents show when they are used: NaN, or an extreme integer."""
    kind = numpy_dtype(dtype)
    fill = math.nan if dtype.is_float else int_range(dtype)[0 if dtype.kind.value == "int" else 1]
    return lambda shape: np.full(shape, fill, kind)


# --------------------------------------------------------------------------------------------- memory


def outside(where: str, array: Array, index: Index) -> NoReturn:
    """Report an access outside of a buffer."""
    shown = ", ".join(str(i) for i in index)
    raise VerifyError(f"{where}[{shown}]: outside of its shape {array.shape}")


def outside_lazy(where: str, array: Array, names: dict[str, Any], keys: list[str]) -> NoReturn:
    """As :func:`outside`, with the indices that were evaluated so far."""
    bad = next(k for k, key in enumerate(keys) if not 0 <= names[key] < array.shape[k])
    shown = [str(names[key]) for key in keys[: bad + 1]] + ["..."] * (len(keys) - bad - 1)
    raise VerifyError(f"{where}[{', '.join(shown)}]: outside of its shape {array.shape}")


def bad_axis(where: str, value: int, extent: int) -> NoReturn:
    """Report a block axis outside of its extent."""
    raise VerifyError(f"{where} is {value}; expected 0 <= axis < {extent}; the predicate must exclude it")


def _check(where: str, array: Array, index: Index) -> None:
    if not all(0 <= i < extent for i, extent in zip(index, array.shape, strict=True)):
        outside(where, array, index)


def load_masked(where: str, array: Array, index: Index, mask: bool) -> Any:
    """A scalar, or 0 without an access."""
    if not mask:
        return array.dtype.type(0)
    _check(where, array, index)
    return array[index]


def _active(where: str, array: Array, prefix: Index, last: Array, mask: Array | None) -> Array:
    """Indices of the lanes that access memory, checked."""
    active = last if mask is None else last[mask]
    if active.size:
        worst = int(active.min()) if active.min() < 0 else int(active.max())
        _check(where, array, (*prefix, worst))
    return active


def load_vector(where: str, array: Array, prefix: Index, last: Array, mask: Array | None) -> Array:
    """``array[prefix, last[l]]`` per lane; 0 where masked off."""
    active = _active(where, array, prefix, last, mask)
    if mask is None:
        return array[prefix][active]
    out = np.zeros(last.shape, array.dtype)
    if active.size:
        out[mask] = array[prefix][active]
    return out


def store_vector(
    where: str, array: Array, prefix: Index, last: Array, value: Array, mask: Array | None
) -> None:
    """``array[prefix, last[l]] = value[l]`` per lane that is not masked off."""
    active = _active(where, array, prefix, last, mask)
    if active.size:
        array[(*prefix, active)] = value if mask is None else value[mask]


# ----------------------------------------------------------------------------------------- arithmetic


def select(cond: bool, a: Any, b: Any) -> Any:
    """Both alternatives are evaluated by the call."""
    return a if cond else b


def minimum(a: Any, b: Any) -> Any:
    """The smaller scalar; NaN if one is."""
    return a if a < b or a != a else b


def maximum(a: Any, b: Any) -> Any:
    """The larger scalar; NaN if one is."""
    return a if a > b or a != a else b


def minimum_vector(a: Array, b: Array) -> Array:
    """The smaller one per lane; NaN if one is."""
    return np.where((a < b) | (a != a), a, b)


def maximum_vector(a: Array, b: Array) -> Array:
    """The larger one per lane; NaN if one is."""
    return np.where((a > b) | (a != a), a, b)


def _check_divisor(where: str, b: Any) -> None:
    if np.any(b == 0):
        raise VerifyError(f"{where}: integer division by 0")


def floordiv(where: str, a: Any, b: Any) -> Any:
    """``a // b`` of integers."""
    _check_divisor(where, b)
    return a // b


def floormod(where: str, a: Any, b: Any) -> Any:
    """``a % b`` of integers."""
    _check_divisor(where, b)
    return a % b


def cast_scalar(value: Any, dtype: DType) -> Any:
    """Conversion to or from an integer or bool."""
    plain = value if isinstance(value, int) else value.item()
    if dtype.is_float and isinstance(plain, int) and abs(plain) >= 1 << 53:
        return np.int64(plain).astype(numpy_dtype(dtype))  # rounds once, where float(plain) would round twice
    out = convert(plain, dtype)
    return out if dtype in (i64, bool_) else numpy_dtype(dtype).type(out)


def cast_vector(values: Array, target: type) -> Array:
    """Conversion of every lane."""
    if target is np.bool_:
        return values != 0
    if np.issubdtype(target, np.integer) and values.dtype.kind not in "iub":
        return np.nan_to_num(np.trunc(values.astype(np.float64))).astype(target)
    return values.astype(target)


def _in_f64(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        return np.asarray(function(x.astype(np.float64))).astype(x.dtype)[()]

    return call


def reduce_sum(x: Array) -> Any:
    """Sum of the lanes: the upper half is added to the lower half until one is left."""
    while len(x) > 1:
        half = (len(x) + 1) // 2
        low = x[:half].copy()
        low[: len(x) - half] += x[half:]
        x = low
    return x[0]


def intrinsic(name: str, lanes: int, *args: Any) -> Any:
    """A hardware operation; scalars are vectors of one lane there."""
    out = INTRINSICS[name].evaluate(*(np.atleast_1d(a) for a in args))
    return out if lanes > 1 else out[0]


SUPPORT: dict[str, Any] = {
    "np": np,
    "outside": outside,
    "outside_lazy": outside_lazy,
    "bad_axis": bad_axis,
    "load_masked": load_masked,
    "load_vector": load_vector,
    "store_vector": store_vector,
    "select": select,
    "minimum": minimum,
    "maximum": maximum,
    "minimum_vector": minimum_vector,
    "maximum_vector": maximum_vector,
    "floordiv": floordiv,
    "floormod": floormod,
    "cast_scalar": cast_scalar,
    "cast_vector": cast_vector,
    "reduce_sum": reduce_sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "intrinsic": intrinsic,
    "exp": _in_f64(np.exp),
    "log": _in_f64(np.log),
    "sqrt": np.sqrt,
    "rsqrt": _in_f64(lambda x: 1.0 / np.sqrt(x)),
    "tanh": _in_f64(np.tanh),
    "erf": _in_f64(np.vectorize(math.erf, otypes=[np.float64])),
    "sin": _in_f64(np.sin),
    "cos": _in_f64(np.cos),
    "floor": np.floor,
    "round": np.rint,
    "sigmoid": _in_f64(np.vectorize(sigmoid_f64, otypes=[np.float64])),
}
