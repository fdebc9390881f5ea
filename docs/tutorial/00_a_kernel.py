# %% [markdown]
# # A kernel
#
# Write a kernel in Python, look at it, run it, compile it, call it; then make one fast. Every cell runs:
# `python docs/tutorial/00_a_kernel.py`.

# %%
import timeit

import numpy as np
import torch

import strata
from strata import nn
from strata.compiler.driver import trace
from strata.core.errors import ParseError
from strata.frontend.nn import spec
from strata.planner.options import PlanOptions, parse_pin
from strata.script import Out, block, f32, grid, init, reduce

# %% [markdown]
# ## b[i] = a[i] + 1
#
# The annotations are the types of the parameters: eight floats come in, eight go out.


# %%
@strata.kernel
def add_one(a: f32[8], b: Out[f32[8]]):
    for i in grid(8):
        b[i] = a[i] + 1.0


# %% [markdown]
# The kernel is a *loop function*. Its text is exact and parses back, so numbers are hexadecimal.

# %%
print(add_one)

# %% [markdown]
# The interpreter says what it means; the compiler has to agree. The first call compiles for the instructions
# of this CPU, a later one takes about 2 µs. Outputs that are left out are allocated.

# %%
a = np.arange(8, dtype=np.float32)
print(add_one.interpret(a))
print(add_one(a))
np.testing.assert_array_equal(add_one(a), a + 1)

# %% [markdown]
# PyTorch tensors are used where they are, without a copy, and so is an output that is handed in.

# %%
t, out = torch.arange(8.0), torch.empty(8)
add_one(t, out)
print(out)
assert out.equal(t + 1)

# %% [markdown]
# Mistakes show where they are. Whether an index can leave its buffer is proved where that is possible.

# %%
try:

    @strata.kernel
    def shift(a: f32[8], b: Out[f32[8]]):
        for i in grid(8):
            b[i] = a[i + 1]

except ParseError as error:
    print(error)

# %% [markdown]
# ## A matrix product
#
# `n` is a size that stays open until the call. The loops over `i`, `j` and `k` are around a *block*, the unit
# that a schedule moves: `k` is a reduction axis, and `init` comes before its first iteration.

# %%
n = strata.dim("n", 1, 4096)


@strata.kernel
def dense(x: f32[n, 256], w: f32[256, 512], y: Out[f32[n, 512]]):
    for i, j, k in block("dense", n, 512, reduce(256)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, k] * w[k, j]


print(dense)

rng = np.random.default_rng(0)
x = rng.standard_normal((100, 256), dtype=np.float32)
w = rng.standard_normal((256, 512), dtype=np.float32)
np.testing.assert_allclose(dense(x, w), x @ w, rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## A schedule
#
# Blocks that nobody scheduled are scheduled by rules for this machine, so `dense` is fast as it is. A
# schedule of one's own changes *how*, never *what*: each step checks that it is legal, and shows the place if
# it is not. This one keeps a tile of 4 x 64 results in registers while `k` runs, and gives each thread
# columns of its own.


# %%
def tiles(s: strata.Schedule) -> None:
    s.cache_write("dense")  # the sums go to a buffer first, and a block "dense_y" copies them
    s.tile(i=4, j=64).reorder("jo", "io", "k", "ii", "ji")
    s.reverse_compute_at("dense_y", "io", "register")  # that buffer is one tile, in registers
    s.decompose_reduction("dense", "k")  # zeros before the loop over k
    for i, j in (("ii_init", "ji_init"), ("ii", "ji"), ("dense_y_i0", "dense_y_i1")):
        s.split(j, 16).vectorize(j + "i").unroll(i, j + "o")
    s.parallel("jo")


fast = dense.schedule(tiles)
print(fast)
np.testing.assert_allclose(fast(x, w), x @ w, rtol=1e-4, atol=1e-4)

# %% [markdown]
# From the loops as they stand to the class of the library behind NumPy:

# %%
y = np.empty((100, 512), np.float32)
runs = {
    "as it stands": dense.schedule(""),  # no steps
    "with tiles": fast,
    "by rules": dense,
    "NumPy": lambda x, w, y: np.matmul(x, w, out=y),
}
for name, run in runs.items():
    run(x, w, y)
    seconds = min(timeit.repeat(lambda run=run: run(x, w, y), number=3, repeat=5)) / 3
    print(f"{name:12} {2 * 100 * 256 * 512 / seconds / 1e9:7.1f} GFLOP/s")

# %% [markdown]
# What the steps were is data; `fast.asm()` is what the machine runs. Steps replay on another kernel with the
# same loops.

# %%
print(*fast.trace, sep="\n")
print("fused multiply-adds in the code:", fast.asm().count("vfmadd"))
assert str(dense.schedule(fast.trace)) == str(fast)

# %% [markdown]
# ## In a model
#
# A kernel is a *candidate* for any op that it declares to compute. Before its first use it runs on random
# operands, beside the op's NumPy reference. Then it is chosen by its cost, like every other candidate, or
# because someone says so.

# %%
strata.candidate(op="matmul", name="tiles")(fast)


class Head(nn.Module):
    def __init__(self) -> None:
        self.w = nn.Parameter((256, 512), "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return nn.op.relu(nn.op.matmul(x, self.w))


exported = Head().export({"forward": {"x": spec.Tensor(["rows", 256], "float32")}})
planned = trace(exported.module).lower().plan(PlanOptions(pins=(parse_pin("matmul=user.tiles"),)))
for launch in planned.functions[0].launches:
    names = [c.name for c in launch.stack.candidates]
    print(f"{launch.op}: {names}; chosen: {[names[c.candidate] for c in launch.choices]}")

program = planned.compile().program({"w": w})
np.testing.assert_allclose(program["forward"](x), np.maximum(x @ w, 0), rtol=1e-4, atol=1e-4)

# %% [markdown]
# Next: [a model, step by step](01_first_steps.py).
