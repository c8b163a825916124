"""A repository that means harm: adopting executes nothing of it, reads and writes nothing outside, and ends in time with words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from azora_ci.cli.adopt import deploy_toml, frameworks, plan, upgrade
from azora_ci.cli.adopt.discover import discover
from azora_ci.core.errors import BadInputError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


@pytest.mark.parametrize("setting", [[], ["protocol.file.allow=always", "protocol.allow=always"]])
def test_git_fetches_nothing_with_a_program_of_the_repository(repository, tmp_path, setting):
    program = tmp_path / "upload-pack"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    program.chmod(0o755)
    settings = [
        "core.repositoryFormatVersion=1",
        "extensions.partialClone=origin",
        "remote.origin.promisor=true",
        f"remote.origin.url={repository}",
        f"remote.origin.uploadpack={program}",
        f"core.fsmonitor={program}",
        *setting,
    ]
    for name, _, value in (line.partition("=") for line in settings):
        subprocess.run(["git", "-C", repository, "config", name, value], check=True)
    (repository / ".git/refs/tags").mkdir(parents=True, exist_ok=True)
    (repository / ".git/refs/tags/v1").write_text("1" * 40 + "\n")
    (repository / ".env").write_text("A=1\n")
    (repository / "compose.yaml").write_text("services: {web: {build: .}}\n")
    assert [service.id for service in discover(repository).services] == ["web"]
    assert not (tmp_path / "executed").exists()


HOSTILE_DOCUMENTS = {
    "!!bool": "services: {web: {build: ., x: !!bool maybe}}",
    "!!timestamp": "services: {web: {build: ., x: !!timestamp x}}",
    "!!int": "services: {web: {build: ., x: !!int ''}}",
    "!!float": "services: {web: {build: ., x: !!float ''}}",
    "!!set": "services: {web: {build: ., environment: !!set {A, B}}}",
    "sexagesimal": f"services: {{web: {{build: ., environment: {{A: !!int {'1:' * 200_000}1}}}}}}",
    "hexadecimal": f"services: {{web: {{build: ., environment: {{A: !!int 0x{'f' * 200_000}}}}}}}",
    "NUL in a context": 'services: {web: {build: "a\\0b", image: x}, api: {build: .}}',
    "NUL in a Dockerfile": 'services: {web: {build: {context: ., dockerfile: "a\\0b"}}, api: {build: .}}',
    "NUL in an include": 'include: ["a\\0b"]\nservices: {web: {build: .}}',
    "a long name of a file": f"services: {{web: {{build: ., env_file: {'x' * 5000}}}}}",
    "a long name of an include": f"include: [{'x' * 5000}]\nservices: {{web: {{build: .}}}}",
}


@pytest.mark.parametrize("content", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS.keys())
def test_what_no_reader_expects_ends_without_a_traceback(repository, content):
    (repository / "compose.yaml").write_text(content + "\n")
    assert discover(repository).services


def test_more_services_than_anybody_rolls_out_are_refused(repository):
    services = "".join(f"  '{number:b}': {{build: .}}\n" for number in range(1, 1100)).replace("0", "—").replace("1", "–")
    (repository / "compose.yaml").write_text(f"services:\n{services}")
    with pytest.raises(BadInputError, match="1099 services"):
        discover(repository)


@pytest.mark.timeout(60)
def test_merges_that_double_again_and_again_are_refused(repository):
    doubling = "".join(f"x-{number}: &a{number} {{<<: [*a{number - 1}, *a{number - 1}]}}\n" for number in range(1, 40))
    (repository / "compose.yaml").write_text(f"x-0: &a0 {{a: 1, b: 2}}\n{doubling}services: {{web: {{build: .}}}}\n")
    with pytest.raises(BadInputError, match="merges"):
        discover(repository)


@pytest.mark.parametrize("name", [".github/deploy-production.toml", ".github", ".github/workflows", ".github/workflows/restore-drill.yml"])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_written_or_read_through_a_link_that_leads_out(repository, tmp_path, name, there):
    outside = tmp_path / "outside"
    if there and "." in Path(name).name.lstrip("."):
        outside.write_text("not ours\n")
    elif there:
        outside.mkdir()
    link = repository / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    for act in (lambda: plan.adopt(repository, action_ref="a" * 40), lambda: upgrade.remove(repository, force=True)):
        with pytest.raises(BadInputError, match="leads out of the repository") as raised:
            act()
        assert name in str(raised.value)
    assert not there or outside.is_dir() or outside.read_text() == "not ours\n"
    assert not outside.is_dir() or not list(outside.iterdir())
    assert not (repository / ".github/workflows/deploy-production.yml").exists()


def test_what_is_in_the_way_of_a_file_is_said(repository):
    (repository / ".github").write_text("")
    with pytest.raises(BadInputError, match="is in the way"):
        plan.adopt(repository, action_ref="a" * 40)
    (repository / ".github").unlink()
    (repository / ".github").symlink_to(".github")
    with pytest.raises(BadInputError, match="is in the way"):
        plan.adopt(repository, action_ref="a" * 40)
    (repository / ".github").unlink()
    (repository / ".github/deploy-production.toml").mkdir(parents=True)
    with pytest.raises(BadInputError, match="is in the way"):
        plan.adopt(repository, action_ref="a" * 40)


@pytest.mark.parametrize("target", ["/dev/tty", "/dev/zero", "outside"])
def test_what_is_no_file_of_the_repository_is_not_read(repository, tmp_path, target):
    outside = tmp_path / "outside"
    outside.write_text(
        '{"name": "hunter", "packageManager": "pnpm@9.1.2", "dependencies": {"express": "1"}, "services": {"web": {"build": "."}}}'
    )
    for name in ("package.json", ".nvmrc", ".env", "yarn.lock", "Dockerfile", "prisma.config.ts"):
        (repository / name).symlink_to(outside if target == "outside" else target)
    application = discover(repository)
    assert (application.name, application.toolchain.version, application.services) == ("repository", None, ())
    assert frameworks.discover(repository) == {}
    (repository / "compose.yaml").symlink_to(outside if target == "outside" else target)
    with pytest.raises(BadInputError, match="leads out"):
        discover(repository)


DOUBLING = "A0=xx\n" + "".join(f"A{number}=$A{number - 1}$A{number - 1}\n" for number in range(1, 40))
MANY = f"A={'x' * 40_000}\n" + "".join(f"B{number}=$A\n" for number in range(20_000))
COMPOSE = "services: {web: {build: ., ports: [80]}}\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "files",
    [
        {".env": DOUBLING, "compose.yaml": COMPOSE},
        {".env": MANY, "compose.yaml": COMPOSE},
        {"web.env": DOUBLING, "compose.yaml": "services: {web: {build: ., env_file: web.env}}\n"},
        {"Dockerfile": "FROM x\n" + DOUBLING.replace("A", "ARG A", 1).replace("\nA", "\nARG A"), "compose.yaml": COMPOSE},
        {"Dockerfile": "FROM x\n" + "".join(f"ARG {line}\n" for line in MANY.splitlines()), "compose.yaml": COMPOSE},
        {".env": f"A={'x' * 60_000}\n", "compose.yaml": f"services: {{web: {{build: ., command: [{'$A, ' * 50_000}]}}}}\n"},
        {".env": f"A={'x' * 60_000}\n", "compose.yaml": "services: {web: {build: ., environment: {A: $A$A}}}\n"},
    ],
    ids=["doubling", "many", "env_file", "ARG", "many ARG", "words", "a text"],
)
def test_variables_that_grow_without_bound_are_refused(repository, files):
    for name, content in files.items():
        (repository / name).write_text(content)
    with pytest.raises(BadInputError, match="too long a text"):
        discover(repository)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["${A:-" * 80_000, "${A:-" * 10_000 + "}" * 10_000, "$${" * 100_000])
def test_braces_that_do_not_close_are_read_in_one_pass(repository, text):
    (repository / "compose.yaml").write_text(f"services: {{web: {{build: ., ports: [80], environment: {{A: '{text}'}}}}}}\n")
    assert discover(repository).services


@pytest.mark.timeout(20)
def test_a_long_word_of_a_dockerfile_is_read_in_one_pass(repository):
    (repository / "Dockerfile").write_text(f"FROM x\nARG {'A' * 400_000}\nEXPOSE 80\n")
    assert discover(repository).services[0].port == 80


# --- secrets ------------------------------------------------------------------------------------------

SECRETS = """\
DB_PASSWORD=hunter2
REDIS_AUTH=hunter2
PLAIN=hunter2
PIN=4711
OTHER=$DB_PASSWORD
DSN_PART=x://a:hunter2@db
"""
POSITIONS = [
    "command: ['redis', '--requirepass', '{}']",
    "command: 'redis --requirepass {}'",
    "entrypoint: ['a', '{}']",
    "healthcheck: {{test: 'curl -f http://localhost:80/{}/health'}}",
    "labels: ['traefik.http.routers.a.rule=PathPrefix(`/{}`)']",
    "volumes: ['data:/{}']",
    "volumes: ['{}:/data']",
    "volumes: [{{type: volume, source: '{}', target: /data}}]",
    "image: 'ghcr.io/acme/{}/web'",
    "platform: 'linux/{}'",
    "build: {{context: '{}'}}",
    "build: {{context: ., dockerfile: '{}'}}",
    "build: {{context: ., target: '{}'}}",
    "build: {{context: ., args: {{A: '{}'}}}}",
    "environment: {{LEVEL: '{}'}}",
    "environment: {{LEVEL: '/etc/{}'}}",
    "env_file: ['{}.env']",
    "env_file: [web.env]",
]


def adopted(repository: Path, service: str) -> str:
    (repository / "web.env").write_text("LEVEL=$DB_PASSWORD\nOWN_PASSWORD=hunter2\nB=/etc/$OWN_PASSWORD\n")
    own = "" if service.startswith("build:") else ", build: ."
    document = (
        f"volumes: {{data: {{name: 'x-${{OTHER}}'}}}}\nservices: {{web: {{{service}{own}, ports: [80]}}, api: {{build: ., ports: [81]}}}}\n"
    )
    (repository / "compose.yaml").write_text(document)
    application = discover(repository)
    assert "hunter2" not in f"{application.left_out}{application.notes}"
    return deploy_toml.render(application)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    "variable", ["$DB_PASSWORD", "${REDIS_AUTH}", "${OTHER:?needed}", "${NO:-$OTHER}", "${DSN_PART}", "${DB_PASSWORD:+x$OTHER}"]
)
def test_no_secret_of_a_file_is_copied_whatever_names_it(repository, position, variable):
    (repository / ".env").write_text(SECRETS)
    subprocess.run(["git", "-C", repository, "add", ".env"], check=True)
    assert "hunter2" not in adopted(repository, position.format(variable))


@pytest.mark.parametrize("position", [position for position in POSITIONS if not position.startswith("environment")])
@pytest.mark.parametrize("ignored", [True, False])
def test_what_git_does_not_track_stays_where_it_is(repository, position, ignored):
    (repository / ".env").write_text("PLAIN=hunter2\nOTHER=tracked\nCOMPOSE_PROJECT_NAME=hunter2\n")
    if ignored:
        (repository / ".gitignore").write_text(".env\n")
    assert "hunter2" not in adopted(repository, position.format("$PLAIN"))


def test_what_git_tracks_and_numbers_are_carried_over(repository):
    service = "command: [node, $PLAIN], ports: ['${PORT}'], mem_limit: $MEMORY, environment: {LEVEL: $PLAIN}"
    (repository / ".env").write_text("PLAIN=hunter\nPORT=3000\nMEMORY=512m\n")
    (repository / "compose.yaml").write_text(f"services: {{web: {{build: ., {service}}}}}\n")
    (web,) = discover(repository).services
    assert (web.command, web.port, web.memory, web.env) == ((), 3000, "512m", {"LEVEL": "hunter"})
    assert "not in git" in web.left["command"]
    subprocess.run(["git", "-C", repository, "add", ".env"], check=True)
    (web,) = discover(repository).services
    assert (web.command, web.left) == (("node", "hunter"), {})
