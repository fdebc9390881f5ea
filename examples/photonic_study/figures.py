"""The figures: one function per table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from experiments import MAX_LOSS_NATS, TARGET, Row, Rows

from strata.app.plots import figure_class

Figure = Any
_PERCENT = 100.0


def _figure(width: float, height: float) -> Figure:
    return figure_class()(figsize=(width, height), layout="constrained")


def _values(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(r[key] for r in rows))


def _where(rows: Rows, **keys: Any) -> Rows:
    return [r for r in rows if all(r[k] == v for k, v in keys.items())]


def _curve(axis: Any, rows: Rows, x: str, y: str, scale: float = 1.0, **style: Any) -> None:
    axis.plot([r[x] for r in rows], [r[y] * scale for r in rows], **{"marker": "o", "markersize": 3} | style)


def _finish(axis: Any, **settings: Any) -> None:
    axis.set(**settings)
    axis.grid(which="major", linewidth=0.3)
    axis.legend(fontsize=7)


def draw_claims(rows: Rows, published: Rows) -> Figure:
    """Saving of energy over the length, by machine; crosses are LightCode's own figures."""
    models = _values(rows, "model")
    figure = _figure(6.2 * len(models), 4)
    for model, axis in zip(models, figure.subplots(1, len(models), squeeze=False)[0], strict=True):
        for machine in _values(rows, "machine"):
            _curve(axis, _where(rows, model=model, machine=machine), "length", "saving", 100, label=machine)
        dots = _where(published, model=model)
        x, y = [r["length"] for r in dots], [r["published_saving"] * _PERCENT for r in dots]
        axis.plot(x, y, "kx", markersize=8, label="published")
        _finish(axis, xscale="log", xlabel="tokens", ylabel="energy saved by the best plan, %", title=model)
    return figure


def draw_latency(rows: Rows) -> Figure:
    """Time with all products on the photonic unit, and that of electronics, over the multiplexing."""
    figure = _figure(7, 4)
    axis = figure.subplots()
    for k, machine in enumerate(_values(rows, "machine")):
        mine = _where(rows, machine=machine)
        _curve(axis, mine, "multiplex", "photonic_s", color=f"C{k}", label=f"{machine}: all on light")
        label = f"{machine}: electronics"
        _curve(axis, mine, "multiplex", "electronic_s", color=f"C{k}", linestyle=":", marker="", label=label)
    _finish(axis, xscale="log", yscale="log", xlabel="products per cycle of the photonic unit", ylabel="s")
    return figure


def draw_mapping(rows: Rows) -> Figure:
    """How many products the plans for energy and for time put on light, at the longest length."""
    longest = max(r["length"] for r in rows)
    chosen = [r for r in rows if r["length"] == longest]
    figure = _figure(7, 0.8 + 0.5 * len(chosen))
    axis = figure.subplots()
    for k, (key, name) in enumerate(
        (("on_phu_for_energy", "plan for energy"), ("on_phu_for_time", "for time"))
    ):
        at = [n + 0.2 - 0.4 * k for n in range(len(chosen))]
        axis.barh(at, [r[key] for r in chosen], height=0.38, label=name)
    names = [r["machine"] for r in chosen]
    _finish(axis, yticks=range(len(chosen)), yticklabels=names, xlabel=f"products on light, {longest} tokens")
    axis.axvline(chosen[0]["products"], color="k", linewidth=0.6)
    axis.invert_yaxis()
    axis.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def draw_ablation(rows: Rows) -> Figure:
    """Best saving, and energy with all products on light, charge by charge."""
    model = rows[-1]["model"]
    shown = [r for r in rows if r["model"] == model and r["kind"] in ("one by one", "base and")]
    labels = list(dict.fromkeys((r["kind"], r["charge"]) for r in shown))
    names = [c if k == "one by one" else f"base and {c}" for k, c in labels]
    figure = _figure(11, 0.8 + 0.32 * len(labels))
    left, right = figure.subplots(1, 2, sharey=True)
    for n, length in enumerate(_values(shown, "length")):
        mine = {(r["kind"], r["charge"]): r for r in shown if r["length"] == length}
        at = [k + 0.25 * (n - 1) for k in range(len(labels))]
        left.barh(
            at, [mine[key]["saving"] * _PERCENT for key in labels], height=0.24, label=f"{length} tokens"
        )
        ratios = [1 - mine[key]["forced_saving"] for key in labels]
        right.scatter(ratios, range(len(labels)), s=18, label=f"{length} tokens")
    right.axvline(1, color="k", linewidth=0.6)
    left.set(yticks=range(len(labels)), yticklabels=names)
    left.invert_yaxis()
    _finish(left, xlabel="energy saved by the best plan, %")
    _finish(right, xscale="log", xlabel="energy with all products on light / without light")
    figure.suptitle(model)
    return figure


