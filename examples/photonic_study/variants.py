"""The machines of the study: LightCode's, with each charge on or off and each assumption a number.

Constants come from the machine files ``lightcode-honest``, ``h100`` and ``lightening-transformer``; what is
added here is derived from them, and said so where it is done. :class:`Setup` is one machine. Its defaults
charge everything but what is disputed (static power, laser, the life of analog values), in favour of light;
:data:`FREE` charges arithmetic and DRAM only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from strata.planner.numerics.precision import with_bits
from strata.target.hardware import GPU, PHU, Converter, Device, Machine, Memory, read_machine

D = TypeVar("D", bound=Device)

HONEST, H100, PUBLISHED_CORE = map(read_machine, ("lightcode-honest", "h100", "lightening-transformer"))


def _part(machine: Machine, name: str, kind: type[D]) -> D:
    device = machine.device(name)
    assert isinstance(device, kind)
    return device


_LIGHTCODES_GPU, _H100S_GPU = _part(HONEST, "gpu", GPU), _part(H100, "gpu", GPU)
LIGHTCODES_PHU, CORE = _part(HONEST, "phu", PHU), _part(PUBLISHED_CORE, "phu", PHU)
_NAMES_IN_H100 = {"hbm": "hbm", "sram": "l2"}

# Laser of the published core over its peak rate: what a multiply-add's share of the light costs.
CORE_LASER_W = CORE.busy_w / CORE.cores
LASER_J_PER_MAC = CORE.busy_w / (CORE.cores * CORE.rows * CORE.cols * CORE.multiplex * CORE.clock_hz)
H100_W = 700.0  # NVIDIA H100 datasheet (SXM), maximum thermal design power
# Photonic cores of LightCode's size that have the GPU's peak.
PEAK_CORES = round(
    _LIGHTCODES_GPU.tensor_cores
    * _LIGHTCODES_GPU.macs_per_cycle
    * _LIGHTCODES_GPU.clock_hz
    / (LIGHTCODES_PHU.multiplex * LIGHTCODES_PHU.clock_hz)
)
SUMS = 4096  # assumed: rows whose sums find room in a core, 4 bytes per column of its tile
MIN_COLS = 64
EVERY_SUM = 1 << 20  # an integrator that adds up over any depth of a model before it is read


class Electronics(Enum):
    """What a multiply-add of the GPU costs.

    An H100's is all the power that its datasheet allows, static power included, over its peak, less what
    the L2 and the HBM draw then, which are charged apart.
    """

    LIGHTCODE = "LightCode's 0.07 pJ"  # of arithmetic; traffic on top as in lightcode-honest
    H100_8BIT = "H100, 8-bit"  # products twice as fast as in 16 bits, at the same power
    H100_16BIT = "H100, 16-bit"


class Optics(Enum):
    """How long an analog value lives, which is what decides the number of conversions."""

    KEPT = "kept"  # as long as the number is in the unit's local memory: what lightcode-honest assumes
    EVERY_CYCLE = "every cycle"  # both operands are modulated in each cycle and shared within it only
    STATIONARY = "stationary"  # a tile of weights is programmed and stays, the other operand streams


class Idle(Enum):
    """Who draws static power."""

    NOBODY = "nobody"
    GATED = "the device that works"
    ALL = "whole machine"


class Laser(Enum):
    """What light costs beyond LightCode's 0.04 pJ per multiply-add."""

    NONE = "in the 0.04 pJ"
    PER_MAC = "per MAC"  # the published core's laser power over its peak rate
    WHOLE = "1.54 W"  # the laser of a whole published core, of 1728 MAC per cycle, whatever the unit does


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One machine.

    Attributes:
        electronics, optics, idle, laser: See the enums.
        on_chip: SRAM and local memories take energy, on the photonic unit too.
        conversion: DACs and ADCs take energy.
        bandwidth: Memories take time.
        rereads: SRAM and local memories have a capacity; what does not fit is read again, on both devices.
        local_bytes: Local memory of a unit that keeps analog values; ``None`` = that of an SM. Without a
            limit each number of an operand is converted once per op.
        launches: Ops, converters and pipelines take time to begin, converters have a rate.
        converter_scale: Times the energy of a sample.
        dac_j, adc_j: Energy of a sample instead; ``None`` = LightCode's.
        light_scale: Times the 0.04 pJ per multiply-add.
        laser_scale: Times the power of the laser.
        phu_static_w: Power that the photonic unit draws while it works: control, tuning, clocks.
        gpu_j_per_mac: Instead of what ``electronics`` says.
        multiplex: Products per cycle of a core of a dot-product unit; wavelengths of one with tiles.
        cores: Photonic cores. Lasers are counted per core.
        clock_hz: Of the photonic unit.
        tile: Rows and columns of a core that holds weights.
        bits: Of converters; energies change by 2 per bit.
        program_j: Energy per weight that is programmed; ``None`` = a DAC sample.
        program_s: Time per tile that is programmed.
    """

    electronics: Electronics = Electronics.LIGHTCODE
    optics: Optics = Optics.KEPT
    idle: Idle = Idle.NOBODY
    laser: Laser = Laser.NONE
    on_chip: bool = True
    conversion: bool = True
    bandwidth: bool = True
    rereads: bool = True
    local_bytes: float | None = None
    launches: bool = True
    converter_scale: float = 1.0
    dac_j: float | None = None
    adc_j: float | None = None
    light_scale: float = 1.0
    laser_scale: float = 1.0
    phu_static_w: float = 0.0
    gpu_j_per_mac: float | None = None
    multiplex: int = 20
    cores: int = 1
    clock_hz: float = 9.7e9
    tile: int = 64
    bits: int = 8
    program_j: float | None = None
    program_s: float = 0.0

    @property
    def adc_j_per_sample(self) -> float:
        """Energy of an ADC sample."""
        return self._converter(LIGHTCODES_PHU.adc, self.adc_j).j_per_sample

    def machine(self) -> Machine:
        """With a GPU and a photonic unit called ``"gpu"`` and ``"phu"``.

        No CPU: at LightCode's 0.1 pJ per multiply-add, which no CPU comes near, it would take the products
        from an H100.
        """
        memories = [self._limited(self._of_gpu(m)) for m in HONEST.memories]
        phu = self._phu()
        if self.electronics is not Electronics.LIGHTCODE:
            # An H100's L2 is large and far away: light has an SRAM of its own, which is filled from there.
            memories.append(replace(self._limited(HONEST.memory("sram")), name="optics", parent="sram"))
            phu = replace(phu, memory="optics")
        return Machine([self._electronic(self._gpu()), phu], "study", "physical", memories, home=HONEST.home)

    def _gpu(self) -> GPU:
        gpu = _LIGHTCODES_GPU
        if self.electronics is not Electronics.LIGHTCODE:
            gpu = at_its_power(_H100S_GPU) if self.idle is Idle.NOBODY else _H100S_GPU
            gpu = replace(gpu, memory="sram")
        if self.electronics is Electronics.H100_8BIT:
            gpu = eight_bit_gpu(gpu)
        return gpu if self.gpu_j_per_mac is None else replace(gpu, j_per_mac=self.gpu_j_per_mac)

    def _of_gpu(self, memory: Memory) -> Memory:
        if self.electronics is Electronics.LIGHTCODE:
            return memory
        own = H100.memory(_NAMES_IN_H100[memory.name])
        return replace(memory, read_j_per_byte=own.read_j_per_byte, write_j_per_byte=own.write_j_per_byte)

    def _limited(self, memory: Memory) -> Memory:
        if memory.name != HONEST.home and not self.on_chip:
            memory = replace(memory, read_j_per_byte=0.0, write_j_per_byte=0.0)
        if not self.rereads:
            memory = replace(memory, capacity_bytes=math.inf)
        return memory if self.bandwidth else replace(memory, bandwidth_bytes_per_s=math.inf)

    def _electronic(self, device: Device) -> Device:
        if self.idle is not Idle.ALL:
            busy_w = device.busy_w + (device.static_w if self.idle is Idle.GATED else 0.0)
            device = replace(device, static_w=0.0, busy_w=busy_w)
        return self._charged(device)

    def _charged(self, device: D) -> D:
        if not self.on_chip:
            device = replace(device, buffer_j_per_byte=0.0)
        if not self.rereads:
            device = replace(device, buffer_bytes=math.inf)
        return device if self.launches else replace(device, launch_s=0.0)

    def _phu(self) -> PHU:
        phu = replace(
            LIGHTCODES_PHU,
            clock_hz=self.clock_hz,
            cores=self.cores,
            multiplex=self.multiplex,
            j_per_mac=LIGHTCODES_PHU.j_per_mac * self.light_scale,
            busy_w=self.phu_static_w,
            launch_s=_LIGHTCODES_GPU.launch_s,  # assumed as the GPU's: somebody has to start it
            dac=self._converter(LIGHTCODES_PHU.dac, self.dac_j),
            adc=self._converter(LIGHTCODES_PHU.adc, self.adc_j),
        )
        if self.laser is Laser.PER_MAC:
            phu = replace(phu, j_per_mac=phu.j_per_mac + LASER_J_PER_MAC * self.laser_scale)
        elif self.laser is Laser.WHOLE:
            phu = replace(phu, busy_w=phu.busy_w + CORE_LASER_W * self.cores * self.laser_scale)
        if self.optics is Optics.KEPT:
            return self._charged(
                phu if self.local_bytes is None else replace(phu, buffer_bytes=self.local_bytes)
            )
        phu = replace(phu, buffer_bytes=4 * SUMS * max(self.tile, MIN_COLS))
        if self.optics is Optics.EVERY_CYCLE:
            across = next(n for n in range(math.isqrt(self.multiplex), 0, -1) if self.multiplex % n == 0)
            cols, rows = self.multiplex // across, 1
            phu = replace(phu, multiplex=across, rows=rows, cols=cols, dynamic=True, analog_sums=EVERY_SUM)
            return self._charged(phu)
        program_j = self.program_j
        if program_j is None:
            program_j = phu.dac.j_per_sample if phu.dac is not None else 0.0
        return self._charged(
            replace(
                phu,
                rows=self.tile,
                cols=self.tile,
                program_s=self.program_s if self.launches else 0.0,
                program_j_per_weight=program_j if self.conversion else 0.0,
            )
        )

    def _converter(self, converter: Converter | None, j_per_sample: float | None) -> Converter:
        assert converter is not None
        if j_per_sample is not None:
            converter = replace(converter, j_per_sample=j_per_sample)
        converter = with_bits(converter, self.bits)
        energy_j = converter.j_per_sample * self.converter_scale if self.conversion else 0.0
        converter = replace(converter, j_per_sample=energy_j)
        return converter if self.launches else replace(converter, delay_s=0.0, samples_per_s=math.inf)


# Arithmetic and DRAM only.
FREE = Setup(
    on_chip=False,
    conversion=False,
    bandwidth=False,
    rereads=False,
    launches=False,
)


def at_its_power(gpu: GPU) -> GPU:
    """The H100 with its static power in the energy of an operation at peak instead: nobody waits for free."""
    macs_per_s = gpu.tensor_cores * gpu.macs_per_cycle * gpu.clock_hz
    ops_per_s = 2 * gpu.sms * gpu.lanes_per_sm * gpu.clock_hz  # a multiply-add is two
    return replace(
        gpu,
        static_w=0.0,
        j_per_mac=gpu.j_per_mac + gpu.static_w / macs_per_s,
        j_per_op=gpu.j_per_op + gpu.static_w / ops_per_s,
    )


def eight_bit_gpu(gpu: GPU) -> GPU:
    """Products in 8 bits: 1979 Tflop/s (NVIDIA H100 datasheet, SXM), twice those in bf16, at the same power.

    An H200 under vLLM drew 661.7 W in fp8 and 662.8 W in bf16 (serialalice.pt, GPU energy benchmark, 2026).
    """
    return replace(gpu, macs_per_cycle=2 * gpu.macs_per_cycle, j_per_mac=gpu.j_per_mac / 2)


def beside(machine: Machine, change: Callable[[GPU], GPU]) -> Machine:
    """A published core beside a GPU that is changed; starting it takes as long as starting a kernel."""
    gpu = _part(machine, "gpu", GPU)
    devices = [
        change(d) if isinstance(d, GPU) else replace(d, launch_s=gpu.launch_s) for d in machine.devices
    ]
    return replace(machine, devices=devices)


H100_J_PER_MAC = at_its_power(_H100S_GPU).j_per_mac  # 16-bit
GPU_J_PER_MAC = _LIGHTCODES_GPU.j_per_mac
LOCAL_BYTES = LIGHTCODES_PHU.buffer_bytes
DAC_J = math.nan if LIGHTCODES_PHU.dac is None else LIGHTCODES_PHU.dac.j_per_sample
HBM_J, H100_HBM_J = (m.memory(m.home).read_j_per_byte for m in (HONEST, H100))
