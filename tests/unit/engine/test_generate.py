import dataclasses
import gc
import threading

import numpy as np
import pytest
from fake_program import FakeProgram, greedy, logits_of_history
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, llama

from strata.core.errors import UserError
from strata.engine.batch import FinishReason
from strata.engine.generate import LanguageModel, _windows, peak_rss_bytes
from strata.engine.sampling import SamplingParams
from strata.engine.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"


def make(tokenizer=None, program=None, **limits) -> LanguageModel:
    return LanguageModel(program or FakeProgram(), tokenizer, **limits)


def text_model(**config) -> LanguageModel:
    tokenizer = Tokenizer(byte_level(), {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE})
    return make(tokenizer, FakeProgram(vocab=tokenizer.vocab_size, **config))


def is_clean(model: LanguageModel) -> bool:
    model.cache.check_integrity()
    return model.cache.sequences == () and model.cache.num_free_pages == model.cache.num_pages


@pytest.mark.parametrize("length", [1, 3, 4, 8, 9, 17, 40])
def test_greedy_tokens_are_those_of_the_definition(length):
    model = make()
    prompt = [(7 * i + 3) % 40 for i in range(length)]
    result = model.generate(prompt, max_tokens=20)
    assert list(result.token_ids) == greedy(prompt, 20, 40)
    assert result.finish_reason is FinishReason.LENGTH
    assert result.stopped_by is None
    assert result.prompt_ids == tuple(prompt)
    assert result.text == ""
    assert is_clean(model)
    chunks = [c[0] for c in model.program["prefill"].calls]
    assert chunks == [8] * (length // 8) + [length % 8] * (length % 8 > 0)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=20), min_size=1, max_size=7),
    counts=st.lists(st.integers(1, 12), min_size=7, max_size=7),
    max_batch=st.integers(1, 4),
    num_pages=st.integers(8, 40),
    temperature=st.sampled_from([0.0, 1.5]),
)
def test_a_batch_is_as_many_batches_of_one(prompts, counts, max_batch, num_pages, temperature):
    model = make(max_batch=max_batch, num_pages=num_pages)
    params = [SamplingParams(max_tokens=n, temperature=temperature, seed=n) for n in counts[: len(prompts)]]
    together = model.generate(prompts, params)
    assert is_clean(model)
    for prompt, param, result in zip(prompts, params, together, strict=True):
        alone = make().generate(prompt, param)
        assert result.token_ids == alone.token_ids
        assert len(result.token_ids) == param.max_tokens


def test_requests_share_passes():
    model = make()
    model.generate([[1, 2], [3], [4, 5, 6], [7], [8]], max_tokens=3)
    assert model.program["prefill"].calls[0] == (7, 4)  # four prompts in one ragged pass; the fifth waits
    assert max(seqs for _, seqs in model.program["decode"].calls) == 4


def test_admission_waits_for_pages():
    model = make(num_pages=6)
    results = model.generate([[1] * 8, [2] * 8, [3] * 8], max_tokens=8)  # 4 pages each
    assert [len(r.token_ids) for r in results] == [8, 8, 8]
    assert max(seqs for _, seqs in model.program["decode"].calls) == 1
    model = make(num_pages=2)
    with pytest.raises(UserError, match=r"kv cache: need 1 pages, 0 free"):
        model.generate([5] * 7, max_tokens=8)
    assert is_clean(model)


def test_the_context_ends_a_generation():
    model = make(max_context=12)
    result = model.generate([1] * 9, max_tokens=None)
    assert len(result.token_ids) == 3
    assert result.finish_reason is FinishReason.LENGTH
    with pytest.raises(
        UserError, match=r"prompt has 12 tokens, context is 12; shorten the prompt or compile"
    ):
        model.generate([1] * 12)
    assert is_clean(model)


def test_end_of_sequence_and_stop_tokens():
    first, second, third = greedy([5, 6], 3, 40)
    model = make(program=FakeProgram(eos_token_ids=[second]))
    result = model.generate([5, 6])
    assert result.token_ids == (first, second)
    assert (result.finish_reason, result.stopped_by) == (FinishReason.STOP, second)
    result = model.generate([5, 6], ignore_eos=True, max_tokens=3)
    assert result.token_ids == (first, second, third)
    result = make().generate([5, 6], stop_token_ids=[third])
    assert (result.token_ids[-1], result.stopped_by) == (third, third)


