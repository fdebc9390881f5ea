"""Forward passes on a cache of their own: sizes, results, and that they can be made again and again."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from hf_models import make_model

import strata
from strata.compiler.api import Options, compile_model
from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.engine.forward import forward_pass
from strata.engine.generate import LanguageModel
from strata.engine.kv_cache import PagedKVCache
from strata.graph import builder as b
from strata.graph.nodes import Function, Module

IDS = [(37 * i + 11) % 300 for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    source = make_model(tmp_path_factory.mktemp("hf") / "llama", "llama")
    options = Options(format="f32", max_context=96, max_batch=3, prefill_chunk=16, page_size=5)
    artifact = compile_model(source, tmp_path_factory.mktemp("out") / "model", options)
    return LanguageModel.load(Path(artifact), num_threads=2)


@pytest.mark.parametrize(("function", "past"), [("decode", 39), ("prefill", 32), ("score", 32)])
def test_a_pass_gives_the_models_logits(model, function, past):
    forward = model.forward_pass(function, IDS)
    assert (forward.past_tokens, len(forward.ids)) == (past, 40 - past)
    want = model.logits(IDS)[past if function == "score" else -1 :]
    for _ in range(2):
        np.testing.assert_allclose(forward(), want, atol=1e-4)
        whole = forward().copy()
        outputs = forward.step().finish()
        np.testing.assert_array_equal(outputs if function == "score" else outputs[0], whole)
    assert forward.dims["n"] == 40 - past
    assert forward.dims["max_context"] == 40
    assert forward.work_dims["max_context"] == 40
    assert model.cache.sequences == ()


def test_a_pass_over_several_sequences_gives_the_same_for_each(model):
    one = forward_pass(model.program, "decode", IDS)
    three = forward_pass(model.program, "decode", IDS, sequences=3)
    assert (three.past_tokens, three.dims["n"], three.dims["num_seqs"]) == (39, 3, 3)
    np.testing.assert_allclose(three(), np.tile(one(), (3, 1)), atol=1e-4)
    with pytest.raises(UserError, match="decode: got 40 tokens for one pass; expected at most"):
        forward_pass(model.program, "decode", IDS, sequences=len(IDS))


def test_a_pass_as_long_as_the_chunk_has_no_past(model):
    assert model.forward_pass("prefill", IDS[:16]).past_tokens == 0
    assert model.forward_pass("decode", IDS[:1]).past_tokens == 0


def test_steps_and_nodes_of_a_model(model):
    run = model.step("decode", "def read", keep="*lm_head*")
    assert [n.name for n in run] == [n.name for n in model.nodes("decode")]
    (head,) = (n for n in run.nodes if "lm_head" in n.name)
    np.testing.assert_array_equal(run.value(head), run.outputs[0])
    with pytest.raises(UserError, match="program: no function 'decide'"):
        model.nodes("decide")


def test_a_run_keeps_its_cache(model):
    """The pool of a pass that nobody holds any more must not go while the run reads it."""
    want = model.forward_pass("decode", IDS)().copy()
    run = model.step("decode", IDS)
    pools = [weakref.ref(a) for a in gc.get_objects() if type(a) is PagedKVCache and a is not model.cache]
    gc.collect()
    np.testing.assert_array_equal(run.finish()[0], want)
    assert any(pool() is not None for pool in pools)
    del run
    gc.collect()
    assert all(pool() is None for pool in pools)


def test_a_past_that_is_not_computed_has_the_same_sizes(model):
    program = model.stepping_program
    forward = forward_pass(program, "decode", IDS, computes_past=False)
    assert forward.dims == model.forward_pass("decode", IDS).dims
    assert not forward.cache.k_pages[0].any()


def test_bad_sequences(model):
    with pytest.raises(UserError, match=r"decode: got \(0,\) tokens; expected a list of at least one"):
        forward_pass(model.stepping_program, "decode", [])
    with pytest.raises(UserError, match="prompt has 97 tokens, context is 96"):
        model.forward_pass("prefill", [1] * 97)


def test_functions_without_a_cache():
    x = b.input("x", b.tensor_type((SymDim("n", 1, 8), 4), "f32"))
    program = strata.compile(Module((Function("f", (x,), (b.softmax(x),)),)))
    with pytest.raises(UserError, match=r"f: takes no KV cache; step it with Program\.step"):
        forward_pass(program, "f", [1])
