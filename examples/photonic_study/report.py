"""A report as Markdown and as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from strata.app.files import write_text

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 1000px; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; text-align: left; }
li { margin: .3rem 0; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for people."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One question: what was found, as text, table and figures."""

    heading: str
    paragraphs: tuple[str, ...]
    table: Grid | None = None
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report."""

    title: str
    about: str
    conclusions: tuple[str, ...]
    sections: tuple[Section, ...]
    limits: tuple[str, ...]


def write_markdown(document: Document, path: Path) -> None:
    """Write the report, with its figures by name from ``figures/``."""
    parts = [f"# {document.title}", document.about, "## What survives", _bullets(document.conclusions)]
    for section in document.sections:
        parts += [f"## {section.heading}", *section.paragraphs]
        if section.table is not None:
            parts.append(_pipes(section.table))
        parts += [f"![{name}](figures/{name}.svg)" for name in section.figures]
    parts += ["## Limits of this study", _bullets(document.limits)]
    write_text(path, "\n\n".join(parts) + "\n")


def write_html(document: Document, drawings: dict[str, str], path: Path) -> None:
    """Write the report with its figures, SVG by name, inside."""
    parts = [f"<h1>{html.escape(document.title)}</h1>", _p(document.about), "<h2>What survives</h2>"]
    parts.append(_list(document.conclusions))
    for section in document.sections:
        parts += [f"<h2>{html.escape(section.heading)}</h2>", *map(_p, section.paragraphs)]
        parts += [f"<figure>{drawings[name]}</figure>" for name in section.figures]
        if section.table is not None:
            parts.append(_table(section.table))
    parts += ["<h2>Limits of this study</h2>", _list(document.limits)]
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(document.title)}'
        f'</title><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style>'
        "</head><body>\n" + "\n".join(parts) + "\n</body></html>\n",
    )


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pipes(grid: Grid) -> str:
    lines = [grid.head, tuple("---" for _ in grid.head), *grid.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _p(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _list(lines: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _table(grid: Grid) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line("td", row) for row in grid.rows)
    return f"<table><thead>{line('th', grid.head)}</thead><tbody>{body}</tbody></table>"