def test_text():
    model = text_model()
    result = model.generate("hello", max_tokens=12)
    assert result.prompt_ids[0] == 0  # BOS
    assert result.text == model.tokenizer.decode(result.token_ids)
    assert result.text != ""


def test_stream_is_generate():
    model = text_model()
    for prompt in ("hello", "the quick", "é"):
        with model.stream(prompt, max_tokens=30) as stream:
            pieces = list(stream)
            result = stream.generation
        want = model.generate(prompt, max_tokens=30)
        assert "".join(pieces) == want.text == result.text
        assert all(pieces)
        assert stream.prompt_tokens == len(want.prompt_ids)
        assert (result.token_ids, result.finish_reason) == (want.token_ids, want.finish_reason)
    assert is_clean(model)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_stop_strings_across_tokens(cut):
    model = text_model()
    whole = model.generate("hello", max_tokens=30).text
    stop = whole[cut : cut + 5]
    result = model.generate("hello", max_tokens=30, stop=stop)
    assert result.text == whole[: whole.find(stop)]
    assert (result.finish_reason, result.stopped_by) == (FinishReason.STOP, stop)
    assert "".join(model.stream("hello", max_tokens=30, stop=stop)) == result.text
    assert model.generate("hello", max_tokens=30, stop="@never@").text == whole


def test_closing_or_dropping_a_stream_frees_its_sequence():
    model = text_model()
    stream = model.stream("hello")
    next(stream)
    assert len(model.cache.sequences) == 1
    with pytest.raises(UserError, match="stream: the generation has not ended"):
        _ = stream.generation
    stream.close()
    assert is_clean(model)
    stream = model.stream("hello")
    next(stream)
    del stream
    gc.collect()
    assert is_clean(model)
    model.stream("never started").close()
    assert is_clean(model)


def test_two_streams_at_once():
    model = text_model()
    first, second = model.stream("hello", max_tokens=20), model.stream("world", max_tokens=20)
    texts = ["", ""]
    for a, b in zip(first, second, strict=False):
        texts[0] += a
        texts[1] += b
    texts[0] += "".join(first)
    texts[1] += "".join(second)
    for prompt, text in zip(("hello", "world"), texts, strict=True):
        assert model.generate(prompt, max_tokens=20).text.startswith(text[:10])
    assert is_clean(model)


def test_threads():
    model = text_model()
    wanted = {p: text_model().generate(p, max_tokens=15).text for p in ("a", "b", "c")}
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda p=p: got.update({p: model.generate(p, max_tokens=15).text}))
        for p in wanted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted
    assert is_clean(model)


@pytest.mark.parametrize("fail_after", [0, 1, 3])
def test_a_failing_model_leaves_a_clean_cache(fail_after):
    model = make()
    model.program.fail_after = fail_after
    with pytest.raises(RuntimeError, match="the fake model fails"):
        model.generate([[1] * 10, [2]], max_tokens=9)
    assert is_clean(model)
    model.program.fail_after = 0
    with pytest.raises(RuntimeError, match="the fake model fails"):
        model.logits([1, 2])
    assert is_clean(model)
    model.program.fail_after = None
    assert list(model.generate([3], max_tokens=4).token_ids) == greedy([3], 4, 40)


def test_chat():
    model = text_model()
    messages = [{"role": "user", "content": "hello"}]
    ids = model.chat_prompt(messages)
    assert model.tokenizer.decode(ids) == "user:hello\n"
    assert ids[0] != model.tokenizer.bos_id
    result = model.chat(messages, max_tokens=9)
    assert result.prompt_ids == tuple(ids)
    assert "".join(model.stream_chat(messages, max_tokens=9)) == result.text
    assert (
        model.chat(messages, SamplingParams(max_tokens=2), template_options={"x": 1}).stats.generated_tokens
        == 2
    )


