"""Limits as prices: lower bounds, and plans within the limits that are nearly best, in no time.

Instead of forbidding to exceed a limit, pay for it: at any price the best plan then costs no more than the
best one within the limit, and elimination finds it (Geoffrion, *Lagrangean relaxation for integer
programming*, Mathematical Programming Study 2, 1974). Between the best plans within the limits and beyond,
some of the parts in which they differ are taken from the one, some from the other, as in a knapsack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .limits import TOLERANCE, Limits, backing, budget_amounts, kept_values, uses
from .result import totals
from .weighted import Amounts, Weighted

NUM_PRICES = 33  # tried at once
_DECADES = 4  # of prices to either side of objective / limit
_ROUNDS = 3
_REPAIRS = 16  # parts tried after the first that did not fit


@dataclass(frozen=True, slots=True)
class _Priced:
    """What is paid for: ``per_second * time + per_joule * energy + amounts``, beyond ``limit``.

    That is what the limit is of, or less; ``size`` is what it may be like, if the limit is 0.
    """

    limit: float
    size: float = 1.0
    per_second: float = 0.0
    per_joule: float = 0.0
    amounts: Amounts | None = None


@dataclass(frozen=True, slots=True)
class _Plans:
    """Plans side by side: choices i16 ``[W, T]``, f64 ``[T]`` values of the objective, bool ``[T]``."""

    choices: np.ndarray
    values: np.ndarray
    is_within: np.ndarray


class Relaxation:
    """One weighted sum within limits, on a graph of one point."""

    def __init__(self, weighted: Weighted, limits: Limits, per_second: float, per_joule: float) -> None:
        self.weighted, self.limits = weighted, limits
        self.per_second, self.per_joule = per_second, per_joule
        self.bound, self.start_j = 0.0, 0.0  # J of the best plan without limits
        self.inside: tuple[float, np.ndarray] | None = None  # the best plan within the limits so far
        self.outside: tuple[float, np.ndarray] | None = None  # the dearest of those that exceed one
        self._search()

    @property
    def hint(self) -> np.ndarray | None:
        """Choices i16 ``[W]`` within the limits, if some were met."""
        return None if self.inside is None else self.inside[1]

    def _search(self) -> None:
        self._at_prices(np.zeros(1), _Priced(0.0))
        for priced in self._priced():
            price = (self.bound or 1.0) / (priced.limit or priced.size)
            prices = price * np.logspace(-_DECADES, _DECADES, NUM_PRICES)
            for _ in range(_ROUNDS):
                k = int(self._at_prices(prices, priced).argmax())
                prices = np.linspace(prices[max(0, k - 1)], prices[min(len(prices) - 1, k + 1)], NUM_PRICES)
        if self.inside is not None and self.outside is not None:
            self._mix(*self.inside, self.outside[1])

    def _at_prices(self, prices: np.ndarray, priced: _Priced) -> np.ndarray:
        """Solve at prices ``[T]``: a lower bound from each."""
        x_weight = self.per_second + prices * priced.per_second
        y_weight = self.per_joule + prices * priced.per_joule
        extra = None if priced.amounts is None else (priced.amounts, prices)
        at = np.zeros(len(prices), int)
        choices, times_s, energies_j, least = self.weighted.with_costs(at, x_weight, y_weight, extra)
        bounds = least - prices * priced.limit
        self._plans(choices, times_s, energies_j)
        self.start_j = self.start_j or float(energies_j[0])
        self.bound = max(self.bound, float(bounds.max()))
        return bounds

    def _plans(self, choices: np.ndarray, times_s: np.ndarray, energies_j: np.ndarray) -> _Plans:
        """Look at plans, and remember the best ones."""
        graph = self.weighted.graph.at(np.zeros(choices.shape[1], int), terms=False)
        exceeded = [use.exceeded for use in uses(graph, self.limits, choices, times_s, energies_j)]
        values = self.per_second * times_s + self.per_joule * energies_j
        is_within = ~np.logical_or.reduce(exceeded) if exceeded else np.ones(len(values), bool)
        for k, (value, fits) in enumerate(zip(values.tolist(), is_within.tolist(), strict=True)):
            if fits and (self.inside is None or value < self.inside[0]):
                self.inside = value, choices[:, k]
            if not fits and (self.outside is None or value > self.outside[0]):
                self.outside = value, choices[:, k]
        return _Plans(choices, values, is_within)

    def _priced(self) -> Iterator[_Priced]:
        limits, graph = self.limits, self.weighted.graph
        if limits.power_w is not None:
            # Energy less what may be drawn in the time that the run takes: slower is better, at a price.
            power_w = limits.power_w * (1 + TOLERANCE)
            yield _Priced(0.0, self.start_j or 1.0, per_second=-power_w, per_joule=1.0)
        if limits.time_s is not None:
            yield _Priced(limits.time_s, per_second=1.0)
        if limits.energy_j is not None:
            yield _Priced(limits.energy_j, per_joule=1.0)
        for budget in limits.budgets:
            yield _Priced(budget.limit, amounts=self._rows(budget_amounts(graph, budget)))
        if limits.capacity:
            home = backing(graph.machine, graph.machine.home)
            for memory in graph.machine.memories:
                if memory.parent is None and np.isfinite(memory.capacity_bytes) and memory.name != home:
                    yield _Priced(memory.capacity_bytes, amounts=self._rows(self._bytes_at(memory.name)))

    def _bytes_at(self, memory: str) -> Iterator[tuple[int, int, float]]:
        """Weights by the first work that reads them: no more than what is kept in the memory."""
        graph = self.weighted.graph
        behind = {d.name: backing(graph.machine, d.memory) for d in graph.machine.devices}
        for readers, size in kept_values(graph):
            for k, candidate in enumerate(graph.stacks[readers[0]] if readers else ()):
                if behind[candidate.device] == memory:
                    yield readers[0], k, float(size[0])

    def _rows(self, amounts: Iterator[tuple[int, int, float]]) -> Amounts:
        rows: dict[int, np.ndarray] = {}
        for work, k, amount in amounts:
            rows.setdefault(work, np.zeros(len(self.weighted.graph.stacks[work])))[k] += amount
        return rows

    # --- between two plans -------------------------------------------------------------------------

    def _mix(self, value: float, inside: np.ndarray, outside: np.ndarray) -> None:
        """Take as many parts of ``outside`` as the limits allow, the best bargains first."""
        parts = self._parts(np.flatnonzero(inside != outside).tolist())
        alone = self._with([[part] for part in parts], inside, outside)
        gains = value - alone.values
        order = [k for k in np.argsort(-gains, kind="stable").tolist() if gains[k] > 0]
        taken: list[list[int]] = []
        for _ in range(_REPAIRS):
            if not order:
                return
            steps = [[*taken, *[parts[k] for k in order[:n]]] for n in range(1, len(order) + 1)]
            fits = self._with(steps, inside, outside).is_within
            count = len(order) if fits.all() else int((~fits).argmax())
            taken += [parts[k] for k in order[:count]]
            order = order[count + 1 :]

    def _with(self, sets: list[list[list[int]]], inside: np.ndarray, outside: np.ndarray) -> _Plans:
        """The plan ``inside`` with some parts of ``outside``, for each set of parts."""
        choices = np.repeat(inside[:, None], len(sets), 1)
        for k, parts in enumerate(sets):
            for part in parts:
                choices[part, k] = outside[part]
        graph = self.weighted.graph.at(np.zeros(len(sets), int), terms=False)
        return self._plans(choices, *totals(graph, choices))

    def _parts(self, works: list[int]) -> list[list[int]]:
        """Works in groups that share no transfer with one another."""
        parent = {k: k for k in works}

        def root(k: int) -> int:
            while parent[k] != k:
                k = parent[k]
            return k

        for transfer in self.weighted.graph.transfers:
            ends = [transfer.producer, *transfer.consumers]
            together = [k for k in ends if k in parent]
            for k in together[1:]:
                parent[root(k)] = root(together[0])
        groups: dict[int, list[int]] = {}
        for k in works:
            groups.setdefault(root(k), []).append(k)
        return list(groups.values())
