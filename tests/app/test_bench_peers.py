"""Peers of ``strata bench``: the line protocol, crashes, time limits, what counts as a peer.

The peers themselves are in an environment that tests do not have; small scripts speak for them.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from strata.app.bench import measure, peers
from strata.app.bench.install import LIBRARIES, install_peers
from strata.app.bench.others import OtherWork
from strata.app.bench.peers import (
    PEERS,
    SCRIPTS,
    Peer,
    PeerError,
    PeerProcess,
    PeerRunner,
    Place,
    find_peers,
    made_model,
)
from strata.app.bench.shapes import peer_values
from strata.core.errors import UserError

PEER = """
import os, sys, time
sys.path.insert(0, {scripts!r})
from serve import serve

class Echo:
    def make(self, config, precision, path):
        with open(path, "w") as file:
            file.write(f"{{precision}} {{config['vocab_size']}}")

    def load(self, path, threads, tokens, batch):
        print("a library that talks")  # not into the answers
        self.text = open(path).read()
        return f"echo {{self.text}} {{threads}} {{tokens}} {{batch}}"

    def prefill(self, tokens):
        if tokens == 13:
            raise ValueError("unlucky")
        if tokens == 99:
            os.abort()
        if tokens == 60:
            time.sleep(60)
        return tokens / 1000

    def decode(self, context, tokens, batch):
        if batch > 2:
            raise ValueError("two at most")
        return context + tokens / batch

