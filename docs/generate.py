"""Write the pages that come from tables in the code: ``python docs/generate.py [--check]``."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from strata.compiler import pipelines as _  # noqa: F401  (fills the tables of passes and pipelines)
from strata.core.knobs import describe
from strata.graph import ops  # noqa: F401  (fills the table)
from strata.graph.opdef import OPS, REQUIRED, OpDef
from strata.ir.describe import describe_passes, describe_pipelines
from strata.ir.passes import PASSES
from strata.schedule import steps  # noqa: F401  (fills the table)
from strata.schedule.step import STEPS
from strata.target.hardware import Converter, Part, machine_names, read_machine
from strata.target.hardware.units import kind_of, text_of

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; change the code instead. -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are escaped."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def knobs_page() -> str:
    """``knobs.md``, from the knob table."""
    rows = [
        (
            f"`{k.env}`",
            f"`{_default(k.default)}`",
            k.expected,
            k.doc + (" (recompiles)" if k.affects_code else ""),
        )
        for k in describe()
    ]
    return f"""# Knobs

{NOTE}

Settings of a process: environment variables, or `with strata.core.knobs.knobs(verify=2):` for a block of
code. A value that is not accepted, and a `STRATA_` variable that is no knob, are errors.

{table(("variable", "default", "accepted", "what it does"), rows)}
"""


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def ops_page() -> str:
    """``ops.md``, from the op table, one section per family."""
    families: dict[str, list[OpDef]] = {}
    for name in OPS:
        module = inspect.getmodule(OPS[name].infer)
        family = module.__name__.rpartition(".")[2] if module is not None else ""
        families.setdefault(family, []).append(OPS[name])
    sections = []
    for family, members in sorted(families.items()):
        rows = [(f"`{op.name}`", op.doc, _attributes(op), op.pattern.name.lower()) for op in members]
        sections.append(f"## {family}\n\n{table(('op', 'result', 'attributes', 'fuses as'), rows)}\n")
    return f"""# Graph ops

{NOTE}

Nodes of the graph IR. An op's NumPy reference (`src/strata/graph/ops/<family>.py`) is its definition. Float
results are computed in f32 (f64 for f64) and rounded once.

{chr(10).join(sections)}"""


def _attributes(op: OpDef) -> str:
    parts = []
    for name, attr in op.attrs.items():
        default = "" if attr.default is REQUIRED else f" = {str(attr.default).lower()}"
        parts.append(f"`{name}{default}`: {attr.doc}")
    return "; ".join(parts)


def steps_page() -> str:
    """``steps.md``, from the docstrings of the schedule steps."""
    sections = []
    for name in sorted(STEPS):
        cls = STEPS[name]
        options = ", ".join(f.name for f in fields(cls))
        sections.append(f"## {name}\n\n`{name}({options})`\n\n{_markdown(inspect.getdoc(cls) or '')}\n")
    return f"""# Schedule steps

{NOTE}

A schedule is a list of steps, each a legal rewrite of a loop function. `strata inspect --stage plan` shows
the lists that were chosen; `strata.schedule.step.parse_trace` reads them back and `apply_trace` replays them.

{chr(10).join(sections)}"""


def _markdown(doc: str) -> str:
    """A docstring in reStructuredText (literal blocks, double backquotes) as Markdown."""
    lines: list[str] = []
    in_block = False
    for line in doc.replace("``", "`").splitlines():
        if line.endswith("::"):
            lines += [line[:-1], "", "```"]
            in_block = True
        elif in_block and line and not line.startswith(" "):
            lines[-1:] = ["```", ""]
            in_block = False
            lines.append(line)
        elif not (in_block and lines[-1] == "```" and not line):
            lines.append(line.removeprefix("    ") if in_block else line)
    if in_block:
        lines.append("```")
    return "\n".join(lines)


def passes_page() -> str:
    """``passes.md``, from the docstrings of the passes."""
    sections = []
    for info in describe_passes():
        if not PASSES[info.name].__module__.startswith("strata."):
            continue
        usage = ",".join(f"{o.name}={o.default}" for o in info.options)
        title = f"{info.name}{{{usage}}}" if usage else info.name
        options = ""
        if info.options:
            rows = [(f"`{o.name}`", o.kind, f"`{o.default}`", o.doc.replace("``", "`")) for o in info.options]
            options = "\n" + table(("option", "type", "default", "what it does"), rows) + "\n"
        on = "" if info.ir == "graph" else f" (on {info.ir} functions)"
        doc = re.sub(r"^(Stage|Preserves): ", r"* \1: ", _markdown(info.doc), flags=re.MULTILINE)
        sections.append(f"## {info.name}\n\n`{title}`{on}\n\n{doc}\n{options}")
    pipelines = "\n".join(f"* `{text}`" for text in describe_pipelines().values())
    return f"""# Passes

{NOTE}

A pipeline is text, `canonicalize,fuse{{max_ops=8}}`, or the name of one. `strata opt FILE.ir -p PIPELINE`
runs it on IR text, `--pipeline` and the knob `STRATA_PIPELINE` (loop passes: `STRATA_LOOP_PIPELINE`) on a
model, `only{{functions=[decode]}}(...)` runs a part of it on some functions. Named pipelines:

{pipelines}

{chr(10).join(sections)}"""


def numbers_page() -> str:
    """``numbers.md``, from the machines that come with Strata."""
    sections = []
    for name in machine_names():
        machine = read_machine(name)
        parts: list[tuple[str, Part]] = [(p.name, p) for p in (*machine.memories, *machine.links)]
        for device in machine.devices:
            inner = [(f"{device.name}.{f.name}", getattr(device, f.name)) for f in fields(device)]
            parts += [(device.name, device), *((n, v) for n, v in inner if isinstance(v, Converter))]
        rows = [row for where, part in parts for row in _numbers(where, part)]
        head = table(("part", "number", "value", "source"), rows)
        sections.append(f"## {name}\n\n{machine.about}\n\n{head}\n")
    return f"""# Numbers of machines

{NOTE}

Every constant of the machines that come with Strata (`strata plan MODEL --machine NAME`), with its unit and
where it comes from. Each machine is a file in `src/strata/target/hardware/data/`;
[add_device.md](howto/add_device.md) says how to write one.

{chr(10).join(sections)}"""


def _numbers(where: str, part: Part) -> Iterable[tuple[str, str, str, str]]:
    """Constants of a part; those that say "none", "one" or "no limit" only where the file says so."""
    for f in fields(part):
        value, kind = getattr(part, f.name), kind_of(f.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value == f.default and value in (0, 1, math.inf) and f.name not in dict(part.sources):
            continue
        text = text_of(kind, value) if kind is not None else value
        shown = text if isinstance(text, str) else f"{text:g} {kind.base if kind else ''}".strip()
        yield f"`{where}`", f"`{f.name}`", shown, part.source_of(f.name)


PAGES: dict[str, Callable[[], str]] = {
    "knobs.md": knobs_page,
    "numbers.md": numbers_page,
    "ops.md": ops_page,
    "passes.md": passes_page,
    "steps.md": steps_page,
}


def main(check: bool) -> int:
    """Write all pages, or with ``check`` only count and name those that differ."""
    stale = [
        n for n, page in PAGES.items() if not (FOLDER / n).exists() or (FOLDER / n).read_text() != page()
    ]
    for name in stale:
        if check:
            print(f"docs/{name} differs from the code; run: python docs/generate.py")
        else:
            (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
    return len(stale) if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
