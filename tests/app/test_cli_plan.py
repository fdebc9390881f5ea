"""``strata plan``: the table of kernels by size, its plot, and the options that change the choice."""

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strata.app.cli import app


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", "--shape", "tiny", "--format", "f32", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def entries(*arguments: str) -> list[dict]:
    return json.loads(run("--json", *arguments))


def test_every_size_has_one_kernel() -> None:
    for entry in entries():
        ranges = entry["ranges"]
        assert all(a["hi"] + 1 == b["lo"] for a, b in itertools.pairwise(ranges))
        assert all(a["candidate"] != b["candidate"] for a, b in itertools.pairwise(ranges))
        names = {c["candidate"] for c in entry["curves"]}
        assert {r["candidate"] for r in ranges} <= names


def test_the_cheapest_candidate_is_chosen_at_every_compared_size() -> None:
    (entry, *_) = [e for e in entries() if len(e["curves"]) > 1]
    curves = {c["candidate"]: dict(map(tuple, c["points"])) for c in entry["curves"]}
    for size in next(iter(curves.values())):
        chosen = next(r["candidate"] for r in entry["ranges"] if r["lo"] <= size <= r["hi"])
        assert curves[chosen][size] <= 1.05 * min(t[size] for t in curves.values())


def test_a_range_changes_the_sizes() -> None:
    whole = {e["dim"]: e["ranges"][-1]["hi"] for e in entries()}
    narrow = {e["dim"]: e["ranges"][-1]["hi"] for e in entries("--range", "n=1..8")}
    assert narrow["n"] == 8 < whole["n"]


def test_a_set_of_sizes_gets_kernels_of_its_own() -> None:
    found = entries("--range", "n=4,16", "--pin", "matmul=*@n=16", "--node", "qkv_proj")
    for entry in found:
        assert (entry["ranges"][0]["lo"], entry["ranges"][-1]["hi"]) == (4, 16)
        assert entry["ranges"][-1]["candidate"].endswith("@n=16")
        assert entry["ranges"][-1]["lo"] == 16


def test_pins_and_preferences() -> None:
    pinned = entries("--pin", "matmul=cpu.matmul.tile4x*", "--node", "qkv_proj")
    assert [[r["candidate"].split("x")[0] for r in e["ranges"]] for e in pinned] == [["cpu.matmul.tile4"]]
    preferred = entries("--prefer", "openblas", "--node", "matmul")
    assert {r["candidate"] for e in preferred for r in e["ranges"]} == {"openblas"}


def test_table_and_plot(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    text = run("--dispatch", "--plot", str(file))
    assert "cpu.matmul.tile1x" in text
    assert "roofline" in text
    assert file.read_text().count("cpu.matmul.tile4x") >= 1 or "<svg" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plot", "plan.txt"), "plan.txt: got suffix '.txt'; expected one of .svg, .png, .pdf"),
        (("--plot", "/nowhere/plan.svg"), "cannot write the figure: No such file or directory"),
        (("--pin", "matmul"), "--pin: got 'matmul'; expected NODE=CANDIDATE"),
        (("--pin", "nothing=cpu.rows"), "--pin nothing=cpu.rows: no node has this name or op"),
        (("--pin", "matmul=cpu.none"), "--pin matmul=cpu.none: no such candidate; there are cpu."),
        (("--prefer", "none"), "--prefer none: no such candidate; there are cpu."),
        (("--range", "n"), "--range: got 'n'; expected DIM=LO..HI"),
        (("--range", "n=5..2"), "--range: got 'n=5..2'; expected 1 <= LO <= HI"),
        (("--range", "q=1..2"), "no symbolic dim 'q'; there are: n"),
        (("--load", "/nowhere.py"), "--load: /nowhere.py: no such file"),
        (("--function", "f"), "--function: got 'f'; this model has: prefill, decode, score"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    assert message in " ".join(run(*arguments, code=2).split())


def test_a_kernel_file_that_fails_says_where(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\ny = x / 0\n")
    assert f"--load: {file}:2: ZeroDivisionError: division by zero" in " ".join(
        run("--load", str(file), code=2).split()
    )
