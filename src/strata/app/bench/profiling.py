"""``strata bench --profile``: where the time of prefill and decode goes."""

from __future__ import annotations

import numpy as np

from strata.app.machine import measure_ceilings
from strata.engine.forward import forward_pass
from strata.runtime.profile import Ceilings, Profile, profile

from .amounts import Amounts
from .ours import Subject

REPEATS = {"prefill": 3, "decode": 10}  # times of a repetition of the workload


def profiles(subject: Subject, work: Amounts) -> tuple[tuple[Profile, ...], Ceilings]:
    """Profile the last prefill pass of the prompt, and a decode step at the context: of one sequence, and of
    as many as are asked for.

    The sum of the nodes' times is that of a step, but for what a launch from Python adds to each.
    """
    program = subject.program
    ceilings = measure_ceilings(program.num_threads)
    vocab = program.record.config["vocab_size"]
    assert isinstance(vocab, int)
    found = []
    passes = [("prefill", work.prompt, 1)]
    passes += [("decode", work.context + 1, sequences) for sequences in sorted({1, work.batch})]
    for function, tokens, sequences in passes:
        ids = np.random.default_rng(0).integers(0, vocab, tokens, dtype=np.int32)
        forward = forward_pass(program, function, ids, computes_past=False, sequences=sequences)
        found.append(
            profile(
                forward.step,
                forward,
                repeats=REPEATS[function] * work.repeats,
                work_dims=forward.work_dims,
                ceilings=ceilings,
            )
        )
    return tuple(found), ceilings
