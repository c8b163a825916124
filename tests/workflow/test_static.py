"""Public linters find no fault in the workflows, the set-up action and the shell scripts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from azora_ci.core.pipeline import JOBS
from azora_ci.database.restore.scripts import RESTORE_SCRIPT, SWAP_SCRIPT
from azora_ci.rehearsal.act import workflow_text
from tests.support import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github/actions").glob("*/action.yml"))
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def tool(name: str) -> str:
    """Return a program of the environment that runs the tests."""
    program = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}")
    assert program, f"{name} is not installed beside {sys.executable}"
    return program


def run(*argv: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in argv], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def shell_scripts() -> list[Path]:
    """Return every tracked file whose first line names a shell."""
    files = [ROOT / name for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").stdout.split("\0") if name]
    first = {path: path.open("rb").readline() for path in files if path.is_file() and path.stat().st_size}
    return sorted(path for path, line in first.items() if re.match(rb"#!.*\b(ba|da)?sh\b", line))


@every_workflow
def test_a_workflow_fits_githubs_schema(path):
    completed = run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", path)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.parent.name)
def test_an_action_fits_githubs_schema(path):
    completed = run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-actions", path)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.parametrize("persona", ["regular", "auditor"])
def test_zizmor_finds_nothing(persona):
    completed = run(
        tool("zizmor"), "--offline", "--no-progress", "--no-ignores", f"--persona={persona}", "--min-severity=informational", ".github"
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "No findings to report" in completed.stdout + completed.stderr


def test_zizmor_would_find_something(tmp_path):
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    (tmp_path / "bad.yml").write_text(text.replace("persist-credentials: false", "persist-credentials: true"))
    assert run(tool("zizmor"), "--offline", "--no-progress", "--persona=auditor", tmp_path / "bad.yml").returncode != 0


def test_no_finding_is_ignored():
    for path in [*WORKFLOWS, *ACTIONS]:
        assert "zizmor: ignore" not in path.read_text(encoding="utf-8")
    assert not list(ROOT.glob(".github/zizmor.y*ml")) + list(ROOT.glob("zizmor.y*ml"))


def test_act_reads_every_job(tmp_path):
    path = tmp_path / "deploy-production.yml"
    path.write_text(workflow_text.for_act((ROOT / ".github/workflows" / path.name).read_text(encoding="utf-8")), encoding="utf-8")
    completed = run(tool("act"), "-l", "-W", path)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    rows = [line.split() for line in completed.stdout.splitlines() if "deploy-production.yml" in line]
    assert {row[1] for row in rows} == set(JOBS)
    stages = {row[1]: int(row[0]) for row in rows}
    assert stages["database-migrations"] > stages["database-backup"] > stages["pre-deployment-validation"] > 0
    assert stages["deployment-failure-handler"] == max(stages.values())


def test_shell_scripts_are_sound():
    scripts = shell_scripts()
    restore = ROOT / "azora_ci/database/restore"
    assert {ROOT / ".github/actions/setup/install.sh", restore / RESTORE_SCRIPT, restore / SWAP_SCRIPT} <= set(scripts)
    completed = run(tool("shellcheck"), "--severity=style", *scripts)
    assert completed.returncode == 0, completed.stdout


def test_run_blocks_are_sound(tmp_path):
    blocks = 0
    for path in [*WORKFLOWS, *ACTIONS]:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        groups = [job["steps"] for job in document["jobs"].values()] if "jobs" in document else [document["runs"]["steps"]]
        for step in [step for steps in groups for step in steps if "run" in step]:
            (tmp_path / f"{blocks}.sh").write_text(f"#!/usr/bin/env bash\n{step['run']}\n")
            blocks += 1
    assert blocks >= 13
    completed = run(tool("shellcheck"), "--severity=style", *sorted(tmp_path.glob("*.sh")))
    assert completed.returncode == 0, completed.stdout


def test_ci_asks_for_published_weaknesses():
    """Only a service on the network knows them, so scripts/test does not ask; a job of CI does, every week, too."""
    document = yaml.load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert document["on"]["schedule"]
    (step,) = [step for step in document["jobs"]["supply-chain"]["steps"] if "run" in step]
    assert step["run"] == "exec scripts/test --online"
    assert step["env"] == {"GH_TOKEN": "${{ github.token }}"}


def test_published_weaknesses_are_asked_for_online_and_for_every_requirement():
    script = (ROOT / "scripts/test").read_text(encoding="utf-8")
    (audit,) = re.findall(r"^ *pip-audit (.*) \|\| status", script, re.MULTILINE)
    assert {path.name for path in ROOT.glob("requirements*.txt")} == set(re.findall(r"-r (\S+)", audit))
    assert "--strict" in audit  # a package that cannot be looked up is no clean package
    (actions,) = re.findall(r"^ *zizmor (.*) \|\| status", script, re.MULTILINE)
    assert "--offline" not in actions
