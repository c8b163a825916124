"""One network with hosts and a registry for all tests of targets: it takes a while to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.docker_world import Lan, lan


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with lan(tmp_path_factory.mktemp("lan")) as made:
        yield made
