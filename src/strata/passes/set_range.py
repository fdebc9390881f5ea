"""``set_range``: another range for a symbolic dim, or a fixed value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.core.dims import Dim, SymDim, bounds
from strata.graph.dims import with_dims
from strata.graph.nodes import Function, Module
from strata.ir.passes import OptionError, Pass, register_pass


@register_pass
@dataclass(frozen=True)
class SetRange(Pass[Module]):
    """Gives a symbolic dim the range ``lo..hi``; kernels and memory are then planned for just these sizes.

    A range of one size makes the dim a number. Functions without the dim stay as they are.

    Options:
        dim: Name of the dim.
        lo: Smallest size; 0 = as it is.
        hi: Largest size; 0 = as it is.

    Stage: any graph -> the same.
    Preserves: values, for the sizes of the range.
    """

    name: ClassVar[str] = "set_range"
    dim: str = ""
    lo: int = 0
    hi: int = 0

    def run(self, module: Module) -> Module:
        """Rebuild the functions that have the dim.

        Raises:
            OptionError: no function has it, or the range is empty.
        """
        known = {d.name for f in module.functions for d in f.dims}
        if self.dim not in known:
            raise OptionError(
                f"{self}: no symbolic dim {self.dim!r}; there are: {', '.join(sorted(known)) or 'none'}"
            )
        return module.map(self._narrowed)

    def _narrowed(self, function: Function) -> Function:
        old = next((d for d in function.dims if d.name == self.dim), None)
        if old is None:
            return function
        lo, hi = self.lo or old.lo, self.hi or old.hi
        if lo > hi or hi % old.multiple_of:
            raise OptionError(
                f"{self}: got the range {lo}..{hi}; expected multiples of {old.multiple_of}, lo <= hi"
            )
        first = -(-lo // old.multiple_of) * old.multiple_of
        new: Dim = first if first == hi else SymDim(self.dim, lo, hi, old.multiple_of)
        assert bounds(new)[1] == hi
        return with_dims(function, {self.dim: new})
