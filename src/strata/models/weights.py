"""How each param of the graph is made from the tensors of a checkpoint, one at a time.

The largest thing in memory is one finished param: sources are memory-mapped and their pages dropped after
use. A weight that the graph has as codes is taken from codes of the same format where the checkpoint has
them, and quantised here otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np

from strata.core.dtypes import DType, f16
from strata.core.errors import UserError
from strata.core.weight_format import WeightFormat

from .checkpoint import Checkpoint
from .quantize.codes import Method, QuantizedMatrix, concat_rows, quantize_matrix


class Transform(Enum):
    """What is done to the source tensors, before the cast to the param's dtype."""

    CONCAT_ROWS = "concat_rows"  # one tensor, or several one below the other: q, k, v -> qkv
    TRANSPOSE = "transpose"  # one matrix [in, out] -> [out, in]


@dataclass(frozen=True, slots=True)
class ParamSource:
    """Recipe of one param.

    Attributes:
        tensors: ``(name, shape)`` of the checkpoint's weights, in order.
        dtype: Dtype of the param.
        transform: How they become the param.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: DType
    transform: Transform = Transform.CONCAT_ROWS

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the param."""
        shapes = [shape for _, shape in self.tensors]
        match self.transform:
            case Transform.CONCAT_ROWS:
                return (sum(s[0] for s in shapes), *shapes[0][1:])
            case Transform.TRANSPOSE:
                return shapes[0][::-1]
            case never:
                assert_never(never)


@dataclass(frozen=True, slots=True)
class NameRules:
    """Freedom that checkpoints of one family take with names.

    Attributes:
        prefix: Prefix that a checkpoint of the bare base model lacks (``"model."``).
        ignored: Endings of tensors that carry no weights (masks, rotary tables), and whole names of copies.
    """

    prefix: str
    ignored: tuple[str, ...] = ()


def resolve_names(
    sources: Mapping[str, ParamSource], rules: NameRules, checkpoint: Checkpoint
) -> dict[str, tuple[str, ...]]:
    """Names in this checkpoint of what each param is made of, checked against shapes and leftovers.

    Some checkpoints have weights under the name of the param, which others have in parts (q, k, v).

    Raises:
        UserError: a tensor is missing, has the wrong shape or dtype, or is not part of the model.
    """
    found: dict[str, tuple[str, ...]] = {}
    for param, source in sources.items():
        tensors = source.tensors
        if len(tensors) > 1 and _actual(param, rules, checkpoint) in checkpoint:
            tensors = ((param, source.shape),)
        found[param] = tuple(_find(name, shape, source, rules, checkpoint) for name, shape in tensors)
    used = {name for names in found.values() for name in names}
    for name in checkpoint:
        if name not in used and not name.endswith(rules.ignored) and not checkpoint.is_void(name):
            raise UserError(
                f"{checkpoint.path(name)}: tensor {name!r} is not part of this architecture; "
                f"config.json and the weights do not belong together"
            )
    return found


def _actual(name: str, rules: NameRules, checkpoint: Checkpoint) -> str:
    return name if name in checkpoint else name.removeprefix(rules.prefix)


def _find(
    name: str, shape: tuple[int, ...], source: ParamSource, rules: NameRules, checkpoint: Checkpoint
) -> str:
    actual = _actual(name, rules, checkpoint)
    if actual not in checkpoint:
        raise UserError(
            f"{checkpoint.folder}: tensor {name!r} is missing from the checkpoint; expected {shape}"
        )
    entry, path = checkpoint.entry(actual), checkpoint.path(actual)
    if source.transform is Transform.TRANSPOSE and checkpoint.format(actual) is not None:
        shape = shape[::-1]  # codes lie as the product reads them
    if entry.shape != shape:
        raise UserError(
            f"{path}: tensor {actual!r}: got shape {entry.shape}; expected {shape} by config.json: "
            f"the two do not belong together"
        )
    if not entry.dtype.is_float:
        raise UserError(f"{path}: tensor {actual!r}: got dtype {entry.dtype}; expected a float type")
    return actual


