"""Every reason for which compute_at, decompose_reduction and tensorize are refused."""

import pytest
from changed_text import changed

from strata.core.errors import LegalityError
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.schedule import apply_trace, parse_trace

# Row sums s, then y = x - s.
STAGES = """
dims n in 1..64
func @f(x: i32[n,8], t: i64[8]) -> (y: i32[n,8], z: i32[n])
  alloc s: i32[n]
  for s_i0 in n:
    for s_k0 in 8:
      block "s" (i0: spatial n = s_i0, k0: reduce 8 = s_k0):
        init: s[i0] = 0_i32
        s[i0] = s[i0] + x[i0, k0]
  for y_i0 in n:
    for y_i1 in 8:
      block "y" (i0: spatial n = y_i0, i1: spatial 8 = y_i1):
        y[i0, i1] = x[i0, i1] - s[i0]
"""
MOVE = "compute_at(block=s, loop=y_i0)"
INIT = "        init: s[i0] = 0_i32\n"
UPDATE = "s[i0] = s[i0] + x[i0, k0]"
READ = "y[i0, i1] = x[i0, i1] - s[i0]"
AFTER = '\n  for {0} in n:\n    block "{0}" (i0: spatial n = {0}):\n      {1}\n'

# (replacements in STAGES, trace, message)
COMPUTE_AT = [
    (
        [],
        "compute_at(block=s, loop=y_i0, space=global)",
        "got space 'global'; expected one of local, register",
    ),
    ([], "compute_at(block=q, loop=y_i0)", "block 'q': found 0; expected exactly one; known: s, y"),
    ([(UPDATE, UPDATE + "\n        z[i0] = 1_i32")], MOVE, "block s has other than one store"),
    (
        [(UPDATE, "s[i0] = s[i0 // 2] + x[i0, k0]")],
        MOVE,
        "block s touches s at other places than its spatial",
    ),
    (
        [(INIT, ""), (UPDATE, "s[n - i0 - 1] = x[i0, k0]")],
        MOVE,
        "at other places than its spatial axes",
    ),
    ([(INIT, INIT.replace("s[i0]", "z[i0]"))], MOVE, "at other places than its spatial axes"),
    (
        [(UPDATE, "s[i0] = s[i0] + x[i0, k0] if i0 < 3")],
        MOVE,
        "at other places than its spatial axes",
    ),
    (
        [("    for s_k0", "    z[s_i0] = 1_i32\n    for s_k0")],
        MOVE,
        "block s is not alone in loops of its own",
    ),
    (
        [("  for s_i0 in n:\n    for s_k0 in 8:", "  let u = 1\n  for s_i0 in n:\n    for s_k0 in 8:")],
        MOVE,
        "block s is not alone in loops of its own",
    ),
    (
        [],
        "split(loop=s_k0, factor=4); " + MOVE,
        "loops of block s are not one per axis any more; move it first",
    ),
    ([], "split(loop=s_i0, factor=1); " + MOVE, "loops of block s are not one per axis any more"),
    ([("= s_k0):", "= s_k0) where s_k0 < 5:")], MOVE, "loops of block s are not one per axis any more"),
    (
        [("k0: reduce 8 = s_k0", "k0: reduce 8 = s_k0 // 2")],
        MOVE,
        "loops of block s are not one per axis any more",
    ),
    ([("for s_k0 in 8", "for s_k0 in 4")], MOVE, "loops of block s are not one per axis any more"),
    (
        [("  alloc s: i32[n]\n", ""), (", z: i32[n]", ", z: i32[n], s: i32[n]")],
        MOVE,
        "s is a parameter; only",
    ),
    ([], "compute_at(block=s, loop=s_i0)", "block s is inside loop s_i0 already"),
    ([], "compute_at(block=s, loop=q)", "loop 'q': found 0"),
    (
        [],
        "split(loop=y_i1, factor=4); vectorize(loop=y_i1i); compute_at(block=s, loop=y_i1i)",
        "is a vector loop",
    ),
    ([(READ, READ + AFTER.format("w", "s[i0] = 1_i32"))], MOVE, "s is also written outside of block s"),
    (
        [(READ, READ + AFTER.format("w", "z[i0] = s[i0]"))],
        MOVE,
        "s is read outside of loop y_i0 or of blocks",
    ),
    (
        [("    for y_i1", "    if s[y_i0] < 1_i32:\n      z[y_i0] = 1_i32\n    for y_i1")],
        MOVE,
        "s is read outside of loop y_i0 or of blocks",
    ),
    (
        [(UPDATE, "s[i0] = s[i0] + z[i0]"), (READ, READ + AFTER.format("w", "z[i0] = 1_i32"))],
        MOVE,
        "z, which block s reads, is written after it",
    ),
    ([(UPDATE, "s[i0] = s[i0] + y[i0, k0]")], MOVE, "y, which block s reads, is written after it"),
    ([("- s[i0]", "")], MOVE, "nothing inside loop y_i0 reads s"),
    ([("- s[i0]", "- s[(i0 + i1) % n]")], MOVE, "extent of s dim 0 inside y_i0 is not constant"),
    ([("- s[i0]", "- s[t[i1]]")], MOVE, "extent of s dim 0 inside y_i0 is not constant"),
    ([("- s[i0]", "- s[i0] - s[max(i0, 1) - 1]")], MOVE, "s dim 0 is read at several places inside y_i0"),
    ([("- s[i0]", "- s[t[i0]]")], MOVE, "start of s dim 0 is not known at the head of y_i0"),
    (
        [("= y_i0,", "= u,"), ("    for y_i1", "    let u = y_i0\n    for y_i1")],
        MOVE,
        "start of s dim 0 is not known",
    ),
    (
        [("= y_i0,", "= y_i0 - 1,"), ("= y_i1)", "= y_i1) where 1 <= y_i0")],
        MOVE,
        "start of s dim 0 may be negative",
    ),
]


