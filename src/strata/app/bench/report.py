"""Figures of a benchmark, and tables of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strata.app.machine import PEAKS
from strata.core.dtypes import dtype

from .amounts import Amounts, Phase
from .counts import matmul_flop, weight_bytes_read
from .measure import BUSY_CORES, OURS, Ceilings, Samples
from .ours import Runner, Subject
from .peers import Peer, PeerRunner

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured.

    Attributes:
        subject: Our model.
        work: What was run.
        runner: Ours.
        samples: By side.
        instructions: What the products of a phase are made of; see :class:`.measure.Conditions`.
        ceilings: Of the machine.
        peers: Those that were asked for.
        runners: Those that ran, by name.
        failed: Why others did not start, by name.
        rss_bytes: Our peak memory before the ceilings were measured.
    """

    subject: Subject
    work: Amounts
    runner: Runner
    samples: Mapping[str, Samples]
    instructions: Mapping[Phase, str]
    ceilings: Ceilings
    peers: Sequence[Peer]
    runners: Mapping[str, PeerRunner]
    failed: Mapping[str, str]
    rss_bytes: int


def figures(o: Outcome) -> dict[str, Any]:
    """What ``--json`` prints.

    Speeds are medians over the repetitions, spreads are (max - min) / median, fractions, ratios and spreads
    are plain ratios. A ratio is the median of those of each repetition, our speed over the peer's.
    """
    config, work = o.subject.definition.config, o.work
    other = o.ceilings.other_cores
    return {
        "model": config["model_name"],
        "format": config["format"],
        "threads": o.subject.program.num_threads,
        "was_compiled": o.subject.was_compiled,
        "compile_s": o.subject.compile_s,
        "load_s": o.subject.load_s,
        "prompt_tokens": work.prompt,
        "context_tokens": work.context,
        "decode_tokens": work.decode,
        "batch": work.batch,
        "repeats": work.repeats,
        **_prefill_figures(o),
        **_decode_figures(o),
        **_batch_figures(o),
        "stored_bytes": sum(p.own_bytes for p in o.subject.program.record.params),
        "peak_rss_bytes": o.rss_bytes,
        "other_cores": statistics.median(other) if other else None,
        "seconds": _seconds(o.samples[OURS], work),
        "peers": [_peer_figures(o, peer) for peer in o.peers],
    }


def rates(samples: Samples, work: Amounts) -> dict[str, float]:
    """Median speed and spread of every phase."""
    found: dict[str, float] = {}
    for phase in work.phases:
        seconds = samples.seconds[phase]
        if seconds:
            found[f"{phase.value}_tokens_per_s"] = work.tokens(phase) / statistics.median(seconds)
            found[f"{phase.value}_spread"] = _spread(seconds)
    return found


def _seconds(samples: Samples, work: Amounts) -> dict[str, list[float]]:
    """Every repetition."""
    return {phase.value: samples.seconds[phase] for phase in work.phases}


def _prefill_figures(o: Outcome) -> dict[str, Any]:
    chunks = [min(o.runner.chunk, o.work.prompt - begin) for begin in range(0, o.work.prompt, o.runner.chunk)]
    function = o.subject.definition.module["prefill"]
    seconds = o.samples[OURS].seconds[Phase.PREFILL]
    flop_per_s = sum(matmul_flop(function, size) for size in chunks) / statistics.median(seconds)
    kind = o.instructions[Phase.PREFILL]
    peaks = {name: statistics.median(v) if v else None for name, v in o.ceilings.flop_per_s.items()}
    peak, sustained = peaks[kind], statistics.median(o.ceilings.sustained_flop_per_s[Phase.PREFILL])
    assert peak is not None  # its instruction exists: kernels were chosen that use it
    own = rates(o.samples[OURS], o.work)
    return {
        "prefill_tokens_per_s": own["prefill_tokens_per_s"],
        "prefill_spread": own["prefill_spread"],
        "prefill_flop_per_s": flop_per_s,
        "prefill_fraction_of_peak": flop_per_s / peak,
        "prefill_fraction_of_sustained_peak": flop_per_s / sustained,
        "prefill_over_first_chunk": _over_first_chunk(o),
        "peak_instruction": PEAKS[kind].title,
        "peak_flop_per_s": peak,
        "sustained_peak_flop_per_s": sustained,
        **{f"peak_{name}_flop_per_s": value for name, value in peaks.items()},
    }


