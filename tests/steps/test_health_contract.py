"""An application that answers ``{"status": "ok"}`` and names no version goes through the real steps: its image and the edge prove it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from azora_ci.health.answers import NEW as NEW_SIDE
from azora_ci.targets.base import Owner
from azora_ci.targets.proofs import settings_by_service
from tests.conftest import DatabaseMaker
from tests.support.edge_world import NEW, OLD, SERVICES, Load, World, free_ports, get
from tests.support.header_proxy import HeaderProxy
from tests.support.prisma_table import with_migrations

QUICK = {"HEALTH_CHECK_RETRIES": "2", "HEALTH_CHECK_INTERVAL": "0.1"}


class Plain(World):
    health: ClassVar[dict[str, Any]] = {"healthy": ["ok"], "version_from": "image"}


@pytest.fixture(scope="module")
def database(postgres_cluster: DatabaseMaker) -> str:
    return postgres_cluster.fresh(with_migrations("20261101_one"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Plain]:
    plain = Plain(tmp_path, instances=1)
    try:
        for version in ("1.0.0", "1.1.0"):
            plain.flag(f"{version}.plain")
        plain.deploy_old()
        plain.built()
        yield plain
    finally:
        plain.close()


def proofs(world: World, job: str, attempt: int = 1) -> Any:
    evidence = world.fragment(job, attempt).evidence
    return evidence["version_proof"] if job == "smoke-tests" else [stage["version_proof"] for stage in evidence["stages"]]


def everything_written(world: World) -> str:
    """Return what this test's steps print, hand over, and note in the journal; instances' logs, too."""
    folders = ("job-1", "job-2", "state", "received", "output-1.txt", "output-2.txt", "summary-1.md", "summary-2.md")
    paths = [path for name in folders for path in [world.folder / name, *(world.folder / name).rglob("*")] if path.is_file()]
    return "".join(path.read_text(errors="replace") for path in paths if path.suffix != ".gz")


def test_it_is_rolled_out_and_its_version_is_proved(world, database):
    with Load(world.port) as load:
        code, rollout_output = world.finish(world.start("gradual_rollout"))
    assert code == 0, rollout_output
    assert load.failed == []
    assert proofs(world, "gradual-rollout") == [{name: {"instances": "image", "public": "edge"} for name in SERVICES}] * 3
    code, smoke_output = world.finish(world.start("smoke_tests", attempt=2, PROD_DATABASE_URL=database, **QUICK))
    assert code == 0, smoke_output
    assert proofs(world, "smoke-tests", 2) == dict.fromkeys(SERVICES, "edge")
    versions = {test["version"] for test in world.fragment("smoke-tests", 2).evidence["tests"] if test["kind"] == "health"}
    assert versions == {"1.1.0"}
    secret = world.edge.state().secret
    assert secret is not None
    assert len(secret) == 64
    assert secret not in everything_written(world) + rollout_output + smoke_output
    _, headers, body = get(world.port, "/api/health")
    assert secret not in f"{headers} {body!r}"
    assert "x-azora-proof" not in headers
    assert json.loads(body) == {"status": "ok"}


def test_each_deployment_has_a_secret_of_its_own(world):
    first = world.edge.state().secret
    put_up_new(world)
    assert first != world.edge.state().secret is not None


def put_up_new(world: World) -> None:
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


def test_an_instance_of_another_digest_is_refused_and_one_of_an_unknown_digest_is_not_proved(world):
    target = world.target()
    instance = target.instances(OLD)[0]
    facts = dict(target.current().releases[OLD].instances[instance.service, instance.number])

    def finding(digest: str | None) -> tuple[str, str | None, str]:
        noted = {name: value for name, value in facts.items() if name not in {"at", "event", "deployment_id", "digest"}}
        with target.locked(Owner(OLD, "https://runs.example/1", "tests")):
            target._note("instance", OLD, **noted, **({"digest": digest} if digest else {}))
        (result,) = target.probe([instance], NEW_SIDE)
        return result.outcome, result.version, result.version_proof

    assert finding(facts["digest"]) == ("healthy", "1.0.0", "image")
    assert finding(world.archive("1.1.0", instance.service)) == ("wrong-version", "of another digest", "none")
    assert finding(None) == ("healthy", None, "none")


def test_what_lies_about_its_version_is_known_by_its_image(world):
    world.unflag("1.1.0.plain")
    world.flag("1.1.0.liar")  # {"status": "healthy", "version": "9.9.9"}: not the word that is expected
    code, output = world.finish(world.start("gradual_rollout", HEALTH_CHECK_TIMEOUT="2"))
    assert code == 1, output
    assert "says status 'healthy', expected 'ok'" in output
    assert world.running() == {"v1.0.0": 2}


def test_another_release_in_public_fails_the_smoke_tests(world, database):
    put_up_new(world)
    world.edge.apply(replace(world.edge.state(), stable=OLD, previous=NEW))  # somebody switched the edge by hand
    code, output = world.finish(world.start("smoke_tests", PROD_DATABASE_URL=database, **QUICK))
    assert code == 1
    assert "api gateway health: answers version 1.0.0, expected 1.1.0" in output
    assert proofs(world, "smoke-tests") == dict.fromkeys(SERVICES, "none")


def test_a_release_that_keeps_the_contract_follows_one_that_did_not_and_goes_back_to_it(world, database):
    world.health = {}  # the configuration of the new release; the old one goes on answering "ok"
    world.configure_edge()
    world.unflag("1.1.0.plain")
    assert settings_by_service(world.target().current().releases[OLD])["api_gateway"].healthy == ("ok",)
    with Load(world.port) as load:
        code, output = world.finish(world.start("gradual_rollout"))
    assert code == 0, output
    assert load.failed == []
    stages = world.fragment("gradual-rollout").evidence["stages"]
    assert [stage["probes"]["failed"] for stage in stages] == [0, 0, 0]
    assert stages[2]["version_proof"] == {name: {"instances": "answer", "public": "answer"} for name in SERVICES}
    world.flag("1.1.0.api_gateway.error")
    code, output = world.finish(
        world.start("smoke_tests", attempt=2, PROD_DATABASE_URL=database, ROLLBACK_ON_SMOKE_FAILURE="true", **QUICK)
    )
    assert code == 1
    assert world.fragment("smoke-tests", 2).evidence["rollback"]["proved"] is True, output
    assert world.versions_now(5) == {"1.0.0"}


@pytest.mark.parametrize("lost", ["secret", "seal"])
def test_what_cannot_be_proved_in_public_is_recorded_as_none(world, database, lost):
    put_up_new(world)
    state = world.edge.state()
    world.edge.apply(replace(state, secret=None))
    if lost == "seal":  # something in front of the edge takes the header away: here the edge routes by another secret than it says
        document = world.edge.state().document() | {"secret": "0" * 64}
        (world.folder / "edge" / "current" / "edge.json").write_text(json.dumps(document))
    code, output = world.finish(world.start("smoke_tests", PROD_DATABASE_URL=database, **QUICK))
    assert code == 0, output
    assert proofs(world, "smoke-tests") == dict.fromkeys(SERVICES, "none")
    assert {test["version"] for test in world.fragment("smoke-tests").evidence["tests"]} == {None}
    if lost == "secret":
        assert "which version answers in public is not proved" in output


def test_a_rollout_whose_public_answers_prove_nothing_says_so(world):
    (port,) = free_ports(1)
    with HeaderProxy(port, world.port), Load(world.port):
        text = world.config_path.read_text().replace(f"127.0.0.1:{world.port}/", f"127.0.0.1:{port}/")
        world.config_path.write_text(text)
        code, output = world.finish(world.start("gradual_rollout"))
    assert code == 0, output
    assert proofs(world, "gradual-rollout") == [{name: {"instances": "image", "public": "none"} for name in SERVICES}] * 3
