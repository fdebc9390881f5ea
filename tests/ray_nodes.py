"""A Ray cluster of this machine's processes, for tests of what runs on one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def ray_cluster(nodes: int) -> Iterator[str]:
    """Address of a cluster with so many nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        cluster.wait_for_nodes()
        try:
            yield cluster.address
        finally:
            cluster.shutdown()
