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

from strata.app.bench.counts import PRODUCTS
from strata.app.machine import measure_ceilings
from strata.compiler.api import Options, compile_definition, define
from strata.core.dtypes import dtype
from strata.engine.forward import ForwardPass, forward_pass
from strata.models.registry import ReadOptions, parse_config
from strata.models.shapes import random_params
from strata.planner.profiles.fitted import WIDTHS, Sample, fit
from strata.runtime.nodes import NodeInfo
from strata.runtime.profile import Ceilings, Profile, profile
from strata.runtime.program import Program
from strata.runtime.records import ArgKind
from strata.target import Target, detect_host
from strata.target.hardware import Machine, Memory
from strata.target.hardware.fitted import Family, FittedCPU, Knot

LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # tokens of a prefill
CONTEXTS = (16, 128, 512, 1024)  # tokens in the cache of a decode step
REPEATS = 7  # of every pass; the median counts
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
    passes = len(LENGTHS) + len(CONTEXTS)
    samples: list[Sample] = []
    for number, (format_, name, values) in enumerate(models):
        step = _stepper(report, number * passes, len(models) * passes, f"{format_} {name}")
        step(0, "compile")
        samples += model_samples(_program(values, format_, threads), step)
    count = threads or os.cpu_count() or 1
    ceilings = measure_ceilings(count)
    families = (*fit(samples, _source(target)), _anything(ceilings))
    return Calibration(_machine(target, families, ceilings), tuple(samples), ceilings)


def _stepper(report: Report | None, before: int, total: int, title: str) -> Callable[[int, str], None]:
    def step(done: int, what: str) -> None:
        if report is not None:
            report(before + done, total, f"{title}: {what}")

    return step


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


def _program(values: dict[str, Any], format_: str, threads: int | None) -> Program:
    definition = define(parse_config(values, "calibration", ReadOptions()), Options(format_), "calibration")
    return compile_definition(definition, Options(format_)).program(random_params(definition), threads)


def model_samples(program: Program, step: Callable[[int, str], None]) -> list[Sample]:
    """Samples of all kernels of a model at ``LENGTHS`` and ``CONTEXTS``."""
    calls = [("prefill", n) for n in LENGTHS] + [("decode", n + 1) for n in CONTEXTS]
    samples: list[Sample] = []
    for number, (function, tokens) in enumerate(calls):
        step(number, f"{function} {tokens}")
        forward = random_pass(program, function, tokens)
        measured = profile(forward.step, forward, repeats=REPEATS, work_dims=forward.work_dims)
        samples += kernel_samples(program, measured, forward)
    return samples


def random_pass(program: Program, function: str, tokens: int) -> ForwardPass:
    """The last pass over a sequence of random tokens."""
    vocab = program.record.config["vocab_size"]
    assert isinstance(vocab, int)
    ids = np.random.default_rng(0).integers(0, vocab, tokens, dtype=np.int32)
    return forward_pass(program, function, ids, computes_past=False)


def kernel_samples(program: Program, measured: Profile, forward: ForwardPass) -> list[Sample]:
    """One sample per distinct kernel and amount of work: the median over equal launches."""
    groups: dict[tuple[str, int, int, float, float], list[float]] = {}
    dims = forward.work_dims
    for node, timing in zip(program.nodes(measured.function), measured.nodes, strict=True):
        work = node.work(dims)
        if work is None:
            continue
        touched = float(work["read_bytes"] + work["write_bytes"])
        rows = node.size(dims) if node.op in PRODUCTS else dims["n"]
        key = (node.op, weight_width(node), rows, touched, float(work["flop"]))
        groups.setdefault(key, []).append(timing.time_s)
    return [Sample(*key, time_s=float(np.median(times))) for key, times in groups.items()]


def weight_width(node: NodeInfo) -> int:
    """Width of the weight that a kernel multiplies by, one of ``WIDTHS``; 0 = it is no product."""
    if node.op not in PRODUCTS:
        return 0
    bits = [dtype(x.dtype).bits for x in node.inputs if x.place.kind is ArgKind.PARAM and len(x.shape) > 1]
    return min(WIDTHS, key=lambda width: abs(width - min(bits))) if bits else 0


def _anything(ceilings: Ceilings) -> Family:
    """What a kernel without a family takes: its bytes at the bandwidth, its flop at the f32 peak."""
    knot = Knot(
        rows=1, launch_s=2e-6, s_per_byte=1 / ceilings.bytes_per_s, s_per_flop=1 / ceilings.flop_per_s["f32"]
    )
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
