"""From loop functions to LLVM text, object code and assembly: what the rest of Strata calls.

All functions may be called from several threads at once.
"""

from __future__ import annotations

from strata.loop.nodes import Func
from strata.target import Target

from . import optimize
from .emit import emit_func

CODEGEN_VERSION = 1  # part of every cache key: raise it when the generated code changes


def emit_module(func: Func, target: Target) -> str:
    """Verified LLVM text of a module that defines ``@<name>.impl`` (see :mod:`strata.codegen.emit`).

    Args:
        func: A function of stage LOOP_LOWERED.
        target: What it may use.

    Raises:
        CodegenError: the function is not of that stage, or LLVM rejects the text.
    """
    text = emit_func(func, target, optimize.data_layout(target))
    optimize.parse(text, func.name)
    return text


def compile_object(llvm_text: str, target: Target) -> bytes:
    """An ELF relocatable object: position-independent, small code model, no calls but those in the text.

    Raises:
        CodegenError: LLVM rejects the text.
    """
    return _compile(llvm_text, target, as_object=True)


def assembly(llvm_text: str, target: Target) -> str:
    """Assembly of what :func:`compile_object` makes.

    Raises:
        CodegenError: LLVM rejects the text.
    """
    return _compile(llvm_text, target, as_object=False).decode()


def optimized(llvm_text: str, target: Target) -> str:
    """LLVM text after the pass pipeline.

    Raises:
        CodegenError: LLVM rejects the text.
    """
    module = optimize.parse(llvm_text, target.name)
    optimize.optimize(module, optimize.target_machine(target))
    return str(module)


def _compile(llvm_text: str, target: Target, *, as_object: bool) -> bytes:
    machine = optimize.target_machine(target)
    module = optimize.parse(llvm_text, target.name)
    optimize.optimize(module, machine)
    return optimize.emit(module, machine, as_object=as_object)
