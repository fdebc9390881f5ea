"""Programs as three files, and back: whole functions and steps, damage and mix-ups."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_graphs import mlp, mlp_params

import strata
from strata.core.errors import UserError
from strata.runtime.artifact import CODE, MANIFEST, PLAN, WEIGHTS
from strata.runtime.program import Program

X = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def program() -> Program:
    return strata.compile(mlp(), mlp_params())


@pytest.fixture
def folder(program, tmp_path) -> Path:
    return strata.export(program, tmp_path / "mlp")


def files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / MANIFEST, folder / CODE, folder / WEIGHTS


def test_three_files_are_the_program(program, folder, tmp_path):
    assert sorted(p.name for p in folder.iterdir()) == sorted((MANIFEST, CODE, WEIGHTS, PLAN))
    apart = []
    for number, file in enumerate(files(folder)):
        place = tmp_path / str(number) / f"renamed{number}"
        place.parent.mkdir()
        apart.append(Path(shutil.copy(file, place)))
    want = program["forward"](X).copy()
    loaded = strata.load_graph(*apart)
    np.testing.assert_array_equal(loaded["forward"](X), want)
    run = loaded.step("forward", X)
    assert [n.name for n in run] == [n.name for n in program.nodes("forward")]
    np.testing.assert_array_equal(run.outputs, want)
    # No plan beside it: the kernels are there, estimates are not.
    assert all(n.work({"n": 1}) is None and n.candidates[0].in_image for n in loaded.nodes("forward"))


def test_the_folder_is_an_artifact(program, folder):
    loaded = Program.load(folder, 1)
    np.testing.assert_array_equal(loaded["forward"](X), program["forward"](X))
    first = loaded.nodes("forward")[0]
    assert first.candidates == program.nodes("forward")[0].candidates
    assert first.work({"n": 3})["flop"] > 0
    again = strata.export(loaded, folder.with_name("again"))
    for one, other in zip(files(folder), files(again), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_without_a_plan(program, tmp_path):
    bare = Program(program.record, program.image, program.params)
    loaded = Program.load(strata.export(bare, tmp_path / "bare"))
    np.testing.assert_array_equal(loaded["forward"](X), program["forward"](X))
    assert loaded.nodes("forward")[0].cost({"n": 1}) is None


def test_the_graph_says_what_is_launched(program, folder):
    """The schema of docs/artifact.md."""
    data = json.loads((folder / MANIFEST).read_text())
    assert (data["format"], data["version"]) == ("strata-artifact", 2)
    (function,) = data["program"]["functions"]
    assert function["name"] == "forward"
    assert [launch["node"] for launch in function["launches"]] == [n.name for n in program.nodes("forward")]
    arena = [a for launch in function["launches"] for a in launch["args"] if a["kind"] == "arena"]
    assert all(0 <= a["index"] < function["arena_bytes"] for a in arena)
    kernels = {k["name"] for k in data["program"]["kernels"]}
    assert {c["kernel"] for launch in function["launches"] for c in launch["choices"]} == kernels
    assert {p["name"] for p in data["program"]["params"]} == set(mlp_params())


def test_other_parameters_of_the_same_shapes(program, folder, tmp_path):
    doubled = {name: 2 * array for name, array in mlp_params().items()}
    other = strata.export(strata.compile(mlp(), doubled), tmp_path / "doubled")
    mixed = strata.load_graph(folder / MANIFEST, folder / CODE, other / WEIGHTS)
    np.testing.assert_array_equal(mixed["forward"](X), Program.load(other)["forward"](X))


@pytest.mark.parametrize(
    ("which", "match"),
    [
        (1, r"code.bin: got \d+ bytes; expected \d+; it is cut off"),
        (2, r"weights.safetensors: got \d+ bytes; expected \d+; it is cut off"),
    ],
)
def test_files_of_another_program(folder, tmp_path, which, match):
    other = strata.export(strata.compile(mlp(width=40), mlp_params(width=40)), tmp_path / "other")
    mixed = list(files(folder))
    mixed[which] = files(other)[which]
    with pytest.raises(UserError, match=match):
        strata.load_graph(*mixed[:3])


def test_damaged_files(folder):
    graph, kernels, params = files(folder)
    code = bytearray(kernels.read_bytes())
    code[100] ^= 1
    kernels.write_bytes(code)
    with pytest.raises(UserError, match=r"code.bin: got sha256 .*it is damaged"):
        strata.load_graph(graph, kernels, params)
    with pytest.raises(UserError, match="cannot read: No such file"):
        strata.load_graph(graph, folder / "none", params)
    with pytest.raises(UserError, match=r"weights.safetensors: is no JSON"):
        strata.load_graph(params, kernels, params)
    data = json.loads(graph.read_text())
    data["program"]["functions"][0]["launches"][0]["args"][0]["index"] = 7
    graph.write_text(json.dumps(data))
    with pytest.raises(
        UserError, match=r"manifest.json: program.functions\[0\].launches\[0\].args\[0\].index: got 7"
    ):
        strata.load_graph(graph, kernels, params)


def test_what_cannot_be_exported(program, tmp_path):
    name = program.nodes("forward")[0].name
    program.swap(name, lambda *arrays: None)
    with pytest.raises(
        UserError, match=r"export: kernels or hooks of this process are in forward; call restore\(\)"
    ):
        strata.export(program, tmp_path / "x")
    program.restore()
    strata.export(program, tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; expected the name of a folder"):
        strata.export(program, tmp_path / "file")

    class Elsewhere:
        num_threads = 1

        def function(self, symbol):
            return print

    with pytest.raises(UserError, match="export: the program runs on a Elsewhere; expected a loaded image"):
        strata.export(Program(program.record, Elsewhere(), program.params), tmp_path / "y")
