"""The demo model with products on photonic units."""

import numpy as np
import pytest
import tolerance

from strata.assets import DEMO_MODEL
from strata.compiler.simulate import Simulator, photonic_works, simulate
from strata.core.errors import UserError
from strata.planner.numerics import PhotonicNumerics
from strata.target.hardware import PHU, Converter

TOKENS = 96
IDEAL = PhotonicNumerics(dac_bits=None, weight_bits=None, adc_bits=None)


@pytest.fixture(scope="module")
def simulator():
    return Simulator.open(DEMO_MODEL, tokens=TOKENS)


def bits(count, **options):
    return PhotonicNumerics(dac_bits=count, weight_bits=count, adc_bits=count, tile_rows=64, **options)


def test_the_exact_perplexity_is_that_of_the_graph(simulator):
    from strata.engine.scoring import token_nats
    from strata.graph.interp import run

    view = simulator.cache.view([0], [TOKENS])
    logits = run(simulator.function, [simulator.ids[:-1], view], simulator.params)[0]
    nats = token_nats(logits, simulator.ids[1:])
    found = simulator.run({})
    assert found.num_tokens == TOKENS == len(nats)
    assert found.exact_perplexity == pytest.approx(float(np.exp(nats.mean())), rel=1e-5)
    assert found.perplexity == found.exact_perplexity
    assert (found.loss_nats, found.photonic, found.num_products) == (0.0, (), 49)