def test_an_answer_begins_without_the_space_of_its_first_token():
    tokenizer = Tokenizer(llama(), {"chat_template": TEMPLATE})
    model = make(tokenizer, FakeProgram(vocab=tokenizer.vocab_size))
    token = tokenizer.token_id("▁h")
    for row in ("prefill", "decode"):
        model.program.functions[row] = lambda ids, view, out=None: (
            np.eye(1, tokenizer.vocab_size, token, np.float32),
            np.array([token], np.int32),
        )
    model.program.functions["prefill"].dim_range = lambda dim: (1, 16)
    model = make(tokenizer, model.program)
    assert model.chat([{"role": "user", "content": "a"}], max_tokens=2).text == "h h"
    assert model.generate("a", max_tokens=2).text == " h h"


def test_logits():
    model = make()
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]
    logits = model.logits(ids)
    assert logits.shape == (13, 40)
    assert logits.dtype == np.float32
    for t in range(13):
        np.testing.assert_array_equal(logits[t], logits_of_history(ids[: t + 1], 40))
    assert [c[0] for c in model.program["score"].calls] == [6, 6, 1]
    assert is_clean(model)
    assert model.logits(np.array([1], np.int64)).shape == (1, 40)
    assert len(model.logits([1] * 64)) == 64


def definition(ids: list[int], window: int, stride: int) -> float:
    total, done = 0.0, 0
    for begin in range(0, len(ids) - 1, stride):
        for t in range(max(begin, done), min(begin + window, len(ids) - 1)):
            row = logits_of_history(ids[begin : t + 1], 40).astype(np.float64)
            total += np.log(np.exp(row).sum()) - row[ids[t + 1]]
            done = t + 1
    return float(np.exp(total / (len(ids) - 1)))


@pytest.mark.parametrize(("window", "stride"), [(None, None), (8, None), (8, 3), (5, 5), (64, 1), (1, 1)])
def test_perplexity(window, stride):
    ids = [(11 * i * i + 5) % 40 for i in range(30)]
    got = make().perplexity(ids, window, stride)
    assert got == pytest.approx(definition(ids, window or 64, stride or window or 64), rel=1e-5)


def test_perplexity_of_text_beyond_the_context():
    model = text_model(max_context=16)
    text = "hello world, the quick brown fox " * 3
    ids = model.tokenizer.encode(text)
    assert len(ids) > 16
    assert model.perplexity(text) == pytest.approx(model.perplexity(ids))
    assert model.perplexity(text, add_special=False) == pytest.approx(model.perplexity(ids[1:]))
    assert is_clean(model)


@given(st.integers(2, 60), st.integers(1, 20), st.data())
def test_windows_predict_every_token_once(length, window, data):
    stride = data.draw(st.integers(1, window))
    seen = []
    for begin, first, end in _windows(length, window, stride):
        assert begin <= first < end <= begin + window
        seen += range(first, end)
    assert seen == list(range(length - 1))


def test_stats():
    result = text_model().generate("hello", max_tokens=5)
    stats = result.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (len(result.prompt_ids), 5)
    assert 0 < stats.prefill_s <= stats.ttft_s
    assert stats.decode_tokens_per_s == pytest.approx(4 / stats.decode_s)
    assert stats.prefill_tokens_per_s == pytest.approx(stats.prompt_tokens / stats.prefill_s)
    assert stats.peak_rss_bytes > 10_000_000
    assert peak_rss_bytes() >= stats.peak_rss_bytes
    assert dataclasses.replace(stats, decode_s=0.0).decode_tokens_per_s == 0
    assert dataclasses.replace(stats, prefill_s=0.0).prefill_tokens_per_s == 0


def test_sizes():
    model = make()
    assert model.cache.num_pages == 4 * 16
    assert (model.max_context, model.max_batch, model.prefill_chunk) == (64, 4, 8)
    assert model.config["model_name"] == "fake"
    small = make(max_context=6, max_batch=2, prefill_chunk=5)
    assert (small.cache.num_pages, small.prefill_chunk) == (4, 5)
    program = FakeProgram()
    del program.record.config["prefill_chunk"], program.record.config["max_batch"]
    model = make(program=program)
    assert (model.prefill_chunk, model.max_batch) == (16, 1)


