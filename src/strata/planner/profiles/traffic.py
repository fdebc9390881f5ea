"""What a work moves through the memories of a machine, and what each memory and link on the way costs.

::

    home ... parent ... memory of the device <-> buffer of a core -> arithmetic
    weights, state -------> stream through, overlapped with the arithmetic
         activations that do not fit <------> are there

* Weights and the KV cache are read from the machine's ``home`` by every op anew: nothing keeps them nearer.
* Activations are in the memory of the device. Of a work whose activations need ``A`` bytes where ``C`` fit,
  the share ``1 - C/A`` is in the parent instead, and passes both.
* A product of matrices that a memory of ``S`` elements cannot hold reads operands again: at least
  ``2*M*N*K/sqrt(S) - 2*S`` elements (Smith et al., "A tight I/O lower bound for matrix multiplication",
  2017, after Hong and Kung, "I/O complexity: the red-blue pebble game", 1981), which blocked products reach
  up to lower-order terms. It is applied between the device's memory and its parent, and between a core's
  buffer and the device's memory.

Bytes are exact, ``bits`` of an element need not be whole.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import ValueKind, Work, Workload
from strata.planner.devices.types import Cause, Points, Term, evaluate
from strata.target.hardware import Device, Link, Machine, Memory

Hop = tuple[Link | None, Memory]  # over a link, or to a memory's parent or child; where it leads
_STREAMED = (ValueKind.WEIGHT, ValueKind.STATE)


def constant(value: float, like: np.ndarray) -> np.ndarray:
    """``value`` at all points of ``like``, ``[P]``, without memory for them."""
    return np.broadcast_to(np.float64(value), like.shape)


def route(machine: Machine, source: str, to: str) -> tuple[Hop, ...]:
    """The fewest hops from one memory to another; of equally many, what was declared first.

    Raises:
        UserError: nothing connects them.
    """
    found: dict[str, tuple[Hop, ...]] = {source: ()}
    queue = deque([source])
    while queue and to not in found:
        at = queue.popleft()
        for link, name in _neighbours(machine, at):
            if name not in found:
                found[name] = (*found[at], (link, machine.memory(name)))
                queue.append(name)
    if to not in found:
        raise UserError(
            f"machine {machine.name}: nothing connects the memories {source} and {to}; add a link"
        )
    return found[to]


def _neighbours(machine: Machine, name: str) -> list[tuple[Link | None, str]]:
    links: list[tuple[Link | None, str]] = [
        (k, k.ends[1 - k.ends.index(name)]) for k in machine.links if name in k.ends
    ]
    parent = machine.memory(name).parent
    up: list[tuple[Link | None, str]] = [(None, parent)] if parent is not None else []
    return [*links, *up, *((None, m.name) for m in machine.memories if m.parent == name)]


@dataclass(slots=True)
class Traffic:
    """Bytes read from and written to each memory, and carried by each link, f64 ``[P]``.

    Attributes:
        machine: Whose memories.
        reads, writes: By name of the memory.
        carried: By name of the link.
    """

    machine: Machine
    reads: dict[str, np.ndarray] = field(default_factory=dict)
    writes: dict[str, np.ndarray] = field(default_factory=dict)
    carried: dict[str, np.ndarray] = field(default_factory=dict)

    def read(self, memory: str, amount: np.ndarray) -> None:
        """Read from a memory."""
        self.reads[memory] = self.reads.get(memory, 0.0) + amount

    def write(self, memory: str, amount: np.ndarray) -> None:
        """Write to a memory."""
        self.writes[memory] = self.writes.get(memory, 0.0) + amount

    def carry(self, source: str, to: str, amount: np.ndarray) -> None:
        """Read in one memory, carry to another, write there; memories on the way are written and read."""
        if not amount.any():
            return
        at = source
        for link, memory in route(self.machine, source, to):
            self.read(at, amount)
            if link is not None:
                self.carried[link.name] = self.carried.get(link.name, 0.0) + amount
            self.write(memory.name, amount)
            at = memory.name

    def terms(self) -> list[Term]:
        """One per memory and link that moves something. A latency, if any, is a term of its own."""
        found: list[Term] = []
        for memory in self.machine.memories:
            read, written = self.reads.get(memory.name), self.writes.get(memory.name)
            if read is None and written is None:
                continue
            read, written = (np.zeros(1) if x is None else x for x in (read, written))
            energy_j = read * memory.read_j_per_byte + written * memory.write_j_per_byte
            amount = read + written
            time_s = amount / memory.bandwidth_bytes_per_s
            found.append(Term(Cause.MEMORY, memory.name, time_s, energy_j, amount, "byte"))
        for link in self.machine.links:
            if link.name in self.carried:
                amount = self.carried[link.name]
                time_s = amount / link.bandwidth_bytes_per_s
                found.append(Term(Cause.LINK, link.name, time_s, amount * link.j_per_byte, amount, "byte"))
                if link.latency_s:
                    late = constant(link.latency_s, amount)
                    found.append(
                        Term(
                            Cause.LAUNCH,
                            link.name,
                            late,
                            constant(0.0, late),
                            constant(1.0, late),
                            "transfer",
                        )
                    )
        return found


@dataclass(frozen=True, slots=True)
class Product:
    """Products of matrices at all points, f64 ``[P]`` each; see :class:`strata.graph.workload.Contraction`.

    Attributes:
        share: Part of the full products that is needed: less than 1 under a causal mask.
    """

    batch: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    depth: np.ndarray
    macs: np.ndarray
    share: np.ndarray

    def turned(self) -> Product:
        """The same products with rows and columns exchanged: the transposed result."""
        return Product(self.batch, self.cols, self.rows, self.depth, self.macs, self.share)


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a work reads and makes at all points, f64 ``[P]`` each.

    Attributes:
        near_bytes: Activations that it reads.
        far_bytes: Weights and state that it reads.
        in_bytes: All of these.
        in_elems: Their elements.
        bytes_per_elem: Mean size of one.
        out_bytes: Results.
        out_elems: Elements of the results.
        flop: Arithmetic operations.
        product: Matrix products, if it is one.
    """

    near_bytes: np.ndarray
    far_bytes: np.ndarray
    in_bytes: np.ndarray
    in_elems: np.ndarray
    bytes_per_elem: np.ndarray
    out_bytes: np.ndarray
    out_elems: np.ndarray
    flop: np.ndarray
    product: Product | None


