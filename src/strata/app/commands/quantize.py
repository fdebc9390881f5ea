"""``strata quantize``: a model folder with weights of 4 or 8 bits from one with floats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from strata.models.quantize.convert import ConversionReport


@reported()
def command(
    model: Annotated[str, typer.Argument(help="Model folder or hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make")],
    format: Annotated[
        str,
        typer.Option(
            help="int4 (q4), int8 (q8), also like int4:group=64, int8:group=channel, int4:asymmetric; "
            "mixed; or by weight: 'int4;lm_head=int8;*.down_proj=bf16'"
        ),
    ] = "int4",
    method: Annotated[
        str, typer.Option(help="How scales are chosen: search (least squared error) or nearest")
    ] = "search",
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Text file (may be given several times): codes make up for errors on such text"),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Most tokens of these texts; default: 16384")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantise the weights of a model into a new folder.

    The folder is an ordinary model folder: strata generate, chat, compile, ... take it like any other. GPTQ,
    AWQ and MLC folders need no conversion; they are read as they are.
    """
    from strata.app.progress import progress_bar
    from strata.app.session import compile_report
    from strata.compiler.quantize import quantize
    from strata.models.quantize.calibrate import DEFAULT_TOKENS

    with progress_bar() as show:
        report = quantize(
            model,
            output,
            format,
            method=method,
            calibrate=calibrate or (),
            tokens=DEFAULT_TOKENS if tokens is None else tokens,
            threads=threads,
            progress=None
            if show is None
            else lambda done, total, name: show(done, total, f"quantizing {name}"),
            compile_progress=None if show is None else compile_report(show),
        )
    if as_json:
        sys.stdout.write(json.dumps(_json(report), indent=2) + "\n")
    else:
        _print(report)


def _json(report: ConversionReport) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "format": str(report.choice),
        "source_bytes": report.source_bytes,
        "bytes": report.num_bytes,
        "weights": [
            {
                "name": w.name,
                "format": str(w.format),
                "method": w.method,
                "shape": list(w.shape),
                "bytes": w.num_bytes,
                "relative_error": w.error,
            }
            for w in report.weights
        ],
    }


def _print(report: ConversionReport) -> None:
    elements = sum(n * k for n, k in (w.shape for w in report.weights))
    bits = 8 * sum(w.num_bytes for w in report.weights) / elements
    for key in dict.fromkeys((w.format, w.method) for w in report.weights):
        own = [w for w in report.weights if (w.format, w.method) == key]
        total = sum(w.shape[0] * w.shape[1] for w in own)
        mean = (sum(w.error**2 * w.shape[0] * w.shape[1] for w in own) / total) ** 0.5
        sys.stdout.write(
            f"{key[0]} by {key[1]}: {len(own)} weights, {total / 1e6:.1f} M elements, "
            f"relative error {mean:.2%}\n"
        )
    sys.stdout.write(
        f"{report.folder}: {bits:.2f} bits per weight, {report.num_bytes / 1e6:.1f} MB "
        f"instead of {report.source_bytes / 1e6:.1f} MB\n"
    )
