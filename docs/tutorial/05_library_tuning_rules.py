# %% [markdown]
# # Library, tuning and default rules on one network
#
# A network of two layers, 784-256-10. Its first matmul goes to a library, the rest is tuned, and what nobody
# cares about takes the default rules. Every cell runs: `python docs/tutorial/05_library_tuning_rules.py`.

# %%
from pathlib import Path

import numpy as np

import strata
from strata import nn

# %%


class MLP(nn.Module):
    def __init__(self) -> None:
        self.fc1, self.fc2 = nn.Linear(784, 256), nn.Linear(256, 10)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.fc2(nn.op.relu(self.fc1(x)))


exported = MLP().export({"forward": {"x": nn.spec.Tensor(["n", 784], "float32")}})
rng = np.random.default_rng(0)
params = {
    name: rng.standard_normal(type_.shape, dtype=np.float32) * 0.05
    for name, type_ in exported.module.params.items()
}

# %% [markdown]
# ## Tuning
#
# A few trials only; `trials=200` finds more. Records go into a file that every later compilation reads, and
# the default schedules are records too: what is tuned is never slower than what is not.

# %%
records = Path("mlp.jsonl")
report = strata.tune(exported, trials=8, time_s=20, database=records)
for result in report.results:
    print(f"{result.task}: {result.untuned_s * 1e6:.1f} us -> {result.tuned_s * 1e6:.1f} us")

# %% [markdown]
# ## One plan from three sources
#
# The library for the first layer because someone says so, records of the tuner where there are some, and
# rules for the rest.

# %%
program = strata.compile(
    exported, params, pins={"fc1*": "openblas"}, options=strata.PlanOptions(database=records)
)
for node in program.nodes("forward"):
    print(node.name, [c.name for c in node.candidates], "->", node.chosen({"n": 32}).name)

x = rng.standard_normal((32, 784), dtype=np.float32)
hidden = np.maximum(x @ params["fc1.weight"].T + params["fc1.bias"], 0)
want = hidden @ params["fc2.weight"].T + params["fc2.bias"]
np.testing.assert_allclose(program["forward"](x), want, rtol=1e-4, atol=1e-4)
