"""The local target where the step's tests do not look: refusals, generations of releases, going back after promotion."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import parse
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.targets.base import FencedError, Owner, TargetContext
from azora_ci.targets.local_processes import processes as local
from azora_ci.targets.node import Node
from azora_ci.targets.registry import target_of
from tests.support import deploy_config
from tests.support.edge_world import NEW, OLD, Load, World

OWNER = Owner(NEW, "https://runs.example/2", "tests")
THIRD = "1764000200-cccccc"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    production = World(tmp_path, instances=1)
    try:
        production.deploy_old()
        yield production
    finally:
        production.close()


def context(path: Path) -> TargetContext:
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    return TargetContext(config.load(path), processes, Clock(), path.parent / "logs", 30.0)


def put_up(world: World, version: str, deployment_id: str) -> None:
    target, release = world.target(), world.release(version, deployment_id)
    with target.locked(OWNER):
        target.deploy_without_stages(release)


def test_anything_but_loopback_is_refused(tmp_path):
    service = deploy_config.service("API", "https://azora.world/api/health", command=["true"])
    edge = {"config_dir": str(tmp_path / "edge")}
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service}, edge=edge)
    with pytest.raises(BadInputError) as refused:
        target_of(context(path))
    assert "services.api.public_health_url = https://azora.world/api/health" in refused.value.what


def test_a_service_without_a_command_is_refused(tmp_path):
    service = deploy_config.service("API", "http://127.0.0.1:1/health")
    edge = {"config_dir": str(tmp_path / "edge")}
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service}, edge=edge)
    with pytest.raises(BadInputError, match="missing for api"):
        target_of(context(path))


def test_the_version_before_is_kept_and_older_ones_go(world):
    with Load(world.port) as load:
        put_up(world, "1.1.0", NEW)
        assert world.running() == {"v1.0.0": 2, "v1.1.0": 2}
        world.rollback_window_minutes = 0
        put_up(world, "1.2.0", THIRD)
        assert world.running() == {"v1.1.0": 2, "v1.2.0": 2}
        assert world.versions_now() == {"1.2.0"}
    assert load.failed == []
    state = world.edge.state()
    assert {release.id for release in state.releases} == {NEW, THIRD}
    assert (state.stable, state.previous, state.canary) == (THIRD, NEW, None)
    assert world.target().current().releases[OLD].outcome == "removed"


def test_until_the_window_closes_older_versions_are_kept_too_and_one_can_go_back_twice(world):
    put_up(world, "1.1.0", NEW)
    put_up(world, "1.2.0", THIRD)
    assert world.running() == {"v1.0.0": 2, "v1.1.0": 2, "v1.2.0": 2}
    target = world.target()
    with Load(world.port) as load, target.locked(OWNER):
        for version, deployment_id, before in (("1.2.0", THIRD, "1.1.0"), ("1.1.0", NEW, "1.0.0")):
            assert target.abort(world.release(version, deployment_id), "a test").proved
            assert world.versions_now(5) == {before}
    assert load.failed == []
    assert world.running() == {"v1.0.0": 2}


def test_going_back_after_promotion_is_proved_and_costs_no_request(world):
    put_up(world, "1.1.0", NEW)
    target = world.target()
    with Load(world.port) as load, target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "smoke tests failed", hurry=True)
        assert world.versions_now() == {"1.0.0"}
    assert (returned.to, returned.proved, returned.requests_after) == ("v1.0.0", True, 0)
    assert returned.seconds < 5
    assert load.failed == []
    assert world.running() == {"v1.0.0": 2}
    assert target.current().serving == OLD


def test_what_others_wait_for_is_started_first_and_stopped_last(world, monkeypatch):
    put_up(world, "1.1.0", NEW)
    target, stopped = world.target(), []
    assert [service for service, _ in target.current().releases[NEW].instances] == ["auth_service", "api_gateway"]
    stop = target._runner.stop

    def noting_stop(instances, meanwhile):
        pairs = list(instances)
        stopped.append([facts["service"] for facts, _ in pairs])
        stop(pairs, meanwhile)
        assert target._runner.dead([facts for facts, _ in pairs]) == [facts for facts, _ in pairs]

    monkeypatch.setattr(target._runner, "stop", noting_stop)
    with target.locked(OWNER):
        assert target.abort(world.release("1.1.0", NEW), "a test").proved
    assert stopped == [["api_gateway"], ["auth_service"]]


def test_nothing_is_started_before_what_it_waits_for_is_healthy(world):
    world.flag("1.1.0.auth_service.sick")
    target, release = world.target(health_timeout=1.0), world.release("1.1.0", NEW)
    with target.locked(OWNER):
        with pytest.raises(NotTrueError, match="auth_service"):
            target.deploy(release, 100)
        assert [service for service, _ in target.current().releases[NEW].instances] == ["auth_service"]
        assert target.abort(release, "a test").proved


def test_the_edge_follows_the_journal_after_a_runner_died_between_the_two(world):
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(OWNER):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target._note("promote", NEW)  # and then its runner died: at the edge it is still the canary
        assert world.edge.state().stable == OLD
        with Load(world.port) as load:
            target.deploy(world.release("1.2.0", THIRD), 5)
            state = world.edge.state()
            assert (state.stable, state.canary, state.percent) == (NEW, THIRD, 0)
            assert world.versions_now() == {"1.1.0"}
    assert load.failed == []
    assert set(load.versions) == {"1.1.0"}


def test_instances_that_were_stopped_when_the_runner_died_are_not_waited_for(world, monkeypatch):
    release = world.release("1.1.0", NEW)
    dying, note = world.target(), Node._note

    def died(node, event, deployment_id, **facts):
        if event == "stopped":
            raise KeyboardInterrupt
        note(node, event, deployment_id, **facts)

    monkeypatch.setattr(Node, "_note", died)
    with dying.locked(OWNER):
        dying.deploy(release, 100)
        with pytest.raises(KeyboardInterrupt):
            dying.abort(release, "a test")
    monkeypatch.undo()
    assert world.running() == {"v1.0.0": 2}
    target = world.target()
    assert (target.current().releases[NEW].outcome, len(target.instances(NEW))) == ("aborted", 2)
    monkeypatch.setattr(target._runner, "attempts", 1)  # as for containers
    with target.locked(OWNER):
        assert len(target.deploy(release, 100)) == 2
    assert world.running() == {"v1.0.0": 2, "v1.1.0": 2}


def test_an_old_version_that_is_not_healthy_is_no_proof(world):
    put_up(world, "1.1.0", NEW)
    world.flag("1.0.0.api_gateway.sick")
    target = world.target()
    with target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "a test", hurry=True)
    assert returned.proved is False
    assert "the old version is not healthy" in returned.detail
    assert world.edge.state().stable == OLD


def test_going_back_without_an_edge_leaves_the_old_weights_in_the_files(world):
    put_up(world, "1.1.0", NEW)
    world.kill_envoy()
    target = world.target()
    with target.locked(OWNER):
        returned = target.abort(world.release("1.1.0", NEW), "a test", hurry=True)
    assert returned.proved is False
    assert "not proved" in returned.detail
    world.start_envoy()
    assert world.versions_now() == {"1.0.0"}


def test_nothing_is_moved_without_the_lock(world):
    target, thief = world.target(), world.target()
    with target.locked(OWNER):
        with pytest.raises(NotTrueError), thief.locked(Owner(THIRD, "u", "a")):
            pass
        (world.folder / "state" / "lock.json").unlink()
        with pytest.raises(NotTrueError, match="taken over"):
            target.set_weight(world.release("1.0.0", OLD), 100)
    assert world.versions_now(5) == {"1.0.0"}


def test_who_was_fenced_can_neither_go_on_nor_back(world):
    deployment, rescue = world.target(), world.target()
    release = world.release("1.1.0", NEW)
    with deployment.locked(OWNER):
        deployment.deploy(release, 100)
        deployment.set_weight(release, 50)
        with rescue.locked(Owner(NEW, "https://runs.example/3", "rescuer", fence="users see errors")):
            for change in (lambda: deployment.set_weight(release, 100), lambda: deployment.abort(release, "cancelled", hurry=True)):
                with pytest.raises(FencedError, match="users see errors"):
                    change()
            with pytest.raises(FencedError):
                deployment._parts.edge.switch(replace(world.edge.state(), percent=100))
            assert world.edge.state().percent == 50
            assert rescue.abort(release, "users see errors", hurry=True).proved
    assert world.versions_now(5) == {"1.0.0"}


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    import hashlib

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo("../outside")
        tar.addfile(info, io.BytesIO())
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    (tmp_path / f"sha256-{digest}.tar.gz").write_bytes(data.getvalue())
    with pytest.raises(NotTrueError, match="cannot be unpacked"):
        local.unpack(tmp_path, f"sha256:{digest}", tmp_path / "unpacked" / "deep")
    assert not (tmp_path / "unpacked" / "outside").exists()
    with pytest.raises(BadInputError, match="cannot be read"):
        local.unpack(tmp_path, f"sha256:{'0' * 64}", tmp_path / "unpacked")


def test_instances_see_nothing_of_the_jobs_environment(monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "not for services")
    monkeypatch.setenv("PROD_DATABASE_URL", "not named")
    service = parse._service("api", deploy_config.service("API", env={"MODE": "production"}))
    environment = local.instance_environment(service, {"PORT": "1"}, {})
    assert environment["MODE"] == "production"
    assert environment["PORT"] == "1"
    assert not {"GITHUB_TOKEN", "PROD_DATABASE_URL"} & set(environment)
