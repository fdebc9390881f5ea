"""Functions of this process as externs: Python, PyTorch and tvm-ffi functions that compiled code may call.

::

    strata.external("my.gelu", torch.nn.functional.gelu, "(x: f32[n,d]) -> (y: f32[n,d])", returns=True)

From then on ``call @my.gelu(x, y)`` may stand in loop functions (``loop.build.call``), and the function can
be a candidate for an op. Machine code calls it by the tvm-ffi convention, without a copy: a tvm-ffi function
gets DLPack tensors (and costs no Python), others get NumPy arrays or PyTorch tensors over the program's
memory, which are valid during the call only. An exception in the function is an ``ExternError`` of the
program call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tvm_ffi

from strata.codegen.externs import c_signature
from strata.core.errors import ParseError, ShapeError, UserError
from strata.loop.externs import EXTERNS, Convention, Extern, ExternParam, Role
from strata.loop.text import parse_func
from strata.runtime.externs import bind, guarded
from strata.runtime.libraries import LIBRARIES
from strata.runtime.tensors import as_tensor, numpy_dtype, type_text

Arrays = Literal["numpy", "torch"]


def external(
    name: str,
    function: Callable[..., Any],
    signature: str,
    *,
    returns: bool = False,
    arrays: Arrays | None = None,
) -> Extern:
    """Register a function of this process as an extern.

    Args:
        name: What calls say; letters, digits, ``_`` and ``.``.
        function: Takes one tensor per input, then (unless ``returns``) one per output, which it fills.
        signature: Inputs and outputs as in loop text, ``"(x: f32[n,64], w: f32[64,8]) -> (y: f32[n,8])"``; a
            name in a shape stands for one size wherever it occurs.
        returns: The function takes inputs only and returns its result (a tuple of several), which is copied.
        arrays: What a Python function is given; default PyTorch tensors for functions and modules of PyTorch,
            NumPy arrays (inputs read-only) for others. A ``tvm_ffi.Function`` always gets DLPack tensors.

    Returns:
        The extern; ``extern.name`` is what a call needs.

    Raises:
        ParseError: the signature is no signature.
        UserError: the name is malformed, taken, or that of a library; ``returns`` or ``arrays`` do not fit.
    """
    if not re.fullmatch(r"\w+(\.\w+)*", name) or name.partition(".")[0] in LIBRARIES:
        reserved = ", ".join(f"{x}." for x in LIBRARIES)
        raise UserError(
            f"external: got the name {name!r}; expected words joined by dots, not starting with {reserved}"
        )
    params = _params(name, signature)
    num_outputs = sum(p.role is Role.WRITE for p in params)
    if isinstance(function, tvm_ffi.Function):
        if returns or arrays is not None:
            raise UserError(
                f"external {name}: a tvm-ffi function fills DLPack tensors; expected no returns and no arrays"
            )
        native, semantics = function, _by_tensors(function)
    else:
        semantics = _Adapter(name, function, num_outputs, returns, arrays or _arrays_of(function))
        native = guarded(semantics)
    doc = (getattr(function, "__doc__", None) or "external function").strip().split("\n")[0]
    extern = EXTERNS.add(name, Extern(name, params, semantics, doc, Convention.TENSORS))
    bind(name, native, c_signature(extern))
    return extern


def _params(name: str, signature: str) -> tuple[ExternParam, ...]:
    try:
        func = parse_func(f"func @{name}{signature}\n  pass\n", f"signature of {name}")
    except ParseError as error:
        raise ParseError(f'{error}\nexpected a signature like "(x: f32[n,64]) -> (y: f32[n,64])"') from None
    first_output = len(func.params) - func.num_outputs
    if not func.num_outputs:
        raise ParseError(f"signature of {name}: got no outputs; expected a buffer that the function fills")
    return tuple(
        ExternParam(p.name, Role.READ if i < first_output else Role.WRITE, p.dtype, p.shape)
        for i, p in enumerate(func.params)
    )


def _arrays_of(function: object) -> Arrays:
    """PyTorch's own functions and modules take its tensors."""
    modules = [getattr(function, "__module__", None) or "", *(t.__module__ for t in type(function).__mro__)]
    return "torch" if any(m == "torch" or m.startswith("torch.") for m in modules) else "numpy"


def _by_tensors(function: tvm_ffi.Function) -> Callable[..., None]:
    def call(*arrays: np.ndarray) -> None:
        function(*map(as_tensor, arrays))

    return call


class _Adapter:
    """Calls a Python function with NumPy arrays: those of the inputs, then those of the outputs."""

    def __init__(
        self, name: str, function: Callable[..., Any], num_outputs: int, returns: bool, arrays: Arrays
    ) -> None:
        if arrays not in ("numpy", "torch"):
            raise UserError(f"external {name}: got arrays={arrays!r}; expected 'numpy' or 'torch'")
        self.name, self.function, self.num_outputs, self.returns = name, function, num_outputs, returns
        self.arrays = arrays

    def __call__(self, *arrays: np.ndarray) -> None:
        """Run the function; its outputs are written in place.

        Raises:
            ShapeError: it returns something else than the outputs.
        """
        inputs, outputs = arrays[: -self.num_outputs], arrays[-self.num_outputs :]
        if self.arrays == "torch":
            self._call_torch(inputs, outputs)
            return
        seen = [a.view() for a in inputs]
        for array in seen:
            array.flags.writeable = False
        if self.returns:
            self._copy(self.function(*seen), outputs, np.asarray)
        else:
            self._check(self.function(*seen, *outputs), outputs)

    def _call_torch(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        import torch

        seen, filled = [_torch(a) for a in inputs], [_torch(a) for a in outputs]
        with torch.no_grad():
            if self.returns:
                self._copy(self.function(*seen), outputs, _from_torch)
            else:
                self._check(self.function(*seen, *filled), filled)

    def _check(self, result: Any, outputs: Sequence[Any]) -> None:
        """A function that fills its outputs returns nothing, or one of them."""
        if result is not None and not any(result is output for output in outputs):
            raise ShapeError(
                f"it returned a {type(result).__name__}; expected that it fills its last arguments; "
                "if it returns its result, register it with returns=True"
            )

    def _copy(self, result: Any, outputs: Sequence[np.ndarray], convert: Callable[[Any], np.ndarray]) -> None:
        results = result if isinstance(result, tuple | list) else (result,)
        if len(results) != len(outputs):
            raise ShapeError(f"it returned {len(results)} results; expected {len(outputs)}")
        for value, output in zip(results, outputs, strict=True):
            array = convert(value)
            if array.shape != output.shape or array.dtype != output.dtype:
                raise ShapeError(f"it returned {type_text(array)}; expected {type_text(output)}")
            output[...] = array


def _torch(array: np.ndarray) -> Any:
    """A PyTorch tensor over the same memory."""
    import torch

    if array.dtype == numpy_dtype("bf16"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _from_torch(tensor: Any) -> np.ndarray:
    """NumPy view of a PyTorch tensor."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bf16"))
    return tensor.numpy()
