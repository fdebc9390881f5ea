"""A processor whose kernels were measured: times per family of kernels, fitted to micro-benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.errors import UserError

from .machine import CPU, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Knot(Part):
    """A kernel family at one number of rows.

    ``time = launch_s + weight_reads * (weight bytes / bandwidth) + bytes * s_per_byte + flop * s_per_flop``,
    where the bandwidth is that of the device's memory: 1 / ``weight_reads`` is the fraction of it that the
    kernel reaches while it waits for nothing else.

    Attributes:
        rows: Rows of the activations.
        launch_s: Whatever the size.
        weight_reads: Per reading of the weight at the bandwidth of the memory.
        s_per_byte: Per byte of other operands and results, each touched once.
        s_per_flop: Per arithmetic operation.
    """

    rows: int
    launch_s: float
    weight_reads: float
    s_per_byte: float
    s_per_flop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Part):
    """Kernels of one op on weights of one width, made in one way.

    Attributes:
        op: Heaviest op of the kernel; ``"*"`` = every op that has no family.
        kernel: Name of the implementation, as stacks of a compiled model have it (``"cpu.matmul.dot6x64"``).
        weight_bits: 32, 16, 8 or 4 per element of its weight; 0 = without weights.
        knots: By ascending rows; between two of them time is interpolated, on logarithmic scales.
        samples: Measurements that it was fitted to.
        error: Root mean square of (fitted / measured - 1) over these.

    Raises:
        UserError: no knots, or knots whose rows do not ascend.
    """

    op: str
    kernel: str = ""
    weight_bits: int
    knots: tuple[Knot, ...]
    samples: int = 0
    error: float = 0.0

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        rows = [k.rows for k in self.knots]
        if not rows or rows != sorted(set(rows)):
            raise UserError(f"family {self.op}: knots: got rows {rows}; expected ascending numbers of rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCPU(CPU):
    """A processor with measured families of kernels; see ``strata calibrate``.

    Attributes:
        families: Each (op, width of weights, kernel) once.
        j_per_byte: Energy per byte of memory traffic.
    """

    families: tuple[Family, ...] = ()
    j_per_byte: float = 0.0
