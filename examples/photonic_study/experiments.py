"""What the study computes: one function per table, a row per setting."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measures import Outcome, eight_bit, outcome, saving_at, works_apart
from variants import (
    FREE,
    H100_J_PER_MAC,
    PEAK_CORES,
    Electronics,
    Idle,
    Laser,
    Optics,
    Setup,
    at_its_power,
    beside,
    eight_bit_gpu,
)

from strata.assets import DEMO_MODEL
from strata.compiler.accuracy import sweep_numerics
from strata.compiler.workloads import WorkloadOptions, read_workload
from strata.graph.workload import Workload
from strata.target.hardware import GPU, Machine, read_machine

Row = dict[str, Any]
Rows = list[Row]
TARGET = 0.10  # saving that a photonic unit has to reach in the break-even studies
MAX_LOSS_NATS = 0.01  # divergence per token that counts as none: perplexity within about 1 %


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the study.

    Attributes:
        name: For people.
        graph: File of LightCode's own graph.
        shape: Name of the same model's config.
        lengths: At which it is looked at closely; the last one is the longest of LightCode's study.
    """

    name: str
    graph: str
    shape: str
    lengths: tuple[int, ...]


GPT2 = Model("GPT-2", "gpt2_prefill_graph", "gpt2-124m", (128, 1024, 1400))
LLAMA = Model("Llama-2-7B", "llama-2-7b_prefill_graph", "llama-2-7b", (128, 1024, 4096))


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is computed.

    Attributes:
        graphs: Folder of LightCode's graphs.
        models: The last one is the main one.
        curve: Lengths of curves.
        multiplex: Of the study of latency.
        tiles, wavelengths: Of the break-even surface.
        sides: Of arrays that modulate both operands.
        batches: Of decoding.
        bits, noise, tokens: Of the study of accuracy.
        num_accurate: Number of bases in it.
    """

    graphs: Path
    models: tuple[Model, ...] = (GPT2, LLAMA)
    curve: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1400, 2048, 3072, 4096)
    multiplex: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    tiles: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    wavelengths: tuple[int, ...] = (1, 10, 100)
    sides: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    bits: tuple[int, ...] = (4, 6, 8, 9, 10)
    noise: tuple[float, ...] = (0.0, 0.001)
    tokens: int = 256
    num_accurate: int = 2

    @property
    def main(self) -> Model:
        """The model of most tables."""
        return self.models[-1]

    def traced(self, model: Model) -> Workload:
        """LightCode's own graph of a model."""
        return read_workload(self.graphs / f"{model.graph}.json.gz")

    def prefill(self, batch: int = 1) -> Workload:
        """The main model from its config, every number in a byte."""
        return eight_bit(read_workload(self.main.shape, "prefill", WorkloadOptions(batch=batch)))

    def decode(self, batch: int = 1) -> Workload:
        """One token of the main model."""
        return eight_bit(read_workload(self.main.shape, "decode", WorkloadOptions(batch=batch)))


def quick(graphs: Path) -> Scope:
    """A scope for a first look: GPT-2 only, coarse."""
    return Scope(
        graphs,
        models=(replace(GPT2, lengths=(128, 1024)),),
        curve=(16, 128, 1024),
        multiplex=(1, 20),
        tiles=(16, 256),
        wavelengths=(1, 100),
        sides=(4, 64, 1024),
        batches=(1, 64),
        bits=(4, 8),
        noise=(0.0,),
        tokens=64,
        num_accurate=1,
    )


# --- the three claims -----------------------------------------------------------------------------

AS_PUBLISHED, AS_HONEST = "lightcode", "lightcode-honest"
CHARGED, REAL_GPU, HELD = (
    "charged, no idle power",
    "charged, GPU at its power",
    "held weights, GPU at its power",
)


def stages() -> dict[str, Machine]:
    """The machines on which the claims are looked at, by a name for people."""
    return {
        AS_PUBLISHED: read_machine("lightcode"),
        AS_HONEST: read_machine("lightcode-honest"),
        CHARGED: Setup().machine(),
        REAL_GPU: Setup(electronics=Electronics.H100_8BIT).machine(),
        HELD: Setup(electronics=Electronics.H100_8BIT, optics=Optics.STATIONARY).machine(),
    }


