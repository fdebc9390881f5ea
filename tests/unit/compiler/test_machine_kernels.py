"""A plan for a calibrated machine is the dispatch table of the compiled model."""

from dataclasses import replace

import numpy as np
import pytest

from strata.compiler.api import Options, define, plan_options
from strata.compiler.driver import trace
from strata.compiler.machine_kernels import for_machine
from strata.core.errors import UserError
from strata.graph.works import Phase
from strata.models.shapes import shape_config
from strata.models.workload import Granularity, model_workload
from strata.planner.devices.build import stacked_graph
from strata.planner.options import Pin, PlanOptions
from strata.planner.thresholds import plan_ranges
from strata.target.hardware import Machine, Memory
from strata.target.hardware.fitted import Family, FittedCPU, Knot

CONFIG = shape_config("tiny")
OPTIONS = Options("f32", max_context=64, prefill_chunk=64)
FIRST, SECOND = 5, 23  # rows from which on another kernel is the fastest one


def planned(options):
    definition = define(CONFIG, options)
    return trace(definition.module, None, definition.cache_record).lower(options.passes).plan(options.plan)


def products(plan):
    """Products of the layers, in all functions: they choose by the rows of a pass."""
    every = [x for f in plan.functions for x in f.launches if x.node.startswith("model.layers")]
    return [x for x in every if len(x.stack.candidates) > 2]


@pytest.fixture(scope="module")
def kernels():
    """Three candidates of the products of this machine."""
    (names,) = {tuple(c.name for c in x.stack.candidates)[:3] for x in products(planned(OPTIONS))}
    return names


def knot(rows, time_s):
    return Knot(rows=rows, launch_s=time_s, weight_reads=0, s_per_byte=0, s_per_flop=0)


def machine(kernels, first=FIRST, second=SECOND):
    """One kernel is the fastest below ``first`` rows, another one from ``second`` rows on."""
    times = [(1.0, 9.0, 9.0), (2.0, 2.0, 9.0), (3.0, 3.0, 3.0)]
    rows = [(1, first - 1, first), (1, second - 1, second), (1, 2, 64)]
    families = [
        Family(
            op="matmul",
            kernel=kernel,
            weight_bits=32,
            knots=tuple(knot(r, t) for r, t in zip(at, (ts[0], ts[0], ts[2]), strict=True)),
        )
        for kernel, at, ts in zip(kernels, rows, times, strict=True)
    ]
    rest = Family(op="*", weight_bits=0, knots=(knot(1, 1.0),))
    dram = Memory(
        name="dram", capacity_bytes=1e9, bandwidth_bytes_per_s=1e9, read_j_per_byte=0, write_j_per_byte=0
    )
    cpu = FittedCPU(clock_hz=1e9, families=(*families, rest))
    return Machine([cpu], name="mine", profile="fitted", memories=[dram])


def test_thresholds_of_the_plan_are_those_of_the_code(kernels):
    options = for_machine(CONFIG, OPTIONS, machine(kernels))
    found = products(planned(options))
    assert len(found) >= 3 * 4 * CONFIG.num_layers  # prefill, decode and score have them all
    for launch in found:
        chosen = [
            next(
                launch.stack.candidates[c.candidate].name
                for c in launch.choices
                if all(r.lo <= rows <= r.hi for r in c.when)
            )
            for rows in range(1, 65)
        ]
        starts = [k + 1 for k in range(64) if k == 0 or chosen[k] != chosen[k - 1]]
        assert dict(zip(starts, dict.fromkeys(chosen), strict=True)) == dict(
            zip((1, FIRST, SECOND), kernels, strict=True)
        )


def test_they_are_what_thresholds_prints(kernels):
    workload = model_workload(
        CONFIG, Phase.PREFILL, 1, "f32", granularity=Granularity.KERNELS, max_context=64
    )
    ranges = plan_ranges(workload, machine(kernels), "time", 1, 64)
    assert ranges.starts == (1, FIRST, SECOND)
    graph = stacked_graph(workload, machine(kernels), {"L": np.array([1])})
    (stack,) = {
        tuple(c.name for c in s)
        for s, w in zip(graph.stacks, workload.works, strict=True)
        if w.op == "matmul"
    }
    assert stack == kernels


def test_nothing_is_left_of_the_call_before(kernels):
    first = for_machine(CONFIG, OPTIONS, machine(kernels))
    for_machine(CONFIG, OPTIONS, machine(kernels, 9, 40))
    assert for_machine(CONFIG, OPTIONS, machine(kernels)) == first


def test_pins_of_the_user_go_first(kernels):
    own = Options(
        "f32", max_context=64, prefill_chunk=64, plan=PlanOptions(pins=(Pin("matmul", kernels[2]),))
    )
    options = for_machine(CONFIG, own, machine(kernels))
    assert options.plan.pins[0] == Pin("matmul", kernels[2])
    for launch in products(planned(options)):
        (choice,) = launch.choices
        assert launch.stack.candidates[choice.candidate].name == kernels[2]


def test_the_same_by_hand(kernels):
    pins = {f"*.mlp.gate_up_proj@1..{FIRST}": kernels[2], "matmul": kernels[0]}
    plan = planned(replace(OPTIONS, plan=plan_options(pins=pins)))
    for launch in (x for x in products(plan) if x.node.endswith("gate_up_proj")):
        names = [launch.stack.candidates[c.candidate].name for c in launch.choices]
        assert names == [kernels[2], kernels[0]]
        assert (launch.choices[0].when[0].lo, launch.choices[0].when[0].hi) == (1, FIRST)
    with pytest.raises(UserError, match="expected NODE=CANDIDATE or NODE@LO"):
        plan_options(pins={"matmul@8..1": kernels[0]})


def test_bad_input(kernels):
    with pytest.raises(
        UserError, match="machine lightcode: its profile is lightcode, whose candidates are no kernels"
    ):
        for_machine(CONFIG, OPTIONS, "lightcode")
    with pytest.raises(UserError, match="expected a sum of time and energy"):
        for_machine(CONFIG, OPTIONS, machine(kernels), "edp")
    unfused = Options("f32", max_context=64, pipeline="canonicalize,legalize,fuse{max_ops=1}")
    with pytest.raises(
        UserError, match=r"machine mine: got \d+ launches of model; expected the \d+ of the default"
    ):
        for_machine(CONFIG, unfused, machine(kernels))
    with pytest.raises(UserError, match=r"no such candidate; there are cpu\."):
        planned(for_machine(CONFIG, OPTIONS, machine(("cpu.none", *kernels[1:]))))
