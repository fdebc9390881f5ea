"""Tuning tasks: the distinct groups of a model at the sizes that matter, with their share of the run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.graph.nodes import Function, Module, Node
from strata.graph.types import CacheType
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.planner.candidates import Task
from strata.planner.gates import join_gates
from strata.planner.layouts import choose_layouts, reads_rows
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.planner.types import Origin
from strata.planner.workspace import hoist_workspace
from strata.schedule import propose, trace_text
from strata.target import Target

from .database import Sizes
from .problem import KERNEL, Problem

PREFILL_TOKENS = 128
CONTEXT = 512  # tokens in the cache of a measured step
NO_LAUNCH = ("input", "param", "const", "reshape")


@dataclass(frozen=True, slots=True)
class ModelPass:
    """One model function at one size: ``tokens`` is the value of its symbolic dim."""

    function: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TuningTask:
    """A group to tune, at one size.

    Attributes:
        task: The group.
        name: In words, for people: ``"matmul [n,2048]x[2048,2560]"``.
        sizes: Value of every symbolic dim of its function.
        launches: Times per run of its pass.
        share: Fraction of the run time of all passes, by the plan's estimates.
        num_threads: Threads to measure with.
    """

    task: Task
    name: str
    sizes: Sizes
    launches: int
    share: float
    num_threads: int

    @property
    def label(self) -> str:
        """Name and sizes that vary: ``"matmul ... n=1"``."""
        shown = [f"{k}={v}" for k, v in self.sizes if k not in ("max_context", "num_pages", "table_width")]
        return " ".join((self.name, *shown))

    @property
    def naive(self) -> Func:
        """The function that every trace starts from."""
        return self.task.lowered.func

    def untuned(self) -> list[tuple[str, str, Func]]:
        """Name, trace text and function of everything that the rules propose."""
        return [(p.name, trace_text(p.trace), p.func) for p in propose(self.naive, self.task.target)]

    def other_sizes(self, rows: Sequence[int]) -> list[Sizes]:
        """The task's sizes with other values of the dim that a plan's choice depends on, inside its range."""
        dim = self.task.rows
        if not isinstance(dim, SymDim):
            return []
        values = dict.fromkeys(_inside(dim, value) for value in rows)
        return [tuple((k, value if k == dim.name else v) for k, v in self.sizes) for value in values]

    def problem(self) -> Problem:
        """What workers have to know; the last proposal of the rules says what is right."""
        return Problem(
            self.task.text,
            str(self.task.target),
            self.sizes,
            tuple(self.task.cache_fields.items()),
            self.task.weights,
            tuple(self.task.within.items()),
            kernel_text(self.untuned()[-1][2]),
            self.num_threads,
        )


def kernel_text(func: Func) -> str:
    """Text of a finalised function as workers build it: a neutral name, workspace as parameters.

    Raises:
        VerifyError: it allocates global memory in a loop.
    """
    hoisted = hoist_workspace(func).func
    return print_func(Func(KERNEL, hoisted.params, hoisted.body, hoisted.num_outputs))


def default_passes(module: Module) -> tuple[ModelPass, ...]:
    """Decoding one token and prefilling many; of other models each function at few and at many rows."""
    functions = {f.name: f for f in module.functions}
    if "decode" in functions and "prefill" in functions:
        return (ModelPass("decode", 1), ModelPass("prefill", PREFILL_TOKENS))
    found = []
    for name, function in functions.items():
        sizes = (1, PREFILL_TOKENS) if function.dims else (1,)
        found += [ModelPass(name, size) for size in sizes]
    return tuple(found)


def model_tasks(
    module: Module, target: Target, passes: Sequence[ModelPass] = (), num_threads: int | None = None
) -> list[TuningTask]:
    """Tuning tasks of a module, those with the largest share first.

    Args:
        module: After the pass pipeline: every launch is a ``fused`` node.
        target: The machine.
        passes: What the model is used for; default: :func:`default_passes`.
        num_threads: Threads to measure with; default: all cores of the target.

    Raises:
        UserError: a pass names no function, or a size out of its range.
    """
    if not reads_rows(module, PlanOptions()):
        module = join_gates(module, target)
    builder = StackBuilder(choose_layouts(module, target), target, loops=module.loops)
    chosen = tuple(passes) or default_passes(module)
    found: dict[tuple[str, Sizes], TuningTask] = {}
    for model_pass in chosen:
        function = _function(module, model_pass)
        units: dict[tuple[str, Sizes], TuningTask] = {}
        times: dict[tuple[str, Sizes], float] = {}
        for node in function.nodes:
            if node.op in NO_LAUNCH:
                continue
            kernels = builder.kernels_of(node)
            sizes = _sizes(kernels.task, model_pass.tokens)
            key = (kernels.task.key, sizes)
            times[key] = times.get(key, 0.0) + _estimate_s(kernels, model_pass.tokens)
            launches = units[key].launches + 1 if key in units else 1
            threads = num_threads or target.num_cores
            units[key] = TuningTask(kernels.task, _name(kernels.task), sizes, launches, 0.0, threads)
        total = sum(times.values()) * len(chosen) or 1.0
        for key, unit in units.items():
            before = found.get(key, unit)
            launches = max(before.launches, unit.launches)
            found[key] = replace(unit, share=before.share + times[key] / total, launches=launches)
    return sorted(found.values(), key=lambda t: -t.share)


def _function(module: Module, model_pass: ModelPass) -> Function:
    functions = {f.name: f for f in module.functions}
    if model_pass.function not in functions:
        raise UserError(
            f"tune: got function {model_pass.function!r}; expected one of {', '.join(sorted(functions))}"
        )
    function = functions[model_pass.function]
    for dim in function.dims:
        if not dim.lo <= model_pass.tokens <= dim.hi:
            raise UserError(
                f"tune: {model_pass.function}: got size {model_pass.tokens}; expected {dim.name} in "
                f"{dim.lo}..{dim.hi}"
            )
    return function


def _sizes(task: Task, tokens: int) -> Sizes:
    """Value of every symbolic dim: one sequence whose last ``tokens`` tokens are computed."""
    caches = [n.type for n in task.node.inputs if isinstance(n.type, CacheType)]
    context = max(CONTEXT, tokens)
    pages = -(-context // caches[0].page_size) if caches else 1
    fixed = {"num_seqs": 1, "max_context": context, "num_pages": pages, "table_width": pages}
    return tuple((d.name, fixed.get(d.name, _inside(d, tokens))) for d in task.dims)


def _inside(dim: SymDim, value: int) -> int:
    """``value`` or the nearest one that the dim may have."""
    value = max(dim.lo, min(dim.hi, value))
    return max(dim.lo, value - value % dim.multiple_of)


def _estimate_s(kernels: Kernels, tokens: int) -> float:
    """Seconds of the best candidate of the rules at the nearest size that the plan looked at."""
    found = []
    for candidate in kernels.stack.candidates:
        if candidate.origin is Origin.RULE:
            _, estimate = min(candidate.estimates, key=lambda e: abs(e[0] - tokens))
            found.append(estimate.time_s)
    return min(found, default=0.0)


def _name(task: Task) -> str:
    """The heavy op with the types of its operands."""
    node: Node = task.anchor
    shapes = [
        "x".join(str(d) for d in i.type.shape) for i in node.inputs if not isinstance(i.type, CacheType)
    ]
    dtype = next((str(i.type.dtype) for i in node.inputs if not isinstance(i.type, CacheType)), "")
    return f"{node.op} {dtype}[{'] ['.join(shapes)}]"


def sizes_text(sizes: Mapping[str, int] | Sizes) -> str:
    """``"n=1, num_seqs=1"``."""
    return ", ".join(f"{k}={v}" for k, v in dict(sizes).items())
