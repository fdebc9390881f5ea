"""Runs a benchmark from its options."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from strata.compiler.api import Options
from strata.core.errors import UserError
from strata.engine.generate import peak_rss_bytes

from .amounts import Amounts, Phase
from .counts import instruction
from .measure import OURS, Conditions, Report, Side, measure
from .ours import Runner, Subject, open_subject
from .peers import Peer, PeerRunner, Place, find_peers, start_peers
from .report import Outcome, figures
from .shapes import peer_values


@dataclass(frozen=True, slots=True)
class Bench:
    """What to measure.

    Attributes:
        model: Folder or hub id; ``None`` = the demo model (if there is no shape).
        shape: Named architecture with random weights.
        format: Dtype of weights and KV cache, or format of quantised weights; ``None`` = as stored.
        threads: Of all sides; ``None`` = the knob.
        max_context: Longest sequence; ``None`` = the model's.
        work: Amounts.
        patience_s: For how long a repetition is put off, and made again, while other programs work.
    """

    model: str | None = None
    shape: str | None = None
    format: str | None = None
    threads: int | None = None
    max_context: int | None = None
    work: Amounts = field(default_factory=Amounts)
    patience_s: float = 0.0

    def open(self) -> Subject:
        """Compile and load the model.

        Raises:
            UserError: it cannot be read, or the workload does not fit its context.
        """
        options = Options(self.format, max_context=self.max_context, max_batch=self.work.batch)
        return open_subject(self.model, self.shape, options, self.threads, self.work)


def run(bench: Bench, place: Place | None = None, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Measure a model, and peers of the same shape in turn with it.

    Args:
        bench: What to measure.
        place: Where the peers are; ``None`` = without them.
        only: Beginnings of the peers' names; none = all.

    Returns:
        See :func:`.report.figures`.

    Raises:
        UserError: as :meth:`Bench.open`; peers are asked for without a shape, or are not installed.
    """
    peers: tuple[Peer, ...] = ()
    if place is not None:
        if bench.shape is None:
            raise UserError("--peers: expected --shape NAME: peers get models of that shape")
        peers = find_peers(bench.format or "f32", only)
        assert place.python  # a missing environment is reported before any work
    subject, work = bench.open(), bench.work
    runner = Runner(subject.program, work)
    runner.prefill(min(work.prompt, runner.chunk))  # pages, thread pool
    rss_bytes = peak_rss_bytes()  # before the measurement of the bandwidth, which reads a large buffer
    with ExitStack() as stack, progress() as report:
        running, failed = _start(bench, peers, place, subject, report, stack)
        sides: dict[str, Side] = {OURS: runner, **running}
        pids = tuple(peer.pid for peer in running.values())
        conditions = Conditions(subject.program.num_threads, _instructions(subject, work), pids)
        samples, ceilings = measure(sides, work, conditions, report, bench.patience_s)
    kinds = conditions.instructions
    return figures(
        Outcome(subject, work, runner, samples, kinds, ceilings, peers, running, failed, rss_bytes)
    )


def _instructions(subject: Subject, work: Amounts) -> dict[Phase, str]:
    """What the products of a phase are made of; one row at a time waits for memory."""
    program = subject.program

    def of(function: str, num_tokens: int, sequences: int) -> str:
        most = {r.dim: r.hi for r in program[function].record.dims}
        return instruction(program.nodes(function), most | {"n": num_tokens, "num_seqs": sequences})

    found = {Phase.PREFILL: of("prefill", min(program["prefill"].dim_range("n")[1], work.prompt), 1)}
    if work.batch > 1:
        found[Phase.BATCH] = of("decode", work.batch, work.batch)
    return found


def _start(
    bench: Bench,
    peers: tuple[Peer, ...],
    place: Place | None,
    subject: Subject,
    report: Report,
    stack: ExitStack,
) -> tuple[dict[str, PeerRunner], Mapping[str, str]]:
    """Start the peers, one after the other; the stack ends them."""
    if place is None or bench.shape is None:
        return {}, {}
    values, work = peer_values(bench.shape, bench.max_context), bench.work
    started: list[Peer] = []

    def start(peer: Peer) -> PeerRunner:
        report(len(started), len(peers), f"loading {peer.name}")
        started.append(peer)
        threads = subject.program.num_threads
        runner = PeerRunner(peer, place, values, threads, work.max_tokens + 1, work.batch)
        stack.callback(runner.close)
        return runner

    return start_peers(peers, start)


@contextmanager
def progress() -> Iterator[Report]:
    """A progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
