"""A function of the graph IR as a workload: each node as work, with exact sizes in the length ``L``.

What moves no data is no work: views, slices, rows of the last tokens, weights the other way round, and casts,
which are done where a value is made or read (it is stored in the fewest bits that its readers ask for).
``paged_attention`` becomes two matrix products around a softmax::

    scores  [b*K] x [H/K*T, D] x [D, C]      T query tokens, C tokens to attend to, per sequence
    softmax [b*H, T, C]                      scale and mask included
    mix     [b*K] x [H/K*T, C] x [C, D]

The mask is causal. In prefill (T = C = L) the scores above the diagonal are neither computed nor stored:
``b*H*L*(L+1)/2`` of them remain, and ``Contraction.skipped`` says what the full products would do more.
In decode (T = 1, C = L + 1) the keys and values of the L tokens before are state, one pair of values per
layer; ``kv_append`` stores those of the new token, rounded to the cache's dtype, and attention reads them
from there. Tables of rotary embedding are not counted: whoever has no room for them computes them.

A fused node (a launch of the compiler) is one work: op of its anchor, attention whole, every operand read
once as far as it is used.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from strata.core.dims import Dim, Shape, SymDim, product, substitute_dims
from strata.core.dtypes import DType, f32
from strata.core.errors import UnsupportedError, UserError
from strata.core.kv_layout import page_bytes

from .nodes import Function, Node
from .opdef import OPS
from .stats import node_stats, size_bytes
from .types import CACHE_SYMBOLS, CacheType, TensorType
from .workload import Contraction, Value, ValueKind, Work, Workload

LENGTH = "L"
MAX_BATCH = 1 << 16

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_PRODUCTS = ("matmul", "quantized_matmul")
# Ops that make the name of their node theirs; others add their op to it. In this order, the first that a
# launch contains is its anchor.
_ANCHORS = (*_PRODUCTS, "paged_attention", "kv_append", "rms_norm", "layer_norm", "softmax", "take")
_NAMED = (*_PRODUCTS, "rms_norm", "layer_norm", "take")
_CODES = ".codes"
_PARTS = ("keys", "values")
_ALIASES = ("reshape", "view", "cast", "slice", "last_tokens", "permute_dims", "broadcast_to")


class Phase(Enum):
    """What a run of a model does."""

    PREFILL = "prefill"  # L tokens per sequence, into an empty cache
    DECODE = "decode"  # one token per sequence, with L tokens in the cache


@dataclass(frozen=True, slots=True)
class _View:
    """What a node's value is: a part of a stored one.

    Attributes:
        value: Number of the stored value; -1 inside a launch, where nothing is stored.
        elems: Elements of the part.
        bits: The fewest that a cast on the way leaves of an element.
        part: Which part; ``()`` = all.
    """

    value: int
    elems: Dim
    bits: float
    part: Hashable = ()


def function_workload(
    function: Function,
    name: str,
    *,
    phase: Phase = Phase.PREFILL,
    batch: int = 1,
    max_length: int = 1 << 20,
    activations: DType | None = None,
) -> Workload:
    """``function`` as work; the function stays as it is.

    Args:
        function: Of plain nodes, or of fused ones after the pass ``fuse``.
        name: Of the workload.
        phase: What a run does. Functions without a KV cache keep their own dims, whatever the phase.
        batch: Sequences of one run, all of one length.
        max_length: Largest ``L``.
        activations: Store results of a wider float dtype in this one; ``None`` = as the graph does.

    Raises:
        UserError: ``batch`` or ``max_length`` out of range, a batch for a function without a cache, or a
            function with a cache and more than one dim of its own.
        UnsupportedError: attention to tokens that are not in the cache yet.
    """
    check_batch(name, batch)
    if max_length < 1:
        raise UserError(f"{name}: got at most {max_length} tokens; expected at least 1")
    has_cache = any(isinstance(n.type, CacheType) for n in function.nodes)
    if not has_cache:
        if batch != 1:
            raise UserError(f"{name}: got a batch of {batch}; @{function.name} has no sequences: expected 1")
        return _Builder(function, name, phase, 1, {}, function.dims, activations).build()
    own = [d for d in function.dims if d not in CACHE_SYMBOLS]
    if len(own) > 1:
        found = ", ".join(map(str, own))
        raise UserError(f"{name}: @{function.name} has the dims {found}; expected the number of tokens only")
    length = SymDim(LENGTH, 1, max_length)
    tokens: Dim = batch * length if phase is Phase.PREFILL else batch
    env: dict[str, Dim] = {d.name: tokens for d in own} | {"num_seqs": batch, "max_context": length}
    return _Builder(function, name, phase, batch, env, (length,), activations).build()


def check_batch(name: str, batch: int) -> None:
    """Refuse a number of sequences that nobody runs at once.

    Raises:
        UserError: ``batch`` is not in 1..65536.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"{name}: got a batch of {batch}; expected 1..{MAX_BATCH} sequences")


