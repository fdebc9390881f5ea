"""A Hugging Face model in PyTorch as the reference of ``compare``: values of its modules, by name.

A node is compared where it computes a module of the PyTorch model: its body then has an op on that module's
weights (found through the recipes of the params, so that a fused ``qkv_proj`` is ``q_proj``, ``k_proj`` and
``v_proj`` side by side). The module's output takes the place of that op's value, and what else is fused into
the node (a residual, an activation) is evaluated on the node's actual operands. The head is compared with the
logits. Nodes without weights, like attention, have no counterpart: an error in them shows in the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from strata.core.dims import evaluate
from strata.core.dtypes import f32
from strata.core.errors import UserError
from strata.engine.forward import ForwardPass
from strata.graph.interp import Value
from strata.graph.nodes import Function, Node
from strata.models import ModelDefinition
from strata.runtime.records import ArgKind
from strata.runtime.stepping import NodeEvent
from strata.runtime.tensors import numpy_dtype

from .compare import Array, Expected, Operands, accumulated_tolerance, body_values, node_body

LOGITS = "logits"
_WEIGHTED = ("matmul", "rms_norm", "layer_norm", "take")


class TorchModel:
    """Expects what the ``transformers`` model computes, in f32 on weights rounded to the model's format.

    Args:
        folder: The Hugging Face folder that the program was compiled from.
        definition: Its graph: says which tensors of the checkpoint a param is made of.
        forward: The pass to compare.

    Raises:
        UserError: PyTorch or transformers is missing, or cannot load the folder.
    """

    def __init__(self, folder: Path, definition: ModelDefinition, forward: ForwardPass) -> None:
        self.name = "PyTorch"
        self._definition = definition
        self._operands = Operands(forward)
        self._rows = slice(forward.past_tokens, len(forward.all_ids))
        self._forward = forward
        self._outputs = module_outputs(folder, str(definition.config["format"]), forward.all_ids)

    def expected(self, event: NodeEvent) -> Sequence[Expected]:
        """The modules' outputs, passed through the rest of the node; see ``compare.Reference``."""
        body = node_body(event.node)
        (result,) = body.outputs
        known: dict[int, Value] = {}
        for inner in body.nodes:
            if inner.op in _WEIGHTED:
                names = self._modules(event, body, inner)
                value = self._module_value(inner, names)
                if value is not None:
                    known[id(self._with_bias(event, body, inner, names))] = value
        if not known:
            return ()
        value = body_values(body, self._operands.of(event), self._operands.env, known)[id(result)]
        if not isinstance(value, np.ndarray):
            return ()
        limits = accumulated_tolerance(value, event.node.index, self._forward, None)
        return (Expected(0, value, limits),)

    def _modules(self, event: NodeEvent, body: Function, inner: Node) -> tuple[str, ...]:
        """Names of the PyTorch modules whose weights an op of the body uses."""
        for operand in inner.inputs:
            for number, given in enumerate(body.inputs):
                if given is operand:
                    place = event.node.details["operands"][number]
                    ref = None if place is None else event.node.inputs[place].place
                    if ref is not None and ref.kind is ArgKind.PARAM:
                        name = self._operands.program.record.params[ref.index].name
                        source = self._definition.sources.get(name)
                        if source is not None:
                            return tuple(t.rpartition(".")[0] for t, _ in source.tensors)
        return ()

    def _module_value(self, inner: Node, names: Sequence[str]) -> Array | None:
        """Outputs of these modules side by side, as the value of ``inner``; ``None`` if they do not fit."""
        shape = tuple(evaluate(d, self._operands.env) for d in inner.tensor.shape)
        if not names or any(name not in self._outputs for name in names):
            return None
        parts = [self._outputs[name] for name in names]
        value = np.concatenate(parts, axis=-1)[self._rows]
        if inner.op == "matmul" and value.shape[-1] != shape[-1]:  # the head on the embedding's weights
            value = self._outputs[LOGITS][self._rows]
        if len(value) > shape[0]:
            value = value[-shape[0] :]  # only the last token goes on to the head
        if value.size != int(np.prod(shape)):
            return None
        return value.reshape(shape).astype(numpy_dtype(inner.tensor.dtype.name))

    def _with_bias(self, event: NodeEvent, body: Function, inner: Node, names: Sequence[str]) -> Node:
        """The op that adds the bias of the same modules, if one follows."""
        for user in body.nodes:
            if user.op == "add" and inner in user.inputs and self._modules(event, body, user) == names:
                return user
        return inner


def import_torch() -> tuple[ModuleType, ModuleType]:
    """PyTorch and transformers.

    Raises:
        UserError: one is not installed.
    """
    if sys.modules.get("torch", ...) is None:  # the command line keeps others from importing it
        del sys.modules["torch"]
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"torch: cannot import {error.name}: pip install 'strata-llm[torch]'") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return torch, transformers


def module_outputs(folder: Path, format_: str, ids: Array) -> dict[str, Array]:
    """Output of every module of the model in ``folder``: f32 ``[tokens, ...]`` by name, and the logits.

    Raises:
        UserError: PyTorch is missing or cannot load the model.
    """
    torch, transformers = import_torch()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load it: {error!s:.200}") from error
    model.eval()
    if format_ != f32.name:
        kind = {"bf16": torch.bfloat16, "f16": torch.float16}[format_]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # vectors stay f32, as in Strata
                    parameter.copy_(parameter.to(kind).float())
    outputs: dict[str, Array] = {}

    def watch(name: str) -> Any:
        def note(module: Any, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.ndim >= 2:
                value = first.detach().float().numpy()
                outputs[name] = value[0] if value.shape[0] == 1 else value

        return note

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids.astype(np.int64)[None])).logits
    outputs[LOGITS] = logits[0].float().numpy()
    return outputs
