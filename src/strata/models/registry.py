"""The architectures that Strata knows, by the name in ``config.json``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strata.core.dtypes import DType
from strata.core.errors import UnsupportedError, UserError
from strata.core.registry import Registry
from strata.frontend import nn

from .config import ModelConfig
from .fields import CONFIG_NAME, Fields, read_object
from .quantize import mlc
from .weights import NameRules, ParamSource


class LanguageModel(Protocol):
    """What every architecture's module offers: ids i32 ``[n]`` and a cache to f32 logits and the cache."""

    def prefill(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> Any:
        """Logits ``[num_seqs, vocab]`` after the last token of each sequence."""

    def decode(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> Any:
        """The same with one token per sequence."""

    def score(self, ids: nn.Tensor, cache: nn.PagedKVCache) -> Any:
        """Logits ``[n, vocab]`` after every token."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a config is read for.

    Attributes:
        folder: Model folder, for the files beside ``config.json``; ``None`` without one.
        max_context: Largest context that is asked for, in tokens; ``None`` = that of the checkpoint.
    """

    folder: Path | None = None
    max_context: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build models of one architecture.

    Attributes:
        name: As in ``architectures`` of ``config.json``.
        model_type: As in ``model_type``.
        read: Config of a model.
        module: The module: config, dtype of the weights -> module with the methods of :class:`LanguageModel`.
        source: Recipe of one param: config, name, parameter -> recipe.
        names: Freedom of checkpoints with tensor names.
    """

    name: str
    model_type: str
    read: Callable[[Fields, ReadOptions], ModelConfig]
    module: Callable[[ModelConfig, DType], nn.Module]
    source: Callable[[ModelConfig, str, nn.Parameter], ParamSource]
    names: Callable[[ModelConfig], NameRules]


ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def define_architecture(architecture: Architecture) -> Architecture:
    """Add an architecture to the table."""
    return ARCHITECTURES.add(architecture.name, architecture)


def find_architecture(fields: Fields) -> Architecture:
    """The architecture that a config names.

    Raises:
        UserError: it names none.
        UnsupportedError: Strata has no such architecture.
    """
    known = ", ".join(name for name, _ in ARCHITECTURES.items())
    names = fields.strings("architectures")
    if names:
        found = next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)
        wanted = f"architecture {names[0]!r}"
    else:
        model_type = fields.string("model_type", None)
        if model_type is None:
            raise UserError(
                f"{fields.where}: architectures and model_type are missing; expected one of {known}"
            )
        found = next((a for _, a in ARCHITECTURES.items() if a.model_type == model_type), None)
        wanted = f"model_type {model_type!r}"
    if found is None:
        raise UnsupportedError(f"{fields.where}: got {wanted:.80}; Strata builds {known}")
    return found


def parse_config(
    data: dict[str, Any], where: str = CONFIG_NAME, options: ReadOptions | None = None
) -> ModelConfig:
    """The model that the config ``data`` describes.

    Args:
        data: The JSON object.
        where: Its file, for messages.
        options: What it is read for.

    Raises:
        UserError: missing keys, wrong types, sizes that contradict each other.
        UnsupportedError: an architecture or variant that Strata lacks.
    """
    fields = Fields(data, where)
    return find_architecture(fields).read(fields, options or ReadOptions())


def read_config(folder: Path, max_context: int | None = None) -> ModelConfig:
    """The model in ``folder``, as its ``config.json`` (or MLC's) describes it.

    Args:
        folder: Model folder.
        max_context: Largest context that is asked for, in tokens; ``None`` = that of the checkpoint.

    Raises:
        UserError: no such file, or as in :func:`parse_config`.
        UnsupportedError: as in :func:`parse_config`.
    """
    path, options = folder / CONFIG_NAME, ReadOptions(folder, max_context)
    if path.is_file():
        return parse_config(read_object(path), str(path), options)
    path = folder / mlc.CONFIG_NAME
    if path.is_file():
        return parse_config(mlc.read_mlc_config(path), str(path), options)
    raise UserError(f"{folder}: has no {CONFIG_NAME}; expected a Hugging Face model folder")
