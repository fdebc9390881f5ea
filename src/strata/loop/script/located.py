"""The loop checker, with errors that point into the Python source."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import NoReturn

from strata.loop import check
from strata.loop.nodes import Expr, Func, Load, Stmt, Store
from strata.loop.rewrite import substitute

from .source import Source

Places = Mapping[int, tuple[object, Source, ast.AST]]


def check_located(func: Func, places: Places, source: Source) -> None:
    """Check ``func`` as :func:`strata.loop.check.check` does.

    Args:
        func: What was read.
        places: Where its statements and loads come from, by id.
        source: The kernel, for what comes from nowhere in particular.

    Raises:
        ParseError: a rule is broken.
    """
    _Checker(func, places, source).run()


class _Checker(check.Checker):
    def __init__(self, func: Func, places: Places, source: Source) -> None:
        super().__init__(func, check.LOOP_SCHEDULED)
        self.places = places
        self.here: tuple[Source, ast.AST] = (source, source.tree)

    def enter(self, item: Stmt | Expr) -> None:
        """Errors from here on are of ``item``, if it is known where it comes from."""
        found = self.places.get(id(item))
        if found is not None:
            self.here = found[1], found[2]

    def fail(self, rule: str, slice_: str) -> NoReturn:
        """Raise at the place in the source."""
        source, node = self.here
        source.fail(node, rule)

    def stmt(self, stmt: Stmt, scope: check.Scope) -> None:
        """Check a statement."""
        self.enter(stmt)
        super().stmt(stmt, scope)

    def access(self, access: Load | Store, stmt: Stmt, scope: check.Scope) -> None:
        """Check a load or store; one that is certainly outside says how far its index goes."""
        self.enter(access)
        buffer = access.buffer
        for axis, (index, dim) in enumerate(zip(access.indices, buffer.shape, strict=True)):
            if access.mask is None and check.surely_outside(index, dim, scope):
                poly = scope.known.poly(substitute(index, scope.values))
                lo, hi = ("?" if x is None else str(x) for x in scope.known.interval(poly))
                reach = lo if lo == hi else f"{lo}..{hi}"
                shape = ", ".join(map(str, buffer.shape))
                what = f"{buffer.name}[{self.index_text(axis)}]: index {axis} is {reach}"
                what += f", outside of 0..{dim - 1}; {buffer.name} is {buffer.dtype}[{shape}]"
                self.fail(what, "")
        super().access(access, stmt, scope)
        self.enter(stmt)

    def index_text(self, axis: int) -> str:
        """The indices as they are written."""
        node = self.here[1]
        return ast.unparse(node.slice).strip("()") if isinstance(node, ast.Subscript) else f"dim {axis}"
