"""The study of photonic savings runs, and what its report says is what its tables say."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "photonic_study"
pytestmark = pytest.mark.timeout(300)  # the study takes most of it where other programs run, too


def study(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(STUDY / "study.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    result = study("--output", str(folder), "--quick")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Conclusions" in result.stdout
    return folder


def table(output: Path, name: str) -> list[dict[str, str]]:
    with (output / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_starts_from_lightcodes_own_savings(output):
    """Against the plans that LightCode published, in the report as in the tables."""
    here = {
        (r["model"], r["length"]): float(r["saving"])
        for r in table(output, "claims")
        if r["machine"] == "lightcode"
    }
    for row in table(output, "published"):
        assert here[row["model"], row["length"]] == pytest.approx(float(row["published_saving"]), abs=1e-3)
    assert "as its own figures say" in (output / "report.md").read_text()


def test_the_ablation_ends_at_the_charged_machine(output):
    rows = table(output, "ablation")
    best = {(r["kind"], r["charge"], r["length"]): float(r["best_j"]) for r in rows}
    for length in {r["length"] for r in rows}:
        assert best["one by one", "+ launches", length] == best["base and", "nothing else", length]
    assert all(float(r["saving"]) >= -1e-9 for r in rows)
    assert all(float(r["saving"]) >= float(r["forced_saving"]) - 1e-9 for r in rows)


def test_more_expensive_converters_and_smaller_tiles_never_help(output):
    ratio = {(r["base"], r["knob"], r["setting"]): float(r["ratio"]) for r in table(output, "sensitivity")}
    for base in {key[0] for key in ratio}:
        assert ratio[base, "converter energy", "x 0.1"] < ratio[base, "base", ""]
        assert ratio[base, "converter energy", "x 10"] > ratio[base, "base", ""]
        assert ratio[base, "tile of held weights", "8"] > ratio[base, "tile of held weights", "1024"]
    for row in table(output, "decode"):
        assert float(row["saving"]) <= float(row["bound"]) + 1e-9


def test_the_report_is_whole(output):
    page, text = (output / "report.html").read_text(), (output / "report.md").read_text()
    figures = re.findall(r"!\[\w+\]\((figures/\w+\.svg)\)", text)
    assert len(figures) == page.count("<svg") == len(list((output / "figures").glob("*.png")))
    assert all((output / name).is_file() for name in figures)
    loaded = re.findall(r"""(?:src|href)="(?!#|data:)|url\((?!#|data:)""", page)
    assert not loaded
    saving = max(float(r["saving"]) for r in table(output, "claims") if r["machine"] == "lightcode")
    assert f"at most {saving:.1%} at any length" in text
    assert "nan" not in text


def test_bad_input_is_named(tmp_path):
    result = study("--output", str(tmp_path), "--graphs", str(tmp_path))
    assert result.returncode == 2
    assert "no gpt2_prefill_graph.json.gz" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_documents_name_what_there_is():
    page = (STUDY / "README.md").read_text()
    for name in re.findall(r"`(\w+\.py)`", page):
        assert (STUDY / name).is_file(), name
    for target in re.findall(r"\]\(([^)#\s]+)\)", page):
        assert (STUDY / target).exists(), target
    names = re.findall(r"def (\w+)\(scope: Scope\) -> Rows", (STUDY / "experiments.py").read_text())
    assert set(names) == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
