# %% [markdown]
# # First steps
#
# Run the model that comes with Strata, then write a small network, follow it through the compiler, and add a
# pass of your own. Every cell runs: `python docs/tutorial/01_first_steps.py`.

# %%
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import strata
from strata import nn
from strata.compiler.driver import trace
from strata.frontend.nn import op, spec
from strata.graph import interp
from strata.graph.nodes import Function, Node, rebuild, rewrite
from strata.ir.passes import register_pass
from strata.loop.text import print_func
from strata.passes import named_pipeline
from strata.passes.base import FunctionPass

# %% [markdown]
# ## A language model
#
# `strata.load()` takes a model folder, a hub id or a compiled artifact; without one it loads the demo model.
# The first time it compiles, for the shapes of the model and the instructions of this CPU; later it maps what
# it kept in `~/.cache/strata`.

# %%
model = strata.load()
print(f"{'compiled' if model.was_compiled else 'loaded'} in {model.load_s:.2f} s")

result = model.generate("def read_lines(path):", max_tokens=24)
print(result.text)
print(f"{result.finish_reason.value} after {result.stats.generated_tokens} tokens")

# %% [markdown]
# Text as it comes, sampled; the same seed gives the same text.

# %%
for piece in model.stream("class Point:", max_tokens=24, temperature=0.8, top_p=0.95, seed=7):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# Numbers instead of text: row `t` of the logits scores the token after `ids[: t + 1]`, and perplexity says
# how well the model foresees a text.

# %%
ids = model.tokenizer.encode("import os\nimport sys\n")
logits = model.logits(ids)
print(logits.shape, logits.dtype)
print("after 'import os\\nimport sys\\n' comes", repr(model.tokenizer.decode([int(logits[-1].argmax())])))

python = model.perplexity("for i in range(10):\n    print(i)\n")
noise = model.perplexity("zq vx 83 }} kk ;;; aa ~~ 00 qz\n")
print(f"perplexity: Python {python:.1f}, noise {noise:.1f}")
assert python < noise

# %% [markdown]
# ## A network of your own
#
# Modules look like PyTorch's, but hold no values: `export` runs the methods on symbols and gives the graph,
# and the shapes of its parameters. `"n"` is a size that stays open.


# %%
class MLP(nn.Module):
    def __init__(self) -> None:
        self.norm = nn.RMSNorm(64, 1e-5)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return x + self.down(op.gelu(self.up(self.norm(x))))


exported = MLP().export({"forward": {"x": spec.Tensor(["n", 64], "float32")}})
module, parameters = exported
rng = np.random.default_rng(0)
params = {name: rng.normal(size=p.shape, scale=0.1).astype(np.float32) for name, p in parameters.items()}

# %% [markdown]
# The driver goes in steps, and each step can be looked at. This is the graph as the front end made it:

# %%
traced = trace(exported.module)
print(traced.text)

# %% [markdown]
# The pass pipeline simplifies it and fuses it: every `fused` node will be one kernel launch. Of seven ops
# three launches are left: the norm, the first product with bias and activation, the second with bias and
# residual.

# %%
lowered = traced.lower()
print(lowered.text)
forward = lowered.module["forward"]
launches = [node for node in forward.nodes if node.op == "fused"]
assert [node.attrs["body"].name for node in launches] == ["rms_norm", "matmul_add_gelu", "matmul_add"]

# %% [markdown]
# ## Kernels
#
# Planning lowers each group to loops, proposes schedules for it (its *stack* of candidates) and chooses among
# them by cost, for each range of sizes.

# %%
planned = lowered.plan()
(function,) = planned.functions
for launch in function.launches:
    names = [c.name for c in launch.stack.candidates]
    print(f"{launch.node}: {launch.op} by one of {names}")
    for choice in launch.choices:
        sizes = " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in choice.when) or "any other size"
        print(f"    {names[choice.candidate]} for {sizes}")

# %% [markdown]
# A candidate is a loop function, and the trace of the schedule steps that made it. Steps are data: they
# print, parse back and can be replayed ([all steps](../steps.md)).

# %%
norm = function.launches[0].stack.candidates[0]
print(norm.trace.replace("; ", "\n"))
print(print_func(norm.func))

# %% [markdown]
# ## Machine code
#
# Now compile it, and call it with NumPy arrays (PyTorch's or JAX's would do as well, through DLPack).

# %%
program = planned.compile().program(params)
x = rng.normal(size=(5, 64)).astype(np.float32)
y = program["forward"](x).copy()  # outputs live in buffers that the next call overwrites
print(y.shape, y.dtype)

# %% [markdown]
# What should it be? The graph interpreter defines it: it evaluates each node with the op's NumPy reference.

# %%
(reference,) = interp.run(exported.module["forward"], [x], params)
print("largest difference:", np.abs(y - reference).max())
np.testing.assert_allclose(y, reference, rtol=1e-5, atol=1e-5)

# %% [markdown]
# `strata.compile(exported, params)` does all of these steps at once.

# %%
np.testing.assert_array_equal(strata.compile(exported, params)["forward"](x), y)

# %% [markdown]
# ## A pass of your own
#
# A pass is a frozen dataclass that makes a new graph from one; its fields are its options. This one trades
# exactness for speed: GELU by `tanh` instead of `erf`. `rewrite` rebuilds a function node by node.


# %%
@register_pass
@dataclass(frozen=True)
class TanhGelu(FunctionPass):
    """Replaces ``gelu`` by its tanh approximation."""

    name: ClassVar[str] = "tanh_gelu"

    def run_function(self, function: Function) -> Function:
        def change(node: Node) -> Node:
            if node.op != "gelu":
                return node
            return rebuild(node, list(node.inputs), approximate="tanh")

        return rewrite(function, change)


# %% [markdown]
# A pipeline is data too. The pass goes before `fuse`; after each pass the graph is checked.

# %%
pipeline = named_pipeline("default").insert_before("fuse", TanhGelu())
print(pipeline)
fast = traced.lower(pipeline)
assert 'approximate="tanh"' in fast.text

# %% [markdown]
# It is registered, so that text can name it as well.

# %%
text = "canonicalize,tanh_gelu,fold_transpose,dead_code,fuse"
approximate = strata.compile(exported, params, pipeline=text)["forward"](x)
difference = np.abs(approximate - y).max()
print(f"the approximation costs {difference:.1e}")
assert 0 < difference < 1e-2

# %% [markdown]
# From here: [examples/build_llama.py](../../examples/build_llama.py) is a whole Llama with a paged KV cache,
# `strata inspect --stage plan` shows all of this for a real model, and [layout.md](../layout.md) says where
# things are.
