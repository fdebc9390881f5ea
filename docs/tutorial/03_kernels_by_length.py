# %% [markdown]
# # Kernels by sequence length
#
# A symbolic size has a range. All kernels for it are compiled ahead; the compiled entry jumps to the right
# one at each call. A new length never compiles anything. Every cell runs:
# `python docs/tutorial/03_kernels_by_length.py`.

# %%
import time

import numpy as np

import strata
from strata import nn
from strata.compiler.driver import trace
from strata.planner.dispatch import dispatch_table

# %% [markdown]
# ## A layer for 1 to 256 rows


# %%
class Layer(nn.Module):
    def __init__(self) -> None:
        self.proj = nn.Linear(512, 768, bias=False)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return nn.op.silu(self.proj(x))


exported = Layer().export({"forward": {"x": nn.spec.Tensor(["n", 512], "float32")}})
passes = "set_range{dim=n,lo=1,hi=256},default"


def table(options: strata.PlanOptions) -> None:
    planned = trace(exported.module).lower(passes).plan(options)
    for entry in dispatch_table(planned.functions[0].launches):
        for r in entry.ranges:
            print(f"{entry.op} {entry.dim} = {r.lo}..{r.hi}: {r.candidate}")


# %% [markdown]
# Without measuring, the switch points come from a cost model; with `measure` from the clock of this machine
# (closely spaced where the fastest kernel changes, and remembered). `sizes` asks for kernels of single sizes.

# %%
table(strata.PlanOptions())
measured = strata.PlanOptions(measure=True, sizes=(("n", (1, 16)),))
table(measured)

# %% [markdown]
# The same on the command line, with both curves drawn:
# `strata plan MODEL --dispatch --measure --plot plan.svg --range n=1..256` (a set of sizes: `n=1,16,256`).

# %%
w = np.random.default_rng(0).standard_normal((768, 512), dtype=np.float32) / 16
program = strata.compile(exported, {"proj.weight": w}, pipeline=passes, options=measured)
forward = program["forward"]

for rows in (1, 2, 15, 16, 17, 100, 256):
    x = np.random.default_rng(rows).standard_normal((rows, 512), dtype=np.float32)
    y = x @ w.T
    np.testing.assert_allclose(forward(x), y / (1 + np.exp(-y)), rtol=1e-3, atol=1e-3)
    start = time.perf_counter()
    forward(x)
    kernel = program.nodes("forward")[0].chosen({"n": rows}).name
    print(f"{rows:4} rows: {(time.perf_counter() - start) * 1e6:7.1f} us by {kernel}")
