"""Where the time of a function goes: every node timed in its place among the others.

Times are measured; flop and bytes are those of the plan (modelled: every operand touched once), so rates and
fractions of a ceiling are a measured time under a modelled amount. A node's time includes the call from
Python, 0.2 us.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.core.errors import UserError
from strata.core.trace import Event, Trace

from .nodes import PRODUCTS, NodeInfo, multiplies
from .stepping import Run


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do.

    Attributes:
        flop_per_s: Peak by the dtype of a product's operands: ``f32``, and ``bf16`` and ``int8`` where they
            are faster.
        bytes_per_s: Memory read.
        source: ``measured`` or ``modelled``.
    """

    flop_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and work of one node, or of several together.

    Attributes:
        name: Of the node, op or kernel.
        op: Heaviest op.
        kernel: What ran.
        candidate: The implementation that the kernel is.
        launches: How many launches it is.
        time_s: Measured: median over the repetitions (a sum of medians for several nodes).
        spread: Distance of the quartiles over the median of the repetitions (the largest of several nodes).
        flop, read_bytes, write_bytes: Modelled work; ``None`` where no plan says it.
        floor_s: Modelled least time for this work on the machine; ``None`` without work or ceilings.
        estimate_s, estimate_source: What the plan expected, and how it came to it.
    """

    name: str
    op: str
    kernel: str
    candidate: str
    launches: int
    time_s: float
    spread: float
    flop: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    floor_s: float | None = None
    estimate_s: float | None = None
    estimate_source: str = ""

    @property
    def flop_per_s(self) -> float | None:
        """Arithmetic rate."""
        return None if self.flop is None else self.flop / self.time_s

    @property
    def bytes_per_s(self) -> float | None:
        """Memory traffic."""
        if self.read_bytes is None or self.write_bytes is None:
            return None
        return (self.read_bytes + self.write_bytes) / self.time_s

    @property
    def roofline_fraction(self) -> float | None:
        """``floor_s / time_s``: 1 = as fast as the machine can (above 1: operands were in a cache)."""
        return None if self.floor_s is None else self.floor_s / self.time_s


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of one function at one combination of sizes.

    Attributes:
        function: Its name.
        dims: Values of the symbolic dims.
        repeats: Repetitions.
        nodes: In the order of execution.
        whole_s: Median time of the native entry, which makes the same launches.
        spans: ``(start, duration)`` of every launch of the repetition with the median total, ns.
    """

    function: str
    dims: Mapping[str, int]
    repeats: int
    nodes: tuple[Timing, ...]
    whole_s: float
    spans: tuple[tuple[int, int], ...]

    @property
    def total_s(self) -> float:
        """Sum of the nodes' times."""
        return sum(t.time_s for t in self.nodes)

    def by(self, key: str) -> tuple[Timing, ...]:
        """Nodes put together by ``op`` or ``kernel``, the most expensive first."""
        groups: dict[str, list[Timing]] = {}
        for timing in self.nodes:
            groups.setdefault(getattr(timing, key), []).append(timing)
        together = [_together(name, members) for name, members in groups.items()]
        return tuple(sorted(together, key=lambda t: -t.time_s))

    def trace(self) -> Trace:
        """The median repetition as a Chrome trace."""
        trace = Trace()
        trace.events += [
            Event(t.name, t.op, start / 1e9, duration / 1e9, 0)
            for t, (start, duration) in zip(self.nodes, self.spans, strict=True)
        ]
        return trace

    def to_json(self) -> dict[str, Any]:
        """Everything but the spans, with rates and fractions."""
        return {
            "function": self.function,
            "dims": dict(self.dims),
            "repeats": self.repeats,
            "whole_s": self.whole_s,
            "total_s": self.total_s,
            "nodes": [_timing_json(t, self.total_s) for t in self.nodes],
            "by_op": [_timing_json(t, self.total_s) for t in self.by("op")],
            "by_kernel": [_timing_json(t, self.total_s) for t in self.by("kernel")],
        }


