"""Kernels written as LLVM text, for tests of what surrounds the emitter: from wrappers to thread pool."""

from functools import cache

from strata.codegen.abi import emit_wrappers
from strata.codegen.bind import emit_bind
from strata.codegen.compile import compile_object
from strata.codegen.entry import emit_entries
from strata.codegen.link import link
from strata.codegen.threads import SUPPORT_EXPORTS, emit_support
from strata.core.dims import SymDim
from strata.core.dtypes import f32, i32, i64
from strata.loop.nodes import Buffer, Func, Seq
from strata.runtime.image import Image
from strata.runtime.records import FunctionRecord
from strata.target import detect_host

TARGET = detect_host()
N = SymDim("n", 0, 1 << 20)


def declared(name: str, *params: Buffer, num_outputs: int = 1) -> Func:
    """A loop function without a body: what wrappers and entries look at."""
    return Func(name, params, Seq(()), num_outputs)


# y[i, :] = 2 * x[i, :], rows in parallel
DOUBLE = declared("double", Buffer("x", (N, 4), f32), Buffer("y", (N, 4), f32))
DOUBLE_TEXT = """
declare void @strata_parallel_for(ptr, ptr, i64, i64, i64)
define internal void @double.body(ptr %env, i64 %begin, i64 %end) {
entry:
  %x = load ptr, ptr %env
  %y.at = getelementptr i8, ptr %env, i64 8
  %y = load ptr, ptr %y.at
  br label %loop
loop:
  %i = phi i64 [%begin, %entry], [%next, %loop]
  %from = getelementptr <4 x float>, ptr %x, i64 %i
  %to = getelementptr <4 x float>, ptr %y, i64 %i
  %v = load <4 x float>, ptr %from, align 4
  %w = fadd <4 x float> %v, %v
  store <4 x float> %w, ptr %to, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define hidden void @double.impl(ptr %x, ptr %y, i64 %n) {
  %env = alloca [2 x ptr]
  store ptr %x, ptr %env
  %second = getelementptr i8, ptr %env, i64 8
  store ptr %y, ptr %second
  call void @strata_parallel_for(ptr @double.body, ptr %env, i64 %n, i64 1, i64 0)
  ret void
}
"""

