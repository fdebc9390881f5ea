"""Operations on AArch64, in an emulator: dot products, conversions, rounding, functions, the linker."""

import mcjit
import ml_dtypes
import numpy as np
import pytest
from emulated import CPUS, EmulatedImage, Emulator, needs_qemu
from test_emit_math import REFERENCE, grid

from strata.codegen.build import build_image
from strata.codegen.compile import assembly, compile_object, emit_module
from strata.codegen.link import link
from strata.codegen.threads import SUPPORT_EXPORTS, emit_support
from strata.core.dtypes import bf16, f16, f32, f64, i8, i16, i32, i64, u8
from strata.loop import build as b
from strata.loop.nodes import Buffer, Cast, Func, Intrinsic, Unary
from strata.runtime.image import Image
from strata.runtime.tensors import as_tensor
from strata.target import get_target

pytestmark = needs_qemu
RNG = np.random.default_rng(0)
LEVELS = pytest.mark.parametrize("level", list(CPUS))


def run(level: str, folder, calls: list[tuple[Func, list[np.ndarray]]]) -> list[list[np.ndarray]]:
    """Outputs of functions of constant shapes, all in one image."""
    funcs = [Func(f"f{i}", f.params, f.body, f.num_outputs) for i, (f, _) in enumerate(calls)]
    image = EmulatedImage(Emulator(CPUS[level], folder), build_image(funcs, [], get_target(level)))
    results = []
    for func, (_, inputs) in zip(funcs, calls, strict=True):
        outputs = [np.empty(p.shape, p.dtype.numpy_name) for p in func.params[len(inputs) :]]
        image.function(func.name)(*[as_tensor(a) for a in (*inputs, *outputs)])
        results.append(outputs)
    return results


@LEVELS
def test_dot_products_of_bytes(level, tmp_path):
    calls, wants = [], []
    for name, most in (("dot4_u8i8", 255), ("dot4_u4i8", 15)):
        for lanes in (1, 4, 6, 16):
            for group in {4, 4 * lanes}:
                acc = RNG.integers(-(2**31), 2**31, (3, lanes)).astype(np.int32)
                x = RNG.integers(0, most + 1, (3, 4 * lanes)).astype(np.uint8)
                y = RNG.integers(-128, 128, (3, group)).astype(np.int8)
                x[1], y[1] = most, -128
                products = x.astype(np.int64).reshape(3, lanes, 4) * y.astype(np.int64).reshape(3, -1, 4)
                calls.append((mcjit.dot4(name, lanes, group), [acc, x, y]))
                wants.append((acc + products.sum(-1)).astype(np.int32))
    for (out,), want in zip(run(level, tmp_path, calls), wants, strict=True):
        np.testing.assert_array_equal(out, want)


@LEVELS
def test_dot_product_of_bf16_pairs(level, tmp_path):
    acc = Buffer("acc", (2, 8), f32)
    pairs = [Buffer(n, (2, 16), bf16) for n in "xy"]
    out = Buffer("o", (2, 8), f32)

    def row(r):
        args = [b.load(p, r, b.ramp(0, p.shape[1])) for p in (acc, *pairs)]
        return b.store(out, (r, b.ramp(0, 8)), Intrinsic("dot2_bf16", tuple(args), f32, 8))

    func = Func("f", (acc, *pairs, out), b.loop("r", 2, row))
    start = RNG.standard_normal((2, 8)).astype(np.float32)
    x, y = (RNG.standard_normal((2, 16)).astype(ml_dtypes.bfloat16) for _ in range(2))
    ((got,),) = run(level, tmp_path, [(func, [start, x, y])])
    want = start + (x.astype(np.float64) * y.astype(np.float64)).reshape(2, 8, 2).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    target = get_target(level)
    assert ("bfdot" in assembly(emit_module(func, target), target)) == (level == "neon-i8mm")


@LEVELS
def test_conversions(level, tmp_path):
    halves = np.arange(1 << 16, dtype=np.uint16)
    wide = np.concatenate([
        RNG.uniform(-1, 1, 4080) * 2.0 ** RNG.integers(-26, 17, 4080),
        [np.nan, np.inf, -np.inf, 3e9, -3e9, 0.5, 1.5, 2.5, -2.5, 65519.9, 65520, 127.6, -0.4, 1e-41, 7, -8],
    ]).astype(np.float32)  # fmt: skip
    small = RNG.integers(-128, 128, 4096).astype(np.int8)

    def to(source, *kinds, middle=None):
        exprs = [lambda p, k=k: Cast(k, Cast(middle, p) if middle else p) for k in kinds]
        return lambda count, lanes: mcjit.elementwise(exprs, [source], kinds, count, lanes)

    cases = [
        (to(f16, f32), halves.view(np.float16)),
        (to(bf16, f32), halves.view(ml_dtypes.bfloat16)),
        (to(f32, f16, bf16, i8, u8, i16, i32, f64), wide),
        (to(i8, f32, middle=i32), small),
        (to(u8, f32, middle=i32), small.view(np.uint8)),
    ]
    calls = [(make(len(x), lanes), [x]) for make, x in cases for lanes in (1, 4, 16)]
    for (func, (x,)), outputs in zip(calls, run(level, tmp_path, calls), strict=True):
        for param, got in zip(func.params[1:], outputs, strict=True):
            with np.errstate(all="ignore"):
                if param.dtype.is_int:
                    info = np.iinfo(param.dtype.numpy_name)
                    want = np.clip(np.nan_to_num(np.trunc(x.astype(np.float64))), info.min, info.max)
                else:
                    want = x.astype(param.dtype.numpy_name)
                pair = got.astype(np.float64), want.astype(np.float64)
            np.testing.assert_array_equal(*pair, str(param.dtype))


