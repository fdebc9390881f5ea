"""Which params are stored in tiles: every matrix that some matmul multiplies by.

A stored layout is a property of the param: all functions and all kernels read the same bytes, an embedding
table that is also the output head included. The pass ``layouts`` shows the choice as notes on params, and the
planner follows the notes that it finds::

    %1: f32[128,64] = @up.weight !{layout="tiles(rows=64,cols=1)"}        or "row_major"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from strata.core.errors import ParseError
from strata.graph.nodes import Function, Module, Node, rewrite, with_notes
from strata.graph.opdef import Pattern
from strata.graph.ops.quantized import group_size
from strata.graph.types import TensorType
from strata.ir.passes import OptionError, Pass, register_pass
from strata.loop.layout import Layout, parse_layout, stored_dtype, stored_shape
from strata.schedule.rules.matmul import weight_layout
from strata.schedule.rules.quantized import quantized_layouts
from strata.target import Target

from .assemble import favour
from .candidates import takes_rows
from .composites import has_composites, node_options
from .gates import gate_parts, join_gates, target_of
from .options import PlanOptions
from .stacks import Kernels, StackBuilder

LAYOUT_NOTE = "layout"
ROW_MAJOR = "row_major"
CODES_OPERAND, SCALES_OPERAND = 1, 2  # of quantized_matmul


@register_pass
@dataclass(frozen=True)
class Layouts(Pass[Module]):
    """Notes on every matrix that some matmul multiplies by how it is stored; the planner follows these notes.

    Stored rows follow the launches that read them, so gates are joined first (``join_gates``).

    Stage: fused graph -> the same; notes that are there already stay.
    Preserves: everything but the notes, and launches that become one.

    Attributes:
        target: The machine to choose for: a name, ``host`` for this one, or the text of a target.
    """

    name: ClassVar[str] = "layouts"
    target: str = "host"

    def run(self, module: Module) -> Module:
        """Add the notes.

        Raises:
            OptionError: a note is wrong, or there is no such machine.
        """
        target = target_of(self.name, self.target)
        module = join_gates(module, target)
        chosen = choose_layouts(module, target)

        def noted(node: Node) -> Node:
            layout = chosen.get(node.attrs["name"]) if node.op == "param" else None
            return node if layout is None else with_notes(node, **{LAYOUT_NOTE: str(layout)})

        return module.map(lambda f: rewrite(f, noted))


def _products(function: Function) -> Iterator[tuple[Function, Node, dict[int, str]]]:
    """Every matmul of a group, after the group's body; with it, names of 2-d params by operand number."""
    for node in function.nodes:
        if node.op == "fused":
            body: Function = node.attrs["body"]
            outer = {id(inner): operand for inner, operand in zip(body.inputs, node.inputs, strict=True)}
            for matmul in body.nodes:
                if matmul.opdef.pattern is Pattern.MATMUL:
                    operands = ((k, outer.get(id(inner))) for k, inner in enumerate(matmul.inputs))
                    yield (
                        body,
                        matmul,
                        {
                            k: x.attrs["name"]
                            for k, x in operands
                            if k and x is not None and x.op == "param" and x.tensor.rank == 2
                        },
                    )


def _tiles(body: Function, matmul: Node, number: int, target: Target) -> Layout:
    """Layout of operand ``number`` of a matmul of a group."""
    layout, parts = _tiles_of(matmul, number, target), gate_parts(body, matmul, target)
    return replace(layout, parts=parts) if layout.rows % parts == 0 else layout


def _tiles_of(matmul: Node, number: int, target: Target) -> Layout:
    weight = matmul.inputs[number].tensor
    if matmul.op == "quantized_matmul":
        codes, scales = (matmul.inputs[k].tensor for k in (CODES_OPERAND, SCALES_OPERAND))
        layouts = quantized_layouts(codes.dtype, scales.dtype, group_size(codes, scales), target)
        return layouts[number - CODES_OPERAND]
    transposed = not matmul.attrs["transpose_b"]
    return weight_layout(weight.dtype, weight.shape[0 if transposed else 1], transposed, target)


def noted_layouts(module: Module) -> dict[str, Layout | None]:
    """Stored layouts that notes on params ask for; ``None`` is row-major.

    Raises:
        OptionError: a note is no layout, or two notes on one param differ.
    """
    noted: dict[str, tuple[object, Layout | None]] = {}
    for node in (n for f in module.functions for n in f.params if LAYOUT_NOTE in n.notes):
        name, note = node.attrs["name"], node.notes[LAYOUT_NOTE]
        if name in noted and noted[name][0] != note:
            raise OptionError(
                f"note layout of @{name}: got {noted[name][0]!r} and {note!r}; expected one of them"
            )
        noted[name] = note, _parse_note(name, node.tensor, note)
    return {name: layout for name, (_, layout) in noted.items()}


