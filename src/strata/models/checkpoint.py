"""The weights of a model folder: ``model.safetensors``, or shards with ``model.safetensors.index.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from strata.core.errors import UnsupportedError, UserError
from strata.runtime.safetensors_file import Entry

from .fields import Fields, read_object
from .safetensors import CheckpointFile

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_OTHER_FORMATS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class Checkpoint:
    """Tensors by name, memory-mapped, from one or several files.

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

    def __len__(self) -> int:
        return len(self._file_of)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor called ``name``: a read-only view of its file.

        Raises:
            UserError: no such tensor.
        """
        return self.file(name)[name]

    def file(self, name: str) -> CheckpointFile:
        """The file that holds the tensor ``name``.

        Raises:
            UserError: no such tensor.
        """
        if name not in self._file_of:
            raise UserError(
                f"{self.folder}: no tensor {name!r} in the checkpoint, which has {len(self)} tensors"
            )
        return self._file_of[name]

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of the tensor ``name``.

        Raises:
            UserError: no such tensor.
        """
        return self.file(name).entries[name]

    def release(self, name: str) -> None:
        """Drop the pages of the tensor ``name`` from memory."""
        self.file(name).release(name)
