"""Graph IR: immutable, typed SSA of tensor operations.

::

    Module   ::= module { func* loop* }                            loop: text of a loop function
    Function ::= func @name(%input: type, ...) -> (type, ...) { node* return %v, ... }
    Node     ::= %v: type = op(%a, %b) {attr=value, ...} !{note=value, ...}

Leaf nodes are ops too: ``input{name}`` (argument of the function), ``param{name}`` (a weight, printed
``@name``) and ``const{value}`` (a small array stored in the node). A node has one result; functions may
return several. The order of execution is any topological order; ``Function.nodes`` gives the canonical one
(depth first from the outputs).

*Notes* say something about a node that does not change what it computes: how it fuses, how a weight is
stored, where a value lives. Passes write them (:func:`with_notes`), people may alter them, later stages
follow them; a node without them is compiled as ever. Each is defined by the pass that writes it.

Build nodes through :func:`make_node` (type inference and attribute check) or ``graph.builder``; an
ill-typed node cannot be built. Nodes have identity: common subexpressions are merged by a pass, not by
construction.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from strata.core.dims import SymDim, shape_symbols
from strata.core.errors import ShapeError, UserError, VerifyError

from .types import TensorType, Type

if TYPE_CHECKING:
    from .opdef import OpDef

# int, float, bool, str, None, DType, Dim, tuple of these, np.ndarray (const), Function (fused)
AttrValue = Any
Note = bool | int | str | tuple[bool | int | str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation and its result.

    Attributes:
        op: Name in the op table (``graph.opdef.OPS``).
        inputs: Operands.
        attrs: Attributes, complete (defaults filled in), in the order of the op's schema.
        type: Inferred result type.
        name: Where it comes from, for people (``"model.layers.3.mlp.up_proj"``); not part of the meaning.
        notes: What passes found out or decided about it; not part of the meaning.
    """

    op: str
    inputs: tuple[Node, ...] = field(repr=False)  # a DAG printed as a tree can be exponentially long
    attrs: Mapping[str, AttrValue]
    type: Type
    name: str = ""
    notes: Mapping[str, Note] = field(default_factory=dict, repr=False)

    @property
    def tensor(self) -> TensorType:
        """The type, which must be a tensor's."""
        if not isinstance(self.type, TensorType):
            raise VerifyError(f"{self.op} {self.name}: got {self.type}; expected a tensor")
        return self.type

    @property
    def opdef(self) -> OpDef:
        """The op's table entry."""
        from .opdef import OPS

        return OPS[self.op]


def make_node(op: str, inputs: Iterable[Node] = (), name: str = "", **attrs: AttrValue) -> Node:
    """Build a node: fills in default attributes, checks them, infers the type.

    Args:
        op: Name in the op table.
        inputs: Operands.
        name: Where the node comes from; for ``input`` and ``param`` also their ``name`` attribute.
        attrs: Attributes by name.

    Raises:
        UserError: unknown op or attribute.
        ShapeError: operand types do not fit the op.
    """
    from .opdef import OPS

    definition = OPS[op]
    operands = tuple(inputs)
    if "name" in definition.attrs:
        attrs["name"] = name
    full = definition.complete_attrs(attrs)
    try:
        type_ = definition.infer(tuple(x.type for x in operands), full)
    except ShapeError as error:
        if not name:
            raise
        raise ShapeError(f"{error}   ({name})") from None
    return Node(op, operands, full, type_, name)


def rebuild(node: Node, inputs: Iterable[Node], **attrs: AttrValue) -> Node:
    """The same operation on other operands (and with changed attributes); it keeps name and notes.

    Gives the node itself if nothing changes.
    """
    operands = tuple(inputs)
    if not attrs and len(operands) == len(node.inputs) and all(map(operator.is_, operands, node.inputs)):
        return node
    if not attrs and [x.type for x in operands] == [x.type for x in node.inputs]:
        return replace(node, inputs=operands)  # types and attributes, and so the result's type, are the same
    new = make_node(node.op, operands, **{"name": node.name, **node.attrs, **attrs})
    return replace(new, notes=node.notes) if node.notes else new


