"""A machine as frozen data: devices, memories, links, converters, with the source of every number.

::

    Machine   ::= name, profile, devices, memories, links, home, costs of ops that the user wrote
    Device    ::= CPU | GPU | PHU | your own subclass      attached to one memory
    Memory    ::= capacity, bandwidth, energy per byte; ``parent`` is the memory behind it
    Link      ::= two memories, bandwidth, latency, energy per byte
    Converter ::= bits, energy and delay per sample, rate

Values start in the memory ``home`` (weights, inputs, the KV cache). A device reads its operands from its own
memory and leaves results there; what does not fit goes to the parent. What an op costs is said by the
machine's ``profile`` (:mod:`strata.planner.profiles`), unless one of its ``costs`` does. Energy is in joules,
time in seconds, power in watts; a number that is unknown is never 0 by silence: constants without a default
must be given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

from strata.core.errors import UserError

from .costs import CostFunction, checked, marks_of

Sources = tuple[tuple[str, str], ...]  # (field, where its number comes from); field "" = all the others


_GPU_COUNTS = ("gpcs", "tpcs_per_gpc", "sms_per_tpc", "lanes_per_sm", "tensor_cores_per_sm")
_POSITIVE = ("bits", "cores", "multiplex", "analog_sums", "broadcast", *_GPU_COUNTS)
_POSITIVE_ENDS = ("_hz", "_bytes", "_bytes_per_s", "samples_per_s", "_per_cycle")


def _must_be_positive(name: str) -> bool:
    return name in _POSITIVE or name.endswith(_POSITIVE_ENDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What every part of a machine has.

    Attributes:
        name: Unique within the machine.
        sources: Where each number comes from: ``(("clock_hz", "datasheet, p. 3"), ("", "assumed"))``.

    Raises:
        UserError: a number that is negative or NaN, a clock, size, rate or count that is 0, infinity where
            there is no such thing, or a source of a field that there is none of.
    """

    name: str = ""
    sources: Sources = ()

    def __post_init__(self) -> None:
        where = f"{type(self).__name__} {self.name}".strip()
        names = [f.name for f in fields(self)]
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not value >= 0 or (value == 0 and _must_be_positive(name)):
                expected = "> 0" if _must_be_positive(name) else ">= 0"
                raise UserError(f"{where}: {name}: got {value}; expected {expected}")
            if math.isinf(value) and not name.endswith(("_bytes", "_per_s")):
                raise UserError(f"{where}: {name}: got {value}; expected a finite number")
        for name, _ in self.sources:
            if name and name not in names:
                raise UserError(f"{where}: sources: no field {name!r}; expected one of {', '.join(names)}")
        object.__setattr__(self, "sources", tuple(sorted(self.sources)))

    def source_of(self, field_name: str) -> str:
        """Where the number in a field comes from; ``"assumed"`` if nobody said."""
        known = dict(self.sources)
        return known.get(field_name, known.get("", "assumed"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Part):
    """A place where values are kept.

    Attributes:
        capacity_bytes: What fits; ``inf`` = no limit.
        bandwidth_bytes_per_s: Read or write; ``inf`` = takes no time.
        read_j_per_byte, write_j_per_byte: Energy of an access.
        static_w: Power whatever happens (refresh, leakage).
        parent: Name of the memory behind it, which takes what does not fit; ``None`` = none.
    """

    capacity_bytes: float
    bandwidth_bytes_per_s: float
    read_j_per_byte: float
    write_j_per_byte: float
    static_w: float = 0.0
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Part):
    """A connection of two memories, usable in both directions.

    Attributes:
        ends: Names of the two memories.
        bandwidth_bytes_per_s: Of one direction.
        latency_s: Per transfer, whatever its size.
        j_per_byte: Energy.
    """

    ends: tuple[str, str]
    bandwidth_bytes_per_s: float
    latency_s: float = 0.0
    j_per_byte: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter(Part):
    """A digital-to-analog or analog-to-digital converter.

    Attributes:
        bits: Resolution.
        j_per_sample: Energy of one conversion.
        delay_s: From sample in to sample out; pipelined.
        samples_per_s: Rate of one converter; ``inf`` = never the bottleneck.
    """

    bits: int
    j_per_sample: float
    delay_s: float = 0.0
    samples_per_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Device(Part):
    """Something that computes. Subclass it to add a kind of device; its fields are the cost function's.

    Attributes:
        memory: Name of the memory that it reads from and writes to; ``""`` = the machine's ``home``.
        clock_hz: Cycles per second.
        cores: Units that work at the same time.
        static_w: Power whatever happens.
        busy_w: Power on top of it while it computes: lasers, heaters, clocks.
        launch_s: Time to begin an op.
        buffer_bytes: Registers and local memory of one core, which hold the blocks of a product while it is
            computed; ``inf`` = every operand is read from ``memory`` once.
        buffer_j_per_byte: Energy of bringing one byte through them, in or out.
        ops: Ops that it can do; empty = all that its cost functions know.
    """

    clock_hz: float
    cores: int = 1
    memory: str = ""
    static_w: float = 0.0
    busy_w: float = 0.0
    launch_s: float = 0.0
    buffer_bytes: float = math.inf
    buffer_j_per_byte: float = 0.0
    ops: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``"cpu"``, ``"gpu"``, ``"phu"``: the class's name in lower case."""
        return type(self).__name__.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class CPU(Device):
    """A processor.

    Attributes:
        macs_per_cycle: Multiply-adds of one core and cycle.
        elems_per_cycle: Elements of a simple elementwise op per core and cycle.
        j_per_mac, j_per_op: Energy of a multiply-add; of any other operation.
    """

    macs_per_cycle: float = 32.0
    elems_per_cycle: float = 16.0
    j_per_mac: float = 0.1e-12
    j_per_op: float = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU(Device):
    """A graphics processor. ``cores`` is not used: units are counted by the four numbers below.

    Attributes:
        gpcs, tpcs_per_gpc, sms_per_tpc: Its hierarchy (NVIDIA's words).
        lanes_per_sm: f32 units per SM.
        tensor_cores_per_sm: Matrix units per SM.
        macs_per_cycle: Multiply-adds of one tensor core and cycle.
        j_per_mac, j_per_op: Energy of a multiply-add; of any other operation.
    """

    gpcs: int = 8
    tpcs_per_gpc: int = 9
    sms_per_tpc: int = 2
    lanes_per_sm: int = 128
    tensor_cores_per_sm: int = 4
    macs_per_cycle: float = 433.76
    j_per_mac: float = 0.07e-12
    j_per_op: float = 1e-12

    @property
    def sms(self) -> int:
        """Streaming multiprocessors."""
        return self.gpcs * self.tpcs_per_gpc * self.sms_per_tpc

    @property
    def tensor_cores(self) -> int:
        """Matrix units of the whole device."""
        return self.sms * self.tensor_cores_per_sm


