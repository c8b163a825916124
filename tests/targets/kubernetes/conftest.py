"""The cluster that all tests of a worker share. Each test has a namespace of its own."""

from __future__ import annotations

import pytest

from azora_ci.rehearsal.kubernetes.cluster import Cluster


@pytest.fixture
def cluster(kubernetes: Cluster) -> Cluster:
    return kubernetes
