"""``strata perplexity``: what a model loses in fewer bits."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from strata.app.progress import Report
    from strata.engine.generate import LanguageModel

DEFAULT_FORMATS = "f32,bf16,int8,int4,mixed"
AS_STORED = "stored"
HELD_OUT = "heldout.txt"
MAX_WINDOW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table.

    Attributes:
        model: Folder or hub id.
        format: Of its weights.
        perplexity: Per predicted token.
        bits_per_byte: Bits of information per byte of the text.
        tokens: Predicted.
    """

    model: str
    format: str
    perplexity: float
    bits_per_byte: float
    tokens: int


@reported()
def command(
    models: Annotated[
        list[str] | None, typer.Argument(help="Model folders, hub ids or artifacts; default: the demo model")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text to predict; default: heldout.txt beside the model, else the demo model's"),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help=f"Formats of the weights, with commas; stored = as they are; default: {DEFAULT_FORMATS}, "
            f"but stored for models that are quantized or compiled already"
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens that are run together; default: the context, 2048 at most")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next; default: half a window")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Only the first so many tokens of the text")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the perplexity of models and formats on a text.

    The differences are to the first line. Every token but the first is predicted once, from at least as many
    tokens before it as windows overlap, or all there are.
    """
    from strata.app.progress import progress_bar

    names = models or [None]
    runs = [(name, one) for name in names for one in _formats(name, format)]
    content = _read_text(text, names[0])
    scores: list[Score] = []
    with progress_bar() as show:
        for name, one in runs:
            scores.append(_score(name, one, content, (window, stride, tokens), threads, show))
    if as_json:
        sys.stdout.write(json.dumps(_json(scores), indent=2) + "\n")
    else:
        _print(scores)


def split_formats(text: str) -> list[str]:
    """Formats separated by commas, which also separate the options of one: ``int4:group=64,asymmetric``.

    Raises:
        UserError: there are none.
    """
    from strata.core.errors import UserError

    found: list[str] = []
    for piece in (p.strip() for p in text.split(",")):
        if found and (piece == "asymmetric" or piece.startswith("group=")):
            found[-1] += f",{piece}"
        elif piece:
            found.append(piece)
    if not found:
        raise UserError(f"--format: got {text!r:.40}; expected formats like {DEFAULT_FORMATS}")
    return found


def _formats(model: str | None, wanted: str | None) -> list[str | None]:
    """What to run a model in; ``None`` = as it is stored. Formats are checked before anything is run."""
    from strata.core.weight_format import parse_format_choice
    from strata.runtime.artifact import is_artifact

    if wanted is None:
        is_fixed = model is not None and (is_artifact(model) or _is_quantized(model))
        wanted = AS_STORED if is_fixed else DEFAULT_FORMATS
    names = split_formats(wanted)
    for name in names:
        if name != AS_STORED:
            parse_format_choice(name)
    return [None if name == AS_STORED else name for name in names]


def _is_quantized(model: str) -> bool:
    from strata.models import locate, read_config

    return read_config(locate(model)).format is not None


def _read_text(path: Path | None, model: str | None) -> str:
    from strata.assets import DEMO_MODEL
    from strata.core.errors import UserError

    if path is None:
        own = Path(model or DEMO_MODEL) / HELD_OUT
        path = own if own.is_file() else DEMO_MODEL / HELD_OUT
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeError as error:
        raise UserError(f"{path}: is no UTF-8 text: {error}") from None


def _score(
    name: str | None,
    format: str | None,
    text: str,
    limits: tuple[int | None, int | None, int | None],
    threads: int | None,
    show: Report | None,
) -> Score:
    from strata.app.session import Source, open_model

    title = f"{name or 'demo model'} {format or AS_STORED}"
    model = open_model(Source(name, format=format, threads=threads))
    ids = _encode(model, text)
    scored_bytes = len(text.encode())
    if limits[2] is not None and limits[2] < len(ids):
        ids = ids[: max(limits[2], 0)]
        assert model.tokenizer is not None
        scored_bytes = len(model.tokenizer.decode(ids).encode())
    window = limits[0] or min(model.max_context, MAX_WINDOW_TOKENS)
    stride = limits[1] or max(window // 2, 1)
    report = None if show is None else (lambda done, total: show(done, total, title))
    perplexity = model.perplexity(ids, window, stride, progress=report)
    count = len(ids) - 1
    bits_per_byte = math.log2(perplexity) * count / max(scored_bytes, 1)
    chosen = str(model.config.get("format", format))
    return Score(str(name or "demo model"), chosen, perplexity, bits_per_byte, count)


def _encode(model: LanguageModel, text: str) -> list[int]:
    """The text as one document: after the token that begins one, if the model has such a token."""
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text, add_special=True)
    begin = model.tokenizer.bos_id
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


def _json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [
        {
            "model": s.model,
            "format": s.format,
            "perplexity": s.perplexity,
            "bits_per_byte": s.bits_per_byte,
            "difference": s.perplexity / scores[0].perplexity - 1,
            "tokens": s.tokens,
        }
        for s in scores
    ]


def _print(scores: Sequence[Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{scores[0].tokens} tokens")
    table.add_column("model", overflow="fold")
    table.add_column("format", overflow="fold")
    for column in ("perplexity", "difference", "bits per byte"):
        table.add_column(column, justify="right", no_wrap=True)
    for s in scores:
        change = s.perplexity / scores[0].perplexity - 1
        table.add_row(s.model, s.format, f"{s.perplexity:.4f}", f"{change:+.3%}", f"{s.bits_per_byte:.5f}")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False).print(table)
