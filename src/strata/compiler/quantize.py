"""Quantise a model folder, calibrated by running the model: what ``strata quantize`` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from strata.assets import DEMO_MODEL
from strata.core.dtypes import bf16, f16, f32
from strata.core.errors import UserError
from strata.core.weight_format import parse_format_choice
from strata.engine.generate import LanguageModel
from strata.engine.tokenizer import Tokenizer
from strata.models import Checkpoint, locate, read_config
from strata.models.quantize.calibrate import (
    DEFAULT_TOKENS,
    MAX_WINDOW_TOKENS,
    PIPELINE,
    Calibration,
    calibration_sequences,
)
from strata.models.quantize.codes import Method, parse_method
from strata.models.quantize.convert import ConversionReport, quantize_folder

from .api import compile_definition, define
from .artifact_cache import Options

if TYPE_CHECKING:
    from strata.codegen.object_cache import Progress
    from strata.models.quantize.convert import Progress as WeightProgress


def quantize(
    model: str | Path = DEMO_MODEL,
    output: str | Path = "quantized",
    format: str = "int4",
    *,
    method: Method | str = Method.SEARCH,
    calibrate: Sequence[str | Path] = (),
    tokens: int = DEFAULT_TOKENS,
    threads: int | None = None,
    progress: WeightProgress | None = None,
    compile_progress: Progress | None = None,
) -> ConversionReport:
    """Write a model folder with quantised weights, which loads like any other.

    Args:
        model: Model folder or hub id.
        output: Folder to make.
        format: ``int4``, ``int8:group=64``, ``mixed``, ...; see ``core.weight_format``.
        method: How scales are chosen: ``search`` or ``nearest``.
        calibrate: Text files; with them, codes make up for each other's errors on such texts (GPTQ).
        tokens: Most tokens of them.
        threads: That the model runs on.
        progress: Called with weights done, weights in all, and the next one's name.
        compile_progress: Called while the model is compiled for calibration.

    Raises:
        UserError: the model, a text or an option is bad; checked before any work.
    """
    choice = parse_format_choice(format)
    chosen = parse_method(method)
    if tokens < 1:
        raise UserError(f"--tokens: got {tokens}; expected at least 1")
    texts = [_read_text(Path(path)) for path in calibrate]
    folder = locate(model)
    calibration = None
    if texts:
        calibration = _calibration(folder, texts, tokens, threads, compile_progress)
    return quantize_folder(
        folder, Path(output), choice, method=chosen, calibration=calibration, progress=progress
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the text: {error.strerror or error}") from error
    except UnicodeError as error:
        raise UserError(f"{path}: is no UTF-8 text: {error}") from None


def _calibration(
    folder: Path, texts: Sequence[str], tokens: int, threads: int | None, progress: Progress | None
) -> Calibration:
    """The model with float weights, compiled in memory only, and its texts as tokens."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: has no tokenizer.json; calibration reads text")
    tokenizer = Tokenizer.from_folder(folder)
    config = read_config(folder)
    stored = config.dtype if config.dtype in (f32, f16, bf16) else f32
    options = Options(stored.name, min(config.max_context, MAX_WINDOW_TOKENS), max_batch=1, pipeline=PIPELINE)
    sequences = calibration_sequences(tokenizer, texts, config.max_context, tokens)
    definition = define(read_config(folder, options.max_context), options, folder.name)
    params = definition.load(Checkpoint(folder))
    program = compile_definition(definition, options, progress=progress).program(params, threads)
    return Calibration(LanguageModel(program, tokenizer), sequences)
