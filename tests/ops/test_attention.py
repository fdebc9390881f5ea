"""Paged attention over sizes that straddle the borders of its tiles: reference = machine code = interpreter.

Page sizes, head sizes, groups of query heads, dtypes of the cache and rotary modes; passes of one token, of
tiles and their neighbours, of several sequences; contexts that are split; data that breaks careless kernels.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import tolerance

from strata.codegen.build import build_image
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import bf16, dtype, f32
from strata.core.kv_layout import LAYER_FIELDS
from strata.graph import builder as b
from strata.graph import interp
from strata.graph.cache_value import CacheValue
from strata.graph.nodes import Function
from strata.graph.types import CacheType, RopeMode, TensorType
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.lower import Binding, lower_group
from strata.lower.attention.paged import MAX_SPLITS, PART_ROWS, SPLIT_TOKENS, TILES_TOGETHER
from strata.planner.workspace import hoist_workspace, with_workspace
from strata.runtime.image import LoadedImage, load_image
from strata.runtime.tensors import as_tensor
from strata.schedule import propose, trace_text
from strata.target import detect_host, get_target

N = SymDim("n", 1, 256)


@dataclass(frozen=True)
class Kernel:
    """One attention function and what its parameters are bound to."""

    body: Function
    func: Func
    bindings: tuple[Binding, ...]
    cache: CacheType
    heads: int

    def arrays(self, q: np.ndarray, cache: CacheValue) -> list[np.ndarray]:
        """Arrays for all parameters, the result last."""
        found = []
        env = {**cache.dims, "n": len(q)}
        for param, binding in zip(self.func.params, self.bindings, strict=True):
            if binding.field:
                value = cache[binding.field]
                found.append(np.ascontiguousarray(value[0] if binding.field in LAYER_FIELDS else value))
            elif binding.operand == 0:
                found.append(q)
            else:
                found.append(np.full(tuple(evaluate(d, env) for d in param.shape), np.nan, np.float32))
        return found


def make(
    number: int, kind: str, page: int, dim: int, kv_heads: int, group: int, rope: str, unit: str = ""
) -> Kernel:
    rotary = {"none": 0, "inline": dim // 2 // 2 * 2}[rope]
    cache = CacheType(1, kv_heads, dim, dtype(kind), page, RopeMode(rope), rotary)
    q = b.input("q", TensorType((N, kv_heads * group, dim), f32))
    body = Function("f", (q, c := b.input("cache", cache)), (b.paged_attention(q, c, 0, dim**-0.5),))
    lowered = lower_group("f", body, has_matrix_unit=bool(unit))
    hoisted = hoist_workspace(propose(lowered.func, detect_host())[0].func)
    bindings = with_workspace(lowered.bindings, lowered.func.num_outputs, len(hoisted.buffers))
    func = Func(f"attention_{number}", hoisted.func.params, hoisted.func.body, hoisted.func.num_outputs)
    return Kernel(body, func, bindings, cache, kv_heads * group)


# dtype, page size, head size, KV heads, query heads per KV head, rotary mode (and whether for a matrix unit)
SHAPES = [
    ("f32", 16, 16, 2, 1, "none"),
    ("f32", 64, 64, 1, 8, "none"),
    ("f32", 24, 20, 2, 3, "inline"),
    ("f32", 1, 33, 1, 2, "none"),
    ("f16", 32, 48, 1, 4, "inline"),
    ("f16", 3, 8, 2, 2, "none"),
    ("bf16", 64, 64, 2, 8, "none"),
    ("bf16", 128, 32, 1, 1, "none"),
    ("bf16", 16, 80, 1, 5, "none"),
    ("bf16", 4, 6, 2, 2, "inline"),
    ("bf16", 32, 128, 1, 48, "none"),
    ("bf16", 7, 16, 1, 3, "inline"),
    ("bf16", 64, 33, 1, 2, "none"),
    ("i8", 64, 64, 1, 8, "none"),
    ("i8", 16, 32, 2, 3, "inline"),
    ("i8", 5, 24, 1, 1, "none"),
    ("i8", 2, 6, 1, 4, "none"),
    ("bf16", 64, 64, 2, 8, "none", "matrix"),
    ("bf16", 32, 32, 1, 7, "none", "matrix"),
    ("bf16", 128, 64, 2, 1, "inline", "matrix"),
    ("i8", 64, 64, 1, 8, "none", "matrix"),
    ("i8", 32, 96, 1, 20, "inline", "matrix"),
]
# Tokens that each sequence has, and that it adds.
BATCHES = [
    ([0], [1]),
    ([62], [3]),
    ([0], [64]),
    ([31], [33]),
    ([130, 0, 17], [5, 31, 1]),
    ([SPLIT_TOKENS - 1, 3], [1, 1]),
    ([SPLIT_TOKENS, 2 * SPLIT_TOKENS + 5, 0], [1, 4, 2]),
    ([0, 7], [4 * TILES_TOGETHER + 3, 8 * TILES_TOGETHER - 1]),  # some whole sets of tiles and a part of one
    ([3, 9, 63, 64, 65, 1, 0, 200], [1] * 8),
]


@pytest.mark.parametrize(
    ("level", "pairs"),
    [("avx2", 0), ("avx512", 0), ("avx512-fp16", 0), ("neon", 0), ("avx512-bf16", 2), ("avx512-amx", 2)],
)
def test_queries_and_weights_are_f32_where_pairs_are_not_multiplied(level: str, pairs: int) -> None:
    q = b.input("q", TensorType((N, 16, 64), f32))
    cache = b.input("cache", CacheType(1, 2, 64, bf16, 64, RopeMode.NONE, 0))
    func = lower_group("f", Function("f", (q, cache), (b.paged_attention(q, cache, 0, 0.125),))).func
    (proposal,) = propose(func, get_target(level))
    trace = trace_text(proposal.trace)
    steps = [trace.count(x) for x in ("widen(buffer=q_rows)", "widen(buffer=p)", "intrinsic=every2")]
    assert steps == ([0, 0, 0] if pairs else [1, 1, 2])
    assert trace.count("tensorize(") - trace.count("every2") == pairs


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return [make(number, *shape) for number, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def image(kernels: list[Kernel]) -> LoadedImage:
    return load_image(build_image([k.func for k in kernels], [], detect_host()).blob, 2)


def filled(kernel: Kernel, past: list[int], new: list[int], seed: int = 0) -> tuple[np.ndarray, CacheValue]:
    """Random queries and pages; what lies behind the last token of a sequence is not a number."""
    rng = np.random.default_rng(seed)
    page = kernel.cache.page_size
    longest = max(p + a for p, a in zip(past, new, strict=True))
    cache = CacheValue.empty(kernel.cache, len(new) * -(-longest // page) + 1, longest + 1)
    cache.fill(rng)
    cache = cache.view(past, new)
    used = np.zeros((cache.num_pages, page), bool)
    for s, (have, add) in enumerate(zip(past, new, strict=True)):
        at = np.arange(have + add)
        used[cache.page_table[s, at // page], at % page] = True
    for name in LAYER_FIELDS:
        for array in cache[name]:
            spoil(array, used, name, kernel.cache)
    return rng.standard_normal((sum(new), kernel.heads, kernel.cache.head_dim), np.float32), cache


def spoil(array: np.ndarray, used: np.ndarray, name: str, type_: CacheType) -> None:
    """NaN (largest codes) in the elements of tokens that nobody has."""
    bad = 127 if array.dtype == np.int8 else np.nan
    tokens = np.arange(type_.page_size)
    for page, is_used in enumerate(used):
        free = tokens[~is_used]
        if name.endswith("scales"):
            array[page, :, free] = bad
        elif name == "k_pages":
            columns = np.arange(array.shape[-1]) // type_.pack
            array[page][..., np.isin(columns, free)] = bad
        else:
            rows, lanes = np.arange(array.shape[-2]), np.arange(array.shape[-1])
            token = rows[:, None] * type_.pack + lanes[None] % type_.pack
            array[page][:, np.isin(token, free)] = bad


def expect(kernel: Kernel, q: np.ndarray, cache: CacheValue, got: np.ndarray, what: str) -> None:
    wanted = np.asarray(interp.run(kernel.body, [q, cache])[0], np.float64)
    clean = replace(cache, **{n: tuple(np.nan_to_num(x, nan=0) for x in cache[n]) for n in LAYER_FIELDS})
    limit = tolerance.for_op("paged_attention", [q, clean], kernel.body.outputs[0].attrs, f32)
    np.testing.assert_allclose(got, wanted, **limit, err_msg=what)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(len(SHAPES)), ids=lambda n: "-".join(map(str, SHAPES[n])))
def test_machine_code_computes_the_reference(kernels: list[Kernel], image: LoadedImage, number: int) -> None:
    kernel = kernels[number]
    for past, new in BATCHES:
        q, cache = filled(kernel, past, new)
        arrays = kernel.arrays(q, cache)
        image.function(kernel.func.name)(*[as_tensor(x) for x in arrays])
        expect(kernel, q, cache, arrays[-1], f"{past} {new}")


@pytest.mark.parametrize("number", [2, 3, 9, 11, 14, 15, 16, 18], ids=lambda n: "-".join(map(str, SHAPES[n])))
def test_the_interpreter_computes_the_reference(kernels: list[Kernel], number: int) -> None:
    kernel = kernels[number]
    for past, new in ([3], [2]), ([6, 0, 1], [1, 4, 1]):
        q, cache = filled(kernel, past, new)
        arrays = kernel.arrays(q, cache)
        run(kernel.func, arrays, parallel_seed=3)
        expect(kernel, q, cache, arrays[-1], f"{past} {new}")


@pytest.mark.parametrize("number", [1, 6, 8, 13, 17, 20], ids=lambda n: "-".join(map(str, SHAPES[n])))
def test_number_of_threads_changes_no_bit(kernels: list[Kernel], number: int) -> None:
    kernel = kernels[number]
    blob = build_image([kernel.func], [], detect_host()).blob
    for past, new in ([700], [1]), ([40, 300], [1, 40]):
        q, cache = filled(kernel, past, new)
        results = []
        for threads in (1, 2, 3):
            arrays = kernel.arrays(q, cache)
            load_image(blob, threads).function(kernel.func.name)(*[as_tensor(x) for x in arrays])
            results.append(arrays[-1].tobytes())
        assert len(set(results)) == 1


@pytest.mark.parametrize("number", [1, 6, 13], ids=lambda n: "-".join(map(str, SHAPES[n])))
def test_the_context_is_split_by_the_pass_alone(
    kernels: list[Kernel], image: LoadedImage, number: int
) -> None:
    """Parts are as many as the longest context has, up to MAX_SPLITS; long contexts have longer parts."""
    kernel = kernels[number]
    for length in (SPLIT_TOKENS + 1, MAX_SPLITS * SPLIT_TOKENS + 1):
        for count in (
            PART_ROWS // MAX_SPLITS,
            PART_ROWS // MAX_SPLITS + 1,
            PART_ROWS // 2,
            PART_ROWS // 2 + 1,
        ):
            q, cache = filled(kernel, [length - count], [count])
            arrays = kernel.arrays(q, cache)
            image.function(kernel.func.name)(*[as_tensor(x) for x in arrays])
            expect(kernel, q, cache, arrays[-1], f"{length} {count}")


@pytest.mark.parametrize("number", [0, 1, 6, 8, 13, 17, 20], ids=lambda n: "-".join(map(str, SHAPES[n])))
@pytest.mark.parametrize("case", ["rising", "falling", "huge", "tiny", "zeros", "one-hot"])
def test_adversarial_scores(kernels: list[Kernel], image: LoadedImage, number: int, case: str) -> None:
    """Maxima that every token raises, scores far below all others, subnormals, -0.0, ties."""
    kernel = kernels[number]
    past, new = [90, 3], [34, 5]
    q, cache = filled(kernel, past, new, seed=1)
    factor = {"huge": 3000.0, "tiny": 1e-42, "zeros": -0.0, "one-hot": 200.0}.get(case, 30.0)
    q = (q * np.float32(factor)).astype(np.float32)
    if case in ("rising", "falling"):  # every key is a multiple of the first query
        steps = np.linspace(-1, 1, cache.k_pages[0].shape[0], dtype=np.float32)
        order = steps if case == "rising" else -steps
        for keys in cache.k_pages:
            keys[...] = (np.abs(keys.astype(np.float32)) * order[:, None, None, None]).astype(keys.dtype)
    arrays = kernel.arrays(q, cache)
    image.function(kernel.func.name)(*[as_tensor(x) for x in arrays])
    assert np.isfinite(arrays[-1]).all()
    expect(kernel, q, cache, arrays[-1], case)


@pytest.mark.parametrize("number", [6, 17], ids=lambda n: "-".join(map(str, SHAPES[n])))
def test_a_token_that_is_not_a_number_stays_alone(
    kernels: list[Kernel], image: LoadedImage, number: int
) -> None:
    kernel = kernels[number]
    q, cache = filled(kernel, [5, 70], [4, 3])
    q[1, 3] = np.nan
    arrays = kernel.arrays(q, cache)
    image.function(kernel.func.name)(*[as_tensor(x) for x in arrays])
    bad = np.isnan(arrays[-1]).all(axis=-1)
    assert bad[1, 3]
    assert bad.sum() == 1
