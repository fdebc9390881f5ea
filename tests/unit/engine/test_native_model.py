"""Engine and runtime on a model that is compiled for real: artifact, native entries, both executors."""

from pathlib import Path

import numpy as np
import pytest
from hf_models import make_model, reference_logits

from strata.compiler.api import Options, compile_model
from strata.engine.generate import LanguageModel


def outputs_of(result) -> tuple[np.ndarray, ...]:
    """Copies of what a function gives."""
    return tuple(a.copy() for a in (result if isinstance(result, tuple) else (result,)))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    make_model(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def model(source, tmp_path_factory) -> LanguageModel:
    options = Options(format="f32", max_context=96, max_batch=3, prefill_chunk=16, page_size=5)
    artifact = compile_model(source, tmp_path_factory.mktemp("out") / "model", options)
    return LanguageModel.load(artifact, num_threads=2)


def test_artifact(model):
    assert model.tokenizer is not None
    assert (model.max_context, model.max_batch, model.prefill_chunk) == (96, 3, 16)
    assert all(not array.flags.writeable for array in model.program.params.values())  # mapped, not read


def test_compiling_reports_kernels_and_then_weights(source, tmp_path):
    seen = []
    compile_model(source, tmp_path / "model", Options("bf16"), progress=lambda *step: seen.append(step))
    weights = [(done, total) for done, total, name, _ in seen if name == "(weights)"]
    count = weights[-1][1]
    assert weights == [(k, count) for k in range(count + 1)]
    assert [name for *_, name, _ in seen[-len(weights) :]] == ["(weights)"] * len(weights)


def test_logits_are_the_reference_models(source, model):
    ids = [(37 * i + 11) % 300 for i in range(70)]
    np.testing.assert_allclose(model.logits(ids), reference_logits(source, ids), atol=2e-4)


@pytest.mark.parametrize(
    ("function", "lengths"), [("prefill", [9, 1, 6]), ("decode", [1, 1, 1]), ("score", [3, 5])]
)
def test_launch_by_launch_gives_the_entrys_bits(model, function, lengths):
    cache, program = model.cache, model.program
    rng = np.random.default_rng(1)
    names = list("abc")[: len(lengths)]
    for name in names:
        cache.add_sequence(name)
    try:
        history = rng.integers(0, 300, 12).astype(np.int32)
        program["prefill"](history, cache.begin_forward(["a"], [12]))
        cache.end_forward()
        ids = rng.integers(0, 300, sum(lengths)).astype(np.int32)
        view = cache.begin_forward(names, lengths)
        whole = outputs_of(program[function](ids, view))
        events = []
        run = program.step(function, ids, view)
        run.after("*", lambda event: events.append(event.time_ns))
        for mine, theirs in zip(outputs_of(run.finish()), whole, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert len(events) == len(program[function].record.launches)
        assert all(time_ns > 0 for time_ns in events)
    finally:
        cache.clear()


def test_a_batch_is_as_many_batches_of_one(model):
    prompts = ["def read(path):", "the quick brown fox jumps over " * 4, "x"]
    together = model.generate(prompts, max_tokens=24, ignore_eos=True)
    for prompt, result in zip(prompts, together, strict=True):
        alone = model.generate(prompt, max_tokens=24, ignore_eos=True)
        assert result.token_ids == alone.token_ids
        assert result.text == alone.text == "".join(model.stream(prompt, max_tokens=24, ignore_eos=True))
    model.cache.check_integrity()
    assert model.cache.sequences == ()


def test_greedy_tokens_are_the_largest_logits(model):
    prompt = [(29 * i + 3) % 300 for i in range(30)]
    generated = model.generate(prompt, max_tokens=24, ignore_eos=True).token_ids
    logits = model.logits([*prompt, *generated])
    rows = logits[len(prompt) - 1 : -1]
    # One row at a time or many at once may round differently: nearly equal logits may change places.
    np.testing.assert_allclose(rows[np.arange(24), generated], rows.max(axis=1), atol=2e-4)


def test_forks_continue_like_their_parent(model):
    """A fork in the middle of a page shares it, and both continue as one sequence alone would."""
    ids = np.array([(29 * i + 3) % 300 for i in range(30)], np.int32)
    want = model.logits(ids)
    cache, program = model.cache, model.program
    try:
        cache.add_sequence("parent")
        for part in (ids[:13], ids[13:17]):
            program["prefill"](part, cache.begin_forward(["parent"], [len(part)]))
            cache.end_forward()
        cache.fork_sequence("parent", "child", 12)
        view = cache.begin_forward(["child", "parent"], [4, 3])
        logits, _ = program["prefill"](np.concatenate([ids[12:16], ids[17:20]]), view)
        cache.end_forward()
        np.testing.assert_allclose(logits, want[[15, 19]], atol=2e-4)
        for layer in range(2):
            for parent, child in zip(
                cache.debug_get_kv("parent", layer), cache.debug_get_kv("child", layer), strict=True
            ):
                np.testing.assert_allclose(child, parent[:16], atol=1e-5)
        cache.check_integrity()
    finally:
        cache.clear()
