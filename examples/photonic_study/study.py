"""LightCode's three claims, redone with every cost charged: tables, figures and a report with both.

    python examples/photonic_study/study.py --output study [--quick] [--graphs tests/data/relay]

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import experiments
from experiments import Rows, Scope
from figures import draw_all
from report import Document, write_html, write_markdown
from rich.console import Console
from rich.table import Table
from text import write_study

from strata.app.files import write_text
from strata.app.plots import save_figure, svg_text
from strata.core.errors import UserError

GRAPHS = Path(__file__).parents[2] / "tests" / "data" / "relay"
TABLES: tuple[Callable[[Scope], Rows], ...] = (
    experiments.published,
    experiments.claims,
    experiments.latency,
    experiments.ablation,
    experiments.sensitivity,
    experiments.reuse,
    experiments.allowance,
    experiments.breakeven,
    experiments.decode,
    experiments.cores,
    experiments.accuracy,
)


def run(scope: Scope, output: Path, console: Console) -> Document:
    """Compute everything and write it to ``output``; the report that was written.

    Raises:
        UserError: a graph cannot be read, or a file not written.
    """
    tables: dict[str, Rows] = {}
    for compute in TABLES:
        name, begin = compute.__name__, time.perf_counter()
        tables[name] = compute(scope)
        _write_csv(output / "tables" / f"{name}.csv", tables[name])
        console.print(f"{name}: {len(tables[name])} rows, {time.perf_counter() - begin:.1f} s")
    drawings: dict[str, str] = {}
    for name, draw in draw_all(tables).items():
        figure = draw()
        drawings[name] = svg_text(figure)
        write_text(output / "figures" / f"{name}.svg", drawings[name])
        save_figure(figure, output / "figures" / f"{name}.png")
    document = write_study(tables, scope)
    write_markdown(document, output / "report.md")
    write_html(document, drawings, output / "report.html")
    return document


def _write_csv(path: Path, rows: Rows) -> None:
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def _show(document: Document, console: Console) -> None:
    for section in document.sections:
        if section.table is not None:
            table = Table(title=section.heading)
            for header in section.table.head:
                table.add_column(header)
            for row in section.table.rows:
                table.add_row(*row)
            console.print(table)
    console.print("[bold]Conclusions[/bold]")
    for line in document.conclusions:
        console.print(f"- {line}", markup=False)


def main() -> int:
    """Run the study; 2 if something that the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--quick", action="store_true", help="GPT-2 only, few settings: under a minute")
    parser.add_argument("--graphs", type=Path, default=GRAPHS, help="folder of LightCode's graphs")
    options = parser.parse_args()
    console = Console()
    scope = experiments.quick(options.graphs) if options.quick else Scope(options.graphs)
    try:
        missing = [m.graph for m in scope.models if not (options.graphs / f"{m.graph}.json.gz").is_file()]
        if missing:
            raise UserError(
                f"--graphs: {options.graphs}: no {missing[0]}.json.gz; give the folder of LightCode's graphs"
            )
        for name in ("tables", "figures"):
            (options.output / name).mkdir(parents=True, exist_ok=True)
        _show(run(scope, options.output, console), console)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    console.print(f"{options.output / 'report.html'}, report.md, tables/*.csv, figures/*.svg and *.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