def _together(name: str, members: Sequence[Timing]) -> Timing:
    def total(field: str) -> Any:
        values = [getattr(m, field) for m in members]
        return None if any(v is None for v in values) else sum(values)

    def common(field: str) -> str:
        values = {getattr(m, field) for m in members}
        return values.pop() if len(values) == 1 else "various"

    amounts = {f: total(f) for f in ("flop", "read_bytes", "write_bytes", "floor_s", "estimate_s")}
    return Timing(
        name,
        common("op"),
        common("kernel"),
        common("candidate"),
        len(members),
        total("time_s"),
        max(m.spread for m in members),
        estimate_source=common("estimate_source"),
        **amounts,
    )


def _timing_json(t: Timing, total_s: float) -> dict[str, Any]:
    fields = {name: getattr(t, name) for name in Timing.__slots__}
    rates = {name: getattr(t, name) for name in ("flop_per_s", "bytes_per_s", "roofline_fraction")}
    return {**fields, "share": t.time_s / total_s, **rates}


def profile(
    begin: Callable[[], Run],
    whole: Callable[[], object],
    *,
    repeats: int = 20,
    work_dims: Mapping[str, int] | None = None,
    ceilings: Ceilings | None = None,
) -> Profile:
    """Time every node of a function.

    Args:
        begin: Begins a run of the same call, again and again.
        whole: Makes the call by the native entry.
        repeats: Repetitions, after two that do not count.
        work_dims: Sizes for counting work, where they differ from those of the call.
        ceilings: Of this machine, for the fraction of the roofline.

    Raises:
        UserError: ``repeats`` below 1, or the function has no nodes.
    """
    if repeats < 1:
        raise UserError(f"profile: got {repeats} repetitions; expected at least 1")
    run = begin()
    if not run.nodes:
        raise UserError("profile: the function launches nothing")
    runs: list[list[tuple[int, int]]] = []
    whole_s: list[float] = []
    for number in range(repeats + 2):
        spans = (run if number == 0 else begin()).timed()
        seconds = _seconds(whole)
        if number >= 2:
            runs.append(spans)
            whole_s.append(seconds)
    order = sorted(range(repeats), key=lambda r: sum(d for _, d in runs[r]))
    dims = run.dims if work_dims is None else work_dims
    timings = tuple(
        _timing(node, [r[node.index][1] / 1e9 for r in runs], run.dims, dims, ceilings) for node in run.nodes
    )
    middle = runs[order[repeats // 2]]
    first = middle[0][0]
    return Profile(
        run.nodes[0].function,
        run.dims,
        repeats,
        timings,
        statistics.median(whole_s),
        tuple((start - first, duration) for start, duration in middle),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timing(
    node: NodeInfo,
    times_s: Sequence[float],
    dims: Mapping[str, int],
    work_dims: Mapping[str, int],
    ceilings: Ceilings | None,
) -> Timing:
    median = max(statistics.median(times_s), 1e-9)
    chosen = node.chosen(dims)
    estimate, work = chosen.cost(node.size(dims)), node.work(work_dims)
    floor_s = None
    if work is not None and ceilings is not None:
        kind = multiplies(chosen.trace) if node.op in PRODUCTS else "f32"
        peak = ceilings.flop_per_s.get(kind, ceilings.flop_per_s["f32"])
        moved = work["read_bytes"] + work["write_bytes"]
        floor_s = max(work["flop"] / peak, moved / ceilings.bytes_per_s)
    return Timing(
        node.name,
        node.op,
        chosen.kernel,
        chosen.name,
        1,
        median,
        _spread(times_s) / median,
        floor_s=floor_s,
        estimate_s=None if estimate is None else estimate.time_s,
        estimate_source="" if estimate is None else estimate.source,
        **(work or {}),
    )


def _spread(times_s: Sequence[float]) -> float:
    if len(times_s) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times_s, n=4, method="inclusive")
    return high - low
