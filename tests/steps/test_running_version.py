"""Before any traffic moves, gradual-rollout asks whether the running version bears the schema that the migrations left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import fragments_builder as build
from tests.support.edge_world import NEW, SERVICES, SHA, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, instances=1)
    try:
        world.deploy_old()
        world.built()
        yield world
    finally:
        world.close()


def migrated(world: World, *, applied: int = 2, healthy: bool = True) -> None:
    """Leave what validation and the migrations leave: two were applied, and the addresses were healthy before."""
    urls = [service.public_health_url for service in world.config.web]
    checks = [{"name": url, "source": "production", "kind": "endpoint", "conclusion": "", "passed": healthy, "url": url} for url in urls]
    assert len(checks) == len(SERVICES)
    for job, changes in (("pre-deployment-validation", {"checks": checks}), ("database-migrations", {"migrations_applied": applied})):
        evidence: dict[str, Any] = {**build.evidence(job), **changes}
        part = replace(build.fragment(job, evidence=evidence), deployment_id=NEW, run_id="1", git_sha=SHA, version="v1.1.0")
        build.receive(world.folder / "received", part)


def test_a_version_that_the_migrations_broke_stops_the_rollout_before_any_traffic_moves(world: World) -> None:
    migrated(world)
    world.flag("1.0.0.api_gateway.sick")
    before = (world.folder / "edge" / "current" / "edge.json").read_text()
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 1, output
    error, running = world.fragment().error, world.fragment().evidence["running_version"]
    assert error is not None
    assert error["title"] == "The running version is not healthy on the new schema"
    assert "no traffic was moved, users are still on v1.0.0" in error["what"]
    assert (running["version"], running["healthy"], [answer["passed"] for answer in running["endpoints"]].count(False)) == (
        "v1.0.0",
        False,
        1,
    )
    assert (world.folder / "edge" / "current" / "edge.json").read_text() == before
    assert set(world.running()) == {"v1.0.0"}

    migrated(world, healthy=False)  # as where PRODUCTION_MAY_BE_DOWN let it pass
    code, output = world.finish(world.start("gradual_rollout", attempt=2))
    assert code == 0, output
    assert "Whether the running version bears the new schema is not known" in output
    assert world.fragment(attempt=2).evidence["running_version"]["healthy"] is False


def test_a_version_that_bears_them_is_said_to(world: World) -> None:
    migrated(world)
    code, output = world.finish(world.start("gradual_rollout"))
    assert code == 0, output
    assert "✓ the running version v1.0.0 is healthy on the new schema" in output
    assert world.fragment().evidence["running_version"]["healthy"] is True


def test_nothing_is_asked_where_nothing_was_applied(world: World) -> None:
    migrated(world, applied=0)
    world.flag("1.0.0.api_gateway.sick")
    _, output = world.finish(world.start("gradual_rollout", HEALTH_CHECK_RETRIES="1"))
    assert "new schema" not in output
    assert "running_version" not in world.fragment().evidence
