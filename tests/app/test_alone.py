"""An artifact runs in a virtual environment without llvmlite and without the compiler's packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

import strata as package

NEEDED = ("numpy", "ml_dtypes", "apache-tvm-ffi", "tokenizers", "jinja2", "typer")
PACKAGES = ("assets", "core", "target", "runtime", "engine", "app")  # target: data about machines


def with_requirements(names: tuple[str, ...]) -> dict[str, Distribution]:
    """The distributions and all that they require (without extras), by name."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        found[name] = distribution(name)
        for requirement in found[name].requires or ():
            marker = requirement.partition(";")[2]
            if "extra" not in marker and "platform" not in marker and "python_version" not in marker:
                left.append(re.match(r"[\w.-]+", requirement)[0])
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment: links to the needed distributions only, copies of PACKAGES."""
    root = tmp_path_factory.mktemp("alone") / "venv"
    venv.create(root, symlinks=True, with_pip=False)
    python = root / "bin" / "python"
    site = next(root.glob("lib/python*/site-packages"))
    for found in with_requirements(NEEDED).values():
        tops = {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for top in sorted(tops):
            (site / top).symlink_to(Path(str(found.locate_file(top))))
    source = Path(package.__file__).parent
    (site / "strata").mkdir()
    shutil.copy(source / "__init__.py", site / "strata")
    for name in PACKAGES:
        shutil.copytree(source / name, site / "strata" / name)
    return python


def run(alone: Path, *args: object, code: str = "from strata.app.cli import main; main()"):
    command = [alone, "-I", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_the_environment_lacks_the_compiler(alone):
    for name in ("llvmlite", "strata.compiler", "strata.codegen", "strata.graph", "strata.loop", "torch"):
        result = run(alone, code=f"import {name}")
        assert f"No module named '{name}'" in result.stderr
    assert alone.parent.parent != Path(sys.prefix)


def test_generate(alone, artifact, strata):
    args = ["generate", "def read_lines(path):", "--max-tokens", 40, "--artifact", artifact]
    result = run(alone, *args)
    assert result.returncode == 0, result.stderr
    assert result.stdout == strata(*args).stdout
    assert re.match(r"\[loaded in \d\.\d\d s ", result.stderr)


def test_python(alone, artifact, model):
    code = f"""
from strata import LanguageModel
model = LanguageModel.load({str(artifact)!r})
print(repr(model.generate("class A:", max_tokens=12).text))
print(model.perplexity("import os, sys"))
"""
    result = run(alone, code=code)
    assert result.returncode == 0, result.stderr
    text, perplexity = result.stdout.splitlines()
    assert text == repr(model.generate("class A:", max_tokens=12).text)
    assert float(perplexity) == model.perplexity("import os, sys")


def test_compiling_there_is_a_clear_error(alone):
    result = run(alone, "generate", "x")
    assert result.returncode == 2
    assert result.stderr == (
        "strata: cannot compile here: No module named 'strata.compiler'; "
        "install all of strata-llm, or use --artifact\n"
    )
