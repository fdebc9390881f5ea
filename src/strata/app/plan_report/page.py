"""The report as one HTML file that loads nothing from anywhere: numbers, tables and figures."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from strata.app.files import write_text
from strata.app.plots import svg_text
from strata.app.units import si

from .data import MOVES, PlanReport, Report, RequestReport
from .figures import FIGURES

# No request leaves the page, whatever its data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light; --line: #ddd; --soft: #666; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h1.phase { border-top: 2px solid var(--line); margin-top: 3rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.about { color: var(--soft); margin: .2rem 0 1rem; max-width: 80ch; }
dl { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
dl div { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem; }
dt { color: var(--soft); font-size: .75rem; }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
figure { margin: 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
th { color: var(--soft); font-weight: 500; font-size: .8rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); }
"""


def render_report(report: PlanReport | RequestReport) -> str:
    """The whole page."""
    title = f"{report.title} on {report.machine}"
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="about">{html.escape(report.about)}</p>']
    if isinstance(report, PlanReport):
        parts += _sections(report)
    else:
        parts += [_request_facts(report), _phases(report)]
        for phase in report.phases:
            runs = len(phase.lengths)
            heading = phase.title if runs == 1 else f"{phase.title} · the last of {runs} runs"
            parts += [f'<h1 class="phase">{html.escape(heading)}</h1>', *_sections(phase)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{html.escape(title)} · Strata</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(p for p in parts if p)
        + "\n</body>\n</html>\n"
    )


def _sections(report: PlanReport) -> list[str]:
    """What is shown of a plan at one length."""
    parts = [_facts(report), _devices(report), _thresholds(report)]
    for heading, draw in FIGURES.values():
        figure = draw(report)
        if figure is not None:
            parts.append(f"<h2>{html.escape(heading)}</h2>\n<figure>{svg_text(figure)}</figure>")
    return [*parts, _works(report)]


def write_report(report: PlanReport | RequestReport, path: Path) -> None:
    """Write the page, and beside it (``.json`` instead of ``.html``) everything that it shows, as JSON.

    Raises:
        UserError: a file cannot be written, or matplotlib is missing.
    """
    write_text(path, render_report(report))
    write_text(path.with_suffix(".json"), json.dumps(report.to_json(), indent=1) + "\n")


def _facts(report: PlanReport) -> str:
    return _list([(report.dim or "length", f"{report.length}"), *_outcome(report)])


def _request_facts(report: RequestReport) -> str:
    names = ("prompt", "new_tokens", "batch")
    return _list(
        [*((name.replace("_", " "), str(getattr(report, name))) for name in names), *_outcome(report)]
    )


def _outcome(report: Report) -> list[tuple[str, str]]:
    return [
        ("objective", report.objective),
        ("time", si(report.time_s, "s")),
        ("energy", si(report.energy_j, "J")),
        ("lower bound", f"{report.bound:.6g}"),
        ("gap", f"{report.gap:.2%}"),
    ]


def _phases(report: RequestReport) -> str:
    rows = [
        (phase.title, str(len(phase.lengths)), si(time_s, "s"), si(energy_j, "J"))
        for phase, time_s, energy_j in zip(report.phases, report.times_s, report.energies_j, strict=True)
    ]
    return "<h2>Phases</h2>" + _table(("phase", "runs", "time", "energy"), rows)


def _list(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts)
    return f"<dl>{rows}</dl>"


def _devices(report: PlanReport) -> str:
    rows = []
    for device in report.devices:
        works = [w for w in report.works if w.device == device]
        rows.append(
            (
                device,
                str(len(works)),
                str(sum(w.is_product for w in works)),
                si(sum(w.time_s for w in works), "s"),
                si(sum(w.energy_j for w in works), "J"),
            )
        )
    moved = [s for s in report.spent if s.op == MOVES]
    rows.append(
        (MOVES, "", "", si(sum(s.time_s for s in moved), "s"), si(sum(s.energy_j for s in moved), "J"))
    )
    return "<h2>Devices</h2>" + _table(("device", "ops", "products", "time", "energy"), rows)


def _thresholds(report: PlanReport) -> str:
    if not report.marks:
        return ""
    rows = [(str(m.length), m.text) for m in report.marks]
    return f"<h2>Where the best plan changes</h2>{_table((report.dim, 'what changes'), rows, 'text')}"


def _works(report: PlanReport) -> str:
    rows = [
        (w.name, w.op, w.device, si(w.time_s, "s"), si(w.energy_j, "J"), si(w.flop, "flop"))
        for w in report.works
    ]
    head = ("name", "op", "device", "time", "energy", "work")
    return f"<h2>Every op</h2><details><summary>{len(rows)} ops</summary>{_table(head, rows)}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table class={kind}><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
