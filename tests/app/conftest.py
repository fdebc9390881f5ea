"""The command line on the demo model, in this process; one cache and one artifact per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from folders import small_model
from session_cache import session_cache
from typer.testing import CliRunner, Result

from strata.app.cli import app
from strata.app.session import DEMO_MODEL
from strata.engine.generate import LanguageModel

Strata = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code goes to the session's temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRATA_CACHE_DIR", str(session_cache(tmp_path_factory)))
        yield


@pytest.fixture(scope="session")
def strata() -> Strata:
    """Run a command: ``strata("generate", "x", "--max-tokens", 3)``; has exit_code, stdout and stderr."""

    def run(*args: object, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in args], input=stdin, env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that compiles in a moment."""
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def artifact(strata: Strata, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, compiled."""
    folder = tmp_path_factory.mktemp("compiled") / "demo"
    result = strata("compile", DEMO_MODEL, "-o", folder)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def model(artifact: Path) -> LanguageModel:
    """The demo model, loaded."""
    return LanguageModel.load(artifact, 2)
