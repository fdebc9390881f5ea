"""Numbers of layers, found where a graph repeats itself.

A decoder is a prefix, then the same works again and again, then a suffix. Its matrix products tell the
period: the run of products that repeats most of the graph. A layer begins before its first product, as far
back as the first two layers agree, and ends where the next one begins.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import pairwise

from strata.graph.workload import Value, Work


def infer_layers(values: Sequence[Value], works: Sequence[Work]) -> tuple[Work, ...]:
    """``works`` with their ``layer``; unchanged if nothing repeats."""
    signs = [_sign(values, work) for work in works]
    products = [k for k, work in enumerate(works) if work.contraction is not None]
    period, first, count = _repeat([signs[k] for k in products])
    if count < 2:
        return tuple(works)
    heads = [products[first + n * period] for n in range(count)]
    back = 0
    while back < heads[0] and signs[heads[0] - back - 1] == signs[heads[1] - back - 1]:
        back += 1
    begins = [head - back for head in heads]
    begins.append(min(2 * begins[-1] - begins[-2], len(works)))
    numbers: list[int | None] = [None] * len(works)
    for layer, (begin, end) in enumerate(pairwise(begins)):
        numbers[begin:end] = [layer] * (end - begin)
    return tuple(replace(work, layer=layer) for work, layer in zip(works, numbers, strict=True))


def _sign(values: Sequence[Value], work: Work) -> Hashable:
    """Equal for works that do the same in two layers."""
    inputs = tuple((values[k].kind, values[k].shape) for k in work.inputs)
    return (work.op, inputs, tuple(values[k].shape for k in work.outputs))


def _repeat(signs: Sequence[Hashable]) -> tuple[int, int, int]:
    """Period, begin and number of the repeats that cover most of ``signs``; of equal ones, the shortest."""
    best = (0, 0, 0)
    for period in range(1, len(signs) // 2 + 1):
        run = 0  # how many signs in a row equal the one a period later
        for k in range(len(signs) - period + 1):
            if k + period < len(signs) and signs[k] == signs[k + period]:
                run += 1
                continue
            count = run // period + 1
            if count > 1 and count * period > best[0] * best[2]:
                best = (period, k - run, count)
            run = 0
    return best