def draw_sensitivity(rows: Rows) -> Figure:
    """A tornado per base: energy with all products on light over that without, knob by knob."""
    bases = _values(rows, "base")
    figure = _figure(13, 6.5)
    for base, axis in zip(bases, figure.subplots(1, len(bases), squeeze=False)[0], strict=True):
        mine = _where(rows, base=base)
        middle = _where(mine, knob="base")[0]["ratio"]
        knobs = [k for k in _values(mine, "knob") if k != "base"]
        knobs.sort(key=lambda k: max(abs(math.log(r["ratio"] / middle)) for r in _where(mine, knob=k)))
        for n, knob in enumerate(knobs):
            for r in _where(mine, knob=knob):
                color = "C2" if r["ratio"] < middle else "C3"
                axis.plot([middle, r["ratio"]], [n, n], color=color, linewidth=7, solid_capstyle="butt")
                if abs(math.log(r["ratio"] / middle)) > 0.02:
                    side = "right" if r["ratio"] < middle else "left"
                    axis.annotate(r["setting"], (r["ratio"], n), fontsize=6, va="center", ha=side)
        axis.axvline(middle, color="k", linewidth=0.8, label="base")
        axis.axvline(1, color="k", linewidth=0.8, linestyle=":", label="no gain")
        axis.set(yticks=range(len(knobs)), yticklabels=knobs)
        axis.tick_params(axis="y", labelsize=7)
        _finish(axis, xscale="log", xlabel="energy, all products on light / without light", title=base)
        _ratio_ticks(axis)
    return figure


def _ratio_ticks(axis: Any) -> None:
    """Room for texts beside the bars, and ticks that do not run into each other."""
    axis.margins(x=0.15)
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [n * 10.0**e for e in range(-4, 7) for n in steps if low <= n * 10.0**e <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)


def draw_breakeven(rows: Rows, bits: Iterable[Row]) -> Figure:
    """Break-even energy of an ADC sample over the tile, without static power; what bits cost."""
    free = [r for r in rows if r["adc_j"] > 0 and r["idle"] == "nobody"]
    figure = _figure(7, 4.2)
    axis = figure.subplots()
    for phase in _values(rows, "phase"):
        for electronics in _values(rows, "electronics"):
            mine = _where(free, phase=phase, electronics=electronics)
            if not mine:
                axis.plot([], [], label=f"{phase}, {electronics}: never")
                continue
            _curve(axis, mine, "tile", "adc_j", 1e12, label=f"{phase}, {electronics}")
    for row in bits:
        axis.axhline(row["adc_j"] * 1e12, color="k", linewidth=0.5, linestyle=":")
        style = {"xycoords": axis.get_yaxis_transform(), "ha": "right", "fontsize": 7}
        axis.annotate(f"{row['bits']} bits", (0.99, row["adc_j"] * 1e12), **style)
    label = f"pJ per ADC sample for {TARGET:.0%}"
    axis.plot([], [], "k:", linewidth=0.5, label="LightCode's ADC at other bits")
    _finish(axis, xscale="log", yscale="log", xlabel="side of the tile of weights", ylabel=label)
    return figure


def draw_surface(rows: Rows) -> Figure:
    """The same over tile and wavelengths, with the static power of the whole machine."""
    mine = [r for r in rows if r["idle"] == "whole machine"]
    tiles, waves = _values(mine, "tile"), _values(mine, "wavelengths")
    cases = list(dict.fromkeys((r["phase"], r["electronics"]) for r in mine))
    figure = _figure(12, 4.6)
    for axis, (phase, electronics) in zip(figure.subplots(2, 2).flat, cases, strict=True):
        found = {
            (r["tile"], r["wavelengths"]): r["adc_j"] * 1e12
            for r in _where(mine, phase=phase, electronics=electronics)
        }
        cells = [[found[t, w] for t in tiles] for w in waves]
        axis.imshow([[c > 0 for c in line] for line in cells], cmap="Greens", vmin=0, vmax=2, aspect="auto")
        for y, line in enumerate(cells):
            for x, value in enumerate(line):
                axis.text(x, y, f"{value:.2g}" if value else "never", ha="center", va="center", fontsize=8)
        axis.set(xticks=range(len(tiles)), xticklabels=tiles, yticks=range(len(waves)), yticklabels=waves)
        axis.set(xlabel="side of the tile", ylabel="wavelengths")
        axis.set_title(f"{phase}, {electronics}: pJ per ADC sample for {TARGET:.0%}", fontsize=9)
    return figure


