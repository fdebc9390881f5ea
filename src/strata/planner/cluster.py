"""Clusters of machines, through Ray (the extra ``ray``)."""

from __future__ import annotations

import logging
import socket
from typing import Any

from strata.core.errors import UserError

CONNECT_S = 5.0  # how long a cluster may take to answer


def connect(address: str) -> Any:
    """The module ``ray``, connected to a cluster; ``shutdown()`` leaves it.

    Args:
        address: Of the cluster (``"auto"``, ``"10.0.0.1:6379"``, ``"ray://..."``).

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--ray: Ray is not installed; pip install 'strata-llm[ray]'") from None
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"--ray: cannot connect to {address}: {first}") from None
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes before it says that nobody answers.

    Raises:
        UserError: nothing listens at ``HOST:PORT``.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray: cannot connect to {address}: {error}") from None