@dataclass(slots=True)
class _Builder:
    """Values and works so far.

    Attributes:
        env: The workload's dims for the function's.
        views: By the id of a node.
        origins: Operands of the launch at hand, by the id of the body's input; empty outside launches.
        appended: Keys and values that this run stored, by layer.
        read_bits: The most bits that a reader asks of a value.
    """

    function: Function
    name: str
    phase: Phase
    batch: int
    env: Mapping[str, Dim]
    dims: tuple[SymDim, ...]
    activations: DType | None
    values: list[Value] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    views: dict[int, _View] = field(default_factory=dict)
    origins: dict[int, Node] = field(default_factory=dict)
    leaves: dict[tuple[ValueKind, str], int] = field(default_factory=dict)
    appended: dict[int, tuple[int, int]] = field(default_factory=dict)
    read_bits: dict[int, float] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    known_dims: dict[Dim, Dim] = field(default_factory=dict)

    @property
    def _length(self) -> SymDim:
        return self.dims[0]

    def build(self) -> Workload:
        for node in self.function.nodes:
            self._visit(node)
        outputs = {self._view(n).value for n in self.function.outputs if isinstance(n.type, TensorType)}
        self.read_bits |= {k: self.values[k].bits for k in outputs}
        outputs |= {value for pair in self.appended.values() for value in pair}
        return Workload(
            self.name,
            tuple(self._settled(k, v) for k, v in enumerate(self.values)),
            tuple(self.works),
            self.dims,
            tuple(sorted(outputs)),
        )

    def _settled(self, number: int, value: Value) -> Value:
        """The value in as few bits as its readers ask for; only results are stored as we like."""
        bits = value.bits
        if value.kind is ValueKind.RESULT:
            bits = min(bits, self.read_bits.get(number, bits))
        return replace(value, bits=bits) if bits != value.bits else value

    # --- nodes ------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        match node.op:
            case "input" | "param" | "const" | "create_kv_cache" | "cache_positions":
                pass  # a value as soon as somebody reads it
            case "fused":
                self._launch(node)
            case "kv_append":
                name = self._unique(node, "kv_append")
                pair = self._append(node, name, node.attrs["layer"])
                self._work(name, "kv_append", self._reads([node]), pair, 0)
            case "paged_attention":
                self._attention(node)
            case _:
                if self._alias(node) is None:
                    self._plain(node)

    def _plain(self, node: Node) -> None:
        """A node that makes one tensor."""
        op, flop = _op(node), self._dim(node_stats(node).flop)
        name, reads = self._unique(node, op), self._reads([node])
        out = self._result(node, name)
        self._work(name, op, reads, (out,), flop, self._contraction(node))

    def _alias(self, node: Node) -> _View | None:
        """The part of a stored value that ``node`` is, if it is one."""
        if node.op == "dequantize" and self._is_stored(node.inputs):
            self.views[id(node)] = self._quantized(node.inputs)
            return self.views[id(node)]
        if node.op not in _ALIASES:
            return None
        source = self._view(node.inputs[0])
        match node.op:
            case "cast" if not self.origins:  # inside a launch, nothing is stored anew
                found = replace(source, bits=min(source.bits, node.tensor.dtype.bits))
            case "slice" | "last_tokens":
                key = (node.op, *node.attrs.values())
                found = replace(source, elems=self._elems(node), part=(source.part, key))
            case "permute_dims" if source.value >= 0 and not self._is_weight(source):
                return None  # data has to move
            case _:
                found = source
        self.views[id(node)] = found
        return found

    def _launch(self, node: Node) -> None:
        """A fused node: its body's reads from outside, its one result."""
        body: Function = node.attrs["body"]
        self.origins = {id(inner): outer for inner, outer in zip(body.inputs, node.inputs, strict=True)}
        inside = [n for n in body.nodes if n.op not in ("input", "const", "cache_positions")]
        works: list[Node] = []
        for inner in inside:
            if self._alias(inner) is None:
                works.append(inner)
                self.views[id(inner)] = _View(-1, 0, 0.0)
        reads = self._reads(works or [node])
        anchor = _anchor(works or inside)
        flop: Dim = 0
        for inner in works:
            if inner.op == "paged_attention":
                flop = flop + self._attention_amounts(inner).flop
                keys, values = self._cached(inner, node.attrs["layer"] + inner.attrs["layer"])
                reads |= keys | values
            else:
                flop = flop + self._dim(node_stats(inner).flop)
        name = self._unique(node, _op(anchor))
        if isinstance(node.type, CacheType):
            outputs = self._append(anchor, name, node.attrs["layer"] + anchor.attrs["layer"])
        else:
            outputs = (self._result(node, name),)
        self._work(name, _op(anchor), reads, outputs, flop, self._contraction(anchor))
        self.origins = {}
        for inner in body.nodes:  # other launches have the same body
            self.views.pop(id(inner), None)

    # --- attention --------------------------------------------------------------------------------

    def _append(self, node: Node, name: str, layer: int) -> tuple[int, int]:
        """Keys and values of the new tokens, as a ``kv_append`` stores them."""
        cache, new = _cache(node), self._length if self.phase is Phase.PREFILL else 1
        shape = (self.batch, new, cache.num_kv_heads, cache.head_dim)
        keys, values = (
            self._value(f"{name}.{part}", shape, _cache_bits(cache), ValueKind.RESULT) for part in _PARTS
        )
        self.appended[layer] = keys, values
        return keys, values

    def _attention(self, node: Node) -> None:
        amounts, cache = self._attention_amounts(node), _cache(node)
        keys, values = self._cached(node, node.attrs["layer"])
        names = [self._unique(node, part) for part in ("scores", "softmax", "mix")]
        scores, weights = (
            self._value(name, amounts.pairs, self._activation_bits(dtype), ValueKind.RESULT)
            for name, dtype in zip(names, (f32, cache.product_dtype), strict=False)
        )
        count, query = product(amounts.pairs), self._reads([node])
        qk, wv = amounts.scores, amounts.mix
        self._work(names[0], "matmul", query | keys, (scores,), 2 * qk.macs, qk)
        self._work(names[1], "softmax", {scores: count}, (weights,), amounts.softmax_flop)
        out = self._result(node, names[2])
        self._work(names[2], "matmul", {weights: count} | values, (out,), 2 * wv.macs, wv)

    def _attention_amounts(self, node: Node) -> _Attention:
        cache, heads = _cache(node), node.inputs[0].tensor.shape[1]
        assert isinstance(heads, int)  # by the op's type rule
        is_prefill = self.phase is Phase.PREFILL
        new, context = (self._length, self._length) if is_prefill else (1, self._length + 1)
        return _Attention.of(self.batch, heads, cache, new, context)

    def _cached(self, node: Node, layer: int) -> tuple[dict[int, Dim], dict[int, Dim]]:
        """Elements of keys and of values that attention reads: of the tokens before, and of this run."""
        if layer not in self.appended:
            raise UnsupportedError(
                f"{self.name}: attention of layer {layer} comes before its kv_append; expected the tokens of "
                f"this run in the cache"
            )
        cache, found = _cache(node), list[dict[int, Dim]]()
        shape = (self.batch, self._length, cache.num_kv_heads, cache.head_dim)
        for part, new in zip(_PARTS, self.appended[layer], strict=True):
            reads: dict[int, Dim] = {}
            if self.phase is Phase.DECODE:
                past = self._leaf(f"cache.{layer}.{part}", shape, _cache_bits(cache), ValueKind.STATE)
                reads[past] = self.values[past].elems
            found.append(reads | {new: self.values[new].elems})
        return found[0], found[1]

    # --- reads ------------------------------------------------------------------------------------

    def _reads(self, nodes: Iterable[Node]) -> dict[int, Dim]:
        """Elements that ``nodes`` read of each stored value: its parts, each once."""
        parts: dict[int, dict[Hashable, Dim]] = {}
        for node in nodes:
            for view in self._operands(node):
                if view.value >= 0:
                    parts.setdefault(view.value, {})[view.part] = view.elems
                    self.read_bits[view.value] = max(self.read_bits.get(view.value, 0.0), view.bits)
        reads: dict[int, Dim] = {}
        for value, found in parts.items():
            whole = found.get(())
            reads[value] = whole if whole is not None else sum(found.values(), start=0)
        return reads

    def _operands(self, node: Node) -> list[_View]:
        inputs = [x for x in node.inputs if isinstance(x.type, TensorType)]
        match node.op:
            case "take":
                table, indices = (self._view(x) for x in inputs)
                return [replace(table, elems=self._elems(node), part=("take", indices.value)), indices]
            case "quantized_matmul" if self._is_stored(inputs[1:]):
                return [self._view(inputs[0]), self._quantized(inputs[1:])]
            case _:
                return [self._view(x) for x in inputs]

    def _view(self, node: Node) -> _View:
        """What ``node`` is, as seen from inside the launch at hand."""
        if id(node) in self.views:
            return self.views[id(node)]
        if id(node) in self.origins:
            return self._view(self.origins[id(node)])
        if node.op == "const":
            return _View(-1, 0, 0.0)  # a small array that is part of the op
        kind = ValueKind.WEIGHT if node.op == "param" else ValueKind.INPUT
        name = "positions" if node.op == "cache_positions" else node.attrs["name"]
        bits = float(node.tensor.dtype.bits)
        number = self._leaf(name, tuple(map(self._dim, node.tensor.shape)), bits, kind)
        self.views[id(node)] = _View(number, self.values[number].elems, bits)
        return self.views[id(node)]

    def _quantized(self, parts: Iterable[Node]) -> _View:
        """Codes, scales and zeros as one weight."""
        outer = [self.origins.get(id(x), x) for x in parts]
        codes = outer[0].tensor
        total = sum(_static_bytes(x.tensor) for x in outer)
        elems = product(codes.shape)
        assert isinstance(elems, int)
        name = outer[0].attrs["name"].removesuffix(_CODES)
        number = self._leaf(name, codes.shape, 8 * total / elems, ValueKind.WEIGHT)
        return _View(number, elems, self.values[number].bits)

    def _is_stored(self, parts: Iterable[Node]) -> bool:
        return all(self.origins.get(id(x), x).op == "param" for x in parts)

    def _is_weight(self, view: _View) -> bool:
        return self.values[view.value].kind is ValueKind.WEIGHT

    # --- making -----------------------------------------------------------------------------------

    def _leaf(self, name: str, shape: Shape, bits: float, kind: ValueKind) -> int:
        """The value of this name and kind, which no work makes."""
        if (kind, name) not in self.leaves:
            self.leaves[kind, name] = self._value(name, shape, bits, kind)
        return self.leaves[kind, name]

    def _value(self, name: str, shape: Shape, bits: float, kind: ValueKind) -> int:
        self.values.append(Value(name, shape, bits, kind))
        return len(self.values) - 1

    def _result(self, node: Node, name: str) -> int:
        shape = tuple(map(self._dim, node.tensor.shape))
        number = self._value(name, shape, self._activation_bits(node.tensor.dtype), ValueKind.RESULT)
        self.views[id(node)] = _View(number, product(shape), self.values[number].bits)
        return number

    def _activation_bits(self, dtype: DType) -> float:
        is_wider = self.activations is not None and dtype.is_float and dtype.bits > self.activations.bits
        return float(self.activations.bits if is_wider and self.activations else dtype.bits)

    def _work(
        self,
        name: str,
        op: str,
        reads: Mapping[int, Dim],
        outputs: tuple[int, ...],
        flop: Dim,
        contraction: Contraction | None = None,
    ) -> None:
        found = _LAYER.search(name)
        layer = int(found.group(1)) if found else None
        self.works.append(
            Work(name, op, tuple(reads), tuple(reads.values()), outputs, flop, contraction, layer)
        )

    def _contraction(self, node: Node) -> Contraction | None:
        if node.op not in _PRODUCTS:
            return None
        a, out = node.inputs[0].tensor.shape, node.tensor.shape
        is_batched = node.op == "matmul" and node.inputs[1].tensor.rank > 2
        batch, rows = product(out[:-2]), out[-2]
        if not is_batched:
            batch, rows = 1, batch * rows
        return Contraction(*map(self._dim, (batch, rows, out[-1], a[-1])))

    def _unique(self, node: Node, op: str) -> str:
        base = node.name or op
        if node.name and (op not in _NAMED or base in self.names):
            base = f"{node.name}.{op}"
        name, number = base, 1
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        return name

    def _elems(self, node: Node) -> Dim:
        return self._dim(product(node.tensor.shape)) if isinstance(node.type, TensorType) else 0

    def _dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int) or not self.env:
            return dim
        if dim not in self.known_dims:
            self.known_dims[dim] = substitute_dims(dim, self.env)
        return self.known_dims[dim]


