"""What a lowering rule works with: operand accesses, stages, and the naive loop function they add up to.

Lowering turns the body of one group (a graph function with one result) into a naive loop function. Every node
becomes an :data:`Access`: a function from index expressions to the value of that element. Injective ops
compose accesses and cost nothing; reductions and matmuls *stage* their result: they append a loop nest around
one block that fills an intermediate buffer, and their access loads from it. The last stage stores the result.

::

    for squares_i0, squares_k0: block "squares" (i0 spatial, k0 reduction)  s[i0] += x[i0, k0] * x[i0, k0]
    for out_i0, out_i1:         block "out"     (i0, i1 spatial)            y[i0, i1] = x[i0, i1] * f(s[i0])

Block names and loop names are unique in the function: schedule steps refer to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from strata.core.dims import Dim, Shape
from strata.core.dtypes import DType, f32
from strata.core.kv_layout import LAYER_FIELDS
from strata.core.registry import Registry
from strata.graph.nodes import Node
from strata.graph.types import CacheType
from strata.loop import build as b
from strata.loop.layout import Layout
from strata.loop.nodes import (
    AxisKind,
    Block,
    BlockAxis,
    Buffer,
    Expr,
    For,
    ForKind,
    Load,
    Stmt,
    Store,
    Var,
    size,
)

Index = tuple[Expr, ...]
Access = Callable[[Index], Expr]
Place = Callable[[Index], tuple[Buffer, Index]]  # where the element with this index is stored

OUTPUT_BLOCK = "out"
PAGED_FIELDS = LAYER_FIELDS


@dataclass(frozen=True, slots=True)
class Binding:
    """What a buffer parameter of a loop function is bound to.

    Attributes:
        operand: Number of the group's operand; -1 is the result.
        field: Which field of a cache operand.
        layer: Which layer's pages, for ``PAGED_FIELDS``; the group's own layer is added to it.
    """

    operand: int
    field: str = ""
    layer: int = 0


@dataclass
class Context:
    """State of lowering one group.

    Attributes:
        n: Token count of the cache batch views in this group (the symbol of the first tensor operand's rows).
        params: Buffer parameters so far, with their bindings.
        stages: Loop nests so far, in order of execution.
        allocs: Intermediate buffers.
        accesses: How to read a node, by its id.
        stored: Dtype in which the value of a node is stored, by its id, where that is not the node's own:
            its only reader is a cast.
        has_matrix_unit: Whether attention of many rows, and products of bf16 matrices, are written for one.
        block: Numbers of k that products of two matrices add up before others; 0 = all.
        unpacks: Whether codes of 4 bits become bytes once for all rows.
        operands: Buffer and stored layout of a tensor operand, by the id of its node.
    """

    n: Dim
    layouts: dict[int, Layout]
    params: list[tuple[Buffer, Binding]] = field(default_factory=list)
    stages: list[Stmt] = field(default_factory=list)
    allocs: list[Buffer] = field(default_factory=list)
    accesses: dict[int, Access] = field(default_factory=dict)
    operands: dict[int, tuple[Buffer, Layout | None]] = field(default_factory=dict)
    stored: dict[int, DType] = field(default_factory=dict)
    caches: dict[int, int] = field(default_factory=dict)  # id(cache node) -> operand number
    names: set[str] = field(default_factory=set)
    has_matrix_unit: bool = False
    block: int = 0
    unpacks: bool = False

    def access(self, node: Node) -> Access:
        """How to read element ``index`` of ``node``."""
        return self.accesses[id(node)]

    def by_stored_rows(self, node: Node) -> Access:
        """How to read a matrix where the index that tiles have rows of counts in stored order."""
        buffer, layout = self.operands.get(id(node), (None, None))
        if buffer is None or layout is None or layout.parts == 1:
            return self.access(node)
        plain = replace(layout, parts=1)
        return lambda i: plain.load(buffer, *i)

    def stored_row(self, node: Node, row: Expr) -> Expr:
        """Where a row of a matrix (a column of a transposed one) is in that order."""
        buffer, layout = self.operands.get(id(node), (None, None))
        if buffer is None or layout is None:
            return row
        return layout.stored_row(row, buffer.shape[0] * layout.rows)

    def unique(self, name: str) -> str:
        """``name``, numbered if it is taken."""
        candidate, k = name, 1
        while candidate in self.names:
            candidate, k = f"{name}_{k}", k + 1
        self.names.add(candidate)
        return candidate

    def cache_field(self, cache: Node, name: str, layer: int = 0) -> Buffer:
        """The parameter for a field (of one layer) of a cache operand, added on first use."""
        assert isinstance(cache.type, CacheType)
        binding = Binding(self.caches[id(cache)], name, layer)
        for buffer, known in self.params:
            if known == binding:
                return buffer
        spec = cache.type.fields(self.n)[name]  # type: ignore[arg-type]
        buffer = Buffer(self.unique(name), spec.shape, spec.dtype)
        self.params.append((buffer, binding))
        return buffer

    def stage(
        self,
        name: str,
        shape: Shape,
        dtype: DType,
        value: Callable[[Index], Expr],
        into: Place | None = None,
    ) -> Access:
        """Append a nest that computes ``value`` for every index of ``shape``.

        Args:
            name: Name of block and intermediate buffer.
            shape: Extents of the spatial axes.
            dtype: Dtype of ``value``.
            value: Element by axis variables.
            into: Where to store; default a new intermediate of ``shape``.

        Returns:
            The access that loads what was stored.
        """
        return self.reduce(name, shape, dtype, (), None, None, lambda i, _: value(i), into)

    def reduce(
        self,
        name: str,
        shape: Shape,
        dtype: DType,
        extents: Shape,
        init: Expr | Access | None,
        combine: Callable[[Expr, Expr], Expr] | None,
        value: Callable[[Index, Index], Expr],
        into: Place | None = None,
    ) -> Access:
        """Append a nest: ``acc = combine(acc, value(spatial, reduction))`` from ``init`` (of the element)."""
        block_name = self.unique(name)
        place = into or self._intermediate(block_name + "_buf", shape, dtype)

        axes, loops = [], []
        for k, extent in enumerate((*shape, *extents)):
            kind = AxisKind.SPATIAL if k < len(shape) else AxisKind.REDUCTION
            letter = "i" if kind is AxisKind.SPATIAL else "k"
            number = k if kind is AxisKind.SPATIAL else k - len(shape)
            loop_var = Var(f"{block_name}_{letter}{number}")
            axes.append(BlockAxis(Var(f"{letter}{number}"), kind, size(extent), loop_var))
            loops.append((loop_var, size(extent)))
        variables: Index = tuple(a.var for a in axes)
        spatial, reduction = variables[: len(shape)], variables[len(shape) :]
        buffer, position = place(spatial)
        element = value(spatial, reduction)
        start = None
        if combine is not None and init is not None:
            start = Store(buffer, position, init(spatial) if callable(init) else init)
            element = combine(Load(buffer, position), element)
        nest: Stmt = Block(block_name, tuple(axes), Store(buffer, position, element), start)
        for var, extent in reversed(loops):
            nest = For(var, extent, ForKind.SERIAL, nest)
        self.stages.append(nest)
        return lambda i: Load(buffer, place(i)[1])

    def buffer(self, name: str, shape: Shape, dtype: DType) -> Buffer:
        """A new intermediate buffer; its name is made unique."""
        stored = Buffer(self.unique(name), shape, dtype)
        self.allocs.append(stored)
        return stored

    def _intermediate(self, name: str, shape: Shape, dtype: DType) -> Place:
        stored = Buffer(name, shape, dtype)
        self.allocs.append(stored)
        return lambda i: (stored, i)


LoweringRule = Callable[[Context, Node], "Access | None"]
LOWERINGS: Registry[LoweringRule] = Registry("lowering")


def compute_type(dtype: DType) -> DType:
    """Arithmetic on 16-bit floats is done in f32 and rounded once."""
    return f32 if dtype.is_float and dtype.bits == 16 else dtype


def widened(access: Access) -> Access:
    """``access`` with 16-bit floats cast to f32."""

    def wide(i: Index) -> Expr:
        element = access(i)
        return b.cast(compute_type(element.dtype), element)

    return wide


def broadcast_index(index: Sequence[Expr], shape: Shape) -> Index:
    """Index into an operand of ``shape`` for NumPy broadcasting to ``len(index)`` dims."""
    tail = index[len(index) - len(shape) :]
    return tuple(b.const(0, i.dtype) if dim == 1 else i for i, dim in zip(tail, shape, strict=True))
