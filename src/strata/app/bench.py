"""``strata bench``: prefill and decode speed, beside the ceilings of the machine measured in the same run.

Prefill is bound by arithmetic: its fraction is the flop of the matmuls per second over the peak of the
instruction that the chosen kernels use. Decode is bound by memory: its fraction is bytes of weights per
token, times tokens per second, over the bandwidth measured between the repetitions. (A model that fits into
the caches can exceed it.)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.assets import DEMO_MODEL
from strata.compiler.api import Options, compile_definition
from strata.compiler.driver import Compiled
from strata.core.dtypes import dtype
from strata.core.errors import UserError
from strata.engine.generate import peak_rss_bytes
from strata.engine.kv_cache import PagedKVCache
from strata.graph.nodes import Function
from strata.graph.stats import node_stats, size_bytes
from strata.models import Checkpoint, ModelDefinition, locate
from strata.models.shapes import random_params
from strata.runtime.program import Program
from strata.schedule import parse_trace
from strata.schedule.steps.tensorize import Tensorize

from .inspect import define_model
from .machine import measure_bandwidth, measure_peak
from .session import compile_progress

_INSTRUCTIONS = {"f32": "f32 multiply-add", "bf16": "bf16 dot product"}


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed, in tokens.

    Attributes:
        prompt: Of the prefill.
        context: In the cache when decode begins.
        decode: Decoded per repetition.
        repeats: Repetitions of both.

    Raises:
        UserError: one of them is below 1.
    """

    prompt: int = 512
    context: int = 128
    decode: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt", "context", "decode", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: got {getattr(self, name)}; expected at least 1")

    @property
    def max_tokens(self) -> int:
        """Longest sequence that occurs."""
        return max(self.prompt, self.context + self.decode)


def weight_bytes_read(function: Function) -> int:
    """Bytes of the params that one call of ``function`` reads whole: not of tables of which it takes rows."""
    params = {
        operand.attrs["name"]: operand
        for node in function.nodes
        for number, operand in enumerate(node.inputs)
        if operand.op == "param" and not (node.op == "take" and number == 0)
    }
    return sum(_int(size_bytes(p.tensor)) for p in params.values())


def matmul_flop(function: Function, num_tokens: int) -> int:
    """Flop of the matmuls in one call of ``function`` for one sequence of ``num_tokens`` tokens."""
    env = {"n": num_tokens, "num_seqs": 1}
    return sum(node_stats(node).at(env).flop for node in function.nodes if node.op == "matmul")  # type: ignore[misc]


def _int(value: object) -> int:
    assert isinstance(value, int)  # shapes of params have no symbols
    return value


def peak_dtype(plan: str, num_tokens: int) -> str:
    """``"bf16"`` if the plan's matmul kernels for ``num_tokens`` use dot products of bf16, else ``"f32"``.

    Args:
        plan: Text of ``plan.json``.
        num_tokens: Tokens of a prefill call.
    """
    for launch in json.loads(plan)["prefill"]["launches"]:
        if launch["op"] == "matmul":
            chosen = next(
                c for c in launch["choices"] if all(r["lo"] <= num_tokens <= r["hi"] for r in c["when"])
            )
            trace = parse_trace(launch["candidates"][chosen["candidate"]]["trace"])
            dots = [s for s in trace if isinstance(s, Tensorize) and s.intrinsic == "dot2_bf16"]
            return "bf16" if dots else "f32"
    return "f32"


