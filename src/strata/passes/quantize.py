"""``quantize``: weights become codes with a scale per group, and matmuls with them integer dot products.

::

    %3 = matmul(%x, @up.weight) {transpose_b=true}   ->   %3 = quantized_matmul(%x, @up.weight.codes,
                                                                @up.weight.scales) {zero=8, group=32,
                                                                powers=true}
    %1 = take(@embed.weight, %ids)                   ->   %1 = take(dequantize(@embed.weight.codes,
                                                                @embed.weight.scales), %ids)

The params of a quantised weight ``w [N, K]`` are ``w.codes`` (u4 or u8 ``[N, K]``), ``w.scales`` (f16 ``[N,
groups]``) and, in asymmetric formats, ``w.zeros`` (u8 ``[N, groups]``); see ``core.weight_format``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.core.dtypes import DType, dtype, f16, f32, u4, u8
from strata.core.errors import UserError
from strata.core.weight_format import AnyFormat, FormatChoice, WeightFormat, parse_format_choice
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, make_node, rebuild, rewrite
from strata.graph.ops.quantized import MAX_ACTIVATION_GROUP, group_size
from strata.graph.types import TensorType
from strata.ir.passes import OptionError, Pass, register_pass

from .fold_transpose import FoldTranspose

CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"


@register_pass
@dataclass(frozen=True)
class Quantize(Pass[Module]):
    """Stores weights in few bits, and rounds what they are multiplied by to int8, group by group.

    Stage: any graph before fusion -> the same. Transposed weights are folded into their matmuls first.
    Preserves: values up to the precision of the formats; names and types of all params but the weights.

    Attributes:
        format: Which weight gets which format: ``int4``, ``int8:group=128``, ``int4;lm_head=int8``, ...
    """

    name: ClassVar[str] = "quantize"
    format: str = "int4"

    def run(self, module: Module) -> Module:
        """Quantise every weight that the choice has a format for.

        Raises:
            OptionError: the choice is none, or a pattern in it fits no weight.
            UserError: a weight has rows that no whole number of groups fit in.
        """
        try:
            choice = parse_format_choice(self.format)
        except UserError as error:
            raise OptionError(f"quantize: {error}") from None
        return quantize_weights(module, choice)


def weight_names(module: Module) -> tuple[str, ...]:
    """Params that are weights: constant float matrices ``[N, K]`` that activations are multiplied by, and
    tables that ids are looked up in (not those of positions).
    """
    found: dict[str, None] = {}
    for node in (n for f in module.functions for n in f.nodes):
        weight: Node | None = None
        if node.op == "matmul" and node.attrs["transpose_b"]:
            weight = node.inputs[1]
        elif node.op == "take" and node.inputs[1].op != "cache_positions":
            weight = node.inputs[0]
        if weight is not None and _is_matrix(weight):
            found[weight.attrs["name"]] = None
    return tuple(found)


def _is_matrix(node: Node) -> bool:
    if node.op != "param" or node.tensor.rank != 2 or not node.tensor.dtype.is_float:
        return False
    return all(isinstance(d, int) for d in node.tensor.shape)


def quantize_weights(module: Module, choice: FormatChoice) -> Module:
    """The module with every weight in the format that ``choice`` has for it.

    Raises:
        OptionError: a pattern of the choice fits no weight.
        UserError: a weight has rows that no whole number of groups fit in.
    """
    module = FoldTranspose().run(module)
    names = weight_names(module)
    unused = choice.unused_patterns(names)
    if unused:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise OptionError(f"format: pattern {unused[0]!r} fits no weight; there are: {some or 'none'}")
    formats = {name: choice.of(name) for name in names}
    return module.map(lambda f: _rewritten(f, formats))


def _rewritten(function: Function, formats: dict[str, AnyFormat]) -> Function:
    made: dict[str, Node] = {}

    def change(node: Node) -> Node:
        if node.op == "param" and node.attrs["name"] in formats:
            name = node.attrs["name"]
            if name not in made:
                made[name] = _stored(node, formats[name])
            return made[name]
        if node.op == "matmul" and node.attrs["transpose_b"]:
            return _product(node)
        return node

    return rewrite(function, change)


def _stored(weight: Node, format: AnyFormat) -> Node:
    """The value of a weight from the params that it is stored in."""
    tensor = weight.tensor
    if isinstance(format, DType):
        stored = g.param(weight.attrs["name"], TensorType(tensor.shape, format))
        return stored if format is tensor.dtype else g.cast(stored, tensor.dtype)
    parts = [
        g.param(name, type_) for name, type_ in stored_types(weight.attrs["name"], tensor, format).items()
    ]
    return make_node("dequantize", parts, name=weight.name, zero=format.zero, dtype=tensor.dtype)


def stored_types(name: str, tensor: TensorType, format: WeightFormat) -> dict[str, TensorType]:
    """Params that the weight ``name`` is stored in.

    Raises:
        UserError: its rows do not split into whole groups.
    """
    n, k = tensor.shape
    assert isinstance(k, int)
    per_group = (n, format.num_groups(k, name))
    types = {
        name + CODES: TensorType(tensor.shape, dtype(format.codes_dtype)),
        name + SCALES: TensorType(per_group, f16),
    }
    return {**types, name + ZEROS: TensorType(per_group, u8)} if format.is_asymmetric else types


def _product(node: Node) -> Node:
    """A matmul whose right operand may now be made of codes, or of another float dtype."""
    a, weight = node.inputs
    out = node.tensor.dtype
    if weight.op == "dequantize" and node.tensor.rank == 2:
        codes, scales = (x.tensor for x in weight.inputs[:2])
        group = _activation_group(codes, scales)
        # What powers of two cost in precision is lost in the rounding of weights to 4 bits, not to 8.
        powers = codes.dtype is u4 and group <= MAX_ACTIVATION_GROUP
        attrs = {"zero": weight.attrs["zero"], "group": group, "powers": powers, "out_dtype": out}
        return make_node("quantized_matmul", (_uncast(a), *weight.inputs), name=node.name, **attrs)
    if weight.op == "cast" and weight.inputs[0].op == "param":
        stored = weight.inputs[0]
        return rebuild(node, (g.cast(a, stored.tensor.dtype), stored), out_dtype=out)
    return node


def _activation_group(codes: TensorType, scales: TensorType) -> int:
    """Elements of activations that share a scale: as in the weight, but at most ``MAX_ACTIVATION_GROUP``."""
    of_weight = group_size(codes, scales)
    whole = (g for g in (MAX_ACTIVATION_GROUP, 64, 32) if of_weight % g == 0)
    return of_weight if of_weight <= MAX_ACTIVATION_GROUP else next(whole, of_weight)


def _uncast(a: Node) -> Node:
    """Activations before they were rounded for a float product."""
    return a.inputs[0] if a.op == "cast" and a.inputs[0].tensor.dtype is f32 else a
