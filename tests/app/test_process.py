"""The program as a process: exit codes on signals and broken pipes, what it imports."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import strata as package

STRATA = Path(sys.executable).with_name("strata")
LONG = ["--max-tokens", "1000", "--ignore-eos"]


def heed_interrupts():
    """A shell starts background jobs with Ctrl-C ignored, which children inherit: undo that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args, **options):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pipes["preexec_fn"] = heed_interrupts
    return subprocess.Popen([STRATA, *map(str, args)], **{**pipes, **options})


def test_version_and_help():
    out, _ = start("--version").communicate(timeout=60)
    assert out.decode() == f"strata {package.__version__}\n"
    process = start("--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    for command in ("generate", "chat", "compile", "inspect", "bench"):
        assert f"\n  {command} ".encode() in out
    process = start("compile", "-h")
    assert b"-o, --output" in process.communicate(timeout=60)[0]


def test_ctrl_c_ends_quietly(artifact):
    process = start("generate", "def f(", "--artifact", artifact, *LONG)
    process.stdout.read(len("def f(") + 20)  # it is generating
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


def test_ctrl_c_in_a_piped_chat(artifact):
    process = start("chat", "--artifact", artifact, "--max-tokens", "1000")
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("options", [LONG, ["--json"]])
def test_a_reader_that_leaves(artifact, options):
    with start("generate", "def f(", "--artifact", artifact, *options) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_a_full_disk(artifact):
    with open("/dev/full", "wb") as full:
        process = start("generate", "x", "--artifact", artifact, "--max-tokens", "2", stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (2, b"strata: No space left on device\n")


@pytest.mark.parametrize(("redirect", "message"), [("<&-", "prompt: is empty"), (">&-", ""), ("2>&-", "")])
def test_closed_streams(artifact, redirect, message):
    command = f"echo x | {STRATA} generate - --max-tokens 1 --artifact {artifact} {redirect}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.returncode == (2 if message else 0)
    assert "Traceback" not in result.stderr
    assert message in result.stderr


IMPORTED = """
import sys
from strata.app.cli import main
sys.argv[0] = "strata"
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
names = [name.split(".") for name, module in sys.modules.items() if module is not None]
print(*{".".join(name[:2]) if name[0] == "strata" else name[0] for name in names})
"""


def imported_by(*args) -> set[str]:
    run = [sys.executable, "-c", IMPORTED, *map(str, args)]
    return set(
        subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split()
    )


HEAVY = {"torch", "transformers", "llvmlite", "rich", "pygments", "huggingface_hub", "safetensors"}
COMPILER = {
    f"strata.{name}"
    for name in (
        "codegen",
        "frontend",
        "graph",
        "ir",
        "loop",
        "lower",
        "models",
        "passes",
        "plan",
        "schedule",
    )
}


def test_an_artifact_imports_nothing_of_the_compiler(artifact):
    names = imported_by("generate", "x", "--artifact", artifact, "--max-tokens", "1")
    assert not names & (HEAVY | COMPILER | {"strata.compiler"})


def test_a_start_from_the_cache_imports_nothing_of_the_compiler():
    imported_by("generate", "x", "--max-tokens", "1")
    names = imported_by("generate", "x", "--max-tokens", "1")
    options = {"strata.planner", "strata.planner.options"}  # what was asked for is part of the cache's key
    assert {n for n in names if n.startswith("strata.planner")} <= options
    assert not names & (HEAVY | COMPILER - options)


def test_pytorch_stays_out_while_compiling(small, tmp_path):
    names = imported_by("compile", small, "-o", tmp_path / "out")
    assert "llvmlite" in names
    assert not names & {"torch", "transformers", "rich"}


def test_no_interference_of_the_environment(artifact):
    """Output is UTF-8 or replaced, also where the locale is not."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = start("generate", "é", "--artifact", artifact, "--max-tokens", "1", env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith(b"?")
    assert b"decode 1 tokens" in err
