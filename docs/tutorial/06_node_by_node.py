# %% [markdown]
# # Launch a Hugging Face model node by node
#
# A compiled model is a list of nodes, one kernel launch each. Normally a forward pass is one native call;
# here it is taken apart: launch the nodes one at a time, look at values, put other kernels in, find a wrong
# one, and write the model to three files. Every cell runs: `python docs/tutorial/06_node_by_node.py`.

# %%
import tempfile
from pathlib import Path

import numpy as np

import strata
from strata.compiler.compare import Interpreter, compare
from strata.runtime.profile import profile

model = strata.load()  # or any Hugging Face folder, or hub id
nodes = model.nodes("decode")
print(f"{len(nodes)} nodes; the first layer:")
for node in nodes[1:11]:
    print(f"  {node.name:42} {node.op:16} {node.outputs[-1]}")

# %% [markdown]
# Each node knows the candidates that were considered for it, which one runs at given sizes, and what that
# should cost (`strata nodes` prints all of this as a table).

# %%
up = next(n for n in nodes if n.name == "model.layers.0.mlp.gate_up_proj")
sizes = {"n": 1, "num_seqs": 1}
for candidate in up.candidates:
    mark = "*" if candidate.kernel == up.kernel(sizes) else " "
    print(mark, candidate.name, f"{candidate.cost(1).time_s * 1e6:.1f} us")
print(up.work(sizes))

# %% [markdown]
# ## One at a time
#
# `step` prepares the last forward pass over a prompt and launches nothing. `next` launches a node, `run_to`
# goes on to a node, `for` through the rest. A step costs about a microsecond more than its kernel.

# %%
prompt = "def read_lines(path):"
run = model.step("decode", prompt)
print("launched", run.next().name)
run.run_to("model.layers.0.input_layernorm")
print("its value:", run.value("model.layers.0.input_layernorm")[0, :4])
for node in run:
    if node.op == "paged_attention":
        print(f"{node.name}: {np.linalg.norm(run.value(node).astype(np.float32)):.2f}")
logits, (token,) = run.outputs
print("next token:", repr(model.tokenizer.decode([int(token)])))

# %% [markdown]
# The same kernels on the same buffers give the same bits as the native call. Memory is reused on the way:
# values that are wanted later are kept by name.

# %%
forward = model.forward_pass("decode", prompt)
logits = forward().copy()
run = forward.step(keep="*layernorm")
np.testing.assert_array_equal(run.finish()[0], logits)
print(run.value("model.layers.3.input_layernorm").shape)

# %% [markdown]
# ## Hooks
#
# Read a value, change it, skip a node, time it. What does the model say without the last layer's attention?

# %%
run = forward.step()
run.after("*.7.*o_proj", lambda event: print(f"{event.node.name}: {event.time_ns / 1e3:.1f} us"))
run.before("*.7.*paged_attention", lambda event: event.outputs[-1].fill(0))
run.skip("*.7.*paged_attention")
print("without it:", repr(model.tokenizer.decode(run.finish()[1].tolist())))

# %% [markdown]
# ## Another kernel
#
# `run.replace` puts a kernel in a node's place for one run, `program.swap` for every later call, `generate`
# included; nothing is compiled again. A kernel is any function that takes the node's inputs, then its
# outputs, and fills them: a NumPy function, a compiled `@strata.kernel`, a tvm-ffi function of C++, or the
# name of another candidate. (Matrices come as they are stored, `node.inputs` says how. A function with
# swapped nodes is launched node by node.)


# %%
def my_norm(x, weight, y):
    y[...] = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


program = model.program
swapped = program.swap("*norm", my_norm)
print(f"{len(swapped)} nodes run {my_norm.__name__}")
print(model.generate(prompt, max_tokens=8).text)
assert np.abs(forward() - logits).max() < 0.25
program.restore()

# %% [markdown]
# ## Where the time goes
#
# `strata profile` prints the whole table, with rates and fractions of what the machine can do, and writes a
# Chrome trace.

# %%
report = profile(forward.step, forward, repeats=5)
print(f"{report.total_s * 1e6:.0f} us one by one, {report.whole_s * 1e6:.0f} us in one call")
for part in report.by("op")[:3]:
    print(f"{part.name:16} {part.launches:3} launches {part.time_s / report.total_s:6.1%}")

# %% [markdown]
# ## Which node is wrong?
#
# `compare` evaluates every node with the graph interpreter, the definition of what it computes, on its actual
# inputs. `strata debug compare` does it from the command line, and also against PyTorch or recorded values.

# %%
assert compare(forward, Interpreter(forward)).agrees

program.swap("model.layers.2.post_attention_layernorm", lambda x, weight, y: my_norm(x, weight * 1.05, y))
first = compare(forward, Interpreter(forward)).first
print(f"{first.node.name} diverges: got {first.got:.4f}, expected {first.expected:.4f}")
print("allowed:", first.tolerance)
assert first.node.name == "model.layers.2.post_attention_layernorm"
program.restore()

# %% [markdown]
# ## Three files
#
# The graph of launches as JSON, the library of kernels, the parameters: a program in any process, without the
# compiler ([what is in them](../artifact.md)).

# %%
with tempfile.TemporaryDirectory() as folder:
    files = strata.export(program, Path(folder) / "model")
    loaded = strata.load_graph(files / "manifest.json", files / "code.bin", files / "weights.safetensors")
    np.testing.assert_array_equal(loaded["decode"](forward.ids, forward.view)[0], logits)
    again = loaded.step("decode", forward.ids, forward.view)
    np.testing.assert_array_equal(again.finish()[0], logits)
    print({p.name: p.stat().st_size for p in sorted(files.iterdir())})
