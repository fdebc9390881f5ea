"""Matrix products by oneDNN's C API (v3): one primitive per combination of shapes, created on first use.

A primitive is the code that oneDNN generates for shapes, dtypes and strides; it is kept and given new data
addresses at every call. Row-major operands are passed as they are, a transposed weight by its strides, so
nothing is copied here (oneDNN packs the weight inside of the call). Products of i8 are exact where the CPU
has VNNI; elsewhere oneDNN may saturate sums of two products to 16 bits.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from typing import Any

import tvm_ffi

from strata.core.errors import DeviceError

_CPU, _DEFAULT_STREAM = 1, 1
_SRC, _DST, _WEIGHTS = 1, 17, 33
_TYPES = {"bfloat16": 2, "float32": 3, "int32": 4, "int8": 5}  # dnnl_data_type_t
_MAX_DIMS = 12
_MAX_PRIMITIVES = 256

_Dims = ctypes.c_int64 * _MAX_DIMS
_Shape = tuple[int, int, int]
Tensor = Any  # tvm_ffi.Tensor over borrowed memory


class _Argument(ctypes.Structure):
    """``dnnl_exec_arg_t``."""

    _fields_ = (("arg", ctypes.c_int), ("memory", ctypes.c_void_p))


class OneDnn:
    """An engine and its primitives.

    Args:
        code: The loaded library.
        num_threads: Called before every product for its number of threads.
    """

    def __init__(self, code: ctypes.CDLL, num_threads: Callable[[], int]) -> None:
        self._code = code
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._products: dict[tuple[object, ...], _Product] = {}
        self.engine, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("engine_create", ctypes.byref(self.engine), _CPU, ctypes.c_size_t(0))
        self.call("stream_create", ctypes.byref(self.stream), self.engine, _DEFAULT_STREAM)

    def call(self, function: str, *args: object) -> None:
        """Call ``dnnl_<function>``.

        Raises:
            DeviceError: it returns a status other than success.
        """
        status = getattr(self._code, f"dnnl_{function}")(*args)
        if status:
            raise DeviceError(f"oneDNN: dnnl_{function} returned status {status}; expected 0")

    def matmul(self, a: Tensor, b: Tensor, c: Tensor, *, transposed: bool) -> None:
        """``c[..., m, n] = a[..., m, k] @ b[k, n]``, or ``b[n, k]`` transposed; batch dims of ``b`` are 1.

        Raises:
            DeviceError: oneDNN refuses.
        """
        (*rows, k), n = a.shape, c.shape[-1]
        m = math.prod(rows)
        types = (str(a.dtype), str(b.dtype), str(c.dtype))
        key = (m, k, n, transposed, types)
        with self._lock:
            # The OpenMP runtime keeps this number per calling thread.
            self._code.omp_set_num_threads(self._num_threads())
            product = self._products.get(key)
            if product is None:
                if len(self._products) >= _MAX_PRIMITIVES:
                    self._drop()
                product = self._products[key] = _Product(self, (m, k, n), types, transposed)
            product.run(self, a.data_ptr(), b.data_ptr(), c.data_ptr())

    def _drop(self) -> None:
        for product in self._products.values():
            product.destroy(self)
        self._products.clear()


class _Product:
    """A primitive and the memory objects that it is called with."""

    def __init__(self, dnn: OneDnn, sizes: _Shape, types: tuple[str, str, str], transposed: bool) -> None:
        m, k, n = sizes
        layouts = (
            ((m, k), (k, 1)),
            ((k, n), (1, k) if transposed else (n, 1)),
            ((m, n), (n, 1)),
        )
        descriptions = [self._description(dnn, *x, t) for x, t in zip(layouts, types, strict=True)]
        src, weights, dst = descriptions
        pd, self.primitive = ctypes.c_void_p(), ctypes.c_void_p()
        dnn.call("matmul_primitive_desc_create", ctypes.byref(pd), dnn.engine, src, weights, None, dst, None)
        dnn.call("primitive_create", ctypes.byref(self.primitive), pd)
        dnn.call("primitive_desc_destroy", pd)
        self.memories = []
        for description in descriptions:
            memory = ctypes.c_void_p()
            dnn.call("memory_create", ctypes.byref(memory), description, dnn.engine, None)
            dnn.call("memory_desc_destroy", description)
            self.memories.append(memory)
        places = zip((_SRC, _WEIGHTS, _DST), self.memories, strict=True)
        self.arguments = (_Argument * 3)(*(_Argument(arg, memory) for arg, memory in places))

    @staticmethod
    def _description(dnn: OneDnn, dims: tuple[int, int], strides: tuple[int, int], type_: str) -> Any:
        out = ctypes.c_void_p()
        shape, steps = _Dims(*dims), _Dims(*strides)
        dnn.call("memory_desc_create_with_strides", ctypes.byref(out), 2, shape, _TYPES[type_], steps)
        return out

    def run(self, dnn: OneDnn, *addresses: int) -> None:
        """Compute with operands at these addresses."""
        for memory, address in zip(self.memories, addresses, strict=True):
            dnn.call("memory_set_data_handle", memory, ctypes.c_void_p(address))
        dnn.call("primitive_execute", self.primitive, dnn.stream, 3, self.arguments)
        dnn.call("stream_wait", dnn.stream)

    def destroy(self, dnn: OneDnn) -> None:
        """Give the memory back."""
        for memory in self.memories:
            dnn.call("memory_destroy", memory)
        dnn.call("primitive_destroy", self.primitive)


def matmul_function(dnn: OneDnn, transposed: bool) -> tvm_ffi.Function:
    """:meth:`OneDnn.matmul` as a tvm-ffi function of three tensors."""

    def call(a: Tensor, b: Tensor, c: Tensor) -> None:
        dnn.matmul(a, b, c, transposed=transposed)

    return tvm_ffi.convert(call)
