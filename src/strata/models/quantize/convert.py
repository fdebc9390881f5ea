"""A model folder with quantised weights from one with floats: what ``strata quantize`` does.

The result is an ordinary Hugging Face folder whose ``config.json`` has a ``quantization_config``; how the
weights lie in it is in ``packed.py``. One weight after the other is read, quantised and written, in a folder
beside the final one that takes its name when everything is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from strata.core.dtypes import DType
from strata.core.errors import UserError
from strata.core.weight_format import FormatChoice, WeightFormat
from strata.models.checkpoint import SINGLE_NAME, Checkpoint
from strata.models.definition import ModelDefinition, build
from strata.models.fields import CONFIG_NAME, read_object
from strata.models.registry import read_config
from strata.models.weights import ParamSource, Transform, make_floats, resolve_names, stored_codes
from strata.runtime.safetensors_file import TensorShape, write_safetensors

from . import mlc
from .calibrate import Calibration
from .codes import Method, QuantizedMatrix, dequantize_matrix, quantize_matrix
from .gptq import gptq_matrix
from .packed import CODES, SCALES, ZEROS, pack
from .stored import CONFIG_KEY, STRATA_VERSION, Packing

# Hessians that are kept at a time; a larger model is run over the calibration texts several times.
HESSIAN_BYTES = 1 << 30
_ERROR_ELEMS = 1 << 20  # of a weight that are compared with their codes at a time
_COPIED = ("*.json", "*.txt", "*.jinja", "tokenizer.model")
_NOT_COPIED = (CONFIG_NAME, "*.index.json", "quantize_config.json", mlc.CONFIG_NAME, *mlc.INDEX_NAMES)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class WeightReport:
    """What became of one weight.

    Attributes:
        name: Of the param.
        format: Of its codes.
        method: ``stored`` (codes were there already), ``nearest``, ``search`` or ``gptq``.
        shape: ``(N, K)``.
        num_bytes: In the new folder.
        error: Root of the mean squared error, relative to the root mean square of the values.
    """

    name: str
    format: WeightFormat
    method: str
    shape: tuple[int, int]
    num_bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What ``quantize_folder`` did.

    Attributes:
        folder: The new folder.
        choice: Formats of its weights.
        weights: Those that are quantised.
        source_bytes: All params as they were stored before.
        num_bytes: The file of the weights now.
    """

    folder: Path
    choice: FormatChoice
    weights: tuple[WeightReport, ...]
    source_bytes: int
    num_bytes: int


