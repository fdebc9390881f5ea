# %% [markdown]
# # Which hardware for which op
#
# A *machine* is data: devices, memories, links, with the source of every number. A *plan* picks, for each op
# of a model, the device that makes the whole cheapest, in time, in energy or in a sum of both, with the
# proof. No weights are needed, and no device has to exist.

# %%
import strata
from strata import CPU, GPU, PHU, Machine

machine = Machine(
    [CPU(clock_hz=3.208e9, cores=1), PHU(clock_hz=9.7e9, cores=1, multiplex=20), GPU(clock_hz=1.98e9)],
    profile="lightcode",  # how ops are costed: here by the model of LightCode (arXiv 2509.16443)
)
plan = strata.plan("llama-2-7b", machine, objective="energy", seq_len=1400)
print(f"{plan.time_s:.3g} s, {plan.energy_j:.3g} J; no plan takes less than {plan.lower_bound:.3g} J")
for name, load in plan.devices.items():
    print(f"{name}: {load.ops} ops, {load.matmuls} of them products")

# %% [markdown]
# Light takes all products, since that model lets nobody pay for converters. On `lightcode-honest`, the same
# machine with its own constants charged, and with bandwidth, capacity and static power, it takes none:

# %%
honest = strata.plan("llama-2-7b", "lightcode-honest", objective="energy", seq_len=1400)
assert plan.devices["phu"].matmuls > 0
assert honest.devices["phu"].matmuls == 0

# %% [markdown]
# From which length on does the best plan change, and what changes? All lengths are planned: this is exact.

# %%
for threshold in strata.thresholds("gpt2-124m", "lightcode-honest", "energy", seq_len="1..1024"):
    print(threshold.length, "; ".join(str(change) for change in threshold.changes))

# %% [markdown]
# What does a whole request cost: a prompt of 100 tokens, and 20 new ones?

# %%
request = strata.plan("gpt2-124m", "h100", objective="time", phase="request", seq_len=100, new_tokens=20)
print(f"{request.time_s:.3g} s, {request.energy_j:.3g} J")

# %% [markdown]
# A device of your own is a class and a function that costs an op on it; see
# [add_device](../howto/add_device.md) and [add_op_cost](../howto/add_op_cost.md). On the command line:
#
#     strata plan llama-2-7b --machine lightcode-honest --objective energy --seq-len 1400 --report plan.html
