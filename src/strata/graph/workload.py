"""A model as work: what a planner needs to know of each op, whatever the model was read from.

::

    Workload ::= values, works in topological order
    Value    ::= name, shape of dims, stored bits per element, kind (input | weight | state | result)
    Work     ::= name, op, inputs and outputs (values), elements read of each input, flop, contraction?
    Contraction ::= batch x rows x cols x depth multiply-adds

Sizes are dims: polynomials of symbolic dims such as ``L``, the tokens of one pass. No numbers of the model,
no attributes of ops: a ``config.json`` or a graph of kernels with shapes is enough to make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from strata.core.dims import Dim, Shape, SymDim, product
from strata.core.errors import VerifyError


class ValueKind(Enum):
    """Where a value comes from."""

    INPUT = "input"  # handed in at every run
    WEIGHT = "weight"  # the same in every run
    STATE = "state"  # kept from run to run: the KV cache
    RESULT = "result"  # computed by a work


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor that works exchange.

    Attributes:
        name: Unique within its workload.
        shape: Extents.
        bits: Stored bits per element; scales of quantised weights included, hence not always whole.
        kind: Where it comes from.
    """

    name: str
    shape: Shape
    bits: float
    kind: ValueKind

    @property
    def elems(self) -> Dim:
        """Number of elements."""
        return product(self.shape)


@dataclass(frozen=True, slots=True)
class Contraction:
    """``batch`` products of a ``rows x depth`` with a ``depth x cols`` matrix.

    Attributes:
        batch, rows, cols, depth: The full products.
        skipped: Multiply-adds of the full products that nobody needs: what a causal mask hides, so that a
            token's query meets the keys up to itself only. Kernels such as flash attention leave them out.
    """

    batch: Dim
    rows: Dim
    cols: Dim
    depth: Dim
    skipped: Dim = 0

    @property
    def macs(self) -> Dim:
        """Multiply-adds that are needed."""
        return self.batch * self.rows * self.cols * self.depth - self.skipped


@dataclass(frozen=True, slots=True)
class Work:
    """One op with all that its cost may depend on.

    Attributes:
        name: Unique within its workload; that of the graph's node where there is one.
        op: Kind, a name of the op table or of the graph that was read: ``"matmul"``, ``"softmax"``.
        inputs: Values that it reads, each once.
        reads: Elements read of each input: less than all for a look-up or a slice.
        outputs: Values that it makes.
        flop: Arithmetic operations, two for a multiply-add.
        contraction: What it multiplies, if it is a matrix product.
        layer: Number of the decoder layer that it belongs to, if it belongs to one.
    """

    name: str
    op: str
    inputs: tuple[int, ...]
    reads: tuple[Dim, ...]
    outputs: tuple[int, ...]
    flop: Dim
    contraction: Contraction | None = None
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A function of a model as work.

    Attributes:
        name: Of the model and its function: ``"llama-2-7b prefill"``.
        values: All values.
        works: All works, producers before consumers.
        dims: The symbolic dims that sizes depend on, with the ranges that the model allows.
        outputs: Values that are there at the end of a run: its results, and what it adds to the KV cache.

    Raises:
        VerifyError: an index out of range, a value made twice or used before it is made, lengths of
            ``inputs`` and ``reads`` that differ, an output that nothing makes.
    """

    name: str
    values: tuple[Value, ...]
    works: tuple[Work, ...]
    dims: tuple[SymDim, ...]
    outputs: tuple[int, ...] = ()
    _first_readers: Mapping[int, Work] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = {k for k, v in enumerate(self.values) if v.kind is not ValueKind.RESULT}
        first = {k: work for work in reversed(self.works) for k in work.inputs}
        object.__setattr__(self, "_first_readers", first)
        for work in self.works:
            if len(work.inputs) != len(work.reads) or len(set(work.inputs)) != len(work.inputs):
                raise VerifyError(f"{work.name}: got inputs {work.inputs} with reads {work.reads}")
            if missing := [k for k in work.inputs if k not in made]:
                raise VerifyError(f"{work.name}: reads value {missing[0]} before it is made")
            if again := [k for k in work.outputs if k in made or not 0 <= k < len(self.values)]:
                raise VerifyError(f"{work.name}: makes value {again[0]}, which is made already or none")
            made.update(work.outputs)
        if lost := [k for k in self.outputs if k not in made]:
            raise VerifyError(f"{self.name}: value {lost[0]} is an output that nothing makes")

    def producers(self) -> dict[int, int]:
        """Number of the work that makes each value of kind RESULT."""
        return {value: k for k, work in enumerate(self.works) for value in work.outputs}

    def is_first_reader(self, work: Work, value: int) -> bool:
        """Whether no work before ``work`` reads ``value``."""
        return self._first_readers.get(value) is work

    def consumers(self) -> dict[int, tuple[int, ...]]:
        """Numbers of the works that read each value, ascending; values that nothing reads are left out."""
        found: dict[int, list[int]] = {}
        for k, work in enumerate(self.works):
            for value in work.inputs:
                found.setdefault(value, []).append(k)
        return {value: tuple(works) for value, works in found.items()}
