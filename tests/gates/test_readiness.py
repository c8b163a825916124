"""What a repository and the names of its secrets tell before anything is deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.gates import readiness
from azora_ci.gates.readiness import Problem
from tests.support import deploy_config

ZEROS, ONES = "sha256:" + "0" * 64, "sha256:" + "1" * 64
PATH = Path("deploy.toml")
HOSTS = {"kind": "docker_hosts", "docker_hosts": {"edge_image": f"docker.io/e@{ONES}", "guard_image": f"docker.io/p@{ONES}"}}
REAL: dict[str, Any] = {
    "public_url": "https://shop.azora.test",
    "on_call": "#on-call",
    "smoke": {"endpoints": [{"name": "front page", "url": "https://shop.azora.test/"}]},
    "target": HOSTS,
    "edge": None,
    "registry": {"repository": "docker.io/azora"},
}


def service(**keys: Any) -> dict[str, Any]:
    return deploy_config.service("API", "https://shop.azora.test/health", **keys)


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[Problem]]:
    """Return the problems of a repository that lacks nothing but what the keys of its configuration say."""
    (tmp_path / "prisma/migrations/1_start").mkdir(parents=True)
    (tmp_path / "prisma/migrations/1_start/migration.sql").touch()
    (tmp_path / "package-lock.json").write_text('{"lockfileVersion": 3, "packages": {}}')
    (tmp_path / "Dockerfile").write_text("FROM node:22 AS build\nFROM --platform=$BUILDPLATFORM node:22 as Runner\n")

    def of(ignored: str = "", **keys: Any) -> list[Problem]:
        path = deploy_config.write(tmp_path / PATH, **{"services": {"api": service()}, **REAL, **keys})
        return readiness.of_repository(tmp_path, path.relative_to(tmp_path), (), lambda name: bool(ignored) and name.startswith(ignored))

    return of


def test_a_repository_that_lacks_nothing(problems: Callable[..., list[Problem]]) -> None:
    assert problems() == []


def test_a_migration_in_another_encoding_is_found_before_the_backup(tmp_path: Path, problems: Callable[..., list[Problem]]) -> None:
    (tmp_path / "prisma/migrations/1_start/migration.sql").write_bytes("SELECT 1;".encode("utf-16"))
    (problem,) = problems()
    assert problem.what == "A migration is not UTF-8: 1_start/migration.sql: it is UTF-16"


@pytest.mark.parametrize(
    ("keys", "places", "what"),
    [
        ({"services": {"api": service(context="web")}}, ["services.api.context"], "there is no folder web"),
        ({"services": {"api": service(dockerfile="Dockerfile.prod")}}, ["services.api.dockerfile"], "there is no file Dockerfile.prod"),
        ({"services": {"api": service(build={"target": "prod"})}}, ["services.api.build.target"], "no stage prod (build, Runner)"),
        ({"services": {"api": service(build={"target": "runner"})}}, [], ""),
        ({"services": {"api": service(build={"target": "1"})}}, [], ""),
        ({"database": {"migrations_dir": "db/migrations"}}, ["database.migrations_dir, db/migrations"], "No migrations"),
        ({"migrations": {"command": ["migrate"]}}, [], ""),
        ({"database": {"prepare": [["pnpm", "install", "--frozen-lockfile"]]}}, ["database.prepare"], "there is no pnpm-lock.yaml"),
        ({"database": {"prepare": [["pnpm", "-C", "web", "install", "--frozen-lockfile"]]}}, [], ""),
        ({"database": {"prepare": [["npm", "install"], ["./make"]]}}, [], ""),
        ({"smoke": {"endpoints": []}}, ["smoke.endpoints"], "is empty"),
        ({"checks": {"required": [], "rulesets": False, "build": [["true"]]}}, ["checks.required"], "an empty gate is closed"),
        ({"target": {"kind": "docker_hosts"}}, ["the deployment configuration"], "target.docker_hosts is missing"),
    ],
)
def test_what_is_missing_is_named_by_its_key(
    problems: Callable[..., list[Problem]], keys: dict[str, Any], places: list[str], what: str
) -> None:
    found = problems(**keys)
    assert [problem.where for problem in found] == places
    assert what in "".join(problem.what for problem in found)
    assert all(problem.next_step for problem in found)


def test_a_folder_that_the_build_makes_is_not_missing(problems: Callable[..., list[Problem]]) -> None:
    services = {"services": {"api": service(context="api/dist")}}
    assert problems("api/dist", **services, build={"commands": [["npm", "run", "build"]]}) == []
    assert [problem.where for problem in problems("api/dist", **services)] == ["services.api.context"]  # nothing would make it


@pytest.mark.parametrize(
    ("keys", "line", "what"),
    [
        ({"public_url": "https://shop.example"}, 'public_url = "https', "shop.example is reserved for examples"),
        ({"public_url": "http://localhost:3000"}, "public_url", "on their own machine only"),
        ({"on_call": "on-call@example.com"}, "on_call", "example.com is reserved for examples"),
        ({"registry": {"repository": "registry.example.org/azora"}}, "registry", "is reserved for examples"),
        ({"target": {**HOSTS, "docker_hosts": {**HOSTS["docker_hosts"], "edge_image": f"docker.io/e@{ZEROS}"}}}, "target", "all zeros"),
        ({"smoke": {"endpoints": [{"name": "x", "url": "https://www.example.net/"}]}}, "smoke", "reserved"),
    ],
)
def test_a_placeholder_is_named_by_its_line(problems: Callable[..., list[Problem]], tmp_path: Path, keys, line: str, what: str) -> None:
    (problem,) = problems(**keys)
    assert what in problem.what
    path, _, number = problem.where.partition(":")
    assert path == str(PATH)
    assert line in (tmp_path / path).read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize(
    "keys",
    [
        {"services": {"api": service(env={"MAIL_FROM": "noreply@example.com", "DOCS": "http://localhost/docs"})}},
        {"services": {"api": service(command=["node", "--origin", "https://example.com"])}},
        {"application": "example"},
        {"on_call": "ask for an example on Slack"},
    ],
)
def test_what_is_no_address_of_production_is_left_alone(problems: Callable[..., list[Problem]], keys: dict[str, Any]) -> None:
    assert problems(**keys) == []


def test_loopback_is_right_for_local_processes(problems: Callable[..., list[Problem]]) -> None:
    local = {"target": None, "edge": {"config_dir": "/edge"}, "public_url": "http://127.0.0.1:8080"}
    local["target"] = {"kind": "local_processes", "local_processes": {"state_dir": "/s", "archive_dir": "/a"}}
    assert problems(**local) == []


def test_a_mark_is_named_by_its_line_and_only_once() -> None:
    lines = [
        "# `# fill in` marks guesses",
        'public_url = "https://shop.example" # fill in: the address',
        "# port = 1 # fill in",
        "a = [ # fill in",
        "]",
    ]
    text = "\n".join(lines)
    assert readiness.to_fill_in(text) == [(2, "the address"), (4, "")]
    marks = readiness.marks(text, PATH)
    assert [(problem.where, problem.what) for problem in marks] == [
        ("deploy.toml:2", "is still to be filled in: the address"),
        ("deploy.toml:4", "is still to be filled in: a guess"),
    ]
    assert readiness.placeholders(text, PATH) == []


def test_a_file_that_is_no_toml_is_reported_with_its_marks(tmp_path: Path) -> None:
    (tmp_path / PATH).write_text("a = 1 # fill in: b\nc = = 2\n")
    found = readiness.of_repository(tmp_path, PATH, (), lambda _: False)
    assert [problem.where for problem in found] == ["deploy.toml:1", str(tmp_path / PATH)]
    assert "not TOML" in found[1].what


def test_secrets_that_are_wanted_and_not_set(tmp_path: Path) -> None:
    services = {"api": service(secrets=["STRIPE_KEY", "MAIL_KEY"]), "auth": service(route_prefix="/auth", secrets=["STRIPE_KEY"])}
    loaded = config.load(deploy_config.write(tmp_path / PATH, **{**REAL, "services": services}))
    wanted = readiness.wanted_secrets(loaded)
    assert wanted == {"MAIL_KEY": "services.api.secrets", "STRIPE_KEY": "services.api.secrets, services.auth.secrets"}
    found = readiness.of_secrets(wanted, {"STRIPE_KEY": False}, "production")
    assert [(problem.where, problem.what) for problem in found] == [
        ("MAIL_KEY", "the workflow does not say whether it is set; wanted by services.api.secrets"),
        ("STRIPE_KEY", "this secret is not set; wanted by services.api.secrets, services.auth.secrets"),
    ]
    assert readiness.of_secrets(wanted, {"STRIPE_KEY": True, "MAIL_KEY": True}, "production") == []
    assert {"PROD_HOST", "PROD_USER", "PROD_KEY"} <= readiness.own_secrets(loaded).keys()