def claims(scope: Scope) -> Rows:
    """Energy, time and mapping of every model, machine and length."""
    rows: Rows = []
    for model in scope.models:
        workload = scope.traced(model)
        num_products = sum(w.contraction is not None for w in workload.works)
        lengths = sorted({*model.lengths, *(n for n in scope.curve if n <= model.lengths[-1])})
        for name, machine in stages().items():
            found = outcome(workload, machine, lengths)
            for k, length in enumerate(lengths):
                head = {"model": model.name, "machine": name, "length": length, "products": num_products}
                rows.append(head | _figures(found, k))
    return rows


def _figures(found: Outcome, k: int) -> Row:
    return {
        "electronic_j": float(found.electronic.energies_j[k]),
        "best_j": float(found.best.energies_j[k]),
        "photonic_j": float(found.photonic.energies_j[k]),
        "saving": float(found.saving[k]),
        "forced_saving": float(found.forced_saving[k]),
        "on_phu_for_energy": found.num_photonic(found.best, k),
        "on_phu_for_time": found.num_photonic(found.fastest, k),
        "apart": works_apart(found.best, found.fastest, k),
        "electronic_s": float(found.electronic.times_s[k]),
        "fastest_s": float(found.fastest.times_s[k]),
        "best_s": float(found.best.times_s[k]),
        "photonic_s": float(found.photonic.times_s[k]),
    }


def published(scope: Scope) -> Rows:
    """Savings that LightCode's own figures give: its energy plan against its time plan."""
    rows: Rows = []
    found = json.loads((scope.graphs / "lightcode_published.json").read_text())["rows"]
    for model in scope.models:
        for length in model.lengths:
            energy_mj = {r["objective"]: r["energy_mj"] for r in found if _is(r, model.graph, length)}
            if energy_mj:
                saving = 1 - energy_mj["energy"] / energy_mj["time"]
                rows.append({"model": model.name, "length": length, "published_saving": saving})
    return rows


def _is(row: Row, graph: str, length: int) -> bool:
    return (row["graph"], row["length"]) == (graph, length)


def latency(scope: Scope) -> Rows:
    """Time with all products on the photonic unit, by how many it does per cycle; in two cost models."""
    rows: Rows = []
    workload, length = scope.traced(scope.main), scope.main.lengths[-1]
    for multiplex in scope.multiplex:
        lightcode = read_machine("lightcode")
        phu = replace(lightcode.device("phu"), multiplex=multiplex)  # type: ignore[call-arg]
        others = [d for d in lightcode.devices if d.name != "phu"]
        for name, machine in (
            (AS_PUBLISHED, replace(lightcode, devices=[*others, phu])),
            (CHARGED, Setup(multiplex=multiplex).machine()),
        ):
            found = outcome(workload, machine, [length])
            rows.append({"multiplex": multiplex, "machine": name, "length": length} | _figures(found, 0))
    return rows


# --- charges --------------------------------------------------------------------------------------

Change = dict[str, Any]
CHARGES: dict[str, Change] = {
    "on-chip memories": {"on_chip": True},
    "conversion": {"conversion": True},
    "bandwidth": {"bandwidth": True},
    "re-reads": {"rereads": True},
    "launches": {"launches": True},
    "laser": {"laser": Laser.PER_MAC},
    "static power": {"idle": Idle.ALL},
}
# What is disputed, each on top of the undisputed charges: the base of all further studies.
BRANCHES: dict[str, Change] = {
    "nothing else": {},
    "static power, of who works": {"idle": Idle.GATED},
    "static power, whole machine": {"idle": Idle.ALL},
    "the same, as many cores as the GPU": {"idle": Idle.ALL, "cores": PEAK_CORES},
    "laser, per MAC": {"laser": Laser.PER_MAC},
    "laser of a whole core": {"laser": Laser.WHOLE},
    "analog values last one cycle": {"optics": Optics.EVERY_CYCLE},
    "weights held, 64 x 64": {"optics": Optics.STATIONARY, "tile": 64},
    "weights held, 512 x 512": {"optics": Optics.STATIONARY, "tile": 512},
    "GPU at its power, 8-bit": {"electronics": Electronics.H100_8BIT},
    "GPU at its power, 16-bit": {"electronics": Electronics.H100_16BIT},
}


