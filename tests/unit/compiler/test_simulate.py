"""The demo model with products on photonic units: perplexity, sweeps, budgets."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import tolerance

from strata.assets import DEMO_MODEL
from strata.compiler.accuracy import (
    Sensitivity,
    SweepRow,
    front,
    kind_of,
    measure_sensitivity,
    sweep_numerics,
)
from strata.compiler.simulate import Simulator, photonic_works, simulate
from strata.core.dtypes import f32
from strata.core.errors import UserError
from strata.engine.scoring import token_divergences, token_nats
from strata.graph.interp import run
from strata.models import read_config
from strata.models.workload import model_workload
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.types import DeviceCandidate, Estimates, StackedGraph
from strata.planner.numerics import PhotonicNumerics
from strata.target.hardware import CPU, PHU, Converter, Machine

TOKENS = 64
IDEAL = PhotonicNumerics(dac_bits=None, weight_bits=None, adc_bits=None)
DOWN = tuple(f"model.layers.{k}.mlp.down_proj" for k in range(8))


@pytest.fixture(scope="module")
def simulator():
    return Simulator.open(DEMO_MODEL, tokens=TOKENS)


def numerics_of(bits, **options):
    return PhotonicNumerics(dac_bits=bits, weight_bits=bits, adc_bits=bits, tile_rows=64, **options)


def phu(bits=8, **options):
    dac, adc = Converter(bits=bits, j_per_sample=1e-12), Converter(bits=bits, j_per_sample=2e-12)
    return PHU(name="phu", clock_hz=1e9, rows=64, cols=64, **{"dac": dac, "adc": adc, **options})


def plan_of(machine, on_photonics):
    """A plan that puts the works that ``on_photonics`` accepts on the unit: 1 J each; others take 2 J."""
    workload = model_workload(read_config(DEMO_MODEL), name="demo")
    points = {d.name: np.array([256]) for d in workload.dims}

    def candidates(work):
        devices = [d.name for d in machine.devices if not isinstance(d, PHU) or on_photonics(work)]
        return tuple(
            DeviceCandidate(
                name, name, machine.home, Estimates(np.ones(1), np.array([2.0 - (name == "phu")]))
            )
            for name in devices
        )

    stacks = tuple(map(candidates, workload.works))
    choices = np.array([[len(s) - 1] for s in stacks], np.int16)
    graph, energies = StackedGraph(workload, machine, points, stacks), np.array([2.0 * len(stacks)])
    return MachinePlan(graph, parse_objective("energy"), choices, energies, energies, energies, energies)


# --- simulation -----------------------------------------------------------------------------------


def test_the_exact_perplexity_is_that_of_the_graph(simulator):
    view = simulator.cache.view([0], [TOKENS])
    logits = run(simulator.function, [simulator.ids[:-1], view], simulator.params)[0]
    nats = token_nats(logits, simulator.ids[1:])
    found = simulator.run({})
    assert found.num_tokens == TOKENS == len(nats)
    assert found.exact_perplexity == pytest.approx(float(np.exp(nats.mean())), rel=1e-5)
    assert found.perplexity == found.exact_perplexity
    assert (found.loss_nats, found.divergence_nats) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert (found.photonic, found.num_products) == ((), 49)


def test_ideal_numerics_give_the_exact_perplexity(simulator):
    found = simulator.run(dict.fromkeys(simulator.products, IDEAL))
    # A change of all logits by up to d changes a log likelihood by up to 2 d; d is that of two f32 programs.
    view = simulator.cache.view([0], [TOKENS])
    logits = run(simulator.function, [simulator.ids[:-1], view], simulator.params)[0]
    limit = 2 * tolerance.for_model(f32, 8, float(np.sqrt(np.square(logits).mean())))["atol"]
    assert found.perplexity == pytest.approx(found.exact_perplexity, rel=limit)
    assert found.photonic == simulator.products
    assert len(found.photonic) == 49


def test_fewer_bits_predict_worse(simulator):
    found = [simulator.run(dict.fromkeys(simulator.products, numerics_of(n))) for n in (3, 5, 8, 12)]
    divergences = [f.divergence_nats for f in found]
    assert all(worse > 4 * better for worse, better in itertools.pairwise(divergences))
    three, twelve = found[0], found[-1]
    assert three.perplexity > 5 * three.exact_perplexity
    assert three.loss_nats > 10 * three.loss_error_nats
    assert twelve.perplexity == pytest.approx(twelve.exact_perplexity, rel=2e-3)
    assert three.loss_nats == pytest.approx(math.log(three.perplexity / three.exact_perplexity))


def test_one_seed_gives_one_result_whatever_else_was_run(simulator):
    noisy = dict.fromkeys(DOWN, numerics_of(8, noise_additive=0.02))
    first = simulator.run(noisy, seed=3)
    simulator.run({"model.layers.0.self_attn.scores": numerics_of(4)})
    assert simulator.run(noisy, seed=3) == first
    assert simulator.run(noisy, seed=4).loss_nats != first.loss_nats
    fresh = simulate(DEMO_MODEL, dict.fromkeys(DOWN, phu(noise_additive=0.02)), tokens=TOKENS, seed=3)
    assert fresh == first
    given = simulate(DEMO_MODEL, dict.fromkeys(DOWN, phu()), numerics=noisy[DOWN[0]], tokens=TOKENS, seed=3)
    assert given == first


def test_progress_counts_windows():
    seen = []
    simulator = Simulator.open(DEMO_MODEL, tokens=300)
    found = simulator.run({DOWN[0]: numerics_of(8)}, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]
    assert found.num_tokens == 300


def test_a_plan_is_simulated_as_it_is():
    machine = Machine([CPU(clock_hz=1e9), phu(6)])
    plan = plan_of(machine, lambda work: work.contraction is not None and "mlp" in work.name)
    works = photonic_works(plan)
    assert set(works) == {
        f"model.layers.{k}.mlp.{n}" for k in range(8) for n in ("gate_up_proj", "down_proj")
    }
    assert all(unit.dac.bits == 6 for unit in works.values())
    found = simulate(DEMO_MODEL, plan, tokens=TOKENS)
    assert set(found.photonic) == set(works)
    assert found.divergence_nats > 0


def test_products_have_the_names_of_works(simulator):
    workload = model_workload(read_config(DEMO_MODEL), name="demo")
    assert simulator.products == tuple(w.name for w in workload.works if w.contraction is not None)


def test_plans_that_cannot_be_simulated(simulator):
    machine = Machine([CPU(clock_hz=1e9), phu()])
    plan = plan_of(machine, lambda work: work.op == "softmax")
    with pytest.raises(
        UserError, match=r"0\.self_attn\.softmax: softmax runs on phu; expected matrix products"
    ):
        simulate(DEMO_MODEL, plan)
    with pytest.raises(
        UserError, match=r"'no_head' is no matrix product of this model; it has 49: model.layers"
    ):
        simulator.run({"no_head": IDEAL})
    with pytest.raises(UserError, match="seed: got -1; expected 0 or more"):
        simulator.run({}, seed=-1)


def test_texts_that_cannot_be_predicted(tmp_path):
    with pytest.raises(UserError, match="got 0 tokens to predict; expected 1 or more"):
        Simulator.open(DEMO_MODEL, tokens=0)
    with pytest.raises(UserError, match=r"missing\.txt: cannot read the text"):
        Simulator.open(DEMO_MODEL, text=tmp_path / "missing.txt")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match=r"bad\.txt: cannot read the text"):
        Simulator.open(DEMO_MODEL, text=tmp_path / "bad.txt")
    (tmp_path / "short.txt").write_text("x = 1")  # nothing after it to calibrate with
    short = Simulator.open(DEMO_MODEL, text=tmp_path / "short.txt")
    assert short.run({DOWN[0]: numerics_of(8)}).num_tokens == len(short.ids) - 1


def test_divergence_is_that_of_kullback_and_leibler():
    rng = np.random.default_rng(0)
    exact, other = rng.standard_normal((2, 6, 40)).astype(np.float32) * 3
    p, q = (np.exp(x.astype(np.float64)) for x in (exact, other))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert token_divergences(exact, other) == pytest.approx((p * np.log(p / q)).sum(1), rel=1e-5)
    assert token_divergences(exact, exact + 7) == pytest.approx(np.zeros(6), abs=1e-6)


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_has_energy_and_perplexity_of_every_setting():
    machine, seen = Machine([CPU(clock_hz=1e9), phu(8)]), []
    rows = sweep_numerics(
        DEMO_MODEL,
        machine,
        bits=(4, 9),
        noise=(0.0, 0.05),
        tokens=TOKENS,
        progress=lambda *step: seen.append(step),
        objective="energy",
        pins={"*_proj": "phu", "*.scores": "cpu", "*.mix": "cpu", "lm_head": "cpu"},
    )
    assert [(r.bits, r.noise) for r in rows] == [(4, 0.0), (4, 0.05), (9, 0.0), (9, 0.05)]
    assert all(r.num_photonic == 32 and 0 < r.conversion_j < r.energy_j and r.time_s > 0 for r in rows)
    # The energy per conversion doubles with every bit, and nothing else changes.
    assert rows[2].conversion_j == pytest.approx(32 * rows[0].conversion_j)
    assert rows[2].energy_j - rows[2].conversion_j == pytest.approx(rows[0].energy_j - rows[0].conversion_j)
    assert [rows[0].energy_j, rows[2].energy_j] == [rows[1].energy_j, rows[3].energy_j]
    divergences = {(r.bits, r.noise): r.divergence_nats for r in rows}
    assert divergences[9, 0.0] < divergences[4, 0.0] < divergences[4, 0.05]
    assert divergences[9, 0.0] < divergences[9, 0.05]
    assert [s[:2] for s in seen] == [(k, 4) for k in range(4)]
    assert seen[1][2] == "4 bits, noise 0.05"


def test_the_front_has_no_row_that_another_of_its_noise_beats():
    def row(energy_j, divergence_nats, noise=0.0):
        return SweepRow(8, noise, energy_j, 1.0, 0.1, 49, 11.0, 10.0, 0.1, 0.01, divergence_nats)

    rows = [
        row(3, 0.10),
        row(1, 0.30),
        row(2, 0.30),
        row(2, 0.12),
        row(4, 0.10),
        row(5, 0.09),
        row(5, 0.5, 0.1),
    ]
    assert [(r.energy_j, r.divergence_nats) for r in front(rows)] == [
        (1, 0.30),
        (2, 0.12),
        (3, 0.10),
        (5, 0.09),
        (5, 0.5),
    ]
    assert front([]) == ()


def test_sweeps_that_make_no_sense():
    with pytest.raises(UserError, match=r"machine custom: no photonic unit; it has cpu \(cpu\)"):
        sweep_numerics(DEMO_MODEL, Machine([CPU(clock_hz=1e9)]))
    free = Converter(bits=8, j_per_sample=0.0)
    for part, converter, got in (
        ("dac", None, "none"),
        ("adc", None, "none"),
        ("adc", free, "one of 0 J per"),
    ):
        machine = Machine([CPU(clock_hz=1e9), phu(**{part: converter})])
        with pytest.raises(
            UserError, match=f"device phu: {part}: got {got}.*: what its bits cost is unknown"
        ):
            sweep_numerics(DEMO_MODEL, machine)
    machine = Machine([CPU(clock_hz=1e9), phu()])
    for options in ({"seq_len": "8,16"}, {"seq_len": 8, "new_tokens": 2}):
        with pytest.raises(UserError, match="sweep: got several lengths or runs; expected the plan of one"):
            sweep_numerics(DEMO_MODEL, machine, tokens=8, **options)


# --- budgets --------------------------------------------------------------------------------------


def test_losses_of_kinds_of_products_add_up(simulator):
    machine, seen = Machine([CPU(clock_hz=1e9), phu(6, noise_additive=0.01)]), []
    found = measure_sensitivity(simulator, machine, progress=lambda *step: seen.append(step))
    assert [g.group for g in found.groups] == list(dict.fromkeys(map(kind_of, simulator.products)))
    assert [len(g.products) for g in found.groups] == [8, 8, 8, 8, 8, 8, 1]
    assert [s[:2] for s in seen] == [(k, 8) for k in range(8)]
    # Second-order terms and the spread over 64 tokens: the tests' bound is wider than what a long text shows.
    assert 0.7 < found.additivity("phu") < 1.5
    losses = found.losses()
    assert set(losses) == {(name, "phu") for name in simulator.products}
    assert all(loss > 0 for loss in losses.values())
    assert sum(losses.values()) == pytest.approx(found.sum_nats("phu"))
    alone = simulator.run(dict.fromkeys(DOWN, numerics_of(6, noise_additive=0.01)))
    assert losses[DOWN[3], "phu"] == pytest.approx(alone.divergence_nats / 8)


def test_groups_are_the_users_and_every_unit_is_measured(simulator):
    short = replace(simulator, ids=simulator.ids[:9], _exact=[])
    machine = Machine([phu(), replace(phu(4), name="coarse")])
    found = measure_sensitivity(short, machine, group=lambda name: "mlp" if "mlp" in name else "rest")
    assert [(g.device, g.group, len(g.products)) for g in found.groups] == [
        ("phu", "rest", 33),
        ("phu", "mlp", 16),
        ("coarse", "rest", 33),
        ("coarse", "mlp", 16),
    ]
    assert found.together["coarse"].divergence_nats > found.together["phu"].divergence_nats
    assert found.sum_nats("coarse") > found.sum_nats("phu")


def test_units_that_cost_nothing_add_up():
    assert Sensitivity((), {}).additivity("phu") == 1.0


def test_sensitivity_needs_a_photonic_unit(simulator):
    with pytest.raises(UserError, match=r"machine custom: no photonic unit; it has cpu \(cpu\)"):
        measure_sensitivity(simulator, Machine([CPU(clock_hz=1e9)]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.12.mlp.down_proj", "model.layers.*.mlp.down_proj"),
        ("transformer.h.3.attn.scores", "transformer.h.*.attn.scores"),
        ("lm_head", "lm_head"),
        ("fc1", "fc1"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind
