"""Python files of the user's, ``--load``: they register kernels, passes, ..., or define costs of ops."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from strata.core.errors import StrataError, UserError
from strata.target.hardware import CostFunction
from strata.target.hardware.costs import costs_in


def load_file(path: Path) -> ModuleType:
    """Run a Python file, which registers what it defines; the module that it is.

    Raises:
        UserError: it cannot be read, or raises; tells where.
        StrataError: a mistake that Strata found in it, as it is: it names file and line itself.
    """
    name = f"strata_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--load: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except StrataError:
        del sys.modules[name]
        raise
    except FileNotFoundError as error:
        del sys.modules[name]
        raise UserError(f"--load: {error.filename or path}: no such file") from error
    except Exception as error:
        del sys.modules[name]
        # The file is the user's: whatever it raises is shown as a mistake at a place in it.
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(f"--load: {where}: {type(error).__name__}: {error}") from error
    return module


def costs_of_files(paths: Iterable[Path]) -> tuple[CostFunction, ...]:
    """Run Python files; the functions in them that ``strata.op_cost`` decorates.

    Raises:
        UserError: as for :func:`load_file`.
    """
    return tuple(cost for path in paths for cost in costs_in(vars(load_file(path))))