def stages(changes: list[tuple[str, str]]) -> Func:
    """``STAGES`` with some of its text replaced."""
    text = changed(STAGES, changes)
    return parse_func(text)


@pytest.mark.parametrize(("changes", "trace", "message"), COMPUTE_AT)
def test_compute_at(changes: list[tuple[str, str]], trace: str, message: str) -> None:
    with pytest.raises(LegalityError, match=message):
        apply_trace(stages(changes), parse_trace(trace))


def test_compute_at_comes_after_its_producer() -> None:
    func = stages([(READ, READ + AFTER.format("w", "z[i0] = 1_i32"))])
    first, second, third = func.body.body.stmts  # type: ignore[union-attr]
    swapped = Func(
        func.name,
        func.params,
        type(func.body)(func.body.buffer, type(func.body.body)((third, second, first))),
        2,
    )  # type: ignore[union-attr]
    with pytest.raises(LegalityError, match="compute_at: loop y_i0 runs before block s"):
        apply_trace(swapped, parse_trace(MOVE))


def test_compute_at_needs_what_the_producer_reads_in_scope() -> None:
    text = STAGES.replace("  for s_i0 in n:", "  alloc q: i32[n]:\n  for s_i0 in n:", 1)
    head, tail = text.split("  alloc q: i32[n]:\n")
    inner, rest = tail.split("  for y_i0")
    inner = "\n".join("  " + line for line in inner.rstrip("\n").split("\n")).replace("x[i0, k0]", "q[i0]")
    func = parse_func(f"{head}  alloc q: i32[n]:\n{inner}\n  for y_i0{rest}")
    with pytest.raises(LegalityError, match="a buffer that block s reads is not allocated at y_i0"):
        apply_trace(func, parse_trace(MOVE))


def test_compute_at_keeps_names_unique() -> None:
    func = stages([("y_i1", "s_i1"), ("s_i0 in n", "row in n"), ("= s_i0", "= row")])
    apply_trace(func, parse_trace("compute_at(block=s, loop=y_i0)"))
    func = stages([("y_i1", "s_i0x")])
    taken = stages([("for s_i0", "for row"), ("= s_i0", "= row"), ("y_i1", "s_i0")])
    apply_trace(func, parse_trace("compute_at(block=s, loop=y_i0)"))
    with pytest.raises(LegalityError, match="compute_at: the name s_i0 is taken by another loop or block"):
        apply_trace(taken, parse_trace("compute_at(block=s, loop=y_i0)"))


