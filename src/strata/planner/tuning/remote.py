"""Workers on other machines, through Ray (the extra ``ray``): one actor per node of the cluster.

Each actor has a local worker of its own, so that a kernel which crashes does not take the actor with it. The
results of a trial are on their way back as soon as it ends; when an actor or its node is lost, the trial that
it was at goes to another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from strata.core.errors import DeviceError
from strata.planner.cluster import connect
from strata.target.detect import host_features
from strata.target.machine import parse_target

from .problem import Limits, Outcome, Trial
from .workers import LocalWorkers

_log = logging.getLogger("strata.tuning")
MAX_ATTEMPTS = 3  # of a trial whose worker is lost


class TrialActor:
    """What runs on a node: one local worker."""

    def __init__(self, limits: Limits) -> None:
        self._workers = LocalWorkers(1, limits)

    def process_id(self) -> int:
        """Of the actor."""
        return os.getpid()

    def run(self, trial: Trial) -> Outcome:
        """Build and measure."""
        target = parse_target(trial.problem.target)
        missing = sorted(set(target.features) - set(host_features()))
        if missing:
            return Outcome(None, error=f"this node lacks {', '.join(missing)}")
        return next(outcome for _, outcome in self._workers.run([trial]))


class RayWorkers:
    """A runner on the nodes of a Ray cluster; a context manager.

    Args:
        address: Of the cluster (``"auto"``, ``"10.0.0.1:6379"``, ``"ray://..."``).
        limits: When a job is ended.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, limits: Limits | None = None) -> None:
        self._ray = connect(address)
        self._limits = limits or Limits()
        self._actors: dict[str, Any] = {}  # by node

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors and leave the cluster."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._ray.shutdown()

    def _nodes(self) -> list[str]:
        return sorted(n["NodeID"] for n in self._ray.nodes() if n["Alive"])

    def _actor(self, node: str) -> Any:
        """The actor of a node; a new one if there is none (any more)."""
        if node not in self._actors:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            place = NodeAffinitySchedulingStrategy(node, soft=False)
            remote = self._ray.remote(num_cpus=0, scheduling_strategy=place)(TrialActor)
            self._actors[node] = remote.remote(self._limits)
        return self._actors[node]

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """Each node works at one trial at a time.

        Raises:
            DeviceError: no node is left.
        """
        waiting = list(range(len(trials)))[::-1]
        attempts = dict.fromkeys(waiting, 0)
        busy: dict[Any, tuple[int, str]] = {}  # future -> trial, node
        while waiting or busy:
            working = {node for _, node in busy.values()}
            nodes = self._nodes()
            if not nodes:
                raise DeviceError("--ray: no node of the cluster is alive; restart it and tune again")
            for node in nodes:
                if waiting and node not in working:
                    number = waiting.pop()
                    busy[self._actor(node).run.remote(trials[number])] = (number, node)
            (done, *_), _ = self._ray.wait(list(busy), num_returns=1)
            number, node = busy.pop(done)
            try:
                yield number, self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                _log.warning(
                    "--ray: a worker is lost (%s); its trial goes to another one", type(error).__name__
                )
                self._actors.pop(node, None)
                attempts[number] += 1
                if attempts[number] < MAX_ATTEMPTS:
                    waiting.append(number)
                else:
                    yield number, Outcome(None, error=f"its worker was lost {MAX_ATTEMPTS} times")
