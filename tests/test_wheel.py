"""The built wheel ships schemas and workflows; from an empty environment a step runs and an application adopts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from azora_ci.cli.adopt.plan import WORKFLOWS
from azora_ci.core.pipeline import JOBS
from azora_ci.database.restore.scripts import RESTORE_SCRIPT, SWAP_SCRIPT
from tests.support import ROOT
from tests.support.commands import git

SHA = "0123456789abcdef0123456789abcdef01234567"


def run(*argv: str | Path, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GITHUB_", "GIT_", "AWS_"))}
    return subprocess.run(
        [str(part) for part in argv], cwd=folder, env={**inherited, **environ}, capture_output=True, text=True, check=False, timeout=280
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    completed = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """Return the interpreter of an environment that holds the wheel and the hashed requirements, nothing else."""
    environment = wheel.parent / "environment"
    assert run(sys.executable, "-m", "venv", environment, folder=wheel.parent).returncode == 0
    interpreter = environment / "bin/python"
    pip = (interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    for arguments in (["--require-hashes", "-r", ROOT / "requirements.txt"], ["--no-index", wheel]):
        completed = run(*pip, *arguments, folder=wheel.parent)
        assert completed.returncode == 0, completed.stdout + completed.stderr
    return interpreter


def test_what_the_wheel_holds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    schemas = {f"azora_ci/_schemas/{path.name}" for path in (ROOT / "schemas").glob("*.json")}
    assert len(schemas) > len(JOBS)
    assert schemas <= names
    assert {f"azora_ci/_workflows/{name}" for name in WORKFLOWS} <= names
    assert {f"azora_ci/database/restore/{name}" for name in (RESTORE_SCRIPT, SWAP_SCRIPT)} <= names
    pages = [path for path in (ROOT / "azora_ci/record/pages").rglob("*") if path.suffix in {".html", ".css", ".js"}]
    assert len(pages) > 3 and {str(path.relative_to(ROOT)) for path in pages} <= names
    box = "azora_ci/rehearsal/kubernetes/box"  # sources of what is built on the machine that rehearses
    assert {f"{box}/{name}" for name in ("go.mod", "go.sum", "requirements.txt", "cmd/kubebox/main.go", "cmd/podnode/main.go")} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_the_hashed_requirements_are_all_that_is_needed(python, tmp_path):
    completed = run(python, "-m", "pip", "check", "--disable-pip-version-check", folder=tmp_path)
    assert completed.returncode == 0, completed.stdout


def test_a_step_runs_from_the_wheel_in_an_empty_directory(python, tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    source.mkdir()
    git(source, "init", "-q")
    git(source, "commit", "-q", "--allow-empty", "-m", "Start")
    git(source, "tag", "v1.2.3")
    git(tmp_path, "clone", "-q", str(source), str(empty))
    step = "from azora_ci.steps.runner import main; main('validate-release')"
    environ = {"GITHUB_EVENT_NAME": "push", "GITHUB_REF": "refs/tags/v1.2.3", "DEPLOYMENT_LOG_DIR": "logs"}
    completed = run(python, "-c", step, folder=empty, **environ)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    fragment = json.loads((empty / "logs/record/validate-release.json").read_text())
    assert fragment["status"] == "ok"
    assert fragment["git_sha"] == git(source, "rev-parse", "HEAD")


def test_every_step_documents_its_environment(python, tmp_path):
    code = "import sys; from azora_ci.steps.runner import command; command(sys.argv[1]).main(['--help'], prog_name=sys.argv[1])"
    for job in JOBS:
        completed = run(python, "-c", code, job, folder=tmp_path)
        assert completed.returncode == 0, f"{job}: {completed.stderr}"
        assert "DEPLOYMENT_LOG_DIR" in completed.stdout


def test_an_application_adopts_from_the_wheel(python, tmp_path):
    git(tmp_path, "init", "-q")
    completed = run(python, "-m", "azora_ci", "adopt", tmp_path, folder=tmp_path)
    assert (completed.returncode, "--ref" in completed.stderr) == (2, True)
    completed = run(python, "-m", "azora_ci", "adopt", tmp_path, "--ref", SHA, folder=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"setup@{SHA}" in (tmp_path / ".github/workflows/deploy-production.yml").read_text()
    completed = run(python, "-m", "azora_ci", "adopt", tmp_path, "--check", folder=tmp_path)
    assert completed.returncode == 1
    assert "is still to be filled in" in completed.stderr
    assert "not this version's" not in completed.stderr  # the workflows are


IMPORT_THE_REHEARSAL = """
import importlib, pkgutil
from azora_ci import rehearsal
for module in pkgutil.walk_packages(rehearsal.__path__, "azora_ci.rehearsal."):
    module.name.endswith("__main__") or importlib.import_module(module.name)
from azora_ci.rehearsal.act.runner import LOCAL_ACTIONS
from azora_ci.rehearsal.application import SAMPLE
from azora_ci.rehearsal.judge.rollback import SCHEMA
print(*(path.exists() for path in (LOCAL_ACTIONS, SAMPLE, SCHEMA)), rehearsal.__file__)
"""


def test_the_rehearsal_is_in_the_wheel_for_those_who_install_its_extra(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    imported = run(sys.executable, "-c", IMPORT_THE_REHEARSAL, folder=tmp_path)  # the environment of the tests has the extra
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.split() == ["True", "True", "True", str(tmp_path / "azora_ci/rehearsal/__init__.py")]