def quantize_folder(
    source: Path,
    output: Path,
    choice: FormatChoice,
    *,
    method: Method = Method.SEARCH,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Quantise the weights of a model folder.

    Args:
        source: Model folder.
        output: Folder to make; must not exist, or be empty.
        choice: Format of each weight.
        method: How scales are chosen where nothing is calibrated.
        calibration: Where weights that are part of a product get the inputs from that GPTQ works with.
        progress: Called with weights done, weights in all, and the next one's name.

    Raises:
        UserError: the model cannot be read, a weight does not fit its format, values that are no numbers, or
            ``output`` is taken.
    """
    _check_output(output)
    if not choice.is_quantized:
        raise UserError(f"format: got {choice}, which quantizes nothing; expected one like int4 or mixed")
    conversion = _Conversion(source, choice, method, calibration, progress)
    part = output.with_name(f".{output.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        num_bytes = write_safetensors(
            part / SINGLE_NAME, conversion.shapes(), conversion.arrays(), {"format": "pt"}
        )
        text = json.dumps(conversion.config(), indent=2) + "\n"
        (part / CONFIG_NAME).write_text(text, encoding="utf-8")
        for path in _companions(source):
            shutil.copyfile(path, part / path.name)
        if output.is_dir():
            output.rmdir()  # empty, as checked above
        part.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot write the model: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return ConversionReport(output, choice, tuple(conversion.reports), conversion.source_bytes(), num_bytes)


def _check_output(output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: exists already; it is not overwritten: choose another name")


def _companions(source: Path) -> Iterator[Path]:
    """Tokenizer, generation defaults and the like."""
    for path in sorted({path for pattern in _COPIED for path in source.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
            yield path


class _Conversion:
    """One run of :func:`quantize_folder`; making it checks everything but the values."""

    def __init__(
        self,
        source: Path,
        choice: FormatChoice,
        method: Method,
        calibration: Calibration | None,
        progress: Progress | None,
    ) -> None:
        self._source, self._choice, self._method = source, choice, method
        self._calibration, self._progress = calibration, progress
        self._definition: ModelDefinition = build(read_config(source), choice)
        self._checkpoint = Checkpoint(source)
        self._names = resolve_names(self._definition.sources, self._definition.names, self._checkpoint)
        self.reports: list[WeightReport] = []

    @property
    def _formats(self) -> Mapping[str, WeightFormat]:
        return self._definition.formats

    def source_bytes(self) -> int:
        """Bytes of the weights as the source stores them."""
        names = {name for names in self._names.values() for name in names}
        return sum(self._checkpoint.num_bytes(name) for name in names)

    def config(self) -> dict[str, Any]:
        """``config.json`` of the new folder."""
        path = self._source / CONFIG_NAME
        config = read_object(path) if path.is_file() else mlc.read_mlc_config(self._source / mlc.CONFIG_NAME)
        weights = {
            name: str(format)
            for param, format in self._formats.items()
            for name, _ in self._definition.sources[param].tensors
        }
        return {
            **config,
            CONFIG_KEY: {
                "quant_method": Packing.STRATA.value,
                "version": STRATA_VERSION,
                "format": self._choice.explicit,
                "weights": weights,
            },
        }

    def shapes(self) -> Iterator[TensorShape]:
        """The tensors of the new file."""
        for param, source in self._definition.sources.items():
            format = self._formats.get(param)
            for name, shape in source.tensors:
                if format is None:
                    yield TensorShape(name, self._float_dtype(param, source).name, shape)
                    continue
                n, k = shape[::-1] if source.transform is Transform.TRANSPOSE else shape
                groups = (n, format.num_groups(k, name))
                yield TensorShape(name + CODES, "u8", (n, k * format.bits // 8))
                yield TensorShape(name + SCALES, "f16", groups)
                if format.is_asymmetric:
                    yield TensorShape(name + ZEROS, "u8", groups)

    def _float_dtype(self, param: str, source: ParamSource) -> DType:
        """What the choice says of a matrix; otherwise as it is stored."""
        wanted = self._choice.of(param)
        if len(source.shape) == 2 and isinstance(wanted, DType):
            return wanted
        return self._checkpoint.entry(self._names[param][0]).dtype

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Their contents, one weight at a time."""
        total = len(self._definition.sources)
        for index, (param, source, hessian) in enumerate(self._with_hessians()):
            if self._progress is not None:
                self._progress(index, total, param)
            format = self._formats.get(param)
            if format is None:
                floats = replace(source, dtype=self._float_dtype(param, source))
                array = make_floats(param, floats, self._names[param], self._checkpoint)
                yield from _split(source, array)
            else:
                matrix = self._quantized(param, source, format, hessian)
                parts = [(CODES, pack(matrix.codes, format.bits)), (SCALES, matrix.scales)]
                if matrix.zeros is not None:
                    parts.append((ZEROS, matrix.zeros))
                for ending, array in parts:
                    yield from ((name + ending, rows) for name, rows in _split_rows(source, array))
            for name in self._names[param]:
                self._checkpoint.release(name)

    def _quantized(
        self, param: str, source: ParamSource, format: WeightFormat, hessian: np.ndarray | None
    ) -> QuantizedMatrix:
        names = self._names[param]
        matrix, error, method = stored_codes(names, self._checkpoint, format), 0.0, "stored"
        if matrix is None:
            weight = make_floats(param, source, names, self._checkpoint)
            if hessian is None:
                matrix = quantize_matrix(weight, format, method=self._method, name=param)
                method = self._method.value
            else:
                matrix = gptq_matrix(weight, format, hessian, name=param)
                method = "gptq"
            error = relative_error(weight, matrix)
        n, k = matrix.shape
        self.reports.append(WeightReport(param, format, method, (n, k), format.num_bytes(n, k), error))
        return matrix

    def _with_hessians(self) -> Iterator[tuple[str, ParamSource, np.ndarray | None]]:
        """Recipes with the Hessian of their inputs, which are collected for some weights at a time."""
        batch: list[tuple[str, ParamSource]] = []
        wanted: list[str] = []
        size = 0
        for param, source in self._definition.sources.items():
            needs = self._calibration is not None and param in self._formats
            need_bytes = 4 * source.shape[-1] ** 2 if needs else 0
            if size + need_bytes > HESSIAN_BYTES and wanted:
                yield from self._calibrated(batch, wanted)
                batch, wanted, size = [], [], 0
            batch.append((param, source))
            wanted += [param] * needs
            size += need_bytes
        yield from self._calibrated(batch, wanted)

    def _calibrated(
        self, batch: list[tuple[str, ParamSource]], wanted: list[str]
    ) -> Iterator[tuple[str, ParamSource, np.ndarray | None]]:
        found: dict[str, np.ndarray] = {}
        if self._calibration is not None and wanted:
            if self._progress is not None:
                self._progress(len(self.reports), len(self._definition.sources), "(calibrating)")
            found = self._calibration.hessians(wanted)
        for param, source in batch:
            yield param, source, found.pop(param, None)


def relative_error(weight: np.ndarray, matrix: QuantizedMatrix) -> float:
    """Root of the mean squared error over the root mean square of the values."""
    total, error = 0.0, 0.0
    step = max(1, _ERROR_ELEMS // weight.shape[1])
    for begin in range(0, len(weight), step):
        values = weight[begin : begin + step].astype(np.float32)
        total += float(np.vdot(values, values))
        values -= dequantize_matrix(matrix.rows(begin, begin + step))
        error += float(np.vdot(values, values))
    return (error / total) ** 0.5 if total > 0 else 0.0


def _split(source: ParamSource, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A float param as the tensors that it is made of."""
    if source.transform is Transform.TRANSPOSE:
        yield source.tensors[0][0], array.T
    else:
        yield from _split_rows(source, array)


def _split_rows(source: ParamSource, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of what a param is made of."""
    if len(source.tensors) == 1:
        yield source.tensors[0][0], array
        return
    begin = 0
    for name, shape in source.tensors:
        yield name, array[begin : begin + shape[0]]
        begin += shape[0]
