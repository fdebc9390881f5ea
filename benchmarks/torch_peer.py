"""Strata against PyTorch + transformers (eager): same run, interleaved, medians, random weights.

::

    python benchmarks/torch_peer.py --shape tinyllama-1.1b --format bf16
    python benchmarks/torch_peer.py --shape tinyllama-1.1b --format f32 --prompt 512

Both sides use the same architecture, dtype and number of threads: prefill of ``--prompt`` random tokens to
the last position's logits, then greedy decode of ``--decode`` tokens with ``--context`` tokens in the KV
cache. Repetitions alternate between the two.
Needs ``pip install '.[torch]'``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from strata.app.bench import Runner, matmul_flop, peak_dtype, weight_bytes_read
from strata.app.machine import measure_bandwidth, measure_peak
from strata.compiler.api import Options, compile_definition, define
from strata.models.shapes import SHAPES, random_params, shape_config

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class TorchRunner:
    """Prefill and decode through transformers, eager attention, with its own KV cache."""

    def __init__(self, shape: str, format_: str, threads: int) -> None:
        torch.set_num_threads(threads)
        values = dict(SHAPES[shape])
        architecture = values["architectures"][0]
        config_class = getattr(
            transformers, architecture.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config")
        )
        config = config_class(**values, attn_implementation="eager")
        with torch.device("cpu"):
            torch.set_default_dtype(TORCH_DTYPES[format_])
            self.model = getattr(transformers, architecture)(config).eval()
            torch.set_default_dtype(torch.float32)
        self.vocab, self.cache = config.vocab_size, None

    @torch.inference_mode()
    def prefill(self, num_tokens: int) -> float:
        """Seconds to read a prompt of random tokens."""
        ids = torch.randint(0, self.vocab, (1, num_tokens))
        start = time.perf_counter()
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - start
        self.cache = out.past_key_values
        return seconds

    @torch.inference_mode()
    def decode(self, num_tokens: int) -> float:
        """Seconds to decode greedily."""
        token = torch.zeros((1, 1), dtype=torch.long)
        start = time.perf_counter()
        for _ in range(num_tokens):
            out = self.model(token, past_key_values=self.cache, use_cache=True)
            self.cache = out.past_key_values
            token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - start


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Run the two in turn after one warm-up each; seconds of every repetition."""
    ours()
    theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run in zip(times, (ours, theirs), strict=True):
            time.sleep(0.3)  # let the other side's threads fall asleep
            side.append(run())
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=list(SHAPES))
    parser.add_argument("--format", default="bf16", choices=list(TORCH_DTYPES))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    options = Options(args.format, max_batch=1)
    definition = define(shape_config(args.shape), options, args.shape)
    start = time.perf_counter()
    compiled = compile_definition(definition, options)
    compile_s = time.perf_counter() - start
    program = compiled.program(random_params(definition), args.threads)
    ours = Runner(program, max(args.prompt, args.context + args.decode))
    theirs = TorchRunner(args.shape, args.format, args.threads)

    prefill = alternate(lambda: ours.prefill(args.prompt), lambda: theirs.prefill(args.prompt), args.repeats)

    def decode(runner: Runner | TorchRunner) -> float:
        runner.prefill(args.context)
        return runner.decode(args.decode)

    bandwidth = measure_bandwidth(args.threads)
    decoded = alternate(lambda: decode(ours), lambda: decode(theirs), args.repeats)
    bandwidth = statistics.median([bandwidth, measure_bandwidth(args.threads)])
    instruction = peak_dtype(compiled.plan, min(args.prompt, ours.chunk))
    peak = measure_peak(args.threads, instruction) or 0.0
    flop = matmul_flop(definition.module["prefill"], args.prompt)
    read_bytes = weight_bytes_read(definition.module["decode"])
    rates = {
        "prefill": tuple(args.prompt / statistics.median(t) for t in prefill),
        "decode": tuple(args.decode / statistics.median(t) for t in decoded),
    }
    figures = {
        "shape": args.shape,
        "format": args.format,
        "threads": args.threads,
        "compile_s": compile_s,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bandwidth_bytes_per_s": bandwidth,
        "peak_flop_per_s": peak,
        "peak_instruction": instruction,
    }
    for phase, (a, b) in rates.items():
        figures |= {f"{phase}_tokens_per_s": a, f"{phase}_torch_tokens_per_s": b, f"{phase}_ratio": a / b}
    figures["prefill_fraction_of_peak"] = rates["prefill"][0] * flop / args.prompt / peak
    figures["decode_fraction_of_bandwidth"] = rates["decode"][0] * read_bytes / bandwidth
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        print(f"{key:<32} {value:.3g}" if isinstance(value, float) else f"{key:<32} {value}")


if __name__ == "__main__":
    main()
