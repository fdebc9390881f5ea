"""``strata debug``: find the node that computes something wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported

if TYPE_CHECKING:
    from strata.compiler.compare import Comparison, Difference, Reference
    from strata.engine.forward import ForwardPass
    from strata.engine.generate import LanguageModel

DIVERGES = 1
DEFAULT_PROMPT = "def read_lines(path):"

app = typer.Typer(help="Find the node that computes something wrong.", no_args_is_help=True)

ModelArgument = Annotated[
    str | None, typer.Argument(help="Model folder, hub id or artifact; default: the demo model")
]
FunctionOption = Annotated[str, typer.Option(help="prefill, decode or score")]
PromptOption = Annotated[str, typer.Option(help="Text to run; - reads standard input")]
NodeOption = Annotated[str, typer.Option(help="Only these nodes: a name, or like '*.mlp.*'")]
FormatOption = Annotated[
    str | None, typer.Option(help="Weights: f32, bf16, f16, int8, int4, mixed, ...; default: as stored")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads; default: all cores")]


@app.command()
@reported()
def compare(
    model: ModelArgument = None,
    against: Annotated[
        str, typer.Option(help="interpreter, torch, or a file of `strata debug record`")
    ] = "interpreter",
    function: FunctionOption = "decode",
    prompt: PromptOption = DEFAULT_PROMPT,
    node: NodeOption = "*",
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end", help="Let the interpreter go on with its own values, so that errors add up"
        ),
    ] = False,
    format: FormatOption = None,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Run node by node and name the first node that diverges.

    Against the interpreter, every node is evaluated on its actual inputs: an error shows in the node that
    makes it. Exit code 0: all agree; 1: a node diverges; 2: a mistake in the command.
    """
    from strata.app.session import Source, open_model
    from strata.compiler.compare import compare as run

    language_model = open_model(Source(model, format=format, threads=threads))
    forward, reference = _reference(language_model, model, against, function, prompt, end_to_end, format)
    report = run(forward, reference, node)
    if as_json:
        sys.stdout.write(json.dumps(_finite(report.to_json()), indent=2) + "\n")
    else:
        sys.stdout.write(report_text(report) + "\n")
    if not report.agrees:
        raise typer.Exit(DIVERGES)


@app.command()
@reported()
def record(
    output: Annotated[Path, typer.Option("--output", "-o", help="safetensors file to write")],
    model: ModelArgument = None,
    function: FunctionOption = "decode",
    prompt: PromptOption = DEFAULT_PROMPT,
    node: NodeOption = "*",
    format: FormatOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Write the values of all nodes to a file, to compare with on another machine or after a change."""
    from strata.app.session import Source, open_model, read_prompt
    from strata.compiler.compare import record_values

    language_model = open_model(Source(model, format=format, threads=threads))
    forward = language_model.forward_pass(function, read_prompt(prompt))
    count = record_values(forward, output, node)
    sys.stdout.write(f"{output}: {count} values of {function} over {len(forward.all_ids)} tokens\n")


def _reference(
    language_model: LanguageModel,
    model: str | None,
    against: str,
    function: str,
    prompt: str,
    end_to_end: bool,
    format: str | None,
) -> tuple[ForwardPass, Reference]:
    """What to run and what to compare it with.

    Raises:
        UserError: the reference cannot be had, or options contradict each other.
    """
    from strata.app.session import read_prompt
    from strata.compiler.compare import Interpreter, Recorded
    from strata.core.errors import UserError

    if end_to_end and against != "interpreter":
        raise UserError(f"--end-to-end: got --against {against}; expected interpreter: others always are")
    if against not in ("interpreter", "torch"):
        if not Path(against).is_file():
            raise UserError(
                f"--against: got {against!r}; expected interpreter, torch, or a file that is there"
            )
        recorded = Recorded(against, language_model)
        return recorded.forward, recorded
    forward = language_model.forward_pass(function, read_prompt(prompt))
    if against == "interpreter":
        return forward, Interpreter(forward, end_to_end)
    return forward, _torch_reference(model, forward, format)


def _torch_reference(model: str | None, forward: ForwardPass, format: str | None) -> Reference:
    from strata.app.inspect import define_model
    from strata.assets import DEMO_MODEL
    from strata.compiler.api import Options
    from strata.compiler.compare_torch import TorchModel
    from strata.models import locate

    definition = define_model(model, None, Options(format))
    return TorchModel(locate(model or DEMO_MODEL), definition, forward)


def report_text(report: Comparison) -> str:
    """What was found, in a few lines."""
    compared = (
        f"{len(report.compared)} of {len(report.compared) + len(report.unmatched)} nodes of {report.function}"
    )
    first = report.first
    if first is None:
        worst = max(report.compared, key=lambda d: d.ratio)
        return (
            f"{compared} were compared with {report.against}: all agree\n"
            f"nearest to its tolerance: {_line(worst)}"
        )
    wrong = sum(d.diverges for d in report.compared)
    lines = [
        f"{compared} were compared with {report.against}: {wrong} diverge",
        f"the first: node {first.node.index} of {_line(first)}",
        f"  at {list(first.worst)}: got {first.got:.6g}, expected {first.expected:.6g}",
    ]
    suspects = report.suspects()[:-1]
    if suspects:
        names = ", ".join(n.name for n in suspects)
        lines.append(f"  or a node before it that nothing was compared with: {names}")
    return "\n".join(lines)


def _line(d: Difference) -> str:
    return (
        f"{d.node.name} ({d.node.op}, {d.kernel}): max abs error {d.max_abs:.3g}, "
        f"max rel error {d.max_rel:.3g}, {d.ratio:.2g} x its tolerance {d.tolerance}"
    )


def _finite(data: Any) -> Any:
    """JSON has no infinities: they become text."""
    match data:
        case dict():
            return {k: _finite(v) for k, v in data.items()}
        case list():
            return [_finite(v) for v in data]
        case float() if data != data or data in (float("inf"), float("-inf")):
            return str(data)
    return data
