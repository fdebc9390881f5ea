"""The native entry of a model function: binds the arguments once, then calls its kernels one after another.

For every launch the entry picks the kernel by comparing dims (:class:`~strata.runtime.records.KernelChoice`),
computes the addresses of its buffers and calls ``@<kernel>.impl`` directly; nothing else runs between two
kernels. The text is straight-line code, so it compiles quickly. What the addresses mean is in
``runtime.records``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from strata.core.dims import SymDim, parse_dim
from strata.core.dtypes import dtype, i64, u8
from strata.core.errors import CodegenError
from strata.core.kv_layout import LAYER_FIELDS
from strata.loop.nodes import Func
from strata.runtime.records import (
    CACHE_DIMS,
    CACHE_POINTERS,
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    Launch,
    TensorSpec,
    layer_word,
)

from .abi import (
    WRAPPER_TAIL,
    ArgSpec,
    Signature,
    call_impl,
    constant,
    declare_bind,
    declare_impl,
    descriptor,
    wrapper_head,
)

ARENA_ALIGN_BYTES = 64
CACHE_DTYPE = "cache"


def _dims(record: FunctionRecord) -> dict[str, SymDim]:
    """Symbolic dims by name: those with a range, those of a cache, others that shapes mention."""
    dims = {r.dim: SymDim(r.dim, r.lo, r.hi) for r in record.dims}
    if any(s.dtype == CACHE_DTYPE for s in record.inputs):
        for name in CACHE_DIMS:
            dims.setdefault(name, SymDim(name, 0))
    for spec in (*record.inputs, *record.outputs):
        for entry in spec.shape:
            if isinstance(entry, str) and entry.isidentifier():
                dims.setdefault(entry, SymDim(entry, 0))
    return dims


def _input_spec(spec: TensorSpec, index: int, record: FunctionRecord, dims: Mapping[str, SymDim]) -> ArgSpec:
    if spec.dtype == CACHE_DTYPE:
        refs = [
            a for step in record.launches for a in step.args if a.kind is ArgKind.CACHE and a.index == index
        ]
        layers = 1 + max((a.layer for a in refs if a.field in LAYER_FIELDS), default=-1)
        reads = tuple((len(CACHE_POINTERS) + i, name) for i, name in enumerate(CACHE_DIMS))
        return ArgSpec(spec.name, i64, (layer_word(layers, LAYER_FIELDS[0]),), 8, at_least=True, reads=reads)
    shape = tuple(parse_dim(d, dims) if isinstance(d, str) else d for d in spec.shape)
    kind = dtype(spec.dtype)
    return ArgSpec(spec.name, kind, shape, kind.itemsize_bytes)


def signature_of_function(record: FunctionRecord) -> Signature:
    """Inputs, outputs, param table, arena."""
    refs = (a for step in record.launches for a in step.args)
    num_params = 1 + max((a.index for a in refs if a.kind is ArgKind.PARAM), default=-1)
    dims = _dims(record)
    tensors = [_input_spec(s, i, record, dims) for i, s in enumerate(record.inputs)]
    tensors += [_input_spec(s, -1, record, dims) for s in record.outputs]
    tensors.append(ArgSpec("params", i64, (num_params,), 8, at_least=True))
    tensors.append(ArgSpec("arena", u8, (record.arena_bytes,), ARENA_ALIGN_BYTES, at_least=True))
    ordered = tuple(dims[name] for name in sorted(dims))
    return Signature(record.name, tuple(tensors), ordered, int_dims=False)


class _Entry:
    """Emits the body of one entry."""

    def __init__(self, record: FunctionRecord, kernels: Mapping[str, Func]) -> None:
        self.record = record
        self.kernels = kernels
        self.signature = signature_of_function(record)
        self.dims = {d.name: f"%d{i}" for i, d in enumerate(self.signature.dims)}
        self.lines: list[str] = []
        self.count = 0
        self.addresses: dict[ArgRef, str] = {}  # loaded or computed already; valid in the whole function

    def fresh(self) -> str:
        """A new SSA name."""
        self.count += 1
        return f"%v{self.count}"

    def emit(self, text: str) -> str:
        """An instruction with a result."""
        name = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def word(self, table: str, index: int) -> str:
        """The pointer in word ``index`` of a table."""
        place = self.emit(f"getelementptr i8, ptr {table}, i64 {8 * index}")
        return self.emit(f"load ptr, ptr {place}")

    def address(self, ref: ArgRef, where: str) -> str:
        """Address of a buffer."""
        inputs, outputs = len(self.record.inputs), len(self.record.outputs)
        counts = {ArgKind.INPUT: inputs, ArgKind.CACHE: inputs, ArgKind.OUTPUT: outputs}
        counts[ArgKind.ARENA] = max(self.record.arena_bytes, 1)
        count = counts.get(ref.kind)
        if ref.index < 0 or (count is not None and ref.index >= count):
            expected = "0 or more" if count is None else f"0..{count - 1}"
            raise CodegenError(f"{where}: got {ref.kind.value} {ref.index}; expected {expected}")
        match ref.kind:
            case ArgKind.INPUT:
                return f"%p{ref.index}"
            case ArgKind.OUTPUT:
                return f"%p{inputs + ref.index}"
            case ArgKind.PARAM:
                return self.word(f"%p{inputs + outputs}", ref.index)
            case ArgKind.ARENA:
                return self.emit(f"getelementptr i8, ptr %p{inputs + outputs + 1}, i64 {ref.index}")
            case ArgKind.CACHE:
                return self.word(f"%p{ref.index}", self.cache_word(ref, where))

    def cache_word(self, ref: ArgRef, where: str) -> int:
        """Which entry of the cache table holds a field."""
        if self.record.inputs[ref.index].dtype != CACHE_DTYPE:
            name = self.record.inputs[ref.index].name
            raise CodegenError(f"{where}: got input {name!r} as a cache; it is a tensor")
        if ref.field in CACHE_POINTERS:
            return CACHE_POINTERS.index(ref.field)
        if ref.field not in LAYER_FIELDS:
            known = ", ".join((*CACHE_POINTERS, *LAYER_FIELDS))
            raise CodegenError(f"{where}: got cache field {ref.field!r}; expected one of {known}")
        return layer_word(ref.layer, ref.field)

    def call(self, kernel: str, pointers: Sequence[str], where: str) -> None:
        """Call one kernel."""
        func = self.kernels.get(kernel)
        if func is None:
            raise CodegenError(f"{where}: no kernel {kernel!r} among the compiled functions")
        if len(pointers) != len(func.params):
            raise CodegenError(f"{where}: got {len(pointers)} buffers; {kernel} takes {len(func.params)}")
        missing = [d.name for d in func.dims if d.name not in self.dims]
        if missing:
            raise CodegenError(
                f"{where}: {kernel} needs {', '.join(missing)}; no input of the function gives it"
            )
        passed = [f"ptr {p}" for p in pointers] + [f"i64 {self.dims[d.name]}" for d in func.dims]
        self.count += 1
        self.lines += call_impl(func, passed, f"k{self.count}")

    def condition(self, ranges: Sequence[DimRange], where: str) -> str:
        """i1: all ranges hold."""
        result = ""
        for r in ranges:
            if r.dim not in self.dims:
                known = ", ".join(self.dims) or "none"
                raise CodegenError(f"{where}: got a choice by dim {r.dim!r}; expected one of {known}")
            for predicate, bound in (("sge", r.lo), ("sle", r.hi)):
                test = self.emit(f"icmp {predicate} i64 {self.dims[r.dim]}, {bound}")
                result = self.emit(f"and i1 {result}, {test}") if result else test
        return result

    def launch(self, index: int, step: Launch) -> None:
        """The kernels of one launch, tried in order."""
        where = f"{self.record.name}: launch {step.node}"
        for ref in step.args:
            if ref not in self.addresses:
                self.addresses[ref] = self.address(ref, where)
        pointers = [self.addresses[ref] for ref in step.args]
        if not step.choices or step.choices[-1].when:
            raise CodegenError(f"{where}: the last choice must have no ranges; got {step.choices[-1:]}")
        if len(step.choices) == 1:
            self.call(step.choices[0].kernel, pointers, where)
            return
        for c, choice in enumerate(step.choices):
            self.choice(f"l{index}.{c}", choice, pointers, f"l{index}.end", where)
        self.lines.append(f"l{index}.end:")

    def choice(self, label: str, choice: KernelChoice, pointers: Sequence[str], end: str, where: str) -> None:
        """One alternative: call the kernel and go to ``end``, or fall through to the next."""
        if choice.when:
            cond = self.condition(choice.when, where)
            self.lines += [f"  br i1 {cond}, label %{label}, label %{label}.else", f"{label}:"]
        self.call(choice.kernel, pointers, where)
        self.lines.append(f"  br label %{end}")
        if choice.when:
            self.lines.append(f"{label}.else:")


def emit_entry(record: FunctionRecord, kernels: Mapping[str, Func]) -> str:
    """LLVM text of the entry ``@<record.name>`` in the tvm-ffi convention.

    Args:
        record: The function.
        kernels: Compiled loop functions by name.

    Raises:
        CodegenError: the record names a kernel, buffer or dim that does not exist, or one has another arity.
    """
    entry = _Entry(record, kernels)
    for index, step in enumerate(record.launches):
        entry.launch(index, step)
    return (
        constant(f"{record.name}.descriptor", descriptor(entry.signature))
        + wrapper_head(record.name, len(entry.signature.args), len(entry.signature.dims))
        + "\n".join([*entry.lines, WRAPPER_TAIL])
    )


def emit_entries(records: Sequence[FunctionRecord], kernels: Mapping[str, Func], triple: str) -> str:
    """LLVM text of a module with the entries of ``records``; see :func:`emit_entry`."""
    used = sorted({c.kernel for r in records for step in r.launches for c in step.choices} & set(kernels))
    head = f'target triple = "{triple}"\n{declare_bind()}'
    return (
        head
        + "".join(declare_impl(kernels[k]) for k in used)
        + "".join(emit_entry(r, kernels) for r in records)
    )
