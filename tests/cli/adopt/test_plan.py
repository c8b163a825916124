"""These tests adopt azora-ci in real scratch repositories: they check what is discovered, written, refused and left to a person."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from azora_ci.cli.adopt import plan
from azora_ci.cli.adopt.discover import discover
from azora_ci.cli.main import main
from azora_ci.core import config, schemas
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.gates.readiness import FILL_IN, to_fill_in
from tests.support import ROOT
from tests.support.commands import git

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40
COMPOSE = """
services:
  api-gateway:
    build: {context: ./services/api-gateway, dockerfile: Dockerfile.prod}
    ports: ["127.0.0.1:4000:4001/tcp"]
    environment:
      - AUTH_URL=http://auth-service:3001
      - SESSION_SECRET=not-to-be-copied
      - PORT=4001
      - DEBUG
    depends_on: [auth-service, database]
    healthcheck: {test: ["CMD", "wget", "--spider", "http://localhost:4001/api/health"]}
    deploy: {replicas: 3, resources: {limits: {memory: 1G}}}
  auth-service:
    build: ./services/auth-service
    expose: ["3001"]
    environment:
      DATABASE_URL: postgresql://azora:${POSTGRES_PASSWORD}@database/azora
      REPORT_URL: https://user:not-to-be-copied@reports.example
      STRICT: true
    depends_on: {database: {condition: service_healthy}}
  database:
    image: postgres:16-alpine
    environment: {POSTGRES_PASSWORD: not-to-be-copied}
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """Return a repository that has a compose file, Prisma and npm, before anybody adopts azora-ci in it."""
    folder = tmp_path / "application"
    (folder / "prisma/migrations").mkdir(parents=True)
    (folder / "node_modules/other/prisma").mkdir(parents=True)
    (folder / "node_modules/other/prisma/schema.prisma").touch()
    (folder / "prisma/schema.prisma").touch()
    (folder / "docker-compose.yml").write_text(COMPOSE)
    package = {"name": "@azora/azora-os", "scripts": {"build": "tsc"}, "dependencies": {"@prisma/client": "^6"}}
    (folder / "package.json").write_text(json.dumps(package))
    (folder / "package-lock.json").write_text("{}")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Start")
    return folder


