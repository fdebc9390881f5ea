"""LLVM machinery: parsing, verification, the pass pipeline, object code and assembly.

The pipeline is LLVM's function simplification at -O2 (SROA, EarlyCSE, InstCombine, SimplifyCFG, LICM, GVN,
DSE, …) without unrolling and vectorising: loops come as they shall be. ``no-builtins`` on every function
keeps LoopIdiom and MemCpyOpt from making library calls.

llvmlite guards every call into LLVM with one lock and drops the GIL meanwhile. Modules live in contexts of
their own and target machines in their thread, so the two long calls (passes, code emission) may run on
several threads at once; they are made through the same C functions without that lock.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from strata.core.errors import CodegenError
from strata.target import Target

_init_lock = threading.Lock()
_local = threading.local()


@cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def target_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's target machine of this thread: position-independent, small code model.

    Raises:
        CodegenError: this LLVM has no back end for the triple.
    """
    with _init_lock:
        _initialize()
    machines: dict[Target, llvm.TargetMachine] = _local.__dict__.setdefault("machines", {})
    if target not in machines:
        try:
            found = llvm.Target.from_triple(target.triple)
        except RuntimeError as error:
            raise CodegenError(f"target {target.name}: no back end for {target.triple}: {error}") from error
        # Functions carry CPU and features as attributes; this CPU is only a default.
        machines[target] = found.create_target_machine(opt=2, reloc="pic", codemodel="small")
    return machines[target]


@cache
def data_layout(target: Target) -> str:
    """LLVM's data layout string for the target's triple."""
    return str(target_machine(target).target_data)


def parse(text: str, where: str) -> llvm.ModuleRef:
    """Parse and verify LLVM text, in a context of its own.

    Raises:
        CodegenError: LLVM rejects the text; the message has the numbered lines.
    """
    with _init_lock:
        _initialize()
    try:
        module = llvm.parse_assembly(text, llvm.create_context())
        module.verify()
    except RuntimeError as error:
        numbered = "\n".join(f"{i:5} {line}" for i, line in enumerate(text.splitlines(), 1))
        raise CodegenError(f"{where}: LLVM rejects the text: {error}\n{numbered}") from error
    return module


def optimize(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """Run the pass pipeline on every function, in place."""
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getFunctionPassManager()
    run = _unlocked("LLVMPY_RunNewFunctionPassManager")
    for function in module.functions:
        if not function.is_declaration:
            run(passes, function, builder)


def emit(module: llvm.ModuleRef, machine: llvm.TargetMachine, *, as_object: bool) -> bytes:
    """Object code (ELF) or assembly of a module.

    Raises:
        CodegenError: LLVM cannot emit it.
    """
    with ffi.OutputString() as message:
        buffer = _unlocked("LLVMPY_TargetMachineEmitToMemory")(machine, module, int(as_object), message)
        if not buffer:
            raise CodegenError(f"code emission: {str(message) if message else 'LLVM says nothing'}")
    try:
        start, size = ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer)
        return ctypes.string_at(start, size)
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(name: str) -> ctypes._NamedFuncPointer:
    """A C function of llvmlite without its lock; its argument types are those that llvmlite set."""
    getattr(ffi.lib, name)  # loads the library
    return getattr(ffi.lib._lib_handle, name)
