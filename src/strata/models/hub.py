"""Where a model is: a folder, or an id on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from strata.core.errors import UserError

# Only what Strata reads: no weights in other formats.
_PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt")


def locate(model: str | Path, *, weights: bool = True) -> Path:
    """The folder of ``model``: itself if it is one, else a download from the hub (cached between runs).

    Args:
        model: A path, or a hub id such as ``"Qwen/Qwen2.5-0.5B"``.
        weights: Whether a download has to include the weights.

    Raises:
        UserError: neither a folder nor a model that the hub gives us.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{model}: is a file; expected a model folder with config.json")
    name = str(model)
    if isinstance(model, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"{model}: no such folder; expected a model folder, or a hub id such as Qwen/Qwen2.5-0.5B"
        )
    return _download(name) if weights else _download(name, ("*.json",))


def _download(name: str, patterns: tuple[str, ...] = _PATTERNS) -> Path:
    # Imported here: it is slow to import and needed for hub ids only.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, GatedRepoError):
            raise UserError(f"{name}: the hub asks for a login: run `hf auth login` first") from error
        if isinstance(error, RepositoryNotFoundError):
            raise UserError(f"{name}: no folder of this name, and the hub has no such model") from error
        if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(f"{name}: the hub refused the download: {error}") from error
        raise UserError(f"{name}: no folder of this name, and no network to fetch it from the hub") from error
    except HFValidationError as error:
        raise UserError(f"{name}: no folder of this name, and no hub id: {error}") from error
