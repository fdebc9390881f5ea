"""The figures of a report, drawn by matplotlib: each takes a report and gives a figure, or ``None`` if it has
nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from strata.app.plots import check_suffix, figure_class, save_figure
from strata.app.units import scale
from strata.core.errors import UserError

from .data import MOVES, PlanReport, Spent

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#332288")
_MAX_ROWS = 40  # of the assignment map: the most expensive ones
_MAX_OPS = 14
_MAX_SLOTS = 4000


def colour_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def assignment(report: PlanReport) -> Any:
    """Which device computes which op of which layer; works outside of the layers stand beside them."""
    layers = sorted({w.layer for w in report.works if w.layer is not None})
    cost: dict[str, float] = {}
    for w in report.works:
        cost[w.role] = cost.get(w.role, 0.0) + w.energy_j
    kept = set(sorted(cost, key=lambda role: -cost[role])[:_MAX_ROWS])
    roles = [role for role in dict.fromkeys(w.role for w in report.works) if role in kept]
    if not roles:
        return None
    columns = {layer: k + 1 for k, layer in enumerate(layers)}
    colours = colour_of(report.devices)
    width = max(6.0, 2.5 + 0.22 * (len(layers) + 1))
    figure = _figure(width, 0.9 + 0.22 * len(roles))
    axis = figure.subplots()
    rows = {role: k for k, role in enumerate(roles)}
    for w in report.works:
        if w.role in rows:
            x = columns.get(w.layer, 0) if w.layer is not None else 0
            axis.barh(rows[w.role], 0.92, left=x - 0.46, height=0.86, color=colours[w.device])
    axis.set_yticks(range(len(roles)), roles, fontsize=7)
    shown = [0, *[columns[n] for n in layers if n % max(1, len(layers) // 16) == 0]]
    axis.set_xticks(shown, ["-" if x == 0 else str(layers[x - 1]) for x in shown], fontsize=7)
    axis.set(xlabel="layer (- = outside of the layers)", ylim=(len(roles) - 0.5, -0.5))
    _legend(axis, colours)
    hidden = len(cost) - len(roles)
    if hidden:
        axis.set_title(f"{hidden} cheaper kinds of ops are not shown", fontsize=8, loc="left")
    return figure


def breakdown(report: PlanReport) -> Any:
    """Energy and time by op and cause, the most expensive ops first; and by device and cause."""
    figure = _figure(10, 3.0 + 0.42 * min(_MAX_OPS, len({s.op for s in report.spent})))
    axes = figure.subplots(2, 2)
    causes = colour_of(dict.fromkeys(s.cause for s in report.spent))
    for row, key in zip(axes, ("op", "device"), strict=True):
        for axis, quantity in zip(row, ("energy_j", "time_s"), strict=True):
            _bars(axis, report.spent, key, quantity, causes)
    _legend(axes[0][1], causes)
    return figure


def _bars(axis: Any, spent: Iterable[Spent], key: str, quantity: str, colours: dict[str, str]) -> None:
    sums: dict[str, dict[str, float]] = {}
    for s in spent:
        entry = sums.setdefault(getattr(s, key), {})
        entry[s.cause] = entry.get(s.cause, 0.0) + getattr(s, quantity)
    names = sorted(sums, key=lambda name: -sum(sums[name].values()))[:_MAX_OPS]
    factor, unit = scale(
        max((sum(sums[n].values()) for n in names), default=0.0), "J" if quantity == "energy_j" else "s"
    )
    for y, name in enumerate(names):
        left = 0.0
        for cause, value in sums[name].items():
            axis.barh(y, value * factor, left=left, color=colours[cause], height=0.8)
            left += value * factor
    axis.set_yticks(range(len(names)), names, fontsize=7)
    what = "energy" if quantity == "energy_j" else "time of each cause alone"
    axis.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"{what}, {unit}")
    axis.set_title(f"by {key}", fontsize=9, loc="left")


def gantt(report: PlanReport) -> Any:
    """What runs where and when."""
    slots = [s for s in report.slots if s.end_s > s.begin_s]
    if not slots:
        return None
    if len(slots) > _MAX_SLOTS:  # the longest ones; the rest would not be seen
        slots = sorted(slots, key=lambda s: s.begin_s - s.end_s)[:_MAX_SLOTS]
    cores = {s.place: max(t.core for t in slots if t.place == s.place) for s in slots}
    names = [d for d in report.devices if d in cores] + sorted(p for p in cores if p not in report.devices)
    lanes = [(p, c) for p in names for c in range(cores[p] + 1)]
    factor, unit = scale(max(s.end_s for s in slots), "s")
    ops = dict(enumerate(report.works))
    colours = colour_of(dict.fromkeys(_kind(ops, s) for s in slots))
    figure = _figure(10, 1.2 + 0.4 * len(lanes))
    axis = figure.subplots()
    for y, lane in enumerate(lanes):
        mine = [s for s in slots if (s.place, s.core) == lane]
        for kind, colour in colours.items():
            spans = [
                (s.begin_s * factor, (s.end_s - s.begin_s) * factor) for s in mine if _kind(ops, s) == kind
            ]
            if spans:
                axis.broken_barh(spans, (y - 0.4, 0.8), facecolors=colour)
    labels = [p if cores[p] == 0 else f"{p} {c}" for p, c in lanes]
    axis.set_yticks(range(len(lanes)), labels, fontsize=7)
    axis.set(xlabel=f"time, {unit}", ylim=(len(lanes) - 0.5, -0.5))
    _legend(axis, colours)
    return figure


def _kind(works: dict[int, Any], slot: Any) -> str:
    if slot.work is None:
        return MOVES
    return "product" if works[slot.work].is_product else "other op"


def memory(report: PlanReport) -> Any:
    """Bytes alive in each memory, and energy spent so far, over time."""
    if not report.occupancy and not report.spent_j:
        return None
    num_panels = len(report.occupancy) + bool(report.spent_j)
    figure = _figure(10, 1.7 * num_panels)
    axes = list(figure.subplots(num_panels, 1, squeeze=False, sharex=True)[:, 0])
    factor, unit = scale(report.time_s, "s")
    for axis, o in zip(axes, report.occupancy, strict=False):
        size, size_unit = scale(max(o.bytes, default=0.0), "B")
        times = [t * factor for t in o.times_s]
        axis.step(times, [b * size for b in o.bytes], where="post", color=COLOURS[0])
        axis.set(ylabel=f"{o.memory}, {size_unit}", ylim=(0, None))
        axis.grid(linewidth=0.3)
    if report.spent_j:
        size, size_unit = scale(report.spent_j[-1][1], "J")
        times = [t * factor for t, _ in report.spent_j]
        axes[-1].plot(times, [e * size for _, e in report.spent_j], color=COLOURS[1])
        axes[-1].set(ylabel=f"energy so far, {size_unit}", ylim=(0, None))
        axes[-1].grid(linewidth=0.3)
    axes[-1].set(xlabel=f"time, {unit}")
    return figure


def curves(report: PlanReport) -> Any:
    """The objective over the length: of the plan, and of each device for all that it can; thresholds."""
    if len(report.lengths) < 2:
        return None
    figure = _figure(10, 4.2)
    axis = figure.subplots()
    for k, c in enumerate(report.curves):
        style = {"linewidth": 2.2} if k == 0 else {"linewidth": 1.2, "linestyle": "--"}
        axis.plot(report.lengths, c.values, label=c.name, color=COLOURS[k % len(COLOURS)], **style)
    for k, mark in enumerate(report.marks):
        axis.axvline(mark.length, color="#00000060", linewidth=0.6)
        if k < 12:
            axis.text(mark.length, 0.01 + 0.05 * (k % 8), f" {mark.length}", fontsize=6,
                      transform=axis.get_xaxis_transform())  # fmt: skip
    unit = {"time": "s", "energy": "J", "edp": "J·s", "makespan": "s"}.get(report.objective, "weighted")
    axis.set(xscale="log", yscale="log", xlabel=report.dim, ylabel=f"{report.objective}, {unit}")
    axis.grid(which="both", linewidth=0.3)
    axis.legend(fontsize=7)
    return figure


def intensity(report: PlanReport) -> Any:
    """Flop per byte of every op against its flop; the device that computes it by colour."""
    works = [w for w in report.works if w.flop > 0 and w.bytes > 0]
    if not works:
        return None
    colours = colour_of(report.devices)
    figure = _figure(10, 4.2)
    axis = figure.subplots()
    for device in report.devices:
        mine = [w for w in works if w.device == device]
        axis.scatter(
            [w.flop / w.bytes for w in mine],
            [w.flop for w in mine],
            s=14,
            alpha=0.6,
            color=colours[device],
            label=device,
        )
    for role, w in {w.role: w for w in works if w.is_product}.items():
        axis.annotate(role, (w.flop / w.bytes, w.flop), fontsize=6)
    axis.set(xscale="log", yscale="log", xlabel="flop per byte", ylabel="flop")
    axis.grid(which="both", linewidth=0.3)
    axis.legend(fontsize=7)
    return figure


def pareto(report: PlanReport) -> Any:
    """Plans that no other one beats in both time and energy."""
    if not report.front:
        return None
    figure = _figure(7, 4.2)
    axis = figure.subplots()
    time_factor, time_unit = scale(max(t for t, _ in report.front), "s")
    factor, unit = scale(max(e for _, e in report.front), "J")
    xs = [t * time_factor for t, _ in report.front]
    axis.plot(xs, [e * factor for _, e in report.front], marker="o", markersize=4, color=COLOURS[0])
    axis.plot([report.time_s * time_factor], [report.energy_j * factor], marker="*", markersize=12,
              linestyle="", color=COLOURS[1], label=f"plan ({report.objective})")  # fmt: skip
    axis.set(xlabel=f"time of a sequential run, {time_unit}", ylabel=f"energy, {unit}")
    axis.grid(linewidth=0.3)
    axis.legend(fontsize=7)
    return figure


FIGURES: dict[str, tuple[str, Callable[[PlanReport], Any]]] = {
    "assignment": ("Which device computes what", assignment),
    "breakdown": ("Where energy and time go", breakdown),
    "gantt": ("Execution order", gantt),
    "memory": ("Memories and energy over time", memory),
    "curves": ("Over the length", curves),
    "intensity": ("Arithmetic intensity", intensity),
    "pareto": ("Time against energy", pareto),
}


def write_figures(report: PlanReport, folder: Path, suffix: str = ".svg") -> tuple[Path, ...]:
    """Every figure that has something to show, each in a file of its own.

    Raises:
        UserError: another suffix than .svg, .png or .pdf, or the folder cannot be written.
    """
    check_suffix(Path(suffix), (".svg", ".png", ".pdf"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error.strerror}; choose another one") from None
    written = []
    for name, (_, draw) in FIGURES.items():
        figure = draw(report)
        if figure is not None:
            written.append(folder / (name + suffix))
            save_figure(figure, written[-1])
    return tuple(written)


def _figure(width: float, height: float) -> Any:
    return figure_class()(figsize=(width, height), layout="constrained")


def _legend(axis: Any, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=c, label=name) for name, c in colours.items()]
    axis.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
