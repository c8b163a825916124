"""A repository that means harm: adopting executes nothing of it, reads and writes nothing outside, and ends in time with words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from azora_ci.cli.adopt.discover import discover


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
