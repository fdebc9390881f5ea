"""Refuses code that this machine's CPU cannot run."""

from __future__ import annotations

from strata.core.errors import UserError
from strata.target import host_features


def check_features(needed: tuple[str, ...], where: str) -> None:
    """Refuse code that this CPU cannot run.

    Args:
        needed: Features (LLVM's names, as in ``Target.features``) that the code uses.
        where: What holds the code, for the message.

    Raises:
        UserError: a feature is missing; lists all of them.
    """
    have = host_features()
    missing = [name for name in needed if name not in have]
    if missing:
        raise UserError(
            f"{where}: the code needs CPU features that this machine lacks: {', '.join(missing)}; "
            "compile the model on this machine"
        )
