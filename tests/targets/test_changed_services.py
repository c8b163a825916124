"""Releases whose configuration has other services than the one before: nobody loses a service before the promotion, or by going back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azora_ci.core.errors import NotTrueError
from azora_ci.health.answers import CONTRACT
from azora_ci.rollback import previous_version
from azora_ci.steps import smoke_tests
from azora_ci.targets.base import Owner
from azora_ci.targets.envoy.options import require_kept_prefixes
from tests.support.edge_world import NEW, OLD, World, get

OWNER = Owner(NEW, "https://runs.example/2", "tests")
BOTH, GATEWAY = ("auth_service", "api_gateway"), ("api_gateway",)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    production = World(tmp_path, instances=1)
    try:
        yield production
    finally:
        production.close()


def answered(world: World, path: str) -> str:
    """Return the version that answers, or the status."""
    status, _, body = get(world.port, path)
    return json.loads(body)["version"] if status == 200 else f"HTTP {status}"


def looked_at(world: World) -> tuple[previous_version.KeptVersion, list[str]]:
    """Return what is left of 1.0.0, and the health tests that are expected of it."""
    target = world.target()
    before = target.current().releases[OLD]
    kept = previous_version.look(target, world.config, world.clock, before=before, leaving=NEW)
    job: Any = SimpleNamespace(config=world.config, settings=SimpleNamespace(config_path=world.config_path))
    tests = smoke_tests.http_tests(job, before.version, dict.fromkeys(before.digests, CONTRACT))
    return kept, [test.service for test in tests if test.service]


def test_a_dropped_service_answers_until_the_promotion_and_after_going_back(world):
    world.deploy_old()
    world.configure_services(*GATEWAY)
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(OWNER):
        for percent in (0, 5, 50):
            target.deploy(release, percent)
            target.set_weight(release, percent)
            assert {answered(world, "/auth/work") for _ in range(20)} == {"1.0.0"}, percent
        assert target.abort(release, "a test").proved
        assert [answered(world, path) for path in ("/auth/work", "/api/work")] == ["1.0.0", "1.0.0"]
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)
        assert [answered(world, path) for path in ("/auth/work", "/api/work")] == ["HTTP 404", "1.1.0"]
        kept, expected = looked_at(world)
        assert (kept.healthy, kept.sick, expected) == (1, (), ["api_gateway"])
        assert target.abort(release, "a test").proved
    assert [answered(world, path) for path in ("/auth/work", "/api/work")] == ["1.0.0", "1.0.0"]


def test_an_added_service_has_a_route_with_its_first_weight_and_none_after_going_back(world):
    world.configure_services(*GATEWAY)
    old = world.release("1.0.0", OLD)
    world.configure_services(*BOTH)
    put_up(world, old)  # as on a host that is behind: the configuration is newer than the release
    assert [answered(world, path) for path in ("/auth/work", "/api/work")] == ["HTTP 404", "1.0.0"]
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(OWNER):
        target.deploy(release, 100)
        assert answered(world, "/auth/work") == "HTTP 404"
        target.set_weight(release, 5)
        assert answered(world, "/auth/work") == "1.1.0"
        target.set_weight(release, 100)
        target.promote(release)
        kept, expected = looked_at(world)
        assert (kept.healthy, kept.sick, expected) == (1, (), ["api_gateway"])
        assert target.abort(release, "a test").proved
    assert [answered(world, path) for path in ("/auth/work", "/api/work")] == ["HTTP 404", "1.0.0"]


def put_up(world: World, release: Any) -> None:
    target = world.target()
    with target.locked(OWNER):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


def test_a_prefix_does_not_move_while_production_has_it(world):
    world.deploy_old()
    auth, gateway = world.config.services
    for moved in (replace(auth, route_prefix="/login"), replace(auth, id="login")):
        changed = replace(world.config, services=(moved, gateway))
        with pytest.raises(NotTrueError, match="service auth_service at /auth") as refused:
            require_kept_prefixes(world.edge.state(), changed)
        assert "in two releases" in refused.value.next_step
    require_kept_prefixes(world.edge.state(), replace(world.config, services=(gateway, replace(auth, id="login", route_prefix="/login"))))
    world.config = replace(world.config, services=(replace(auth, route_prefix="/login"), gateway))
    target = world.target()
    with target.locked(OWNER), pytest.raises(NotTrueError):
        target.deploy(world.release("1.1.0", NEW), 5)
    assert NEW not in target.current().releases
