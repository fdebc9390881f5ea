"""Sweeps: rows are the plans, in order; what is there is not made again; who makes them does not matter."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

import strata
from strata.core.errors import UserError
from strata.frontend import nn
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.types import Estimates, evaluate
from strata.planner.explore import run as run_module
from strata.planner.explore import sweep as sweep_module
from strata.planner.explore.sweep import Planner
from strata.planner.explore.table import Table, record
from strata.target.hardware import CPU, PHU, Converter, Machine, read_machine
from strata.target.hardware.parameters import parameter, with_parameters

MULTIPLEX = "devices.phu.multiplex"
BITS = "devices.phu.dac.bits"


def key(row):
    return (row.model, row.machine, *[v for _, v in row.parameters], row.seq_len, row.objective)


@pytest.fixture
def small_chunks(monkeypatch):
    """Two points of a machine at once; gives the chunks that are planned."""
    monkeypatch.setattr(sweep_module, "POINTS_AT_ONCE", 2)
    planned, rows = [], Planner.rows

    def counted(self, chunk):
        planned.append(chunk)
        return rows(self, chunk)

    monkeypatch.setattr(Planner, "rows", counted)
    return planned


@pytest.fixture(params=["csv", "parquet"])
def path(request, tmp_path) -> Path:
    return tmp_path / f"sweep.{request.param}"


def content(path: Path) -> object:
    if path.suffix == ".csv":
        return path.read_bytes()
    from pyarrow import parquet

    return parquet.read_table(path)


# --- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightcode", "lightcode-honest"])
def test_rows_are_the_plans_of_each_machine(name):
    multiplex, lengths, objectives = [1, 40, 2000], [1, 500, 77], ["energy", "time", "edp"]
    rows = strata.sweep(
        "tiny", name, {MULTIPLEX: multiplex, BITS: "4..5"}, seq_len=lengths, objective=objectives
    )
    assert [key(row) for row in rows] == [
        ("tiny prefill", name, m, b, length, o)
        for m in multiplex
        for b in (4, 5)
        for length in lengths
        for o in objectives
    ]
    base_machine = read_machine(name)
    found = parameter(base_machine, MULTIPLEX)
    for row in rows[:: len(rows) // 11]:
        machine = with_parameters(base_machine, {found.steps: row.parameters[0][1]})
        plan = strata.plan("tiny", machine, row.objective, seq_len=row.seq_len)
        assert isinstance(plan, MachinePlan)
        assert (row.time_s, row.energy_j, row.bound) == (plan.time_s, plan.energy_j, plan.lower_bound)
        assert row.value == plan.values[0]
        loads = {n: (load.ops, load.matmuls) for n, load in plan.devices.items()}
        assert {n: (ops, matmuls) for n, ops, matmuls in row.devices} == loads
        assert row.ops == sum(ops for ops, _ in loads.values()) == len(plan.graph.workload.works)
        assert row.matmuls == sum(matmuls for _, matmuls in loads.values()) > 0
    distinct = {row.value for row in rows if row.objective == "edp" and row.seq_len == 500}
    assert (len(distinct) > 1) == (
        name == "lightcode"
    )  # the honest one never uses light for a model so small


def test_models_and_machines_are_combined():
    rows = strata.sweep(
        ["tiny", "gpt2-124m"], ["lightcode", "lightcode-honest"], {MULTIPLEX: [1, 2]}, seq_len=8
    )
    assert [key(row)[:3] for row in rows] == [
        (model, machine, m)
        for model in ("tiny prefill", "gpt2-124m prefill")
        for machine in ("lightcode", "lightcode-honest")
        for m in (1, 2)
    ]
    assert len({row.digest for row in rows}) == 4


def test_without_parameters_and_without_lengths():
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            self.up = nn.Linear(16, 64)

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return nn.op.relu(self.up(x))

    fixed = Perceptron().export({"forward": {"x": nn.spec.Tensor([32, 16], "f32")}})
    (row,) = strata.sweep(fixed, "lightcode")
    assert (row.parameters, row.seq_len) == ((), None)
    rows = strata.sweep(fixed, "lightcode", {MULTIPLEX: [1, 20]}, objective="time+1e12*energy")
    assert [r.seq_len for r in rows] == [None, None]
    assert [r.energy_j for r in rows] == [row.energy_j] * 2
    assert rows[0].time_s > rows[1].time_s
    with pytest.raises(UserError, match="all its sizes are fixed: leave the length out"):
        strata.sweep(fixed, "lightcode", seq_len=3)


def test_paths_of_one_axis_have_the_same_value():
    both = "devices.phu.dac.j_per_sample,devices.phu.adc.j_per_sample"
    rows = strata.sweep("tiny", "lightcode-honest", {both: ["0 J", "1 pJ"]}, seq_len=64)
    assert [[v for _, v in row.parameters] for row in rows] == [[0.0, 0.0], [1e-12, 1e-12]]


def test_makespans_are_those_of_each_machine():
    """Which depend on more than costs: they are not planned together."""
    machine = Machine([CPU(clock_hz=1e9)], "c", "lightcode")
    rows = strata.sweep("tiny", machine, {"devices.cpu.cores": [1, 3]}, seq_len=4, objective="makespan")
    for row in rows:
        cores = row.parameters[0][1]
        alone = strata.plan(
            "tiny", Machine([CPU(clock_hz=1e9, cores=cores)], "c", "lightcode"), "makespan", seq_len=4
        )
        assert (row.time_s, row.value, row.bound) == (alone.time_s, alone.values[0], alone.lower_bound)
    assert rows[1].time_s < rows[0].time_s


def test_the_structure_of_graphs_may_differ_from_point_to_point():
    rows = strata.sweep("tiny", "lightcode", {"profile": "lightcode,physical"}, seq_len=[8, 100])
    assert len({row.energy_j for row in rows}) == 4
    for row in rows[2:]:
        base_machine = read_machine("lightcode")
        machine = with_parameters(base_machine, {("profile",): "physical"})
        assert row.energy_j == strata.plan("tiny", machine, "energy", seq_len=row.seq_len).energy_j


def test_rules_hold():
    rows = strata.sweep("tiny", "lightcode", seq_len=[8, 64], devices=["gpu"])
    assert all(ops == 0 for row in rows for name, ops, _ in row.devices if name != "gpu")


# --- going on -----------------------------------------------------------------------------------------

DEFINITION = {"vary": {MULTIPLEX: "1..6"}, "seq_len": [8, 64], "objective": ["energy", "time"]}


def test_an_interrupted_sweep_goes_on(path, tmp_path, small_chunks, monkeypatch):
    whole = path.with_name(f"whole{path.suffix}")
    expected = strata.sweep("tiny", "lightcode", output=whole, **DEFINITION)
    assert len(small_chunks) == 3
    small_chunks.clear()
    rows = Planner.rows

    def interrupted(self, chunk):
        if len(small_chunks) == 2:
            raise KeyboardInterrupt
        return rows(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Planner, "rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            strata.sweep("tiny", "lightcode", output=path, **DEFINITION)
    assert len(small_chunks) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, whole.name])
    reports = []
    found = strata.sweep(
        "tiny", "lightcode", output=path, progress=lambda *report: reports.append(report), **DEFINITION
    )
    assert len(small_chunks) == 3
    assert found == expected
    assert content(path) == content(whole)
    assert reports == [(16, 24, "plans"), (24, 24, "plans")]


def test_every_finished_chunk_is_in_the_file(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(run_module, "WRITING_SHARE", float("inf"))
    path, seen = tmp_path / "sweep.csv", []
    strata.sweep(
        "tiny",
        "lightcode",
        output=path,
        progress=lambda *_: seen.append(len(path.read_text().splitlines()) - 1),
        **DEFINITION,
    )
    assert seen == [0, 8, 16, 24]


def test_more_values_add_to_the_file(path, small_chunks):
    def sweep(machine="lightcode", **definition):
        small_chunks.clear()
        rows = strata.sweep("tiny", machine, output=path, **definition)
        points = [p for chunk in small_chunks for p in chunk.points]
        lengths = {length for chunk in small_chunks for at in chunk.lengths for length in at}
        return rows, points, lengths

    first, points, _ = sweep(vary={MULTIPLEX: [1, 5]}, seq_len=[8, 64])
    assert points == [0, 1]
    again, points, _ = sweep(vary={MULTIPLEX: [1, 5]}, seq_len=[8, 64])
    assert again == first
    assert points == []
    _, points, _ = sweep(vary={MULTIPLEX: [1, 3, 5]}, seq_len=[8, 64])
    assert points == [1]
    _, points, lengths = sweep(vary={MULTIPLEX: [5]}, seq_len=[8, 9, 64])
    assert (points, lengths) == ([0], {9})
    _, points, lengths = sweep(vary={MULTIPLEX: [5]}, seq_len=[8, 9], objective=["energy", "time"])
    assert (points, lengths) == ([0], {8, 9})
    assert [chunk.objectives for chunk in small_chunks] == [(1,)]
    few, points, _ = sweep("lightcode-honest", vary={MULTIPLEX: [5]}, seq_len=8)
    assert len(few) == 1
    whole = strata.sweep(
        "tiny", ["lightcode", "lightcode-honest"], {MULTIPLEX: [1, 3, 5]}, seq_len=[8, 9, 64],
        objective=["energy", "time"],
    )  # fmt: skip
    kept = Table(path).read(dict.fromkeys(_names(path), "int") | _types(path))[0]
    assert len(kept) == len({key(r) for r in kept}) == 3 * 2 + 1 + 2 + 1
    assert {key(r) for r in kept} <= {key(r) for r in whole}
    values = {key(r): r for r in whole}
    assert all(values[key(r)] == r for r in kept)


def _names(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return next(csv.reader(file))
    return content(path).column_names


def _types(path: Path) -> dict[str, str]:
    floats = dict.fromkeys(("time_s", "energy_j", "value", "bound"), "float")
    return floats | dict.fromkeys(("model", "machine", "objective", "digest"), "str")


def test_rows_of_what_is_another_thing_now_are_refused(path, tmp_path):
    given = {"vary": {MULTIPLEX: [1, 2]}, "seq_len": 8, "output": path}
    machine = read_machine("lightcode")
    strata.sweep("tiny", machine, **given)
    before = content(path)
    found = parameter(machine, "devices.gpu.clock_hz")
    costs = tmp_path / "costs.py"
    costs.write_text("x = 1\n")
    for other, more in (
        (with_parameters(machine, {found.steps: 1e9}), {}),
        (machine, {"batch": 2}),
        (machine, {"pins": {"softmax": "gpu"}}),
        (machine, {"load": [costs]}),
    ):
        with pytest.raises(
            UserError, match="its rows of tiny prefill on lightcode are of another model or mac"
        ):
            strata.sweep("tiny", other, **given, **more)
    with pytest.raises(
        UserError, match=r"its columns are model, machine, devices.phu.multiplex, .*; this sw"
    ):
        strata.sweep("tiny", machine, {BITS: [4]}, seq_len=8, output=path)
    assert content(path) == before
    # What varies is not of the machine's own numbers: another value of it changes nothing.
    found = parameter(machine, MULTIPLEX)
    assert len(strata.sweep("tiny", with_parameters(machine, {found.steps: 9}), **given)) == 2
    assert content(path) == before


# --- files --------------------------------------------------------------------------------------------


def test_files_say_exactly_what_rows_say(path):
    machines = [
        "lightcode",
        Machine(
            [CPU(clock_hz=1e9), PHU(name="phu", clock_hz=1e9, dac=Converter(bits=8, j_per_sample=0.0))], "m"
        ),
    ]
    vary = {
        "devices.phu.clock_hz": ["0.3 GHz", "1e9"],
        "devices.phu.dynamic": "false",
        "profile": "lightcode",
    }
    rows = strata.sweep("tiny", machines, vary, seq_len=[3, 64], output=path)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        written = [{n: "" if v is None else str(v) for n, v in _whole(rows, r).items()} for r in rows]
    else:
        found, written = content(path).to_pylist(), [_whole(rows, r) for r in rows]
    assert found == written
    assert strata.sweep("tiny", machines, vary, seq_len=[3, 64], output=path) == rows
    assert {r["gpu.ops"] for r in found[4:]} <= {None, ""}


def _whole(rows, row):
    names = dict.fromkeys(name for r in rows for name in record(r))
    return dict.fromkeys(names) | record(row)


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    def sweep(path):
        strata.sweep("tiny", "lightcode", seq_len=8, output=path)

    planned = []
    monkeypatch.setattr(Planner, "rows", lambda *a: planned.append(a))
    with pytest.raises(UserError, match=r"nowhere/s.csv: cannot write the file: No such file or dir"):
        sweep(tmp_path / "nowhere" / "s.csv")
    with pytest.raises(UserError, match=r"nowhere/s.parquet: cannot write the file: .*choose another file"):
        sweep(tmp_path / "nowhere" / "s.parquet")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder.csv: cannot read the file: "):
        sweep(tmp_path / "folder.csv")
    with pytest.raises(UserError, match=r"s.xlsx: got the ending '.xlsx'; expected .csv or .parquet"):
        sweep(tmp_path / "s.xlsx")
    assert planned == []


def test_a_failed_write_leaves_the_file_as_it_was(path, monkeypatch):
    strata.sweep("tiny", "lightcode", seq_len=8, output=path)
    before = content(path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UserError, match="cannot write the file: No space left on device"):
            strata.sweep("tiny", "lightcode", seq_len=[8, 9], output=path)
    assert content(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_files_that_are_no_sweeps(tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="its columns are a, b; this sweep's are model, machine, seq_len"):
        strata.sweep("tiny", "lightcode", seq_len=8, output=other)
    assert other.read_text() == "a,b\n1,2\n"
    other = tmp_path / "other.parquet"
    other.write_text("nonsense")
    with pytest.raises(UserError, match=r"other.parquet: cannot read the file: "):
        strata.sweep("tiny", "lightcode", seq_len=8, output=other)
    broken = tmp_path / "broken.csv"
    strata.sweep("tiny", "lightcode", seq_len=8, output=broken)
    broken.write_text(broken.read_text().replace("energy,", "energy,x"))
    with pytest.raises(UserError, match=r"broken.csv: cannot read"):
        strata.sweep("tiny", "lightcode", seq_len=8, output=broken)
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(UserError, match="its columns are ; this sweep's"):
        strata.sweep("tiny", "lightcode", seq_len=8, output=empty)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"PyArrow is not installed; pip install 'strata-llm\[planner\]'"):
        strata.sweep("tiny", "lightcode", seq_len=8, output=tmp_path / "s.parquet")


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"vary": {"devices.phu.multiplx": [1]}},
            "no parameter 'devices.phu.multiplx'; did you mean devices.phu",
        ),
        (
            {"vary": {MULTIPLEX: [1, 0]}},
            "lightcode, devices.phu.multiplex=0: PHU phu: multiplex: got 0; expect",
        ),
        ({"vary": {MULTIPLEX: "5..2"}}, "the range is empty"),
        ({"vary": {MULTIPLEX: []}}, "got no values"),
        ({"vary": {MULTIPLEX: ["1 GHz"]}}, "expected a whole number"),
        ({"vary": {MULTIPLEX: [1], f"{BITS},{MULTIPLEX}": [2]}}, "devices.phu.multiplex varies twice"),
        ({"vary": {"devices.phu.clock_hz,devices.phu.memory": ["1", "1.0"]}}, "some values are the same for"),
        ({"vary": {"devices.phu.ops": [("matmul",)]}}, "devices.phu.ops: got values of type tuple"),
        ({"vary": {"profile": "lightcod"}}, "lightcode, profile=lightcod: .*cost profile"),
        ({"machine": ["lightcode", "lightcode"]}, "two of the machines have the name 'lightcode'"),
        ({"models": ["tiny", "tiny"]}, "two of the models have the name 'tiny prefill'"),
        ({"models": []}, "got no workload; expected at least one"),
        ({"objective": []}, "got no objective; expected at least one"),
        ({"objective": "speed"}, "objective: got 'speed'"),
        ({"seq_len": 513}, "outside the model"),
        ({"seq_len": None}, "say how long"),
        ({"phase": "request"}, "expected one of prefill, decode"),
        ({"pins": {"nothing": "gpu"}}, "'nothing' fits no op"),
        ({"color": "red"}, "no option 'color'"),
        ({"workers": 0}, "--workers: got 0; expected at least 1"),
    ],
)
def test_mistakes(given, message, monkeypatch):
    planned = []
    monkeypatch.setattr(Planner, "rows", lambda *a: planned.append(a))
    definition = {"models": "tiny", "machine": "lightcode", "seq_len": 8} | given
    with pytest.raises(UserError, match=message):
        strata.sweep(**definition)
    assert planned == []


def test_too_many_plans(monkeypatch):
    monkeypatch.setattr(run_module, "MAX_ROWS", 5)
    with pytest.raises(UserError, match="got 6 plans; expected at most 5; choose fewer values"):
        strata.sweep("tiny", "lightcode", {MULTIPLEX: "1..3"}, seq_len=[8, 9])


def test_a_point_without_a_plan_is_named():
    @strata.op_cost("phu", "matmul")
    def never(device, machine, workload, work, points):
        time_s = strata_array(points, float("inf") if device.multiplex == 2 else 1.0)
        return Estimates(time_s, time_s)

    def strata_array(points, value):
        return evaluate(0, points) + value

    machine = replace_devices(read_machine("lightcode"))
    with pytest.raises(
        UserError, match=r"^lightcode, devices.phu.multiplex=2: plan of tiny prefill on .*inf"
    ):
        strata.sweep(
            "tiny", machine, {MULTIPLEX: [1, 2, 3]}, seq_len=8, pins={"matmul": "phu"}, costs=[never]
        )


def replace_devices(machine):
    return Machine([replace(d) for d in machine.devices], machine.name, machine.profile, machine.memories,
                   machine.links, machine.home)  # fmt: skip


def test_an_op_that_no_device_can_do_is_named_with_the_point():
    machine = Machine([PHU(clock_hz=1e9)], "lone", "lightcode")
    with pytest.raises(
        UserError, match=r"^lone, devices.phu.multiplex=1: .*no device of machine lone can do"
    ):
        strata.sweep("tiny", machine, {MULTIPLEX: [1]}, seq_len=8)


def fixed_cost(value):
    @strata.op_cost("gpu", "softmax")
    def cost(device, machine, workload, work, points):
        return Estimates(evaluate(0, points) + 1.0, evaluate(0, points) + value)

    return cost


def changed_cost(device, machine, workload, work, points):
    return Estimates(evaluate(0, points) + 2.0, evaluate(0, points) + 1.0)


def test_rows_of_other_cost_functions_are_refused(tmp_path):
    file = tmp_path / "rows.csv"
    first = strata.sweep("tiny", "lightcode", seq_len=8, output=file, costs=[fixed_cost(1.0)])
    again = strata.sweep("tiny", "lightcode", seq_len=8, output=file, costs=[fixed_cost(1.0)])
    assert (len(first), again) == (1, first)
    for costs in ([], [strata.op_cost("gpu", "softmax")(changed_cost)]):
        with pytest.raises(
            UserError, match="its rows of tiny prefill on lightcode are of another model or machine"
        ):
            strata.sweep("tiny", "lightcode", seq_len=8, output=file, costs=costs)