def test_compute_at_fits_the_stack() -> None:
    text = """
func @f(x: i32[4,300000]) -> (y: i32[4,300000])
  alloc s: i32[4,300000]
  for s_i0 in 4:
    for s_i1 in 300000:
      block "s" (i0: spatial 4 = s_i0, i1: spatial 300000 = s_i1):
        s[i0, i1] = x[i0, i1]
  for y_i0 in 4:
    for y_i1 in 300000:
      block "y" (i0: spatial 4 = y_i0, i1: spatial 300000 = y_i1):
        y[i0, i1] = s[i0, i1]
"""
    with pytest.raises(LegalityError, match="s takes 1200000 bytes of stack; expected at most 1048576"):
        apply_trace(parse_func(text), parse_trace("compute_at(block=s, loop=y_i0)"))


SUM = """
dims n in 1..64
func @f(x: i32[n,8]) -> (s: i32[n], z: i32[n])
  for i in n:
    for k in 8:
      block "s" (i0: spatial n = i, k0: reduce 8 = k):
        init: s[i0] = 0_i32
        s[i0] = s[i0] + x[i0, k0]
"""
DECOMPOSE = [
    ([], "decompose_reduction(block=s, loop=k); decompose_reduction(block=s, loop=k)", "block s has no init"),
    (
        [("  for i in n:", "  for q in 2:\n    z[q] = 1_i32\n  for i in n:")],
        "decompose_reduction(block=s, loop=q)",
        "block s is not inside loop q",
    ),
    (
        [("    for k", "    z[i] = 1_i32\n    for k")],
        "decompose_reduction(block=s, loop=i)",
        "not alone inside loop i",
    ),
    ([], "reorder(loops=k|i); decompose_reduction(block=s, loop=i)", "a reduction loop of s is outside i"),
    (
        [("  for i in n:\n    for k in 8:", "  for k in 8:\n    for i in min(n, k + 1):")],
        "decompose_reduction(block=s, loop=k)",
        "extent of i depends on a reduction loop",
    ),
    (
        [("s[i0] + x", "s[i0 // 2] + x")],
        "decompose_reduction(block=s, loop=k)",
        "touches several elements of s",
    ),
    (
        [("  for i in n:", "  for i in n * 2:"), ("= i,", "= i // 2,")],
        "decompose_reduction(block=s, loop=i)",
        "several iterations of block s start the same element",
    ),
    (
        [("= 0_i32", "= i32(k0)")],
        "decompose_reduction(block=s, loop=k)",
        "depends on a loop that it reduces over",
    ),
    ([("reduce 8 = k", "reduce 9 = k + 1")], "decompose_reduction(block=s, loop=k)", "does not start at 0"),
    (
        [("reduce 8 = k", "reduce 8 = k // 2")],
        "decompose_reduction(block=s, loop=k)",
        "runs in several iterations",
    ),
    (
        [
            ("for i in", "for k_init in"),
            ("= i,", "= k_init,"),
            ("for k in 8", "for i in 8"),
            ("= k)", "= i)"),
            ('"s"', '"k"'),
        ],
        "decompose_reduction(block=k, loop=i)",
        "the name k_init is taken",
    ),
]


@pytest.mark.parametrize(("changes", "trace", "message"), DECOMPOSE)
def test_decompose_reduction(changes: list[tuple[str, str]], trace: str, message: str) -> None:
    text = SUM
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(LegalityError, match=f"decompose_reduction: .*{message}"):
        apply_trace(parse_func(text), parse_trace(trace))