def _parse_note(name: str, tensor: TensorType, note: object) -> Layout | None:
    if note == ROW_MAJOR:
        return None
    try:
        layout = parse_layout(str(note))
    except ParseError as error:
        raise OptionError(f"note layout of @{name}: {error}, or {ROW_MAJOR}") from None
    if layout is None or tensor.rank != 2 or not all(isinstance(d, int) for d in tensor.shape):
        raise OptionError(
            f"note layout of @{name}: got {note!r} for {tensor}; only constant 2-d params have tiles"
        )
    return layout


def choose_layouts(module: Module, target: Target) -> dict[str, Layout]:
    """Stored layout of every param that is not row-major: what its note says, else tiles for a matmul.

    Raises:
        OptionError: a note is wrong.
    """
    noted = noted_layouts(module)
    layouts = {name: layout for name, layout in noted.items() if layout is not None}
    for body, matmul, names in (p for f in module.functions for p in _products(f)):
        for number, name in names.items():
            if name not in noted:
                layouts.setdefault(name, _tiles(body, matmul, number, target))
    shared = shared_params(module, layouts)
    kept = {*noted, *shared, *shared.values()}
    return {n: x if n in kept else replace(x, stripes=None) for n, x in layouts.items()}


def reads_rows(module: Module, options: PlanOptions) -> bool:
    """Whether some source may offer candidates that read matrices row by row: then neither all layouts can be
    chosen beforehand nor launches joined by them.
    """
    return takes_rows(options) or has_composites(module)


def shared_params(module: Module, layouts: Mapping[str, Layout]) -> dict[str, str]:
    """By param of scales: the param of codes in whose memory it lies, as both are in stripes of one size.

    The first scales of a weight lie there, and those of several weights in the memory of the first one.
    """
    found: dict[str, str] = {}
    for _, matmul, names in (p for f in module.functions for p in _products(f)):
        codes, scales = names.get(CODES_OPERAND, ""), names.get(SCALES_OPERAND, "")
        if matmul.op != "quantized_matmul" or scales in found or codes in found.values():
            continue
        if codes in layouts and scales in layouts:
            types = (matmul.inputs[k].tensor for k in (CODES_OPERAND, SCALES_OPERAND))
            ours, theirs = (_pieces(t, layouts[name]) for t, name in zip(types, (codes, scales), strict=True))
            if ours and theirs and ours[0] == theirs[0] and (ours[2] <= theirs[1] or theirs[2] <= ours[1]):
                found[scales] = codes
    return found


def _pieces(tensor: TensorType, layout: Layout) -> tuple[tuple[int, ...], int, int] | None:
    """Of stripes: rows of tiles, pieces of a row and bytes of a piece; the bytes of a piece that it takes."""
    if layout.stripes is None:
        return None
    rows, pieces, width = (int(d) for d in stored_shape(tensor.shape, layout))  # type: ignore[arg-type]
    step = stored_dtype(tensor.dtype).itemsize_bytes
    begin, end = layout.stripes.begin, layout.stripes.begin + layout.stripe
    return (rows, pieces, width * step), begin * step, end * step


def settle_layouts(
    module: Module,
    tiled: Mapping[str, Layout],
    target: Target,
    options: PlanOptions,
    measuring: Callable[[str], None] | None = None,
) -> dict[str, Layout]:
    """Keep params in tiles unless a candidate that reads them row by row is favoured or faster.

    Kernels of the user and libraries take matrices as they are in the graph. A param has one stored layout,
    so all launches that read it decide together.

    Args:
        module: After the ``fuse`` pass.
        tiled: What :func:`choose_layouts` gives.
        target: The machine.
        options: What the user said.
        measuring: Called before candidates of a kernel are timed.

    Returns:
        The layouts that stay.
    """
    in_tiles, in_rows = (
        StackBuilder(layouts, target, options, measuring=measuring) for layouts in (tiled, {})
    )
    fixed = noted_layouts(module)
    score = dict.fromkeys((name for name in tiled if name not in fixed), 0.0)
    for function in module.functions:
        for node in function.nodes:
            names = [i.attrs["name"] for i in node.inputs if i.op == "param" and i.attrs["name"] in score]
            if node.op == "fused" and names:
                gain = _score(in_rows.kernels_of(node), node, options) - _score(
                    in_tiles.kernels_of(node), node, options
                )
                for name in names:
                    score[name] += gain
    return {name: layout for name, layout in tiled.items() if name in fixed or score[name] <= 0}


_FAVOUR = 1e6  # outweighs any ratio of times


def _score(kernels: Kernels, node: Node, options: PlanOptions) -> float:
    """How good a stack is: minus the mean logarithm of the best times; a favoured candidate counts most."""
    wanted = favour(node_options(options, node), node.name, kernels.task.anchor.op)
    candidates = kernels.stack.candidates
    sizes = [size for size, _ in candidates[0].estimates]
    best = [min(c.estimates[k][1].time_s for c in candidates) for k in range(len(sizes))]
    mean = sum(math.log(max(t, 1e-12)) for t in best) / len(best)
    is_wanted = any(wanted.holds(c, size) for c in candidates for size in (None, *sizes))
    return -mean + (_FAVOUR if is_wanted else 0.0)