def amounts(workload: Workload, work: Work, points: Points) -> Amounts:
    """Sizes of ``work`` at all points."""
    zero = evaluate(0, points)
    near, far, elems = zero, zero, zero
    for number, dim in zip(work.inputs, work.reads, strict=True):
        value, read = workload.values[number], evaluate(dim, points)
        elems = elems + read
        if value.kind in _STREAMED:
            far = far + read * (value.bits / 8)
        else:
            near = near + read * (value.bits / 8)
    made = [(evaluate(workload.values[k].elems, points), workload.values[k].bits / 8) for k in work.outputs]
    out_bytes = sum((n * size for n, size in made), zero)
    out_elems = sum((n for n, _ in made), zero)
    product = None
    if work.contraction is not None:
        c = work.contraction
        batch, rows, cols, depth = (evaluate(d, points) for d in (c.batch, c.rows, c.cols, c.depth))
        macs, full = evaluate(c.macs, points), batch * rows * cols * depth
        product = Product(batch, rows, cols, depth, macs, macs / np.maximum(full, 1.0))
    in_bytes = near + far
    size = in_bytes / np.maximum(elems, 1.0)
    flop = evaluate(work.flop, points)
    return Amounts(near, far, in_bytes, elems, size, out_bytes, out_elems, flop, product)


def reads_again(sizes: Amounts, capacity_bytes: float) -> np.ndarray:
    """Bytes of operands that products read beyond once each, where ``capacity_bytes`` hold their blocks."""
    product = sizes.product
    if product is None or math.isinf(capacity_bytes):
        return np.zeros_like(sizes.flop)
    held = capacity_bytes / np.maximum(sizes.bytes_per_elem, 1e-9)
    least = 2 * product.macs / np.sqrt(held) - 2 * held * product.batch
    return np.maximum(least - sizes.in_elems, 0.0) * sizes.bytes_per_elem


def operand_traffic(machine: Machine, device: Device, sizes: Amounts, again: np.ndarray) -> Traffic:
    """All that a work moves on a device.

    Args:
        machine: Its memories.
        device: Where it runs.
        sizes: Of the work.
        again: Bytes that the device reads from its own memory beyond each operand once.
    """
    traffic = Traffic(machine)
    memory = machine.memory(device.memory)
    if memory.name != machine.home:
        traffic.carry(machine.home, memory.name, sizes.far_bytes)
    traffic.read(memory.name, sizes.in_bytes + again)
    traffic.write(memory.name, sizes.out_bytes)
    active = np.maximum(sizes.near_bytes + sizes.out_bytes, 1e-9)
    while memory.parent is not None and not math.isinf(memory.capacity_bytes):
        beyond = np.maximum(1 - memory.capacity_bytes / active, 0.0)
        more = reads_again(sizes, memory.capacity_bytes)
        traffic.carry(memory.parent, memory.name, sizes.near_bytes * beyond + more)
        traffic.carry(memory.name, memory.parent, sizes.out_bytes * beyond)
        memory = machine.memory(memory.parent)
    return traffic


def launched(device: Device, like: np.ndarray) -> list[Term]:
    """The time to begin an op, if a device takes any."""
    if not device.launch_s:
        return []
    launch_s, none = constant(device.launch_s, like), constant(0.0, like)
    return [Term(Cause.LAUNCH, device.name, launch_s, none, constant(1.0, like), "launch")]


def buffered(device: Device, moved: np.ndarray) -> list[Term]:
    """The energy of bytes that pass a device's buffers, if it takes any."""
    if not device.buffer_j_per_byte:
        return []
    energy_j = moved * device.buffer_j_per_byte
    return [Term(Cause.MEMORY, f"{device.name}.buffer", constant(0.0, moved), energy_j, moved, "byte")]