# What no charge can be below: light that is stored until the last product of an op that needs it.
STORED_LIGHT = Setup(local_bytes=math.inf)


def ablation(scope: Scope) -> Rows:
    """Charges one after the other, each alone, and all but each."""
    rows: Rows = []
    for model in scope.models:
        workload, lengths = scope.traced(model), list(model.lengths)
        for kind, charge, machine in _ablated():
            found = outcome(workload, machine, lengths)
            for k, length in enumerate(lengths):
                head = {"model": model.name, "kind": kind, "charge": charge, "length": length}
                figures = _figures(found, k)
                rows.append(head | figures | {"slowdown": figures["photonic_s"] / figures["electronic_s"]})
    return rows


def _ablated() -> Iterator[tuple[str, str, Machine]]:
    yield "one by one", "LightCode's model", read_machine("lightcode")
    setup = FREE
    yield "one by one", "arithmetic, DRAM", setup.machine()
    for name, change in CHARGES.items():
        setup = replace(setup, **change)
        yield "one by one", f"+ {name}", setup.machine()
    yield "lower bound", "analog values last one op", STORED_LIGHT.machine()
    for name, change in BRANCHES.items():
        yield "base and", name, Setup(**change).machine()
    for name, change in CHARGES.items():
        yield "alone", name, replace(FREE, **change).machine()
    for name, change in CHARGES.items():
        without = {field: getattr(FREE, field) for field in change}
        yield "all but", name, replace(setup, **without).machine()


# --- sensitivity ----------------------------------------------------------------------------------

BASES: dict[str, Setup] = {
    "LightCode's GPU, values kept": Setup(),
    "H100 at its power, weights held": Setup(electronics=Electronics.H100_8BIT, optics=Optics.STATIONARY),
}
KNOBS: dict[str, tuple[tuple[str, Change], ...]] = {
    "converter energy": (("x 0.1", {"converter_scale": 0.1}), ("x 10", {"converter_scale": 10.0})),
    "converter bits": (("4", {"bits": 4}), ("12", {"bits": 12})),
    "0.04 pJ/MAC of light": (("x 0.1", {"light_scale": 0.1}), ("x 10", {"light_scale": 10.0})),
    "laser": (
        ("per MAC", {"laser": Laser.PER_MAC}),
        ("x 10", {"laser": Laser.PER_MAC, "laser_scale": 10.0}),
    ),
    "laser of a whole core": (("1.54 W", {"laser": Laser.WHOLE}),),
    "GPU energy per MAC": (
        ("0.07 pJ", {"gpu_j_per_mac": 0.07e-12}),
        ("H100, 16-bit", {"gpu_j_per_mac": H100_J_PER_MAC}),
    ),
    "static power, of who works": (("80 W", {"idle": Idle.GATED}),),
    "static power, whole machine": (("80 W", {"idle": Idle.ALL}),),
    "the same, as many cores as the GPU": (("80 W", {"idle": Idle.ALL, "cores": PEAK_CORES}),),
    "power of the working PHU": (("0.1 W", {"phu_static_w": 0.1}), ("10 W", {"phu_static_w": 10.0})),
    "multiplex": (("1", {"multiplex": 1}), ("1000", {"multiplex": 1000})),
    "clock of the PHU": (("1 GHz", {"clock_hz": 1e9}), ("100 GHz", {"clock_hz": 1e11})),
    "analog values": (
        ("kept", {"optics": Optics.KEPT}),
        ("one cycle", {"optics": Optics.EVERY_CYCLE}),
    ),
    "local memory of the PHU": (
        ("4 KiB", {"optics": Optics.KEPT, "local_bytes": 4 * 2.0**10}),
        ("2 MiB", {"optics": Optics.KEPT, "local_bytes": 2 * 2.0**20}),
    ),
    "tile of held weights": (
        ("8", {"optics": Optics.STATIONARY, "tile": 8}),
        ("1024", {"optics": Optics.STATIONARY, "tile": 1024}),
    ),
    "programming energy": (("0 J", {"program_j": 0.0}), ("1 nJ", {"program_j": 1e-9})),
    "on-chip memories": (("free", {"on_chip": False}),),
    "re-reads": (("none", {"rereads": False}),),
}