serve(Echo())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An environment whose Python is this one, and a script ``run_echo.py``."""
    monkeypatch.setenv("STRATA_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "run_echo.py").write_text(PEER.format(scripts=str(SCRIPTS)))
    monkeypatch.setattr(peers, "SCRIPTS", folder)
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    return Place(tmp_path / "env", 10.0)


ECHO = Peer("echo", "f32", ("f32",), "run_echo.py", ".txt", "Echo f32", refuses={"Odd": "Echo has no Odd"})
OTHER = Peer("other", "f32", ("f32",), "run_echo.py", ".txt", "Other f32", refuses={"LlamaForCausalLM": "no"})
VALUES = peer_values("tiny")


def test_protocol(place):
    runner = PeerRunner(ECHO, place, VALUES, 2, 64, 3)
    try:
        assert runner.version == "echo f32 512 2 64 3"
        assert runner.load_s > 0
        assert runner.prefill(20) == 0.02
        assert runner.decode(5, 4, 2) == 7.0
        assert runner.peak_rss_bytes > 1 << 20
        assert runner.pid > 0
    finally:
        runner.close()
    path = made_model(ECHO, place, VALUES)
    made = path.stat().st_mtime_ns
    assert made_model(ECHO, place, VALUES).stat().st_mtime_ns == made  # not again
    assert made_model(ECHO, place, {**VALUES, "vocab_size": 7}).read_text() == "f32 7"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (13, r"prefill ended with status 1: ValueError: unlucky \(log: .*echo.log\)"),
        (99, "prefill ended with signal SIGABRT: "),
    ],
)
def test_a_peer_that_dies(place, tokens, message):
    runner = PeerRunner(ECHO, place, VALUES, 1, 64, 1)
    with pytest.raises(PeerError, match=message):
        runner.prefill(tokens)


def test_a_peer_that_hangs(place):
    runner = PeerRunner(ECHO, Place(place.environment, 0.5), VALUES, 1, 64, 1)
    with pytest.raises(PeerError, match="prefill took longer than 0 s"):
        runner.prefill(60)
    assert not Path(f"/proc/{runner.pid}").exists()


def test_a_peer_that_says_nothing(place, tmp_path):
    (tmp_path / "scripts" / "run_echo.py").write_text("")
    with PeerProcess(place.python, "run_echo.py", tmp_path / "log", 10.0) as process:
        time.sleep(0.2)
        with pytest.raises(PeerError, match="load ended with status 0: nothing said"):
            process.ask("load")


def test_an_architecture_that_a_peer_refuses(place):
    with pytest.raises(PeerError, match="Echo has no Odd"):
        PeerRunner(ECHO, place, {"architectures": ["Odd"]}, 1, 64, 1)


def test_no_environment(tmp_path):
    with pytest.raises(UserError, match="no environment of peers; make it with strata bench --install-peers"):
        assert Place(tmp_path).python


def test_peers_of_a_format():
    assert [p.name for p in find_peers("int4")] == ["llama.cpp-q4_0", "openvino-q4_0", "onnxruntime-int4"]
    for text in ("int4:group=64", "q4", "mixed", "int4;lm_head=bf16"):
        assert find_peers(text) == find_peers("int4")
    assert [p.name for p in find_peers("f32")] == ["llama.cpp-f32", "torch-f32"]
    names = ["llama.cpp-bf16", "llama.cpp-f16", "openvino-f16", "torch-bf16"]
    assert [p.name for p in find_peers("bf16")] == [p.name for p in find_peers("f16")] == names
    some = find_peers("bf16", ["torch-compiled", "openv"])
    assert [p.name for p in some] == ["openvino-f16", "torch-compiled-bf16"]
    with pytest.raises(UserError, match=r"--only: no peer 'torch' for format int8; peers: llama.cpp-q8_0, "):
        find_peers("int8", ["torch"])
    assert len({p.name for p in PEERS}) == len(PEERS)
    assert all((SCRIPTS / p.script).is_file() for p in PEERS)


@pytest.fixture
def echo(place, monkeypatch):
    """A bench whose f32 has two peers, one of which refuses Llama."""
    monkeypatch.setattr(peers, "PEERS", (ECHO, OTHER))
    monkeypatch.setattr(measure, "measure_bandwidth", lambda threads, repeats: 1e10)
    monkeypatch.setattr(measure, "measure_peak", lambda threads, name, repeats: 1e12)
    monkeypatch.setattr(measure, "measure_sustained_peak", lambda threads, name: 9e11)
    monkeypatch.setattr(measure, "REST_S", 0.0)
    sizes = ["--context", 8, "--decode", 4, "--repeats", 2]
    return [
        "bench",
        "--shape",
        "tiny",
        "--format",
        "f32",
        *sizes,
        "--peers",
        "--peers-env",
        place.environment,
    ]


def test_ratios(strata, echo):
    figures = json.loads(strata(*echo, "--prompt", 40, "--batch", 2, "--json").stdout)
    first, second = figures["peers"]
    assert first["version"] == "echo f32 512 2 41 2"
    assert first["prefill_tokens_per_s"] == 1000.0
    assert first["decode_tokens_per_s"] == pytest.approx(4 / 12)
    assert first["batch_tokens_per_s"] == pytest.approx(8 / 10)
    assert first["batch_over_one"] == pytest.approx(2.4)
    for phase in ("prefill", "decode", "batch"):
        pairs = zip(first["seconds"][phase], figures["seconds"][phase], strict=True)
        assert first[f"{phase}_ratio"] == pytest.approx(median(theirs / ours for theirs, ours in pairs))
        assert first[f"{phase}_spread"] == 0
    assert second == {"name": "other", "title": "Other f32", "not_available": "no"}


def test_table_of_peers(strata, echo):
    text = strata(*echo, "--prompt", 40).stdout
    assert "Echo f32" in text
    assert "1000.0" in text
    assert "Other f32: not available: no" in text


def test_a_peer_that_fails_midway(strata, echo):
    """What it did is kept, the rest is said, and the others go on."""
    figures = json.loads(strata(*echo, "--prompt", 40, "--batch", 3, "--json").stdout)
    (first, _) = figures["peers"]
    assert first["prefill_ratio"] > 0
    assert "decode_ratio" not in first
    assert first["failed"].startswith("batch: decode ended with status 1: ValueError: two at most")
    assert figures["batch_tokens_per_s"] > 0
    text = " ".join(strata(*echo, "--prompt", 13).stdout.split())
    assert "Echo f32: failed: prefill: prefill ended with status 1: ValueError: unlucky" in text


def test_busy_machine_is_said(strata, echo, monkeypatch):
    monkeypatch.setattr(OtherWork, "cores", lambda self: 1.25)
    text = strata(*echo, "--prompt", 40).stdout
    assert "other programs kept 1.2 cores busy meanwhile" in text
    figures = json.loads(strata(*echo, "--prompt", 40, "--json").stdout)
    assert figures["other_cores"] == 1.25


def test_mistakes_about_peers(strata, echo, tmp_path):
    result = strata("bench", "--peers", "--peers-env", tmp_path)
    assert result.exit_code == 2
    assert "--peers: expected --shape NAME" in result.stderr
    result = strata(*echo[:-1], tmp_path / "nothing")
    assert result.exit_code == 2
    assert "no environment of peers" in result.stderr


def test_other_work_counts_neither_us_nor_peers():
    watch = OtherWork([os.getpid()])
    busy = watch.cores()
    assert busy is None or busy >= 0
    assert OtherWork([1 << 30]).cores() is not None or not Path("/proc/stat").exists()


def test_install(tmp_path, monkeypatch):
    """Libraries are installed one by one: one that fails does not keep the others away."""
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(
        '#!/bin/sh\necho "$CMAKE_ARGS $*" >> "$(dirname "$0")/calls"\n'
        'case "$*" in *openvino*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    found = install_peers(environment)
    failed = {name for name, why in found.items() if why == "pip ended with status 3"}
    assert (set(found), failed) == ({lib.name for lib in LIBRARIES}, {"OpenVINO GenAI"})
    calls = (environment / "bin" / "calls").read_text().splitlines()
    assert [c.split("-m ")[1].split()[:3] for c in calls] == [
        ["pip", "install", lib.requirements[0]] for lib in LIBRARIES
    ]
    assert [c.startswith("-DGGML_NATIVE=ON") for c in calls] == ["llama" in lib.name for lib in LIBRARIES]


def test_install_from_the_command_line(strata, tmp_path, monkeypatch):
    found = {"A": "", "B": "no wheel"}
    monkeypatch.setattr("strata.app.bench.install.install_peers", lambda environment: found)
    result = strata("bench", "--install-peers", "--peers-env", tmp_path / "env")
    assert result.exit_code == 2
    assert "not installed: B: no wheel; see install.log there" in result.stderr
    del found["B"]
    assert "peers installed" in strata("bench", "--install-peers", "--peers-env", tmp_path / "env").stdout


def test_an_environment_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make an environment of peers"):
        install_peers(tmp_path / "file" / "env")
