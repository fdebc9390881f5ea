"""What the pass runner needs to know about an IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class IRKind(Generic[M]):
    """What the runner needs to know about an IR.

    Attributes:
        name: ``"graph"`` or ``"loop"``.
        print: Module to text.
        parse: Text to module.
        check: Raises VerifyError if the module breaks a rule of the IR.
        count: Size of a module in operations, for the records.
    """

    name: str
    print: Callable[[M], str]
    parse: Callable[[str], M]
    check: Callable[[M], object]
    count: Callable[[M], int]
