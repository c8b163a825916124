"""One cluster for all tests of this target: it takes ten seconds to start. Each test has a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from azora_ci.rehearsal.kubernetes.cluster import Cluster
from tests.support.kubernetes import running_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as running:
        yield running
