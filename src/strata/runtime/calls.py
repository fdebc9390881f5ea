"""Calling native code, and saying what failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from strata.core.errors import DeviceError, ExternError

from .externs import take_cause

FAILURES = (ExternError, RuntimeError, TypeError, ValueError)  # what a native call raises


def invoke(function: Callable[..., Any], name: str, *args: Any) -> None:
    """Call native code.

    Raises:
        DeviceError: it refused the call; names the function.
        ExternError: an extern that it calls failed; the extern's own exception is the cause.
    """
    try:
        function(*args)
    except FAILURES as error:
        raise_failure(name, error)


def raise_failure(name: str, error: Exception) -> NoReturn:
    """Say what failed; see :func:`invoke`."""
    if not isinstance(error, ExternError):
        raise DeviceError(f"{name}: the native call failed: {error}") from error
    cause = take_cause()
    if cause is not None and not isinstance(cause, Exception):  # KeyboardInterrupt
        raise cause from None
    raise ExternError(f"{name}: {error}") from cause
