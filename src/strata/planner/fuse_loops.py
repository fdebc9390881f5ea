"""``fuse_loops``: each group gets the loop function that computes it, as text to read and to change.

::

    %1 = fused(%x, %0) {body=...} !{loop="rms_norm"}
    ...
    loop @rms_norm(%0, %1, %out) {{
      func @rms_norm(a0: f32[n, 64], a1: f32[64]) -> (y: f32[n, 64])
        ...
    }}

The planner takes the functions that it finds so, instead of lowering the body itself: what a person changes
in the text is what is scheduled and compiled.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from strata.core.dims import Dim
from strata.core.errors import ParseError, VerifyError
from strata.graph.nodes import LoopText, Module, Node, rewrite, with_notes
from strata.graph.types import CacheType
from strata.ir.passes import OptionError, Pass, register_pass
from strata.loop.check import LOOP_NAIVE, check
from strata.loop.layout import Layout, stored_shape
from strata.loop.nodes import Func
from strata.loop.text import parse_func, print_func
from strata.lower import Binding, Lowered, lower_group
from strata.passes.base import function_key

LOOP_NOTE = "loop"
RESULT = "out"


def operand_layouts(node: Node, layouts: Mapping[str, Layout]) -> dict[int, Layout]:
    """Stored layout by operand number, for the params among the operands that are not row-major."""
    return {
        number: layouts[operand.attrs["name"]]
        for number, operand in enumerate(node.inputs)
        if operand.op == "param" and operand.attrs["name"] in layouts
    }


def lowered_node(
    node: Node, name: str, layouts: Mapping[int, Layout], loops: Mapping[str, LoopText]
) -> Lowered:
    """The naive loop function of a ``fused`` node: the one that its note names, else its body lowered.

    Args:
        node: The node.
        name: What to call the function.
        layouts: Stored layout by operand number.
        loops: The module's loop functions.

    Raises:
        OptionError: the note names no function of the module, or one that does not fit the node.
        UnsupportedError: an op of the body has no lowering.
    """
    note = node.notes.get(LOOP_NOTE)
    if note is None:
        return lower_group(name, node.attrs["body"], layouts)
    where = f"loop @{note}"
    if not isinstance(note, str) or note not in loops:
        known = ", ".join(f"@{k}" for k in loops) or "none"
        raise OptionError(f"note loop of {node.op} {node.name}: no {where}; the module has: {known}")
    try:
        func = parse_func(loops[note].text, f"<{where}>")
        check(func, LOOP_NAIVE)
    except (ParseError, VerifyError) as error:
        raise OptionError(f"{where}: {error}") from None
    bindings = tuple(_parse_binding(where, a, len(node.inputs)) for a in loops[note].args)
    _check_fits(where, node, func, bindings, layouts)
    return Lowered(Func(name, func.params, func.body, func.num_outputs), bindings)


def _binding_text(binding: Binding) -> str:
    if binding.operand < 0:
        return RESULT
    layer = f".{binding.layer}" if binding.layer else ""
    return f"{binding.operand}.{binding.field}{layer}" if binding.field else str(binding.operand)


def _parse_binding(where: str, text: str, operands: int) -> Binding:
    if text == RESULT:
        return Binding(-1)
    number, *rest = text.split(".")
    numbers = [number, *rest[1:]]
    if len(rest) > 2 or not all(n.isdigit() for n in numbers) or int(number) >= operands:
        raise OptionError(
            f"{where}: got argument %{text}; expected %{RESULT} or the number of one of {operands} operands, "
            "and for a cache its field: %1.k_pages"
        )
    return Binding(int(number), rest[0] if rest else "", int(rest[1]) if len(rest) > 1 else 0)


def _check_fits(
    where: str, node: Node, func: Func, bindings: tuple[Binding, ...], layouts: Mapping[int, Layout]
) -> None:
    if len(bindings) != len(func.params):
        raise OptionError(f"{where}: got {len(bindings)} arguments for {len(func.params)} parameters")
    for param, binding in zip(func.params, bindings, strict=True):
        if binding.field or (isinstance(node.type, CacheType) and binding.operand < 0):
            continue  # rows of a batch view: their number is a symbol that only the lowering knows
        value = node if binding.operand < 0 else node.inputs[binding.operand]
        wanted: tuple[Dim, ...] = stored_shape(value.tensor.shape, layouts.get(binding.operand))
        if param.shape != wanted or param.dtype != value.tensor.dtype:
            shape = ",".join(map(str, wanted))
            raise OptionError(
                f"{where}: parameter {param.name} is {param.dtype}[{','.join(map(str, param.shape))}]; "
                f"expected {value.tensor.dtype}[{shape}] (as {value.type} is stored); run fuse_loops again"
            )


@register_pass
@dataclass(frozen=True)
class FuseLoops(Pass[Module]):
    """Lowers each group to one loop function, which the module then carries as text, and notes its name.

    How weights are stored is part of a loop function, so ``layouts`` runs first where it has not.

    Stage: fused graph -> the same; nodes that have the note already stay.
    Preserves: everything but the notes and the table of loop functions, and what ``layouts`` does.

    Attributes:
        target: The machine to choose layouts for; see ``layouts``.
    """

    name: ClassVar[str] = "fuse_loops"
    target: str = "host"

    def run(self, module: Module) -> Module:
        """Lower every group.

        Raises:
            OptionError: a note is wrong, or there is no such machine.
        """
        from .layouts import Layouts, noted_layouts  # which needs this module

        module = Layouts(self.target).run(module)
        layouts = {name: layout for name, layout in noted_layouts(module).items() if layout is not None}
        loops = dict(module.loops)
        known: dict[Hashable, str] = {}

        def noted(node: Node) -> Node:
            if node.op != "fused" or LOOP_NOTE in node.notes:
                return node
            stored = operand_layouts(node, layouts)
            key = (function_key(node.attrs["body"]), tuple(stored.items()))
            if key not in known:
                known[key] = _free_name(node.attrs["body"].name, loops)
                lowered = lowered_node(node, known[key], stored, loops)
                args = tuple(map(_binding_text, lowered.bindings))
                loops[known[key]] = LoopText(args, print_func(lowered.func))
            return with_notes(node, **{LOOP_NOTE: known[key]})

        functions = tuple(rewrite(f, noted) for f in module.functions)
        return replace(module, functions=functions, loops=loops)


def _free_name(base: str, taken: Mapping[str, LoopText]) -> str:
    name, number = base, 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
