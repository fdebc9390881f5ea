"""Measuring this computer for the planner: kernels of small models, timed one by one, and their fit.

Small models (two widths as Llama is built, one as GPT-2) run with random weights; their kernels are those of
any model of these kinds. Weights are larger than the last-level cache, as they are in a model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.app.machine import measure_bandwidth, measure_ceilings
from strata.compiler.api import Options, compile_definition, define
from strata.core.errors import VerifyError
from strata.engine.forward import forward_pass
from strata.graph.workload import Workload
from strata.models import ModelConfig
from strata.models.registry import ReadOptions, parse_config
from strata.models.shapes import random_params
from strata.models.workload import model_workload
from strata.planner.devices.build import stacked_graph
from strata.planner.options import PlanOptions
from strata.planner.profiles.fitted import Sample, amounts, fit, weight_width
from strata.runtime.profile import Ceilings, Profile, profile
from strata.runtime.program import Program
from strata.target import Target, detect_host
from strata.target.hardware import Machine, Memory
from strata.target.hardware.fitted import Family, FittedCPU, Knot
from strata.target.hardware.parameters import with_parameters

LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # tokens of a prefill
CONTEXTS = (16, 128, 512, 1024)  # tokens in the cache of a decode step
# Where kernels are measured that a model does not choose by itself: at more rows, their rates stay.
OTHERS_LENGTHS, OTHERS_CONTEXTS = (2, 4, 8, 16, 32, 64, 256), (128,)
REPEATS = 7  # of every pass; the median counts
# The bandwidth before and after a pass differs by less, and so do its kernels together from the pass as a
# whole, or it is measured again ...
STEADY = 0.1
TRIES = 5  # ... up to so many times
_BANDWIDTH_BYTES = 1 << 28  # read to measure it: some milliseconds
_CACHES = 4  # weights of a model are this many times the last-level cache
_VOCAB = 16000
# No datasheet says what a byte or a multiply-add costs here; these are the numbers of a 45 nm processor's
# DRAM access and f32 multiply-add (Horowitz, ISSCC 2014, figure 1.1.9), so energies are rough.
_J_PER_BYTE, _J_PER_MAC, _J_PER_OP = 1.3e-9 / 8, 4.6e-12, 0.9e-12
_ENERGY_SOURCE = "assumed: Horowitz, ISSCC 2014, fig. 1.1.9 (45 nm: DRAM 1.3 nJ per 64 bits, f32 4.6 pJ)"

Report = Callable[[int, int, str], None]  # passes done, of how many, what comes next


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured.

    Attributes:
        machine: This computer, with its fitted families of kernels.
        samples: What they were fitted to.
        ceilings: Peaks and bandwidth measured beside them.
    """

    machine: Machine
    samples: tuple[Sample, ...]
    ceilings: Ceilings


def calibrate(
    formats: Sequence[str], threads: int | None = None, report: Report | None = None
) -> Calibration:
    """Measure and fit.

    Args:
        formats: Of the weights, one calibration each: ``("bf16", "int4")``.
        threads: ``None`` = all cores.
        report: Called before each pass.

    Raises:
        UserError: an unknown format.
    """
    target = detect_host()
    models = [(f, name, values) for f in formats for name, values in _configs(f, target)]
    samples: list[Sample] = []
    for number, (format_, name, values) in enumerate(models):
        steps = _Steps(report, number, len(models), f"{format_} {name}")
        samples += _all_samples(parse_config(values, name, ReadOptions()), format_, threads, steps)
    count = threads or os.cpu_count() or 1
    ceilings = measure_ceilings(count)
    families = (*fit(samples, _source(target)), _anything(ceilings))
    return Calibration(_machine(target, families, ceilings), tuple(samples), ceilings)


class _Steps:
    """Reports the steps of one model among ``models``."""

    def __init__(self, report: Report | None, model: int, models: int, title: str) -> None:
        self.report, self.model, self.models, self.title = report, model, models, title
        self.done, self.expected = 0, len(LENGTHS) + len(CONTEXTS) + 1

    def __call__(self, what: str) -> None:
        """``what`` begins."""
        if self.report is not None:
            done = self.model + self.done / max(self.expected, self.done + 1)
            self.report(round(100 * done), 100 * self.models, f"{self.title}: {what}")
        self.done += 1


def _all_samples(config: ModelConfig, format_: str, threads: int | None, steps: _Steps) -> list[Sample]:
    """Of a model as it is compiled, and of the kernels that it would choose for other sizes."""
    steps("compile")
    model = measurable(config, format_, threads)
    kernels = other_kernels(model)
    steps.expected += len(kernels) * (len(OTHERS_LENGTHS) + len(OTHERS_CONTEXTS) + 1)
    samples = model_samples(model, LENGTHS, CONTEXTS, steps)
    for kernel in kernels:
        steps(f"compile with {kernel}")
        other = measurable(config, format_, threads, prefer=kernel)
        found = model_samples(other, OTHERS_LENGTHS, OTHERS_CONTEXTS, steps)
        samples += [s for s in found if s.kernel == kernel]
    return samples


