"""Tuning tasks of a small model for the "zen4" machine."""

from __future__ import annotations

import pytest
from tuning_cases import TARGET, StaticRunner, mlp

from strata.planner.tuning.tasks import ModelPass, TuningTask, model_tasks


@pytest.fixture
def tasks() -> list[TuningTask]:
    return model_tasks(mlp(), TARGET, [ModelPass("main", 1), ModelPass("main", 48)], num_threads=1)


@pytest.fixture
def task(tasks: list[TuningTask]) -> TuningTask:
    return next(t for t in tasks if dict(t.sizes) == {"n": 48})


@pytest.fixture
def runner() -> StaticRunner:
    return StaticRunner()
