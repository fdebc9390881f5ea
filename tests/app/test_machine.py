"""The kernels that measure the machine compute what their timing assumes."""

import ml_dtypes
import numpy as np
import pytest

from strata.app import machine
from strata.app.machine import CHAINS, CHUNK_ELEMS, bandwidth_func, measure_bandwidth, measure_peak, peak_func
from strata.codegen.build import build_image
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.target import TARGETS, detect_host

LANES = detect_host().lanes_f32


@pytest.fixture(scope="module")
def image():
    target = detect_host()
    funcs = [bandwidth_func(LANES), peak_func(LANES, False)]
    if target.has_bf16_dot:
        funcs.append(peak_func(LANES, True))
    return load_image(build_image(funcs, [], target).blob, 2)


def test_bandwidth_kernel_reads_every_element(image):
    x = np.arange(3 * CHUNK_ELEMS, dtype=np.float32).reshape(3, CHUNK_ELEMS) % 251
    y = np.full((3, 4 * LANES), np.nan, np.float32)
    image.function("bandwidth")(as_tensor(x), as_tensor(y))
    want = x.reshape(3, -1, 4 * LANES).sum(axis=1)  # small integers: sums are exact
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_peak_kernel_does_every_multiply_add(image, dtype):
    is_bf16 = dtype == "bf16"
    if is_bf16 and not detect_host().has_bf16_dot:
        with pytest.raises(AttributeError):
            image.function("peak_bf16")
        return
    wide = 2 * LANES if is_bf16 else LANES
    rounds, tasks = 7, 3
    x = np.stack([np.arange(wide) % 5 + 1, np.arange(wide) % 3 - 1])
    r, y = np.zeros(rounds, np.float32), np.full((tasks, CHAINS * LANES), np.nan, np.float32)
    values = x.astype(ml_dtypes.bfloat16 if is_bf16 else np.float32)
    image.function(f"peak_{dtype}")(*map(as_tensor, (values, r, y)))
    product = x[0] * x[1]
    per_round = product.reshape(LANES, 2).sum(axis=1) if is_bf16 else product
    np.testing.assert_array_equal(y, np.tile(rounds * per_round, (tasks, CHAINS)))


def test_measurements(monkeypatch):
    """Rates follow from the amounts of work: bytes of the buffer, two flop per multiply-add."""
    amounts = []

    def rate(amount, run, repeats):
        run()
        amounts.append(amount)
        return amount * 2.0

    monkeypatch.setattr(machine, "_median_rate", rate)
    assert measure_bandwidth(1, num_bytes=4 << 20) == 2 * (4 << 20)
    f32 = measure_peak(1, "f32")
    assert f32 == 2 * (2.0 * LANES * CHAINS * machine.ROUNDS * machine.TASKS_PER_THREAD)
    bf16 = measure_peak(1, "bf16")
    assert bf16 == (2 * f32 if detect_host().has_bf16_dot else None)
    assert amounts[0] == 4 << 20


def test_median_rate():
    calls = []
    assert machine._median_rate(10.0, lambda: calls.append(1), 3) > 0
    assert len(calls) == 4  # one to warm up


def test_peak_without_the_instruction(monkeypatch):
    monkeypatch.setattr(machine, "detect_host", lambda: TARGETS["avx2"])
    assert measure_peak(1, "bf16") is None
