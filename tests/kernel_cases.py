"""Op samples as loop functions with bound arrays: the interpreter and the machine code run on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401
import numpy as np
import tolerance

from strata.core.dims import evaluate
from strata.core.dtypes import dtype
from strata.core.kv_layout import LAYER_FIELDS
from strata.graph import interp
from strata.graph.cache_value import CacheValue
from strata.graph.nodes import Function
from strata.graph.opdef import OPS, Sample
from strata.graph.ops.quantized import group_size
from strata.graph.samples import op_samples, sample_function, sample_operands
from strata.graph.types import TensorType
from strata.loop.layout import Layout
from strata.loop.nodes import Func
from strata.lower import LOWERINGS, Binding, Lowered, lower_group
from strata.planner.workspace import WORKSPACE, hoist_workspace, with_workspace
from strata.schedule import apply_trace, finalize, propose
from strata.schedule.rules.quantized import quantized_layouts
from strata.target import Target

Run = Callable[[Func, list[np.ndarray]], object]


@dataclass(frozen=True)
class Case:
    """One op sample as a loop function."""

    name: str
    body: Function
    operands: list[Any]
    lowered: Lowered
    attrs: Mapping[str, Any]
    layouts: dict[int, Layout] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """Which layer of a cache the op works on."""
        return int(self.attrs.get("layer", 0))

    def check(self, func: Func, bindings: Sequence[Binding], run: Run) -> None:
        """Run ``func`` on fresh arrays and compare every result with the op's reference."""
        arrays = [self._array(p, b) for p, b in zip(func.params, bindings, strict=True)]
        run(func, arrays)
        expected = interp.run(self.body, self.operands)[0]
        for param, binding, array in zip(func.params, bindings, arrays, strict=True):
            if isinstance(expected, CacheValue):
                if binding.field in LAYER_FIELDS:
                    self._compare(array, expected[binding.field][self.layer], param.name)
            elif binding.operand == -1:
                self._compare(array, expected, param.name)

    def _array(self, param: Any, binding: Binding) -> np.ndarray:
        if binding.operand >= 0:
            value = self.operands[binding.operand]
            if binding.field:
                field = value[binding.field]
                value = field[self.layer] if binding.field in LAYER_FIELDS else field
            if binding.operand in self.layouts:
                return self.layouts[binding.operand].pack(value)
            stored = np.array(value, order="C", copy=True)
            return stored.view(np.uint8) if stored.dtype.name == "uint4" else stored
        env = self._dims()
        shape = tuple(evaluate(d, env) for d in param.shape)
        empty = np.empty(shape, np.dtype(param.dtype.numpy_name))
        if param.dtype.is_float:
            empty.fill(np.nan)
        return empty

    def _dims(self) -> dict[str, int]:
        caches = [x for x in self.operands if isinstance(x, CacheValue)]
        return dict(caches[0].dims) if caches else {}

    def _scale(self) -> float:
        """Size of the largest term that a sum may have: samples with cancellation have huge ones."""
        sizes = [
            float(np.abs(x[np.isfinite(x)].astype(np.float64)).max(initial=0))
            for x in self.operands
            if isinstance(x, np.ndarray) and x.dtype.kind not in "biu"
        ]
        largest = max(sizes, default=1.0)
        if self.body.name == "layer_norm":
            # An error of the mean (relative to the largest element) is divided by the standard deviation.
            spread = float(self.operands[0].astype(np.float64).std(axis=-1).min())
            return max(tolerance.SAMPLE_RMS, largest * largest / max(spread, 1e-6))
        if self.body.name == "quantized_matmul":
            return largest * max(sizes[1:]) * 256
        return max(tolerance.SAMPLE_RMS, largest * (min(sizes) if self.body.name == "matmul" else 1.0))

    def _compare(self, got: np.ndarray, expected: np.ndarray, what: str) -> None:
        kind = dtype(expected.dtype.name)
        limit = tolerance.for_(kind, _terms(self.body), scale=self._scale())
        if self.body.name == "paged_attention":
            limit = tolerance.for_op(self.body.name, self.operands, self.attrs, kind)
        np.testing.assert_allclose(
            got.astype(np.float64), np.asarray(expected, np.float64), **limit, err_msg=f"{self.name}: {what}"
        )


def _terms(body: Function) -> int:
    """Most elements that one result element may sum over."""
    sizes = [
        int(np.prod([evaluate(d, {}) for d in n.tensor.shape[-1:]]))
        for n in body.inputs
        if hasattr(n.type, "shape")
    ]
    return 4 * max(sizes, default=1)


def cases() -> list[Case]:
    """A case per sample of every op that has a lowering."""
    found = []
    for name, op, sample in op_samples():
        if op in LOWERINGS:
            found.append(make_case(name.replace("-", "_"), op, sample))
    return found


def tiled_cases(target: Target, limit: int | None = None) -> list[Case]:
    """Cases of products with quantised weights, stored in the tiles that kernels for ``target`` want."""
    found = []
    for name, op, sample in op_samples():
        if op == "quantized_matmul":
            types = [t for t in sample.types if isinstance(t, TensorType)]
            group = group_size(types[1], types[2])
            stored = quantized_layouts(types[1].dtype, types[2].dtype, group, target)
            layouts = dict(enumerate(stored[: len(types) - 1], 1))
            body = sample_function(op, sample)
            case_name = name.replace("-", "_") + "_tiled"
            lowered = lower_group(case_name, body, layouts)
            found.append(Case(case_name, body, sample_operands(op, sample), lowered, {}, layouts))
    return found[:limit]


def make_case(name: str, op: str, sample: Sample) -> Case:
    """The case of one sample."""
    body = sample_function(op, sample)
    attrs = OPS[op].complete_attrs(sample.attrs)
    return Case(name, body, sample_operands(op, sample), lower_group(name, body), attrs)


def scheduled(case: Case, target: Target) -> list[tuple[Func, tuple[Binding, ...]]]:
    """Every proposed schedule of a case, finalised, intermediates as parameters."""
    out = []
    for number, proposal in enumerate(propose(case.lowered.func, target)):
        func = finalize(apply_trace(case.lowered.func, proposal.trace))
        hoisted = hoist_workspace(func)
        bindings = with_workspace(case.lowered.bindings, case.lowered.func.num_outputs, len(hoisted.buffers))
        named = Func(
            f"{case.name}_{number}", hoisted.func.params, hoisted.func.body, hoisted.func.num_outputs
        )
        assert sum(b.operand == WORKSPACE for b in bindings) == len(hoisted.buffers)
        out.append((named, bindings))
    return out