def test_an_empty_prompt_is_the_beginning_of_sequence():
    tokenizer = Tokenizer(byte_level(), {"bos_token": "<s>", "add_bos_token": False})
    model = make(tokenizer, FakeProgram(vocab=tokenizer.vocab_size))
    assert model.generate("", max_tokens=1).prompt_ids == (0,)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.generate([]), "prompt: it has no tokens; expected at least one"),
        (lambda m: m.generate([1, 40]), r"token ids: got 40 at position 1; expected 0 \.\. 39"),
        (lambda m: m.generate([-1]), "token ids: got -1 at position 0"),
        (lambda m: m.generate([[1], [[2]]]), r"token ids: got \[\[2\]\]; expected a list of integers"),
        (lambda m: m.generate([1.5]), "token ids: got 1.5; expected a list of integers"),
        (lambda m: m.generate([[1, [2]]]), "token ids: "),
        (lambda m: m.generate([1] * 64), "prompt has 64 tokens, context is 64"),
        (lambda m: m.logits([1] * 65), "prompt has 65 tokens, context is 64"),
        (lambda m: m.logits([]), "it has no tokens"),
        (lambda m: m.generate("text"), "a text prompt needs a tokenizer; this model has none"),
        (lambda m: m.generate([1], stop="x"), "a stop string needs a tokenizer"),
        (lambda m: m.chat([{"role": "user", "content": "x"}]), "chat needs a tokenizer"),
        (lambda m: m.generate([1], heat=3), "sampling: no option 'heat'"),
        (lambda m: m.generate([[1], [2]], [None]), "got 1 parameter sets for 2 prompts; expected as many"),
        (lambda m: m.perplexity([1]), "perplexity: got 1 tokens; expected at least 2"),
        (lambda m: m.perplexity([1, 2], 65), "got window 65, stride 65; expected 1 <= stride"),
        (lambda m: m.perplexity([1, 2], 4, 5), "got window 4, stride 5"),
        (lambda m: m.perplexity([1, 2], 4, 0), "got window 4, stride 0"),
    ],
)  # fmt: skip
def test_bad_requests(call, match):
    model = make()
    with pytest.raises(UserError, match=match):
        call(model)
    assert is_clean(model)


def test_models_that_give_logits_only():
    program = FakeProgram()
    functions = tuple(dataclasses.replace(f, outputs=f.outputs[:1]) for f in program.record.functions)
    program.record = dataclasses.replace(program.record, functions=functions)
    want = r"prefill: got outputs \(f32\[num_seqs,40\]\); expected logits f32\[num_seqs,vocab\] and"
    with pytest.raises(UserError, match=want):
        make(program=program)


def test_bad_models(tmp_path):
    for functions in (["prefill"], ["decode"]):
        with pytest.raises(UserError, match="the program has no KV cache, prefill or decode"):
            make(program=FakeProgram(functions=functions))
    with pytest.raises(UserError, match="compiled without the function 'score'"):
        make(program=FakeProgram(functions=["prefill", "decode"])).logits([1])
    for key, value in [("max_context", 0), ("vocab_size", "many"), ("max_batch", True)]:
        with pytest.raises(UserError, match=f"config has {key} = {value!r}; expected an integer >= 1"):
            make(program=FakeProgram(**{key: value} if key != "vocab_size" else {"vocab_size": value}))
    with pytest.raises(UserError, match=r"max_context: got 65; expected 1 \.\. 64, what it was compiled for"):
        make(max_context=65)
    with pytest.raises(UserError, match="max_batch: got 0; expected"):
        make(max_batch=0)
    with pytest.raises(UserError, match="kv cache: num_pages: got 0"):
        make(num_pages=0)
    with pytest.raises(UserError, match="none: no such folder"):
        LanguageModel.load(tmp_path / "none")


@pytest.mark.parametrize("value", [None, 3, "2", [2, "3"], [[2]], [True]])
def test_end_tokens_of_a_malformed_record_are_refused(value):
    with pytest.raises(UserError, match=r"config has eos_token_ids = .*; expected a list of integers"):
        make(program=FakeProgram(eos_token_ids=value))
