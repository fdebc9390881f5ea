"""The machines that come with Strata: what their numbers come to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from single_works import INPUT, WEIGHT, L, elementwise, product, term

from strata.core.dims import evaluate
from strata.graph.workload import Work, Workload
from strata.models import shape_config
from strata.models.workload import model_workload
from strata.planner.devices.build import stacked_graph
from strata.target.hardware import Machine, read_machine

# --- what LightCode forgot ------------------------------------------------------------------------

HONEST = read_machine("lightcode-honest")
CROSSOVERS = {
    "gpt2 head": (768, 50257, 390),
    "gpt2 fc": (768, 3072, 443),
    "gpt2 qkv": (768, 2304, 465),
    "gpt2 mlp proj": (3072, 768, 628),
    "gpt2 attention proj": (768, 768, 779),
    "llama head": (4096, 32000, 346),
    "llama up": (4096, 11008, 354),
    "llama down": (11008, 4096, 367),
    "llama q": (4096, 4096, 374),
}


def bare(on: Machine, **changes) -> Machine:
    """A machine without static power and without reading anything again."""
    free = [replace(d, static_w=0.0, busy_w=0.0, buffer_bytes=math.inf) for d in on.devices]
    return Machine(free, memories=on.memories, home=on.home)


def first_win(on: Machine, k: int, n: int) -> int | None:
    """The least length from which on light draws less than any electronic device."""
    points = {"L": np.arange(1, 4097)}
    stack = stacked_graph(product(L, k, n, bits=8), on, points).stacks[0]
    energy = {c.device: c.estimates.energy_j for c in stack}
    wins = np.flatnonzero(energy["phu"] < np.minimum(energy["gpu"], energy["cpu"]))
    return int(points["L"][wins[0]]) if len(wins) else None


@pytest.mark.parametrize("name", CROSSOVERS)
def test_with_conversions_charged_light_wins_from_these_lengths_on(name):
    k, n, length = CROSSOVERS[name]
    assert first_win(bare(HONEST), k, n) == length


@pytest.mark.parametrize("name", CROSSOVERS)
def test_with_static_power_charged_it_never_wins(name):
    k, n, _ = CROSSOVERS[name]
    assert first_win(HONEST, k, n) is None


@pytest.mark.parametrize("name", CROSSOVERS)
def test_nor_if_its_operands_are_modulated_anew_in_every_cycle(name):
    k, n, _ = CROSSOVERS[name]
    cpu, gpu, phu = bare(HONEST).devices
    cycle = replace(
        phu, rows=1, cols=5, multiplex=4, dynamic=True, analog_sums=1 << 20
    )  # 20 products, as before
    assert first_win(Machine([cpu, gpu, cycle], memories=HONEST.memories, home=HONEST.home), k, n) is None


def test_all_devices_read_again_what_their_local_memory_does_not_hold():
    points, again = {"L": np.array([1024])}, {}
    for on in (HONEST, bare(HONEST)):
        for c in stacked_graph(product(L, 4096, 4096, bits=8), on, points).stacks[0]:
            again.setdefault(c.device, []).append(term(c.estimates, "sram").amount[0])
    assert set(again) == {"cpu", "gpu", "phu"}
    assert all(finite > unlimited for finite, unlimited in again.values())
    assert HONEST.device("phu").buffer_bytes == HONEST.device("gpu").buffer_bytes


def test_attention_in_light_never_wins():
    """Scores of one head of GPT-2: both operands are converted for 64 products each."""
    points = {"L": np.arange(1, 4097)}
    stack = stacked_graph(product(L, 64, L, bits=8, batch=12, weights=INPUT), bare(HONEST), points).stacks[0]
    energy = {c.device: c.estimates.energy_j for c in stack}
    assert (energy["phu"] > energy["gpu"]).all()


# --- limits ---------------------------------------------------------------------------------------


def llama(phase: str):
    return model_workload(shape_config("llama-2-7b"), phase, max_context=131072)


def total(workload: Workload, on: Machine, length: int, wanted) -> tuple[float, float]:
    """Time of the works that are wanted, and what ``wanted`` counts of them."""
    graph = stacked_graph(workload, on, {"L": np.array([length])})
    time_s = amount = 0.0
    for work, stack in zip(workload.works, graph.stacks, strict=True):
        if count := wanted(work):
            time_s += min(float(c.estimates.time_s[0]) for c in stack)
            amount += count
    return time_s, amount


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_long_prefill_approaches_the_peak(name):
    workload = llama("prefill")
    rates = []
    for length in (128, 1024, 8192):

        def macs(work: Work, at: int = length) -> float:
            weights = any(workload.values[k].kind is WEIGHT for k in work.inputs)
            return evaluate(work.contraction.macs, {"L": at}) if work.contraction and weights else 0

        time_s, count = total(workload, read_machine(name), length, macs)
        rates.append(2 * count / time_s)
    assert rates == sorted(rates)
    assert 0.9 * 989.4e12 < rates[-1] < 989.4e12


def power_w(workload: Workload, on: Machine, lengths) -> np.ndarray:
    """What a machine of one GPU draws during a work, static power included, W ``[P]``."""
    (candidate,) = stacked_graph(workload, on, {"L": np.array(lengths)}).stacks[0]
    return candidate.estimates.energy_j / candidate.estimates.time_s


BOARD_W = 700.0  # datasheets of the H100 and H200 (SXM), maximum thermal design power


def test_h100_and_h200_are_one_chip():
    assert read_machine("h200").device("gpu") == read_machine("h100").device("gpu")


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_products_at_peak_draw_what_the_datasheet_allows(name):
    on = read_machine(name)
    large = power_w(product(L, L, L), on, [256, 1024, 4096, 8192, 16384, 32768, 65536])
    assert large.max() <= BOARD_W
    assert large[4] == pytest.approx(BOARD_W, rel=1e-3)  # the product of which j_per_mac is derived
    for k, n in ((4096, 4096), (4096, 11008), (16384, 16384), (4096, 128256)):
        assert power_w(product(L, k, n), on, range(1, 4096)).max() < 1.14 * BOARD_W


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_streams_draw_what_was_measured(name):
    """The fit that the source of ``l2.read_j_per_byte`` names: 105 W and 122.4 pJ per byte from HBM."""
    on = read_machine(name)
    (found,) = power_w(product(L, 65536, 65536), on, [1])
    assert found == pytest.approx(105 + 122.4e-12 * on.memory("hbm").bandwidth_bytes_per_s, rel=0.03)
    assert found < BOARD_W
    assert power_w(elementwise("add", L * 4096, L * 4096), on, [256, 4096, 65536]).max() < BOARD_W


@pytest.mark.parametrize(("name", "bytes_per_s"), [("h100", 3.35e12), ("h200", 4.8e12)])
def test_decode_approaches_the_bandwidth(name, bytes_per_s):
    workload = llama("decode")

    def streamed(work: Work) -> float:
        return sum(
            evaluate(n, {"L": 100}) * workload.values[k].bits / 8
            for k, n in zip(work.inputs, work.reads, strict=True)
            if workload.values[k].kind is WEIGHT
        )

    time_s, count = total(workload, read_machine(name), 100, streamed)
    assert 0.75 * bytes_per_s < count / time_s < bytes_per_s  # the rest is launches
