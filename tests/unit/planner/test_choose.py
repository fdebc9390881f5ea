"""Selection against brute force, and the cost model's shape."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.dims import SymDim
from strata.graph import builder as b
from strata.graph.nodes import Function
from strata.loop.nodes import Func, Seq
from strata.planner.choose import SWITCH_GAIN, Favour, choose
from strata.planner.cost import loop_estimate, matmul_estimate, sample_sizes
from strata.planner.stacks import StackBuilder
from strata.planner.types import Candidate, Choice, Estimate
from strata.runtime.records import DimRange
from strata.target import get_target

TARGET = get_target("zen5")


def candidate(times: list[float], sizes: list[int]) -> Candidate:
    estimates = tuple((s, Estimate(t, 0.0, 0.0, 0.0, "model")) for s, t in zip(sizes, times, strict=True))
    return Candidate("c", Func("c", (), Seq(())), "", estimates=estimates)


def picked(choices: tuple[Choice, ...], size: int) -> int:
    """The candidate that runs for a size, by the rule of the runtime: the first whose ranges hold."""
    return next(c.candidate for c in choices if all(r.lo <= size <= r.hi for r in c.when))


@st.composite
def stacks(draw: st.DrawFn) -> tuple[tuple[Candidate, ...], SymDim, list[int]]:
    lo = draw(st.integers(1, 40))
    dim = SymDim("n", lo, lo + draw(st.integers(0, 3000)))
    sizes = sample_sizes(dim.lo, dim.hi)
    times = st.lists(st.floats(1e-7, 1e-2), min_size=len(sizes), max_size=len(sizes))
    return tuple(candidate(draw(times), sizes) for _ in range(draw(st.integers(1, 4)))), dim, sizes


@given(stacks())
@settings(max_examples=150)
def test_choice_is_within_five_per_cent_of_brute_force(stack):
    candidates, dim, sizes = stack
    choices = choose(candidates, dim)
    for k, size in enumerate(sizes):
        times = [c.estimates[k][1].time_s for c in candidates]
        assert times[picked(choices, size)] <= min(times) * SWITCH_GAIN
    assert choices[-1].when == ()
    ranges = [c.when for c in choices[:-1]]
    assert all(len(r) == 1 and r[0].dim == "n" for r in ranges)
    edges = [dim.lo - 1, *(r[0].hi for r in ranges)]
    assert [r[0].lo for r in ranges] == [e + 1 for e in edges[:-1]]
    assert all(a < c for a, c in itertools.pairwise(edges))
    assert edges[-1] < dim.hi or not ranges
    assert all(a.candidate != c.candidate for a, c in itertools.pairwise(choices))


def test_switches_once_for_a_clear_gain() -> None:
    sizes = [1, 2, 3, 4]
    dim = SymDim("n", 1, 4)
    gemv, tile = candidate([1.0, 2.0, 3.0, 4.0], sizes), candidate([3.0, 3.0, 3.0, 3.0], sizes)
    assert choose((gemv, tile), dim) == (Choice(0, (DimRange("n", 1, 3),)), Choice(1))
    close = candidate([1.0, 1.97, 2.96, 4.0], sizes)
    assert choose((gemv, close), dim) == (Choice(0),)
    later = candidate([1.0, 1.97, 2.96, 3.97], sizes)  # at the last size: for all above it
    assert choose((gemv, later), dim) == (Choice(0, (DimRange("n", 1, 3),)), Choice(1))


def test_favour_for_some_sizes_is_exact_at_its_borders() -> None:
    sizes = [1, 16, 256]
    dim = SymDim("n", 1, 256)
    slow, fast = candidate([9.0, 9.0, 9.0], sizes), candidate([1.0, 1.0, 1.0], sizes)
    wanted = Favour(lambda c, size: c is slow and size is not None and 3 <= size <= 40, (2, 40))
    choices = choose((slow, fast), dim, wanted)
    assert [size for size in range(1, 257) if picked(choices, size) == 0] == list(range(3, 41))
    assert choose((slow, fast), 7, Favour(lambda c, size: c is slow and size == 7)) == (Choice(0),)
    assert choose((slow, fast), 2 * dim, Favour(lambda c, size: c is slow and size == 7)) == (Choice(1),)


def test_without_a_symbolic_dim_the_worst_case_decides() -> None:
    sizes = [1, 100]
    small, large, fair = (candidate(t, sizes) for t in ([1.0, 900.0], [80.0, 100.0], [2.0, 190.0]))
    assert choose((small, large, fair), 2 * SymDim("n", 1, 50)) == (Choice(2),)
    assert choose((small,), SymDim("n", 1, 50)) == (Choice(0),)
    assert choose((candidate([2.0], [7]), candidate([1.0], [7])), 7) == (Choice(1),)


@given(st.integers(1, 5000), st.integers(0, 100_000))
def test_sample_sizes_cover_the_range(lo: int, span: int) -> None:
    sizes = sample_sizes(lo, lo + span)
    assert sizes[-1] == lo + span
    assert set(range(lo, min(lo + span, 16) + 1)) <= set(sizes)
    assert all(a < c for a, c in itertools.pairwise(sizes))
    assert all(c <= math.ceil(a * 2**0.25) + 1 for a, c in itertools.pairwise(sizes) if a >= max(lo, 20))
    assert len(sizes) < 100


SIZES = st.integers(1, 4096)


@given(SIZES, SIZES, SIZES, st.sampled_from([1, 4, 6]), st.booleans())
def test_matmul_cost_grows_with_every_extent(m: int, n: int, k: int, rows: int, dot: bool) -> None:
    def cost(m: int, n: int, k: int) -> Estimate:
        return matmul_estimate(m, n, k, 2.0 * n * k, rows, TARGET, dot)

    base = cost(m, n, k)
    assert base.flop == 2 * m * n * k
    assert base.source == "roofline"
    assert base.time_s > 0
    for other in (cost(m + 1, n, k), cost(m, n + 1, k), cost(m, n, k + 1)):
        assert other.time_s >= base.time_s
        assert other.flop > base.flop
        assert other.read_bytes >= base.read_bytes
        assert other.write_bytes >= base.write_bytes


def test_matmul_cost_is_a_roofline() -> None:
    n = k = 2048
    one = matmul_estimate(1, n, k, 4.0 * n * k, 1, TARGET)
    assert one.time_s == pytest.approx(4.0 * n * k / TARGET.bandwidth_bytes_per_s)
    many = matmul_estimate(6000, n, k, 4.0 * n * k, 6, TARGET)
    assert many.time_s >= many.flop / TARGET.peak_f32_flop_per_s
    assert many.time_s < matmul_estimate(6000, n, k, 4.0 * n * k, 1, TARGET).time_s
    peak = TARGET.peak_bf16_flop_per_s
    assert many.time_s > matmul_estimate(6000, n, k, 2.0 * n * k, 6, TARGET, peak).time_s


def test_cost_of_loops_is_traffic_or_arithmetic() -> None:
    n = SymDim("n", 1, 512)
    x = b.input("x", b.tensor_type((n, 64), "f32"))
    node = b.fused((x,), Function("f", (x,), (b.add(x, 1.0),)))
    kernels = StackBuilder({}, TARGET).kernels_of(node)
    (candidate,) = kernels.stack.candidates
    costs = [loop_estimate(kernels.task, candidate.func, size) for size in (1, 3, 100)]
    assert costs[2].read_bytes == costs[2].write_bytes == 100 * 64 * 4
    assert costs[2].time_s >= 2 * 100 * 64 * 4 / TARGET.bandwidth_bytes_per_s
    assert costs[0].time_s < costs[1].time_s < costs[2].time_s
