"""The weights of a model folder: ``model.safetensors``, shards with ``model.safetensors.index.json``, or
MLC's shards; plain floats, or quantised as ``config.json`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from strata.core.dtypes import f32
from strata.core.errors import UnsupportedError, UserError
from strata.core.weight_format import WeightFormat
from strata.runtime.safetensors_file import Entry

from .fields import CONFIG_NAME, Fields, read_object
from .quantize import mlc
from .quantize.codes import QuantizedMatrix, dequantize_matrix
from .quantize.packed import find_packed
from .quantize.stored import read_stored_format
from .safetensors import CheckpointFile

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_OTHER_FORMATS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class Checkpoint:
    """Weights by name, whether they are stored as floats or as codes.

    A quantised weight has the name that it would have as a float, and the shape ``[N, K]``, even where a
    model stores floats as ``[K, N]``. Asked for by name, it is given as floats; :meth:`codes` gives it as it
    is.

    Args:
        folder: Model folder.

    Attributes:
        folder: The same.
        stored: How the weights are quantised; ``None`` for plain floats.

    Raises:
        UserError: no weights there, a missing shard, a damaged file, an index that contradicts the shards, or
            a packing that contradicts ``config.json``.
        UnsupportedError: weights in a format that Strata does not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = mlc.index_path(folder)
        self._tensors = TensorFiles(folder) if index is None else mlc.MlcTensors(index)
        fields = _config_fields(folder)
        self.stored = None if fields is None else read_stored_format(fields)
        self._packed = find_packed(self._tensors, self.stored)
        hidden = {tensor for weight in self._packed.values() for tensor in weight.tensors}
        self._names = dict.fromkeys((*(n for n in self._tensors if n not in hidden), *self._packed))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        """The weight called ``name``: a read-only view of its file, or the f32 values of its codes.

        Raises:
            UserError: no such weight.
        """
        self._check(name)
        return dequantize_matrix(self.codes(name)) if name in self._packed else self._tensors[name]

    def format(self, name: str) -> WeightFormat | None:
        """Format of the codes of the weight ``name``; ``None`` if it is stored as floats."""
        return self._packed[name].format if name in self._packed else None

    def codes(self, name: str) -> QuantizedMatrix:
        """The quantised weight ``name`` as it is stored.

        Raises:
            UserError: it is stored as floats, or its codes are none of its packing.
        """
        self._check(name)
        if name not in self._packed:
            raise UserError(f"{self.path(name)}: {name} is not quantized; it has no codes")
        return self._packed[name].read()

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of the weight ``name``; of a quantised one, those of its values.

        Raises:
            UserError: no such weight.
        """
        self._check(name)
        packed = self._packed.get(name)
        return self._tensors.entry(name) if packed is None else Entry(f32, packed.shape, 0, 0)

    def path(self, name: str) -> Path:
        """The file that holds the weight ``name``.

        Raises:
            UserError: no such weight.
        """
        return self._tensors.path(self._stored_in(name)[0])

    def num_bytes(self, name: str) -> int:
        """Bytes that the weight ``name`` takes as it is stored."""
        entries = [self._tensors.entry(tensor) for tensor in self._stored_in(name)]
        return sum(entry.end - entry.begin for entry in entries)

    def release(self, name: str) -> None:
        """Drop the pages of the weight ``name`` from memory."""
        for tensor in self._stored_in(name):
            self._tensors.release(tensor)

    def is_void(self, name: str) -> bool:
        """Whether ``name`` is the bias of a quantised weight, and zero: some tools give one to all layers."""
        weight = name.removesuffix(".bias") + ".weight"
        return name.endswith(".bias") and weight in self._packed and not self[name].any()

    def _stored_in(self, name: str) -> tuple[str, ...]:
        self._check(name)
        return self._packed[name].tensors if name in self._packed else (name,)

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise UserError(
                f"{self.folder}: no tensor {name!r} in the checkpoint, which has {len(self)} tensors"
            )


def _config_fields(folder: Path) -> Fields | None:
    if (folder / CONFIG_NAME).is_file():
        return Fields(read_object(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
    if (folder / mlc.CONFIG_NAME).is_file():
        return Fields(mlc.read_mlc_config(folder / mlc.CONFIG_NAME), str(folder / mlc.CONFIG_NAME))
    return None


class TensorFiles:
    """Tensors by name, memory-mapped, from one or several safetensors files.

    Args:
        folder: Model folder.

    Raises:
        UserError: no weights there, a missing shard, a damaged file, or an index that contradicts the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, CheckpointFile] = {}
        if (folder / INDEX_NAME).is_file():
            self._open_shards(folder / INDEX_NAME)
        elif (folder / SINGLE_NAME).is_file():
            self._add(CheckpointFile(folder / SINGLE_NAME))
        else:
            self._fail_without_weights()

    def _fail_without_weights(self) -> None:
        for name in _OTHER_FORMATS:
            if (self.folder / name).exists():
                raise UnsupportedError(
                    f"{self.folder}: has {name}; Strata reads safetensors: convert it with "
                    f"transformers' save_pretrained"
                )
        raise UserError(f"{self.folder}: no weights; expected {SINGLE_NAME} or {INDEX_NAME}")

    def _add(self, file: CheckpointFile) -> None:
        for name in file.entries:
            if name in self._file_of:
                raise UserError(
                    f"{file.path}: tensor {name!r} is also in {self._file_of[name].path}; expected it once"
                )
            self._file_of[name] = file

    def _open_shards(self, index_path: Path) -> None:
        index = Fields(read_object(index_path), str(index_path)).object("weight_map")
        if index is None:
            raise UserError(
                f"{index_path}: weight_map is missing; expected an object from tensor names to file names"
            )
        shards: dict[str, CheckpointFile] = {}
        for tensor in index.data:
            name = index.string(tensor)
            # A shard lies beside its index; anything else would read outside the folder.
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise index.error(tensor, "the name of a .safetensors file in the same folder")
            if name not in shards:
                path = self.folder / name
                if not path.is_file():
                    raise UserError(
                        f"{path}: missing; {index_path.name} says that it holds {tensor!r}: fetch it again"
                    )
                shards[name] = CheckpointFile(path)
            if tensor not in shards[name].entries:
                raise UserError(
                    f"{shards[name].path}: has no tensor {tensor!r}, which {index_path.name} expects there"
                )
        for file in shards.values():
            self._add(file)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only view of the tensor."""
        return self._file_of[name][name]

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of the tensor."""
        return self._file_of[name].entries[name]

    def path(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._file_of[name].path

    def release(self, name: str) -> None:
        """Drop the pages of the tensor from memory."""
        self._file_of[name].release(name)