def filled_in(folder: Path) -> None:
    """Do what a person does after adopting: name the checks, remove the marks."""
    path = folder / plan.CONFIG
    text = path.read_text().replace("required = []", 'required = ["test"]')
    path.write_text("".join(line.split(FILL_IN)[0].rstrip() + "\n" for line in text.splitlines()))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["adopt", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_adopting_writes_the_workflows_and_a_configuration(application):
    paths = plan.adopt(application, action_ref=SHA)
    assert sorted(map(str, paths)) == [
        ".github/deploy-production.toml",
        ".github/workflows/deploy-production.yml",
        ".github/workflows/restore-drill.yml",
        ".github/workflows/rollback-production.yml",
    ]
    assert git(application, "status", "--porcelain", "--untracked-files=all").splitlines() == [f"?? {path}" for path in sorted(paths)]


def test_the_set_up_is_pinned_and_the_rest_is_this_version(application):
    plan.adopt(application, action_ref=SHA, repository="azora/deployer")
    for name in plan.WORKFLOWS:
        text = (application / plan.WORKFLOW_FOLDER / name).read_text()
        ours = (ROOT / ".github/workflows" / name).read_text()
        pins = set(re.findall(r"uses: (\S*/setup@\S+)", text))
        assert pins == {f"azora/deployer/.github/actions/setup@{SHA}"}
        stamp, _, body = text.partition("\n")
        assert stamp.startswith(f"# Adopted from azora/deployer@{SHA}; ")
        jobs, expected = yaml.safe_load(body)["jobs"], yaml.safe_load(ours)["jobs"]
        assert list(jobs) == list(expected)
        # The lines hold the services' secrets, and whether each is set; on hosts no rollout asks for a token, in two jobs.
        assert body.count("\n") - ours.count("\n") == (4 + 5 - 2 if name == "deploy-production.yml" else 0)


def test_the_secrets_of_builds_reach_only_the_step_that_builds_in_place(application):
    plan.adopt(application, action_ref=SHA)
    configuration = application / plan.CONFIG
    filled_in(application)
    table = "[services.auth_service]\n"
    configuration.write_text(configuration.read_text().replace(table, f'{table}build.secrets = ["NPM_TOKEN"]\n'))
    plan.adopt(application, action_ref=SHA)
    document = yaml.safe_load((application / ".github/workflows/deploy-production.yml").read_text())
    holders = [name for name, job in document["jobs"].items() for step in job["steps"] if "NPM_TOKEN" in step.get("env", {})]
    assert holders == ["build-and-push"]
    with pytest.raises(BadInputError, match=r"services.auth_service.build.secrets: images are built in a job that holds no secret"):
        plan.check(plan.plan(application))


def test_the_rollout_step_gets_the_secrets_of_services(application):
    plan.adopt(application, action_ref=SHA)
    document = yaml.safe_load((application / ".github/workflows/deploy-production.yml").read_text())
    holders = {
        name: step["env"] for name, job in document["jobs"].items() for step in job["steps"] if "SESSION_SECRET" in step.get("env", {})
    }
    assert list(holders) == ["gradual-rollout"]
    env = holders["gradual-rollout"]
    assert env["DATABASE_URL"] == "${{ secrets.DATABASE_URL }}"
    assert env["REPORT_URL"] == "${{ secrets.REPORT_URL }}"


def test_services_of_the_compose_file_are_found(application):
    discovered = discover(application)
    gateway, auth = discovered.services
    assert (gateway.id, gateway.port, gateway.health_path, gateway.memory, gateway.instances) == (
        "api_gateway",
        4001,
        "/api/health",
        "1g",
        3,
    )
    assert (gateway.context, gateway.dockerfile, gateway.title) == ("services/api-gateway", "Dockerfile.prod", "API Gateway")
    assert gateway.depends_on == ("auth_service",)
    assert gateway.env == {"AUTH_URL": "http://auth-service"}
    assert gateway.secrets == {"SESSION_SECRET": "SESSION_SECRET", "DEBUG": "DEBUG"}
    assert (auth.port, auth.health_path, auth.env) == (3001, None, {"STRICT": "true"})
    assert auth.secrets == {"DATABASE_URL": "DATABASE_URL", "REPORT_URL": "REPORT_URL"}
    assert discovered.left_out == {"database": "not built here (image postgres:16-alpine)"}
    assert [schema.migrations for schema in discovered.prisma.schemas] == ["prisma/migrations"]
    assert discovered.name == "azora-os"


def test_no_secret_value_is_copied(application):
    plan.adopt(application, action_ref=SHA)
    for path in application.glob(".github/**/*.*"):
        assert "not-to-be-copied" not in path.read_text()


def test_the_configuration_fits_its_schema_and_is_read(application):
    plan.adopt(application, action_ref=SHA)
    loaded = config.load(application / plan.CONFIG)
    assert [service.id for service in loaded.services] == ["auth_service", "api_gateway"]
    assert loaded.database.migrate == ("npx", "prisma", "migrate", "deploy")
    assert loaded.checks.required == ()  # the gate refuses this until somebody names them


BERRY = "__metadata:\n  version: 8\n"
PNPM = ("pnpm", "install", "--frozen-lockfile")
YARN_1 = ("yarn", "install", "--frozen-lockfile")
YARN_4 = ("yarn", "install", "--immutable")
BUN = ("bun", "install", "--frozen-lockfile")


@pytest.mark.parametrize(
    ("files", "package", "manager", "install", "migrate"),
    [
        ({"package-lock.json": "{}"}, {}, None, ("npm", "ci"), ("npx",)),
        ({"package-lock.json": "{}"}, {"packageManager": "npm@10.9.0"}, "npm@10.9.0", ("npm", "ci"), ("npx",)),
        ({"pnpm-lock.yaml": ""}, {"packageManager": "pnpm@9.12.0+sha512.abc"}, "pnpm@9.12.0", PNPM, ("pnpm", "exec")),
        ({"pnpm-lock.yaml": ""}, {"engines": {"pnpm": "9.1.2"}}, "pnpm@9.1.2", PNPM, ("pnpm", "exec")),
        ({"yarn.lock": "# yarn lockfile v1\n"}, {}, "yarn@1.22.22", YARN_1, ("yarn", "run")),
        ({"yarn.lock": BERRY}, {"packageManager": "yarn@4.5.0"}, "yarn@4.5.0", YARN_4, ("yarn", "run")),
        ({"yarn.lock": BERRY, ".yarnrc.yml": "yarnPath: .yarn/releases/yarn-4.5.1.cjs\n"}, {}, "yarn@4.5.1", YARN_4, ("yarn", "run")),
        ({"bun.lock": "{}"}, {"packageManager": "bun@1.3.2"}, "bun@1.3.2", BUN, ("bun", "run")),
    ],
)
def test_the_toolchain_and_its_commands_are_found(application, files, package, manager, install, migrate):
    (application / "package-lock.json").unlink()
    for name, content in files.items():
        (application / name).write_text(content)
    document = json.loads((application / "package.json").read_text())
    (application / "package.json").write_text(json.dumps(document | package))
    plan.adopt(application, action_ref=SHA)
    loaded = config.load(application / plan.CONFIG)
    assert loaded.toolchain.package_manager == manager
    assert loaded.build.commands == (install, (install[0], "run", "build"))
    assert loaded.database.prepare == (install,)
    assert loaded.database.migrate == (*migrate, "prisma", "migrate", "deploy")
    assert loaded.validation.audit.level == "high"
    assert not [gap for _, gap in to_fill_in((application / plan.CONFIG).read_text()) if "exact version" in gap or "audit" in gap]


@pytest.mark.parametrize(("lock", "content"), [("pnpm-lock.yaml", ""), ("yarn.lock", BERRY), ("bun.lock", "{}")])
def test_a_version_that_no_file_names_is_to_be_filled_in(application, lock, content):
    (application / "package-lock.json").unlink()
    (application / lock).write_text(content)
    plan.adopt(application, action_ref=SHA)
    text = (application / plan.CONFIG).read_text()
    assert [gap for _, gap in to_fill_in(text) if "exact version" in gap]
    assert config.load(application / plan.CONFIG).toolchain.manager == lock.split("-")[0].split(".")[0]


@pytest.mark.parametrize(
    ("name", "content", "node"),
    [
        (".nvmrc", "v22.11.0\n", "22.11.0"),
        (".nvmrc", "lts/jod\n", "22"),
        (".node-version", "20\n", "20"),
        ("engines", ">=20.9 <23", "20"),
        ("engines", "^18 || ^20", "18"),
        (".nvmrc", "node\n", None),
        ("engines", "*", None),
    ],
)
def test_the_version_of_node_is_found(application, name, content, node):
    if name == "engines":
        document = json.loads((application / "package.json").read_text())
        (application / "package.json").write_text(json.dumps(document | {"engines": {"node": content}}))
    else:
        (application / name).write_text(content)
    plan.adopt(application, action_ref=SHA)
    gaps = [gap for _, gap in to_fill_in((application / plan.CONFIG).read_text()) if "Node.js" in gap]
    assert (config.load(application / plan.CONFIG).toolchain.node, len(gaps)) == ((node, 0) if node else ("22", 1))


def test_a_repository_with_nothing_to_find_gets_a_configuration_to_fill_in(tmp_path):
    git(tmp_path, "init", "-q")
    plan.adopt(tmp_path, action_ref=SHA)
    text = (tmp_path / plan.CONFIG).read_text()
    assert schemas.problems(tomllib.loads(text), "deploy-config") == []
    gaps = " ".join(gap for _, gap in to_fill_in(text))
    for missing in ("migrations", "compose file", "health endpoint", "security audit", "checks", "Envoy", "Python 3.11"):
        assert missing in gaps


def test_several_prisma_schemas_are_named_and_not_chosen(application):
    (application / "services/auth/prisma").mkdir(parents=True)
    (application / "services/auth/prisma/schema.prisma").touch()
    code, output = run(str(application), "--ref", SHA)
    assert code == 0
    assert "prisma/migrations, services/auth/prisma/migrations" in output
    assert "one of prisma/migrations, services/auth/prisma/migrations" in (application / plan.CONFIG).read_text()


def test_what_a_container_reaches_and_may_do_is_found(application):
    (application / "docker-compose.yml").write_text("""
services:
  auth-service:
    build: .
  api:
    build: {context: ., target: production, args: [NODE_ENV=production, "NPM_TOKEN=not-to-be-copied", "COMMIT=${COMMIT}"]}
    environment: {AUTH_URL: "http://auth-service:3001/v1", CACHE: "redis:6379", PATH_OF: /docs/search, OTHER: "http://x.example/search"}
    volumes: [uploads:/data, /srv/shop:/shop:ro, "./seed:/seed", {type: volume, source: cache, target: /cache, read_only: true}, /tmp/a]
    cap_drop: [ALL]
    read_only: true
  redis: {image: redis}
  search: {image: search}
""")
    adoption = plan.plan(application, plan.SetupAction(plan.REPOSITORY, SHA))
    text = adoption.files[-1].content
    services = tomllib.loads(text)["services"]
    api = services["api"]
    assert api["talks_to"] == ["auth_service"]
    assert api["env"]["AUTH_URL"] == "http://auth-service/v1"
    assert "named by AUTH_URL, there without a port" in text
    assert api["networks"] == []
    assert "networks that hold redis;" in text
    assert api["volumes"] == ["uploads:/data", "cache:/cache:ro"]
    assert (api["cap_drop"], api["read_only"]) == (["ALL"], True)
    assert api["build"] == {"target": "production", "args": {"NODE_ENV": "production"}}
    assert {"api: volume /srv/shop:/shop", "api: volume ./seed:/seed", "api: volume /tmp/a"} <= adoption.application.left_out.keys()
    assert not {"talks_to", "networks", "volumes", "cap_drop", "read_only", "build"} & services["auth_service"].keys()
    assert "not-to-be-copied" not in text
    plan.write(adoption)
    config.load(application / plan.CONFIG)


@pytest.mark.parametrize("compose", ["services: [a]", "version: '3'", "a: [", "- x"])
def test_a_broken_compose_file_is_named(application, compose):
    (application / "docker-compose.yml").write_text(compose)
    with pytest.raises(BadInputError) as caught:
        plan.adopt(application, action_ref=SHA)
    assert "docker-compose.yml" in caught.value.where


# --- again, later, and after somebody changed something -----------------------------------------------------------------------


def test_adopting_twice_changes_nothing(application):
    plan.adopt(application, action_ref=SHA)
    assert plan.adopt(application, action_ref=SHA) == []


def test_a_newer_version_replaces_what_nobody_changed(application):
    plan.adopt(application, action_ref=SHA)
    paths = plan.adopt(application, action_ref=OTHER_SHA)
    assert {path.name for path in paths} == set(plan.WORKFLOWS)
    assert SHA not in (application / ".github/workflows/deploy-production.yml").read_text()


def test_a_changed_workflow_is_refused_and_nothing_is_written(application):
    plan.adopt(application, action_ref=SHA)
    path = application / ".github/workflows/restore-drill.yml"
    path.write_text(path.read_text().replace("timeout-minutes: 180", "timeout-minutes: 300"))
    before = {file: file.read_text() for file in application.glob(".github/**/*.*")}
    code, output = run(str(application), "--ref", OTHER_SHA)
    assert code == 1
    assert "-    timeout-minutes: 300" in output
    assert {file: file.read_text() for file in application.glob(".github/**/*.*")} == before
    code, _ = run(str(application), "--ref", OTHER_SHA, "--force")
    assert code == 0
    assert "timeout-minutes: 180" in path.read_text()


def test_a_workflow_of_somebody_else_is_refused(application):
    path = application / ".github/workflows/deploy-production.yml"
    path.parent.mkdir(parents=True)
    path.write_text("name: ours\n")
    with pytest.raises(NotTrueError):
        plan.adopt(application, action_ref=SHA)
    assert path.read_text() == "name: ours\n"


def test_the_configuration_is_never_replaced(application):
    plan.adopt(application, action_ref=SHA)
    path = application / plan.CONFIG
    path.write_text(path.read_text() + "# ours\n")
    run(str(application), "--ref", SHA, "--force")
    assert path.read_text().endswith("# ours\n")


def test_a_secret_named_later_makes_the_workflow_outdated(application):
    plan.adopt(application, action_ref=SHA)
    path = application / plan.CONFIG
    path.write_text(path.read_text().replace('"SESSION_SECRET"', '"SESSION_SECRET", "STRIPE_KEY"'))
    assert plan.adopt(application, action_ref=SHA) == [plan.WORKFLOW_FOLDER / "deploy-production.yml"]
    assert "STRIPE_KEY: ${{ secrets.STRIPE_KEY }}" in (application / ".github/workflows/deploy-production.yml").read_text()


@pytest.mark.parametrize(
    "name",
    ["EVIL: x\\n          LD_PRELOAD", "STRIPE_KEY\\n", "stripe", "STRIPE_KEY: ${{ secrets.PROD_KEY }} #", "PROD_KEY", "VERSION", "PATH"],
)
def test_a_name_that_would_write_more_than_a_name_is_refused_before_anything_is_written(application, name):
    plan.adopt(application, action_ref=SHA)
    path = application / plan.CONFIG
    path.write_text(path.read_text().replace('"SESSION_SECRET"', f'"SESSION_SECRET", "{name}"'))
    before = {file: file.read_bytes() for file in application.rglob(".github/**/*") if file.is_file()}
    with pytest.raises(BadInputError, match="may not have this name"):
        plan.adopt(application, action_ref=SHA, force=True)
    assert {file: file.read_bytes() for file in application.rglob(".github/**/*") if file.is_file()} == before


def test_what_was_written_is_parsed_back_and_compared(application, monkeypatch):
    action = plan.SetupAction(plan.REPOSITORY, SHA)
    monkeypatch.setattr(plan, "_refuse_names", lambda names: None)
    for name in ("EVIL: x\n          LD_PRELOAD", "STRIPE_KEY: ${{ secrets.PROD_KEY }} #"):
        with pytest.raises(BadInputError, match="would not be what is meant"):
            plan.workflow("deploy-production.yml", action, plan.Named(service_secrets=(name,)))


def test_a_variable_of_ours_in_the_compose_file_gets_a_secret_of_another_name_or_is_left_out(application):
    path = application / "docker-compose.yml"
    path.write_text(
        path.read_text().replace("- SESSION_SECRET=", "- AWS_SECRET_ACCESS_KEY=${AWS}\n      - VERSION=$V\n      - SESSION_SECRET=")
    )
    found = discover(application)
    expected = {"AWS_SECRET_ACCESS_KEY": "AWS", "SESSION_SECRET": "SESSION_SECRET", "DEBUG": "DEBUG"}
    assert found.services[0].secrets == expected
    assert "api_gateway: VERSION" in found.left_out
    plan.adopt(application, action_ref=SHA)
    api = config.load(application / plan.CONFIG).service("api_gateway")
    assert (api.secret_variables, api.secrets) == (expected, ("AWS", "SESSION_SECRET", "DEBUG"))
    workflow = (application / ".github/workflows/deploy-production.yml").read_text()
    assert "          AWS: ${{ secrets.AWS }}\n" in workflow


# --- --check --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["version", "edit", "missing"])
def test_check_says_no_with_a_diff(application, change):
    plan.adopt(application, action_ref=SHA)
    path = application / ".github/workflows/deploy-production.yml"
    if change == "edit":
        path.write_text(path.read_text().replace("cancel-in-progress: false", "cancel-in-progress: true"))
    if change == "missing":
        path.unlink()
    before = path.read_text() if path.exists() else None
    code, output = run(str(application), "--check", "--ref", OTHER_SHA if change == "version" else SHA)
    assert code == 1
    assert "+++ .github/workflows/deploy-production.yml (this version)" in output
    assert (path.read_text() if path.exists() else None) == before


def test_check_reads_the_configuration(application):
    plan.adopt(application, action_ref=SHA)
    path = application / plan.CONFIG
    path.write_text(path.read_text().replace("port = 4001", "prot = 4001"))
    code, output = run(str(application), "--check", "--ref", SHA)
    assert code == 2
    assert "services.api_gateway" in output
    assert "prot" in output


# --- what a person still has to do ------------------------------------------------------------------------------------------------


def test_the_report_lists_what_is_left_to_do(application):
    code, output = run(str(application), "--ref", SHA)
    assert code == 0
    text = (application / plan.CONFIG).read_text().splitlines()
    numbers = [int(number) for number in re.findall(r"  line (\d+): ", output)]
    assert numbers
    assert numbers == [number for number, line in enumerate(text, 1) if FILL_IN in line and not line.startswith("#")]
    for environment in ("production-approval", "production", "operations"):
        assert f"Environment {environment} (" in output
    workflows = "".join((application / plan.WORKFLOW_FOLDER / name).read_text() for name in plan.WORKFLOWS)
    for kind, word in (("secrets", "secret"), ("vars", "variable")):
        for name in set(re.findall(rf"\b{kind}\.([A-Z_0-9]+)", workflows)):
            assert re.search(rf"  {word} {name}\b.*: .+", output), name
    handed = set(re.findall(r"  (?:secret|variable) (\w+)\b.*: handed to the services", output))
    assert handed == {"DATABASE_URL", "DEBUG", "REPORT_URL", "SESSION_SECRET"}
    assert "left out: database" in output
    assert "tags v*" in output
    assert "public repository" in output


@pytest.mark.parametrize("form", ["--copy", "--reusable"])
def test_the_production_environment_has_no_reviewers_and_the_approval_has_no_secrets(application, form):
    _, output = run(str(application), "--ref", SHA, form)
    sections = {part.split(" ", 2)[1]: part for part in output.split("\n\n") if part.startswith("Environment ")}
    assert "required reviewers" in sections["production-approval"]
    assert "secret" not in sections["production-approval"]
    assert "no reviewers" in sections["production"]
    assert "secret PROD_DATABASE_URL: connection string" in sections["production"]
    assert "secret SLACK_WEBHOOK (optional): " in sections["production"]


def test_what_no_environment_can_hold_belongs_to_the_repository(application):
    _, output = run(str(application), "--ref", SHA)
    (section,) = [part for part in output.split("\n\n") if part.startswith("Repository (")]
    assert [line.split()[1] for line in section.splitlines()[1:]] == ["ROLLBACK_WINDOW_MINUTES"]


# --- bad input --------------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    code, output = run(str(tmp_path), "--ref", SHA)
    assert code == 2
    assert "no .git" in output


@pytest.mark.parametrize("reference", ["main", "v1.2.3", SHA[:12], SHA.upper()])
def test_only_a_full_commit_is_pinned(application, reference):
    code, output = run(str(application), "--ref", reference)
    assert code == 2
    assert reference in output
    assert not (application / ".github").exists()


def test_without_a_commit_the_pinned_one_is_kept(application):
    with pytest.raises(BadInputError):
        plan.plan(application)
    plan.adopt(application, action_ref=SHA, repository="azora/deployer")
    planned = plan.plan(application)
    assert {file.state for file in planned.files} == {"same", "kept"}


# --- the complete example -----------------------------------------------------------------------------------------------------------


def keys(schema: dict, prefix: str = "") -> set[str]:
    leaves = set()
    for name, subschema in schema.get("properties", {}).items():
        inner = subschema.get("additionalProperties") if isinstance(subschema.get("additionalProperties"), dict) else subschema
        nested = keys(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner.get("type") == "object" else set()
        leaves |= nested or {f"{prefix}{name}"}
    return leaves


def shown_keys(text: str) -> set[str]:
    """Return the dotted keys of a configuration, commented ones too, each in the table that it stands in, without ids of services."""
    table, shown = "", set()
    for line in text.splitlines():
        if heading := re.match(r"(?:# )?\[([a-z_.]+)\]", line):
            table = re.sub(r"\bservices\.[a-z_]+", "services", heading[1]) + "."
        elif key := re.match(r"(?:# )?([a-z_]+) = ", line):
            shown.add(table + key[1])
    return shown


def test_the_example_is_valid_and_shows_every_key():
    text = (ROOT / ".github/deploy-production.toml").read_text()
    document = tomllib.loads(text)
    assert schemas.problems(document, "deploy-config") == []
    assert document["target"] == {"kind": "docker_hosts"}
    assert set(document["services"]) == {"api_gateway", "auth_service", "education_service", "marketplace_service"}
    assert keys(schemas.load("deploy-config")) - shown_keys(text) == set()
