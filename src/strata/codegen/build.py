"""From loop functions and function records to one image."""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import CodegenError
from strata.loop.nodes import Func
from strata.runtime.externs import SYMBOL_PREFIX
from strata.runtime.image import Image
from strata.runtime.records import FunctionRecord
from strata.target import Target

from .abi import emit_wrappers
from .bind import emit_bind
from .entry import emit_entries
from .externs import emit_externs, extern_names
from .link import link
from .object_cache import ObjectCache, Progress, compile_functions
from .threads import SUPPORT_EXPORTS, emit_support


def build_image(
    funcs: Sequence[Func],
    functions: Sequence[FunctionRecord],
    target: Target,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: ObjectCache | None = None,
) -> Image:
    """Compile and link a program.

    Args:
        funcs: Finalised loop functions with distinct names; each is exported as a kernel.
        functions: Model functions; each is exported as an entry.
        target: Machine to compile for.
        threads: Compiler threads; default one per core.
        progress: Called as ``progress(done, total, name, from_cache)`` after each loop function.
        cache: Object cache; default the user's.

    Returns:
        The image; ``image.blob`` is the file that ``runtime.image.load_image`` takes.

    Raises:
        CodegenError: code cannot be generated, names clash, or a record does not fit the functions.
        UnsupportedError: no run-time support for the target's architecture.
    """
    store = cache if cache is not None else ObjectCache()
    names = [f.name for f in (*funcs, *functions)]
    if len(set(names)) < len(names):
        repeated = sorted({n for n in names if names.count(n) > 1})
        raise CodegenError(f"build: got several functions called {', '.join(repeated)}; names must be unique")
    kernels = {f.name: f for f in funcs}
    externs = extern_names(funcs)
    texts = [
        emit_entries(functions, kernels, target.triple),
        emit_wrappers(funcs, target.triple),
        emit_support(target.triple) + emit_bind(),
        *([emit_externs(externs, target.triple)] if externs else []),
    ]
    objects = compile_functions(funcs, target, threads, progress, store, texts)
    return link(objects, [*SUPPORT_EXPORTS, *names, *(SYMBOL_PREFIX + name for name in externs)])