# y[i, :] = x[i, :] + bias + shift; the table of shifts and the counter need relocations and the GOT
BIAS = declared("bias", Buffer("x", (N, 4), f32), Buffer("b", (4,), f32), Buffer("y", (N, 4), f32))
BIAS_SMALL = declared("bias_small", *BIAS.params)
BIAS_TEXT = """
@{name}.zero = internal constant float 0.0
@{name}.one = internal constant float 1.0
@{name}.table = internal constant [2 x ptr] [ptr @{name}.zero, ptr @{name}.one]
@{name}.calls = global i64 0
define hidden void @{name}.impl(ptr %x, ptr %b, ptr %y, i64 %n) {{
entry:
  %old = atomicrmw add ptr @{name}.calls, i64 1 monotonic
  %slot = getelementptr ptr, ptr @{name}.table, i64 {shift}
  %which = load volatile ptr, ptr %slot
  %shift = load float, ptr %which
  %bias = load <4 x float>, ptr %b, align 4
  %head = insertelement <4 x float> poison, float %shift, i64 0
  %shifts = shufflevector <4 x float> %head, <4 x float> poison, <4 x i32> zeroinitializer
  %add = fadd <4 x float> %bias, %shifts
  %none = icmp eq i64 %n, 0
  br i1 %none, label %done, label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %from = getelementptr <4 x float>, ptr %x, i64 %i
  %to = getelementptr <4 x float>, ptr %y, i64 %i
  %v = load <4 x float>, ptr %from, align 4
  %w = fadd <4 x float> %v, %add
  store <4 x float> %w, ptr %to, align 4
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""

# counts[i] += 1, who[i] = an address on the stack of the thread that did it, in chunks of grain[0]
MARK = declared("mark", Buffer("counts", (N,), i32), Buffer("who", (N,), i64), Buffer("grain", (1,), i64))
MARK_TEXT = """
declare void @strata_parallel_for(ptr, ptr, i64, i64, i64)
define internal void @mark.body(ptr %env, i64 %begin, i64 %end) {
entry:
  %here = alloca i64
  %address = ptrtoint ptr %here to i64
  %counts = load ptr, ptr %env
  %who.at = getelementptr i8, ptr %env, i64 8
  %who = load ptr, ptr %who.at
  br label %loop
loop:
  %i = phi i64 [%begin, %entry], [%next, %loop]
  %count.at = getelementptr i32, ptr %counts, i64 %i
  %old = atomicrmw add ptr %count.at, i32 1 monotonic
  %mine = getelementptr i64, ptr %who, i64 %i
  store i64 %address, ptr %mine
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define hidden void @mark.impl(ptr %counts, ptr %who, ptr %grain, i64 %n) {
  %env = alloca [2 x ptr]
  store ptr %counts, ptr %env
  %second = getelementptr i8, ptr %env, i64 8
  store ptr %who, ptr %second
  %g = load i64, ptr %grain
  call void @strata_parallel_for(ptr @mark.body, ptr %env, i64 %n, i64 %g, i64 0)
  ret void
}
"""

# sizes[i] = iterations in the chunk that begins with i; shares begin even where even[0] is 1
PIECES = declared("pieces", Buffer("sizes", (N,), i64), Buffer("even", (1,), i64))
PIECES_TEXT = """
declare void @strata_parallel_for(ptr, ptr, i64, i64, i64)
define internal void @pieces.body(ptr %sizes, i64 %begin, i64 %end) {
  %size = sub i64 %end, %begin
  %at = getelementptr i64, ptr %sizes, i64 %begin
  store i64 %size, ptr %at
  ret void
}
define hidden void @pieces.impl(ptr %sizes, ptr %even, i64 %n) {
  %e = load i64, ptr %even
  call void @strata_parallel_for(ptr @pieces.body, ptr %sizes, i64 %n, i64 1, i64 %e)
  ret void
}
"""

# total[0] += 9 * n[0]: the sizes of all chunks of a loop, once by itself and in each round of a loop of 8
SPAN = declared("span", Buffer("total", (1,), i64), Buffer("n", (1,), i64))
SPAN_TEXT = """
declare void @strata_parallel_for(ptr, ptr, i64, i64, i64)
define internal void @span.inner(ptr %total, i64 %begin, i64 %end) {
  %size = sub i64 %end, %begin
  %old = atomicrmw add ptr %total, i64 %size monotonic
  ret void
}
define internal void @span.outer(ptr %env, i64 %begin, i64 %end) {
entry:
  %total = load ptr, ptr %env
  %n.at = getelementptr i8, ptr %env, i64 8
  %n.p = load ptr, ptr %n.at
  %n = load i64, ptr %n.p
  br label %loop
loop:
  %i = phi i64 [%begin, %entry], [%next, %loop]
  call void @strata_parallel_for(ptr @span.inner, ptr %total, i64 %n, i64 1, i64 0)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define hidden void @span.impl(ptr %total, ptr %n) {
  %env = alloca [2 x ptr]
  store ptr %total, ptr %env
  %second = getelementptr i8, ptr %env, i64 8
  store ptr %n, ptr %second
  %size = load i64, ptr %n
  call void @strata_parallel_for(ptr @span.inner, ptr %total, i64 %size, i64 0, i64 0)
  call void @strata_parallel_for(ptr @span.outer, ptr %env, i64 8, i64 1, i64 0)
  ret void
}
"""

KERNELS = {f.name: f for f in (DOUBLE, BIAS, BIAS_SMALL, MARK, PIECES, SPAN)}
TEXTS = {
    "double": DOUBLE_TEXT,
    "bias": BIAS_TEXT.format(name="bias", shift=0),
    "bias_small": BIAS_TEXT.format(name="bias_small", shift=1),
    "mark": MARK_TEXT,
    "pieces": PIECES_TEXT,
    "span": SPAN_TEXT,
}


@cache
def compiled(text: str) -> bytes:
    """Object code of LLVM text for this machine."""
    return compile_object(f'target triple = "{TARGET.triple}"\n{text}', TARGET)


@cache
def support() -> bytes:
    """The run-time support object."""
    return compile_object(emit_support(TARGET.triple) + emit_bind(), TARGET)


@cache
def image(*names: str, functions: tuple[FunctionRecord, ...] = ()) -> Image:
    """Image with the named kernels of this module and the entries of ``functions``."""
    funcs = [KERNELS[name] for name in names]
    objects = [support(), *(compiled(TEXTS[name]) for name in names)]
    objects.append(compile_object(emit_wrappers(funcs, TARGET.triple), TARGET))
    if functions:
        objects.append(compile_object(emit_entries(functions, KERNELS, TARGET.triple), TARGET))
    return link(objects, [*SUPPORT_EXPORTS, *names, *(f.name for f in functions)])
