"""The report of a plan: its numbers add up, its page stands alone, a browser shows it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from strata.app.plan_report.build import build_report
from strata.app.plan_report.data import MOVES, Mark, Occupancy, role_of
from strata.app.plan_report.figures import FIGURES, write_figures
from strata.app.plan_report.page import write_report
from strata.app.units import si
from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import Slot
from strata.planner.devices.solve import solve
from strata.planner.devices.types import (
    Cause,
    DeviceCandidate,
    Estimates,
    StackedGraph,
    Term,
    Transfer,
    evaluate,
)
from strata.target.hardware import CPU, PHU, Machine, Memory

LAYERS = 3


def memory(name):
    return Memory(
        name=name, capacity_bytes=1e9, bandwidth_bytes_per_s=1e9, read_j_per_byte=0.0, write_j_per_byte=0.0
    )


def graph():
    """Layers of a norm and a product; light is cheap for long inputs, and moving costs."""
    n = SymDim("L", 1, 4096)
    points = {"L": np.array([1, 8, 64, 512, 4096])}
    length = evaluate(n, points)
    values = [Value("ids", (n, 64), 8, ValueKind.INPUT)]
    works, stacks = [], []
    for layer in range(LAYERS):
        for op, role in (("rms_norm", "norm"), ("matmul", "mlp.up_proj")):
            values.append(Value(f"{role}{layer}", (n, 64), 8, ValueKind.RESULT))
            product = Contraction(1, n, 64, 64) if op == "matmul" else None
            flop = n * 64 * 64 * 2 if product else n * 64 * 4
            k = len(values) - 1
            works.append(Work(f"layers.{layer}.{role}", op, (k - 1,), (n * 64,), (k,), flop, product, layer))
            cost = length * 1e-6 if product else length * 1e-8
            mine = [candidate("cpu", op, cost, cost * 1e-3)]
            if product:
                mine.append(candidate("phu", op, 2e-5 + length * 1e-7, 2e-8 + length * 1e-10))
            stacks.append(tuple(mine))
    workload = Workload("toy prefill", tuple(values), tuple(works), (n,))
    machine = Machine(
        [CPU(clock_hz=1e9), PHU(clock_hz=1e9, memory="sram")],
        "toy",
        memories=[memory("dram"), memory("sram")],
        about="Two devices that exist only here <&>.",
    )
    move = Estimates.of([term(Cause.LINK, "link", length * 1e-8, length * 1e-12)], overlapped=False)
    costs = {("dram", "sram"): move, ("sram", "dram"): move}
    producers = workload.producers()
    transfers = [Transfer(v, producers.get(v), c, costs) for v, c in workload.consumers().items()]
    return StackedGraph(workload, machine, points, tuple(stacks), tuple(transfers))


def term(cause, place, time_s, energy_j):
    return Term(cause, place, time_s, energy_j, time_s * 1e9, "cycle")


def candidate(device, op, time_s, energy_j):
    terms = [
        term(Cause.COMPUTE, device, time_s, energy_j),
        term(Cause.MEMORY, "dram", time_s / 2, energy_j / 2),
    ]
    place = "sram" if device == "phu" else "dram"
    return DeviceCandidate(f"{device}.{op}", device, place, Estimates.of(terms, overlapped=False))


@pytest.fixture(scope="module")
def plan():
    return solve(graph(), parse_objective("energy"))


def graph_at(point):
    return graph().at(np.array([point]))


def full(plan):
    return replace(
        build_report(plan, 4),
        marks=(Mark(300, "matmul layers.*.mlp.up_proj x3: cpu -> phu"),),
        slots=(Slot(0, None, "cpu", 0, 0.0, 1e-4), Slot(None, 1, "dram->sram", 0, 1e-4, 2e-4)),
        occupancy=(Occupancy("dram", (0.0, 1e-4), (1e6, 2e6)),),
        spent_j=((0.0, 0.0), (1e-4, 1e-6), (2e-4, 2e-6)),
        front=((1e-4, 3e-6), (2e-4, 2e-6)),
    )


def test_what_is_spent_adds_up_to_the_plan(plan):
    for point in range(5):
        report = build_report(plan, point)
        assert sum(s.energy_j for s in report.spent) == pytest.approx(report.energy_j)
        moved = sum(s.time_s for s in report.spent if s.op == MOVES)
        assert sum(w.time_s for w in report.works) + moved == pytest.approx(report.time_s)


def test_light_takes_the_products_of_long_inputs_only(plan):
    short, long = build_report(plan, 0), build_report(plan, 4)
    assert {w.device for w in short.works} == {"cpu"}
    assert {w.device for w in long.works if w.is_product} == {"phu"}


def test_the_plan_is_never_above_a_device_alone(plan):
    best, *others = build_report(plan).curves
    assert len(others) == 2
    for other in others:
        assert all(a <= b * (1 + 1e-12) for a, b in zip(best.values, other.values, strict=True))


def test_over_time_ends_with_the_plans_time_and_energy(plan):
    report = build_report(plan, 4)
    assert report.spent_j[-1] == pytest.approx((report.time_s, report.energy_j))
    assert max(s.end_s for s in report.slots) == pytest.approx(report.time_s)
    assert {o.memory for o in report.occupancy} == {"dram", "sram"}
    assert min(report.front)[0] <= report.time_s * (1 + 1e-12)
    assert min(e for _, e in report.front) == pytest.approx(report.energy_j)


def test_marks_say_what_changes(plan):
    (mark,) = build_report(plan).marks
    assert mark.text == "matmul layers.*.mlp.up_proj x3: cpu -> phu"
    assert mark.length in plan.graph.points["L"]


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("layers.3.mlp.up_proj", 3, "mlp.up_proj"),
        ("model.layers.13.norm", 13, "norm"),
        ("lm_head", None, "lm_head"),
        ("dense_7", 2, "dense_7"),
        ("h.1.attn.c_attn", 1, "attn.c_attn"),
    ],
)
def test_roles_leave_the_layer_out(name, layer, role):
    assert role_of(name, layer) == role


def test_json_beside_the_page_says_everything(plan, tmp_path):
    report = full(plan)
    write_report(report, tmp_path / "plan.html")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert read["energy_j"] == report.energy_j
    assert len(read["works"]) == 2 * LAYERS
    page = (tmp_path / "plan.html").read_text()
    assert "only here &lt;&amp;&gt;." in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_every_figure_can_be_drawn_alone(plan, tmp_path):
    written = write_figures(full(plan), tmp_path / "figures", ".svg")
    assert [p.stem for p in written] == list(FIGURES)
    assert all(p.read_text().startswith("<?xml") for p in written)
    few = write_figures(build_report(solve(graph_at(4), parse_objective("energy"))), tmp_path / "few", ".png")
    assert [p.stem for p in few] == [n for n in FIGURES if n != "curves"]


def test_files_that_cannot_be_written(plan, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        write_figures(build_report(plan), tmp_path / "file" / "figures")
    with pytest.raises(UserError, match=r"got suffix .\.gif.; expected one of \.svg"):
        write_figures(build_report(plan), tmp_path, ".gif")
    with pytest.raises(UserError, match="cannot write the file"):
        write_report(build_report(plan), tmp_path / "file" / "plan.html")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "J", "0 J"), (0.0123, "s", "12.3 ms"), (1500, "s", "1500 s"), (2.5e9, "flop", "2.5 Gflop"),
     (3e-14, "J", "0.03 pJ")],
)  # fmt: skip
def test_numbers_with_units(value, unit, text):
    assert si(value, unit) == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shows_it(plan, tmp_path):
    write_report(full(plan), tmp_path / "plan.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    shown = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "plan.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    ).stdout
    assert shown.count("<svg") == len(FIGURES)
    assert "toy prefill on toy" in shown
