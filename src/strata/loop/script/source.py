"""The text of a Python function, its syntax tree, and errors that point into it."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

from strata.core.errors import ParseError, Span, UserError


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A Python function as text.

    Attributes:
        function: The function itself.
        tree: Its definition.
        lines: Its lines, decorators included.
        shift: Add this to a line number of ``tree`` to get that of the file.
        names: What its free names mean: closure, globals, builtins.
    """

    function: FunctionType
    tree: ast.FunctionDef
    lines: tuple[str, ...]
    shift: int
    names: Mapping[str, Any]

    def span(self, node: ast.AST) -> Span:
        """Where ``node`` is in its file."""
        column = len(self._line(node).encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        file = self.function.__code__.co_filename
        return Span(file, getattr(node, "lineno", 1) + self.shift, column + 1)

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        """Raise a ParseError that shows ``node``."""
        text = f"{self.function.__name__}: {message}"
        raise ParseError(text, self.span(node), self._line(node).expandtabs(1))

    def _line(self, node: ast.AST) -> str:
        first = self.function.__code__.co_firstlineno
        return self.lines[getattr(node, "lineno", 1) + self.shift - first]


class Sources:
    """Functions that were read: their nodes are the same each time."""

    def __init__(self) -> None:
        self._known: dict[Any, Source] = {}

    def of(self, function: Any) -> Source:
        """The source of a function; see :func:`read_source`."""
        if not isinstance(function, FunctionType) or function not in self._known:
            self._known[function] = read_source(function)
        return self._known[function]


def read_source(function: Any) -> Source:
    """Find and parse the text of a Python function.

    Raises:
        UserError: it is no function that was defined with ``def``, or its text cannot be found.
    """
    if not isinstance(function, FunctionType):
        raise UserError(f"kernel: got {function!r}; expected a Python function defined with def")
    name = function.__name__
    try:
        lines, first = inspect.getsourcelines(function)
        # An indented definition (in a function or class) becomes the body of an if: columns stay as they are.
        indented = lines[0][:1].isspace()
        module = ast.parse("if True:\n" * indented + "".join(lines))
    except (OSError, SyntaxError, IndexError) as error:
        raise UserError(
            f"kernel {name}: its source text cannot be read ({error}); kernels are read from the file "
            "(or notebook cell) that defines them"
        ) from None
    outer = module.body[0]
    tree = outer.body[0] if isinstance(outer, ast.If) else outer
    if not isinstance(tree, ast.FunctionDef):
        raise UserError(f"kernel {name}: got {type(tree).__name__}; expected a function defined with def")
    shift = first - 1 - indented
    text = tuple(line.rstrip("\n") for line in lines)
    return Source(function, tree, text, shift, _names(function))


def _names(function: FunctionType) -> Mapping[str, Any]:
    closure: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            closure[name] = cell.cell_contents
        except ValueError:  # assigned later, if at all
            continue
    return ChainMap(closure, function.__globals__, dict(vars(builtins)))