def load_params(
    sources: Mapping[str, ParamSource],
    rules: NameRules,
    checkpoint: Checkpoint,
    formats: Mapping[str, WeightFormat] | None = None,
    method: Method = Method.SEARCH,
) -> Iterator[tuple[str, np.ndarray]]:
    """Make the params one after the other: ``(name, array)`` in the order of ``sources``.

    An array may be a read-only view of the file; it stays valid, but its pages leave memory when the next
    one is made. All names, shapes and dtypes are checked before the first array is made.

    Args:
        sources: Recipe of each param, as a float tensor.
        rules: Freedom of the checkpoint's names.
        checkpoint: Where the weights are.
        formats: Format of the params ``w`` that are made as codes: ``w.codes``, ``w.scales``, ``w.zeros``.
        method: How the scales of those are chosen that the checkpoint has not in this format already.

    Raises:
        UserError: as in :func:`resolve_names`, or a value does not fit the param's dtype or format.
    """
    names = resolve_names(sources, rules, checkpoint)

    def make() -> Iterator[tuple[str, np.ndarray]]:
        for param, source in sources.items():
            used = names[param]
            format = None if formats is None else formats.get(param)
            if format is None:
                yield param, make_floats(param, source, used, checkpoint)
            else:
                yield from _coded(param, source, used, checkpoint, format, method)
            for name in used:  # what was not copied
                checkpoint.release(name)

    return make()


def _coded(
    param: str,
    source: ParamSource,
    names: tuple[str, ...],
    checkpoint: Checkpoint,
    format: WeightFormat,
    method: Method,
) -> Iterator[tuple[str, np.ndarray]]:
    matrix = stored_codes(names, checkpoint, format)
    if matrix is None:  # every row has codes of its own: nothing is put together as floats
        n, k = source.shape
        matrix, row = QuantizedMatrix.empty(format, n, k, param), 0
        for name, tensor in zip(names, _oriented(source, names, checkpoint), strict=True):
            own = matrix.rows(row, row + len(tensor))
            quantize_matrix(tensor, format, method=method, name=param, out=own)
            checkpoint.release(name)
            row += len(tensor)
    for part, array in matrix.arrays():
        yield f"{param}.{part}", array


def stored_codes(
    names: tuple[str, ...], checkpoint: Checkpoint, format: WeightFormat
) -> QuantizedMatrix | None:
    """The weights ``names`` of a checkpoint below each other, if it has all of them in this format."""
    if any(checkpoint.format(name) != format for name in names):
        return None
    return concat_rows([checkpoint.codes(name) for name in names])


def make_floats(
    param: str, source: ParamSource, names: tuple[str, ...], checkpoint: Checkpoint
) -> np.ndarray:
    """One param as a float array of the dtype of its recipe; a view of the file where nothing is to do.

    Args:
        param: Its name, for messages.
        source: Its recipe.
        names: What it is made of, from :func:`resolve_names`.
        checkpoint: Where that is.

    Raises:
        UserError: a finite value is infinite in f16.
    """
    target = np.dtype(source.dtype.numpy_name)
    tensors = _oriented(source, names, checkpoint)
    first = tensors[0]
    if len(tensors) == 1 and first.dtype == target and first.flags.c_contiguous and first.flags.aligned:
        return first
    out = np.empty(source.shape, target)
    row = 0
    for name, tensor in zip(names, tensors, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out[row : row + len(tensor)], tensor, casting="unsafe")
        checkpoint.release(name)
        row += len(tensor)
    if source.dtype == f16 and any(t.dtype != target for t in tensors):
        _check_range(param, out, tensors, checkpoint)
    return out


def _oriented(source: ParamSource, names: tuple[str, ...], checkpoint: Checkpoint) -> list[np.ndarray]:
    """The weights ``names`` as stored, transposed where the recipe says so."""
    tensors = [checkpoint[name] for name in names]
    if source.transform is Transform.TRANSPOSE and checkpoint.format(names[0]) is None:
        return [t.T for t in tensors]
    return tensors


def _check_range(param: str, out: np.ndarray, tensors: list[np.ndarray], checkpoint: Checkpoint) -> None:
    """f16 ends at 65504: a finite weight must not become infinite."""
    if np.isinf(out).any() and all(np.isfinite(t.astype(np.float32)).all() for t in tensors):
        largest = max(float(np.abs(t.astype(np.float32)).max()) for t in tensors)
        raise UserError(
            f"{checkpoint.folder}: {param}: got a weight of magnitude {largest:g}; f16 holds at most 65504: "
            f"use format bf16 or f32"
        )
