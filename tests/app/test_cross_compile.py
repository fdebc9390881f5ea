"""Artifacts for other machines: made here, refused here."""

import json

from strata.runtime.artifact import read_record
from strata.runtime.image import parse_image
from strata.target import TARGETS, parse_target


def test_artifact_for_another_machine(strata, small, tmp_path):
    done = strata("compile", small, "-o", tmp_path / "arm", "--target", "neon-dotprod", "--json")
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "arm"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["machine"] == "aarch64"
    record = read_record(folder)
    assert parse_target(record.target) == TARGETS["neon-dotprod"]
    assert record.features == ("dotprod", "fp-armv8", "neon")
    assert parse_image((folder / "code.bin").read_bytes()).machine == 183
    refused = strata("generate", "x", "--artifact", folder)
    assert refused.exit_code == 2
    assert "machine: got 'aarch64'; expected 'x86_64'; compile it here" in refused.stderr


def test_no_such_target(strata, small, tmp_path):
    refused = strata("compile", small, "-o", tmp_path / "x", "--target", "sparc")
    assert refused.exit_code == 2
    assert "target: got 'sparc'; expected one of host, avx2, avx2-vnni" in refused.stderr
    assert not (tmp_path / "x").exists()
