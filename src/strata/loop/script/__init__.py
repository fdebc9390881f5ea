"""Kernels written in Python: ``script(function)`` reads the source of a Python function as a loop function.

::

    n = strata.dim("n", 1, 4096)

    def dense(x: f32[n, 256], w: f32[512, 256], y: Out[f32[n, 512]]):
        for i, j, k in block("dense", n, 512, reduce(256)):
            with init():
                y[i, j] = 0.0
            y[i, j] += x[i, k] * w[j, k]

The language is Python's syntax with the words of :mod:`.language`:

============================================ ===============================================================
``for i, j in grid(n, 512):``                loops; also ``parallel``, ``unroll``, ``vectorize``, ``range``
``for i, k in block("b", n, reduce(256)):``  loops around a block that has an axis for each of them
``with block("b", reduce(k)):``              a block in loops that are there
``with init():``                             first in a block: where its reduction axes are 0
``y[i, j] = x[i, j] * 2.0``                  loads and stores; ``x[i, j : j + 16]`` is a vector
``t = x[i]``                                 a name; changed in an inner suite, it lives in a register
``a if c else b``, ``and``, ``or``           both sides are computed, memory is read as in Python
``if c:``                                    a branch; for a vector ``c``, a mask for loads and stores
``t = local(f32[8])``                        a buffer; also ``register`` and ``alloc``
``f32(x)``, ``exp(x)``, ``min(a, b)``        casts and functions; ``intrinsic.fma(a, b, c)`` by name
``helper(x[i], 3)``                          other Python functions are read in place of their call
============================================ ===============================================================

What Python knows (numbers, tuples, sizes, names of the scope around the function) is computed while the
kernel is read: ``if`` and ``for`` over constants are decided and expanded. A bare float is an ``f32``, or
what the other operand is.
"""

from __future__ import annotations

from .function import script

__all__ = ["script"]
