"""The job build: the application's commands, their exit codes as evidence, and the tree for the migrations."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.process import is_alive, tree
from azora_ci.steps.application import build
from azora_ci.steps.runner import execute
from tests.support import deploy_config

BUILD = ["sh", "-c", "mkdir -p node_modules/x && echo built > node_modules/x/index.js"]
PREPARE = ["sh", "-c", "cat node_modules/x/index.js > prepared"]


class World:
    """A repository with a folder of migrations."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "repository"
        (self.root / "prisma" / "migrations").mkdir(parents=True)
        (self.root / ".git").mkdir()
        (self.root / ".git" / "config").write_text("[core]")
        self.build: list[list[str]] = [BUILD]
        self.prepare: list[list[str]] = [PREPARE]
        self.sections: dict[str, Any] = {}

    def run(self, **environ: str) -> int:
        checks = {"required": ["test"], "build": self.build}
        config = deploy_config.write(self.folder / "deploy.toml", checks=checks, database={"prepare": self.prepare}, **self.sections)
        defaults = {
            "DEPLOY_CONFIG": str(config),
            "DEPLOYMENT_LOG_DIR": str(self.folder / "logs"),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "DEPLOYMENT_ID": "1764000000-012345",
            "VERSION": "v1.2.3",
            "GIT_SHA": "0123456789abcdef0123456789abcdef01234567",
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
        }
        return execute("build", defaults | environ)

    @property
    def archive(self) -> Path:
        return self.folder / "temp" / "application-tree" / "tree.tar.zst"

    @property
    def evidence(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "logs" / "record" / "build.json").read_text())
        assert document["status"] == "ok"
        return dict(document["evidence"])

    @property
    def exit_codes(self) -> list[tuple[str, int]]:
        return [(command["purpose"], command["exit_code"]) for command in self.evidence["commands"]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.chdir(made.root)
    return made


def test_the_tree_holds_what_the_commands_made_and_no_repository(world: World) -> None:
    assert world.run() == 0
    assert world.exit_codes == [("build", 0), ("prepare", 0)]
    packed = world.evidence["tree"]
    assert packed["bytes"] == world.archive.stat().st_size
    assert packed["sha256"] == hashlib.sha256(world.archive.read_bytes()).hexdigest()
    assert tree.unpack(world.archive, world.folder / "unpacked", packed["sha256"]) == packed["entries"]
    assert (world.folder / "unpacked" / "prepared").read_text() == "built\n"
    assert (world.folder / "unpacked" / "prisma" / "migrations").is_dir()
    assert not (world.folder / "unpacked" / ".git").exists()


def test_own_folders_in_the_workspace_are_no_part_of_the_tree(world: World) -> None:
    folders = {"DEPLOYMENT_LOG_DIR": str(world.folder / "logs"), "RUNNER_TEMP": str(world.root / "temp")}
    assert world.run(**folders) == 0
    archive = world.root / "temp" / "application-tree" / "tree.tar.zst"
    tree.unpack(archive, world.folder / "unpacked", world.evidence["tree"]["sha256"])
    assert not list((world.folder / "unpacked").glob("temp/application-tree"))


@pytest.mark.parametrize(
    ("build", "prepare", "exit_codes"),
    [
        ([["sh", "-c", "exit 3"], BUILD], [PREPARE], [("build", 3)]),
        ([BUILD], [["sh", "-c", "exit 4"]], [("build", 0), ("prepare", 4)]),
    ],
)
def test_a_command_that_fails_is_evidence_and_leaves_no_tree(
    world: World, build: list[list[str]], prepare: list[list[str]], exit_codes: list[tuple[str, int]]
) -> None:
    assert world.run() == 0
    world.build, world.prepare = build, prepare
    assert world.run() == 0
    assert world.exit_codes == exit_codes
    assert world.evidence["tree"] is None
    assert not world.archive.exists()  # nor one of an earlier attempt
    assert f"exit code {exit_codes[-1][1]}" in (world.folder / "summary").read_text()


def test_no_tree_where_nothing_is_migrated(world: World) -> None:
    (world.root / "prisma" / "migrations").rmdir()
    world.prepare = []
    assert world.run() == 0
    assert world.evidence["tree"] is None
    (world.root / "prisma" / "migrations").mkdir()
    assert world.run() == 0
    assert world.evidence["tree"] is not None


@pytest.mark.parametrize(("command", "needed"), [(["python3", "manage.py", "migrate"], True), ([], False)])
def test_another_tools_migrations_need_the_tree_and_none_do_not(tmp_path: Path, command: list[str], needed: bool) -> None:
    path = deploy_config.write(tmp_path / "deploy.toml", database={"prepare": [["true"]]}, migrations={"command": command})
    assert build.needs_tree(config.load(path)) is needed


def test_a_dockerfile_that_cannot_be_built_is_evidence(world: World, docker_engine: str) -> None:
    services = {name: deploy_config.service(name, route_prefix=f"/{name}", context=name) for name in ("api", "auth", "made_later")}
    for name, text in (("api", "FROM scratch\n\nCOPY --link a /\n"), ("auth", "FROM node:22-slim\nRUN make\n")):
        (world.root / name).mkdir()
        (world.root / name / "Dockerfile").write_text(text)
    world.sections = {"services": services, "target": {"kind": "docker_hosts"}, "registry": {"repository": "registry.example/azora"}}
    assert world.run(DOCKER_HOST=docker_engine) == 0
    problems = {entry["service"]: entry["problem"] for entry in world.evidence["dockerfiles"]}
    assert problems["api"]["where"] == "api/Dockerfile:3"
    assert problems["api"]["what"].startswith("COPY --link: ")
    assert problems == {"api": problems["api"], "auth": None}  # the third one is made by the production build


def test_commands_see_no_secret(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job holds none; where a runner's own environment has some, they stay out of reach."""
    for name in ("STRIPE_KEY", "NPM_TOKEN", "GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN", "STRIPE_MODE"):
        monkeypatch.setenv(name, f"value-of-{name}")
    world.sections = {
        "services": {"api": deploy_config.service("API", secrets=["STRIPE_KEY"], build={"secrets": ["NPM_TOKEN"]})},
        "build": {"commands": [], "isolation": "none", "isolation_reason": "the images are large"},
    }
    world.build = [["sh", "-c", "env > environment"]]
    assert world.run() == 0
    values = [line.partition("=")[2] for line in (world.root / "environment").read_text().splitlines() if "value-of-" in line]
    assert values == ["value-of-STRIPE_MODE"]


def test_a_command_that_cannot_be_started_is_no_evidence(world: World) -> None:
    world.build = [["no-such-program"]]
    assert world.run() == 2


# Forks twice, each time as a session of its own, and then waits for the job's last words to add its own.
STAYS = """
import os, sys, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
for number in range(3):
    os.close(number)
open("daemon", "w").write(str(os.getpid()))
while "fragment-sha256" not in open(sys.argv[1]).read():
    time.sleep(0.02)
open("prisma/late", "w").write("late")
with open(sys.argv[1], "a") as output:
    output.write("fragment-sha256=forged\\n")
"""


def test_nothing_that_a_command_starts_outlives_it(world: World) -> None:
    output = world.folder / "output"
    output.touch()
    waits = "import pathlib, time\nwhile not pathlib.Path('daemon').exists(): time.sleep(0.02)"
    world.build = [["sh", "-c", 'python3 -c "$1" "$2"; python3 -c "$3"', "sh", STAYS, str(output), waits]]
    assert world.run() == 0
    daemon = int((world.root / "daemon").read_text())
    time.sleep(0.3)
    assert not is_alive(daemon)
    assert "forged" not in output.read_text()
    assert "ended what the command left running: 1 processes, python3" in (world.folder / "logs" / "build.log").read_text()
