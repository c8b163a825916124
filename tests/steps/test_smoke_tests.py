"""These tests run the smoke-tests step as a process, against real services behind a real edge and a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.targets.base import Owner
from tests.conftest import DatabaseMaker
from tests.support import fragments_builder as build
from tests.support.edge_world import NEW, Load, World
from tests.support.prisma_table import with_migrations

NAMES = ("20261101_one", "20261102_two")
QUICK = {"HEALTH_CHECK_RETRIES": "2", "HEALTH_CHECK_INTERVAL": "0.1"}


@pytest.fixture(scope="module")
def database(postgres_cluster: DatabaseMaker) -> str:
    return postgres_cluster.fresh(with_migrations(*NAMES))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, instances=1, workers={"mailer": {}})
    try:
        world.deploy_old()
        put_up_new(world)
        yield world
    finally:
        world.close()


def put_up_new(world: World) -> None:
    target, release = world.target(), world.release("1.1.0", NEW)
    with target.locked(Owner(NEW, "https://runs.example/2", "tests")):
        target.deploy(release, 100)
        target.set_weight(release, 100)
        target.promote(release)


def smoke(world: World, database: str, **more: str) -> tuple[int, str]:
    return world.finish(world.start("smoke_tests", PROD_DATABASE_URL=database, **{**QUICK, **more}))


def outcomes(world: World) -> dict[str, bool]:
    return {test["name"]: test["passed"] for test in world.fragment("smoke-tests").evidence["tests"]}


def test_everything_is_tested_and_recorded(world, database):
    code, output = smoke(world, database)
    assert code == 0, output
    evidence = world.fragment("smoke-tests").evidence
    assert outcomes(world) == {"Database connectivity": True, "auth service health": True, "api gateway health": True, "work": True}
    assert evidence["smoke_status"] == "passed"
    assert evidence["health"] == {"database": "healthy", "auth_service": "healthy", "api_gateway": "healthy"}
    assert {test["version"] for test in evidence["tests"] if test["kind"] == "health"} == {"1.1.0"}
    database_test = evidence["tests"][0]
    assert database_test["detail"] == (
        "public._prisma_migrations: 2 migrations applied, every release has at least 1; the newest is 20261102_two"
    )
    assert "no evidence of database-migrations is here" in output
    assert "smoke-status<<" in (world.folder / "output-1.txt").read_text()
    assert "| work | ✓ | 200 |" in (world.folder / "summary-1.md").read_text()
    assert "not asked: a worker has no public address" in (world.folder / "summary-1.md").read_text()
    password = database.split("@")[0].rsplit(":", 1)[1]
    assert password not in output + (world.folder / "job-1" / "smoke-tests.log").read_text()


def test_a_failure_leaves_the_new_version_and_calls_for_a_person(world, database):
    world.flag("1.1.0.auth_service.sick")
    code, output = smoke(world, database)
    assert code == 1, output
    assert outcomes(world)["auth service health"] is False
    assert outcomes(world)["api gateway health"] is True
    fragment = world.fragment("smoke-tests")
    assert fragment.evidence["smoke_status"] == "failed"
    assert fragment.evidence["health"]["auth_service"] == "unhealthy"
    assert fragment.evidence["rollback"] is None
    assert "auth service health: HTTP 500 (2 attempts)" in fragment.error["what"]
    assert "the new version stays in place" in fragment.error["what"]
    assert world.edge.state().stable == NEW


def test_a_health_document_of_a_thousand_brackets_is_a_failed_test(world, database):
    world.flag("1.1.0.auth_service.nested")
    code, output = smoke(world, database)
    assert code == 1, output
    assert outcomes(world)["auth service health"] is False
    assert "a body that is not read (no JSON: a bracket is not closed" in world.fragment("smoke-tests").error["what"]
    assert world.edge.state().stable == NEW


def test_a_failure_takes_traffic_back_when_it_is_configured_to(world, database):
    world.flag("1.1.0.api_gateway.error")
    with Load(world.port) as load:
        code, output = smoke(world, database, ROLLBACK_ON_SMOKE_FAILURE="true")
        assert world.versions_now() == {"1.0.0"}
        before = len(load.answers)
    assert code == 1, output
    assert outcomes(world)["work"] is False
    assert world.fragment("smoke-tests").evidence["rollback"]["to"] == "v1.0.0"
    assert world.fragment("smoke-tests").evidence["rollback"]["proved"] is True
    assert not [status for status, _ in load.answers[before:] if status != 200]
    assert (world.running(), world.running_workers()) == ({"v1.0.0": 2}, {"v1.0.0": 1})


def test_traffic_does_not_go_back_to_a_version_that_is_sick_or_under_somebody_elses_lock(world, database):
    world.flag("1.1.0.api_gateway.error")
    world.flag("1.0.0.auth_service.sick")
    code, output = smoke(world, database, ROLLBACK_ON_SMOKE_FAILURE="true")
    assert (code, world.edge.state().stable) == (1, NEW), output
    assert "traffic was NOT taken back: 1 of 2 instances of v1.0.0 are healthy" in output
    assert "work: HTTP 500" in world.fragment("smoke-tests").error["what"]
    world.unflag("1.0.0.auth_service.sick")
    with world.target().locked(Owner(NEW, "https://runs.example/7", "somebody")):
        code, output = smoke(world, database, ROLLBACK_ON_SMOKE_FAILURE="true")
    assert (code, world.edge.state().stable) == (1, NEW), output
    assert "traffic was NOT taken back: Another deployment" in output
    rollback = world.fragment("smoke-tests").evidence["rollback"]
    assert (rollback["to"], "https://runs.example/7" in rollback["detail"]) == (None, True)


def test_the_old_version_behind_the_address_is_a_failure(world, database):
    code, output = smoke(world, database, VERSION="v1.2.0", DEPLOYMENT_ID="1764000200-cccccc", ROLLBACK_ON_SMOKE_FAILURE="true")
    assert code == 1
    assert "answers version 1.1.0, expected 1.2.0" in output
    assert "traffic was NOT taken back: there is no version before" in output  # this deployment does not serve: nothing of it can be undone
    assert world.versions_now(5) == {"1.1.0"}


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1", "public._prisma_migrations: 0 migrations applied, every release has at least 1"),
        (with_migrations(), "public._prisma_migrations: 0 migrations applied, every release has at least 1"),
        ("CREATE TABLE _prisma_migrations (id int)", "migration_name"),
    ],
)
def test_a_database_without_readable_migrations_is_unhealthy(world, postgres_cluster, sql, message):
    code, output = smoke(world, postgres_cluster.fresh(sql))
    assert code == 1
    assert message in output
    assert world.fragment("smoke-tests").evidence["health"]["database"] == "unhealthy"


def test_the_database_must_have_what_database_migrations_left(world, database):
    rows = [{"name": "20261103_three", "checksum": "0" * 64, "seconds": 0.1}]
    fragment = build.fragment("database-migrations", migrations_applied=1, applied=rows, already_applied=2)
    build.receive(world.folder / "received", replace(fragment, deployment_id=NEW, run_id="1"))
    code, output = smoke(world, database)
    assert code == 1
    assert "2 migrations applied, database-migrations left 3; not there: 20261103_three" in output
    assert outcomes(world) == {"Database connectivity": False, "auth service health": True, "api gateway health": True, "work": True}


@pytest.mark.parametrize(("command", "said"), [('["migrate"]', "another tool migrates it"), ("[]", "it has no migrations")])
def test_where_prisma_does_not_migrate_the_database_must_answer(world, postgres_cluster, command, said):
    with world.config_path.open("a") as file:
        file.write(f"migrations = {{ command = {command} }}\n")
    code, output = smoke(world, postgres_cluster.fresh("SELECT 1"))
    assert code == 0, output
    assert f"answers; {said}" in world.fragment("smoke-tests").evidence["tests"][0]["detail"]


def test_a_database_that_cannot_be_reached_is_unhealthy_and_the_rest_is_tested(world):
    code, output = smoke(world, "postgresql://azora:very-secret@127.0.0.1:1/azora")
    assert code == 1
    assert outcomes(world) == {"Database connectivity": False, "auth service health": True, "api gateway health": True, "work": True}
    assert "very-secret" not in output


def test_a_critical_endpoint_that_nobody_answers_fails(tmp_path, database):
    endpoints = {"endpoints": [{"name": "nothing", "url": "http://127.0.0.1:1/", "status": 204}]}
    world = World(tmp_path, instances=1, smoke=endpoints)
    try:
        put_up_new(world)
        code, output = smoke(world, database)
        assert code == 1
        assert "nothing: connection refused" in output
    finally:
        world.close()


def test_no_critical_endpoint_is_an_error_not_a_pass(tmp_path, database):
    world = World(tmp_path, instances=1, smoke=None)
    try:
        code, output = smoke(world, database)
        assert code == 2
        assert "No critical endpoints are configured" in output
    finally:
        world.close()
