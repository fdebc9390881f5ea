"""Modules: trees of layers and parameters, as in PyTorch, without values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, overload

from strata.core.dtypes import DType
from strata.core.errors import UserError

from . import trace
from .tensor import Parameter

if TYPE_CHECKING:
    from typing import Self

    from .export import Exported
    from .spec import FunctionSpec


class Module:
    """A layer or a model. Subclasses keep parameters and other modules as attributes and define ``forward``.

    Calling a module calls ``forward``; calls are possible only while :meth:`export` traces the model.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``forward``, with this module's path on the nodes that it adds."""
        active = trace.require(type(self).__name__)
        path = active.paths.get(id(self))
        if path is None:
            raise trace.fail(
                UserError,
                f"{type(self).__name__} is called but the exported module does not own it; "
                f"keep it as an attribute of a Module, or in a ModuleList",
            )
        with trace.scope(path):
            return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; subclasses define it.

        Raises:
            UserError: the subclass does not.
        """
        raise trace.fail(
            UserError, f"{type(self).__name__} has no forward; define it, or call another method"
        )

    def children(self) -> Iterator[tuple[str, Module]]:
        """``(attribute, module)`` of the modules that this one holds directly."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """``(path, module)`` of this module and all below it; one that is reachable twice appears once."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(f"{path}.{name}" if path else name, child) for name, child in module.children()]
            stack.extend(reversed(below))

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """``(path, parameter)`` of this module and all below it; a shared one appears once, under its "
        "first path.
        """
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def to(self, dtype: DType | str | None = None) -> Self:
        """Change the dtype of every parameter; returns the module itself.

        Raises:
            UserError: no such dtype.
        """
        if dtype is not None:
            for parameter in self.parameters():
                parameter.to(dtype)
        return self

    def export(self, spec: FunctionSpec, dims: dict[str, tuple[int, int]] | None = None) -> Exported:
        """Trace methods of this module into a graph; see :func:`strata.frontend.nn.export.export`.

        Args:
            spec: For each method to export, its arguments.
            dims: ``(smallest, largest)`` value of symbolic dims, by name.

        Returns:
            The graph module and the named parameters (it unpacks to these two), and how to call the
            functions.

        Raises:
            ShapeError: an op's operands do not fit; the message begins with the module path.
            UserError: a mistake in the spec or in a method.
        """
        from .export import export

        return export(self, spec, dims)


class ModuleList(Module):
    """Modules in a list; their paths end in their index.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.modules = list(modules)

    def children(self) -> Iterator[tuple[str, Module]]:
        """``("0", first), ("1", second), ...``."""
        return ((str(i), module) for i, module in enumerate(self.modules))

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        self.modules.append(module)

    def forward(self, x: Any) -> Any:
        """Each module applied to the result of the one before it."""
        for module in self.modules:
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[Module]: ...
    def __getitem__(self, index: int | slice) -> Module | list[Module]:
        """One module, or a list of them."""
        return self.modules[index]
