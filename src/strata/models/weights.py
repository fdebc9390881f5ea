"""How each param of the graph is made from the tensors of a checkpoint, one at a time.

The largest thing in memory is one finished param: sources are memory-mapped and their pages dropped after
use.
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
from strata.passes.quantize import CODES, SCALES, ZEROS

from .checkpoint import Checkpoint
from .quantize.codes import quantize_matrix


class Transform(Enum):
    """What is done to the source tensors, before the cast to the param's dtype."""

    CONCAT_ROWS = "concat_rows"  # one tensor, or several one below the other: q, k, v -> qkv
    TRANSPOSE = "transpose"  # one matrix [in, out] -> [out, in]


@dataclass(frozen=True, slots=True)
class ParamSource:
    """Recipe of one param.

    Attributes:
        tensors: ``(name, shape)`` of the checkpoint tensors, in order; all of them float.
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
) -> dict[str, str]:
    """Name in this checkpoint of every tensor that the sources ask for, checked against shapes and leftovers.

    Raises:
        UserError: a tensor is missing, has the wrong shape or dtype, or is not part of the model.
    """
    found: dict[str, str] = {}
    for source in sources.values():
        for name, shape in source.tensors:
            actual = name if name in checkpoint else name.removeprefix(rules.prefix)
            if actual not in checkpoint:
                raise UserError(
                    f"{checkpoint.folder}: tensor {name!r} is missing from the checkpoint; expected {shape}"
                )
            entry = checkpoint.entry(actual)
            path = checkpoint.file(actual).path
            if entry.shape != shape:
                raise UserError(
                    f"{path}: tensor {actual!r}: got shape {entry.shape}; expected {shape} by config.json: "
                    f"the two do not belong together"
                )
            if not entry.dtype.is_float:
                raise UserError(f"{path}: tensor {actual!r}: got dtype {entry.dtype}; expected a float type")
            found[name] = actual
    used = set(found.values())
    for name in checkpoint:
        if name not in used and not name.endswith(rules.ignored):
            raise UserError(
                f"{checkpoint.file(name).path}: tensor {name!r} is not part of this architecture; "
                f"config.json and the weights do not belong together"
            )
    return found


def load_params(
    sources: Mapping[str, ParamSource], rules: NameRules, checkpoint: Checkpoint
) -> Iterator[tuple[str, np.ndarray]]:
    """Make the params one after the other: ``(name, array)`` in the order of ``sources``.

    An array may be a read-only view of the file; it stays valid, but its pages leave memory when the next
    one is made. All names, shapes and dtypes are checked before the first array is made.

    Raises:
        UserError: as in :func:`resolve_names`, or a value does not fit the param's dtype.
    """
    names = resolve_names(sources, rules, checkpoint)

    def make() -> Iterator[tuple[str, np.ndarray]]:
        for param, source in sources.items():
            used = [names[name] for name, _ in source.tensors]
            yield param, _make(param, source, used, checkpoint)
            for name in used:  # what was not copied
                checkpoint.release(name)

    return make()


def _make(param: str, source: ParamSource, names: list[str], checkpoint: Checkpoint) -> np.ndarray:
    target = np.dtype(source.dtype.numpy_name)
    tensors = [checkpoint[name] for name in names]
    if source.transform is Transform.TRANSPOSE:
        tensors = [t.T for t in tensors]
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


def _check_range(param: str, out: np.ndarray, tensors: list[np.ndarray], checkpoint: Checkpoint) -> None:
    """f16 ends at 65504: a finite weight must not become infinite."""
    if np.isinf(out).any() and all(np.isfinite(t.astype(np.float32)).all() for t in tensors):
        largest = max(float(np.abs(t.astype(np.float32)).max()) for t in tensors)
        raise UserError(
            f"{checkpoint.folder}: {param}: got a weight of magnitude {largest:g}; f16 holds at most 65504: "
            f"use format bf16 or f32"
        )


def encode_params(
    params: Iterator[tuple[str, np.ndarray]], formats: Mapping[str, WeightFormat]
) -> Iterator[tuple[str, np.ndarray]]:
    """Weights that have a format become their codes, scales (and zeros); everything else passes through.

    Args:
        params: ``(name, array)``, floats.
        formats: Format by name.

    Raises:
        UserError: a weight has a value that is no number.
    """
    for name, array in params:
        format = formats.get(name)
        if format is None:
            yield name, array
            continue
        matrix = quantize_matrix(array, format, name=name)
        yield name + CODES, matrix.codes
        yield name + SCALES, matrix.scales
        if matrix.zeros is not None:
            yield name + ZEROS, matrix.zeros.astype(np.uint8)
