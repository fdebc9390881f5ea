"""Random stacked graphs, and the best plan of one by trying all of them."""

import itertools

import numpy as np

from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.result import totals
from strata.planner.devices.types import DeviceCandidate, Estimates, StackedGraph, Transfer
from strata.target.hardware import CPU, Machine, Memory

DEVICES = ("a", "b", "c", "d")


def machine(num_devices=3, num_memories=3):
    memories = [
        Memory(
            name=f"m{k}",
            capacity_bytes=1e9,
            bandwidth_bytes_per_s=1e9,
            read_j_per_byte=0.0,
            write_j_per_byte=0.0,
        )
        for k in range(num_memories)
    ]
    devices = [CPU(name=DEVICES[k], clock_hz=1e9, memory=f"m{k % num_memories}") for k in range(num_devices)]
    return Machine(devices, "random", memories=memories)


def random_graph(seed, num_works=6, num_points=3, integer=True, num_devices=3):
    """Works with fan-out and shared inputs; costs are small whole numbers, so that many plans are equal."""
    rng = np.random.default_rng(seed)
    hardware = machine(num_devices, int(rng.integers(1, num_devices + 1)))
    by_device = bool(rng.integers(2))

    def costs():
        high = 8 if integer else 0
        draw = (
            (lambda: rng.integers(0, high, num_points).astype(float))
            if integer
            else (lambda: rng.random(num_points))
        )
        time_s, energy_j = draw(), draw()
        if rng.random() < 0.05:
            time_s = np.where(rng.random(num_points) < 0.5, np.inf, time_s)
        return Estimates(time_s, energy_j)

    num_inputs = int(rng.integers(1, 3))
    values = [Value(f"i{k}", (4,), 8.0, ValueKind.INPUT) for k in range(num_inputs)]
    works, stacks = [], []
    for k in range(num_works):
        recent = range(max(0, len(values) - 3), len(values))
        pool = sorted({*recent, *range(num_inputs)})
        inputs = tuple(
            sorted(rng.choice(pool, min(len(pool), int(rng.integers(1, 4))), replace=False).tolist())
        )
        values.append(Value(f"v{k}", (4,), 8.0, ValueKind.RESULT))
        works.append(Work(f"w{k}", "op", inputs, (4,) * len(inputs), (len(values) - 1,), 1))
        on = sorted(rng.choice(num_devices, int(rng.integers(1, num_devices + 1)), replace=False).tolist())
        stacks.append(
            tuple(
                DeviceCandidate(f"{d.name}.op", d.name, d.memory, costs())
                for d in (hardware.devices[j] for j in on)
            )
        )
    workload = Workload("random", tuple(values), tuple(works), ())
    places = [d.name if by_device else d.memory for d in hardware.devices]
    transfers = []
    producers = workload.producers()
    for value, consumers in workload.consumers().items():
        producer = producers.get(value)
        origins = [hardware.home] if producer is None else places
        pairs = {(o, t) for o in origins for t in places if o != t and rng.random() < 0.7}
        shared = bool(rng.integers(2))
        transfers.append(
            Transfer(value, producer, consumers, {p: costs() for p in sorted(pairs)}, shared, by_device)
        )
    points = {"L": np.arange(1, num_points + 1)}
    return StackedGraph(workload, hardware, points, tuple(stacks), tuple(transfers))


def all_totals(graph):
    """Every plan with its time and energy: ``[N, W]``, ``[N, P]``, ``[N, P]``."""
    plans = np.array(list(itertools.product(*(range(len(s)) for s in graph.stacks))), np.int16)
    found = [totals(graph, np.repeat(p[:, None], graph.num_points, 1)) for p in plans]
    return plans, np.array([t for t, _ in found]), np.array([e for _, e in found])