class Runner:
    """Runs prefill and decode of one sequence of random tokens.

    Args:
        program: A language model.
        max_tokens: Longest sequence that will occur.
    """

    def __init__(self, program: Program, max_tokens: int) -> None:
        assert program.record.cache is not None
        self.chunk = program["prefill"].dim_range("n")[1]
        self._program = program
        page = program.record.cache.page_size
        self._cache = PagedKVCache(program.record.cache, -(-max_tokens // page) + 1, max_tokens, 1)
        self._rng = np.random.default_rng(0)
        self._vocab = _int(program.record.config["vocab_size"])

    def prefill(self, num_tokens: int) -> float:
        """Prefill a new sequence, in chunks; returns seconds."""
        if 0 in self._cache:
            self._cache.remove_sequence(0)
        self._cache.add_sequence(0)
        ids = self._rng.integers(0, self._vocab, num_tokens, dtype=np.int32)
        start = time.perf_counter()
        for begin in range(0, num_tokens, self.chunk):
            self._step("prefill", ids[begin : begin + self.chunk])
        return time.perf_counter() - start

    def decode(self, num_tokens: int) -> float:
        """Decode greedily; returns seconds."""
        token = np.zeros(1, np.int32)
        start = time.perf_counter()
        for _ in range(num_tokens):
            token[0] = int(self._step("decode", token)[0].argmax())
        return time.perf_counter() - start

    def _step(self, function: str, ids: np.ndarray) -> np.ndarray:
        view = self._cache.begin_forward([0], [len(ids)])
        logits = self._program[function](ids, view)
        self._cache.end_forward()
        return logits


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds per repetition, and bandwidths measured around the decodes."""

    prefill_s: list[float]
    decode_s: list[float]
    bandwidth_bytes_per_s: list[float]


def _measure(runner: Runner, work: Workload, num_threads: int) -> _Times:
    prefill_s = [runner.prefill(work.prompt) for _ in range(work.repeats)]
    decode_s, bandwidth = [], []
    for _ in range(work.repeats):
        runner.prefill(work.context)
        bandwidth.append(measure_bandwidth(num_threads, repeats=2))
        decode_s.append(runner.decode(work.decode))
    bandwidth.append(measure_bandwidth(num_threads, repeats=2))
    return _Times(prefill_s, decode_s, bandwidth)


@dataclass(frozen=True, slots=True)
class _Compilation:
    """A compiled model and what it took to get there (code only; weights come later)."""

    compiled: Compiled
    was_compiled: bool
    seconds: float


def _compile(definition: ModelDefinition, options: Options) -> _Compilation:
    fresh: list[bool] = []  # the driver reports progress only when it compiles
    start = time.perf_counter()
    with compile_progress() as progress:

        def report(done: int, total: int, name: str, from_cache: bool) -> None:
            fresh.append(True)
            if progress is not None:
                progress(done, total, name, from_cache)

        compiled = compile_definition(definition, options, None, report)
    return _Compilation(compiled, bool(fresh), time.perf_counter() - start)


def run(
    model: str | None, shape: str | None, format_: str | None, threads: int | None, work: Workload
) -> dict[str, Any]:
    """Measure a model folder, a named shape with random weights, or the demo model.

    Returns:
        What ``--json`` prints. Speeds are medians over the repetitions, spreads are (max - min) / median,
        fractions and spreads are plain ratios.

    Raises:
        UserError: the model cannot be read, or the workload does not fit its context.
    """
    options = Options(format_, max_batch=1)
    definition = define_model(model, shape, options)
    limit = _int(definition.config["max_context"])
    if work.max_tokens > limit:
        raise UserError(
            f"bench: {work.max_tokens} tokens are needed, the context is {limit}; "
            "lower --prompt, --context or --decode"
        )
    compilation = _compile(definition, options)
    params = random_params(definition) if shape else definition.load(Checkpoint(locate(model or DEMO_MODEL)))
    program = compilation.compiled.program(params, threads)
    runner = Runner(program, work.max_tokens)
    runner.prefill(min(work.prompt, runner.chunk))  # warm-up: pages, thread pool, caches
    rss_bytes = peak_rss_bytes()  # before the measurement of the bandwidth, which reads a large buffer
    times = _measure(runner, work, program.num_threads)
    return {
        "model": definition.config["model_name"],
        "format": definition.config["format"],
        "threads": program.num_threads,
        "was_compiled": compilation.was_compiled,
        "compile_s": compilation.seconds,
        "prompt_tokens": work.prompt,
        "context_tokens": work.context,
        "decode_tokens": work.decode,
        "repeats": work.repeats,
        **_prefill_figures(definition, compilation.compiled, work, runner.chunk, times, program.num_threads),
        **_decode_figures(definition, work, times),
        "stored_bytes": sum(
            int(np.prod(p.shape)) * dtype(p.dtype).itemsize_bytes for p in program.record.params
        ),
        "peak_rss_bytes": rss_bytes,
    }


def _prefill_figures(
    definition: ModelDefinition,
    compiled: Compiled,
    work: Workload,
    chunk: int,
    times: _Times,
    num_threads: int,
) -> dict[str, Any]:
    function = definition.module["prefill"]
    chunks = [min(chunk, work.prompt - begin) for begin in range(0, work.prompt, chunk)]
    seconds = statistics.median(times.prefill_s)
    flop_per_s = sum(matmul_flop(function, size) for size in chunks) / seconds
    instruction = peak_dtype(compiled.plan, chunks[0])
    peaks = {name: measure_peak(num_threads, name) for name in _INSTRUCTIONS}
    peak = peaks[instruction]
    assert peak is not None  # its instruction exists: kernels were chosen that use it
    return {
        "prefill_tokens_per_s": work.prompt / seconds,
        "prefill_spread": _spread(times.prefill_s),
        "prefill_flop_per_s": flop_per_s,
        "prefill_fraction_of_peak": flop_per_s / peak,
        "peak_instruction": _INSTRUCTIONS[instruction],
        "peak_flop_per_s": peak,
        "peak_f32_flop_per_s": peaks["f32"],
        "peak_bf16_flop_per_s": peaks["bf16"],
    }


def _decode_figures(definition: ModelDefinition, work: Workload, times: _Times) -> dict[str, Any]:
    rate = work.decode / statistics.median(times.decode_s)
    read = weight_bytes_read(definition.module["decode"])
    bandwidth = statistics.median(times.bandwidth_bytes_per_s)
    return {
        "decode_tokens_per_s": rate,
        "decode_spread": _spread(times.decode_s),
        "decode_bytes_per_token": read,
        "decode_bytes_per_s": read * rate,
        "decode_fraction_of_bandwidth": read * rate / bandwidth,
        "bandwidth_bytes_per_s": bandwidth,
        "bandwidth_spread": _spread(times.bandwidth_bytes_per_s),
    }


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def print_table(f: dict[str, Any]) -> None:
    """Print the figures of :func:`run` as a table."""
    from rich.console import Console
    from rich.table import Table

    how = "compiled" if f["was_compiled"] else "loaded from the cache"
    out = Table(
        title=f"{f['model']} · {f['format']} · {f['threads']} threads · {how} in {f['compile_s']:.2f} s"
    )
    for column in ("", "tokens/s", "spread", "achieved", "ceiling, measured", "fraction"):
        out.add_column(column, justify="right" if column else "left", no_wrap=True)
    out.add_row(
        f"prefill {f['prompt_tokens']}",
        f"{f['prefill_tokens_per_s']:.1f}",
        f"{f['prefill_spread']:.0%}",
        f"{f['prefill_flop_per_s'] / 1e9:.0f} GFLOP/s",
        f"{f['peak_flop_per_s'] / 1e9:.0f} GFLOP/s {f['peak_instruction']}",
        f"{f['prefill_fraction_of_peak']:.0%}",
    )
    out.add_row(
        f"decode {f['decode_tokens']} at {f['context_tokens']}",
        f"{f['decode_tokens_per_s']:.1f}",
        f"{f['decode_spread']:.0%}",
        f"{f['decode_bytes_per_s'] / 1e9:.1f} GB/s",
        f"{f['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s memory read",
        f"{f['decode_fraction_of_bandwidth']:.0%}",
    )
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(out)
