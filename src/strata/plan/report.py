"""The plan as data: every choice with the candidates that lost, for ``plan.json`` and the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from .assemble import PlannedFunction, PlannedLaunch


def plan_json(functions: Iterable[PlannedFunction]) -> dict[str, Any]:
    """Every launch of every function: its candidates with traces and estimates, and when each runs."""
    return {
        p.record.name: {"launches": [_launch(x) for x in p.launches], "arena_bytes": p.record.arena_bytes}
        for p in functions
    }


def _launch(launch: PlannedLaunch) -> dict[str, Any]:
    return {
        "node": launch.node,
        "op": launch.op,
        "candidates": [
            {
                "name": c.name,
                "kernel": c.func.name,
                "trace": c.trace,
                "estimates": [{"size": size, **asdict(e)} for size, e in c.estimates],
            }
            for c in launch.stack.candidates
        ],
        "choices": [{"candidate": c.candidate, "when": [asdict(r) for r in c.when]} for c in launch.choices],
    }
