"""The profile physical: small cases by hand, limits of large ones, and what each charge is worth."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from single_works import INPUT, RESULT, WEIGHT, L, elementwise, product, term

from strata.codegen.emit_values import Builder
from strata.codegen.emit_values import Value as Emitted
from strata.codegen.math_functions import emit_math
from strata.core.dtypes import f32
from strata.core.errors import UserError
from strata.frontend.relay import read_relay
from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.loop.nodes import UnaryOp
from strata.models import shape_config
from strata.models.shapes import SHAPES
from strata.models.workload import Granularity, model_workload
from strata.planner.devices.build import stacked_graph
from strata.planner.devices.types import Cause, DeviceCandidate, Estimates
from strata.planner.profiles import PROFILES
from strata.planner.profiles.electronic import DIVISION, FUNCTIONS
from strata.planner.profiles.photonic import can_do
from strata.planner.profiles.traffic import route
from strata.target import TARGETS
from strata.target.hardware import (
    CPU,
    GPU,
    PHU,
    Converter,
    Device,
    Link,
    Machine,
    Memory,
    op_cost,
    read_machine,
)

RELAY = Path(__file__).parents[3] / "data" / "relay"
ONE = {"L": np.array([1])}

DRAM = Memory(
    name="dram",
    capacity_bytes=1e9,
    bandwidth_bytes_per_s=10e9,
    read_j_per_byte=20e-12,
    write_j_per_byte=10e-12,
)
SRAM = Memory(
    name="sram",
    capacity_bytes=1000.0,
    bandwidth_bytes_per_s=100e9,
    read_j_per_byte=1e-12,
    write_j_per_byte=2e-12,
    parent="dram",
)
HOST = CPU(
    name="cpu",
    clock_hz=1e9,
    cores=2,
    macs_per_cycle=4,
    elems_per_cycle=8,
    j_per_mac=1e-12,
    j_per_op=2e-12,
    launch_s=1e-6,
)
UNIT = PHU(
    name="phu",
    clock_hz=1e9,
    cores=2,
    multiplex=7,
    j_per_mac=0.1e-12,
    dac=Converter(bits=8, j_per_sample=10e-12, delay_s=1e-9),
    adc=Converter(bits=8, j_per_sample=3e-12, delay_s=2e-9),
)
TILES = replace(UNIT, multiplex=4, rows=8, cols=16, program_s=1e-8, program_j_per_weight=1e-12)


def machine(*devices: Device, at: str = "dram", memories: tuple[Memory, ...] = (DRAM, SRAM)) -> Machine:
    return Machine([replace(d, memory=at) for d in devices], memories=memories, home="dram")


def candidates(workload: Workload, on: Machine, points=ONE) -> dict[str, DeviceCandidate]:
    return {c.name: c for c in PROFILES["physical"].candidates(on, workload, workload.works[0], points)}


def only(workload: Workload, on: Machine, points=ONE) -> Estimates:
    (candidate,) = candidates(workload, on, points).values()
    return candidate.estimates


# --- by hand --------------------------------------------------------------------------------------


def test_a_product_on_a_cpu():
    found = only(product(10, 20, 30), machine(HOST))
    # 6000 MACs at 8 per cycle; 1600 bytes in, 600 out
    assert term(found, "cpu", Cause.COMPUTE).time_s == pytest.approx(750e-9)
    assert term(found, "dram").time_s == pytest.approx(2200 / 10e9)
    assert term(found, "dram").energy_j == pytest.approx(1600 * 20e-12 + 600 * 10e-12)
    assert found.time_s == pytest.approx(750e-9 + 1e-6)
    assert found.energy_j == pytest.approx(6000e-12 + 38000e-12)


def test_an_elementwise_op_on_a_cpu():
    found = only(elementwise("add", 1000, 1000, bits=32), machine(HOST))
    assert term(found, "cpu.lanes").time_s == pytest.approx(63e-9)  # 62.5 cycles of 16 elements
    assert term(found, "cpu.lanes").energy_j == pytest.approx(2000e-12)
    assert term(found, "dram").amount == 8000
    assert found.time_s == pytest.approx(0.8e-6 + 1e-6)


def test_an_elementary_function_costs_what_it_takes():
    found = only(elementwise("softmax", 160, 800), machine(HOST))
    assert term(found, "cpu.lanes").amount == 800 + 17 * 160  # its exponential is one of the five flop


@pytest.mark.parametrize("op", [UnaryOp(n) for n in FUNCTIONS if n in {o.value for o in UnaryOp}])
def test_functions_on_a_cpu_are_as_long_as_our_code(op):
    builder = Builder({})
    emit_math(builder, TARGETS["zen5"], op, Emitted(f32, 16, "%x"))
    lines = [line for region in builder.regions for line in region.lines if "bitcast" not in line]
    slow = [line for line in lines if "fdiv" in line or "sqrt" in line]
    assert FUNCTIONS[op.value][0] == len(lines) - len(slow) + DIVISION * len(slow)


def test_small_buffers_read_operands_again():
    # 100 elements are held: at least 2 * 6000 / 10 - 200 = 1000 are read, 200 more than there are
    found = only(product(10, 20, 30), machine(replace(HOST, buffer_bytes=200)))
    assert term(found, "dram").amount == 1600 + 400 + 600


def test_what_is_read_again_passes_the_buffer_again():
    found = only(product(10, 20, 30), machine(replace(HOST, buffer_bytes=200, buffer_j_per_byte=1e-12)))
    assert term(found, "cpu.buffer").energy_j == pytest.approx((1600 + 400 + 600) * 1e-12)


def test_weights_stream_through_a_memory_that_activations_are_in():
    found = only(
        product(10, 20, 30), machine(HOST, at="sram", memories=(DRAM, replace(SRAM, capacity_bytes=1e9)))
    )
    assert term(found, "dram").amount == 1200  # the weight
    assert term(found, "sram").energy_j == pytest.approx((1600 * 1 + (600 + 1200) * 2) * 1e-12)


def test_what_does_not_fit_is_in_the_parent():
    found = only(elementwise("add", 1000, 1000, bits=16), machine(HOST, at="sram"))
    # 4000 bytes of activations, 1000 fit: three quarters come from DRAM and go there
    assert term(found, "dram").energy_j == pytest.approx(1500 * 20e-12 + 1500 * 10e-12)
    assert term(found, "sram").amount == 4000 + 1500 + 1500


def test_products_read_the_parent_again_where_a_memory_is_small():
    fits = only(
        product(10, 200, 300), machine(HOST, at="sram", memories=(DRAM, replace(SRAM, capacity_bytes=1e9)))
    )
    found = only(product(10, 200, 300), machine(HOST, at="sram"))
    # 500 elements are held; 2 * 600000 / sqrt(500) - 1000 = 52666 are less than the 62000 there are
    spilled = (4000 + 6000) * (1 - 1000 / 10000)
    assert term(found, "dram").amount - term(fits, "dram").amount == pytest.approx(spilled)
    tiny = only(product(100, 200, 300), machine(HOST, at="sram"))
    more = (2 * 6e6 / math.sqrt(500) - 1000 - 80000) * 2
    assert term(tiny, "dram").amount == pytest.approx(120000 + more + (40000 + 60000) * 0.99)


def test_half_a_byte_counts_as_half():
    assert term(only(product(10, 20, 30, bits=4.5), machine(HOST)), "dram").amount == 1100 * 4.5 / 8


def test_a_view_is_free():
    values = (Value("x", (8,), 16, INPUT), Value("y", (2, 4), 16, RESULT))
    view = Workload("view", values, (Work("y", "reshape", (0,), (0,), (1,), 0),), (L,))
    found = only(view, machine(HOST, UNIT))
    assert (found.time_s, found.energy_j) == (0, 0)


def test_power_while_busy():
    idle, busy = (only(product(10, 20, 30), machine(replace(HOST, busy_w=w))) for w in (0.0, 3.0))
    assert busy.time_s == idle.time_s
    assert busy.energy_j == pytest.approx(idle.energy_j + 3.0 * idle.time_s)


# --- GPUs -----------------------------------------------------------------------------------------

CARD = GPU(
    name="gpu", clock_hz=1e9, gpcs=1, tpcs_per_gpc=2, sms_per_tpc=2, tensor_cores_per_sm=4, macs_per_cycle=64
)


FAST = (replace(DRAM, bandwidth_bytes_per_s=math.inf),)


def test_products_on_a_gpu_are_padded_to_tiles():
    full = only(product(256, 64, 512), machine(CARD, memories=FAST))
    assert term(full, "gpu").time_s == pytest.approx(256 * 64 * 512 / (16 * 64) * 1e-9)
    padded = only(product(257, 64, 512), machine(CARD, memories=FAST))  # one row more: tiles of 8 rows
    assert term(padded, "gpu").time_s == pytest.approx(264 * 64 * 512 / (16 * 64) * 1e-9)
    assert term(padded, "gpu").energy_j == pytest.approx(257 * 64 * 512 * CARD.j_per_mac)  # padding is masked


def test_a_single_row_uses_all_sms():
    found = only(product(1, 4096, 4096), machine(CARD, memories=FAST))
    assert term(found, "gpu").time_s == pytest.approx(8 * 4096 * 4096 / (16 * 64) * 1e-9)


def test_tiles_on_a_gpu_read_operands_again_if_buffers_end():
    unlimited, limited = (
        only(product(1024, 1024, 1024), machine(replace(CARD, buffer_bytes=b)))
        for b in (math.inf, 128 * 1024.0)
    )
    assert term(unlimited, "dram").amount == 3 * 2 * 1024**2
    # 128 x 256 and two SMs that share: columns in 4 tiles, rows in 4 pairs
    assert term(limited, "dram").amount == (4 + 4 + 1) * 2 * 1024**2


# --- photonic units -------------------------------------------------------------------------------


def test_a_dot_product_unit():
    found = only(product(10, 20, 30), machine(UNIT))
    assert term(found, "phu").time_s == pytest.approx(22 * 20 * 1e-9)  # ceil(ceil(300 / 7) / 2) * 20
    assert term(found, "phu.dac").amount == 200 + 600
    assert term(found, "phu.adc").amount == 300
    assert term(found, "phu.fill").time_s == pytest.approx(3e-9)
    assert found.time_s == pytest.approx(440e-9 + 3e-9)
    assert found.energy_j == pytest.approx((600 + 8000 + 900 + 1600 * 20 + 600 * 10) * 1e-12)


def test_a_dot_product_unit_converts_again_what_it_reads_again():
    found = only(product(10, 20, 30), machine(replace(UNIT, buffer_bytes=200, buffer_j_per_byte=1e-12)))
    assert term(found, "dram").amount == 1600 + 400 + 600
    assert term(found, "phu.dac").amount == 800 + 200
    assert term(found, "phu.adc").amount == 300
    assert term(found, "phu.buffer").amount == 1600 + 400 + 600


def test_a_unit_that_holds_tiles_of_weights():
    found = candidates(product(10, 20, 30), machine(TILES))
    held, turned = found["phu.matmul"].estimates, found["phu.matmul.turned"].estimates
    # 3 x 2 tiles on 2 cores: 3 rounds of 3 passes
    assert term(held, "phu", Cause.COMPUTE).time_s == pytest.approx(9e-9)
    assert term(held, "phu.dac").amount == 10 * 20 * 2
    assert term(held, "phu.adc").amount == 10 * 30 * 3
    assert term(held, "phu", Cause.PROGRAM).time_s == pytest.approx(3e-8)
    assert term(held, "phu", Cause.PROGRAM).energy_j == pytest.approx(600e-12)
    assert term(held, "phu.fill").time_s == pytest.approx(3 * 3e-9)
    # holding the 20 x 10 inputs: 3 x 1 tiles, 2 rounds of ceil(30 / 4) passes
    assert term(turned, "phu", Cause.COMPUTE).time_s == pytest.approx(16e-9)
    assert term(turned, "phu", Cause.PROGRAM).amount == 200
    assert term(turned, "phu.dac").amount == 30 * 20


def test_sums_of_tiles_pass_the_buffer_or_the_memory():
    small = replace(TILES, buffer_bytes=8.0, buffer_j_per_byte=1e-12)
    large = replace(small, buffer_bytes=1e9)
    spills, stays = (
        candidates(product(10, 20, 30), machine(d))["phu.matmul"].estimates for d in (small, large)
    )
    sums_bytes = 10 * 30 * 2 * 4  # all but one of three, f32
    again = term(only(product(10, 20, 30), machine(replace(HOST, buffer_bytes=8.0))), "dram").amount - 2200
    assert term(spills, "dram").amount - term(stays, "dram").amount == pytest.approx(2 * sums_bytes + again)
    # 400 numbers from DACs, 600 weights, 900 from ADCs, of 2 bytes each, and the sums
    assert term(stays, "phu.buffer").energy_j == pytest.approx((1900 * 2 + 2 * sums_bytes) * 1e-12)


def test_a_unit_that_modulates_both_operands():
    found = only(product(10, 20, 30), machine(replace(TILES, dynamic=True, broadcast=2)))
    assert term(found, "phu.dac").amount == 10 * 20 * 1 + 600 * 3
    assert not [t for t in found.terms if t.cause is Cause.PROGRAM]
    assert term(found, "phu.fill").time_s == pytest.approx(3e-9)


def test_sums_in_analog_are_converted_once():
    found = candidates(product(10, 20, 30), machine(replace(TILES, analog_sums=3)))
    assert term(found["phu.matmul"].estimates, "phu.adc").amount == 300


@pytest.mark.parametrize(("dac_rate", "adc_rate", "slowest"), [(2e8, 1e9, 5.0), (1e9, 1e8, 10.0)])
def test_converters_may_be_slower_than_the_clock(dac_rate, adc_rate, slowest):
    dac, adc = replace(UNIT.dac, samples_per_s=dac_rate), replace(UNIT.adc, samples_per_s=adc_rate)
    on = machine(replace(TILES, dynamic=True, dac=dac, adc=adc), memories=FAST)
    assert only(product(10, 20, 30), on).time_s == pytest.approx(9e-9 * slowest + 3e-9)


def test_a_causal_mask_spares_what_it_hides():
    full = product(64, 8, 64, batch=2, weights=INPUT)
    half = product(64, 8, 64, batch=2, skipped=2 * 8 * 64 * 32, weights=INPUT)
    for device in (HOST, UNIT, TILES):
        a, b = (
            min(c.estimates.time_s[0] for c in candidates(w, machine(device)).values()) for w in (half, full)
        )
        assert a < b
    assert term(only(half, machine(UNIT)), "phu").amount == 2 * 8 * 64 * 32


def test_a_unit_of_light_does_products_only():
    assert not candidates(elementwise("add", 10, 10), machine(UNIT))
    work = product(10, 20, 30).works[0]
    assert can_do(work)
    assert not can_do(replace(work, flop=work.flop + 300))  # with something fused behind it


# --- limits --------------------------------------------------------------------------------------


HONEST = read_machine("lightcode-honest")


@given(
    st.sampled_from(["h100", "lightcode-honest", "lightening-transformer", "lightmatter-2025"]),
    st.sampled_from([(768, 50257), (64, 64), (4096, 4097)]),
    st.booleans(),
)
def test_longer_costs_no_less(name, size, attends):
    k, n = size
    workload = product(L, k, L if attends else n, weights=INPUT if attends else WEIGHT)
    for candidate in candidates(workload, read_machine(name), {"L": np.arange(1, 3000)}).values():
        time_s, energy_j = candidate.estimates.time_s, candidate.estimates.energy_j
        assert (np.diff(time_s) >= -1e-12 * time_s[1:]).all(), candidate.name
        if candidate.device != "gpu":  # whose fastest tiles are not always those that read least
            assert (np.diff(energy_j) >= -1e-12 * energy_j[1:]).all(), candidate.name


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", list(SHAPES))
def test_every_op_of_every_model_is_estimated(model, phase, granularity):
    workload = model_workload(shape_config(model), phase, granularity=granularity)
    check_all(workload)


@pytest.mark.parametrize("name", ["gpt2_prefill", "gpt2_decoder", "llama-2-7b_prefill"])
def test_every_op_of_relay_graphs_is_estimated(name):
    check_all(read_relay(RELAY / f"{name}_graph.json.gz"))


def check_all(workload: Workload) -> None:
    points = {dim.name: np.array([dim.lo, min(dim.hi, 100)]) for dim in workload.dims}
    graph = stacked_graph(workload, HONEST, points)
    for work, stack in zip(workload.works, graph.stacks, strict=True):
        devices = {c.device for c in stack}
        assert devices == ({"cpu", "gpu", "phu"} if can_do(work) else {"cpu", "gpu"}), work.name
        for candidate in stack:
            e = candidate.estimates
            assert np.isfinite(e.time_s).all()
            assert (e.time_s >= max((t.time_s for t in e.terms), key=np.sum, default=np.zeros(2))).all()
            assert e.energy_j == pytest.approx(sum((t.energy_j for t in e.terms), np.zeros(2)))
            assert e.terms or work.op in ("nop", "reshape"), work.name


def test_equal_layers_are_costed_once(monkeypatch):
    calls = []
    cost = PROFILES["physical"].candidates

    def counted(on, workload, work, points):
        calls.append(work.name)
        return cost(on, workload, work, points)

    monkeypatch.setattr(PROFILES["physical"], "candidates", counted)
    workload = model_workload(shape_config("llama-2-7b"), "prefill", max_context=131072)
    stacked_graph(workload, read_machine("h100"), {"L": np.array([512])})
    assert len(workload.works) > 500
    assert len(calls) < 30


# --- moves ----------------------------------------------------------------------------------------

LINK = Link(name="pcie", ends=("dram", "hbm"), bandwidth_bytes_per_s=2e9, latency_s=5e-6, j_per_byte=40e-12)
HBM = replace(DRAM, name="hbm", bandwidth_bytes_per_s=1e12, read_j_per_byte=4e-12, write_j_per_byte=5e-12)
JOINED = Machine([replace(HOST, memory="sram")], memories=(DRAM, SRAM, HBM), links=(LINK,), home="dram")


def move(source: str | None, to: str, kind: ValueKind = RESULT) -> Estimates | None:
    return PROFILES["physical"].move(
        JOINED, Value("v", (L, 100), 8, kind), source, to, {"L": np.array([1, 10])}
    )


def test_a_move_takes_latency_and_the_slowest_part_of_its_way():
    found = move("sram", "hbm")
    assert found is not None
    assert found.time_s == pytest.approx([5e-6 + 100 / 2e9, 5e-6 + 1000 / 2e9])
    # read in SRAM, through DRAM, over the link, into HBM
    assert found.energy_j == pytest.approx(np.array([100, 1000]) * (1 + 10 + 20 + 40 + 5) * 1e-12)


def test_moves_that_cost_nothing():
    assert move("dram", "dram") is None
    assert move(None, "dram") is None
    assert move(None, "hbm", WEIGHT) is None  # streams with the op that reads it
    assert move(None, "hbm", ValueKind.STATE) is None
    assert move(None, "hbm", INPUT) is not None


def test_routes_are_the_shortest():
    assert [m.name for _, m in route(JOINED, "sram", "hbm")] == ["dram", "hbm"]
    assert route(JOINED, "hbm", "hbm") == ()
    short = Machine(
        [HOST], memories=(DRAM, SRAM, HBM), links=(LINK, replace(LINK, name="direct", ends=("sram", "hbm")))
    )
    assert [(link and link.name, m.name) for link, m in route(short, "hbm", "sram")] == [("direct", "sram")]


def test_memories_that_nothing_connects():
    apart = Machine([HOST], "apart", memories=(DRAM, HBM))
    with pytest.raises(
        UserError, match="machine apart: nothing connects the memories dram and hbm; add a link"
    ):
        route(apart, "dram", "hbm")


# --- functions of the user ------------------------------------------------------------------------


def fixed(time_s: float, energy_j: float = 0.0):
    def cost(device, machine, workload, work, points):
        return Estimates(np.full(1, time_s), np.full(1, energy_j))

    return cost


def test_functions_of_the_user_come_first():
    costs = [op_cost(CPU, "matmul")(fixed(1.0, 2.0)), op_cost(PHU, "add")(fixed(3.0))]
    host = machine(HOST).with_costs(costs)
    assert only(product(10, 20, 30), host).time_s == 1.0
    assert only(elementwise("add", 10, 10), machine(UNIT).with_costs(costs)).time_s == 3.0
    assert only(product(10, 20, 30), host.with_costs([op_cost("cpu", "matmul")(fixed(4.0))])).time_s == 4.0
    assert only(product(10, 20, 30), machine(HOST)).time_s < 1.0  # another machine knows nothing of them


def test_the_name_of_a_device_counts_before_its_class():
    costs = [op_cost("big", "matmul")(fixed(2.0)), op_cost(CPU, "matmul")(fixed(1.0))]
    both = candidates(product(10, 20, 30), machine(HOST, replace(HOST, name="big")).with_costs(costs))
    assert {n: c.estimates.time_s[0] for n, c in both.items()} == {"cpu.matmul": 1.0, "big.matmul": 2.0}


def test_a_function_may_say_that_a_device_cannot():
    host = machine(HOST).with_costs([op_cost(CPU, "matmul")(lambda *_: None)])
    assert not candidates(product(10, 20, 30), host)
    with pytest.raises(UserError, match="no device of machine custom can do the op 'matmul'"):
        stacked_graph(product(10, 20, 30), host, ONE)


def test_classes_of_the_user():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Loom(Device):
        threads: int = 1

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Big(CPU):
        pass

    assert not candidates(product(10, 20, 30), machine(Loom(clock_hz=1e9)))
    costs = [op_cost(Loom, "matmul")(fixed(1.0))]
    assert only(product(10, 20, 30), machine(Loom(clock_hz=1e9)).with_costs(costs)).time_s == 1.0
    big = machine(Big(clock_hz=1e9)).with_costs(costs)
    assert only(product(10, 20, 30), big).time_s < 1.0  # a CPU is a CPU
    big = big.with_costs([op_cost(CPU, "matmul")(fixed(5.0))])
    assert only(product(10, 20, 30), big).time_s == 5.0


def test_a_device_with_ops_does_only_these():
    assert not candidates(product(10, 20, 30), machine(replace(HOST, ops=("add",))))
    assert candidates(elementwise("add", 10, 10), machine(replace(HOST, ops=("add",))))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (3.0, "cost of matmul on cpu: got float; expected Estimates, or None"),
        (Estimates(np.zeros(2), np.zeros(1)), "cost of matmul on cpu: time_s: got shape (2,); expected (1,)"),
        (
            Estimates(np.zeros(1), np.float64(0)),
            "cost of matmul on cpu: energy_j: got shape (); expected (1,)",
        ),
        (
            Estimates(-np.ones(1), np.zeros(1)),
            "cost of matmul on cpu: time_s: got -1.0; expected numbers >= 0",
        ),
        (Estimates(np.ones(1), np.full(1, np.nan)), "energy_j: got nan; expected numbers >= 0"),
    ],
)
@pytest.mark.parametrize("profile", ["fitted", "lightcode", "physical"])
def test_functions_that_say_nonsense(result, message, profile):
    cost = op_cost(CPU, "matmul")(lambda *_: result)
    host = Machine([CPU(clock_hz=1e9)], profile=profile, costs=[cost])
    with pytest.raises(UserError, match=re.escape(message)):
        stacked_graph(product(10, 20, 30), host, ONE)
