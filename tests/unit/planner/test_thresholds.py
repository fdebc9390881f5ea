"""Thresholds of whole plans, against all plans at every length."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from device_graphs import PROFILES, Roofline, Steps, all_totals, chain_workload, machine, roofline_machine

from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.models.shapes import shape_config
from strata.models.workload import model_workload
from strata.planner import thresholds as module
from strata.planner.choose import by_size
from strata.planner.devices.build import Rules, stacked_graph
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import totals
from strata.planner.devices.types import Estimates
from strata.planner.thresholds import EQUAL, plan_ranges, thresholds
from strata.planner.types import Choice
from strata.runtime.records import DimRange
from strata.target.hardware import Machine

SEEDS = range(24)
for seed in SEEDS:
    PROFILES.add(f"test-steps-{seed}", Steps(seed))


def stepped(seed, num_devices=2):
    hardware = machine(num_devices, num_devices)
    return Machine(hardware.devices, f"steps{seed}", f"test-steps-{seed}", hardware.memories)


def at_every_length(ranges, lo, hi):
    """Choices i16 ``[W, N]`` at the lengths ``lo..hi``."""
    which = np.searchsorted(ranges.starts, np.arange(lo, hi + 1), side="right") - 1
    return ranges.choices[which].T


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", ["time", "energy"])
def test_the_plan_is_best_at_every_length_and_changes_only_where_it_has_to(seed, objective):
    workload, hardware, objective = chain_workload("pqr", 2), stepped(seed), parse_objective(objective)
    ranges = plan_ranges(workload, hardware, objective, 3, 90)
    assert ranges.starts[0] == 3
    graph = stacked_graph(workload, hardware, {"L": np.arange(3, 91)})
    _, times_s, energies_j = all_totals(graph)
    best = objective.value(times_s, energies_j).min(0)
    choices = at_every_length(ranges, 3, 90)
    np.testing.assert_allclose(objective.value(*totals(graph, choices)), best, rtol=10 * EQUAL)
    for start, before, after in zip(ranges.starts[1:], ranges.choices, ranges.choices[1:], strict=False):
        kept = objective.value(*totals(graph, np.repeat(before[:, None], graph.num_points, 1)))
        assert kept[start - 3] > best[start - 3] * (1 + EQUAL / 2), "the plan before was as good"
        assert (before != after).any()


def test_some_of_these_change_often():
    counts = [len(thresholds(chain_workload("pqr", 2), stepped(seed), "time", 1, 90)) for seed in SEEDS]
    assert max(counts) > 8
    assert sum(n > 1 for n in counts) > len(counts) / 3


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_portions_change_nothing(seed, monkeypatch):
    workload, hardware = chain_workload("pqr", 3), stepped(seed, 3)
    whole = plan_ranges(workload, hardware, "time", 1, 200)
    monkeypatch.setattr(module, "LENGTHS_AT_ONCE", 7)
    portions = plan_ranges(workload, hardware, "time", 1, 200)
    assert portions.starts == whole.starts
    assert np.array_equal(portions.choices, whole.choices)


def test_devices_that_cost_the_same_make_no_thresholds():
    class Twins(Roofline):
        """Two of everything: which one is used is a matter of rounding."""

        def candidates(self, machine, workload, work, points):
            found = super().candidates(machine, workload, work, points)
            return tuple(c for c in found if c.device != "phu")

    class Alone(Twins):
        def candidates(self, machine, workload, work, points):
            return tuple(c for c in super().candidates(machine, workload, work, points) if c.device != "gpu2")

    PROFILES.add("test-twins", Twins())
    PROFILES.add("test-alone", Alone())
    one = roofline_machine()
    gpus = (*one.devices, type(one.devices[1])(clock_hz=2e9, memory="m1"))
    assert [d.name for d in Machine(gpus, memories=one.memories).devices] == ["cpu", "gpu", "phu", "gpu2"]
    workload = model_workload(shape_config("gpt2-124m"), "prefill")
    with_two, with_one = (
        thresholds(workload, Machine(gpus, "twins", profile, one.memories), "time", hi=1024)
        for profile in ("test-twins", "test-alone")
    )
    assert [t.length for t in with_two] == [t.length for t in with_one]
    assert [[str(c) for c in t.changes] for t in with_two] == [[str(c) for c in t.changes] for t in with_one]
    assert with_one


def test_llama_over_all_lengths_in_words():
    workload = model_workload(shape_config("llama-2-7b"), "prefill", max_context=131072)
    found = thresholds(workload, roofline_machine(), "time")
    texts = {str(change) for t in found for change in t.changes}
    assert "softmax model.layers.*.self_attn.softmax x32: cpu -> gpu" in texts
    assert "take model.embed_tokens: cpu -> gpu" in texts
    assert [t.length for t in found] == sorted({t.length for t in found})


def test_ranges_are_a_dispatch_table():
    ranges = plan_ranges(chain_workload("pqr", 2), stepped(0), "time", 1, 90)
    for work in range(6):
        table = ranges.dispatch(work)
        assert table[-1].when == ()
        for length, expected in zip(range(1, 91), at_every_length(ranges, 1, 90)[work], strict=True):
            first = next(c for c in table if all(r.lo <= length <= r.hi for r in c.when))
            assert first.candidate == expected
        assert all(a.candidate != b.candidate for a, b in itertools.pairwise(table))
    assert by_size("n", 1, [(4, 0), (9, 0), (12, 1), (20, 2)]) == (
        Choice(0, (DimRange("n", 1, 9),)),
        Choice(1, (DimRange("n", 10, 12),)),
        Choice(2),
    )


def test_twice_the_same():
    first, second = (thresholds(chain_workload("pqr", 2), stepped(1), "time", 1, 90) for _ in range(2))
    assert first == second


def test_lengths_in_steps():
    workload = chain_workload("pqr", 1)
    stepping = type(workload)(
        "steps", workload.values, workload.works, (SymDim("L", 1, 4096, multiple_of=8),)
    )
    ranges = plan_ranges(stepping, stepped(0), "time", 1, 90)
    assert all(start % 8 == 0 for start in ranges.starts)


def test_rules_hold_at_all_lengths():
    ranges = plan_ranges(chain_workload("pqr", 2), stepped(0), "time", 1, 90, rules=Rules(pinned={"q": "b"}))
    assert ranges.stacks[1] == (("b", "b.q"),)


def test_refusals():
    workload, hardware = chain_workload("pqr", 1), stepped(0)
    with pytest.raises(UserError, match="thresholds: objective makespan: expected a sum of time and energy"):
        thresholds(workload, hardware, "makespan")
    with pytest.raises(UserError, match=r"L: got the empty range 9\.\.8"):
        thresholds(workload, hardware, "time", 9, 8)
    with pytest.raises(UserError, match="got the free dims none; expected one, the length"):
        thresholds(workload, hardware, "time", at={"L": 3})
    with pytest.raises(UserError, match=r"L: got 1\.\.5000; expected 1\.\.4096"):
        thresholds(workload, hardware, "time", 1, 5000)


def test_candidates_that_come_and_go(monkeypatch):
    class Full(Steps):
        """A third way to do ``p``, good for short lengths only."""

        def candidates(self, machine, workload, work, points):
            found = super().candidates(machine, workload, work, points)
            if work.op != "p":
                return found
            cost = np.where(points["L"] < 20, 0.01, 1e4) * points["L"]
            return (replace(found[0], name="short", estimates=Estimates(cost, cost)), *found)

    class Thrifty(Full):
        """Leaves it out where it is good nowhere."""

        def candidates(self, machine, workload, work, points):
            found = super().candidates(machine, workload, work, points)
            return tuple(c for c in found if c.name != "short" or points["L"][0] < 20)

    PROFILES.add("test-full", Full(1))
    PROFILES.add("test-thrifty", Thrifty(1))
    parts = machine(2, 2)
    full, thrifty = (
        Machine(parts.devices, name, f"test-{name}", parts.memories) for name in ("full", "thrifty")
    )
    workload = chain_workload("pqr", 2)
    whole = plan_ranges(workload, full, "time", 1, 90)
    assert whole.stacks[0][whole.choices[0, 0]][1] == "short"
    for portion in (7, 19, 30):  # 19: it is there to the very last length before it is not offered
        monkeypatch.setattr(module, "LENGTHS_AT_ONCE", portion)
        found = plan_ranges(workload, thrifty, "time", 1, 90)
        assert found.stacks == whole.stacks
        assert found.thresholds() == whole.thresholds()