DOT = """
func @f(a: bf16[4,8], w: bf16[4,32], v: bf16[32,4]) -> (y: f32[4,16], h: f32[16,4])
  for i in 4:
    for k in 4:
      for j in 16:
        for p in 2:
          block "m" (i0: spatial 4 = i, i1: spatial 16 = j, k0: reduce 4 = k, k1: reduce 2 = p):
            y[i0, i1] = y[i0, i1] + f32(a[i0, k0 * 2 + k1]) * f32(w[k0, i1 * 2 + k1])
"""
HALVES = [("a: bf16", "a: f32"), ("f32(a[i0, k0 * 2 + k1])", "a[i0, k0 * 2 + k1]")]
EVERY2 = "tensorize(loop=j, intrinsic=every2)"
TENSORIZE = [
    (
        [],
        "tensorize(loop=j, intrinsic=dot4_i8)",
        "got intrinsic 'dot4_i8'; expected dot2_bf16, every2, dot4_u8i8, dot4_u4i8, zip_bf16",
    ),
    ([], "tensorize(loop=k)", "loop k is not 4, 8 or 16 lanes around a loop of 2 around a block"),
    ([], "tensorize(loop=p)", "loop p is not 4, 8 or 16 lanes around a loop of 2 around a block"),
    (
        [("for p in 2", "for p in 1")],
        "tensorize(loop=j)",
        "loop j is not 4, 8 or 16 lanes around a loop of 2",
    ),
    ([("+ f32(a", "- f32(a")], "tensorize(loop=j)", r"the block is not acc \+= f32\(x\) \* f32\(w\)"),
    ([("= p):", "= p) where k < 3:")], "tensorize(loop=j)", r"the block is not acc \+= f32\(x\) \* f32\(w\)"),
    ([("bf16[", "f16[")], "tensorize(loop=j)", r"got f32 \+= f16 \* f16; expected f32 \+= bf16 \* bf16"),
    (
        [("i1 * 2 + k1", "i1 + k1 * 16")],
        "tensorize(loop=j)",
        r"w has other strides in the nest than \(2, 1\)",
    ),
    # The same strides in the first four lanes only.
    (
        [("i1 * 2 + k1", "i1 % 8 * 2 + k1")],
        "tensorize(loop=j)",
        r"w has other strides in the nest than \(2, 1\)",
    ),
    ([("k0 * 2 + k1", "k0 + k1 * 4")], "tensorize(loop=j)", r"a has other strides in the nest than \(0, 1\)"),
    (
        [("w[k0, i1 * 2 + k1]", "v[i1 * 2 + k1, k0]")],
        "tensorize(loop=j)",
        "v is indexed by the nest in a dim that",
    ),
    (
        [("y[i0, i1]", "h[i1, i0]")],
        "tensorize(loop=j)",
        "h is indexed by the nest in a dim that is not its last",
    ),
    ([], EVERY2, r"got f32 \+= bf16 \* bf16; expected f32 \+= f32 \* bf16"),
    ([*HALVES, ("w: bf16", "w: f16")], EVERY2, r"got f32 \+= f32 \* f16; expected f32 \+= f32 \* bf16"),
    ([*HALVES, ("p):", "p) where i < 3:")], EVERY2, "without init and predicate"),
    ([*HALVES, ("i1 * 2 + k1", "k1 * 16 + i1")], EVERY2, r"w has other strides in the nest than \(2, 1\)"),
    (
        [*HALVES, ("a[i0, k0 * 2 + k1]", "a[i0, 7 - k0 * 2 - k1]")],
        EVERY2,
        r"a has other strides in the nest than \(0, 1\)",
    ),
]


DOT4 = """
func @f(a: i8[4,8], w: u8[2,64]) -> (y: i32[4,16])
  for i in 4:
    for k in 2:
      for j in 16:
        for p in 4:
          block "m" (i0: spatial 4 = i, i1: spatial 16 = j, k0: reduce 2 = k, k1: reduce 4 = p):
            y[i0, i1] = y[i0, i1] + i32(a[i0, k0 * 4 + k1]) * i32(w[k0, i1 * 4 + k1])
"""
TENSORIZE_4 = [
    ([], "dot2_bf16", "loop j is not 4, 8 or 16 lanes around a loop of 2 around a block"),
    ([], "dot4_u4i8", r"got i32 \+= i8 \* u8; expected i32 \+= i8 \* u8 in halves"),
    ([("i8[4,8]", "u8[4,8]")], "dot4_u8i8", r"got i32 \+= u8 \* u8; expected i32 \+= i8 \* u8 \(or a half"),
    ([("* i32(w", "+ i32(w")], "dot4_u8i8", r"the block is not acc \+= i32\(x\) \* i32\(w\)"),
    ([("k0 * 4 + k1", "k1 * 2 + k0")], "dot4_u8i8", r"a has other strides in the nest than \(0, 1\)"),
    ([("i1 * 4 + k1", "i1 + k1 * 16")], "dot4_u8i8", r"w has other strides in the nest than \(4, 1\)"),
]


