"""``strata bench``: speed beside the machine's ceilings, and beside other engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import (
    ContextOption,
    FormatOption,
    JsonOption,
    ModelArgument,
    ShapeOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from strata.app.bench.run import Bench


@reported()
def command(
    model: ModelArgument = None,
    shape: ShapeOption = None,
    format: FormatOption = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prefill that is timed")] = 512,
    context: Annotated[int, typer.Option(help="Tokens in the cache when decode is timed")] = 128,
    decode: Annotated[int, typer.Option(help="Tokens decoded per repetition")] = 32,
    batch: Annotated[int, typer.Option(help="Also decode this many sequences at once")] = 1,
    repeats: Annotated[int, typer.Option(help="Repetitions")] = 5,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    peers: Annotated[bool, typer.Option("--peers", help="Run other engines in turn with Strata")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only peers whose name begins so (several times)")
    ] = None,
    peers_env: Annotated[
        Path | None, typer.Option(help="Environment of the peers; default: in the cache folder")
    ] = None,
    install_peers: Annotated[
        bool, typer.Option("--install-peers", help="Install the peers into their environment first")
    ] = False,
    peer_limit: Annotated[float, typer.Option(help="Seconds that a peer may take for one repetition")] = 300,
    patience: Annotated[
        float,
        typer.Option(help="Put off or repeat what other programs disturb, up to so many seconds each"),
    ] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every node of prefill and decode (and of --batch) instead")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --profile: a roofline, as .svg, .png, .pdf or .html")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed beside the machine's ceilings, and beside other engines.

    Prefill and decode in tokens per second, with the fraction of the instruction peak and of the memory
    bandwidth that were measured in the same run. --peers adds llama.cpp, OpenVINO GenAI, ONNX Runtime GenAI
    and PyTorch, those that have the format, on random weights of the same shape.
    """
    from strata.app.bench.amounts import Amounts
    from strata.app.bench.peers import Place, default_environment
    from strata.app.bench.report import print_tables
    from strata.app.bench.run import Bench, run
    from strata.core.errors import UserError

    place = Place(peers_env or default_environment(), peer_limit)
    if plot is not None and not profile:
        raise UserError("--plot: expected --profile with it, whose times it draws")
    if peers and profile:
        raise UserError("--profile: expected no --peers with it: it looks at Strata alone")
    if only and not peers:
        raise UserError("--only: expected --peers with it")
    if install_peers:
        _install(place.environment, as_json)
        if not peers:
            return
    bench = Bench(
        *(model, shape, format, threads, max_context),
        Amounts(prompt, context, decode, repeats, batch),
        patience,
    )
    if profile:
        _profile(bench, plot, as_json)
        return
    figures = run(bench, place if peers else None, tuple(only or ()))
    if as_json:
        _print_json(figures)
    else:
        print_tables(figures)


def _install(environment: Path, as_json: bool) -> None:
    from strata.app.bench.install import install_peers
    from strata.core.errors import UserError

    missing = {name: why for name, why in install_peers(environment).items() if why}
    if missing:
        what = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise UserError(f"{environment}: not installed: {what}; see install.log there")
    if not as_json:
        sys.stdout.write(f"{environment}: peers installed\n")


def _profile(bench: Bench, plot: Path | None, as_json: bool) -> None:
    from strata.app.bench.profiling import profiles
    from strata.app.plots import plot_roofline

    from .profile import ceilings_json, print_profile

    subject = bench.open()
    found, ceilings = profiles(subject, bench.work)
    if plot is not None:
        plot_roofline(found, ceilings, plot)
    threads = subject.program.num_threads
    if as_json:
        parts = {name: p.to_json() for name, p in zip(("prefill", "decode", "batch"), found, strict=False)}
        _print_json({"threads": threads, "ceilings": ceilings_json(ceilings), **parts})
        return
    for part in found:
        print_profile(part, ceilings, "", 20, threads)


def _print_json(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
