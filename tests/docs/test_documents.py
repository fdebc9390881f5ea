"""What the documents say is true: code runs, commands and links exist, pages from code are up to date."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from session_cache import session_cache
from typer.testing import CliRunner

import strata
from strata.app.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("*.py"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """Run a program in an empty folder beside links to the repository's folders; gives what it printed."""
    env = {**os.environ, "STRATA_CACHE_DIR": str(session_cache(tmp_path_factory))}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    for name in ("src", "examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)

    def go(*command: str) -> str:
        result = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-500:]}\n{result.stderr[-2000:]}"
        return result.stdout

    return go


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_of_the_readme(run, number, tmp_path):
    (tmp_path / "readme.py").write_text(blocks("python")[number])
    assert run(sys.executable, "-W", "error", "readme.py") != ""


def commands() -> list[str]:
    """Lines of the README's console blocks, joined commands apart."""
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [part.strip() for line in lines for part in line.split("&&")]


def test_strata_commands_of_the_readme(run):
    """In order, in one folder: the second needs what the first made."""
    mine = [c for c in commands() if "strata" in c and not c.startswith(("pip", "python"))]
    assert len(mine) >= 5
    for command in mine:
        # Fewer tokens and repetitions do not change whether a command is right.
        short = command.replace("--prompt 128", "--prompt 16 --context 4 --decode 2 --repeats 1")
        assert run("bash", "-c", short + (" --max-tokens 8" if "generate" in short else "")) != ""


def test_other_commands_of_the_readme():
    others = [shlex.split(c) for c in commands() if c.startswith(("pip", "python"))]
    for words in others:
        if words[0] == "python":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[-2] == "install" or words[-1] == "pytest"
            assert words[-1] in (".", ".[test]", ".[torch]", ".[plot,planner]", "pytest")


def test_options_that_documents_name_exist():
    options: dict[str, str] = {}
    for page in PAGES:
        for code in re.findall(r"`(strata [^`]+)`", page.read_text(encoding="utf-8")):
            # The second word is an argument, or the command of a group.
            words = [w for w in code.split()[1:3] if w[0] not in "-["]
            command = " ".join(words)
            if command not in options:
                result = CliRunner().invoke(app, [*words, "--help"])
                assert result.exit_code == 0, f"{page.name}: {code}"
                options[command] = result.stdout
            for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", code):
                assert f"{option} " in options[command] or f"{option}," in options[command], code


def test_names_that_the_readme_imports_exist():
    for name in re.findall(r"`?strata\.(\w+)\(", README):
        assert callable(getattr(strata, name)), name
    for name in re.findall(r"`model\.(\w+)", README):
        assert hasattr(strata.LanguageModel, name), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_run(run, tutorial):
    assert run(sys.executable, "-W", "error", str(tutorial)) != ""
    prose = [line for line in tutorial.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    for target in re.findall(r"\]\(([^)#\s]+)\)", "\n".join(prose)):
        assert (tutorial.parent / target).exists(), target


@pytest.mark.parametrize("page", ["add_device.md", "add_op_cost.md", "explore.md", "simulate_photonics.md"])
def test_how_tos_of_machines_run(run, page, tmp_path):
    """A block that begins with a file's name is that file; then the commands run, or the files if none."""
    text = (ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")
    files = re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, re.DOTALL)
    for name, content in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    lines = [
        line[2:] for b in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in b.splitlines()
    ]
    assert files
    for command in lines or [f"{sys.executable} -W error {name}" for name, _ in files]:
        assert run(*shlex.split(command)) != ""


def test_pages_from_code_are_up_to_date():
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
