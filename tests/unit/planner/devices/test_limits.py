"""Plans within limits, against all plans; what is said where there is none."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from device_graphs import all_totals, layered_graph, machine, random_graph

import strata
from strata.core.errors import UnsupportedError, UserError
from strata.graph.workload import ValueKind
from strata.planner.devices.limits import Budget, Limits, passing_bytes, resident_bytes, uses
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.relax import Relaxation
from strata.planner.devices.result import Slot, totals
from strata.planner.devices.solve import pareto, solve
from strata.planner.devices.weighted import Weighted
from strata.planner.order.occupancy import occupancy
from strata.target.hardware import Machine

CONFLICTED = 48  # a random graph whose front has five vertices and nine plans
OBJECTIVES = [parse_objective(text) for text in ("time", "energy", "0.5*time+2*energy", "edp")]


def check_against_all(graph, limits):
    """Solve for all objectives under limits; whether some plan is within them."""
    plans, times_s, energies_j = all_totals(graph)
    fits = np.isfinite(times_s) & np.isfinite(energies_j)
    for n, plan in enumerate(plans):
        found = uses(graph, limits, plan[:, None], times_s[n], energies_j[n])
        fits[n] &= ~np.logical_or.reduce([use.exceeded for use in found])
    for objective in OBJECTIVES:
        values = objective.value(np.where(fits, times_s, 0), np.where(fits, energies_j, 0))
        best = np.where(fits, values, np.inf).min(0)
        if np.isinf(best).any():
            with pytest.raises(
                UserError, match=r"no plan is within the limits|every choice takes or draws inf"
            ):
                solve(graph, objective, limits)
        else:
            plan = solve(graph, objective, limits)
            np.testing.assert_allclose(plan.values, best, rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(plan.bounds, best, rtol=1e-6, atol=1e-12)
            assert (plan.bounds <= plan.values).all()
    return bool(fits.any(0).all())


@pytest.mark.parametrize("seed", range(10))
def test_time_energy_and_power(seed):
    solved = 0
    for k in range(4 * seed, 4 * seed + 4):
        graph = random_graph(k, num_works=3 + k % 3, num_points=1, integer=k % 3 != 0)
        _, times_s, energies_j = all_totals(graph)
        finite = np.isfinite(times_s) & np.isfinite(energies_j) & (times_s > 0)
        if not finite.any():
            continue
        share = np.random.default_rng(k).random() * 0.4
        for name, used in (("time_s", times_s), ("energy_j", energies_j), ("power_w", energies_j / times_s)):
            limit = float(np.quantile(used[finite], share, method="lower"))
            if limit > 0:
                solved += check_against_all(graph, Limits(**{name: limit}))
    assert solved


@pytest.mark.parametrize("seed", range(12))
def test_several_limits_and_a_budget(seed):
    graph = random_graph(seed, num_works=5, num_points=1, integer=False)
    _, times_s, energies_j = all_totals(graph)
    rng = np.random.default_rng(seed)
    losses = {(f"w{k}", d.name): float(rng.integers(0, 4)) for k in range(5) for d in graph.machine.devices}
    finite = np.isfinite(times_s) & np.isfinite(energies_j)
    if finite.any():
        time_s = float(np.quantile(times_s[finite], 0.7))
        check_against_all(graph, Limits(time_s=time_s, budgets=(Budget("loss", 4.0, losses, "nat"),)))


def with_weights(graph, capacity_bytes):
    """The same graph: what is handed in are weights of 100 bytes each, in memories that hold so much."""
    values = tuple(
        replace(v, kind=ValueKind.WEIGHT, shape=(100,)) if v.kind is ValueKind.INPUT else v
        for v in graph.workload.values
    )
    number = len(graph.machine.memories)
    memories = [
        replace(m, capacity_bytes=c) for m, c in zip(graph.machine.memories, capacity_bytes, strict=False)
    ]
    hardware = Machine(graph.machine.devices, "small", memories=memories[:number])
    return replace(graph, workload=replace(graph.workload, values=values), machine=hardware)


@pytest.mark.parametrize("seed", range(16))
def test_weights_fit_their_memories(seed):
    graph = with_weights(random_graph(seed, num_works=5, num_points=1, integer=seed % 2 == 0), (1e9, 150, 50))
    check_against_all(graph, Limits())


def test_what_is_resident():
    graph = with_weights(layered_graph(1), (1e9, 1e9, np.inf))
    nowhere_else = np.zeros((len(graph.stacks), 1), np.int16)
    kept = [v for v in graph.workload.values if v.kind is ValueKind.WEIGHT]
    total = sum(100 if v.shape == (100,) else 4 for v in kept) + float(passing_bytes(graph)[0])
    assert {m: b.tolist() for m, b in resident_bytes(graph, nowhere_else).items()} == {
        "m0": [total],
        "m1": [0],
    }
    elsewhere = np.ones_like(nowhere_else)  # on b: a copy of each, also of those that several works read
    assert {m: b.tolist() for m, b in resident_bytes(graph, elsewhere).items()} == {
        "m0": [total],
        "m1": [total - float(passing_bytes(graph)[0])],
    }
    # m1 is a buffer of m0: what does not fit is there, where it is anyway
    a, b, c = graph.machine.memories
    hardware = Machine(graph.machine.devices, "buffered", memories=(a, replace(b, parent="m0"), c))
    assert list(resident_bytes(replace(graph, machine=hardware), elsewhere)) == ["m0"]


@pytest.mark.parametrize("seed", range(20))
def test_what_passes_is_the_peak_of_a_sequential_run(seed):
    graph = random_graph(seed, num_works=8, num_points=1, num_devices=1)
    sizes = np.random.default_rng(seed).integers(1, 100, len(graph.workload.values)).tolist()
    values = tuple(replace(v, shape=(s,)) for v, s in zip(graph.workload.values, sizes, strict=True))
    graph = replace(graph, workload=replace(graph.workload, values=values))
    slots = [Slot(k, None, "a", 0, float(k), k + 1.0) for k in range(len(graph.stacks))]
    _, alive = occupancy(graph, [0] * len(graph.stacks), slots, 0)
    assert passing_bytes(graph).tolist() == [alive["m0"].max()]


def test_a_power_cap_on_a_model_is_nearly_proven():
    """To draw less than the fastest plan, some works run where they are slow."""
    free = strata.plan("gpt2-124m", "lightcode-honest", "time", seq_len=256)
    power_w = (90 + free.energy_j / free.time_s) / 2  # the machine draws 90 W whatever it does
    found = Relaxation(Weighted(free.graph), Limits(power_w=power_w), 1.0, 0.0)
    assert found.inside is not None
    time_s, energy_j = totals(free.graph, found.inside[1][:, None])
    assert energy_j[0] <= power_w * time_s[0] * (1 + 1e-7)
    assert free.time_s < found.bound <= time_s[0] < 1.02 * found.bound


def test_results_that_do_not_fit_are_named():
    small = machine(1, 1, 2.0**32)
    with pytest.raises(
        UserError, match=r"memory \w+: got a limit of 4\.29497e\+09 bytes; .* is needed at least"
    ):
        strata.plan("gpt2-124m", small, objective="time", seq_len=32768, max_context=32768)
    assert strata.plan("gpt2-124m", small, objective="time", seq_len=1024).time_s > 0


def test_nothing_is_searched_where_the_best_plan_is_within_the_limits(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    graph = layered_graph(2, num_points=20)
    plan = solve(graph, OBJECTIVES[0])
    generous = Limits(time_s=plan.times_s.max(), energy_j=plan.energies_j.max(), power_w=1e9)
    assert np.array_equal(solve(graph, OBJECTIVES[0], generous).choices, plan.choices)
    with pytest.raises(
        UnsupportedError, match=r"limits that the best plan exceeds need OR-Tools; pip install"
    ):
        solve(graph, OBJECTIVES[0], Limits(time_s=plan.times_s.min() / 2))


def test_only_points_that_exceed_a_limit_change():
    graph = layered_graph(2, num_points=40, seed=3)
    fast, frugal = solve(graph, OBJECTIVES[0]), solve(graph, OBJECTIVES[1])
    limit = float(frugal.energies_j[9])
    exceeding = fast.energies_j[:10] > limit
    assert exceeding.any()
    assert not exceeding.all()
    graph, fast = graph.at(np.arange(10)), solve(graph.at(np.arange(10)), OBJECTIVES[0])
    plan = solve(graph, OBJECTIVES[0], Limits(energy_j=limit))
    assert (plan.energies_j <= limit * (1 + 1e-7)).all()
    assert np.array_equal(plan.choices[:, ~exceeding], fast.choices[:, ~exceeding])
    assert (plan.times_s[exceeding] > fast.times_s[exceeding]).all()


def test_twice_the_same():
    graph = layered_graph(4, num_points=9, seed=3).at(np.array([8]))
    limits = Limits(
        energy_j=(solve(graph, OBJECTIVES[0]).energy_j + solve(graph, OBJECTIVES[1]).energy_j) / 2
    )
    first, second = (solve(graph, OBJECTIVES[0], limits) for _ in range(2))
    assert np.array_equal(first.choices, second.choices)
    assert first.lower_bound == second.lower_bound
    assert first.gap() < 0.01


def test_plans_between_the_vertices_of_the_front():
    graph = random_graph(CONFLICTED, num_works=6, num_points=1, integer=False)
    _, times_s, energies_j = all_totals(graph)
    supported, front = pareto(graph), pareto(graph, between=4)
    assert {p.time_s for p in supported} <= {p.time_s for p in front}
    assert len(front) > len(supported)
    for plan in front:
        better = (times_s < plan.time_s * (1 - 1e-7)) & (energies_j <= plan.energy_j * (1 + 1e-9))
        assert not better.any()


def test_a_front_within_limits():
    graph = random_graph(CONFLICTED, num_works=6, num_points=1, integer=False)
    whole = pareto(graph)
    limits = Limits(time_s=(whole[0].time_s + whole[-1].time_s) / 2)
    front = pareto(graph, limits=limits)
    assert front[0].time_s == pytest.approx(whole[0].time_s)
    assert all(plan.time_s <= limits.time_s * (1 + 1e-7) for plan in front)
    assert front[-1].energy_j == pytest.approx(solve(graph, OBJECTIVES[1], limits).energy_j)


def test_what_is_needed_at_least():
    graph = random_graph(CONFLICTED, num_works=6, num_points=1, integer=False)
    time, energy = (solve(graph, objective) for objective in OBJECTIVES[:2])
    _, times_s, energies_j = all_totals(graph)
    least_w = float((energies_j / times_s).min())
    says = r"random on random, L=1: no plan is within the limits: "
    with pytest.raises(
        UserError, match=f"{says}time: got a limit of .* s; {time.time_s:.6g} s is needed at least;"
    ):
        solve(graph, OBJECTIVES[1], Limits(time_s=time.time_s / 2))
    with pytest.raises(UserError, match=f"power: got a limit of .* W; {least_w:.6g} W is needed at least"):
        solve(graph, OBJECTIVES[0], Limits(power_w=least_w / 2))
    both = Limits(time_s=time.time_s * 1.0001, energy_j=energy.energy_j * 1.0001)
    with pytest.raises(UserError, match=r"is needed at least if the other limits are kept; energy: got"):
        solve(graph, OBJECTIVES[0], both)
    small = with_weights(graph, (50, 50, 50))
    with pytest.raises(UserError, match=r"memory m0: got a limit of 50 bytes; \d+ bytes is needed at least"):
        solve(small, OBJECTIVES[0])


def test_the_least_power_of_plans_that_take_no_time():
    graph = random_graph(3, num_works=3, num_points=1)
    zero = np.zeros(1)
    for stack in graph.stacks:
        for candidate in stack:
            object.__setattr__(candidate.estimates, "time_s", zero)
            object.__setattr__(candidate.estimates, "energy_j", zero + 1)
    graph = replace(graph, transfers=())
    with pytest.raises(UserError, match="power: got a limit of 1 W; inf W is needed at least"):
        solve(graph, OBJECTIVES[1], Limits(power_w=1.0))


def test_refusals():
    with pytest.raises(UserError, match=r"limits: power_w: got 0; expected > 0"):
        Limits(power_w=0)
    with pytest.raises(UserError, match=r"budget loss: w on d: got -1 nat; expected >= 0"):
        Budget("loss", 1.0, {("w", "d"): -1}, "nat")
    graph = random_graph(5, num_points=1)
    with pytest.raises(UserError, match=r"budget loss: random has no work 'w99'; expected a name like 'w0'"):
        solve(graph, OBJECTIVES[0], Limits(budgets=(Budget("loss", 1.0, {("w99", "a"): 1.0}),)))
    assert machine().memory("m0").capacity_bytes == np.inf


def test_an_effort_that_is_too_small():
    graph = layered_graph(8, num_points=9, seed=3).at(np.array([8]))
    losses = {(work.name, "a"): 1.0 for work in graph.workload.works}
    with pytest.raises(
        UnsupportedError, match=r"in 1e-09 deterministic seconds no plan was found .* raise effort"
    ):
        solve(graph, OBJECTIVES[0], Limits(effort=1e-9, power_w=1e-3, budgets=(Budget("loss", 9.5, losses),)))


def test_the_makespan_within_limits():
    graph = layered_graph(1)
    makespan = parse_objective("makespan")
    plan = solve(graph, makespan)
    assert plan.lower_bound <= plan.time_s == max(slot.end_s for slot in plan.orders[0])
    assert solve(graph, makespan, Limits(energy_j=plan.energy_j * 2)).time_s == plan.time_s
    with pytest.raises(UnsupportedError, match=r"the least makespan exceeds a limit; plan for time, energy"):
        solve(graph, makespan, Limits(time_s=plan.time_s / 2))
