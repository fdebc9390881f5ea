"""``strata bench``: prefill and decode speed, beside the ceilings of the machine measured in the same run.

Prefill is bound by arithmetic: the fraction is flop over the peak of the instruction that the kernels use. Decode is bound
by memory: the fraction is bytes of weights read per token, times tokens per second, over the bandwidth measured right
before and after each repetition.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from strata.compiler.api import Options, compile_definition, define
from strata.core.dtypes import dtype
from strata.core.errors import UserError
from strata.engine.kv_cache import PagedKVCache
from strata.models import Checkpoint, locate, read_config
from strata.models.shapes import random_params, shape_config
from strata.runtime.program import Program
from strata.runtime.records import ProgramRecord

from .machine import measure_bandwidth, measure_peak
from .session import DEMO_MODEL, compile_progress


@dataclass(frozen=True, slots=True)
class Work:
    """What one token costs, counted from the program's params.

    Attributes:
        decode_bytes: Weight bytes read per decoded token: every matrix that is multiplied by, once, and the vectors.
        prefill_flop: Flop of the matmuls per prompt token; the head runs once per prompt and is left out.
        head_flop: Flop of the head for one position.
    """

    decode_bytes: int
    prefill_flop: int
    head_flop: int


def count_work(record: ProgramRecord) -> Work:
    """Count bytes and flop from the stored params."""
    read = flop = head = 0
    vocab = int(record.config["vocab_size"])  # type: ignore[call-overload]
    for param in record.params:
        elems = int(np.prod(param.logical_shape))
        size = dtype(param.dtype).itemsize_bytes
        if param.layout:
            read += elems * size
            if param.logical_shape[0] == vocab:
                head += 2 * elems
            else:
                flop += 2 * elems
        elif len(param.shape) == 1:
            read += elems * size
    return Work(read, flop, head)


def _load(model: str | None, shape: str | None, options: Options, threads: int | None) -> tuple[Program, str, float]:
    """Program, name and seconds of compilation (code only)."""
    if model is not None and shape is not None:
        raise UserError("bench: got a model and --shape; expected one of them")
    if shape is not None:
        definition = define(shape_config(shape), options, shape)
        params, name = random_params(definition), shape
    else:
        folder = locate(model or DEMO_MODEL)
        definition = define(read_config(folder), options, folder.name)
        params, name = definition.load(Checkpoint(folder)), folder.name
    start = time.perf_counter()
    with compile_progress() as progress:
        compiled = compile_definition(definition, options, None, progress)
    compile_s = time.perf_counter() - start
    return compiled.program(params, threads), name, compile_s


class Runner:
    """Runs prefill and decode on one sequence of random tokens."""

    def __init__(self, program: Program, max_tokens: int) -> None:
        assert program.record.cache is not None
        self.program = program
        self.chunk = program["prefill"].dim_range("n")[1]
        page = program.record.cache.page_size
        self.cache = PagedKVCache(program.record.cache, -(-max_tokens // page) + 1, max_tokens, 1)
        self.rng = np.random.default_rng(0)
        self.vocab = int(program.record.config["vocab_size"])  # type: ignore[call-overload]

    def prefill(self, num_tokens: int) -> float:
        """Prefill a new sequence 0 in chunks; returns seconds."""
        if 0 in self.cache:
            self.cache.remove_sequence(0)
        self.cache.add_sequence(0)
        ids = self.rng.integers(0, self.vocab, num_tokens, dtype=np.int32)
        start = time.perf_counter()
        for begin in range(0, num_tokens, self.chunk):
            self._step("prefill", ids[begin : begin + self.chunk])
        return time.perf_counter() - start

    def decode(self, num_tokens: int) -> float:
        """Decode tokens greedily; returns seconds."""
        token = np.zeros(1, np.int32)
        start = time.perf_counter()
        for _ in range(num_tokens):
            logits = self._step("decode", token)
            token[0] = int(logits[0].argmax())
        return time.perf_counter() - start

    def _step(self, function: str, ids: np.ndarray) -> np.ndarray:
        view = self.cache.begin_forward([0], [len(ids)])
        logits = self.program[function](ids, view)
        self.cache.end_forward()
        return logits


def run(
    model: str | None,
    shape: str | None,
    format_: str | None,
    prompt: int,
    context: int,
    decode: int,
    repeats: int,
    threads: int | None,
) -> dict[str, Any]:
    """Measure; the result is what ``--json`` prints. Times are medians, spreads are (max - min) / median."""
    for name, value in (("--prompt", prompt), ("--context", context), ("--decode", decode), ("--repeats", repeats)):
        if value < 1:
            raise UserError(f"{name}: got {value}; expected at least 1")
    needed = max(prompt, context + decode)
    options = Options(format_, max_context=None, max_batch=1)
    program, name, compile_s = _load(model, shape, options, threads)
    limit = int(program.record.config["max_context"])  # type: ignore[call-overload]
    if needed > limit:
        raise UserError(f"bench: {needed} tokens are needed, the context of {name} is {limit}; lower --prompt, --context or --decode")
    work, runner = count_work(program.record), Runner(program, needed)
    num_threads = program.num_threads
    runner.prefill(min(prompt, runner.chunk))  # warm-up: pages, pools, caches
    prefill_s = [runner.prefill(prompt) for _ in range(repeats)]
    decode_s, bandwidth = [], []
    for _ in range(repeats):
        runner.prefill(context)
        bandwidth.append(measure_bandwidth(num_threads, repeats=2))
        decode_s.append(runner.decode(decode))
    bandwidth.append(measure_bandwidth(num_threads, repeats=2))
    peak = measure_peak(num_threads)
    assert peak is not None
    prefill_rate = prompt / statistics.median(prefill_s)
    decode_rate = decode / statistics.median(decode_s)
    flop = work.prefill_flop * prompt + work.head_flop
    median_bandwidth = statistics.median(bandwidth)
    return {
        "model": name,
        "format": program.record.config["format"],
        "threads": num_threads,
        "prompt_tokens": prompt,
        "context_tokens": context,
        "decode_tokens": decode,
        "repeats": repeats,
        "compile_s": compile_s,
        "prefill_tokens_per_s": prefill_rate,
        "prefill_spread": _spread(prefill_s),
        "prefill_flop_per_s": flop / statistics.median(prefill_s),
        "prefill_fraction_of_peak": flop / statistics.median(prefill_s) / peak,
        "decode_tokens_per_s": decode_rate,
        "decode_spread": _spread(decode_s),
        "decode_bytes_per_token": work.decode_bytes,
        "decode_bytes_per_s": work.decode_bytes * decode_rate,
        "decode_fraction_of_bandwidth": work.decode_bytes * decode_rate / median_bandwidth,
        "bandwidth_bytes_per_s": median_bandwidth,
        "bandwidth_spread": _spread(bandwidth),
        "peak_flop_per_s": peak,
        "peak_instruction": "f32 multiply-add",
        "peak_bf16_flop_per_s": measure_peak(num_threads, "bf16"),
        "weight_bytes": sum(int(np.prod(p.shape)) * dtype(p.dtype).itemsize_bytes for p in program.record.params),
    }


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def table(f: dict[str, Any]) -> None:
    """Print the figures as a table."""
    out = Table(title=f"{f['model']} · {f['format']} · {f['threads']} threads · compiled in {f['compile_s']:.2f} s")
    for column in ("", "tokens/s", "spread", "achieved", "ceiling measured", "fraction"):
        out.add_column(column, justify="left" if not column else "right")
    out.add_row(
        f"prefill {f['prompt_tokens']}",
        f"{f['prefill_tokens_per_s']:.1f}",
        f"{f['prefill_spread']:.0%}",
        f"{f['prefill_flop_per_s'] / 1e9:.0f} GFLOP/s",
        f"{f['peak_flop_per_s'] / 1e9:.0f} GFLOP/s ({f['peak_instruction']})",
        f"{f['prefill_fraction_of_peak']:.0%}",
    )
    out.add_row(
        f"decode {f['decode_tokens']} at {f['context_tokens']}",
        f"{f['decode_tokens_per_s']:.1f}",
        f"{f['decode_spread']:.0%}",
        f"{f['decode_bytes_per_s'] / 1e9:.1f} GB/s",
        f"{f['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s (memory read)",
        f"{f['decode_fraction_of_bandwidth']:.0%}",
    )
    Console(file=sys.stdout).print(out)


