"""Execution orders: works and moves in time, on devices that work at the same moment.

::

    tasks      the stacked graph at one point as tasks on resources: what may overlap, and what may not
    listing    orders by priority, in a given sequence, or one task after the other
    check      whether an order is legal
    bounds     times that no order undercuts
    cuts       splits a graph where everything passes through one work
    cpsat      best choices and order of a part, by OR-Tools
    search     best choices and order of the whole, with the bound
    occupancy  bytes alive in each memory, and energy spent, over time
"""

from .check import validate_order
from .listing import list_schedule, sequential_order
from .occupancy import energy_spent, occupancy
from .search import minimise_makespan, missing_solver

__all__ = [
    "energy_spent",
    "list_schedule",
    "minimise_makespan",
    "missing_solver",
    "occupancy",
    "sequential_order",
    "validate_order",
]
