"""The externs of a program: which ones its functions call, and the part of the image that reaches them.

For every extern ``X`` that a program calls, the image has an exported variable ``@"extern:X"``, which the
runtime fills when it loads the image (:mod:`strata.runtime.externs`); so generated code has no external
symbols. What the variable holds depends on the convention (:class:`strata.loop.externs.Convention`):

* C: the address of ``void f(...)`` with one argument per param;
* TENSORS: the handle of a tvm-ffi function. Such a call may fail: a kernel that has one returns an i32
  (0: done), stops at the first failure, and leaves the error where the tvm-ffi convention wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from strata.core.errors import CodegenError
from strata.loop.externs import EXTERNS, Convention, Extern, ExternParam, Role
from strata.loop.nodes import Call, Func
from strata.loop.rewrite import walk_stmts
from strata.runtime import pool as layout
from strata.runtime.externs import SYMBOL_PREFIX
from strata.runtime.records import ExternRecord

from .native import NativeFunction
from .threads import CONTEXT_SYMBOL

CALL_TENSORS = "strata_call_tensors"
C_TYPES = {"i32": "int", "i64": "long", "f32": "float", "f64": "double"}

# tvm/ffi/c_api.h
ANY_BYTES = 16  # sizeof(TVMFFIAny)
_OBJECT_BYTES = 24  # sizeof(TVMFFIObject); a function's safe_call comes next
_OBJECT_BEGIN = 64  # type indices from here on are objects


def calls_of(func: Func) -> list[Call]:
    """Every call in ``func``, in textual order."""
    return [s for s in walk_stmts(func) if isinstance(s, Call)]


def extern_names(funcs: Iterable[Func]) -> list[str]:
    """Names of all externs that the functions call, sorted."""
    return sorted({call.extern for func in funcs for call in calls_of(func)})


def can_fail(func: Func) -> bool:
    """Whether ``@<name>.impl`` returns i32, and not 0 where a call failed."""
    return any(extern_of(call).convention is Convention.TENSORS for call in calls_of(func))


def extern_of(call: Call) -> Extern:
    """What ``call`` calls.

    Raises:
        CodegenError: no such extern.
    """
    found = EXTERNS.get(call.extern)
    if found is None:
        raise CodegenError(f"call @{call.extern}: no such extern; known: {', '.join(EXTERNS) or 'none'}")
    return found


def symbol(extern: str) -> str:
    """The variable that holds the address of an extern, as an LLVM operand."""
    return f'@"{SYMBOL_PREFIX}{extern}"'


def extern_records(funcs: Iterable[Func]) -> tuple[ExternRecord, ...]:
    """What the runtime needs to know about the externs of a program."""
    return tuple(ExternRecord(name, c_signature(EXTERNS[name])) for name in extern_names(funcs))


def c_signature(extern: Extern) -> str:
    """``"void (int, const float*, float*)"``, or ``"tensors (const float*, float*)"`` for others."""
    result = "void" if extern.convention is Convention.C else "tensors"
    return f"{result} ({', '.join(map(_c_type, extern.params))})"


def _c_type(param: ExternParam) -> str:
    if not param.is_buffer:
        return C_TYPES[param.dtype.name]
    name = C_TYPES.get(param.dtype.name, param.dtype.name)
    return f"{'const ' if param.role is Role.READ else ''}{name}*"


def _call_tensors_function() -> NativeFunction:
    """Call a tvm-ffi function, drop its result; a failure is reported with the extern's name."""
    params = [("ptr", "function"), ("ptr", "args"), ("i32", "count"), ("ptr", "name")]
    f = NativeFunction(CALL_TENSORS, "i32", params)
    function, args, count = f.arg("function"), f.arg("args"), f.arg("count")
    result = f.alloca(ANY_BYTES)
    f.store(f.value(0, "i64"), result)
    f.store(f.value(0, "i64"), result, 8)
    safe_call = f.load("ptr", function, _OBJECT_BYTES)  # TVMFFIFunctionCell.safe_call
    status = f.call("i32", safe_call, [function, args, count, result])
    context = f.load("ptr", f.symbol(CONTEXT_SYMBOL))
    with f.if_(status.ne(0)):
        f.call("void", f.load("ptr", context, layout.CTX_EXTERN_FAILED), [f.arg("name"), status])
        f.ret(status)
    with f.if_(f.load("i32", result) >= _OBJECT_BEGIN):
        f.call("i32", f.load("ptr", context, layout.CTX_RELEASE), [f.load("ptr", result, 8)])
    f.ret(0)
    return f


def emit_externs(names: Sequence[str], triple: str) -> str:
    """LLVM text of a module with the table of addresses and what calls of tensor functions need.

    Args:
        names: Externs that the program calls.
        triple: Target triple.
    """
    table = [f"{symbol(name)} = dso_local global ptr null, align 8" for name in names]
    head = [f'target triple = "{triple}"', *table, f"@{CONTEXT_SYMBOL} = external dso_local global ptr", ""]
    return "\n".join([*head, _call_tensors_function().text()])
