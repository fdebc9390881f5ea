"""How a model folder says that its weights are quantised: ``quantization_config`` of ``config.json``.

======  ==========================================================================================
method  made by
======  ==========================================================================================
strata  ``strata quantize``: codes two to a byte, scales, zeros, and the format of every tensor
gptq    GPTQModel, AutoGPTQ and others: ``qweight`` packed along K
awq     AutoAWQ and others ("gemm" version): ``qweight`` packed along N in an order of its own
mlc     MLC LLM, ``q4f16_1``: ``q_weight`` packed along K; its folders have ``mlc-chat-config.json``
======  ==========================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from strata.core.dtypes import DType, f16
from strata.core.errors import UnsupportedError, UserError
from strata.core.weight_format import (
    INT4,
    PER_CHANNEL,
    FormatChoice,
    WeightFormat,
    parse_format_choice,
    parse_weight_format,
)
from strata.models.fields import Fields

CONFIG_KEY = "quantization_config"
STRATA_VERSION = 1
MLC_FORMAT = "q4f16_1"
# What the other tools leave as floats: embeddings, positions and the head.
_FLOAT_WEIGHTS = ("lm_head", "*embed_tokens", "*wte", "*wpe")


class Packing(Enum):
    """Who defined where the codes are."""

    STRATA = "strata"
    GPTQ = "gptq"
    AWQ = "awq"
    MLC = "mlc"


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """What a config says about its quantised weights.

    Attributes:
        packing: How codes are stored.
        choice: The format of every weight of the model, as far as the config tells.
        weights: Format by name of the tensor (``strata`` only; the others have one format).
        zero_offset: What has to be added to stored zero points (the first version of GPTQ subtracts 1).
        where: The config, for messages.
    """

    packing: Packing
    choice: FormatChoice
    weights: Mapping[str, WeightFormat] = field(default_factory=dict)
    zero_offset: int = 0
    where: str = ""

    @property
    def format(self) -> WeightFormat:
        """The one format of the quantised weights (of all packings but ``strata``)."""
        assert isinstance(self.choice.default, WeightFormat)
        return self.choice.default


def read_stored_format(fields: Fields, dtype: DType | None = None) -> StoredFormat | None:
    """How the weights of a model are quantised; ``None`` if they are plain floats.

    Args:
        fields: The config of the model.
        dtype: Of the weights that are not quantised.

    Raises:
        UserError: values that cannot be.
        UnsupportedError: a way to quantise that Strata does not read.
    """
    config = fields.object(CONFIG_KEY)
    if config is None:
        return None
    method = config.string("quant_method")
    readers = {
        Packing.STRATA.value: _strata,
        Packing.GPTQ.value: _gptq,
        Packing.AWQ.value: _awq,
        Packing.MLC.value: _mlc,
    }
    if method not in readers:
        raise UnsupportedError(
            f"{config.where}: got quant_method {method!r:.60}; Strata reads {', '.join(readers)}: use the "
            f"unquantized model and `strata quantize`"
        )
    return readers[method](config, dtype or f16)


def _strata(config: Fields, dtype: DType) -> StoredFormat:
    version = config.integer("version", 1, 1 << 30)
    if version != STRATA_VERSION:
        raise UnsupportedError(f"{config.where}: got version {version}; this Strata reads {STRATA_VERSION}")
    weights = config.object("weights")
    if weights is None:
        raise UserError(f"{config.where}: weights is missing; expected the format of each tensor by name")
    formats = {name: parse_weight_format(weights.string(name)) for name in weights.data}
    choice = parse_format_choice(config.string("format"), has_names=False)
    return StoredFormat(Packing.STRATA, choice, formats, where=config.where)


def _gptq(config: Fields, dtype: DType) -> StoredFormat:
    bits = _bits(config, (4, 8))
    layout = config.string("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"{config.where}: got checkpoint_format {layout!r:.60}; Strata reads gptq and gptq_v2"
        )
    format = WeightFormat(bits, _group(config), not config.boolean("sym", True))
    skipped = _FLOAT_WEIGHTS[1:] if config.boolean("lm_head", False) else _FLOAT_WEIGHTS
    choice = FormatChoice(format, (("|".join(skipped), dtype),))
    return StoredFormat(Packing.GPTQ, choice, zero_offset=int(layout == "gptq"), where=config.where)


def _awq(config: Fields, dtype: DType) -> StoredFormat:
    bits = _bits(config, (4,))
    version = config.string("version", "gemm")
    if version.lower() != "gemm":
        raise UnsupportedError(f"{config.where}: got version {version!r:.60}; Strata reads gemm")
    if not config.boolean("zero_point", True):
        raise UnsupportedError(f"{config.where}: zero_point is false; Strata reads AWQ with zero points")
    format = WeightFormat(bits, _group(config), is_asymmetric=True)
    left_out = config.strings("modules_to_not_convert")
    if not all(re.fullmatch(r"[\w.-]+", name) for name in left_out):
        raise config.error("modules_to_not_convert", "names of modules")
    skipped = (*_FLOAT_WEIGHTS, *(f"*{name}*" for name in left_out))
    choice = FormatChoice(format, (("|".join(skipped), dtype),))
    return StoredFormat(Packing.AWQ, choice, where=config.where)


def _mlc(config: Fields, dtype: DType) -> StoredFormat:
    name = config.string("format")
    if name != MLC_FORMAT:
        raise UnsupportedError(
            f"{config.where}: got quantization {name!r:.60}; of MLC's packings, Strata reads {MLC_FORMAT}"
        )
    return StoredFormat(Packing.MLC, FormatChoice(INT4), where=config.where)


def _bits(config: Fields, known: tuple[int, ...]) -> int:
    bits = config.integer("bits", 1, 64)
    if bits not in known:
        expected = " or ".join(map(str, known))
        raise UnsupportedError(f"{config.where}: got bits {bits}; Strata reads {expected}")
    return bits


def _group(config: Fields) -> int:
    """``group_size``; -1 is one group per output."""
    group = config.integer("group_size", -1, 1 << 20, 128)
    if group == 0:
        raise config.error("group_size", "-1 or a positive number")
    return PER_CHANNEL if group == -1 else group
