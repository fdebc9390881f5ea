"""What one trial is, as plain data that travels to a worker: texts, sizes, machine code, outcomes."""

from __future__ import annotations

from dataclasses import dataclass

from .database import Sizes

KERNEL = "kernel"  # name under which a trial's function is built


@dataclass(frozen=True, slots=True)
class Problem:
    """A task at fixed sizes: on which operands a kernel runs, and what its results must be.

    Attributes:
        text: Loop IR of the naive function: parameters, inputs first.
        target: Text of the machine.
        sizes: Value of every symbolic dim.
        fields: ``(parameter, field)`` for parameters that are fields of a KV cache.
        weights: Parameters that are weights of the model: they are read from memory, not from a cache.
        within: ``(parameter, parameter in whose memory it lies)`` for parts of a weight that share memory.
        reference: Loop IR of the kernel that says what is right: the untuned one.
        num_threads: Threads to run on.
    """

    text: str
    target: str
    sizes: Sizes
    fields: tuple[tuple[str, str], ...]
    weights: tuple[str, ...]
    within: tuple[tuple[str, str], ...]
    reference: str
    num_threads: int


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel ready to run: its finalised loop IR and its machine code."""

    text: str
    image: bytes


@dataclass(frozen=True, slots=True)
class BuildJob:
    """Compile ``text`` (finalised loop IR of a function called ``KERNEL``) within ``limit_s`` seconds."""

    text: str
    target: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class MeasureJob:
    """Check and time ``kernel`` on ``problem`` within ``limit_s`` seconds.

    Attributes:
        best_s: Fastest time so far: what is much slower is not measured carefully.
    """

    problem: Problem
    kernel: Built
    reference: Built
    limit_s: float
    best_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial gave: a time, or an error.

    Attributes:
        time_s: Median seconds of one launch; ``None`` if there is an ``error``.
        samples: Timed samples.
        spread_s: Seconds between their quartiles.
        error: What went wrong, in a line.
    """

    time_s: float | None
    samples: int = 0
    spread_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A kernel to be built and measured: ``text`` is its finalised loop IR, ``best_s`` as in a job."""

    problem: Problem
    text: str
    best_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may take before it is ended, in seconds."""

    build_s: float = 20.0
    measure_s: float = 20.0