@dataclass(frozen=True, slots=True)
class _Attention:
    """Amounts of one attention.

    Attributes:
        pairs: Shape of the scores that are needed.
        scores, mix: The two products.
    """

    pairs: Shape
    scores: Contraction
    mix: Contraction

    @property
    def softmax_flop(self) -> Dim:
        flop = OPS["softmax"].flop
        assert flop is not None  # it is in the op table
        return flop((TensorType(self.pairs, f32),), {})

    @property
    def flop(self) -> Dim:
        return 2 * self.scores.macs + 2 * self.mix.macs + self.softmax_flop

    @staticmethod
    def of(batch: int, heads: int, cache: CacheType, new: Dim, context: Dim) -> _Attention:
        """Attention of ``new`` tokens per sequence: all ``context``, or the last one of it.

        Scores on and below the diagonal are stored as ``b*H/2`` rectangles ``[L, L+1]``; if ``b*H`` is odd
        (a single head), all scores count.
        """
        count, kv_heads, d = batch * heads, cache.num_kv_heads, cache.head_dim
        pairs: Shape = (count, new, context)
        if new == context and count % 2 == 0:
            pairs = (count // 2, new, context + 1)
        skipped = (count * new * context - product(pairs)) * d
        rows = heads // kv_heads * new
        scores = Contraction(batch * kv_heads, rows, context, d, skipped)
        return _Attention(pairs, scores, Contraction(batch * kv_heads, rows, d, context, skipped))


def _op(node: Node) -> str:
    return "matmul" if node.op == "quantized_matmul" else node.op


def _anchor(nodes: list[Node]) -> Node:
    """The node of a launch that it is called after."""
    for op in _ANCHORS:
        for node in nodes:
            if node.op == op:
                return node
    return nodes[-1]


def _cache(node: Node) -> CacheType:
    return next(x.type for x in node.inputs if isinstance(x.type, CacheType))


def _cache_bits(cache: CacheType) -> float:
    """Stored bits per key or value, with its share of a scale."""
    return 8 * page_bytes(cache.dtype.name, 1, 1, cache.head_dim, 1) / (2 * cache.head_dim)


def _static_bytes(type_: TensorType) -> int:
    size = size_bytes(type_)
    assert isinstance(size, int)  # shapes of weights are known
    return size