def layered_graph(num_layers, num_points=1, shared=True, seed=0):
    """A decoder of equal layers on a CPU, a GPU and a PHU with a memory each: residuals, norms, attention
    that reads a mask and two rotary tables of the whole model, a gated MLP. Costs grow with the length.
    """
    rng = np.random.default_rng(seed)
    hardware = machine(3, 3)
    lengths = np.arange(1, num_points + 1).astype(float) if num_points > 1 else np.array([1024.0])
    values = [Value(n, (4,), 8.0, ValueKind.INPUT) for n in ("tokens", "mask", "cos", "sin")]
    works, stacks, known = [], [], {}

    def estimates(kind, device):
        if (kind, device) not in known:
            slope, constant, joules = rng.random(3)
            scale = {"a": 4.0, "b": 1.0, "c": 0.5}[device]
            offset = {"a": 1.0, "b": 300.0, "c": 900.0}[device]
            known[kind, device] = Estimates(
                scale * (slope + 0.5) * lengths + offset * constant,
                scale * (joules + 0.5) * lengths + 0.5 * offset * constant,
            )
        return known[kind, device]

    def stack(kind):
        if kind not in known:
            devices = hardware.devices if kind.startswith("matmul") else hardware.devices[:2]
            known[kind] = tuple(
                DeviceCandidate(f"{d.name}.{kind}", d.name, d.memory, estimates(kind, d.name))
                for d in devices
            )
        return known[kind]

    def work(kind, *inputs, layer=None, weight=False):
        if weight:
            values.append(Value(f"{kind}.weight{len(works)}", (4,), 8.0, ValueKind.WEIGHT))
            inputs = (*inputs, len(values) - 1)
        values.append(Value(f"v{len(works)}", (4,), 8.0, ValueKind.RESULT))
        name = kind if layer is None else f"layers.{layer}.{kind}"
        inputs = tuple(dict.fromkeys(inputs))
        works.append(
            Work(name, kind.split(".")[0], inputs, (4,) * len(inputs), (len(values) - 1,), 1, None, layer)
        )
        stacks.append(stack(kind))
        return len(values) - 1

    def norm(x, name, layer=None):
        square = work(f"power.{name}", x, layer=layer)
        mean = work(f"mean.{name}", square, layer=layer)
        return work(f"scale.{name}", x, mean, layer=layer, weight=True)

    def rotate(x, name, layer):
        half = work(f"negative.{name}", x, layer=layer)
        return work(
            f"add.{name}",
            work(f"cos.{name}", x, 2, layer=layer),
            work(f"sin.{name}", half, 3, layer=layer),
            layer=layer,
        )

    x = work("take", 0)
    for i in range(num_layers):
        y = norm(x, "attn", i)
        q, k, v = (work(f"matmul.{n}", y, layer=i, weight=True) for n in "qkv")
        scores = work("matmul.qk", rotate(q, "q", i), rotate(k, "k", i), layer=i)
        probs = work("softmax", work("add.mask", scores, 1, layer=i), layer=i)
        mixed = work("transpose", work("matmul.pv", probs, v, layer=i), layer=i)
        x = work("add.attn", x, work("matmul.o", mixed, layer=i, weight=True), layer=i)
        y = norm(x, "mlp", i)
        gate = work("silu", work("matmul.gate", y, layer=i, weight=True), layer=i)
        y = work("multiply", gate, work("matmul.up", y, layer=i, weight=True), layer=i)
        x = work("add.mlp", x, work("matmul.down", y, layer=i, weight=True), layer=i)
    work("matmul.head", norm(x, "head"), weight=True)
    workload = Workload("layered", tuple(values), tuple(works), ())
    places = [d.memory for d in hardware.devices]
    moves = {
        (o, t): Estimates(0.1 * j * lengths + 20.0, 0.2 * j * lengths + 3.0)
        for j, (o, t) in enumerate(itertools.permutations(places, 2), 1)
    }
    producers = workload.producers()
    transfers = []
    for value, consumers in workload.consumers().items():
        producer = producers.get(value)
        costs = {p: e for p, e in moves.items() if producer is not None or p[0] == hardware.home}
        transfers.append(Transfer(value, producer, consumers, costs, shared))
    return StackedGraph(workload, hardware, {"L": lengths.astype(np.int64)}, tuple(stacks), tuple(transfers))
