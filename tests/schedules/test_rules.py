"""What the rules propose for typical groups: ``rules/*.txt`` holds a group and the traces of its candidates.

``UPDATE_GOLDEN=1 pytest tests/schedules/test_rules.py`` writes the traces anew.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import tolerance
from equivalence import random_values

from strata.core.dims import evaluate
from strata.core.dtypes import dtype
from strata.core.errors import LegalityError
from strata.graph.cache_value import CacheValue
from strata.graph.interp import run as run_graph
from strata.graph.nodes import Function
from strata.graph.text import parse_function, print_function
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.interp import run
from strata.loop.layout import Layout
from strata.loop.nodes import Func
from strata.loop.text import canonical_text
from strata.loop.values import numpy_dtype
from strata.lower import Lowered, lower_group
from strata.schedule import apply_trace, finalize, propose
from strata.schedule.rules import ALTERNATIVES, ORDER, RULES
from strata.schedule.rules.matmul import weight_layout
from strata.target import Target, get_target

FILES = sorted((Path(__file__).parent / "rules").glob("*.txt"))
TARGETS = [get_target(name) for name in ("zen5", "avx2")]
MARK = "\n==>\n"
PAGES = ("k_pages", "v_pages")


def stored_layouts(body: Function, target: Target) -> dict[int, Layout]:
    """Layouts of 2-d right operands of matmuls called w, as the planner stores weights."""
    found: dict[int, Layout] = {}
    for node in body.nodes:
        if node.op == "matmul" and node.inputs[1] in body.inputs and node.inputs[1].tensor.rank == 2:
            weight, transposed = node.inputs[1], not node.attrs["transpose_b"]
            if weight.attrs["name"] != "w":
                continue
            contracted = weight.tensor.shape[0 if transposed else 1]
            layout = weight_layout(weight.tensor.dtype, contracted, transposed, target)
            found[body.inputs.index(weight)] = layout
    return found


def lowered_group(body: Function, target: Target) -> Lowered:
    return lower_group("group", body, stored_layouts(body, target))


def proposals_text(body: Function) -> str:
    """Candidates and their steps, per target."""
    lines: list[str] = []
    for target in TARGETS:
        lines.append(f"{target.name}:")
        for proposal in propose(lowered_group(body, target).func, target):
            lines.append(f"  {proposal.name}")
            lines.extend(f"    {step}" for step in proposal.trace)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_proposals(path: Path) -> None:
    before, _, after = path.read_text().partition(MARK)
    body = parse_function(before)
    assert print_function(body).strip() == before.strip()
    text = proposals_text(body)
    if "UPDATE_GOLDEN" in os.environ:
        path.write_text(f"{before.rstrip()}\n{MARK}\n{text}")
        return
    assert text.strip() == after.strip()
    assert proposals_text(body) == text


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_proposals_compute_the_group(path: Path, target: Target) -> None:
    body = parse_function(path.read_text().partition(MARK)[0])
    lowered = lowered_group(body, target)
    for proposal in propose(lowered.func, target):
        again = finalize(apply_trace(lowered.func, proposal.trace))
        assert canonical_text(again) == canonical_text(proposal.func)
        check(proposal.func, LOOP_LOWERED)
        for tokens in (1, 3, 9):
            assert_computes(body, proposal.func, lowered, target, tokens)


def assert_computes(body: Function, func: Func, lowered: Lowered, target: Target, tokens: int) -> None:
    """The interpreter of the graph and that of the loops agree."""
    operands, _ = random_values(body, {"n": tokens}, np.random.default_rng(tokens))
    (expected,) = run_graph(body, operands, {})
    layouts, arrays, results = stored_layouts(body, target), [], []
    sizes = {"n": tokens} | next((dict(x.dims) for x in operands if isinstance(x, CacheValue)), {})
    for param, binding in zip(func.params, lowered.bindings, strict=True):
        if binding.operand < 0:
            shape = tuple(evaluate(d, sizes) for d in param.shape)
            arrays.append(np.zeros(shape, numpy_dtype(param.dtype)))
            results.append((arrays[-1], expected))
        elif binding.field in PAGES:
            arrays.append(np.array(operands[binding.operand][binding.field][0]))
            if isinstance(expected, CacheValue):
                results.append((arrays[-1], expected[binding.field][0]))
        else:
            value, layout = operands[binding.operand], layouts.get(binding.operand)
            value = value[binding.field] if binding.field else value
            arrays.append(np.array(value if layout is None else layout.pack(value)))
    known = {d.name for d in func.dims}
    run(func, arrays, {k: v for k, v in sizes.items() if k in known}, parallel_seed=3)
    assert results
    for got, wanted in results:
        limit = tolerance.for_(dtype(wanted.dtype.name), 256)
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), **limit)


def test_rules_are_tried_in_order() -> None:
    assert set(RULES) == set(ORDER)
    assert set(ALTERNATIVES) <= set(ORDER)
    body = parse_function(next(p for p in FILES if p.stem == "softmax").read_text().partition(MARK)[0])
    func = lowered_group(body, TARGETS[0]).func
    claims = [name for name in ORDER if RULES[name](func, TARGETS[0])]
    assert claims == ["rows", "fallback"]


def test_what_no_rule_takes_stays_compilable(monkeypatch) -> None:
    """Rules that decline, or trip over a step, leave a function to the last one."""
    body = parse_function(next(p for p in FILES if p.stem == "softmax").read_text().partition(MARK)[0])
    lowered = lowered_group(body, TARGETS[0])

    def trips(func: Func, target: Target) -> None:
        raise LegalityError("split: no")

    monkeypatch.setattr(RULES, "_items", {**dict(RULES.items()), "rows": trips})
    (proposal,) = propose(lowered.func, TARGETS[0])
    assert proposal.name == "cpu.fallback"
    assert_computes(body, proposal.func, lowered, TARGETS[0], 5)