@dataclass(frozen=True, slots=True, kw_only=True)
class PHU(Device):
    """A photonic unit that multiplies a stationary tile of weights with a stream of vectors of light.

    Attributes:
        multiplex: Rows of the input done at once in one core and cycle (wavelengths, modes); of a dot-product
            unit: outputs.
        rows, cols: Tile of weights that a core holds: inputs by outputs; ``0`` = a dot-product unit, which
            holds none.
        dynamic: The tile is modulated anew, by DACs, in every cycle; otherwise it is programmed and stays.
        broadcast: Cores that one modulated input reaches.
        analog_sums: Tiles along the contracted dim whose partial sums add up as light or charge before they
            are converted; sums of these are added as numbers.
        j_per_mac: Energy of light, detection and modulation bias per multiply-add.
        dac, adc: Converters at the inputs and outputs.
        program_s, program_j_per_weight: Time to load one tile of weights; energy per weight.
        noise_additive, noise_multiplicative: Standard deviations, relative to the full scale of an output; to
            the value of a product.
    """

    multiplex: int = 1
    rows: int = 0
    cols: int = 0
    dynamic: bool = False
    broadcast: int = 1
    analog_sums: int = 1
    j_per_mac: float = 0.04e-12
    dac: Converter | None = None
    adc: Converter | None = None
    program_s: float = 0.0
    program_j_per_weight: float = 0.0
    noise_additive: float = 0.0
    noise_multiplicative: float = 0.0

    def __post_init__(self) -> None:
        # A dataclass with slots is a new class, which ``super()`` would not find.
        Part.__post_init__(self)
        if (self.rows == 0) != (self.cols == 0):
            raise UserError(
                f"PHU {self.name}: got a tile of {self.rows} x {self.cols}; expected both > 0, "
                f"or both 0 for a dot-product unit"
            )
        if self.dynamic and not self.rows:
            raise UserError(f"PHU {self.name}: dynamic: got no tile; expected rows and cols > 0")
        for name in ("dac", "adc"):
            converter = getattr(self, name)
            if converter is not None and converter.name != name:
                object.__setattr__(self, name, replace(converter, name=name))


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices that share memories.

    ``Machine([CPU(...), PHU(...)])`` is enough for a first look: devices without a name get one (``"cpu"``,
    ``"phu"``, ``"phu2"``), and without memories there is a single one, without limits, called ``"dram"``.

    Attributes:
        devices: At least one.
        name: Of the machine.
        profile: How ops are costed on it; a name in :data:`strata.planner.profiles.PROFILES`.
        memories, links: Where values live, and how they move.
        home: Memory of weights and inputs; ``""`` = the first one.
        about: What it is and where its description comes from.
        costs: Functions decorated with ``strata.op_cost``, which come before the profile.

    Raises:
        UserError: no device, a name used twice, a memory that there is none of, or a cost that is none.
    """

    devices: tuple[Device, ...]
    name: str = "custom"
    profile: str = "physical"
    memories: tuple[Memory, ...] = ()
    links: tuple[Link, ...] = ()
    home: str = ""
    about: str = field(default="", compare=False)
    costs: tuple[CostFunction, ...] = ()

    def __init__(
        self,
        devices: Iterable[Device],
        name: str = "custom",
        profile: str = "physical",
        memories: Iterable[Memory] = (),
        links: Iterable[Link] = (),
        home: str = "",
        about: str = "",
        costs: Iterable[CostFunction] = (),
    ) -> None:
        memories = tuple(memories) or (_UNLIMITED,)
        home = home or memories[0].name
        set_ = object.__setattr__
        set_(self, "name", name)
        set_(self, "profile", profile)
        set_(self, "memories", memories)
        set_(self, "links", _named_links(links))
        set_(self, "home", home)
        set_(self, "about", about)
        set_(self, "costs", checked(f"machine {name}", costs))
        set_(self, "devices", _named(devices, home))
        self._check()

    def _check(self) -> None:
        if not self.devices:
            raise UserError(f"machine {self.name}: got no device; expected at least one")
        names = [p.name for p in (*self.devices, *self.memories, *self.links)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise UserError(
                f"machine {self.name}: the name {twice[0]!r} is used twice; give each part its own"
            )
        known = [m.name for m in self.memories]
        used = [(f"device {d.name}", d.memory) for d in self.devices]
        used += [(f"memory {m.name}", m.parent) for m in self.memories if m.parent is not None]
        used += [(f"link {k.name}", end) for k in self.links for end in k.ends]
        for what, memory in [*used, ("home", self.home)]:
            if memory not in known:
                raise UserError(
                    f"machine {self.name}: {what}: no memory {memory!r}; expected one of {', '.join(known)}"
                )
        for memory in self.memories:
            self._check_parents(memory)
        for link in self.links:
            if link.ends[0] == link.ends[1]:
                raise UserError(f"machine {self.name}: link {link.name}: both ends are {link.ends[0]!r}")

    def _check_parents(self, memory: Memory) -> None:
        """What does not fit into a memory has to fit behind it, and there is an end to going back."""
        behind = memory
        for _ in self.memories:
            if behind.parent is None:
                return
            parent = self.memory(behind.parent)
            if parent.capacity_bytes < behind.capacity_bytes:
                raise UserError(
                    f"machine {self.name}: memory {behind.name}: capacity_bytes: "
                    f"got {behind.capacity_bytes:g} B; expected at most the {parent.capacity_bytes:g} B of "
                    f"{parent.name}, the memory behind it"
                )
            behind = parent
        raise UserError(f"machine {self.name}: memory {memory.name} is behind itself; give one no parent")

    def device(self, name: str) -> Device:
        """The device called ``name``.

        Raises:
            UserError: there is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise UserError(
            f"machine {self.name}: no device {name!r}; it has {', '.join(d.name for d in self.devices)}"
        )

    def memory(self, name: str) -> Memory:
        """The memory called ``name``.

        Raises:
            UserError: there is none.
        """
        for memory in self.memories:
            if memory.name == name:
                return memory
        raise UserError(
            f"machine {self.name}: no memory {name!r}; it has {', '.join(m.name for m in self.memories)}"
        )

    def cost_of(self, device: Device, op: str) -> CostFunction | None:
        """The user's function for ``op`` on a device: by its name, its class, or a class that it extends.

        Of several for the same, the last one.
        """
        if not self.costs:
            return None
        known = {mark: function for function in self.costs for mark in marks_of(function)}
        keys = (device.name, *(cls.__name__.lower() for cls in type(device).__mro__))
        return next((known[key, op] for key in keys if (key, op) in known), None)

    def with_costs(self, costs: Sequence[CostFunction]) -> Machine:
        """The machine with more functions of the user's, which come before those that it has.

        Raises:
            UserError: one that is not decorated with ``strata.op_cost``.
        """
        return replace(self, costs=(*self.costs, *costs)) if costs else self

    @property
    def static_w(self) -> float:
        """Power of all parts whatever happens."""
        return sum(p.static_w for p in (*self.devices, *self.memories))


_UNLIMITED = Memory(
    name="dram",
    capacity_bytes=math.inf,
    bandwidth_bytes_per_s=math.inf,
    read_j_per_byte=0.0,
    write_j_per_byte=0.0,
    sources=(("", "none given: a memory without limits or costs"),),
)


def _named_links(links: Iterable[Link]) -> tuple[Link, ...]:
    """Links with a name each: that of their ends if no other."""
    return tuple(link if link.name else replace(link, name="-".join(link.ends)) for link in links)


def _named(devices: Iterable[Device], home: str) -> tuple[Device, ...]:
    """Devices with a name each, attached to ``home`` if to nothing else. No device is lost."""
    devices = tuple(devices)
    taken = {d.name for d in devices if d.name}
    out: list[Device] = []
    for device in devices:
        name, number = device.name or device.kind, 1
        while not device.name and name in taken:
            number += 1
            name = f"{device.kind}{number}"
        taken.add(name)
        out.append(replace(device, name=name, memory=device.memory or home))
    return tuple(out)