def _over_first_chunk(o: Outcome) -> float:
    """Time per token of a whole prompt over that of its first chunk: what a long past costs."""
    first = min(o.runner.chunk, o.work.prompt)
    repetitions = o.runner.chunks_s[-o.work.repeats :]
    return statistics.median(sum(c) / o.work.prompt * first / c[0] for c in repetitions)


def _kv_bytes(o: Outcome) -> int:
    """Keys and values that a decode step reads, of one sequence in the middle of a repetition."""
    cache = o.subject.program.record.cache
    assert cache is not None
    row_elems = 2 * cache.num_layers * cache.num_kv_heads * cache.head_dim
    return row_elems * dtype(cache.dtype).itemsize_bytes * (o.work.context + o.work.decode // 2)


def _decode_figures(o: Outcome) -> dict[str, Any]:
    own, read = rates(o.samples[OURS], o.work), weight_bytes_read(o.subject.program)
    rate = own["decode_tokens_per_s"]
    bandwidth = o.ceilings.bytes_per_s[Phase.DECODE]
    return {
        "decode_tokens_per_s": rate,
        "decode_spread": own["decode_spread"],
        "decode_bytes_per_token": read,
        "decode_bytes_per_s": read * rate,
        "decode_fraction_of_bandwidth": _fraction(o, Phase.DECODE, read),
        "decode_kv_bytes_per_token": _kv_bytes(o),
        "decode_fraction_of_bandwidth_with_kv": _fraction(o, Phase.DECODE, read + _kv_bytes(o)),
        "bandwidth_bytes_per_s": statistics.median(bandwidth),
        "bandwidth_spread": _spread(bandwidth),
    }


def _fraction(o: Outcome, phase: Phase, read_bytes: int) -> float:
    """Of the bandwidth beside each repetition: the median."""
    pairs = zip(o.samples[OURS].seconds[phase], o.ceilings.bytes_per_s[phase], strict=True)
    return statistics.median(o.work.decode * read_bytes / s / bandwidth for s, bandwidth in pairs)


def _batch_figures(o: Outcome) -> dict[str, Any]:
    if o.work.batch == 1:
        return {}
    own, batch = rates(o.samples[OURS], o.work), o.work.batch
    read = weight_bytes_read(o.subject.program)
    flop = o.work.decode * matmul_flop(o.subject.definition.module["decode"], batch, batch)
    sustained = o.ceilings.sustained_flop_per_s[Phase.BATCH]
    pairs = zip(o.samples[OURS].seconds[Phase.BATCH], sustained, strict=True)
    return {
        "batch_tokens_per_s": own["batch_tokens_per_s"],
        "batch_spread": own["batch_spread"],
        "batch_over_one": _batch_over_one(o.samples[OURS], o.work),
        "batch_bandwidth_bytes_per_s": statistics.median(o.ceilings.bytes_per_s[Phase.BATCH]),
        "batch_fraction_of_bandwidth": _fraction(o, Phase.BATCH, read),
        "batch_flop_per_s": flop / statistics.median(o.samples[OURS].seconds[Phase.BATCH]),
        "batch_peak_instruction": PEAKS[o.instructions[Phase.BATCH]].title,
        "batch_sustained_peak_flop_per_s": statistics.median(sustained),
        "batch_fraction_of_sustained_peak": statistics.median(flop / s / peak for s, peak in pairs),
    }


def _peer_figures(o: Outcome, peer: Peer) -> dict[str, Any]:
    found: dict[str, Any] = {"name": peer.name, "title": peer.title}
    if peer.name in o.failed:
        return {**found, "not_available": o.failed[peer.name]}
    runner, samples = o.runners[peer.name], o.samples[peer.name]
    found |= {"version": runner.version, "load_s": runner.load_s, "peak_rss_bytes": runner.peak_rss_bytes}
    if samples.failed:
        found["failed"] = samples.failed
    found["seconds"] = _seconds(samples, o.work)
    found |= rates(samples, o.work)
    for phase in o.work.phases:
        if samples.seconds[phase]:
            ours = o.samples[OURS].seconds[phase]
            found[f"{phase.value}_ratio"] = _ratio(samples.seconds[phase], ours)
    if samples.seconds[Phase.BATCH]:
        found["batch_over_one"] = _batch_over_one(samples, o.work)
    return found


def _batch_over_one(samples: Samples, work: Amounts) -> float:
    """Tokens per second of several sequences over those of one."""
    return work.batch * _ratio(samples.seconds[Phase.DECODE], samples.seconds[Phase.BATCH])


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """How often ``others`` fit into ``seconds``: median over repetitions, between which memory changes."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=False))  # a side may have failed


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


# --- tables -----------------------------------------------------------------------------------------------


def print_tables(f: Mapping[str, Any]) -> None:
    """Print what :func:`figures` gives."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False)
    console.print(_own_table(f))
    if f["peers"]:
        console.print(_peer_table(f))
    for peer in f["peers"]:
        for key in ("not_available", "failed"):
            if key in peer:
                console.print(f"{peer['title']}: {key.replace('_', ' ')}: {peer[key]}")
    if f["prefill_over_first_chunk"] > 1:
        console.print(f"prefill: {f['prefill_over_first_chunk']:.2f} x the first chunk's time per token")
    if (f["other_cores"] or 0) > BUSY_CORES:
        console.print(
            f"other programs kept {f['other_cores']:.1f} cores busy meanwhile: figures of a disturbed machine"
        )


def _own_table(f: Mapping[str, Any]) -> Table:
    from rich.table import Table

    how = "compiled" if f["was_compiled"] else "loaded from the cache"
    table = Table(
        title=f"{f['model']} · {f['format']} · {f['threads']} threads · {how} in {f['compile_s']:.2f} s"
    )
    for column in ("", "tokens/s", "spread", "achieved", "ceiling, measured", "fraction"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_row(
        f"prefill {f['prompt_tokens']}",
        f"{f['prefill_tokens_per_s']:.1f}",
        f"{f['prefill_spread']:.0%}",
        f"{f['prefill_flop_per_s'] / 1e9:.0f} GFLOP/s",
        f"{f['peak_flop_per_s'] / 1e9:.0f} GFLOP/s {f['peak_instruction']}",
        f"{f['prefill_fraction_of_peak']:.0%}",
    )
    table.add_row(
        "",
        "",
        "",
        "",
        f"{f['sustained_peak_flop_per_s'] / 1e9:.0f} GFLOP/s sustained around it",
        f"{f['prefill_fraction_of_sustained_peak']:.0%}",
    )
    table.add_row(
        f"decode {f['decode_tokens']} at {f['context_tokens']}",
        f"{f['decode_tokens_per_s']:.1f}",
        f"{f['decode_spread']:.0%}",
        f"{f['decode_bytes_per_s'] / 1e9:.1f} GB/s",
        f"{f['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s memory read",
        f"{f['decode_fraction_of_bandwidth']:.0%}",
    )
    if f["batch"] > 1:
        table.add_row(
            f"decode of {f['batch']} sequences",
            f"{f['batch_tokens_per_s']:.1f}",
            f"{f['batch_spread']:.0%}",
            f"{f['batch_over_one']:.2f} x of one",
            f"{f['batch_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s memory read",
            f"{f['batch_fraction_of_bandwidth']:.0%}",
        )
        table.add_row(
            "",
            "",
            "",
            f"{f['batch_flop_per_s'] / 1e9:.0f} GFLOP/s",
            f"{f['batch_sustained_peak_flop_per_s'] / 1e9:.0f} GFLOP/s sustained around it",
            f"{f['batch_fraction_of_sustained_peak']:.0%}",
        )
    return table


def _peer_table(f: Mapping[str, Any]) -> Table:
    from rich.table import Table

    phases = [p for p in Phase if f"{p.value}_tokens_per_s" in f]
    table = Table(title="tokens/s in turn with peers; ratio = ours / theirs")
    table.add_column("", no_wrap=True)
    for phase in phases:
        for column in (phase.value, "spread", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
    table.add_row("Strata", *_peer_cells(f, phases))
    for peer in f["peers"]:
        table.add_row(peer["title"], *_peer_cells(peer, phases))
    return table


def _peer_cells(f: Mapping[str, Any], phases: Sequence[Phase]) -> Iterator[str]:
    for phase in phases:
        rate, spread, ratio = (f.get(f"{phase.value}_{k}") for k in ("tokens_per_s", "spread", "ratio"))
        yield "-" if rate is None else f"{rate:.1f}"
        yield "" if spread is None else f"{spread:.0%}"
        yield "" if ratio is None else f"{ratio:.2f} x"
