# %% [markdown]
# # Replace dense by my own kernel
#
# Each op of a model has a *stack* of candidates: the kernels of Strata's schedule rules, yours, a library's,
# a PyTorch function. The plan picks one per node and size by cost; what you *prefer* or *pin* goes first.
# Every cell runs: `python docs/tutorial/02_replace_dense.py`.

# %%
import numpy as np
import torch

import strata
from strata import nn
from strata.core.errors import UserError
from strata.planner.candidates.kernels import forget
from strata.script import Out, block, f32, init, reduce

# %% [markdown]
# ## A kernel of mine in the demo model
#
# In the models, weights have a row per output: `y[i, j] = sum over k of x[i, k] * w[j, k]`. All three sizes
# are symbolic, so one kernel fits every layer.

# %%
n, outputs, inputs = strata.dim("n"), strata.dim("outputs"), strata.dim("inputs")


@strata.candidate(op="matmul")
@strata.kernel
def my_dense(x: f32[n, inputs], w: f32[outputs, inputs], y: Out[f32[n, outputs]]):
    for i, j, k in block("dense", n, outputs, reduce(inputs)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, k] * w[j, k]


# %% [markdown]
# That was all. It is compared with the op's reference before its first use; `prefer` puts it in the place of
# every matmul that it fits. The text stays the same.

# %%
mine = strata.load(format="f32", prefer="user.my_dense")
print(mine.generate("def read_lines(path):", max_tokens=16).text)

chosen = {node.op: node.chosen({"n": 1, "num_seqs": 1}).name for node in mine.nodes("decode")}
print(chosen["matmul"])
assert chosen["matmul"] == "user.my_dense"

default = strata.load(format="f32")
ids = default.tokenizer.encode("import os\n")
np.testing.assert_allclose(mine.logits(ids), default.logits(ids), rtol=1e-3, atol=1e-3)

# %% [markdown]
# Only some nodes? `pins={"*.mlp.*": "user.my_dense"}`. On the command line, with the kernel in a file of its
# own: `strata generate "def" --format f32 --load mine.py --prefer user.my_dense`.
#
# A kernel that computes something else does not get into a model:

# %%


@strata.kernel
def forgetful(x: f32[n, inputs], w: f32[outputs, inputs], y: Out[f32[n, outputs]]):
    for i, j, k in block("dense", n, outputs, reduce(inputs)):
        y[i, j] = x[i, k] * w[j, k]


strata.candidate(op="matmul", name="forgetful")(forgetful)
try:
    strata.load(format="f32", prefer="user.forgetful", fresh=True)
    raise AssertionError("it computes something else")
except UserError as error:
    print(error)
forget("forgetful")

# %% [markdown]
# ## A library, or a function of PyTorch
#
# Libraries are optional (`pip install 'strata-llm[openblas]'`, see `strata devices`) and candidates like the
# others. So is a function of this process; its program cannot be saved, so it is compiled for here and now.

# %%
blas = strata.load(format="f32", prefer="openblas")
np.testing.assert_allclose(blas.logits(ids), default.logits(ids), rtol=1e-3, atol=1e-3)

strata.candidate(op="matmul", name="torch", attrs={"transpose_b": True})(torch.nn.functional.linear)


class Head(nn.Module):
    def __init__(self) -> None:
        self.proj = nn.Linear(256, 512, bias=False)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return nn.op.relu(self.proj(x))


spec = nn.spec.Tensor(["rows", 256], "float32")
exported = Head().export({"forward": {"x": spec}})
w = np.random.default_rng(0).standard_normal((512, 256), dtype=np.float32)
program = strata.compile(exported, {"proj.weight": w}, prefer="user.torch")
x = np.ones((3, 256), np.float32)
np.testing.assert_allclose(program["forward"](x), np.maximum(x @ w.T, 0), rtol=1e-4, atol=1e-3)
print([node.chosen({"rows": 3}).name for node in program.nodes("forward")])
