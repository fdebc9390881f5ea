"""Our side of a benchmark: a compiled model that prefills and decodes random tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from strata.app.inspect import define_model
from strata.app.session import compile_progress
from strata.assets import DEMO_MODEL
from strata.compiler.api import Options, compile_definition, define
from strata.compiler.driver import Compiled
from strata.core.errors import UserError
from strata.engine.kv_cache import PagedKVCache
from strata.models import Checkpoint, ModelDefinition, locate
from strata.models.registry import ReadOptions, parse_config
from strata.models.shapes import random_params
from strata.runtime.program import Program

from .amounts import Amounts
from .shapes import shape_values


class Runner:
    """Runs prefill and decode over sequences of random tokens.

    Args:
        program: A language model.
        work: What will be run.
    """

    def __init__(self, program: Program, work: Amounts) -> None:
        assert program.record.cache is not None
        self.chunk = program["prefill"].dim_range("n")[1]
        self._program = program
        page = program.record.cache.page_size
        pages = max(-(-work.prompt // page), work.batch * -(-(work.context + work.decode) // page))
        self._cache = PagedKVCache(program.record.cache, pages + 1, work.max_tokens, work.batch)
        self.chunks_s: list[list[float]] = []  # of every prefill: seconds of each chunk
        self._rng = np.random.default_rng(0)
        vocab = program.record.config["vocab_size"]
        assert isinstance(vocab, int)
        self._vocab = vocab

    def prefill(self, tokens: int) -> float:
        """Prefill a new sequence, in chunks, to the logits of its last token; returns seconds."""
        self._cache.clear()
        self.chunks_s.append(self._fill(0, tokens))
        return sum(self.chunks_s[-1])

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """Decode ``tokens`` greedy steps of ``batch`` sequences with ``context`` tokens; returns seconds."""
        self._bring_to(context, batch)
        ids, sequences = np.zeros(batch, np.int32), list(range(batch))
        start = time.perf_counter()
        for _ in range(tokens):
            ids[:] = self._step("decode", sequences, [1] * batch, ids)
        return time.perf_counter() - start

    def _bring_to(self, context: int, batch: int) -> None:
        """The first ``batch`` sequences with this many tokens: what was decoded goes, or all are filled anew.

        More sequences stay: one of several decodes what one alone would.
        """
        lengths = [self._cache.length(s) for s in self._cache.sequences]
        if len(lengths) >= batch and all(context <= n <= self._cache.max_context for n in lengths):
            for sequence in range(batch):
                self._cache.pop(sequence, lengths[sequence] - context)
            return
        self._cache.clear()
        for sequence in range(batch):
            self._fill(sequence, context)

    def _fill(self, sequence: int, tokens: int) -> list[float]:
        """Seconds of each chunk."""
        self._cache.add_sequence(sequence)
        ids = self._rng.integers(0, self._vocab, tokens, dtype=np.int32)
        moments = [time.perf_counter()]
        for begin in range(0, tokens, self.chunk):
            part = ids[begin : begin + self.chunk]
            self._step("prefill", [sequence], [len(part)], part)
            moments.append(time.perf_counter())
        return [b - a for a, b in pairwise(moments)]

    def _step(self, function: str, sequences: list[int], lengths: list[int], ids: np.ndarray) -> np.ndarray:
        """The likeliest next token of each sequence, i32 ``[len(sequences)]``; valid until the next call."""
        view = self._cache.begin_forward(sequences, lengths)
        _, best = self._program[function](ids, view)
        self._cache.end_forward()
        return best


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured.

    Attributes:
        definition: Its graph.
        compiled: Its code.
        program: Both, loaded with weights.
        was_compiled: Whether it had to be compiled.
        compile_s: What it took to compile it, or to load the code from the cache (weights come later).
        load_s: What it took to make the weights and to bring them into their layouts.
    """

    definition: ModelDefinition
    compiled: Compiled
    program: Program
    was_compiled: bool
    compile_s: float
    load_s: float


def open_subject(
    model: str | None, shape: str | None, options: Options, threads: int | None, work: Amounts
) -> Subject:
    """Compile and load a model folder, a named shape with random weights, or the demo model.

    Raises:
        UserError: the model cannot be read, or the workload does not fit its context.
    """
    definition = _define(model, shape, options)
    limit = definition.config["max_context"]
    if work.max_tokens > limit:  # type: ignore[operator]
        hint = "lower --prompt, --context or --decode" + (", or raise --max-context" if shape else "")
        raise UserError(f"bench: {work.max_tokens} tokens are needed, the context is {limit}; {hint}")
    compiled, was_compiled, compile_s = _compile(definition, options)
    start = time.perf_counter()
    params = random_params(definition) if shape else definition.load(Checkpoint(locate(model or DEMO_MODEL)))
    program = compiled.program(params, threads)
    return Subject(definition, compiled, program, was_compiled, compile_s, time.perf_counter() - start)


def _define(model: str | None, shape: str | None, options: Options) -> ModelDefinition:
    if shape is None or model is not None or options.max_context is None:
        return define_model(model, shape, options)
    values = shape_values(
        shape, options.max_context
    )  # a shape may be asked for a longer context than its own
    config = parse_config(values, f"shape {shape}", ReadOptions(max_context=options.max_context))
    return define(config, options, shape)


def _compile(definition: ModelDefinition, options: Options) -> tuple[Compiled, bool, float]:
    fresh: list[bool] = []  # the driver reports progress only when it compiles
    start = time.perf_counter()
    with compile_progress() as progress:

        def report(done: int, total: int, name: str, from_cache: bool) -> None:
            fresh.append(True)
            if progress is not None:
                progress(done, total, name, from_cache)

        compiled = compile_definition(definition, options, None, report)
    return compiled, bool(fresh), time.perf_counter() - start
