"""Gated products in one launch: ``act(x Wg) * (x Wu)``, of one matrix that has ``Wg`` above ``Wu``.

The pipeline leaves two launches: a product, and what brings the parts of its result together, which lie far
apart. Where the weight's tiles have rows of every part (``parts`` of :mod:`strata.loop.layout`), both factors
of a result are sums of one register tile, and the second launch is what the first does before it stores::

    %16 = fused(%15, %w) {matmul}                    %16 = fused(%15, %w) {matmul_silu_mul}
    %17 = fused(%16) {slice, slice, silu, mul}   ->

Matrix units multiply by other tiles, whose kernels have not been measured with it: there, it stays two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from strata.core.errors import UserError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, rebuild
from strata.graph.opdef import Pattern
from strata.graph.types import TensorType
from strata.ir.passes import OptionError, Pass, register_pass
from strata.passes.base import uses
from strata.schedule.rules.matmul import column_tile
from strata.target import Target, get_target

from .cost import is_flat_matmul

_LEAVES = ("input", "const")


@register_pass
@dataclass(frozen=True)
class JoinGates(Pass[Module]):
    """Joins gated products, ``silu(gate) * up`` of one matrix, with the launches that read them.

    Stage: fused graph -> the same with fewer launches; those with notes of a person stay apart.
    Preserves: types, names and every value.

    Attributes:
        target: The machine to choose for; see ``layouts``.
    """

    name: ClassVar[str] = "join_gates"
    target: str = "host"

    def run(self, module: Module) -> Module:
        """Join what can be joined.

        Raises:
            OptionError: there is no such machine.
        """
        return join_gates(module, target_of(self.name, self.target))


def target_of(name: str, target: str) -> Target:
    """The machine that an option of the pass ``name`` speaks of.

    Raises:
        OptionError: there is none.
    """
    try:
        return get_target(target)
    except UserError as error:
        raise OptionError(f"{name}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Gate:
    """A launch that multiplies, the only reader of its result, and a body that does both."""

    product: Node
    reader: Node
    body: Function

    @property
    def weights(self) -> Iterator[str]:
        """Names of the matrices that are multiplied by."""
        return (x.attrs["name"] for x in self.product.inputs if x.op == "param" and x.tensor.rank == 2)


def join_gates(module: Module, target: Target) -> Module:
    """Join gated products with the launches that read them.

    Args:
        module: After the ``fuse`` pass.
        target: The machine.
    """
    if target.has_matrix_bf16 or target.has_matrix_int8:
        return module
    bodies: dict[tuple[int, int], Function | None] = {}
    gates = [x for f in module.functions for x in _gates(f, target, bodies)]
    apart = _used_apart(module, {id(x.product) for x in gates})
    by_reader = {id(x.reader): x for x in gates if apart.isdisjoint(x.weights)}
    return module.map(lambda f: _join(f, by_reader)) if by_reader else module


def _join(function: Function, gates: Mapping[int, _Gate]) -> Function:
    """``function`` with gates, by the id of the reader, as single launches."""
    new: dict[int, Node] = {}
    for node in function.nodes:
        gate = gates.get(id(node))
        old = node if gate is None else gate.product
        inputs = [new[id(i)] for i in old.inputs]
        new[id(node)] = rebuild(node, inputs) if gate is None else g.fused(inputs, gate.body, name=old.name)
    return function.with_outputs(
        [new[id(n)] for n in function.outputs], [new[id(n)] for n in function.inputs]
    )


def _gates(
    function: Function, target: Target, bodies: dict[tuple[int, int], Function | None]
) -> Iterator[_Gate]:
    """All that could be joined in one function; ``bodies``: those made so far, by what they are made of."""
    readers, outputs = uses(function), {id(n) for n in function.outputs}
    for node in function.nodes:
        if node.op != "fused" or len(node.inputs) != 1 or node.notes:
            continue
        (product,) = node.inputs
        if product.op != "fused" or product.notes or len(readers[id(product)]) != 1 or id(product) in outputs:
            continue
        parts = product.attrs["body"], node.attrs["body"]
        key = id(parts[0]), id(parts[1])
        if key not in bodies:
            bodies[key] = _joined(*parts, target)
        body = bodies[key]
        params = [x for x in product.inputs if x.op == "param"]
        if body is not None and not any(x.notes for x in params) and _multiplies_params(product):
            yield _Gate(product, node, body)


def _joined(first: Function, second: Function, target: Target) -> Function | None:
    """A body that computes ``second`` of the result of ``first``; ``None`` if that is no gate."""
    (result,), (value,) = first.outputs, second.inputs
    if result.type != value.type or not all(
        n.op in (*_LEAVES, "slice") or n.opdef.pattern <= Pattern.BROADCAST for n in second.nodes
    ):
        return None
    new: dict[int, Node] = {id(value): result}
    for node in second.nodes:
        if node is not value:
            new[id(node)] = rebuild(node, [new[id(i)] for i in node.inputs])
    body = Function(f"{first.name}_{second.name}", first.inputs, (new[id(second.outputs[0])],))
    products = [n for n in body.nodes if n.opdef.pattern is Pattern.MATMUL]
    return body if len(products) == 1 and gate_parts(body, products[0], target) > 1 else None


def gate_parts(body: Function, product: Node, target: Target) -> int:
    """Into how many parts the result of a product is cut that are then brought together; 1 = into none.

    Args:
        body: The body of a launch.
        product: A product in it.
        target: The machine, by whose tiles of weights the parts have to be divisible.
    """
    is_plain = product.op == "quantized_matmul" or product.attrs["transpose_b"]
    if not is_flat_matmul(product) or not is_plain:
        return 1
    readers, value = uses(body), product
    while len(found := readers[id(value)]) == 1 and found[0].type == value.type:
        (value,) = found
    columns, (result,) = value.tensor.shape[-1], body.outputs
    if not isinstance(result.type, TensorType) or not isinstance(columns, int):
        return 1
    width = result.tensor.shape[-1]
    if not isinstance(width, int) or columns % width or result.tensor.shape[:-1] != value.tensor.shape[:-1]:
        return 1
    parts = columns // width
    begins = {n.attrs["begin"] for n in found if _is_part(n, width)}
    if not all(_is_part(n, width) for n in found) or begins != {k * width for k in range(parts)}:
        return 1
    own, left = divmod(column_tile(target), parts)
    return parts if not left and own % target.lanes_f32 == 0 and width % own == 0 else 1


def _is_part(node: Node, width: int) -> bool:
    """Whether a node takes ``width`` columns of a matrix."""
    if node.op != "slice" or node.attrs["axis"] % node.tensor.rank != node.tensor.rank - 1:
        return False
    return node.tensor.shape[-1] == width


def _multiplies_params(launch: Node) -> bool:
    """Whether what a launch multiplies by is stored, and so can be in tiles."""
    body: Function = launch.attrs["body"]
    outer = {id(inner): operand for inner, operand in zip(body.inputs, launch.inputs, strict=True)}
    weights = [x for n in body.nodes if n.opdef.pattern is Pattern.MATMUL for x in n.inputs[1:]]
    return all(id(x) in outer and outer[id(x)].op == "param" for x in weights)


def _used_apart(module: Module, products: set[int]) -> set[str]:
    """Names of params that something else reads, too: a matrix has one layout for all who read it."""
    return {
        operand.attrs["name"]
        for function in module.functions
        for node in function.nodes
        if id(node) not in products
        for operand in node.inputs
        if operand.op == "param"
    }