def sensitivity(scope: Scope) -> Rows:
    """Energy with all products on the photonic unit over that of electronics, knob by knob."""
    rows: Rows = []
    length = 1024
    workloads: dict[int, Workload] = {batch: scope.prefill(batch) for batch in (1, 32)}
    for base_name, base in BASES.items():

        def add(knob: str, setting: str, setup: Setup, batch: int = 1, at: int = length) -> None:
            found = outcome(workloads[batch], setup.machine(), [at])
            ratio = float(found.photonic.energies_j[0] / found.electronic.energies_j[0])
            row = {"base": base_name, "knob": knob, "setting": setting, "ratio": ratio}  # noqa: B023
            rows.append(row | {"saving": float(found.saving[0]), "slowdown": float(found.slowdown[0])})

        add("base", "", base)
        for knob, settings in KNOBS.items():
            for setting, change in settings:
                add(knob, setting, replace(base, **change))
        add("batch", "32", base, batch=32)
        add("length", "16", base, at=16)
        add("length", str(scope.main.lengths[-1]), base, at=scope.main.lengths[-1])
    return rows


# --- break-even -----------------------------------------------------------------------------------


def breakeven(scope: Scope) -> Rows:
    """The energy per ADC sample at which a unit that holds weights saves :data:`TARGET`.

    DACs cost LightCode's multiple of it. 0 where even free converters do not save so much. Without static
    power wavelengths change the time only, so one number of them will do.
    """
    rows: Rows = []
    adc_j = Setup().adc_j_per_sample
    cases = {"prefill": (scope.prefill(), 1024), "decode, batch 64": (scope.decode(64), 1023)}
    for phase, (workload, length) in cases.items():
        for electronics in (Electronics.LIGHTCODE, Electronics.H100_8BIT):
            for idle in (Idle.NOBODY, Idle.ALL):
                for m in scope.wavelengths if idle is Idle.ALL else scope.wavelengths[-1:]:
                    base = Setup(electronics=electronics, optics=Optics.STATIONARY, idle=idle, multiplex=m)
                    electronic_j = _electronic_j(workload, base, length)
                    for tile in scope.tiles:
                        scale = _largest_scale(replace(base, tile=tile), workload, length, electronic_j)
                        row = {"phase": phase, "electronics": electronics.value, "idle": idle.value}
                        rows.append(row | {"tile": tile, "wavelengths": m, "adc_j": scale * adc_j})
    return rows


def _electronic_j(workload: Workload, setup: Setup, length: int) -> float:
    return float(outcome(workload, setup.machine(), [length]).electronic.energies_j[0])


def _largest_scale(setup: Setup, workload: Workload, length: int, electronic_j: float) -> float:
    """The largest ``converter_scale`` with a saving of at least TARGET, within 5 %; 0 = none."""

    def saves(scale: float) -> bool:
        machine = replace(setup, converter_scale=scale).machine()
        return saving_at(workload, machine, length, electronic_j) >= TARGET

    lo, hi = 1e-3, 1e3
    if not saves(lo):
        return 0.0
    while hi / lo > 1.05:
        middle = (lo * hi) ** 0.5
        lo, hi = (middle, hi) if saves(middle) else (lo, middle)
    return lo


def reuse(scope: Scope) -> Rows:
    """Saving of units that modulate both operands in each cycle, by how many outputs share a modulator."""
    rows: Rows = []
    workload = scope.prefill()
    for electronics in (Electronics.LIGHTCODE, Electronics.H100_8BIT, Electronics.H100_16BIT):
        for side in scope.sides:
            setup = Setup(electronics=electronics, optics=Optics.EVERY_CYCLE, multiplex=side * side)
            found = outcome(workload, setup.machine(), [1024])
            row = {"electronics": electronics.value, "side": side, "saving": float(found.saving[0])}
            rows.append(row | {"forced_saving": float(found.forced_saving[0])})
    return rows