def _configs(format_: str, target: Target) -> Iterable[tuple[str, dict[str, Any]]]:
    """Small models whose weights are larger than the last-level cache."""
    bytes_per_weight = 0.5 if "4" in format_ else 1.0 if "8" in format_ else 4.0 if format_ == "f32" else 2.0
    for width, inner, heads in ((1024, 2816, 16), (2048, 5632, 32)):
        weights = width * (2 * width + 2 * width // 4) + 3 * width * inner
        layers = max(2, math.ceil(_CACHES * target.l3_bytes / (weights * bytes_per_weight)))
        yield (
            f"llama {width}",
            {
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": _VOCAB,
                "hidden_size": width,
                "intermediate_size": inner,
                "num_hidden_layers": min(layers, 8),
                "num_attention_heads": heads,
                "num_key_value_heads": heads // 4,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
            },
        )
    yield (
        "gpt2 768",
        {
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": _VOCAB,
            "n_embd": 768,
            "n_layer": 8,
            "n_head": 12,
            "n_positions": 2048,
        },
    )


@dataclass(frozen=True, slots=True)
class Measurable:
    """A model that runs with random weights, and what the planner knows of it."""

    config: ModelConfig
    format: str
    program: Program
    threads: int

    def workload(self, function: str) -> Workload:
        """Its kernels as works, in the order in which they are launched."""
        return model_workload(
            self.config, function, 1, self.format, granularity="kernels", name="calibration"
        )


def measurable(config: ModelConfig, format_: str, threads: int | None, prefer: str = "") -> Measurable:
    """Compile a model, with the kernel ``prefer`` wherever it applies, and give it random weights."""
    options = Options(format_, plan=PlanOptions(prefer=(prefer,) if prefer else (), join_gates=False))
    definition = define(config, options, "calibration")
    program = compile_definition(definition, options).program(random_params(definition), threads)
    return Measurable(config, format_, program, threads or os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A pass, every kernel timed.

    Attributes:
        workload: Its kernels as works, in the order of the launches.
        profile: Their times.
        bandwidth: Bytes per second of main memory, measured beside it.
    """

    workload: Workload
    profile: Profile
    bandwidth: float


def other_kernels(model: Measurable) -> tuple[str, ...]:
    """Kernels of the products with weights, of which a model chooses one for each number of rows."""
    nodes = model.program.nodes("prefill")
    return tuple(dict.fromkeys(c.name for n in nodes if len(n.candidates) > 1 for c in n.candidates))


def model_samples(
    model: Measurable, lengths: Sequence[int], contexts: Sequence[int], step: Callable[[str], None]
) -> list[Sample]:
    """Samples of all kernels of a model: prefill of ``lengths``, decode with ``contexts``."""
    calls = [("prefill", n) for n in lengths] + [("decode", n) for n in contexts]
    samples: list[Sample] = []
    for function, length in calls:
        step(f"{function} {length}")
        samples += kernel_samples(measured_pass(model, function, length, REPEATS), length)
    return samples


def measured_pass(model: Measurable, function: str, length: int, repeats: int) -> Measured:
    """Time every kernel of the last pass over a sequence of random tokens.

    Where memory changed its speed meanwhile, once more: the times would be of neither. So where something
    disturbed the kernels' times or those of the whole.

    Args:
        model: The model.
        function: ``prefill`` of ``length`` tokens, or ``decode`` of one with ``length`` in the cache.
        length: Tokens.
        repeats: Repetitions, of which the median counts.
    """
    after = measure_bandwidth(model.threads, _BANDWIDTH_BYTES)
    tries = 0
    while True:
        before, tries = after, tries + 1
        measured = _profile(model, function, length, repeats)
        after = measure_bandwidth(model.threads, _BANDWIDTH_BYTES)
        is_steady = abs(after / before - 1) <= STEADY
        if (is_steady and abs(measured.total_s / measured.whole_s - 1) <= STEADY) or tries == TRIES:
            break
    workload = model.workload(function)
    if len(workload.works) != len(measured.nodes):
        raise VerifyError(
            f"calibration: {function} has {len(workload.works)} works and {len(measured.nodes)} launches"
        )
    return Measured(workload, measured, (before + after) / 2)


def _profile(model: Measurable, function: str, length: int, repeats: int) -> Profile:
    vocab = model.program.record.config["vocab_size"]
    assert isinstance(vocab, int)
    tokens = length + (function == "decode")
    ids = np.random.default_rng(0).integers(0, vocab, tokens, dtype=np.int32)
    forward = forward_pass(model.program, function, ids, computes_past=False)
    return profile(forward.step, forward, repeats=repeats, work_dims=forward.work_dims)


def kernel_samples(measured: Measured, length: int) -> list[Sample]:
    """One sample per distinct kernel and amount of work: the median over equal launches."""
    groups: dict[tuple[str, str, int, int, float, float, float], list[float]] = {}
    points, workload = {"L": np.array([length])}, measured.workload
    for work, timing in zip(workload.works, measured.profile.nodes, strict=True):
        of = amounts(workload, work, points, measured.bandwidth)
        sizes = (int(of.rows[0]), float(of.weight_s[0]), float(of.bytes[0]), float(of.flop[0]))
        key = (work.op, timing.candidate, weight_width(workload, work), *sizes)
        groups.setdefault(key, []).append(timing.time_s)
    return [Sample(*key, time_s=float(np.median(times))) for key, times in groups.items()]


def _anything(ceilings: Ceilings) -> Family:
    """What a kernel without a family takes: its bytes at the bandwidth, its flop at the f32 peak."""
    s_per_byte, s_per_flop = 1 / ceilings.bytes_per_s, 1 / ceilings.flop_per_s["f32"]
    knot = Knot(rows=1, launch_s=2e-6, weight_reads=1.0, s_per_byte=s_per_byte, s_per_flop=s_per_flop)
    return Family(op="*", weight_bits=0, knots=(knot,), sources=(("", "measured ceilings; launch assumed"),))


def _source(target: Target) -> str:
    return f"measured on this machine ({target.cpu}, {target.num_cores} cores): strata calibrate"


def _sources(target: Target, *energies: str) -> tuple[tuple[str, str], ...]:
    return (("", _source(target)), *((name, _ENERGY_SOURCE) for name in energies))


def _machine(target: Target, families: tuple[Family, ...], ceilings: Ceilings) -> Machine:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dram = Memory(
        name="dram",
        capacity_bytes=float(memory_bytes),
        bandwidth_bytes_per_s=ceilings.bytes_per_s,
        read_j_per_byte=_J_PER_BYTE,
        write_j_per_byte=_J_PER_BYTE,
        sources=(
            ("", _source(target)),
            ("read_j_per_byte", _ENERGY_SOURCE),
            ("write_j_per_byte", _ENERGY_SOURCE),
        ),
    )
    # Peaks are those of the measured loops; a clock that no one can read here is not invented: one cycle is
    # one multiply-add of the whole machine.
    cpu = FittedCPU(
        name="cpu",
        clock_hz=ceilings.flop_per_s["f32"] / 2,
        cores=1,
        macs_per_cycle=1.0,
        elems_per_cycle=1.0,
        j_per_mac=_J_PER_MAC,
        j_per_op=_J_PER_OP,
        j_per_byte=_J_PER_BYTE,
        families=families,
        sources=_sources(target, "j_per_mac", "j_per_op", "j_per_byte"),
    )
    return Machine([cpu], name="this", profile="fitted", memories=[dram], about=_source(target))


# --- how true it is ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Predicted:
    """One pass of a model, predicted and measured.

    Attributes:
        function, length: Which pass.
        bandwidth: Bytes per second of main memory beside it, with which the prediction was made.
        measured_s: Median of the native entry, which makes all launches.
        predicted_s: Sum over the kernels.
        kernels: ``(name, op, measured_s, predicted_s)`` of each.
    """

    function: str
    length: int
    bandwidth: float
    measured_s: float
    predicted_s: float
    kernels: tuple[tuple[str, str, float, float], ...]

    @property
    def error(self) -> float:
        """``predicted / measured - 1``."""
        return self.predicted_s / self.measured_s - 1

    def share_within(self, tolerance: float) -> float:
        """Share of the measured time that kernels take whose prediction is off by at most ``tolerance``."""
        total = sum(measured for _, _, measured, _ in self.kernels)
        met = sum(m for _, _, m, p in self.kernels if abs(p / m - 1) <= tolerance)
        return met / total


def predict_and_measure(
    machine: Machine, model: Measurable, calls: Sequence[tuple[str, int]], report: Report | None = None
) -> tuple[Predicted, ...]:
    """Predict passes of a model on a calibrated machine, and time them.

    Predictions are for the bandwidth that memory has beside each pass.

    Args:
        machine: With the profile ``fitted``.
        model: What to run.
        calls: ``("prefill", tokens)`` and ``("decode", context)``.
        report: Called before each.
    """
    found = []
    for number, (function, length) in enumerate(calls):
        if report is not None:
            report(number, len(calls), f"{function} {length}")
        measured = measured_pass(model, function, length, REPEATS)
        now = with_parameters(
            machine, {("memories", machine.home, "bandwidth_bytes_per_s"): measured.bandwidth}
        )
        graph = stacked_graph(measured.workload, now, {"L": np.array([length])})
        times = [min(float(c.estimates.time_s[0]) for c in stack) for stack in graph.stacks]
        kernels = tuple(
            (work.name, work.op, timing.time_s, time_s)
            for work, timing, time_s in zip(
                measured.workload.works, measured.profile.nodes, times, strict=True
            )
        )
        whole_s = measured.profile.whole_s
        found.append(Predicted(function, length, measured.bandwidth, whole_s, sum(times), kernels))
    return tuple(found)