def with_notes(node: Node, /, **notes: Note | None) -> Node:
    """``node`` with these notes on top of its own; ``None`` takes one away.

    Raises:
        UserError: a value is no bool, int, str or tuple of these.
    """
    for key, value in notes.items():
        for part in value if isinstance(value, tuple) else (value,):
            if part is not None and not isinstance(part, (bool, int, str)):
                raise UserError(
                    f"note {key} of {node.op} {node.name}: got {value!r}; expected bool, int, str or a tuple"
                )
    merged = {k: v for k, v in {**node.notes, **notes}.items() if v is not None}
    return node if merged == node.notes else replace(node, notes=merged)


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A pure function from inputs (and the module's params) to outputs.

    Attributes:
        name: Identifier, unique in the module.
        inputs: ``input`` nodes in the order of the arguments.
        outputs: Result nodes, at least one.
    """

    name: str
    inputs: tuple[Node, ...] = field(repr=False)
    outputs: tuple[Node, ...]
    _order: list[Node] = field(default_factory=list, repr=False)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes reachable from the outputs plus the inputs, operands first."""
        if not self._order:
            self._order.extend(topological((*self.inputs, *self.outputs)))
        return tuple(self._order)

    @property
    def params(self) -> tuple[Node, ...]:
        """The ``param`` nodes, in canonical order."""
        return tuple(n for n in self.nodes if n.op == "param")

    @property
    def dims(self) -> tuple[SymDim, ...]:
        """Symbolic dims of the tensor inputs and params, sorted by name."""
        leaves = [n.type for n in (*self.inputs, *self.params) if isinstance(n.type, TensorType)]
        return shape_symbols(d for t in leaves for d in t.shape)

    def with_outputs(self, outputs: Iterable[Node], inputs: Iterable[Node] | None = None) -> Function:
        """A function of the same name with other outputs (and inputs)."""
        new_inputs = self.inputs if inputs is None else tuple(inputs)
        return Function(self.name, new_inputs, tuple(outputs))


@dataclass(frozen=True, slots=True)
class LoopText:
    """A loop function that computes ``fused`` nodes, as text: graphs know nothing of the loop IR.

    Attributes:
        args: What its parameters are bound to: ``"0"`` (operand 0 of the node), ``"1.k_pages.0"`` (a field of
            a cache operand, and the layer of it beside the node's own), ``"out"`` (the result).
        text: Loop IR.
    """

    args: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Module:
    """Functions that share one set of params. Param types are those of the ``param`` nodes.

    Attributes:
        functions: With names of their own.
        loops: Loop functions by name, where ``fused`` nodes have a note ``loop``; see pass ``fuse_loops``.
    """

    functions: tuple[Function, ...]
    loops: Mapping[str, LoopText] = field(default_factory=dict, hash=False)

    def __getitem__(self, name: str) -> Function:
        for function in self.functions:
            if function.name == name:
                return function
        raise UserError(f"no function {name!r}; this module has: {', '.join(f.name for f in self.functions)}")

    @property
    def params(self) -> dict[str, TensorType]:
        """Every param that some function uses, by name, in order of first use."""
        return {n.attrs["name"]: n.tensor for f in self.functions for n in f.params}

    def map(self, change: Any) -> Module:
        """The module with ``change(function) -> Function`` applied to each function."""
        return replace(self, functions=tuple(change(f) for f in self.functions))


def topological(outputs: Iterable[Node]) -> list[Node]:
    """Nodes reachable from ``outputs``, operands first; an explicit stack, so depth is no limit."""
    order: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(n, False) for n in reversed(list(outputs))]
    while stack:
        node, expanded = stack.pop()
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.inputs) if id(i) not in done)
    return order


def rewrite(function: Function, change: Any) -> Function:
    """Rebuild ``function`` bottom-up: ``change(node) -> Node`` sees each node with its new operands.

    ``change`` returns the node itself to keep it. Inputs must map to ``input`` nodes.
    """
    new: dict[int, Node] = {}
    for node in function.nodes:
        new[id(node)] = change(rebuild(node, [new[id(i)] for i in node.inputs]))
    return function.with_outputs(
        [new[id(n)] for n in function.outputs], [new[id(n)] for n in function.inputs]
    )