UNPACK = """
func @f(w: u8[4,64], v: u8[64,4], s: f32[4,32]) -> (y: bf16[4,32])
  for i in 4:
    for j in 16:
      for p in 2:
        block "m" (i0: spatial 4 = i, i1: spatial 32 = j * 2 + p):
          y[i0, i1] = bf16(f32(i32(w[i0, i1 // 2 * 4 + i1 % 2])) * s[i0, i1 // 2])
"""
TENSORIZE_PAIRS = [
    (
        [("bf16(f32", "bf16(f64"), ("f32[4,32]", "f64[4,32]")],
        "does not store a value that is rounded from f32",
    ),
    ([("p):", "p) where i < 3:")], "does not store a value that is rounded from f32"),
    ([("y: bf16", "y: f16"), ("= bf16", "= f16")], "does not store a value that is rounded from f32"),
    ([("i1 // 2 * 4", "i1 // 2 * 3")], r"w has other strides in the nest than \(4, 0\)"),
    ([("u8[4,64]", "u8[4,65]")], "w has rows of 65 bytes; expected fours"),
    ([("s[i0, i1 // 2]", "s[i0, i1]")], r"s has other strides in the nest than \(1, 0\)"),
    ([("y[i0, i1]", "y[i0, 31 - i1]")], r"y has other strides in the nest than \(2, 1\)"),
    ([("w[i0, i1 // 2 * 4 + i1 % 2]", "v[i1 // 2 * 4, i0]")], "v is indexed by the nest in a dim that"),
    ([("f32(i32(w", "f32(i32(i1) * i32(w")], "got .* that depends on loop j"),
]


@pytest.mark.parametrize(("changes", "message"), TENSORIZE_PAIRS)
def test_tensorize_pairs(changes: list[tuple[str, str]], message: str) -> None:
    text = changed(UNPACK, changes)
    with pytest.raises(LegalityError, match=f"tensorize: .*{message}"):
        apply_trace(parse_func(text), parse_trace("tensorize(loop=j, intrinsic=zip_bf16)"))


WIDEN = """
func @f(x: f32[8]) -> (y: f32[8])
  alloc p: bf16[8] local:
    for i in 8:
      block "round" (i0: spatial 8 = i):
        p[i0] = bf16(x[i0])
    for j in 8:
      block "use" (i1: spatial 8 = j):
        y[i1] = f32(p[i1]) * f32(p[7 - i1])
"""


@pytest.mark.parametrize(
    ("changes", "trace", "message"),
    [
        ([], "widen(buffer=q)", "0 buffers called 'q' are allocated; expected one; known: p"),
        ([("bf16[8] local", "f32[8] local"), ("bf16(x", "(x"), ("f32(p[i1]) * f32(p[7 - i1])", "p[i1]")],
         "widen(buffer=p)", "p is a local buffer of f32; expected a private one of bf16 or f16"),
        ([("bf16[8] local", "bf16[8]")], "widen(buffer=p)", "p is a global buffer of bf16"),
        ([("y: f32", "y: bf16"), ("f32(p[i1]) * f32(p[7 - i1])", "p[i1]")],
         "widen(buffer=p)", "p is read by what makes no f32 of it"),
        ([("bf16[8] local", "bf16[600000] local")], "widen(buffer=p)", "p takes 2400000 bytes of stack"),
    ],
)  # fmt: skip
def test_widen(changes: list[tuple[str, str]], trace: str, message: str) -> None:
    text = changed(WIDEN, changes)
    with pytest.raises(LegalityError, match=f"widen: .*{message}"):
        apply_trace(parse_func(text), parse_trace(trace))


@pytest.mark.parametrize(("changes", "intrinsic", "message"), TENSORIZE_4)
def test_tensorize_fours(changes: list[tuple[str, str]], intrinsic: str, message: str) -> None:
    text = changed(DOT4, changes)
    with pytest.raises(LegalityError, match=f"tensorize: .*{message}"):
        apply_trace(parse_func(text), parse_trace(f"tensorize(loop=j, intrinsic={intrinsic})"))


@pytest.mark.parametrize(("changes", "trace", "message"), TENSORIZE)
def test_tensorize(changes: list[tuple[str, str]], trace: str, message: str) -> None:
    text = changed(DOT, changes)
    with pytest.raises(LegalityError, match=f"tensorize: .*{message}"):
        apply_trace(parse_func(text), parse_trace(trace))