def draw_reuse(rows: Rows) -> Figure:
    """Saving of units that modulate both operands in every cycle, over their size."""
    figure = _figure(7, 4)
    axis = figure.subplots()
    for electronics in _values(rows, "electronics"):
        _curve(axis, _where(rows, electronics=electronics), "side", "saving", 100, label=electronics)
    axis.axhline(TARGET * _PERCENT, color="k", linewidth=0.6, linestyle=":")
    label = "outputs that share a modulated number (side of the array)"
    _finish(axis, xscale="log", xlabel=label, ylabel="energy saved by the best plan, %")
    return figure


def draw_decode(rows: Rows) -> Figure:
    """Saving over the batch, and what it would be if light and conversion were free."""
    figure = _figure(12, 4)
    phases = _values(rows, "phase")
    for phase, axis in zip(phases, figure.subplots(1, len(phases), squeeze=False)[0], strict=True):
        for k, base in enumerate(_values(rows, "base")):
            mine = _where(rows, phase=phase, base=base)
            _curve(axis, mine, "batch", "saving", 100, color=f"C{k}", label=base)
            style = {"color": f"C{k}", "linestyle": ":", "label": "free light and conversion"}
            _curve(axis, mine, "batch", "bound", 100, **style)
        _finish(axis, xscale="log", xlabel="batch", ylabel="energy saved by the best plan, %", title=phase)
    return figure


def draw_cores(rows: Rows) -> Figure:
    """Energy with all products on a published core over that of the GPU beside it."""
    labels = list(dict.fromkeys((r["core"], r["beside"]) for r in rows))
    figure = _figure(9, 0.8 + 0.4 * len(labels))
    axis = figure.subplots()
    for phase, length in dict.fromkeys((r["phase"], r["length"]) for r in rows):
        mine = _where(rows, phase=phase, length=length)
        ratios = [1 - r["forced_saving"] for r in mine]
        axis.scatter(ratios, range(len(labels)), label=f"{phase}, {length} tokens")
    axis.axvline(1, color="k", linewidth=0.6)
    axis.invert_yaxis()
    axis.set(yticks=range(len(labels)), yticklabels=[f"{c}\n{b}" for c, b in labels])
    axis.tick_params(axis="y", labelsize=7)
    _finish(axis, xscale="log", xlabel="energy with all products on light / without light")
    return figure


def draw_accuracy(rows: Rows) -> Figure:
    """What bits cost in predictions and in energy."""
    figure = _figure(12, 4)
    left, right = figure.subplots(1, 2)
    for k, base in enumerate(_values(rows, "base")):
        for noise in _values(rows, "noise"):
            mine = _where(rows, base=base, noise=noise)
            style = {
                "color": f"C{k}",
                "linestyle": ":" if noise else "-",
                "label": f"{base}, noise {noise:g}",
            }
            _curve(left, mine, "bits", "divergence_nats", **style)
        _curve(
            right, _where(rows, base=base, noise=rows[0]["noise"]), "bits", "ratio", color=f"C{k}", label=base
        )
    left.axhline(MAX_LOSS_NATS, color="k", linewidth=0.6, linestyle=":")
    right.axhline(1, color="k", linewidth=0.6, linestyle=":")
    _finish(left, yscale="log", xlabel="bits of converters", ylabel="divergence, nats per token")
    _finish(right, yscale="log", xlabel="bits of converters", ylabel="energy, all on light / without light")
    return figure


def draw_all(tables: dict[str, Rows]) -> dict[str, Callable[[], Figure]]:
    """Every figure by its name; drawn when called."""
    main = tables["claims"][-1]["model"]
    bits = list({r["bits"]: r for r in tables["accuracy"]}.values())
    return {
        "claims": lambda: draw_claims(tables["claims"], tables["published"]),
        "latency": lambda: draw_latency(tables["latency"]),
        "mapping": lambda: draw_mapping(_where(tables["claims"], model=main)),
        "ablation": lambda: draw_ablation(tables["ablation"]),
        "sensitivity": lambda: draw_sensitivity(tables["sensitivity"]),
        "reuse": lambda: draw_reuse(tables["reuse"]),
        "breakeven": lambda: draw_breakeven(tables["breakeven"], bits),
        "surface": lambda: draw_surface(tables["breakeven"]),
        "decode": lambda: draw_decode(tables["decode"]),
        "cores": lambda: draw_cores(tables["cores"]),
        "accuracy": lambda: draw_accuracy(tables["accuracy"]),
    }
