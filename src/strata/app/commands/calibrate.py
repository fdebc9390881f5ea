"""``strata calibrate``: measure this computer for the planner, and say how well its predictions hold."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from strata.app.calibration import Calibration, Predicted
    from strata.models import ModelConfig
    from strata.target.hardware import Machine

_CHECKED = (("prefill", 96), ("prefill", 200), ("prefill", 384), ("decode", 64), ("decode", 300))


@reported()
def command(
    format: Annotated[
        list[str] | None, typer.Option(help="Weights to measure kernels for (several times); default: bf16")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Machine file to write; default: that of --machine this"),
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Also predict and measure this shape, e.g. tinyllama-1.1b")
    ] = None,
    only_check: Annotated[
        bool, typer.Option("--only-check", help="Check the calibration that is there; measure no new one")
    ] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time kernels of every family on this computer and fit their costs, for plans on the machine ``this``.

    With --check, lengths that the calibration did not see are predicted and measured.
    """
    from strata.app.calibration import calibrate
    from strata.app.files import write_text
    from strata.app.progress import progress_bar
    from strata.core.errors import UserError
    from strata.models.shapes import shape_config
    from strata.target.hardware.read import THIS, machine_text, read_machine, this_machine_path

    formats = format or ["bf16"]
    config = None if check is None else shape_config(check)
    path = output or this_machine_path()
    found: Calibration | None = None
    if not only_check:
        with progress_bar() as report:
            found = calibrate(formats, threads, report)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, machine_text(found.machine))
    elif check is None:
        raise UserError("calibrate: --only-check needs a shape: --check tinyllama-1.1b")
    predicted: dict[str, tuple[Predicted, ...]] = {}
    if config is not None:
        machine = read_machine(output or THIS)
        predicted = {f: _predict(machine, config, f, threads) for f in formats}
    if as_json:
        sys.stdout.write(json.dumps(_json(path, found, predicted), indent=2) + "\n")
    else:
        _print(path, found, predicted)


def _predict(
    machine: Machine, config: ModelConfig, format_: str, threads: int | None
) -> tuple[Predicted, ...]:
    from strata.app.calibration import measurable, predict_and_measure
    from strata.app.progress import progress_bar

    model = measurable(config, format_, threads)
    with progress_bar() as report:
        return predict_and_measure(machine, model, _CHECKED, report)


def _json(
    path: Path, found: Calibration | None, predicted: dict[str, tuple[Predicted, ...]]
) -> dict[str, Any]:
    families = () if found is None else found.machine.devices[0].families  # type: ignore[attr-defined]

    def pass_json(p: Predicted) -> dict[str, Any]:
        return {**asdict(p), "error": p.error, "share_within_25_percent": p.share_within(0.25)}

    return {
        "machine": str(path),
        "families": [
            {name: getattr(f, name) for name in ("op", "kernel", "weight_bits", "samples", "error")}
            for f in families
        ],
        "predicted": {format_: [pass_json(p) for p in passes] for format_, passes in predicted.items()},
    }


def _print(path: Path, found: Calibration | None, predicted: dict[str, tuple[Predicted, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False)
    if found is not None:
        rows = Table(title="families of kernels")
        for column in ("op", "kernel", "weights", "rows", "samples", "error of the fit"):
            rows.add_column(column)
        for f in found.machine.devices[0].families:  # type: ignore[attr-defined]
            span = f"{f.knots[0].rows}..{f.knots[-1].rows}"
            bits = f"{f.weight_bits} bits" if f.weight_bits else "-"
            error = f"{f.error:.1%}" if f.samples else "not fitted"
            rows.add_row(f.op, f.kernel, bits, span, str(f.samples), error)
        console.print(rows)
        console.print(f"wrote {path}; strata plan MODEL --machine this uses it")
    for format_, passes in predicted.items():
        rows = Table(title=f"{format_}: lengths that the calibration did not see")
        for column in ("pass", "memory", "measured", "predicted", "error", "time of kernels within 25 %"):
            rows.add_column(column)
        for p in passes:
            rows.add_row(
                f"{p.function} {p.length}",
                f"{p.bandwidth / 1e9:.0f} GB/s",
                f"{p.measured_s * 1e3:.2f} ms",
                f"{p.predicted_s * 1e3:.2f} ms",
                f"{p.error:+.1%}",
                f"{p.share_within(0.25):.0%}",
            )
        console.print(rows)
