"""Functions of the user that say what an op costs on a device.

:func:`op_cost` marks a function and does nothing else. A machine has the functions that it was given
(``Machine(..., costs=[f])``), those that its Python file defines, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar

from strata.core.errors import UserError

if TYPE_CHECKING:
    from .machine import Device

# ``(device, machine, workload, work, points) -> Estimates``, or ``None`` if the device cannot do the work;
# in the planner's words, which this package does not know.
CostFunction = Callable[[Any, Any, Any, Any, Any], Any]
Mark = tuple[str, str]  # name or class of a device, in lower case; op
F = TypeVar("F", bound=CostFunction)
_MARKS = "_costs_of_ops"


def op_cost(device: type[Device] | str, op: str) -> Callable[[F], F]:
    """Mark the decorated function as the cost of ``op`` on devices of a kind (a class, or a device's name).

    Raises:
        UserError: what is decorated is no function, or a second one of the same name in a file, for another
            op: the first one would be lost.
    """
    mark = (device if isinstance(device, str) else device.__name__.lower(), op)

    def decorate(function: F) -> F:
        names = getattr(function, "__globals__", None)
        if names is None:
            raise UserError(f"op_cost: got {function!r:.60}; expected a function")
        before = names.get(function.__qualname__)
        if before is not function and mark not in (known := marks_of(before)) and known:
            raise UserError(
                f"op_cost: got two functions {function.__name__}, for {_texts(known)} and {_texts([mark])}; "
                "give each a name of its own"
            )
        setattr(function, _MARKS, (*marks_of(function), mark))
        return function

    return decorate


def marks_of(function: object) -> tuple[Mark, ...]:
    """Devices and ops that something was marked for; ``()`` if it is no cost function."""
    return getattr(function, _MARKS, ())


def costs_in(namespace: Mapping[str, object]) -> tuple[CostFunction, ...]:
    """The cost functions of a module, each once, in the order of their names' definition."""
    found: list[Any] = [value for value in namespace.values() if marks_of(value)]
    return tuple(dict.fromkeys(found))


def checked(where: str, costs: Iterable[CostFunction]) -> tuple[CostFunction, ...]:
    """``costs``, each once.

    Raises:
        UserError: one that was not marked.
    """
    found = tuple(costs)
    for function in found:
        if not marks_of(function):
            name = getattr(function, "__name__", repr(function))
            raise UserError(
                f"{where}: costs: got {name:.60}; expected functions decorated with "
                "strata.op_cost(DEVICE, OP)"
            )
    return tuple(dict.fromkeys(found))


def text_of_cost(function: CostFunction) -> str:
    """What a function is marked for and what it does: the same for equal code, in every process."""
    return repr((marks_of(function), _text_of(function.__code__)))


def _text_of(code: CodeType) -> str:
    constants = [_text_of(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, constants))


def _constant(value: object) -> str:
    # The order of a set of texts is another one in every process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _texts(marks: Iterable[Mark]) -> str:
    return " and ".join(f"{op} on {device}" for device, op in marks)
