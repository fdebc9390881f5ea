"""``strata devices``: this machine, the libraries and how to get them, the known machines."""

import dataclasses
import json

import pytest

from strata.app import devices
from strata.core.errors import UnsupportedError
from strata.runtime.libraries import LIBRARIES
from strata.target import TARGETS, detect_host


def test_json_has_what_the_target_says(strata):
    result = strata("devices", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    host = detect_host()
    assert figures["host"]["cores"] == host.num_cores
    assert figures["host"]["features"] == list(host.features)
    assert figures["host"]["peak_f32_flop_per_s"] == host.peak_f32_flop_per_s
    assert figures["host"]["source"] == host.source
    assert figures["host_problem"] is None
    assert [t["name"] for t in figures["targets"]] == list(TARGETS)
    libraries = {x["name"]: x for x in figures["libraries"]}
    assert list(libraries) == list(LIBRARIES)
    openblas = libraries["openblas"]
    assert openblas["found"]
    assert openblas["path"] == str(LIBRARIES["openblas"].find())
    assert openblas["version"] == LIBRARIES["openblas"].version()
    assert openblas["licence"] == "BSD-3-Clause"
    assert openblas["functions"] == ["sgemm", "sgemv"]


def test_table(strata):
    text = strata("devices").stdout
    host = detect_host()
    assert f"{host.peak_f32_flop_per_s / 1e9:.0f} GFLOP/s" in text
    assert f"{host.bandwidth_bytes_per_s / 1e9:.0f} GB/s" in text
    for name in (*LIBRARIES, *TARGETS):
        assert name in text


def test_a_library_that_is_not_there(strata, monkeypatch):
    missing = dataclasses.replace(LIBRARIES["onednn"], package="strata-no-such-package")
    monkeypatch.setitem(LIBRARIES, "onednn", missing)
    assert "not found; python3 -m pip install strata-no-such-package" in strata("devices").stdout
    (figures,) = [
        x for x in json.loads(strata("devices", "--json").stdout)["libraries"] if x["name"] == "onednn"
    ]
    assert (figures["found"], figures["version"], figures["path"]) == (False, None, None)
    assert figures["install"] == "python3 -m pip install strata-no-such-package"


def test_a_machine_without_code_generation(strata, monkeypatch):
    def refuse():
        raise UnsupportedError("host: got a toaster")

    monkeypatch.setattr(devices, "detect_host", refuse)
    assert "host: got a toaster" in strata("devices").stdout
    figures = json.loads(strata("devices", "--json").stdout)
    assert (figures["host"], figures["host_problem"]) == (None, "host: got a toaster")


@pytest.mark.parametrize(
    ("text", "model"), [("processor: 0\nmodel name\t: Fast: 9000\n", "Fast: 9000"), ("", "unknown")]
)
def test_the_processor_by_name(tmp_path, text, model):
    (tmp_path / "cpuinfo").write_text(text)
    assert devices._cpu_model(tmp_path / "cpuinfo") == model
    assert devices._cpu_model(tmp_path / "nothing") == "unknown"
