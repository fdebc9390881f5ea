"""From a Python function to a loop function: its signature, its body, the check."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from strata.core.dims import shape_symbols
from strata.core.errors import StrataError
from strata.loop.nodes import Buffer, Func

from .blocks import Blocks
from .language import OutSpec, TensorSpec
from .located import check_located
from .scope import Rebound
from .source import Sources


def script(function: Callable[..., Any], names: Mapping[str, Any] | None = None) -> Func:
    """Read a Python function as a loop function.

    Args:
        function: Defined with ``def`` and annotated; see the package.
        names: What names in annotations that are texts may mean besides (local names of the caller).

    Returns:
        A function of stage LOOP_SCHEDULED.

    Raises:
        ParseError: the function is not of the language, or breaks a rule of loop functions; with file, line
            and a caret.
        UserError: its source text cannot be found.
    """
    sources = Sources()
    source = sources.of(function)
    cells: frozenset[ast.AST] = frozenset()
    while True:
        try:
            reader = _Reader(source, sources, cells)
            func = reader.func(names or {})
            break
        except Rebound as found:
            cells |= {found.node}
    check_located(func, reader.places, source)
    return func


class _Reader(Blocks):
    """One reading of a kernel."""

    def func(self, names: Mapping[str, Any]) -> Func:
        """The whole function."""
        tree = self.kernel.tree
        params = [self.param(a, names) for a in self.args(tree)]
        self.check_order(params, tree)
        symbols = shape_symbols(d for p, _ in params for d in p.shape)
        self.dims = {s.name: s for s in symbols}
        self.taken |= {s.name for s in symbols}
        for (buffer, is_output), arg in zip(params, tree.args.args, strict=True):
            self.bind(arg.arg, buffer, arg)
            (self.outputs if is_output else self.inputs).add(buffer)
        self.statements(tree.body)
        return Func(tree.name, tuple(p for p, _ in params), self.fold(), len(self.outputs))

    def args(self, tree: ast.FunctionDef) -> list[ast.arg]:
        """The parameters, which are positional."""
        a = tree.args
        odd = [*a.posonlyargs, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        if odd:
            self.fail(odd[0], f"got the parameter {odd[0].arg}; expected plain parameters: no *, ** or /")
        if a.defaults:
            self.fail(a.defaults[0], "got a default; a kernel takes buffers only")
        return a.args

    def param(self, arg: ast.arg, names: Mapping[str, Any]) -> tuple[Buffer, bool]:
        """The buffer of a parameter, and whether it is an output."""
        if arg.annotation is None:
            self.fail(
                arg, f"{arg.arg}: got no annotation; expected a type like f32[n, 256] or Out[f32[n, 256]]"
            )
        found = self.kernel.function.__annotations__.get(arg.arg)
        if isinstance(found, str):
            found = self.annotation(found, arg, names)
        is_output = isinstance(found, OutSpec)
        tensor = found.tensor if isinstance(found, OutSpec) else found
        if not isinstance(tensor, TensorSpec):
            shown = ast.unparse(arg.annotation)
            self.fail(
                arg.annotation,
                f"{arg.arg}: got {shown}; expected a type with a shape, like f32[n, 256]; "
                "f32[()] is one element",
            )
        return Buffer(self.unique(arg.arg), tensor.shape, tensor.dtype), is_output

    def annotation(self, text: str, arg: ast.arg, names: Mapping[str, Any]) -> Any:
        """The value of an annotation that Python left as a text (``from __future__ import annotations``)."""
        known = ChainMap(dict(names), dict(self.kernel.names))
        try:
            return eval(text, {}, known)
        except StrataError as error:
            self.fail(arg.annotation or arg, str(error))
        except Exception as error:  # noqa: BLE001  (an expression of the user)
            self.fail(arg.annotation or arg, f"{arg.arg}: {type(error).__name__}: {error}")

    def check_order(self, params: list[tuple[Buffer, bool]], tree: ast.FunctionDef) -> None:
        """Outputs come last, there is one, and dims with one name are the same."""
        flags = [is_output for _, is_output in params]
        if not any(flags):
            self.fail(tree, f"{tree.name} has no output; annotate what it writes as Out[f32[...]]")
        if flags != sorted(flags):
            late = tree.args.args[flags.index(True) + flags[flags.index(True) :].index(False)]
            self.fail(late, f"got the input {late.arg} after an output; expected all outputs at the end")
        ranges: dict[str, tuple[int, int, int]] = {}
        for (buffer, _), arg in zip(params, tree.args.args, strict=True):
            for sym in shape_symbols(buffer.shape):
                known = ranges.setdefault(sym.name, (sym.lo, sym.hi, sym.multiple_of))
                if known != (sym.lo, sym.hi, sym.multiple_of):
                    self.fail(
                        arg, f"got two dims called {sym.name} with different ranges; give one another name"
                    )