def allowance(scope: Scope) -> Rows:
    """Power that a photonic unit may draw for all else before it saves nothing, by length.

    Alone, and for as many cores as have the GPU's peak.
    """
    rows: Rows = []
    workload, lengths = scope.prefill(), list(scope.main.lengths)
    for electronics in Electronics:
        found = outcome(workload, Setup(electronics=electronics).machine(), lengths)
        for k, length in enumerate(lengths):
            busy_s = sum(found.photonic.loads(k)[name].time_s for name in ("phu",))
            spare_w = float(found.electronic.energies_j[k] - found.photonic.energies_j[k]) / busy_s
            row = {"electronics": electronics.value, "length": length, "spare_w": spare_w}
            rows.append(row | {"cores": PEAK_CORES, "spare_w_of_cores": spare_w * PEAK_CORES})
    return rows


# --- decoding, published cores --------------------------------------------------------------------


def decode(scope: Scope) -> Rows:
    """One new token after 1024 (the most the model allows), by batch; and the most that light can save."""
    rows: Rows = []
    for batch in scope.batches:
        for phase, workload, length in _phases(scope, batch):
            for name, setup in BASES.items():
                found = outcome(workload, setup.machine(), [length])
                ideal = outcome(workload, _ideal(setup), [length])
                row = {"phase": phase, "batch": batch, "base": name, "saving": float(found.saving[0])}
                row |= {"forced_saving": float(found.forced_saving[0]), "bound": float(ideal.saving[0])}
                rows.append(row | {"electronic_j": float(found.electronic.energies_j[0])})
    return rows


def _ideal(setup: Setup) -> Machine:
    """A unit with free light and converters, which reads each number once, from where the GPU does."""
    ideal = replace(setup, light_scale=0.0, conversion=False, optics=Optics.KEPT, local_bytes=math.inf)
    machine = ideal.machine()
    gpu, phu = machine.devices
    return replace(
        machine, devices=[gpu, replace(phu, memory=gpu.memory, buffer_j_per_byte=gpu.buffer_j_per_byte)]
    )


def _phases(scope: Scope, batch: int) -> Iterator[tuple[str, Workload, int]]:
    yield "decode", scope.decode(batch), 1023
    if batch <= 16:
        yield "prefill", scope.prefill(batch), 1024


def cores(scope: Scope) -> Rows:
    """Published photonic cores beside an H100, as their files have them and with favourable changes."""
    rows: Rows = []
    changes: dict[str, Callable[[GPU], GPU]] = {
        "16-bit GPU, whole machine idles": lambda gpu: gpu,
        "16-bit GPU, no idle power": at_its_power,
        "8-bit GPU, no idle power": lambda gpu: eight_bit_gpu(at_its_power(gpu)),
    }
    cases = [("prefill", scope.prefill(), n) for n in (128, 1024)]
    cases.append(("decode", scope.decode(), 1023))
    for name in ("lightening-transformer", "lightmatter-2025"):
        for label, change in changes.items():
            machine = beside(read_machine(name), change)
            for phase, workload, length in cases:
                found = outcome(workload, machine, [length])
                row = {"core": name, "beside": label, "phase": phase, "length": length}
                row |= {"saving": float(found.saving[0]), "forced_saving": float(found.forced_saving[0])}
                row["faster"] = float(1 - found.fastest.times_s[0] / found.electronic.times_s[0])
                rows.append(row | {"slowdown": float(found.slowdown[0])})
    return rows


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(scope: Scope) -> Rows:
    """Perplexity of the demo model by bits and noise, and what these bits cost the main model."""
    rows: Rows = []
    prefill = scope.prefill()
    for name, base in list(BASES.items())[: scope.num_accurate]:
        costs = {bits: outcome(prefill, replace(base, bits=bits).machine(), [1024]) for bits in scope.bits}
        swept = sweep_numerics(
            DEMO_MODEL,
            base.machine(),
            bits=scope.bits,
            noise=scope.noise,
            tokens=scope.tokens,
            pins={"matmul": "phu"},
        )
        for run in swept:
            row = {"base": name, "bits": run.bits, "noise": run.noise, "perplexity": run.perplexity}
            row |= {"exact_perplexity": run.exact_perplexity, "divergence_nats": run.divergence_nats}
            row |= {"loss_nats": run.loss_nats, "loss_error_nats": run.loss_error_nats}
            found = costs[run.bits]
            row |= {"adc_j": replace(base, bits=run.bits).adc_j_per_sample}
            row |= {"ratio": float(found.photonic.energies_j[0] / found.electronic.energies_j[0])}
            rows.append(row | {"saving": float(found.saving[0])})
    return rows
