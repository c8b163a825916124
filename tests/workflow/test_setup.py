"""The set-up action's script installs into a tool cache, checks hashes, and installs once for the same input."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import ROOT


def only_click() -> str:
    """Return the hashed requirement of click alone: click is small, and a script imports it first."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    match = re.search(r"^click==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match
    return match[0]


class Runner:
    """A runner has its own folders, which hold a checkout of the action."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "actions/azora-ci"
        self.setup = self.checkout / ".github/actions/setup"
        self.setup.mkdir(parents=True)
        (self.setup / "install.sh").symlink_to(ROOT / ".github/actions/setup/install.sh")
        (self.checkout / "azora_ci").symlink_to(ROOT / "azora_ci")
        (self.checkout / "requirements.txt").write_text(only_click())

    def environ(self, job: str, python: str, postgresql: str) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            **{
                name: value
                for name, value in os.environ.items()
                if name.startswith(("PIP_", "SSL_", "REQUESTS_")) or "proxy" in name.lower()
            },
            "SETUP_FOLDER": str(self.setup),
            "SETUP_PYTHON": python,
            "SETUP_POSTGRESQL": postgresql,
            "RUNNER_TOOL_CACHE": str(self.folder / "tools"),
            "GITHUB_ENV": str(self.folder / f"{job}.env"),
            "GITHUB_OUTPUT": str(self.folder / f"{job}.output"),
        }

    def start(self, job: str, python: str = sys.executable, postgresql: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", self.setup / "install.sh"],
            env=self.environ(job, python, postgresql),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, job: str = "job", python: str = sys.executable, postgresql: str = "") -> tuple[int, str]:
        process = self.start(job, python, postgresql)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def exported(self, job: str = "job") -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.folder / f"{job}.env").read_text().splitlines())

    @property
    def environments(self) -> list[Path]:
        return sorted((self.folder / "tools/azora-ci").glob("*"))


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_two_jobs_at_once_share_one_environment_that_runs_a_script(runner):
    both = {job: runner.start(job) for job in ("first", "second")}
    for process in both.values():
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert runner.exported("first") == runner.exported("second")
    exported = runner.exported("first")
    assert exported["AZORA_CI"] == str(runner.checkout)
    assert (runner.folder / "first.output").read_text() == f"python={exported['AZORA_PYTHON']}\n"
    (environment,) = runner.environments
    installed_at = (environment / "complete").stat().st_mtime_ns
    assert runner.run("third")[0] == 0
    assert (environment / "complete").stat().st_mtime_ns == installed_at
    script = ROOT / "scripts/validate_release.py"
    completed = subprocess.run(
        [exported["AZORA_PYTHON"], script, "--help"], cwd=runner.folder, env={}, capture_output=True, text=True, check=False, timeout=60
    )
    assert completed.returncode == 0, completed.stderr
    assert "INPUT_VERSION" in completed.stdout


def test_a_package_with_another_hash_is_not_installed(runner):
    path = runner.checkout / "requirements.txt"
    path.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", path.read_text()))
    code, output = runner.run()
    assert code == 2
    assert "::error title=azora-ci cannot be set up::pip could not install" in output
    assert runner.environments == []
    assert not (runner.folder / "job.env").exists()


BACKEND = """
import pathlib
def canary(*_, **__):
    pathlib.Path({canary!r}).touch()
    raise SystemExit("built")
get_requires_for_build_wheel = prepare_metadata_for_build_wheel = build_wheel = canary
"""


def test_a_source_archive_is_not_built(runner, monkeypatch):
    canary, links = runner.folder / "canary", runner.folder / "links"
    links.mkdir()
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(canary=str(canary)),
    }
    with tarfile.open(links / "evil-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"evil-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    digest = hashlib.sha256((links / "evil-1.0.tar.gz").read_bytes()).hexdigest()
    (runner.checkout / "requirements.txt").write_text(f"evil==1.0 --hash=sha256:{digest}\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, output = runner.run()
    assert code == 2, output
    assert not canary.exists(), output


def test_an_old_python_is_refused(runner):
    old = runner.folder / "python3.10"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.1\nexit 1\n')
    old.chmod(0o755)
    code, output = runner.run(python=str(old))
    assert code == 2
    assert "is Python 3.10.1, azora-ci needs Python 3.11 or newer" in output


def test_a_python_that_is_not_there_is_named(runner):
    code, output = runner.run(python="python-of-nowhere")
    assert code == 2
    assert "python-of-nowhere was not found" in output


def test_the_action_alone_without_its_repository_is_refused(runner):
    (runner.checkout / "requirements.txt").unlink()
    code, output = runner.run()
    assert code == 2
    assert "OWNER/azora-ci/.github/actions/setup@<commit>" in output


@pytest.mark.parametrize("major", ["17; reboot", "latest", "7", "017", "$(id)"])
def test_only_a_major_version_of_postgresql_is_installed(runner, major):
    (runner.checkout / "requirements.txt").write_text("")
    code, output = runner.run(postgresql=major)
    assert code == 2
    assert "give a major version such as 17" in output


def test_a_postgresql_that_cannot_be_installed_is_named(runner):
    (runner.checkout / "requirements.txt").write_text("")
    (runner.folder / "bin").mkdir()
    sudo = runner.folder / "bin/sudo"
    sudo.write_text('#!/bin/sh\necho "asked for: $*"\n[ "$1" != apt-get ]\n')
    sudo.chmod(0o755)
    code, output = runner.run(postgresql="99")
    assert code == 2
    assert "asked for: apt-get install -y --no-install-recommends postgresql-99" in output
    assert "postgresql-99 could not be installed" in output
    assert not (runner.folder / "job.env").exists()
