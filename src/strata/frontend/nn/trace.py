"""What is known while a function of a module is traced: where we are, and the node of each weight.

One :class:`Trace` is current while ``Module.export`` runs a function (a context variable: threads do not see
each other's). Ops ask it for the module path, which becomes the ``name`` of their node and the beginning of
their errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from strata.core.dtypes import DType
from strata.core.errors import StrataError, UserError
from strata.graph.nodes import AttrValue, Node, make_node
from strata.graph.types import TensorType


@dataclass
class Trace:
    """State of the tracing of one function.

    Attributes:
        paths: ``id(module) -> "model.layers.3"``.
        param_names: ``id(parameter) -> "model.layers.3.mlp.up_proj.weight"``.
        as_inputs: Weights become arguments of the function instead of ``param`` nodes.
        where: Function, then the modules being called.
        params: Node of each weight used so far, by name.
    """

    paths: dict[int, str]
    param_names: dict[int, str]
    as_inputs: bool
    where: list[str]
    params: dict[str, Node] = field(default_factory=dict)

    def param(self, key: int, shape: tuple[int, ...], dtype: DType) -> Node:
        """The node of the parameter with ``id`` key; the same one for every use.

        Raises:
            UserError: the parameter is not an attribute of the exported module or of its children.
        """
        name = self.param_names.get(key)
        if name is None:
            raise UserError(
                f"{self.where[-1]}: a parameter {dtype}{list(shape)} is used that the exported module does "
                f"not own; "
                f"keep it as an attribute of a Module, or in a ModuleList"
            )
        if name not in self.params:
            op = "input" if self.as_inputs else "param"
            # Argument names are identifiers in the text form.
            shown = name.replace(".", "_") if self.as_inputs else name
            self.params[name] = make_node(op, (), shown, type=TensorType(shape, dtype))
        return self.params[name]


_current: ContextVar[Trace | None] = ContextVar("strata_nn_trace", default=None)


def require(what: str) -> Trace:
    """The trace in progress.

    Raises:
        UserError: there is none; ``what`` begins the message.
    """
    trace = _current.get()
    if trace is None:
        raise UserError(f"{what}: modules hold no values; they compute only while Module.export traces them")
    return trace


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make ``trace`` the current one."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextmanager
def scope(path: str) -> Iterator[None]:
    """Everything inside belongs to the module ``path``."""
    trace = require(path)
    trace.where.append(path)
    try:
        yield
    finally:
        trace.where.pop()


def path() -> str:
    """Path of the module being called; ``""`` outside a trace."""
    trace = _current.get()
    return trace.where[-1] if trace is not None else ""


def fail(kind: type[StrataError], message: str) -> StrataError:
    """An error that begins with the path of the module being called."""
    prefix = path()
    return kind(f"{prefix}: {message}" if prefix else message)


def emit(op: str, inputs: tuple[Node, ...] = (), **attrs: AttrValue) -> Node:
    """Build a node named after the module being called.

    Raises:
        ShapeError: operand types do not fit; the message begins with the module path.
        UserError: unknown op or wrong attribute; likewise.
    """
    try:
        return make_node(op, inputs, path(), **attrs)
    except UserError as error:
        raise fail(type(error), str(error)) from error
