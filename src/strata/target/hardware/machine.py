"""A machine as frozen data: devices, memories, links, converters, with the source of every number.

::

    Machine   ::= name, profile, devices, memories, links, home
    Device    ::= CPU | GPU | PHU | your own subclass      attached to one memory
    Memory    ::= capacity, bandwidth, energy per byte; ``parent`` is the memory behind it
    Link      ::= two memories, bandwidth, latency, energy per byte
    Converter ::= bits, energy and delay per sample, rate

Values start in the memory ``home`` (weights, inputs, the KV cache). A device reads its operands from its own
memory and leaves results there; what does not fit goes to the parent. A machine says nothing of how ops are
costed: that is its ``profile`` (:mod:`strata.planner.profiles`). Energy is in joules, time in seconds, power
in watts; a number that is unknown is never 0 by silence: constants without a default must be given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from strata.core.errors import UserError

Sources = tuple[tuple[str, str], ...]  # (field, where its number comes from); field "" = all the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What every part of a machine has.

    Attributes:
        name: Unique within the machine.
        sources: Where each number comes from: ``(("clock_hz", "datasheet, p. 3"), ("", "assumed"))``.

    Raises:
        UserError: a number that is negative or NaN.
    """

    name: str = ""
    sources: Sources = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value >= 0:
                raise UserError(f"{type(self).__name__} {self.name}: {f.name}: got {value}; expected >= 0")

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
        launch_s: Time to begin an op.
        ops: Ops that it can do; empty = all that its cost functions know.
    """

    clock_hz: float
    cores: int = 1
    memory: str = ""
    static_w: float = 0.0
    launch_s: float = 0.0
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
        multiplex: Products done at once in one core and cycle (wavelengths, modes).
        rows, cols: Tile of weights that a core holds; ``0`` = a dot-product unit, which holds none.
        j_per_mac: Energy of light, detection and modulation bias per multiply-add.
        dac, adc: Converters at the inputs and outputs.
        program_s, program_j_per_weight: Time to load one tile of weights; energy per weight.
        noise_additive, noise_multiplicative: Standard deviations, relative to the full scale of an output; to
            the value of a product.
    """

    multiplex: int = 1
    rows: int = 0
    cols: int = 0
    j_per_mac: float = 0.04e-12
    dac: Converter | None = None
    adc: Converter | None = None
    program_s: float = 0.0
    program_j_per_weight: float = 0.0
    noise_additive: float = 0.0
    noise_multiplicative: float = 0.0


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

    Raises:
        UserError: no device, a name used twice, or a memory that there is none of.
    """

    devices: tuple[Device, ...]
    name: str = "custom"
    profile: str = "physical"
    memories: tuple[Memory, ...] = ()
    links: tuple[Link, ...] = ()
    home: str = ""
    about: str = field(default="", compare=False)

    def __init__(
        self,
        devices: Iterable[Device],
        name: str = "custom",
        profile: str = "physical",
        memories: Iterable[Memory] = (),
        links: Iterable[Link] = (),
        home: str = "",
        about: str = "",
    ) -> None:
        memories = tuple(memories) or (_UNLIMITED,)
        home = home or memories[0].name
        set_ = object.__setattr__
        set_(self, "name", name)
        set_(self, "profile", profile)
        set_(self, "memories", memories)
        set_(self, "links", tuple(links))
        set_(self, "home", home)
        set_(self, "about", about)
        set_(self, "devices", _named(devices, home))
        self._check()

    def _check(self) -> None:
        if not self.devices:
            raise UserError(f"machine {self.name}: got no device; expected at least one")
        names = [p.name for p in (*self.devices, *self.memories)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise UserError(
                f"machine {self.name}: the name {twice[0]!r} is used twice; give each part its own"
            )
        known = [m.name for m in self.memories]
        used = [(f"device {d.name}", d.memory) for d in self.devices]
        used += [(f"memory {m.name}", m.parent) for m in self.memories if m.parent is not None]
        used += [(f"link {k.name or k.ends}", end) for k in self.links for end in k.ends]
        for what, memory in [*used, ("home", self.home)]:
            if memory not in known:
                raise UserError(
                    f"machine {self.name}: {what}: no memory {memory!r}; expected one of {', '.join(known)}"
                )

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


def _named(devices: Iterable[Device], home: str) -> tuple[Device, ...]:
    """Devices with a name each, attached to ``home`` if to nothing else. No device is lost."""
    from dataclasses import replace

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
