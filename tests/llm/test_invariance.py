"""What must not change the results: chunks, batches, page sizes, where keys are rotated, threads, history.

Each test compares the compiled program with itself; ``test_transformers.py`` says that it is right at all.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_models import BY_ID, INLINE, Session, compile_folder, tokens
from tolerance import for_model

from strata.core.dtypes import dtype
from strata.engine.generate import LanguageModel
from strata.runtime.program import Program

IDS = tokens(150, 301)
# Other chunks mean other kernels and other orders of summation; f32 logits of rms 1.
ROUNDING = 2e-5
CASE = "qwen2-odd"  # odd sizes, biases, one query head per KV head
GROUPED = "llama3-mqa20-tied"  # three query heads per KV head, head size 20, tied embeddings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {case: BY_ID[case].make(root / case) for case in (CASE, GROUPED, "gpt2-20")}


@pytest.fixture(scope="module")
def program(folders: dict[str, Path]) -> Program:
    return compile_folder(folders[CASE])


@pytest.fixture(scope="module")
def scores(program: Program) -> np.ndarray:
    """Logits ``[len(IDS), vocab]`` of all tokens in one pass."""
    return Session(program).step("score", {0: IDS})


def in_chunks(session: Session, ids: Sequence[int], chunk: int, name: int = 0) -> np.ndarray:
    """Logits after the last token of ``ids``, appended ``chunk`` at a time."""
    rows = [session.step("prefill", {name: ids[k : k + chunk]}) for k in range(0, len(ids), chunk)]
    return rows[-1][0]


@pytest.mark.parametrize("chunk", [1, 3, 16, 512])
def test_chunked_prefill_equals_unchunked(program: Program, scores: np.ndarray, chunk: int) -> None:
    session = Session(program)
    got = in_chunks(session, IDS, chunk)
    np.testing.assert_allclose(got, scores[-1], rtol=0, atol=ROUNDING)
    # The cache holds the same keys and values, too.
    other = Session(program)
    in_chunks(other, IDS, 512)
    for layer in range(2):
        for mine, theirs in zip(
            session.cache.debug_get_kv(0, layer), other.cache.debug_get_kv(0, layer), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("chunk", [1, 3, 16, 512])
def test_chunks_of_the_engine(program: Program, scores: np.ndarray, chunk: int) -> None:
    model = LanguageModel(program, None, max_context=200, max_batch=3, prefill_chunk=min(chunk, 256))
    np.testing.assert_allclose(model.logits(IDS), scores, rtol=0, atol=ROUNDING)
    prompts = [IDS[:40], IDS[:1], IDS[:100]]
    results = model.generate(prompts, max_tokens=12, ignore_eos=True)
    for prompt, result in zip(prompts, results, strict=True):
        alone = Session(program)
        chosen, _ = alone.greedy(alone.step("prefill", {0: prompt})[0], 11)
        assert list(result.token_ids) == chosen


@pytest.mark.parametrize(
    ("case", "format"), [(CASE, "f32"), (GROUPED, "f32"), (CASE, "bf16"), (GROUPED, "f16")]
)
def test_every_number_of_tokens(folders: dict[str, Path], case: str, format: str) -> None:
    # Each number of rows has its own tail of a tile, and its own choice of kernel.
    program = compile_folder(folders[case], format)
    session = Session(program)
    whole = session.step("score", {0: IDS})
    bound = ROUNDING if format == "f32" else for_model(dtype(format), 2)["atol"]
    for count in range(1, len(IDS)):
        got = session.step("score", {count: IDS[:count]})
        np.testing.assert_allclose(got, whole[:count], rtol=0, atol=bound)
        session.cache.remove_sequence(count)


@pytest.mark.parametrize("case", [CASE, GROUPED, "gpt2-20"])
def test_prefill_and_decode_equal_score(folders: dict[str, Path], case: str) -> None:
    session = Session(compile_folder(folders[case]))
    expected = session.step("score", {0: IDS})
    first = 77
    got = [session.step("prefill", {1: IDS[:first]})[0]]
    got += [session.step("decode", {1: [token]})[0] for token in IDS[first:]]
    np.testing.assert_allclose(np.stack(got), expected[first - 1 :], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("case", [CASE, GROUPED])
def test_batch_equals_sequences_alone(folders: dict[str, Path], case: str) -> None:
    program = compile_folder(folders[case])
    parts = {k: tokens(length, 301, seed=k) for k, length in enumerate((1, 33, 2, 16, 100, 5, 7, 17))}
    together = Session(program, num_pages=100)
    batch = [together.step("prefill", parts)]
    following = {k: [3 * k + 1] for k in parts}
    batch.append(together.step("decode", following))
    # A pass may mix sequences that go on for several tokens with ones that go on for one.
    batch.append(together.step("prefill", {5: [8], 1: [1, 2, 3, 4], 4: [9, 9]}))
    for row, (name, ids) in enumerate(parts.items()):
        alone = Session(program)
        single = [alone.step("prefill", {0: ids})[0], alone.step("decode", {0: following[name]})[0]]
        np.testing.assert_allclose(batch[0][row], single[0], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(batch[1][row], single[1], rtol=0, atol=ROUNDING)
        if name == 1:
            last = alone.step("prefill", {0: [1, 2, 3, 4]})[0]
            np.testing.assert_allclose(batch[2][1], last, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("case", [CASE, GROUPED])
@pytest.mark.parametrize("page_size", [1, 3, 7, 16, 32, 64])
def test_page_sizes_equal_one_page(folders: dict[str, Path], case: str, page_size: int) -> None:
    contiguous = Session(compile_folder(folders[case], page_size=128), max_context=128, num_pages=1)
    ids = IDS[:70]
    expected = contiguous.step("score", {0: ids})
    session = Session(compile_folder(folders[case], page_size=page_size), max_context=128, num_pages=200)
    # Pages of several sequences alternate, so that no sequence lies in one piece.
    session.step("prefill", {1: IDS[:page_size], 2: IDS[:page_size]})
    got = [session.step("prefill", {0: ids[:9], 1: IDS[:9]})[0], session.step("prefill", {0: ids[9:50]})[0]]
    got += [session.step("decode", {1: [5], 0: [token]})[1] for token in ids[50:]]
    want = expected[[8, *range(49, len(ids))]]
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("page_size", [5, 16])
def test_inline_rope_equals_normal(folders: dict[str, Path], page_size: int) -> None:
    normal = Session(compile_folder(folders[GROUPED], page_size=page_size))
    inline = Session(compile_folder(folders[GROUPED], page_size=page_size, rope_mode=INLINE))
    for function, ids in (("prefill", IDS[:45]), ("decode", IDS[45:46]), ("score", IDS[46:120])):
        got, want = (s.step(function, {0: ids}) for s in (inline, normal))
        np.testing.assert_allclose(got, want, rtol=0, atol=ROUNDING)
    # Stored keys do differ: the inline cache keeps them as they are.
    assert not np.allclose(inline.cache.debug_get_kv(0, 0)[0], normal.cache.debug_get_kv(0, 0)[0], atol=0.1)


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_number_of_threads_changes_no_bit(folders: dict[str, Path], format: str) -> None:
    results = []
    for num_threads in (1, 2, 3):
        session = Session(compile_folder(folders[GROUPED], format, num_threads))
        logits = [session.step("prefill", {0: IDS[:100], 1: IDS[:31]})]
        logits += [session.step("decode", {0: [7], 1: [token]}) for token in IDS[31:40]]
        logits.append(session.step("score", {2: IDS}))
        results.append(np.concatenate(logits))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_repeated_calls_change_no_bit(program: Program, scores: np.ndarray) -> None:
    session = Session(program)
    session.step("score", {5: IDS[:60]})  # whatever the arena held before does not matter
    program.arena.fill(0xFF)  # NaN
    np.testing.assert_array_equal(session.step("score", {0: IDS}), scores)


def test_fork_continues_as_its_parent(program: Program) -> None:
    session = Session(program)
    session.step("prefill", {0: IDS[:37]})  # ends inside a page: both write into copies of it
    session.cache.fork_sequence(0, 1)
    session.cache.fork_sequence(0, 2, 20)
    child = [session.step("decode", {1: [token]})[0] for token in IDS[37:60]]
    parent = [session.step("decode", {0: [token]})[0] for token in IDS[37:60]]
    np.testing.assert_array_equal(np.stack(child), np.stack(parent))
    early = [session.step("decode", {2: [token]})[0] for token in IDS[20:30]]
    alone = Session(program)
    alone.step("prefill", {0: IDS[:37]})
    alone.cache.pop(0, 17)
    np.testing.assert_array_equal(
        np.stack(early), np.stack([alone.step("decode", {0: [token]})[0] for token in IDS[20:30]])
    )


def test_pop_then_decode_again(program: Program) -> None:
    session = Session(program)
    session.step("prefill", {0: IDS[:40]})
    first = [session.step("decode", {0: [token]})[0] for token in IDS[40:60]]
    session.cache.pop(0, 20)
    session.cache.check_integrity()
    again = [session.step("decode", {0: [token]})[0] for token in IDS[40:60]]
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    # Other tokens in between leave no trace.
    session.cache.pop(0, 20)
    session.step("prefill", {0: IDS[100:140]})
    session.cache.pop(0, 40)
    again = [session.step("decode", {0: [token]})[0] for token in IDS[40:60]]
    np.testing.assert_array_equal(np.stack(first), np.stack(again))


def test_a_failed_pass_changes_nothing(program: Program) -> None:
    session = Session(program)
    session.step("prefill", {0: IDS[:20]})
    session.cache.begin_forward([0], [30])
    session.cache.abort_forward()
    session.cache.check_integrity()
    other = Session(program)
    other.step("prefill", {0: IDS[:20]})
    np.testing.assert_array_equal(*(s.step("decode", {0: [3]}) for s in (session, other)))
