# %% [markdown]
# # Customise the pipeline
#
# What happens between a model and its kernels is a list of passes, and the list is yours: put a rewrite rule
# in, write a pass, give the list a name, run a part of it on one function, watch it, change what it decides.
# Every cell runs: `python docs/tutorial/04_customise_the_pipeline.py`.

# %%
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

import strata
from strata import nn
from strata.compiler.driver import trace
from strata.core.knobs import knobs
from strata.frontend.nn import op, spec
from strata.graph import builder as g
from strata.graph.nodes import Function, Node, rewrite, with_notes
from strata.ir.instruments import Call, Timing, instruments
from strata.loop.nodes import For, ForKind, Func
from strata.loop.rewrite import map_stmt, walk_stmts
from strata.passes import FunctionPass, LoopPass, LoopStage, transform
from strata.passes.patterns import any_, is_op, rewrite_pass

# %% [markdown]
# A small network with two functions. Its author wrote SiLU as `x * sigmoid(x)`.


# %%
class MLP(nn.Module):
    def __init__(self) -> None:
        self.norm = nn.RMSNorm(64, 1e-5)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)

    def prefill(self, x: nn.Tensor) -> nn.Tensor:
        h = self.up(self.norm(x))
        return x + self.down(h * op.sigmoid(h))

    def decode(self, x: nn.Tensor) -> nn.Tensor:
        return self.prefill(x)


rows = {"x": spec.Tensor(["n", 64], "float32")}
exported = MLP().export({"prefill": rows, "decode": rows})
module, shapes = exported
rng = np.random.default_rng(0)
params = {name: rng.normal(size=p.shape, scale=0.1).astype(np.float32) for name, p in shapes.items()}
x = rng.normal(size=(5, 64)).astype(np.float32)
wanted = strata.compile(exported, params)["prefill"](x).copy()

# %% [markdown]
# ## A rewrite in three lines
#
# A pattern looks like the expression that it matches; the same name stands for the same value. What the
# function returns takes the place of the match. `rewrite_pass` makes a pass of it, with a name.

# %%
y = any_()


@rewrite_pass("use_silu", y * is_op("sigmoid")(y))
def use_silu(match):
    """Writes ``x * sigmoid(x)`` as the op ``silu``."""
    return g.silu(match[y])


after = transform("use_silu", module).module
print(*(node.op for node in after["prefill"].nodes if node.inputs))
assert "silu" in [node.op for node in after["prefill"].nodes]

# %% [markdown]
# ## A pass of your own
#
# A pass is a frozen dataclass: its fields are its options, and its text. This one keeps ops out of all
# groups: it leaves a *note* on their nodes, which `fuse` follows. A note says something about a node that
# does not change what it computes, and prints as `!{...}`
# ([all passes](../passes.md)).


# %%
@strata.register_pass
@dataclass(frozen=True)
class Fence(FunctionPass):
    """Makes nodes of some ops launches of their own.

    Attributes:
        ops: Names of ops.
    """

    name: ClassVar[str] = "fence"
    ops: tuple[str, ...] = ()

    def run_function(self, function: Function) -> Function:
        def change(node: Node) -> Node:
            return with_notes(node, pattern="opaque") if node.op in self.ops else node

        return rewrite(function, change)


# %% [markdown]
# ## A pipeline with a name
#
# Pipelines are data: they print, parse and can be edited at any place. Registered, they go by name wherever a
# pipeline is asked for: `strata.compile(..., pipeline="opt_llm")`, the knob `STRATA_PIPELINE`, or
# `strata opt FILE.ir --load my_passes.py -p opt_llm` on IR text.

# %%
default = strata.pipeline("default")
strata.register_pipeline("opt_llm", default.insert_before("fuse", use_silu, Fence(ops=("silu",))))
print(strata.pipeline("opt_llm"))


def launches(name: str, pipeline: str) -> list[str]:
    """What one function launches."""
    nodes = trace(module).lower(pipeline).module[name].nodes
    return [node.attrs["body"].name for node in nodes if node.op == "fused"]


print(launches("prefill", "default"))
print(launches("prefill", "opt_llm"))
assert launches("prefill", "opt_llm") == ["rms_norm", "matmul_add", "silu", "matmul_add_1"]
result = strata.compile(exported, params, pipeline="opt_llm")["prefill"](x)
np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)

# %% [markdown]
# ## A part of the module
#
# `on` runs a pipeline on some functions only, chosen by name as in a shell; in text it is
# `only{functions=[...]}(...)`.

# %%
text = "canonicalize,fold_transpose,only{functions=[decode]}(use_silu,fence{ops=[silu]}),fuse"
print(launches("prefill", text), launches("decode", text))
assert (launches("prefill", text)[2], launches("decode", text)[2]) == ("sigmoid_mul", "silu")
print(strata.pipeline("opt_llm").on("pre*"))

# %% [markdown]
# ## Watching
#
# Instruments see each pass before and after it runs, in a `with` block around anything that compiles, or as
# an argument of `transform`. `Verify`, `Dump` and `Print` are others: what the knobs `STRATA_VERIFY`,
# `STRATA_DUMP` and `STRATA_PRINT_AFTER` turn on.

# %%
changed: list[str] = []


def note_changes(step, before, after) -> None:
    if before is not after and len(before["decode"].nodes) != len(after["decode"].nodes):
        changed.append(step.name)


with instruments(Timing(), Call(on_after=note_changes)) as (timing, _):
    trace(module).lower("opt_llm")
print(timing.table())
print("changed the number of nodes:", *changed)

# %% [markdown]
# ## Loop functions
#
# Groups become loop functions. Loop passes see each one twice: as lowering makes it, and scheduled. This one
# forbids threads, so that a kernel runs on the core that calls it.


# %%
@strata.register_pass
@dataclass(frozen=True)
class OneThread(LoopPass):
    """Makes parallel loops serial."""

    name: ClassVar[str] = "one_thread"
    stages: ClassVar[tuple[LoopStage, ...]] = (LoopStage.SCHEDULED,)

    def run_func(self, func: Func) -> Func:
        def serial(stmt):
            is_parallel = isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL
            return replace(stmt, kind=ForKind.SERIAL) if is_parallel else stmt

        return replace(func, body=map_stmt(func.body, stmt_fn=serial))


def parallel_loops(planned) -> int:
    loops = [s for func in planned.funcs.values() for s in walk_stmts(func) if isinstance(s, For)]
    return sum(loop.kind is ForKind.PARALLEL for loop in loops)


with knobs(loop_pipeline="loop_default,one_thread"):
    serial = trace(module).lower().plan()
print(parallel_loops(trace(module).lower().plan()), "->", parallel_loops(serial))
assert parallel_loops(serial) == 0
np.testing.assert_allclose(serial.compile().program(params)["prefill"](x), wanted, rtol=1e-5, atol=1e-5)

# %% [markdown]
# ## Altering what passes decided
#
# `layouts` (how weights are stored), `partition` (what goes to a library), `kill_dead` and `plan_memory`
# (where values live) write their decisions as notes too, and the planner follows them. So a decision can be
# read in the text, and changed there.

# %%
lowered = trace(module).lower("default,layouts,place")
notes = {node.attrs["name"]: node.notes for node in lowered.module["decode"].params}
print(notes)
assert notes["up.weight"]["layout"].startswith("tiles(")
print([node.notes for node in lowered.module["decode"].nodes if node.op == "fused"])
