"""``strata sweep``: rows as a file, as CSV or JSON; goes on; one line for mistakes."""

import csv
import io
import json

from typer.testing import CliRunner

import strata
from strata.app.cli import app
from strata.planner.explore.table import record

SWEEP = ("sweep", "tiny", "--machine", "lightcode", "--seq-len", "8,64")
VARY = ("--vary", "devices.phu.multiplex=1,5", "--vary", "devices.phu.dac.bits=4..5")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def rows(**more) -> list:
    vary = {"devices.phu.multiplex": [1, 5], "devices.phu.dac.bits": [4, 5]}
    return strata.sweep("tiny", "lightcode", vary, seq_len=[8, 64], **more)


def test_rows_are_those_of_the_python_function():
    options = ("--objective", "energy, time", "--batch", 2, "--pin", "softmax=gpu", "--format", "int4")
    found = json.loads(run(*SWEEP, *VARY, *options, "--json"))
    wanted = rows(objective=["energy", "time"], batch=2, pins={"softmax": "gpu"}, format="int4")
    assert found == [record(row) for row in wanted]
    lines = list(csv.DictReader(io.StringIO(run(*SWEEP, *VARY))))
    assert [float(line["energy_j"]) for line in lines] == [row.energy_j for row in rows()]


def test_a_file_is_written_and_gone_on_with(tmp_path):
    path = tmp_path / "sweep.parquet"
    assert f"{path}: 8 plans, 8 of them new, in " in run(*SWEEP, *VARY, "-o", path)
    text = run(*SWEEP, *VARY, "-o", path)
    assert f"{path}: 8 plans, 0 of them new, in " in text
    assert "per minute" not in text
    more = json.loads(run(*SWEEP, *VARY, "--vary", "profile=lightcode", "-o", tmp_path / "b.csv", "--json"))
    assert (more["plans"], more["new"], more["output"]) == (8, 8, str(tmp_path / "b.csv"))
    figures = json.loads(run(*SWEEP, *VARY, "--objective", "energy,edp", "-o", path, "--json"))
    assert (figures["plans"], figures["new"]) == (16, 8)


def test_machines_models_and_processes(tmp_path):
    costs = tmp_path / "costs.py"
    costs.write_text(
        "import strata\nfrom strata.planner.devices.types import Estimates, evaluate\n"
        '@strata.op_cost("gpu", "softmax")\n'
        "def cost(device, machine, workload, work, points):\n"
        "    one = evaluate(0, points) + 1.0\n"
        "    return Estimates(one, one)\n"
    )
    found = json.loads(
        run(
            *("sweep", "tiny", "gpt2-124m", "--machine", "lightcode", "--machine", "lightcode-honest"),
            *("--seq-len", 8, "--workers", 2, "--load", costs, "--devices", "gpu", "--json"),
        )
    )
    assert [(f["model"], f["machine"]) for f in found] == [
        (f"{model} prefill", machine)
        for model in ("tiny", "gpt2-124m")
        for machine in ("lightcode", "lightcode-honest")
    ]
    assert all(f["energy_j"] > 1 for f in found)


def test_mistakes_are_one_line(tmp_path):
    for arguments, message in (
        ((*SWEEP, "--vary", "devices.phu.multiplx=3"), "did you mean devices.phu.multiplex?"),
        (
            (*SWEEP, "--vary", "devices.phu.multiplex"),
            "--vary: got 'devices.phu.multiplex'; expected PATH=VAL",
        ),
        ((*SWEEP, "--vary", "devices.phu.multiplex=0"), "multiplex: got 0; expected > 0"),
        ((*SWEEP, "--vary", "devices.phu.multiplex=5..2"), "the range is empty"),
        ((*SWEEP, "-o", tmp_path / "no" / "s.csv"), "cannot write the file"),
        ((*SWEEP, "--workers", 0), "--workers: got 0"),
        ((*SWEEP, "--load", tmp_path / "no.py"), "no such file"),
        (("sweep", "no-such-model", "--machine", "lightcode", "--seq-len", 8), "model: got 'no-such-model'"),
        (("sweep", "tiny", "--machine", "lightcod", "--seq-len", 8), "did you mean 'lightcode'"),
    ):
        line = run(*arguments, code=2)
        assert line.startswith("strata: ")
        assert line.count("\n") == 1
        assert message in line
