"""Folders of MLC LLM: ``mlc-chat-config.json``, and weights in shards listed by ``ndarray-cache.json``.

::

    index  ::= {"records": [shard, ...], ...}
    shard  ::= {"dataPath": file, "nbytes": n, "records": [tensor, ...], ...}
    tensor ::= {"name": .., "shape": [..], "dtype": "uint32", "format": "raw" | "f32-to-bf16",
                "nbytes": n, "byteOffset": begin}

The names of MLC's params are those of our graphs: q, k and v are one matrix there as well.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from strata.core.dtypes import bf16, dtype
from strata.core.errors import UnsupportedError, UserError
from strata.models.fields import Fields, read_object
from strata.models.safetensors import MAX_RANK, drop_pages
from strata.runtime.safetensors_file import Entry
from strata.runtime.tensors import numpy_dtype

from .stored import CONFIG_KEY

CONFIG_NAME = "mlc-chat-config.json"
INDEX_NAMES = ("ndarray-cache.json", "tensor-cache.json")  # before and after TVM renamed its arrays
_ARCHITECTURES = {"llama": "LlamaForCausalLM"}
_MAX_BYTES = 1 << 48
# Keys of MLC's model_config with another name in Hugging Face's config.json.
_RENAMED = {"context_window_size": "max_position_embeddings", "position_embedding_base": "rope_theta"}


def read_mlc_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` that says the same as an ``mlc-chat-config.json``.

    Raises:
        UserError: the file is damaged.
        UnsupportedError: a model that Strata does not read from MLC's folders.
    """
    fields = Fields(read_object(path), str(path))
    model_type = fields.string("model_type")
    if model_type not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: got model_type {model_type!r:.60}; of MLC's folders, Strata reads "
            f"{', '.join(_ARCHITECTURES)}: use the Hugging Face model"
        )
    model = fields.object("model_config")
    if model is None:
        raise UserError(f"{path}: model_config is missing; expected an object")
    config = {_RENAMED.get(key, key): value for key, value in model.data.items()}
    if not config.get("rope_theta"):  # 0: the default
        config.pop("rope_theta", None)
    for key in ("bos_token_id", "eos_token_id"):
        if key in fields:
            config[key] = fields.data[key]
    config["architectures"] = [_ARCHITECTURES[model_type]]
    config[CONFIG_KEY] = {"quant_method": "mlc", "format": fields.string("quantization")}
    return config


def index_path(folder: Path) -> Path | None:
    """The index of MLC's shards in a folder, if it has one."""
    return next((folder / name for name in INDEX_NAMES if (folder / name).is_file()), None)


class MlcTensors:
    """Tensors by name, memory-mapped, from MLC's shards.

    Args:
        index: The file that lists them.

    Raises:
        UserError: a missing or cut-off shard, or an index that contradicts itself.
    """

    def __init__(self, index: Path) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._entries: dict[str, tuple[Path, Entry]] = {}
        for shard in _objects(Fields(read_object(index), str(index)), "records"):
            path = self._open(index, shard)
            for record in _objects(shard, "records"):
                name = record.string("name")
                if name in self._entries:
                    raise UserError(f"{index}: lists {name!r} twice; expected it once")
                self._entries[name] = path, _entry(record, name, len(self._maps[path]))

    def _open(self, index: Path, shard: Fields) -> Path:
        name = shard.string("dataPath")
        # A shard lies beside its index; anything else would read outside of the folder.
        if name != Path(name).name:
            raise shard.error("dataPath", "the name of a file in the same folder")
        path = index.parent / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != shard.integer("nbytes", 1, _MAX_BYTES):
                    raise UserError(
                        f"{path}: got {size} bytes; {index.name} says {shard.data['nbytes']}: fetch it again"
                    )
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: cannot read the weights: {error.strerror or error}") from error
        return path

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only view of the tensor."""
        path, entry = self._entries[name]
        flat = np.frombuffer(self._maps[path], np.uint8, entry.end - entry.begin, entry.begin)
        return flat.view(numpy_dtype(entry.dtype.name)).reshape(entry.shape)

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of the tensor."""
        return self._entries[name][1]

    def path(self, name: str) -> Path:
        """The shard that holds the tensor."""
        return self._entries[name][0]

    def release(self, name: str) -> None:
        """Drop the pages of the tensor from memory."""
        path, entry = self._entries[name]
        drop_pages(self._maps[path], entry.begin, entry.end)


def _objects(fields: Fields, key: str) -> list[Fields]:
    items = fields.data.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise fields.error(key, "a list of objects")
    return [Fields(item, f"{fields.where}: {key}[{i}]") for i, item in enumerate(items)]


def _entry(record: Fields, name: str, size: int) -> Entry:
    shape = record.data.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(d) is int and 0 < d < 1 << 40 for d in shape)
    ):
        raise record.error("shape", "a list of sizes")
    if record.string("format", "raw") == "f32-to-bf16" and record.string("dtype") == "float32":
        kind = bf16
    else:
        kind = dtype(record.string("dtype"))
    begin, count = record.integer("byteOffset", 0, size), record.integer("nbytes", 0, size)
    need = prod(shape) * kind.itemsize_bytes
    if count != need or begin + count > size:
        raise UserError(
            f"{record.where}: {name}: {kind}{shape} takes {need} bytes; "
            f"got {count} from byte {begin} of {size}"
        )
    return Entry(kind, tuple(shape), begin, begin + count)
