"""Models cross-compiled for AArch64 and run in an emulator: the same logits and tokens as here."""

from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tolerance
from emulated import CPUS, EmulatedImage, Emulator, needs_qemu
from small_models import Session

from strata.assets import DEMO_MODEL
from strata.compiler.api import Options, compile_definition
from strata.compiler.driver import Compiled
from strata.core.dtypes import bf16, f32
from strata.engine.kv_cache import BatchView, PagedKVCache
from strata.engine.tokenizer import Tokenizer
from strata.models import Checkpoint, ModelDefinition, build, random_params, read_config, shape_config
from strata.runtime.image import parse_image
from strata.runtime.program import Program
from strata.target import get_target

PROMPT = list(range(3, 40))
MORE = list(range(100, 119))


class ObservedCache(PagedKVCache):
    """Remembers the view of the current pass."""

    view: BatchView

    def begin_forward(self, seq_ids: Sequence[Hashable], lengths: Sequence[int]) -> BatchView:
        """The view."""
        self.view = super().begin_forward(seq_ids, lengths)
        return self.view


class EmulatedSession(Session):
    """A session whose program runs in an emulator."""

    def __init__(self, compiled: Compiled, params: dict[str, np.ndarray], emulator: Emulator) -> None:
        image = EmulatedImage(emulator, parse_image(compiled.image), self.pool)
        program = Program(compiled.record, image, dict(compiled.stored_params(iter(params.items()))))
        image.keep(program.params.values())
        super().__init__(program, 128, 16, ObservedCache)

    def pool(self) -> Iterator[np.ndarray]:
        """What the table of the cache points to."""
        assert isinstance(self.cache, ObservedCache)
        cache, view = self.cache, self.cache.view
        yield from (*cache.k_pages, *cache.v_pages, cache.rope_cos, cache.rope_sin)
        yield from (view.positions, view.slots, view.seq_ids, view.page_table, view.last_rows)


def emulated(definition: ModelDefinition, params: dict[str, np.ndarray], level: str, folder: Path) -> Session:
    compiled = compile_definition(definition, Options(), get_target(level))
    return EmulatedSession(compiled, params, Emulator(CPUS[level], folder))


def native(definition: ModelDefinition, params: dict[str, np.ndarray]) -> Session:
    return Session(compile_definition(definition, Options()).program(params, 1), 128, 16)


def logits(session: Session) -> np.ndarray:
    """Of prompts of two sequences in turn, and of a decoded token of each."""
    return np.concatenate([
        session.step("prefill", {0: PROMPT, 1: MORE}),
        session.step("decode", {0: [7], 1: [8]}),
        session.step("score", {0: MORE}),
    ])  # fmt: skip


@cache
def small_model(format_: str) -> tuple[ModelDefinition, dict[str, np.ndarray], np.ndarray]:
    """Graph, weights and logits of this machine."""
    definition = build(shape_config("tiny"), format_)
    params = dict(random_params(definition))
    return definition, params, logits(native(definition, params))


# Each format where a level has instructions of its own for it.
SMALL = (
    ("f32", "neon"),
    ("bf16", "neon"),
    ("bf16", "neon-i8mm"),
    ("int4", "neon-i8mm"),
    ("int8", "neon-dotprod"),
)


@needs_qemu
@pytest.mark.parametrize(("format_", "level"), SMALL)
def test_small_model(format_, level, tmp_path):
    definition, params, expected = small_model(format_)
    rms = float(np.sqrt(np.mean(expected**2)))
    limit = tolerance.for_model(f32 if format_ == "f32" else bf16, num_layers=2, logit_rms=rms)
    np.testing.assert_allclose(logits(emulated(definition, params, level, tmp_path)), expected, **limit)


@needs_qemu
def test_demo_model_says_the_same(tmp_path):
    definition = build(read_config(DEMO_MODEL), "bf16")
    params = dict(definition.load(Checkpoint(DEMO_MODEL)))
    prompt = Tokenizer.from_folder(DEMO_MODEL).encode("def read_lines(path):")
    said = []
    for session in (native(definition, params), emulated(definition, params, "neon-i8mm", tmp_path)):
        first = session.step("prefill", {0: prompt})[0]
        said.append(session.greedy(first, 12)[0])
    assert said[0] == said[1]
    assert len(set(said[0])) > 6
