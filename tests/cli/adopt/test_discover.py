"""What a repository says about itself: its package, checks, origin, tags, and where its compose files are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from azora_ci.cli.adopt import deploy_toml, files
from azora_ci.cli.adopt.discover import discover
from azora_ci.cli.main import main
from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.gates.readiness import to_fill_in
from tests.support.commands import git

SHA = "0123456789abcdef0123456789abcdef01234567"
WEB = "services: {web: {build: ., ports: [80]}}\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


def write(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def adopt(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["adopt", str(folder), "--ref", SHA, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# --- package.json ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"name": "shop", "scripts": {"build": "x"}}',
        b'{"name": "shop", "scripts": null, "dependencies": null, "engines": null, "prisma": null, "packageManager": null}',
        b'{"name": null, "scripts": [], "dependencies": "x", "devDependencies": 1, "prisma": {"schema": 3}}',
        b"[]",
        b"null",
        b'{"name": {"a": 1}}',
    ],
)
def test_a_package_json_of_any_shape_is_read(repository, content):
    write(repository, "package.json", content)
    write(repository, "docker-compose.yml", WEB)
    code, output = adopt(repository)
    assert code == 0, output
    assert config.load(repository / ".github/deploy-production.toml").services[0].id == "web"


def test_a_broken_package_json_is_named_in_one_line(repository):
    write(repository, "package.json", "{")
    code, output = adopt(repository)
    assert code == 2
    assert "package.json" in output


# --- compose files ----------------------------------------------------------------------------------------------------------------


def test_named_compose_files_are_merged_and_the_others_are_offered(repository):
    write(repository, "compose.yml", WEB)
    write(repository, "services/a.yml", "services: {api: {build: .., ports: [3000], environment: {A: 1}, profiles: [extra]}}")
    write(repository, "services/b.yml", "services: {api: {environment: {A: 2}}}")
    code, output = adopt(repository, "--compose", "services/a.yml", "--compose", "services/b.yml", "--profile", "extra")
    assert code == 0, output
    (api,) = config.load(repository / ".github/deploy-production.toml").services
    assert (api.id, api.env, str(api.context)) == ("api", {"A": "2"}, ".")
    assert "Found in services/a.yml, services/b.yml (--compose):" in output
    assert "not read: compose.yml" in output


@pytest.mark.parametrize("name", ["missing.yml", "../outside.yml"])
def test_a_named_compose_file_has_to_be_in_the_repository(repository, name):
    write(repository.parent, "outside.yml", WEB)
    code, output = adopt(repository, "--compose", name)
    assert code == 2
    assert f"{name} is no file of" in output


def test_compose_file_of_env_counts_as_compose_has_it(repository):
    write(repository, ".env", "COMPOSE_FILE=one.yml:two.yml\n")
    write(repository, "one.yml", WEB)
    write(repository, "two.yml", "services: {web: {environment: {A: 1}}}")
    application = discover(repository)
    assert application.compose_files == ("one.yml", "two.yml")
    assert application.services[0].env == {"A": "1"}


def test_a_compose_file_without_builds_is_not_called_none(repository):
    write(repository, "docker-compose.yml", "services: {app: {image: elsewhere/app}}")
    _, output = adopt(repository)
    assert "No compose file" not in output
    assert "nothing is built here: all services run published images" in output
    assert "left out: app, not built here (image elsewhere/app)" in output


def test_what_only_a_profile_deploys_is_said_and_nothing_invented(repository):
    write(repository, "docker-compose.yml", "services: {app: {build: ., profiles: [production]}, db: {image: x, profiles: [production]}}")
    write(repository, "Dockerfile", "FROM node\nEXPOSE 80\n")
    _, output = adopt(repository)
    assert "nothing of it is deployed without the profile production" in output
    assert "published images" not in output
    assert not discover(repository).services
    assert "nothing is deployed without a profile: adopt with --profile production" in output
    assert [service.id for service in discover(repository, profiles=["production"]).services] == ["app"]


@pytest.mark.parametrize(
    ("paths", "context", "dockerfile"),
    [
        (["Dockerfile", "web/Dockerfile"], ".", "Dockerfile"),
        (["backend/Dockerfile"], "backend", "Dockerfile"),
        (["Dockerfile.prod", "Dockerfile.dev"], ".", "Dockerfile.prod"),
        (["docker/Dockerfile", "docker/Dockerfile.dockerignore"], ".", "docker/Dockerfile"),
        (["a/Dockerfile", "a/Dockerfile.production"], "a", "Dockerfile.production"),
        (["examples/x/Dockerfile", ".devcontainer/Dockerfile"], None, None),
        (["a/Dockerfile", "b/Dockerfile"], None, None),
    ],
)
def test_the_only_dockerfile_is_taken_and_several_are_named(repository, paths, context, dockerfile):
    for path in paths:
        write(repository, path, "FROM node\nEXPOSE 80\n")
    application = discover(repository)
    assert [(service.context, service.dockerfile, service.port) for service in application.services] == (
        [(context, dockerfile, 80)] if context else []
    )
    text = deploy_toml.render(application)
    assert ("choose of a/Dockerfile, b/Dockerfile" in text) is ("b/Dockerfile" in paths)
    assert ("no Dockerfile was found" in text) is ("examples/x/Dockerfile" in paths)
    assert any("COPY" in hint for _, hint in to_fill_in(text)) is (dockerfile == "docker/Dockerfile")


def test_a_kept_configuration_that_does_not_load_is_said(repository):
    write(repository, ".github/deploy-production.toml", "schema_version =")
    assert "it does not load: " in adopt(repository)[1]


def test_compose_files_elsewhere_are_found_or_offered(repository):
    write(repository, "examples/x/docker-compose.yml", WEB)
    _, output = adopt(repository)
    assert "No compose file is where production's usually are." in output
    assert "not read: examples/x/docker-compose.yml" in output
    write(repository, "hosting/docker-compose.yml", "services: {web: {build: .., ports: [80]}}")
    assert [service.context for service in discover(repository).services] == ["."]


def test_a_compose_file_that_cannot_be_read_is_named_in_one_line(repository):
    write(repository, "docker-compose.yml", "services: {a: [")
    code, output = adopt(repository)
    assert code == 2
    assert "docker-compose.yml" in output
    assert not (repository / ".github").exists()


def test_a_compose_file_in_another_encoding_is_named(repository):
    write(repository, "docker-compose.yml", WEB.encode("utf-16"))
    code, output = adopt(repository)
    assert code == 2
    assert "it is not UTF-8: save it as UTF-8" in output


# --- what git and workflows say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workflow", "checks"),
    [
        ("on: push\njobs: {test: {runs-on: x}, lint: {name: Lint it, runs-on: x}}", ("test", "Lint it")),
        ("on: [push, pull_request]\njobs: {test: {runs-on: x}}", ("test",)),
        ("on: {push: {branches: [main]}}\njobs: {test: {runs-on: x}}", ("test",)),
        ("on: {push: null}\njobs: {test: {runs-on: x}}", ("test",)),
        ("on: {push: {tags: ['v*']}}\njobs: {test: {runs-on: x}}", ()),
        ("on: {push: {branches: [develop]}}\njobs: {test: {runs-on: x}}", ()),
        ("on: {push: {paths: [src]}}\njobs: {test: {runs-on: x}}", ()),
        ("on: {push: {branches-ignore: [main]}}\njobs: {test: {runs-on: x}}", ()),
        ("on: {push: {branches-ignore: main}}\njobs: {test: {runs-on: x}}", ()),
        ("on: {push: {branches-ignore: [wip]}}\njobs: {test: {runs-on: x}}", ("test",)),
        ("on: push\njobs: {deploy: {runs-on: x}, b: {name: Publish images, runs-on: x}, pre-release: {runs-on: x}}", ()),
        ("on: pull_request\njobs: {test: {runs-on: x}}", ()),
        ("on: push\njobs: {a: {if: x}, b: {strategy: {matrix: {}}}, c: {uses: ./x}, d: {name: '${{ x }}'}, e: {environment: x}}", ()),
        ("on: push\njobs: [", ()),
        ("on: push\njobs: [a]", ()),
        ("[]", ()),
    ],
)
def test_the_checks_that_every_commit_gets_are_found(repository, workflow, checks):
    write(repository, ".github/workflows/ci.yml", workflow)
    write(repository, ".github/workflows/deploy-production.yml", "on: push\njobs: {ours: {runs-on: x}}")
    application = discover(repository)
    assert application.checks == checks
    assert application.checks_from == ((".github/workflows/ci.yml",) if checks else ())
    assert any("names of checks" in hint for _, hint in to_fill_in(deploy_toml.render(application))) is not bool(checks)


@pytest.mark.parametrize(
    ("image", "origin", "registry"),
    [
        ("ghcr.io/acme/web:1", None, "ghcr.io/acme"),
        ("docker.io/acme/web", None, "docker.io/acme"),
        ("acme/web", None, None),
        ("myapp/web:latest", "https://github.com/acme/shop", "ghcr.io/acme/shop"),
        ("localhost:5000/shop/web", "https://github.com/acme/shop", "ghcr.io/acme/shop"),
        ("127.0.0.1:5000/shop/web", None, None),
        ("registry.example:5000/a/b/web@sha256:0", None, "registry.example:5000/a/b"),
        ("web", None, None),
        ("${REGISTRY}/web", "https://github.com/Acme/Shop.git", "ghcr.io/acme/shop"),
        ("web", "git@github.com:acme/shop", "ghcr.io/acme/shop"),
        ("web", "https://git.example/acme/shop", None),
    ],
)
def test_the_registry_is_that_of_the_images_or_of_the_origin(repository, image, origin, registry):
    write(repository, "docker-compose.yml", f"services: {{web: {{build: ., image: '{image}', ports: [80]}}}}")
    if origin:
        git(repository, "remote", "add", "origin", origin)
    application = discover(repository)
    assert application.registry == registry
    path = repository / "deploy-production.toml"
    path.write_text(deploy_toml.render(application))
    assert config.load(path).registry


def test_tags_that_start_nothing_are_said(repository):
    write(repository, "docker-compose.yml", WEB)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Start")
    git(repository, "tag", "1.2.3")
    assert "Tags: 1.2.3: a tag without v in front starts no deployment" in adopt(repository)[1]
    git(repository, "tag", "v1.2.4")
    assert "Tags:" not in adopt(repository)[1]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("app/api/health/route.ts", "/api/health"),
        ("src/app/(internal)/healthz/route.js", "/healthz"),
        ("pages/api/health.ts", "/api/health"),
        ("src/pages/api/ready/index.js", "/api/ready"),
        ("app/health/page.tsx", None),
        ("lib/health.ts", None),
        ("app/api/health/route.test.ts", None),
    ],
)
def test_the_health_path_is_that_of_a_route_of_next(repository, path, route):
    write(repository, "docker-compose.yml", WEB)
    write(repository, path, "")
    (service,) = discover(repository).services
    assert (service.health_path, service.sources.get("health_path")) == (route, path if route else None)
    write(repository, "docker-compose.yml", "services: {web: {build: elsewhere, ports: [80]}}\n")
    assert discover(repository).services[0].health_path is None


def test_what_an_instance_answers_by_itself_is_found_beside_its_health(repository):
    write(repository, "docker-compose.yml", WEB)
    write(repository, "app/api/livez/route.ts", "")
    (service,) = discover(repository).services
    assert (service.health_path, service.liveness_path) == ("/api/livez", None)
    write(repository, "app/api/health/route.ts", "")
    (service,) = discover(repository).services
    assert (service.health_path, service.liveness_path) == ("/api/health", "/api/livez")
    assert re.search(r'^liveness_path = "/api/livez" +# app/api/livez/route.ts$', deploy_toml.render(discover(repository)), re.MULTILINE)


# --- the walk -------------------------------------------------------------------------------------------------------------------------


def test_folders_of_other_people_are_not_entered_and_links_are_not_followed(tmp_path):
    for name in ("a/b.txt", "node_modules/x/c.txt", "z.txt", "a/.git/d", ".docker/e", "dist/f"):
        write(tmp_path, name, "")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert files.walk(tmp_path) == ("z.txt", ".docker/e", "a/b.txt")


def test_the_same_repository_gives_the_same_configuration(repository):
    write(repository, "docker-compose.yml", WEB)
    assert deploy_toml.render(discover(repository)) == deploy_toml.render(discover(repository))
    with pytest.raises(BadInputError):
        discover(repository, ["nothing.yml"])
