"""A Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MEMORY = 80 * 2**20  # for objects, of each node


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster whose nodes have one processor each, while the block runs."""
    from ray.cluster_utils import Cluster  # not at the top: files are collected where its tests are not run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": MEMORY})
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
