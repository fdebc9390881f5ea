"""The fit of measured kernels, on times that we know the law of."""

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload
from strata.planner.devices.build import stacked_graph
from strata.planner.profiles.fitted import Amounts, Sample, fit, predict, predict_parts
from strata.target.hardware import Machine, Memory
from strata.target.hardware.fitted import Family, FittedCPU, Knot

LAUNCH_S, READS, BYTE_S, FLOP_S = 3e-6, 1.25, 2e-11, 1e-13
COMPUTES_FROM = 256  # rows from which on no kernel waits for its weights


def law(rows, weight_s, bytes, flop):
    waits_s = weight_s * READS if rows < COMPUTES_FROM else 0.0
    return LAUNCH_S + waits_s + bytes * BYTE_S + flop * FLOP_S


def amounts(rows, weight_s, bytes, flop):
    return Amounts(*(np.array([float(x)]) for x in (rows, weight_s, bytes, flop)))


def samples(op="matmul", rows=(1, 16, 256), noise=0.0):
    rng = np.random.default_rng(0)
    for r in rows:
        for k in range(1, 9):
            bandwidth = 65e9 if k % 2 else 36e9  # as memory had it when the sample was taken
            weight_s, bytes, flop = 1e6 * k / bandwidth, 1e3 * r * (1 + k % 5), 2e6 * k * r * (1 + k % 3)
            time_s = law(r, weight_s, bytes, flop) * (1 + noise * rng.standard_normal())
            yield Sample(op, "k", 16, r, weight_s, bytes, flop, time_s)


def test_coefficients_come_back_from_exact_times():
    (family,) = fit(samples())
    assert family.samples == 24
    assert family.error == pytest.approx(0, abs=1e-9)
    for knot in family.knots:
        found = (knot.launch_s, knot.weight_reads, knot.s_per_byte, knot.s_per_flop)
        reads = READS if knot.rows < COMPUTES_FROM else 0.0
        assert found == pytest.approx((LAUNCH_S, reads, BYTE_S, FLOP_S))


def test_between_two_knots_the_time_lies_between_and_follows_the_law():
    (family,) = fit(samples(rows=(4, 8, 16)))
    of = (1e-4, 5e5, 1e8)
    assert predict(family, amounts(12, *of)) == pytest.approx(law(12, *of))


def test_beyond_the_last_knot_the_last_rates_hold():
    (family,) = fit(samples())
    of = (1e-4, 5e6, 1e10)
    assert predict(family, amounts(4096, *of)) == pytest.approx(law(4096, *of))


def test_computing_is_not_taken_for_reading_though_flop_and_weights_go_together():
    rows, s_per_flop = 200, 1e-11
    of_widths = [(1e6 * k / 33e9, 1e4 * k**0.5, 1e6 * k * rows) for k in (2, 3, 5, 8, 12)]
    rng = np.random.default_rng(1)
    (family,) = fit(
        Sample("matmul", "k", 16, rows, *of, time_s=of[2] * s_per_flop * (1 + 0.02 * rng.standard_normal()))
        for of in of_widths
    )
    weight_s, bytes, flop = of_widths[2]
    slow, fast = (predict(family, amounts(rows, s, bytes, flop)) for s in (weight_s, weight_s / 2))
    assert fast == slow
    assert slow == pytest.approx(flop * s_per_flop, rel=0.03)


def test_parts_are_those_of_the_law_and_add_up():
    (family,) = fit(samples(rows=(4, 16)))
    of = (1e-4, 5e5, 1e8)
    for rows in (1, 4, 13, 16, 100):
        parts = predict_parts(family, amounts(rows, *of))[:, 0]
        assert parts == pytest.approx([LAUNCH_S, of[0] * READS, of[1] * BYTE_S + of[2] * FLOP_S])
        assert parts.sum() == pytest.approx(predict(family, amounts(rows, *of))[0])


def test_noise_shows_as_the_error_of_the_fit():
    (family,) = fit(samples(noise=0.1))
    assert 0.03 < family.error < 0.2
    assert all(min(k.launch_s, k.weight_reads, k.s_per_byte, k.s_per_flop) >= 0 for k in family.knots)


def test_a_negative_slope_is_not_fitted():
    falling = [Sample("add", "k", 0, 1, 0.0, 1e6 * k, 1.0, 1e-3 / k) for k in range(1, 5)]
    (family,) = fit(falling)
    assert family.knots[0].s_per_byte == 0
    assert family.error > 0.1


def test_one_sample_is_met():
    (family,) = fit([Sample("add", "k", 0, 4, 0.0, 1e6, 1e6, 2e-5)])
    assert predict(family, amounts(4, 0, 1e6, 1e6)) == pytest.approx(2e-5)


def knot(rows):
    return Knot(rows=rows, launch_s=1e-6, weight_reads=0.0, s_per_byte=0.0, s_per_flop=0.0)


@pytest.mark.parametrize("rows", [(), (4, 2), (2, 2)])
def test_knots_ascend(rows):
    with pytest.raises(UserError, match=r"family add: knots: got rows .*; expected ascending numbers"):
        Family(op="add", weight_bits=0, knots=tuple(knot(r) for r in rows))


def product(bits):
    n = SymDim("L", 1, 512)
    values = (
        Value("x", (n, 64), 32, ValueKind.INPUT),
        Value("w", (32, 64), bits, ValueKind.WEIGHT),
        Value("y", (n, 32), 32, ValueKind.RESULT),
    )
    work = Work("up", "matmul", (0, 1), (n * 64, 64 * 32), (2,), 2 * n * 64 * 32, Contraction(1, n, 32, 64))
    return Workload("product", values, (work,), (n,))


def machine(*families):
    dram = Memory(
        name="dram", capacity_bytes=1e9, bandwidth_bytes_per_s=1e9, read_j_per_byte=0, write_j_per_byte=0
    )
    return Machine([FittedCPU(clock_hz=1e9, families=families)], profile="fitted", memories=[dram])


def constant(time_s):
    return Knot(rows=1, launch_s=time_s, weight_reads=0, s_per_byte=0, s_per_flop=0)


def test_kernels_are_costed_by_the_family_of_their_weights():
    families = [
        Family(op="matmul", weight_bits=bits, knots=(constant(t),)) for bits, t in ((16, 1e-3), (4, 2e-3))
    ]
    for bits, time_s in ((16, 1e-3), (4.5, 2e-3)):
        graph = stacked_graph(product(bits), machine(*families), {"L": np.array([1, 7])})
        ((candidate,),) = graph.stacks
        assert candidate.estimates.time_s == pytest.approx([time_s, time_s])
        assert candidate.estimates.source == "measured"


def test_an_op_without_a_family_takes_the_one_for_everything_or_is_refused():
    knot = Knot(rows=1, launch_s=0, weight_reads=3, s_per_byte=1e-9, s_per_flop=0)
    anything = Family(op="*", weight_bits=0, knots=(knot,))
    graph = stacked_graph(product(16), machine(anything), {"L": np.array([2])})
    ((candidate,),) = graph.stacks
    assert candidate.estimates.time_s == pytest.approx((2 * 64 * 4 + 3 * 64 * 32 * 2 + 2 * 32 * 4) * 1e-9)
    assert candidate.estimates.source == "model"
    with pytest.raises(UserError, match="no device of machine custom can do the op 'matmul'"):
        stacked_graph(product(16), machine(), {"L": np.array([2])})
