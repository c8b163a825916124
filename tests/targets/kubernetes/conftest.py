"""The cluster that all tests of a worker share. Each test has a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from azora_ci.rehearsal.kubernetes.cluster import Cluster

NAMESPACES = "/api/v1/namespaces"


@pytest.fixture
def cluster(kubernetes: Cluster) -> Iterator[Cluster]:
    """Give the cluster, and remove the test's namespace: pods that went on would share two cores with the tests that follow."""
    kubernetes.restart_ended()  # one test that breaks it must not break all that follow
    yield kubernetes
    for item in kubernetes.api.get(NAMESPACES)["items"]:
        meta = item["metadata"]
        if meta["name"].startswith("test-") and "deletionTimestamp" not in meta:
            kubernetes.api.delete(f"{NAMESPACES}/{meta['name']}")
