"""A stacked graph at one point as an integer program, for what limits couple all over the graph.

Variables: one per candidate; "the work is at this place", "the value is brought to this place", "from there
to here" follow from them, both ways, so that a plan costs exactly what
:func:`~strata.planner.devices.result.totals` says, also where a limit rewards spending. OR-Tools' CP-SAT
solves it; costs are scaled to integers, and what that loses is taken off the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strata.core.errors import UnsupportedError

from .limits import TOLERANCE, Limits, backing, budget_amounts, kept_values
from .types import Estimates, StackedGraph, Transfer

Literal = Any  # a CP-SAT variable, True, or False
_LARGEST_SUM = 2.0**50  # CP-SAT adds in 64 bits, and its linear relaxation in f64


@dataclass(slots=True)
class Form:
    """A linear function of the literals: ``constant + sum of coefficient * literal``."""

    literals: list[Literal] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)
    constant: float = 0.0

    def add(self, literal: Literal, coefficient: float) -> None:
        """Charge a coefficient if a literal holds."""
        if literal is True:
            self.constant += coefficient
        elif literal is not False and coefficient:
            self.literals.append(literal)
            self.coefficients.append(coefficient)

    def plus(self, other: Form, weight: float, own_weight: float = 1.0) -> Form:
        """A weighted sum."""
        return Form(
            self.literals + other.literals,
            [own_weight * c for c in self.coefficients] + [weight * c for c in other.coefficients],
            own_weight * self.constant + weight * other.constant,
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """``form <= limit``, what it is of, and its unit; for a power limit, ``energy - limit * time <= 0``."""

    name: str
    unit: str
    form: Form
    limit: float


@dataclass(frozen=True, slots=True)
class Found:
    """Choices i16 ``[W]`` and a bound of the objective; ``None``: nothing is feasible."""

    choices: np.ndarray | None
    bound: float


class Program:
    """The integer program of one point.

    Attributes:
        time, energy: Of a sequential run, as forms.
        bounds: The limits.
    """

    def __init__(self, graph: StackedGraph, point: int, limits: Limits) -> None:
        self.cp = _cp_sat()
        self.graph, self.point, self.limits = graph, point, limits
        self.model = self.cp.CpModel()
        self.time, self.energy = Form(), Form()
        self.derived: list[tuple[Literal, str, list[Literal]]] = []
        self.known: dict[object, Literal] = {}
        self.picks = [self._work(stack) for stack in graph.stacks]
        for transfer in graph.transfers:
            self._transfer(transfer)
        self.bounds = self._bounds()

    # --- variables ---------------------------------------------------------------------------------

    def _work(self, stack: tuple[Any, ...]) -> list[Literal]:
        picks = [True] if len(stack) == 1 else [self.model.new_bool_var("") for _ in stack]
        if len(stack) > 1:
            self.model.add_exactly_one(picks)
        for pick, candidate in zip(picks, stack, strict=True):
            self._charge(pick, candidate.estimates)
        return picks

    def _charge(self, literal: Literal, estimates: Estimates) -> None:
        time_s, energy_j = float(estimates.time_s[self.point]), float(estimates.energy_j[self.point])
        if math.isfinite(time_s) and math.isfinite(energy_j):
            self.time.add(literal, time_s)
            self.energy.add(literal, energy_j)
        elif literal is not False:
            self.model.add_bool_or([False] if literal is True else [~literal])

    def _any(self, literals: Sequence[Literal], op: str = "or") -> Literal:
        """One of the literals holds; ``op`` is ``"sum"`` where at most one can."""
        literals = [x for x in literals if x is not False]
        if any(x is True for x in literals) or len(literals) < 2:
            return False if not literals else True if any(x is True for x in literals) else literals[0]
        key = (op, *sorted(x.index for x in literals))
        if key not in self.known:
            made = self.model.new_bool_var("")
            if op == "sum":
                self.model.add(sum(literals) == made)
            else:
                for x in literals:
                    self.model.add_implication(x, made)
                self.model.add_bool_or([*literals, ~made])
            self.derived.append((made, "or", literals))
            self.known[key] = made
        return self.known[key]

    def _at(self, work: int, place: str, by_device: bool) -> Literal:
        """The work is at a place."""
        stack, picks = self.graph.stacks[work], self.picks[work]
        names = [c.device if by_device else c.memory for c in stack]
        if set(names) == {place}:
            return True
        return self._any([x for x, name in zip(picks, names, strict=True) if name == place], "sum")

    def _transfer(self, transfer: Transfer) -> None:
        if transfer.producer is None:
            origins = {self.graph.machine.home: True}
        else:
            names = {
                c.device if transfer.by_device else c.memory for c in self.graph.stacks[transfer.producer]
            }
            origins = {n: self._at(transfer.producer, n, transfer.by_device) for n in sorted(names)}
        for to in dict.fromkeys(to for _, to in transfer.costs):
            readers = [self._at(k, to, transfer.by_device) for k in transfer.consumers]
            for present in [self._any(readers)] if transfer.shared else readers:
                self._move(transfer, to, present, origins)

    def _move(self, transfer: Transfer, to: str, present: Literal, origins: dict[str, Literal]) -> None:
        """Charge bringing a value to a place, if it is ``present`` there, by where it comes from."""
        if present is False:
            return
        moves: list[Literal] = []
        for origin, here in origins.items():
            estimates = transfer.costs.get((origin, to))
            if estimates is None:
                moves.append(here)  # from there it is free
                continue
            moves.append(self._both(here, present))
            self._charge(moves[-1], estimates)
        # It comes from one of the places: a tighter relaxation than one origin at a time.
        if all(x is not True for x in moves):
            self.model.add_bool_or([*moves] if present is True else [*moves, ~present])

    def _both(self, one: Literal, other: Literal) -> Literal:
        if one is True or other is True:
            return other if one is True else one
        made = self.model.new_bool_var("")
        self.model.add_implication(made, one)
        self.model.add_implication(made, other)
        self.model.add_bool_or([~one, ~other, made])
        self.derived.append((made, "and", [one, other]))
        return made

    # --- limits ------------------------------------------------------------------------------------

    def _bounds(self) -> tuple[Bound, ...]:
        limits, found = self.limits, []
        if limits.time_s is not None:
            found.append(Bound("time", "s", self.time, limits.time_s))
        if limits.energy_j is not None:
            found.append(Bound("energy", "J", self.energy, limits.energy_j))
        if limits.power_w is not None:
            form = self.energy.plus(self.time, -limits.power_w * (1 + TOLERANCE))
            found.append(Bound("power", "W", form, limits.power_w))
        if limits.capacity:
            found += self._capacities()
        for budget in limits.budgets:
            form = Form()
            for work, k, amount in budget_amounts(self.graph, budget):
                form.add(self.picks[work][k], amount)
            found.append(Bound(budget.name, budget.unit, form, budget.limit))
        return tuple(found)

    def _capacities(self) -> list[Bound]:
        machine = self.graph.machine
        home = backing(machine, machine.home)
        limited = [m for m in machine.memories if m.parent is None and math.isfinite(m.capacity_bytes)]
        forms = {m.name: Form() for m in limited}
        behind = {d.name: backing(machine, d.memory) for d in machine.devices}
        for readers, sizes in kept_values(self.graph):
            for memory, form in forms.items():
                there = [
                    x
                    for work in readers
                    for x, c in zip(self.picks[work], self.graph.stacks[work], strict=True)
                    if behind[c.device] == memory
                ]
                form.add(True if memory == home else self._any(there), float(sizes[self.point]))
        return [Bound(f"memory {m.name}", "bytes", forms[m.name], m.capacity_bytes) for m in limited]

    # --- solving -----------------------------------------------------------------------------------

    def minimise(
        self, objective: Form, bounds: Sequence[Bound], least: float, hint: np.ndarray | None = None
    ) -> Found:
        """The least objective under some of the bounds.

        Args:
            objective: What to minimise.
            bounds: What to keep.
            least: Magnitude of the result, as far as known: costs are scaled by it.
            hint: Choices i16 ``[W]`` to begin with.

        Raises:
            UnsupportedError: no plan was found, and none proven impossible, within the effort.
        """
        cp, model = self.cp, self.model.clone()
        for bound in bounds:
            self._keep(model, bound)
        scale = _scale(objective, least)
        whole = [round(c * scale) for c in objective.coefficients]
        model.minimize(cp.LinearExpr.weighted_sum(objective.literals, whole))
        if hint is not None:
            self._hint(model, hint)
        solver = cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = self.limits.effort
        # This step of the presolve of OR-Tools 9.15 loses solutions (google/or-tools#5293); ours too, under
        # power limits, 3 of 474 times in random graphs.
        solver.parameters.presolve_inclusion_work_limit = 0
        match solver.solve(model):
            case cp.OPTIMAL | cp.FEASIBLE:
                bound = (solver.best_objective_bound - len(whole) / 2) / scale + objective.constant
                return Found(self._choices(solver), bound)
            case cp.UNKNOWN if hint is not None:
                return Found(hint, -math.inf)
            case cp.INFEASIBLE:
                return Found(None, math.inf)
            case _:
                raise UnsupportedError(
                    f"plan of {self.graph.workload.name}: in {self.limits.effort:g} deterministic seconds no "
                    "plan was found within the limits, nor proven that there is none; raise effort "
                    "or loosen a limit"
                )

    def _keep(self, model: Any, bound: Bound) -> None:
        """Add ``form <= limit``, rounded so that no plan that meets it is lost."""
        form, power = bound.form, bound.name == "power"
        scale = _scale(form, 0.0 if power else bound.limit)
        whole = [math.floor(c * scale) for c in form.coefficients]
        slack = (0.0 if power else bound.limit * (1 + TOLERANCE)) - form.constant
        model.add(self.cp.LinearExpr.weighted_sum(form.literals, whole) <= math.ceil(slack * scale))

    def _hint(self, model: Any, choices: np.ndarray) -> None:
        values: dict[int, bool] = {}
        for picks, chosen in zip(self.picks, choices.tolist(), strict=True):
            if picks[0] is not True:
                values |= {x.index: k == chosen for k, x in enumerate(picks)}
        for made, op, literals in self.derived:
            given = [values[x.index] for x in literals]
            values[made.index] = all(given) if op == "and" else any(given)
        for index, value in values.items():
            model.add_hint(model.get_bool_var_from_proto_index(index), value)

    def _choices(self, solver: Any) -> np.ndarray:
        chosen = [
            0 if p[0] is True else next(k for k, x in enumerate(p) if solver.boolean_value(x))
            for p in self.picks
        ]
        return np.array(chosen, np.int16)


def _scale(form: Form, reference: float) -> float:
    """Integers per unit: rounding all terms loses less than ``TOLERANCE`` of ``reference``, if they fit."""
    total = sum(map(abs, form.coefficients)) + abs(form.constant)
    fine = (len(form.coefficients) + 1) / (TOLERANCE * reference) if reference > 0 else math.inf
    return min(fine, _LARGEST_SUM / total) if total > 0 else 1.0


def _cp_sat() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise UnsupportedError(
            "plan: limits that the best plan exceeds need OR-Tools; pip install 'strata-llm[planner]', or "
            "loosen the limits"
        ) from None
    return cp_model
