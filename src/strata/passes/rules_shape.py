"""Rules of ``canonicalize`` about shapes: idle views, flat matmuls, reshapes that move down and cancel."""

from __future__ import annotations

from strata.core.dims import product
from strata.graph import builder as g
from strata.graph.nodes import Node, make_node, rebuild
from strata.graph.opdef import OPS, Pattern

from .rules import Rule
from .rules_algebra import BROADCASTING

UNARY = tuple(
    name for name, op in OPS.items() if op.pattern is Pattern.ELEMENTWISE and name not in BROADCASTING
)
ROW_OPS = ("rms_norm", "layer_norm", "softmax")  # along the last axis


def _reshape(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.type == node.type:
        return x
    if x.op == "reshape":
        return g.reshape(x.inputs[0], node.tensor.shape, name=node.name)
    return None


def _permute(node: Node) -> Node | None:
    (x,) = node.inputs
    axes = tuple(a % x.tensor.rank for a in node.attrs["axes"])
    if axes == tuple(range(len(axes))):
        return x
    if x.op == "permute_dims":
        inner = x.attrs["axes"]
        return g.permute_dims(x.inputs[0], [inner[a] % len(axes) for a in axes], name=node.name)
    moved = [a for a in axes if x.tensor.shape[a] != 1]
    # A weight keeps its permute even where it moves dims of 1 only: fold_transpose looks for it.
    if moved == sorted(moved) and x.op != "param":
        return g.reshape(x, node.tensor.shape, name=node.name)
    return None


def _slice(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.type == node.type:
        return x
    axis, begin, end = node.attrs["axis"] % x.tensor.rank, node.attrs["begin"], node.attrs["end"]
    if x.op == "slice" and x.attrs["axis"] % x.tensor.rank == axis:
        start = x.attrs["begin"]
        return g.slice(x.inputs[0], axis, begin + start, end + start, name=node.name)
    if x.op == "concat" and x.attrs["axis"] % x.tensor.rank == axis:
        offset = 0
        for part in x.inputs:
            if begin == offset and end - begin == part.tensor.shape[axis]:
                return part
            offset = offset + part.tensor.shape[axis]
    return None


def _concat(node: Node) -> Node | None:
    """One operand; or slices that lie side by side in one source."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    axis = node.attrs["axis"] % node.tensor.rank
    first = node.inputs[0]
    if any(p.op != "slice" or p.attrs["axis"] % p.tensor.rank != axis for p in node.inputs):
        return None
    if any(p.inputs[0] is not first.inputs[0] for p in node.inputs):
        return None
    end = first.attrs["begin"]
    for part in node.inputs:
        if part.attrs["begin"] != end:
            return None
        end = part.attrs["end"]
    return g.slice(first.inputs[0], axis, first.attrs["begin"], end, name=node.name)


def _broadcast(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.type == node.type:
        return x
    if x.op == "broadcast_to":
        return g.broadcast_to(x.inputs[0], node.tensor.shape, name=node.name)
    return None


def _flat_matmul(node: Node) -> Node | None:
    """``[.., m, k] @ [k, n]`` is ``[rows, k] @ [k, n]``."""
    a, b = node.inputs
    if a.tensor.rank < 3 or b.tensor.rank != 2:
        return None
    rows = product(a.tensor.shape[:-1])
    flat = rebuild(node, (g.reshape(a, (rows, a.tensor.shape[-1])), b))
    return g.reshape(flat, node.tensor.shape, name=node.name)


def _keeps_rows(reshape: Node) -> bool:
    """Whether a reshape regroups leading dims only, so that rows (the last dim) stay rows."""
    before, after = reshape.inputs[0].tensor.shape, reshape.tensor.shape
    return bool(before) and bool(after) and before[-1] == after[-1]


def _sink_unary(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.op != "reshape":
        return None
    return g.reshape(rebuild(node, (x.inputs[0],)), node.tensor.shape, name=node.name)


def _sink_rows(node: Node) -> Node | None:
    x = node.inputs[0]
    if x.op != "reshape" or not _keeps_rows(x):
        return None
    attrs = {}
    if node.op == "softmax":
        if node.attrs["axis"] % x.tensor.rank != x.tensor.rank - 1:
            return None
        attrs["axis"] = x.inputs[0].tensor.rank - 1
    below = rebuild(node, (x.inputs[0], *node.inputs[1:]), **attrs)
    return g.reshape(below, node.tensor.shape, name=node.name)


def _sink_slice(node: Node) -> Node | None:
    (x,) = node.inputs
    last = node.tensor.rank - 1
    if x.op != "reshape" or not _keeps_rows(x) or node.attrs["axis"] % node.tensor.rank != last:
        return None
    source = x.inputs[0]
    below = g.slice(source, source.tensor.rank - 1, node.attrs["begin"], node.attrs["end"], name=node.name)
    return g.reshape(below, node.tensor.shape, name=node.name)


def _sink_broadcasting(node: Node) -> Node | None:
    """``f(reshape(y), z)`` is ``reshape(f(y, z'))`` if all operands fit the shape of ``y`` for free."""
    for x in node.inputs:
        if x.op != "reshape" or x.tensor.shape != node.tensor.shape:
            continue
        operands = [_as_shape_of(z, x) for z in node.inputs]
        if all(z is not None for z in operands):
            below = make_node(node.op, [z for z in operands if z is not None], node.name, **node.attrs)
            return g.reshape(below, node.tensor.shape, name=node.name)
    return None


def _as_shape_of(z: Node, x: Node) -> Node | None:
    """``z``, an operand beside ``x = reshape(y)``, so that it broadcasts to ``y``, or ``None``."""
    y = x.inputs[0]
    if z is x:
        return y
    if z.tensor.rank == 0:
        return z
    if z.op == "reshape" and z.tensor.shape == x.tensor.shape and z.inputs[0].tensor.shape == y.tensor.shape:
        return z.inputs[0]
    if not _keeps_rows(x):
        return None
    if z.tensor.shape == x.tensor.shape:
        # Towards 2-d only: otherwise two operands could hand a reshape to each other for ever.
        return g.reshape(z, y.tensor.shape) if y.tensor.rank == 2 and x.tensor.rank != 2 else None
    if all(d == 1 for d in z.tensor.shape[:-1]):  # one row, or one element
        return z if z.tensor.rank == 1 else g.reshape(z, z.tensor.shape[-1:])
    return None


SHAPE_RULES: tuple[Rule, ...] = (
    Rule("reshape", ("reshape",), _reshape, "two reshapes are one; one to the same shape is none"),
    Rule("permute", ("permute_dims",), _permute, "two permutes are one; moving dims of 1 moves no element"),
    Rule(
        "slice",
        ("slice",),
        _slice,
        "two slices are one; a slice of all is none; a slice of a concat is its part",
    ),
    Rule("concat", ("concat",), _concat, "one part, or neighbouring slices, need no copy"),
    Rule("broadcast", ("broadcast_to",), _broadcast, "two broadcasts are one"),
    Rule(
        "flat-matmul", ("matmul",), _flat_matmul, "2-d matmuls have the fast schedules, and reshapes are free"
    ),
    Rule("sink-unary", UNARY, _sink_unary, "elementwise: the order of elements does not matter"),
    Rule("sink-rows", ROW_OPS, _sink_rows, "rows stay rows"),
    Rule("sink-slice", ("slice",), _sink_slice, "rows stay rows"),
    Rule("sink-broadcasting", BROADCASTING, _sink_broadcasting, "elementwise on equal shapes or whole rows"),
)
