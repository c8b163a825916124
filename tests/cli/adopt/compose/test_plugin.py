"""What the compose plug-in of docker says counts, where there is one.

No plug-in is on the machines that run these tests: a stand-in speaks its command line, with answers in the shape that the plug-in
gives with ``--no-interpolate``: paths absolute, lists and mappings as they stand in the files, no default networks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from azora_ci.cli.adopt.compose import plugin
from azora_ci.cli.adopt.discover import discover

STAND_IN = """#!/bin/sh
env > "$(dirname "$0")/environment"
printf '%s\\n' "$@" > "$(dirname "$0")/arguments"
case "$*" in
  "compose version --short") {version} ;;
  "compose --file "*" config --format json --no-interpolate") cat "$(dirname "$0")/answer"; exit {status} ;;
  *) echo "unknown: $*" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "docker-compose.yml").write_text("services: {web: {build: app, environment: {FROM: our own reading}, ports: [80]}}\n")
    return folder


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Any, *, version: str = "echo 2.40.3", status: int = 0) -> Path:
    programs = folder.parent / "programs"
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(STAND_IN.replace("{version}", version).replace("{status}", str(status)))
    docker.chmod(0o755)
    (programs / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HUNTER", "hunter2")
    return programs


def answer(repository: Path) -> dict[str, Any]:
    web = {
        "build": {"context": f"{repository}/${{SRC:-other}}", "dockerfile": "Dockerfile"},
        "environment": {"FROM": "the plug-in", "X": "${X:-d}", "PRICE": "$$5"},
        "volumes": [{"type": "volume", "source": "data", "target": "/data", "volume": {}}],
        "env_file": [{"path": f"{repository}/web.env", "required": True}],
        "ports": [{"mode": "ingress", "target": 3000, "published": "80", "protocol": "tcp"}],
    }
    return {"name": "repository", "services": {"web": web, "debug": {"build": {"context": str(repository)}, "profiles": ["debug"]}}}


def test_the_plugins_model_is_used(monkeypatch, repository):
    (repository / "web.env").write_text("LEVEL=info\n")
    programs = stand_in(monkeypatch, repository, answer(repository))
    application = discover(repository)
    (web,) = application.services
    assert web.volumes == ("data:/data",)
    assert "volumes" in web.marks
    assert (web.context, web.port) == ("other", 3000)
    assert web.env == {"FROM": "the plug-in", "X": "d", "PRICE": "$5", "LEVEL": "info"}
    assert "profile debug" in application.left_out["debug"]
    assert (programs / "arguments").read_text().splitlines()[1:3] == ["--file", str(repository.resolve() / "docker-compose.yml")]
    assert "hunter2" not in (programs / "environment").read_text()


@pytest.mark.parametrize(
    ("said", "version", "status", "note"),
    [
        ("", "exit 1", 0, False),  # docker without the plug-in
        ("services.web invalid: hunter2", "echo 2.40.3", 15, True),
        ("no JSON", "echo 2.40.3", 0, True),
        ('{"services": []}', "echo 2.40.3", 0, True),
        ("[" * 5000, "echo 2.40.3", 0, True),
    ],
)
def test_without_an_answer_our_own_reading_counts_and_says_so(monkeypatch, repository, said, version, status, note):
    stand_in(monkeypatch, repository, said, version=version, status=status)
    application = discover(repository)
    assert application.services[0].env == {"FROM": "our own reading"}
    assert any("docker compose config could not read the files" in line for line in application.notes) is note
    assert "hunter2" not in str(application)


@pytest.mark.parametrize(
    "content",
    [
        "include: [https://x.example/a.git]\nservices: {web: {build: app}}",
        "include: ['git@x.example:a/b.git']\nservices: {web: {build: app}}",
        "include: [github.com/a/b]\nservices: {web: {build: app}}",
        "include: [{path: ['oci://x.example/a']}]\nservices: {web: {build: app}}",
        "include: ['oci:x.example/a']\nservices: {web: {build: app}}",
        "include: !override ['git://x.example/a.git']\nservices: {web: {build: app}}",
        "include: ['${REMOTE}']\nservices: {web: {build: app}}",
        "include: ['${REMOTE_TOKEN}']\nservices: {web: {build: app}}",
        "include: [{path: other.yml, env_file: /dev/zero}]\nservices: {web: {build: app}}",
        "services: {web: {build: app, extends: {file: 'git@x.example:a/b.git', service: a}}}",
        "services: {web: {build: app, extends: {file: github.com/a/b, service: a}}}",
        "services: {web: !override {build: app, extends: {file: github.com/a/b, service: a}}}",
        "services: !override {web: {build: app, extends: {file: github.com/a/b, service: a}}}",
        "services: {web: {build: app}, api: {build: 'git@x.example:a/b.git'}}",
        "services: {web: {build: app}, api: {build: {context: 'https://x.example/a.git'}}}",
    ],
)
def test_the_plugin_is_not_asked_about_files_that_it_would_fetch(monkeypatch, repository, content):
    programs = stand_in(monkeypatch, repository, answer(repository))
    (repository / ".env").write_text("REMOTE=https://x.example/a.git\nREMOTE_TOKEN=git@x.example:a\n")
    (repository / "other.yml").write_text("services: {other: {image: x}}\n")
    (repository / "docker-compose.yml").write_text(content + "\n")
    assert discover(repository).services[0].id == "web"
    assert not (programs / "arguments").exists() or "config" not in (programs / "arguments").read_text()


def test_the_plugin_is_not_asked_to_read_variables_elsewhere(monkeypatch, repository):
    programs = stand_in(monkeypatch, repository, answer(repository))
    (repository / ".env").symlink_to("/dev/zero")
    assert discover(repository).services
    assert not (programs / "arguments").exists() or "config" not in (programs / "arguments").read_text()


def test_the_command_names_every_file_and_interpolates_nothing(tmp_path):
    argv = plugin.argv(tmp_path, ["a.yml", "b/c.yml"])
    files = [part for name in ("a.yml", "b/c.yml") for part in ("--file", str(tmp_path.resolve() / name))]
    assert argv == ("docker", "compose", *files, "--profile", "*", "config", "--format", "json", "--no-interpolate")
