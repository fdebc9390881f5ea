"""``canonicalize``: one form for what can be written in several ways, and no op that does nothing.

Afterwards (on top of the type rules):

* no cast, reshape, slice, permute or broadcast that changes nothing; no two in a row where one does it;
* no ``x * 1``, ``x / 1``, ``x - 0`` or ``x + -0.0`` (``x + 0.0`` stays: it turns -0.0 into 0.0);
* constants whose elements are all equal are 0-d where broadcasting gives the same type, on the right of
  commutative ops;
* a matmul with a 2-d second operand is 2-d: leading dims of the first are flattened by reshapes, and reshapes
  move down through elementwise and row-wise ops until they meet and cancel;
* ops that read only the batch view of a cache (``rope``, ``last_tokens``, ...) read the cache that came in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.graph.nodes import Function
from strata.ir.passes import register_pass

from .base import FunctionPass
from .rules import Rule, simplify
from .rules_algebra import ALGEBRA_RULES
from .rules_shape import SHAPE_RULES

RULES: tuple[Rule, ...] = (*ALGEBRA_RULES, *SHAPE_RULES)


@register_pass
@dataclass(frozen=True)
class Canonicalize(FunctionPass):
    """Brings every function to one form, without ops that do nothing and with 2-d matmuls.

    The rules are at the top of the module.

    Stage: any graph -> canonical graph.
    Preserves: values bit by bit, function signatures.
    """

    name: ClassVar[str] = "canonicalize"

    def run_function(self, function: Function) -> Function:
        """Apply all rules to a fixpoint."""
        return simplify(function, RULES)