@LEVELS
def test_elementary_functions(level, tmp_path):
    calls, ops = [], list(REFERENCE)
    for kind in (f32, f64):
        for op in ops:
            x = grid(op, kind)[::8]
            x = np.ascontiguousarray(x[: len(x) // 4 * 4])
            calls.append((mcjit.elementwise([lambda p, op=op: Unary(op, p)], [kind], [kind], len(x), 4), [x]))
    for (func, (x,)), (got,), op in zip(calls, run(level, tmp_path, calls), ops * 2, strict=True):
        reference, limit = REFERENCE[op]
        with np.errstate(all="ignore"):
            want = reference(x.astype(np.longdouble))
            rounded = want.astype(x.dtype)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(got[~finite], rounded[~finite])
        ulp = np.spacing(np.maximum(np.abs(rounded[finite]), np.finfo(x.dtype).tiny)).astype(np.longdouble)
        assert (np.abs(got[finite] - want[finite]) / ulp).max() <= limit, f"{op.value} {func.params[0].dtype}"


# ------------------------------------------------------------------------------------------- linker

TRIPLE = get_target("neon").triple
CODE = """
@counter = external global i64
@limit = external hidden global i64
@table = external hidden global [4 x ptr]
@shared = common global i64 0
@small = internal constant [8 x i8] c"\\01\\02\\03\\04\\05\\06\\07\\08"
declare i64 @step(i64)
define i64 @read(i64 %i) {
  %a = load volatile i64, ptr @counter
  %b = load i64, ptr @limit
  %c = call i64 @step(i64 %a)
  %place = getelementptr ptr, ptr @table, i64 %i
  %f = load ptr, ptr %place
  %d = call i64 %f(i64 %c)
  %e = add i64 %d, %b
  %byte.at = getelementptr i8, ptr @small, i64 %i
  %byte = load i8, ptr %byte.at
  %byte.wide = zext i8 %byte to i64
  %g = add i64 %e, %byte.wide
  %h = load i64, ptr @shared
  %sum = add i64 %g, %h
  ret i64 %sum
}
"""
DATA = """
@counter = global i64 5
@limit = hidden global i64 100
@zeros = hidden global [90000 x i8] zeroinitializer, align 64
@table = hidden global [4 x ptr] [ptr @step, ptr @twice, ptr @step, ptr @twice]
define i64 @step(i64 %x) {
  %z = getelementptr i8, ptr @zeros, i64 89999
  %v = load i8, ptr %z
  %w = zext i8 %v to i64
  %r = add i64 %x, %w
  %t = add i64 %r, 1
  ret i64 %t
}
define i64 @twice(i64 %x) {
  %r = shl i64 %x, 1
  ret i64 %r
}
"""


def linked(*texts: str, exports: tuple[str, ...]) -> Image:
    target = get_target("neon")
    head = f'target triple = "{TRIPLE}"\n'
    objects = [compile_object(text, target) for text in (emit_support(TRIPLE), *(head + t for t in texts))]
    return link(objects, [*SUPPORT_EXPORTS, *exports])


def test_symbols_across_objects(tmp_path):
    for texts in ((CODE, DATA), (DATA, CODE)):
        image = linked(*texts, exports=("read",))
        assert all(s.address % 65536 == 0 for s in image.segments)  # the largest page that Linux uses
        loaded = EmulatedImage(Emulator("cortex-a72", tmp_path), image)
        call = loaded.emulator.call
        assert [call(loaded.address("read"), i) for i in range(4)] == [108, 114, 110, 116]


def test_jump_tables(tmp_path):
    cases = "\n".join(f"    i64 {i}, label %l{i}" for i in range(12))
    blocks = "\n".join(f"l{i}:\n  %v{i} = call i64 @f{i}()\n  ret i64 %v{i}" for i in range(12))
    functions = "\n".join(
        f"define hidden i64 @f{i}() noinline {{\n ret i64 {i * i + 1}\n}}" for i in range(12)
    )
    body = f"  switch i64 %x, label %no [\n{cases}\n  ]\n{blocks}\nno:\n  ret i64 -1\n"
    image = linked(f"{functions}\ndefine i64 @jump(i64 %x) {{\n{body}}}", exports=("jump",))
    loaded = EmulatedImage(Emulator("cortex-a72", tmp_path), image)
    assert [loaded.emulator.call(loaded.address("jump"), x) for x in (0, 3, 11, 12)] == [1, 10, 122, -1]


def test_errors_are_raised(tmp_path):
    func = mcjit.elementwise([lambda p: p], [i64], [i64], 4, 4)
    image = EmulatedImage(Emulator("cortex-a72", tmp_path), build_image([func], [], get_target("neon")))
    x = np.arange(4)
    y = np.zeros_like(x)
    image.function("f")(as_tensor(x), as_tensor(y))
    np.testing.assert_array_equal(y, x)
    with pytest.raises(RuntimeError, match=r"f: got 1 arguments; expected 2 \(x0, y0\)"):
        image.function("f")(as_tensor(x))
