"""Whether an edge that was just started is up: ready alone does not say that it took its listeners."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from azora_ci.health.probes import unix_dial
from azora_ci.targets.docker_hosts.edge_containers import EdgeContainers
from azora_ci.targets.envoy import config, edge
from azora_ci.targets.envoy.state import EdgeService, command
from tests.support.edge_world import ENVOY, free_ports
from tests.support.waiting import until


@pytest.fixture
def started(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EdgeContainers]:
    """Start an Envoy; of the container around it only the admin socket is there."""
    monkeypatch.setattr(config, "HARDENING", config.HARDENING | request.param)
    bootstrap = edge.install(tmp_path, listen=f"127.0.0.1:{free_ports(1)[0]}", services=(EdgeService("api", "/", 15),))
    containers = EdgeContainers.__new__(EdgeContainers)
    containers._admin = SimpleNamespace(dial=unix_dial(tmp_path / edge.ADMIN_SOCKET))
    with (tmp_path / "envoy.log").open("wb") as log:
        envoy = subprocess.Popen(command(bootstrap, binary=ENVOY), stdout=log, stderr=log)
    try:
        until(lambda: containers._asked("/ready") is not None, "Envoy is ready")
        yield containers
    finally:
        envoy.kill()
        envoy.wait()


# As an older Envoy meets what it does not know.
LATER = {"name": "later", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.of.a.later.v3.Version"}}


@pytest.mark.parametrize("started", [{}], indirect=True)
def test_an_edge_with_its_listeners_is_up(started):
    until(lambda: started._answers(publish=False), "it is up")


@pytest.mark.parametrize("started", [{"early_header_mutation_extensions": [LATER]}], indirect=True)
def test_an_edge_that_refused_its_listeners_is_not(started):
    assert not started._answers(publish=False)
    assert started._asked("/listeners") == ""
