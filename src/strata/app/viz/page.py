"""The page: data, style and script in one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from strata.app.files import write_text

_SCRIPTS = ("base.js", "graph.js", "panel.js", "passes.js", "main.js")  # a later one uses those before it

# No request leaves the page, whatever its data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_PAGE = """<!doctype html>
<html lang="en" data-errors="">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<div id="page"><p class="empty">This page needs JavaScript.</p></div>
<svg id="svg" hidden></svg>
<script id="data" type="application/json">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def render_page(data: Mapping[str, Any]) -> str:
    """HTML of :func:`~strata.app.viz.data.model_data`."""
    folder = files("strata.app.viz") / "static"
    # No "<" in the data: whatever a model's names are, they cannot end the script element.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.format(
        policy=_POLICY,
        title=html.escape(f"{data['model']['name']} · Strata"),
        style=(folder / "viz.css").read_text("utf-8"),
        script="\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS),
        data=embedded,
    )


def write_page(data: Mapping[str, Any], path: Path) -> int:
    """Write the page whole or not at all.

    Returns:
        Its size in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    return write_text(path, render_page(data))
