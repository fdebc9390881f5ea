import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.errors import UserError
from strata.engine.sampling import Sampler, SamplingParams, _drawn, sampling_params

VOCAB = 50


def logits_of(seed: int, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=vocab).astype(np.float32) * 3


def reference(params: SamplingParams, logits: np.ndarray, prompt: list[int], output: list[int]) -> np.ndarray:
    """transformers' processors in its order; the OpenAI penalties as vLLM defines them."""
    import torch
    from transformers import generation as g

    ids = torch.tensor([prompt + output])
    scores = torch.tensor(logits)[None]
    if params.repetition_penalty != 1:
        scores = g.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(logits)).float()
    scores = scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    scores = g.TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = g.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = g.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0:
        scores = g.MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(-1)[0].numpy()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.just(1.0) | st.floats(0.05, 0.99),
    min_p=st.just(0.0) | st.floats(0.01, 0.9),
    repetition=st.just(1.0) | st.floats(0.5, 2),
    presence=st.just(0.0) | st.floats(-2, 2),
    frequency=st.just(0.0) | st.floats(-2, 2),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
)
def test_distribution_is_transformers(
    seed, temperature, top_k, top_p, min_p, repetition, presence, frequency, prompt
):
    pytest.importorskip("transformers")
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition,
        presence_penalty=presence, frequency_penalty=frequency, seed=seed,
    )  # fmt: skip
    sampler = Sampler(params, prompt, VOCAB)
    output: list[int] = []
    for step in range(3):
        logits = logits_of(seed + step)
        kept = logits.copy()
        ours = sampler.probabilities(logits)
        theirs = reference(params, logits, prompt, output)
        # A token exactly at a border may fall on either side through rounding.
        different = ((ours > 0) != (theirs > 0)) & (ours + theirs > 1e-6)
        assert different.sum() <= 1
        if not different.any():
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
        token = sampler.sample(logits)
        np.testing.assert_array_equal(logits, kept)
        assert ours[token] > 0
        output.append(token)


def test_draws_follow_the_distribution():
    params = SamplingParams(temperature=1.0, top_k=4, seed=1)
    sampler = Sampler(params, [], VOCAB)
    logits = logits_of(3)
    want = sampler.probabilities(logits)
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=VOCAB) / 4000
    np.testing.assert_allclose(counts, want, atol=4 * np.sqrt(0.25 / 4000))


def test_seed():
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=2.0, seed=seed), [], VOCAB)
        return [sampler.sample(logits_of(i)) for i in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_greedy():
    sampler = Sampler(SamplingParams(), [1], VOCAB)
    logits = logits_of(0)
    assert sampler.sample(logits) == logits.argmax()
    assert sampler.probabilities(logits).argmax() == logits.argmax()
    penalised = Sampler(SamplingParams(presence_penalty=2.0, repetition_penalty=1.9), [], VOCAB)
    logits = np.zeros(VOCAB, np.float32)
    logits[[3, 4]] = 3, 2.5
    assert [penalised.sample(logits) for _ in range(2)] == [3, 4]


def test_the_largest_is_not_looked_for_where_it_is_known():
    class Opaque(np.ndarray):
        def argmax(self, *args, **options):
            raise AssertionError("it is known")

    logits = logits_of(0)
    assert Sampler(SamplingParams(), [1], VOCAB).sample(logits.view(Opaque), 7) == 7
    penalised = Sampler(SamplingParams(presence_penalty=2.0), [], VOCAB)
    logits[[3, 4]] = 30, 29
    assert [penalised.sample(logits, 3) for _ in range(2)] == [3, 4]  # what is known is of other scores
    logits[3] = np.nan
    with pytest.raises(UserError, match="the best logit is nan"):
        Sampler(SamplingParams(), [], VOCAB).sample(logits, 3)


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1024, 5000])
def test_draws_are_where_the_running_sum_passes(size):
    rng = np.random.default_rng(size)
    weights = rng.integers(0, 3, size).astype(np.float64)  # whole numbers: every sum is exact
    weights[0] += 1
    weights[-1:] *= 0 if size > 1 else 1
    sums = np.cumsum(weights)
    for part in (0.0, *rng.random(200), np.nextafter(1.0, 0.0)):
        assert _drawn(weights, part) == np.searchsorted(sums, part * sums[-1], side="right")
    odd = np.where(weights > 0, rng.random(size) * 10.0 ** rng.integers(-20, 1, size), 0.0)
    for part in (*rng.random(200), np.nextafter(1.0, 0.0)):
        assert odd[_drawn(odd, part)] > 0


def test_a_tiny_temperature_is_greedy():
    logits = logits_of(5)
    assert Sampler(SamplingParams(temperature=1e-300), [], VOCAB).sample(logits) == logits.argmax()


def test_large_vocabularies_take_the_short_way_to_the_same_set():
    logits = logits_of(2, 20000)
    flat = np.zeros(20000, np.float32)
    for values, top_p in [(logits, 0.3), (logits, 0.9), (logits, 0.99999), (flat, 0.5)]:
        got = Sampler(SamplingParams(temperature=1.0, top_p=top_p), [], 20000).probabilities(values)
        weights = np.exp(values.astype(np.float64))
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        assert np.count_nonzero(got) == np.count_nonzero(before < top_p * weights.sum())
        np.testing.assert_allclose(got.sum(), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits(bad, temperature):
    logits = logits_of(0)
    logits[7] = bad
    with pytest.raises(
        UserError, match=f"sampling: the best logit is {bad}; the model's weights are damaged"
    ):
        Sampler(SamplingParams(temperature=temperature), [], VOCAB).sample(logits)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_tokens": 0}, "max_tokens: got 0; expected an integer >= 1"),
        ({"max_tokens": 1.5}, "max_tokens: got 1.5"),
        ({"temperature": -0.1}, "temperature: got -0.1; expected a number >= 0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"temperature": "hot"}, "temperature: got 'hot'"),
        ({"top_k": -1}, r"top_k: got -1; expected an integer >= 0"),
        ({"top_k": True}, "top_k: got True"),
        ({"top_p": 0}, r"top_p: got 0; expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"min_p": 1}, r"min_p: got 1; expected a number in \[0, 1\)"),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0; expected a number > 0"),
        ({"presence_penalty": 3}, r"presence_penalty: got 3; expected a number in \[-2, 2\]"),
        ({"frequency_penalty": -3}, "frequency_penalty: got -3"),
        ({"seed": -1}, "seed: got -1; expected an integer >= 0"),
        ({"stop": ("a", "")}, r"stop: got \('a', ''\); expected texts that are not empty"),
        ({"stop": 3}, "stop: got 3"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids: got \[-1\]; expected token ids"),
        ({"heat": 1}, "no option 'heat'; it has max_tokens, temperature"),
    ],
)
def test_bad_params(options, match):
    with pytest.raises(UserError, match=match):
        sampling_params(None, options)


def test_params_from_options():
    base = SamplingParams(temperature=0.5, stop="\n")
    assert base.stop == ("\n",)
    changed = sampling_params(base, {"top_k": np.int64(3), "stop_token_ids": [1, 2]})
    assert (changed.temperature, changed.top_k, changed.stop, changed.stop_token_ids) == (
        0.5,
        3,
        ("\n",),
        (1, 2),
    )
    assert sampling_params(None, {}) == SamplingParams()
