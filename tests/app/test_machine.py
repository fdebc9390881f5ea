"""The kernels that measure the machine compute what their timing assumes."""

import numpy as np
import pytest

from strata.app import machine
from strata.app.machine import (
    CHAINS,
    CHUNK_ELEMS,
    PEAKS,
    bandwidth_func,
    measure_bandwidth,
    measure_ceilings,
    measure_peak,
    measure_sustained_peak,
    peak_func,
    tile_peak_func,
)
from strata.codegen.build import build_image
from strata.core.errors import UserError
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor, numpy_dtype
from strata.target import TARGETS, detect_host

LANES = detect_host().lanes_f32


@pytest.fixture(scope="module")
def image():
    target = detect_host()
    names = [name for name, peak in PEAKS.items() if peak.exists(target)]
    funcs = [bandwidth_func(LANES, 1024), *(peak_func(LANES, name) for name in names)]
    return load_image(build_image(funcs, [], target).blob, 2)


def test_bandwidth_kernel_reads_every_element(image):
    x = np.arange(3 * CHUNK_ELEMS, dtype=np.float32).reshape(3, CHUNK_ELEMS) % 251
    y = np.full((3, 4 * LANES), np.nan, np.float32)
    image.function("bandwidth")(as_tensor(x), as_tensor(y))
    want = x.reshape(3, -1, 4 * LANES).sum(axis=1)  # small integers: sums are exact
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("name", list(PEAKS))
def test_peak_kernel_does_every_multiply_add(image, name):
    peak = PEAKS[name]
    if not peak.exists(detect_host()):
        with pytest.raises(UserError, match="expected one of bandwidth"):
            image.function(f"peak_{name}")
        return
    wide = peak.products * LANES
    rounds, tasks = 7, 3
    x, y = np.arange(wide)[None] % 5 + 1, np.arange(wide)[None] % 3
    r, z = np.zeros(rounds, np.float32), np.full((tasks, CHAINS * LANES), -1, numpy_dtype(peak.sums.name))
    factors = [v.astype(numpy_dtype(d.name)) for v, d in zip((x, y), peak.operands, strict=True)]
    image.function(f"peak_{name}")(*map(as_tensor, (*factors, r, z)))
    per_round = (x * y).reshape(LANES, peak.products).sum(axis=1)
    np.testing.assert_array_equal(z, np.tile(rounds * per_round, (tasks, CHAINS)))


@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_tile_peak_kernel_does_every_multiply_add(name, pairs):
    """On a machine without a matrix unit too: there the tiles are loops."""
    func, target, rounds = tile_peak_func(name, pairs), detect_host(), 5
    *factors, _, sums = func.params
    x, w = (
        (np.arange(np.prod(f.shape)).reshape(f.shape) % k - 2).astype(numpy_dtype(f.dtype.name))
        for f, k in zip(factors, (5, 7), strict=True)
    )
    z = np.full((3, *sums.shape[1:]), -1, numpy_dtype(sums.dtype.name))
    image = load_image(build_image([func], [], target).blob, 2)
    image.function(func.name)(*map(as_tensor, (x, w, np.zeros(rounds, np.float32), z)))
    group = PEAKS[name].products
    columns = w.astype(np.int64).reshape(pairs, 16, 32, group).transpose(0, 1, 3, 2).reshape(pairs, -1, 32)
    products = x.astype(np.int64) @ columns
    np.testing.assert_array_equal(z, np.tile(sum(products[i % pairs] for i in range(rounds)), (3, 1, 1)))


def test_measurements(monkeypatch):
    """Rates follow from the amounts of work: bytes of the buffer, two flop per multiply-add."""
    amounts = []

    def rate(amount, run, repeats):
        run()
        amounts.append(amount)
        return [amount * 1.0, amount * 2.0, amount * 2.0]

    monkeypatch.setattr(machine, "_rates", rate)
    assert measure_bandwidth(1, num_bytes=4 << 20) == 2 * (4 << 20)
    f32 = measure_peak(1, "f32")
    assert f32 == 2 * (2.0 * LANES * CHAINS * machine.ROUNDS * machine.TASKS_PER_THREAD)
    host, tiles = detect_host(), 2 * (2.0 * 32 * 32 * 16 * machine.ROUNDS * machine.TASKS_PER_THREAD)
    bf16, int8 = (2 * tiles, 4 * tiles) if host.has_matrix_bf16 else (2 * f32, 4 * f32)
    assert measure_peak(1, "bf16") == (bf16 if host.multiplies_bf16_pairs else None)
    assert measure_peak(1, "int8") == (int8 if host.has_int8_dot else None)
    assert amounts[0] == 4 << 20


def test_rates_are_taken_after_a_warm_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(machine, "WARM_UP_S", 2.5)  # the clock is read before it, and after each run
    calls = []
    assert machine._rates(10.0, lambda: calls.append(1), 3) == [10.0, 10.0, 10.0]
    assert len(calls) == 3 + 3


def test_a_sustained_peak_is_all_flop_over_all_time(monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 7.0, 8.0])  # of three runs, the second one is disturbed
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    calls = []
    monkeypatch.setattr(machine, "_peak_loop", lambda threads, name: (16.0, lambda: calls.append(1)))
    assert measure_sustained_peak(1, "f32", duration_s=7.5) == 3 * 16 / 8
    assert len(calls) == 1 + 3


def test_peak_without_the_instruction(monkeypatch):
    monkeypatch.setattr(machine, "detect_host", lambda: TARGETS["avx2"])
    assert measure_peak(1, "bf16") is None
    assert measure_peak(1, "int8") is None
    assert measure_sustained_peak(1, "int8") is None


def test_all_ceilings(monkeypatch):
    monkeypatch.setattr(machine, "measure_peak", lambda threads, name, repeats: {"f32": 1e9}.get(name))
    monkeypatch.setattr(machine, "measure_bandwidth", lambda threads, size, repeats: 2e9)
    found = measure_ceilings(2)
    assert (found.flop_per_s, found.bytes_per_s, found.source) == ({"f32": 1e9}, 2e9, "measured")
