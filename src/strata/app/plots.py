"""Figures, drawn by matplotlib (``pip install 'strata-llm[plot]'``)."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.core.errors import UserError

if TYPE_CHECKING:
    from strata.planner.dispatch import Dispatch
    from strata.runtime.profile import Ceilings, Profile, Timing

SUFFIXES = (".svg", ".png", ".pdf", ".html")
_BAND = "#00000010"


def plot_dispatch(table: Sequence[Dispatch], path: Path) -> None:
    """Draw, per stack, the cost of all candidates over the size; chosen ranges are shaded in turn.

    Args:
        table: What to draw; not empty.
        path: File to write; its suffix says how.

    Raises:
        UserError: another suffix, matplotlib is missing, or the file cannot be written.
    """
    figure = _figure_class(path)(figsize=(8, 3.2 * len(table)), layout="constrained")
    axes = figure.subplots(len(table), 1, squeeze=False)
    for entry, (axis,) in zip(table, axes, strict=True):
        _draw(entry, axis)
    save_figure(figure, path)


def _draw(entry: Dispatch, axis: Any) -> None:
    for curve in entry.curves:
        sizes = [s for s, _ in curve.points]
        times_us = [t * 1e6 for _, t in curve.points]
        marker = "o" if curve.source == "measured" else None
        axis.plot(sizes, times_us, marker=marker, markersize=3, label=f"{curve.candidate} ({curve.source})")
    for k, r in enumerate(entry.ranges):
        if k % 2:
            axis.axvspan(r.lo - 0.5, r.hi + 0.5, color=_BAND, linewidth=0)
        place = (r.lo * r.hi) ** 0.5
        axis.text(*(place, 0.02, r.candidate), transform=axis.get_xaxis_transform(), ha="center", fontsize=7)
    axis.set(xscale="log", yscale="log", xlabel=entry.dim, ylabel="µs per launch")
    first, *others = entry.nodes
    more = f" and {len(others)} more" if others else ""
    axis.set_title(f"{entry.op}: {first}{more}", fontsize=9, loc="left")
    axis.grid(which="both", linewidth=0.3)
    axis.legend(fontsize=7)


def plot_roofline(profiles: Sequence[Profile], ceilings: Ceilings, path: Path) -> None:
    """Draw the arithmetic rate of every op over its intensity, under the machine's ceilings.

    Args:
        profiles: One plot each; not empty. The area of a point is the op's share of the time.
        ceilings: Of the machine.
        path: File to write; its suffix says how.

    Raises:
        UserError: another suffix, matplotlib is missing, or the file cannot be written.
    """
    figure = _figure_class(path)(figsize=(8, 4.2 * len(profiles)), layout="constrained")
    axes = figure.subplots(len(profiles), 1, squeeze=False)
    for profile, (axis,) in zip(profiles, axes, strict=True):
        points = [p for t in profile.by("op") if (p := _roofline_point(t)) is not None]
        reach = [x for _, x, _ in points] + [
            peak / ceilings.bytes_per_s for peak in ceilings.flop_per_s.values()
        ]
        ends = (min(reach) / 2, max(reach) * 2)
        for name, peak in ceilings.flop_per_s.items():
            ridge = peak / ceilings.bytes_per_s
            xs = (ends[0], ridge, ends[1])
            axis.plot(
                xs, [min(peak, x * ceilings.bytes_per_s) / 1e9 for x in xs], linewidth=1, label=f"{name} peak"
            )
        for timing, x, y in points:
            share = timing.time_s / profile.total_s
            axis.scatter([x], [y / 1e9], s=20 + 600 * share, alpha=0.6)
            axis.annotate(f"{timing.name} {share:.0%}", (x, y / 1e9), fontsize=7)
        axis.set(xscale="log", yscale="log", xlabel="flop per byte", ylabel="GFLOP/s")
        axis.set_title(f"{profile.function}: {profile.total_s * 1e3:.2f} ms", fontsize=9, loc="left")
        axis.grid(which="both", linewidth=0.3)
        axis.legend(fontsize=7)
    save_figure(figure, path)


def _roofline_point(timing: Timing) -> tuple[Timing, float, float] | None:
    """An op with its intensity (flop per byte) and rate (flop per second), if it has both."""
    if not timing.flop or not timing.bytes_per_s or not timing.flop_per_s:
        return None
    return timing, timing.flop_per_s / timing.bytes_per_s, timing.flop_per_s


def _figure_class(path: Path) -> Callable[..., Any]:
    check_suffix(path)
    return figure_class()


def check_suffix(path: Path, allowed: Sequence[str] = SUFFIXES) -> None:
    """Refuse files that figures cannot be written to.

    Raises:
        UserError: another suffix.
    """
    suffix = path.suffix or path.name
    if suffix not in allowed:
        raise UserError(f"{path}: got suffix {suffix!r}; expected one of {', '.join(allowed)}")


def figure_class() -> Callable[..., Any]:
    """Matplotlib's ``Figure``.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ModuleNotFoundError:
        raise UserError("plots need matplotlib: pip install 'strata-llm[plot]'") from None
    return Figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part-{os.getpid()}{path.suffix}")
    try:
        if path.suffix == ".html":
            part.write_text(_page(figure, path.stem), encoding="utf-8")
        else:
            figure.savefig(part)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the figure: {error.strerror}; choose another file") from error


def _page(figure: Any, title: str) -> str:
    """The figure as SVG inside of a page."""
    return f"<!doctype html><title>{html.escape(title)}</title>\n{svg_text(figure)}"


def svg_text(figure: Any) -> str:
    """The figure as an ``<svg>`` element."""
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    svg = drawing.getvalue()
    return svg[svg.index("<svg") :]
