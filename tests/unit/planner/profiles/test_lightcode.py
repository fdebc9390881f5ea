"""LightCode's cost model: its formulas by hand, and its published energies and makespans to every digit."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.frontend.relay import read_relay
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload
from strata.planner.devices.build import stacked_graph
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import totals
from strata.planner.devices.solve import solve
from strata.planner.devices.types import Cause, Estimates, Term
from strata.planner.profiles.lightcode_schedule import lightcode_makespan
from strata.target.hardware import CPU, GPU, PHU, Machine, Memory, op_cost, read_machine

DATA = Path(__file__).parents[3] / "data" / "relay"
DEVICES = [CPU(clock_hz=3.208e9), PHU(clock_hz=9.7e9, multiplex=20), GPU(clock_hz=1.98e9)]
L = SymDim("L", 1, 131072)

PUBLISHED = json.loads((DATA / "lightcode_published.json").read_text())
GRAPHS = sorted({row["graph"] for row in PUBLISHED["rows"]})


def machine(devices=DEVICES):
    return Machine(devices, profile="lightcode")


def choose(graph, device):
    """Everything that ``device`` can do there, the rest on the only device that can: ``[W, P]``."""
    numbers = [next((k for k, c in enumerate(s) if c.device == device), 0) for s in graph.stacks]
    return np.repeat(np.array(numbers)[:, None], graph.num_points, 1)


def digits(values, count=5):
    return [float(f"{v:.{count}g}") for v in values]


@pytest.fixture(scope="module", params=[(g, o) for g in GRAPHS for o in ("time", "energy")])
def published(request):
    """The graph, the choices that were made for an objective, their figures, and the objective."""
    name, objective = request.param
    rows = [r for r in PUBLISHED["rows"] if (r["graph"], r["objective"]) == (name, objective)]
    assert len(rows) == 4
    points = {"L": np.array([row["length"] for row in rows])}
    graph = stacked_graph(read_relay(DATA / f"{name}.json.gz"), machine(), points)
    return graph, choose(graph, PUBLISHED["matmuls_on"][objective]), rows, objective


def test_published_energies_to_all_digits(published):
    graph, choices, rows, _ = published
    assert digits(totals(graph, choices)[1] * 1e3) == [row["energy_mj"] for row in rows]


def test_published_makespans_to_all_digits(published):
    graph, choices, rows, _ = published
    assert digits(lightcode_makespan(graph, choices)) == [row["time_s"] for row in rows]


def test_exact_selection_finds_its_plans_and_none_better(published):
    """No plan has less energy than its plan for energy, or less time in sequence than its plan for time."""
    graph, choices, _, objective = published
    plan = solve(graph, parse_objective(objective))
    np.testing.assert_allclose(plan.values, plan.objective.value(*totals(graph, choices)), rtol=1e-12)
    assert np.array_equal(plan.bounds, plan.values)


@pytest.mark.parametrize(("multiplex", "published_s"), [(1, 3126.7), (20, 212.6)])
def test_published_effect_of_multiplexing(multiplex, published_s):
    devices = [DEVICES[0], replace(DEVICES[1], multiplex=multiplex), DEVICES[2]]
    load = read_relay(DATA / "llama-2-7b_prefill_graph.json.gz")
    graph = stacked_graph(load, machine(devices), {"L": np.array([3900])})
    (makespan_s,) = lightcode_makespan(graph, choose(graph, "phu"))
    assert round(makespan_s, 1) == published_s


def test_the_machine_that_ships_is_the_one_of_the_paper():
    load = read_relay(DATA / "gpt2_prefill_graph.json.gz")
    points = {"L": np.array([1, 5, 1024, 131072])}
    ours, theirs = (stacked_graph(load, m, points) for m in (read_machine("lightcode"), machine()))
    for device in ("gpu", "phu", "cpu"):
        choices = choose(ours, device)
        np.testing.assert_allclose(totals(ours, choices), totals(theirs, choices), rtol=1e-12)
        if device != "cpu":
            np.testing.assert_allclose(
                lightcode_makespan(ours, choices), lightcode_makespan(theirs, choices), rtol=1e-12
            )


def test_memories_of_a_machine_count():
    shipped = read_machine("lightcode")
    sram = replace(shipped.memory("sram"), read_j_per_byte=1.0)
    memories = [sram if m.name == "sram" else m for m in shipped.memories]
    dear = Machine(shipped.devices, profile="lightcode", memories=memories, links=shipped.links)
    graph = stacked_graph(one("add"), dear, {"L": np.array([10])})
    assert totals(graph, choose(graph, "gpu"))[1][0] == pytest.approx(10.0)
    lost = Machine(DEVICES, profile="lightcode", memories=[replace(sram, name="dram"), sram])
    with pytest.raises(UserError, match="no memory 'hbm'; it has dram, sram"):
        stacked_graph(one("add"), lost, {"L": np.array([10])})


# --- formulas, one op at a time ------------------------------------------------------------------------


def one(op, *shapes, out=(L,), contraction=None, flop=0):
    """A workload of a single op, of inputs of these shapes."""
    shapes = shapes or ((L,),)
    values = [Value(f"x{k}", s, 8, ValueKind.INPUT) for k, s in enumerate(shapes)]
    values.append(Value("y", out, 8, ValueKind.RESULT))
    inputs = tuple(range(len(shapes)))
    work = Work(
        "the op", op, inputs, tuple(values[k].elems for k in inputs), (len(shapes),), flop, contraction
    )
    return Workload("one", tuple(values), (work,), (L,))


def product(batch, rows, cols, depth):
    shapes = ((batch, rows, depth), (batch, depth, cols))
    return one("matmul", *shapes, out=(batch, rows, cols), contraction=Contraction(batch, rows, cols, depth))


def computed(load, length=10, devices=DEVICES, costs=()):
    """Seconds and joules of computing, without memories, by device."""
    (stack,) = stacked_graph(load, machine(devices).with_costs(costs), {"L": np.array([length])}).stacks
    found = {}
    for candidate in stack:
        (term,) = (t for t in candidate.estimates.terms if t.cause is Cause.COMPUTE)
        found[candidate.device] = (term.time_s[0], term.energy_j[0])
    return found


@pytest.mark.parametrize(
    ("op", "cycles"),
    [
        *(
            (op, 10)
            for op in ("add", "subtract", "multiply", "divide", "sqrt", "rsqrt", "power", "transpose")
        ),
        *((op, 10) for op in ("negative", "cast", "equal", "broadcast_to", "scatter_nd")),
        *((op, 1) for op in ("nop", "reshape", "less", "take", "where", "erf", "slice", "concatenate")),
        *(("relu", 20), ("tanh", 40), ("sigmoid", 40), ("softmax", 60)),
    ],
)
def test_ops_on_the_gpu(op, cycles):
    ((device, (time_s, energy_j)),) = computed(one(op)).items()
    assert device == "gpu"
    assert time_s == pytest.approx(cycles / 1.98e9, rel=1e-12)
    assert energy_j == pytest.approx(cycles * 1e-12, rel=1e-12)


def test_a_mean_counts_one_matrix_in_time_and_its_result_in_energy():
    time_s, energy_j = computed(one("mean", (3, L, 7), out=(3, L, 1)))["gpu"]
    assert time_s == pytest.approx((7 + 1) * 10 / 1.98e9)
    assert energy_j == pytest.approx(30e-12)
    assert computed(one("mean", (L,), out=()))["gpu"][0] == pytest.approx(11 / 1.98e9)


def test_products_on_every_device():
    load = product(3, L, 7, 900)
    macs = 3 * 10 * 7 * 900
    found = computed(load)
    assert found["phu"] == pytest.approx((math.ceil(70 / 20) * 900 * 3 / 9.7e9, macs * 0.04e-12))
    assert found["gpu"] == pytest.approx((math.ceil(210 / 576) * 3 / 1.98e9, macs * 0.07e-12))
    assert found["cpu"] == pytest.approx(
        (6.845684637179875e-11 * macs + 8.258292187675319e-07, macs * 0.1e-12)
    )


def test_cores_of_a_phu_share_the_products():
    devices = [replace(DEVICES[1], cores=3), DEVICES[2]]
    assert computed(product(1, L, 100, 5), devices=devices)["phu"][0] == pytest.approx(17 * 5 / 9.7e9)


def test_the_cpu_has_another_fit_for_large_inputs():
    fits = [(6.845684637179875e-11, 8.258292187675319e-07), (3.554631597170242e-10, -7.057115703999989e-3)]
    for cols, (slope, start) in zip((50000, 50257), fits, strict=True):
        time_s, _ = computed(product(1, L, cols, 768), 100)["cpu"]
        assert time_s == pytest.approx(slope * 100 * cols * 768 + start, rel=1e-12)


def test_the_host_that_is_registered_last_does_the_rest():
    gpu_first = [GPU(clock_hz=1.98e9), PHU(clock_hz=9.7e9), CPU(clock_hz=3.208e9)]
    time_s, energy_j = computed(one("add"), devices=gpu_first)["cpu"]
    assert time_s == pytest.approx(5.728114536194012e-11 * 10 + 2.018610633633051e-07)
    assert energy_j == pytest.approx(time_s * 3.208e9 * 1e-12)
    assert computed(one("relu"), devices=gpu_first)["cpu"][0] == pytest.approx(20 / 3.208e9)
    assert [*computed(product(1, L, 2, 3), devices=gpu_first)] == ["gpu", "phu", "cpu"]


def test_devices_of_one_kind_stay_apart():
    devices = [*DEVICES, PHU(clock_hz=1e9)]
    assert [*computed(product(1, L, 2, 3), devices=devices)] == ["cpu", "phu", "gpu", "phu2"]
    assert [*computed(product(1, L, 2, 3))] == ["cpu", "phu", "gpu"]


def test_ops_that_lightcode_has_no_name_for_take_a_cycle_per_flop():
    assert computed(one("rms_norm", flop=4 * L))["gpu"] == pytest.approx((40 / 1.98e9, 40e-12))


def test_an_unknown_op_is_named():
    with pytest.raises(UserError, match=r"the op: no device of machine custom can do the op 'fold'"):
        computed(one("fold"))
    with pytest.raises(UserError, match=r"can do the op 'add'; it has phu \(phu\)"):
        computed(one("add"), devices=[DEVICES[1]])


def test_devices_that_do_some_ops_only():
    assert [*computed(product(1, L, 2, 3), devices=[replace(DEVICES[1], ops=("dense",)), DEVICES[2]])] == [
        "gpu"
    ]


def test_a_function_of_the_user_comes_first():
    @op_cost(PHU, "softmax")
    def softmax(device, machine, workload, work, points):
        time_s = points["L"] * 1.0
        return Estimates.of(
            [Term(Cause.COMPUTE, device.name, time_s, 2 * time_s, time_s, "row")], overlapped=False
        )

    @op_cost("cpu", "matmul")
    def matmul(device, machine, workload, work, points):
        return None

    costs = (softmax, matmul)
    own = {"phu": (10, 20), "gpu": computed(one("softmax"))["gpu"]}
    assert computed(one("softmax"), costs=costs) == own
    assert [*computed(product(1, L, 2, 3), costs=costs)] == ["phu", "gpu"]
    assert [*computed(one("softmax"))] == ["gpu"]


# --- moves ---------------------------------------------------------------------------------------------


def chain(*ops, weights=0):
    """``x -> op -> op ...``, products with the same weight, all of ten numbers."""
    values = [Value("x", (L,), 8, ValueKind.INPUT), Value("w", (L,), 8, ValueKind.WEIGHT)]
    works = []
    for number, op in enumerate(ops):
        is_product = op == "dense"
        inputs = (len(values) - 1 if number else 0, *((1,) if is_product else ()))
        values.append(Value(f"y{number}", (L,), 8, ValueKind.RESULT))
        contraction = Contraction(1, 1, L, L) if is_product else None
        works.append(Work(f"{op}{number}", op, inputs, (L,) * len(inputs), (number + 2,), 0, contraction))
    return stacked_graph(
        Workload("chain", tuple(values), tuple(works), (L,)), machine(), {"L": np.array([10])}
    )


HOP_S, DELAY_S = 1 / 6e9, 10e-9


@pytest.mark.parametrize(
    ("ops", "device", "time_s", "pj_per_number"),
    [
        (("nop",), "gpu", 2 * HOP_S, 8 + 2.4 + 4.4),
        (("nop", "nop"), "gpu", 4 * HOP_S, 8 + 2.4 + 4.4 + 8.8),
        (("nop", "split", "nop"), "gpu", 4 * HOP_S, 8 + 2.4 + 4.4 + 4.4 + 4.4),
        (("dense",), "phu", 2 * (2 * HOP_S + DELAY_S), 2 * (8 + 2.4)),
        (("nop", "dense", "nop"), "phu", 8 * HOP_S + 3 * DELAY_S, (14.8 + 4.4) + (8 + 2.4) + 4.4),
        # Three operands from memory, four into the PHU, one out of it; the weight is read from DRAM once.
        (("dense", "dense"), "phu", 8 * HOP_S + 5 * DELAY_S, 2 * 8 + 3 * 2.4),
    ],
)
def test_moves_go_through_sram(ops, device, time_s, pj_per_number):
    graph = chain(*ops)
    choices = choose(graph, device)
    times_s, energies_j = totals(graph, choices)
    for work, stack in enumerate(graph.stacks):
        (term,) = (t for t in stack[choices[work, 0]].estimates.terms if t.cause is Cause.COMPUTE)
        times_s, energies_j = times_s - term.time_s, energies_j - term.energy_j
    assert times_s[0] == pytest.approx(time_s, rel=1e-9)
    assert energies_j[0] == pytest.approx(10 * pj_per_number * 1e-12, rel=1e-9)


def test_every_reader_pays_for_its_own_move_and_the_first_for_dram():
    values = (
        Value("w", (L,), 8, ValueKind.WEIGHT),
        *(Value(f"y{k}", (1,), 8, ValueKind.RESULT) for k in range(3)),
    )
    works = tuple(Work(f"op{k}", "where", (0,), (L,), (k + 1,), 0) for k in range(3))
    graph = stacked_graph(Workload("fan", values, works, (L,)), machine(), {"L": np.array([10])})
    assert totals(graph, choose(graph, "gpu"))[1][0] == pytest.approx((3 + 80 + 3 * 68) * 1e-12)
    causes = [[t.cause for t in stack[0].estimates.terms] for stack in graph.stacks]
    assert causes == [[Cause.COMPUTE, Cause.MEMORY], [Cause.COMPUTE], [Cause.COMPUTE]]


# --- the execution order -------------------------------------------------------------------------------


def test_a_chain_takes_its_works_and_edges_one_after_the_other():
    graph = chain("relu", "relu", "relu")
    # The last one's result is read by nobody, so it is never executed; the first begins with its load.
    (makespan_s,) = lightcode_makespan(graph, choose(graph, "gpu"))
    assert makespan_s == pytest.approx(2 * HOP_S + 20 / 1.98e9 + 2 * HOP_S + 20 / 1.98e9, rel=1e-12)


def test_a_product_on_the_phu_passes_sram_before_and_after():
    graph = chain("relu", "dense", "relu", "relu")
    (makespan_s,) = lightcode_makespan(graph, choose(graph, "phu"))
    relu_s, dense_s, conversion_s = 20 / 1.98e9, 10 / 9.7e9, HOP_S + DELAY_S
    edges_s = 2 * HOP_S + HOP_S + 2 * conversion_s + HOP_S
    assert makespan_s == pytest.approx(relu_s + dense_s + relu_s + edges_s, rel=1e-12)


def test_a_cut_is_executed_twice():
    """x -> a -> (b, c) -> d -> e -> f: all paths pass d, which has two operands."""
    values = [Value("x", (L,), 8, ValueKind.INPUT)]
    works = []
    for number, inputs in enumerate([(0,), (1,), (1,), (2, 3), (4,), (5,)]):
        values.append(Value(f"y{number}", (L,), 8, ValueKind.RESULT))
        works.append(Work("abcdef"[number], "relu", inputs, (L,) * len(inputs), (number + 1,), 0))
    graph = stacked_graph(Workload("w", tuple(values), tuple(works), (L,)), machine(), {"L": np.array([10])})
    (makespan_s,) = lightcode_makespan(graph, choose(graph, "gpu"))
    # load, a, b beside c, d; then d again and e; f is never executed
    assert makespan_s == pytest.approx(5 * 20 / 1.98e9 + (2 + 2 + 2 + 2) * HOP_S, rel=1e-12)


def test_nothing_is_carried_over_from_one_call_to_the_next():
    graph = chain("relu", "dense", "relu", "relu")
    first = lightcode_makespan(graph, choose(graph, "phu"))
    assert np.array_equal(lightcode_makespan(graph, choose(graph, "phu")), first)


def test_a_machine_without_sram_has_the_memories_of_lightcode():
    free = Memory(
        name="dram", capacity_bytes=1e9, bandwidth_bytes_per_s=1e9, read_j_per_byte=0, write_j_per_byte=0
    )
    graph = stacked_graph(
        one("nop"), Machine(DEVICES, profile="lightcode", memories=[free]), {"L": np.array([10])}
    )
    assert totals(graph, choose(graph, "gpu"))[1][0] == pytest.approx((1 + 10 * (8 + 2.4 + 4.4)) * 1e-12)
