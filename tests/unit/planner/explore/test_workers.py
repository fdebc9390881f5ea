"""Other processes and a Ray cluster make the same rows; what goes wrong there is told here."""

import importlib
import os
import sys
from functools import partial

import pytest
from ray_nodes import ray_cluster

import strata
from strata.compiler.workloads import read_workload
from strata.core.errors import DeviceError, UserError
from strata.planner.devices.objective import parse_objective
from strata.planner.explore import Axis, Sweep, Workers, explore
from strata.planner.explore import sweep as sweep_module
from strata.planner.explore.sweep import grid_of
from strata.target.hardware import read_machine

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

COST = """
import numpy as np
import strata
from strata.planner.devices.types import Estimates, evaluate

@strata.op_cost("gpu", "softmax")
def slow(device, machine, workload, work, points):
    time_s = 1.0 + evaluate(0, points)
    return Estimates(time_s, time_s)
"""
MACHINE = """
import strata

class Odd(strata.CPU):
    pass

machine = strata.Machine([Odd(clock_hz=1e9)], name="odd", profile="lightcode")
"""


@pytest.fixture(scope="module")
def address():
    with ray_cluster(2) as found:
        yield found


@pytest.fixture
def who(request):
    """Workers of each sort: processes, or the cluster."""
    if request.param == "processes":
        return {"workers": 2}
    return {"ray": request.getfixturevalue("address")}


@pytest.fixture
def costs(tmp_path):
    """A file with a cost function."""
    file = tmp_path / "costs.py"
    file.write_text(COST)
    return file


everywhere = pytest.mark.parametrize("who", ["processes", "ray"], indirect=True)
VARY = {"devices.phu.multiplex": "1..7", "devices.phu.cores": [1, 3]}


@everywhere
def test_the_same_rows_and_files_whoever_makes_them(who, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "POINTS_AT_ONCE", 3)
    made = []
    for k, given in enumerate(({}, who)):
        path = tmp_path / f"{k}.csv"
        rows = strata.sweep(
            ["tiny", "gpt2-124m"], ["lightcode", "lightcode-honest"], VARY, seq_len=[8, 64],
            objective=["energy", "time"], output=path, **given,
        )  # fmt: skip
        made.append((rows, path.read_bytes()))
    assert len(made[0][0]) == 2 * 2 * 14 * 2 * 2
    assert made[0] == made[1]


@everywhere
def test_functions_of_the_users_files_are_known_everywhere(who, costs):
    alone = strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", load=[costs])
    assert alone == strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", load=[costs], **who)
    assert min(row.time_s for row in alone) > 1.0
    after = strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", **who)
    assert max(row.time_s for row in after) < 1.0  # nothing carries over


@everywhere
def test_functions_that_workers_can_import(who, tmp_path, monkeypatch):
    (tmp_path / "importable_costs.py").write_text(COST)
    monkeypatch.syspath_prepend(tmp_path)
    cost = importlib.import_module("importable_costs").slow
    wanted = strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", costs=[cost])
    if "ray" in who:  # its workers began before: they look elsewhere
        with pytest.raises(
            UserError, match=r"a worker lacks what the sweep is of \(No module named 'importable_c"
        ):
            strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", costs=[cost], **who)
        return
    assert wanted == strata.sweep("tiny", "lightcode", VARY, seq_len=8, objective="time", costs=[cost], **who)
    assert min(row.time_s for row in wanted) > 1.0


@everywhere
def test_mistakes_of_workers_are_told(who, costs):
    costs.write_text(COST.replace("1.0 +", "float('inf') +"))
    with pytest.raises(
        UserError, match=r"^lightcode, devices.phu.multiplex=1, devices.phu.cores=1: plan of tiny"
    ):
        strata.sweep("tiny", "lightcode", VARY, seq_len=8, load=[costs], **who)


@everywhere
def test_machines_of_classes_that_workers_cannot_import(who, tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(MACHINE)
    assert len(strata.sweep("tiny", path, seq_len=[8, 9])) == 2
    with pytest.raises(UserError, match="the machines or models cannot be sent to workers"):
        strata.sweep("tiny", path, seq_len=8, **who)


def small_sweep() -> Sweep:
    grid = grid_of(read_machine("lightcode"), [Axis(("devices.phu.multiplex",), ("1..3",))])
    return Sweep((read_workload("tiny"),), (grid,), ((8,),), (parse_objective("energy"),))


def test_processes_that_die():
    workers = Workers(2, setup=partial(os._exit, 1))
    with pytest.raises(DeviceError, match="a worker process ended before its plans were made"):
        explore(small_sweep(), workers=workers)


def test_a_cluster_that_loses_workers(address):
    workers = Workers(ray=address, setup=partial(os._exit, 1))
    with pytest.raises(DeviceError, match="--ray: the cluster lost a worker 3 times"):
        explore(small_sweep(), workers=workers)


def test_without_a_cluster_the_address_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"--ray: cannot connect to 127\.0\.0\.1:1:"):
        strata.sweep("tiny", "lightcode", seq_len=8, ray="127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install 'strata-llm\[ray\]'"):
        strata.sweep("tiny", "lightcode", seq_len=8, ray="auto")
