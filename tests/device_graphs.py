"""Random stacked graphs, and the best plan of one by trying all of them."""

import itertools
import math
from typing import ClassVar

import numpy as np

from strata.core.dims import SymDim
from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.result import totals
from strata.planner.devices.types import (
    Cause,
    DeviceCandidate,
    Estimates,
    StackedGraph,
    Term,
    Transfer,
    evaluate,
)
from strata.planner.profiles import PROFILES
from strata.target.hardware import CPU, GPU, PHU, Machine, Memory

DEVICES = ("a", "b", "c", "d")


def machine(num_devices=3, num_memories=3, capacity_bytes=math.inf):
    memories = [
        Memory(
            name=f"m{k}",
            capacity_bytes=capacity_bytes,
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


class Roofline:
    """A plain cost profile: flop or bytes, whichever takes longer; values move between memories, shared."""

    shared = True
    by_device = False
    FLOP_PER_S: ClassVar = {"cpu": 2e11, "gpu": 3e14, "phu": 2e15}
    BYTES_PER_S: ClassVar = {"cpu": 5e10, "gpu": 2e12, "phu": 1e12}
    J_PER_FLOP: ClassVar = {"cpu": 5e-12, "gpu": 5e-13, "phu": 5e-14}
    LAUNCH_S: ClassVar = {"cpu": 1e-7, "gpu": 5e-6, "phu": 2e-5}

    def candidates(self, machine, workload, work, points):
        found = []
        for d in machine.devices:
            if d.kind == "phu" and work.contraction is None:
                continue
            flop = evaluate(work.flop, points)
            read = sum(
                (
                    evaluate(n, points) * workload.values[k].bits / 8
                    for k, n in zip(work.inputs, work.reads, strict=True)
                ),
                np.zeros_like(flop),
            )
            made = sum(
                (
                    evaluate(workload.values[k].elems, points) * workload.values[k].bits / 8
                    for k in work.outputs
                ),
                np.zeros_like(flop),
            )
            compute = Term(
                Cause.COMPUTE,
                d.name,
                np.ceil(flop / 4096) * 4096 / self.FLOP_PER_S[d.kind],
                flop * self.J_PER_FLOP[d.kind],
                flop,
                "flop",
            )
            memory = Term(
                Cause.MEMORY,
                d.memory,
                (read + made) / self.BYTES_PER_S[d.kind],
                (read + made) * 2e-11,
                read + made,
                "byte",
            )
            launch = Term(
                Cause.LAUNCH,
                d.name,
                np.full_like(flop, self.LAUNCH_S[d.kind]),
                np.full_like(flop, 1e-6),
                np.ones_like(flop),
                "launch",
            )
            found.append(
                DeviceCandidate(
                    f"{d.name}.{work.op}",
                    d.name,
                    d.memory,
                    Estimates.of((compute, memory, launch), overlapped=True),
                )
            )
        return tuple(found)

    def move(self, machine, value, source, to, points):
        # Weights are where they are used: they are brought there once, before the first run.
        if value.kind in (ValueKind.WEIGHT, ValueKind.STATE) or (source or machine.home) == to:
            return None
        size = evaluate(value.elems, points) * value.bits / 8
        term = Term(Cause.LINK, f"{source}->{to}", 5e-6 + size / 6e10, size * 1e-11, size, "byte")
        return Estimates.of((term,), overlapped=False)


PROFILES.add("test-roofline", Roofline())


def roofline_machine():
    """A CPU, a GPU and a PHU, with a memory each."""
    devices = [
        CPU(clock_hz=3e9, memory="m0"),
        GPU(clock_hz=2e9, memory="m1"),
        PHU(clock_hz=1e10, memory="m2", multiplex=20),
    ]
    return Machine(devices, "roofline", "test-roofline", machine(3, 3).memories)


class Steps:
    """Costs that jump with the length, by formulas drawn for each op and device; some are the same on all."""

    shared = True
    by_device = False

    def __init__(self, seed):
        self.seed = seed

    def draw(self, *key):
        return np.random.default_rng([self.seed, *map(ord, "/".join(map(str, key)))])

    def estimates(self, length, rng, scale=1.0):
        tile, slope, constant = rng.integers(1, 9), 0.9 + 0.2 * rng.random(), 6 * rng.random()
        time_s = scale * (np.ceil(length / tile) * tile * slope + constant)
        return Estimates(time_s, time_s * (0.5 + rng.random()))

    def candidates(self, machine, workload, work, points):
        same = self.draw(work.op).random() < 0.3
        return tuple(
            DeviceCandidate(
                f"{d.name}.{work.op}",
                d.name,
                d.memory,
                self.estimates(points["L"], self.draw(work.op, "" if same else d.name)),
            )
            for d in machine.devices
        )

    def move(self, machine, value, source, to, points):
        source = source or machine.home
        return None if source == to else self.estimates(points["L"], self.draw(source, to), 0.03)


def chain_workload(ops, num_layers):
    """Layers of ``ops`` one after the other; each op reads what two before it made, and a shared input."""
    values = [Value("x", (4,), 8.0, ValueKind.INPUT), Value("mask", (4,), 8.0, ValueKind.INPUT)]
    works = []
    for layer in range(num_layers):
        for op in ops:
            last = len(values) - 1
            inputs = tuple(sorted({last, max(0, last - 1), 1}))
            values.append(Value(f"v{len(works)}", (4,), 8.0, ValueKind.RESULT))
            works.append(
                Work(
                    f"layers.{layer}.{op}", op, inputs, (4,) * len(inputs), (len(values) - 1,), 1, None, layer
                )
            )
    return Workload("steps", tuple(values), tuple(works), (SymDim("L", 1, 4096),))
