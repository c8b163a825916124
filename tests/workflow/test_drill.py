"""Drill: a malicious dependency hunts for secrets in each job that runs code of the application.

Each job runs alone on a machine made of private PID, mount and network namespaces, with only the environment that its block of the
workflow gives it; under act all jobs share a machine, so a rehearsal cannot show this.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from azora_ci.core.pipeline import APPLICATION_JOBS
from tests.support import ROOT
from tests.workflow.test_contract import DOCUMENT, run_step

SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or (bool(SUDO) and subprocess.run([*SUDO, "true"], check=False).returncode != 0),
    reason="namespaces need Linux, and root or sudo",
)
MACHINE = ("HOME", "RUNNER_TEMP", "TMP", "WORKSPACE", "COMMAND_FILE", "SOCKET", "METADATA", "ACTIONS_RUNTIME_TOKEN")
ID_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # GitHub gives it to every step of a job with id-token: write
JOBS = [job for job in (*APPLICATION_JOBS, "database-migrations") if job in DOCUMENT["jobs"]]
KNOWN = {
    "needs.validate-release.outputs.deployment-id": "1764000000-abc123",
    "needs.validate-release.outputs.version": "v1.1.0",
    "needs.validate-release.outputs.git-sha": "abc123" + "0" * 34,
}


def make_canaries() -> dict[str, str]:
    names = {*re.findall(r"secrets\.(\w+)", json.dumps(DOCUMENT)), "GITHUB_TOKEN", ID_TOKEN, *MACHINE}
    return {name: f"canary-{secrets.token_hex(6)}" for name in sorted(names)}


def environment(job: str, canaries: Mapping[str, str]) -> dict[str, str]:
    """Return what a job's block gives its step, with every secret that may be in it; variables have their defaults."""
    block = DOCUMENT["jobs"][job]
    texts = {**DOCUMENT["env"], **block.get("env", {}), **run_step(job).get("env", {})}
    environ = {name: value for name, text in texts.items() if (value := evaluate(text, canaries))}
    if block["permissions"].get("id-token") == "write":
        environ[ID_TOKEN] = canaries[ID_TOKEN]
    return environ


def evaluate(text: str, canaries: Mapping[str, str]) -> str:
    text = re.sub(r"\$\{\{ inputs\.\w+ \|\| '([^']*)' \}\}", r"\1", text)  # what only a caller names, also inside of a text
    expression = re.fullmatch(r"\$\{\{ (.*) \}\}", text)
    if expression is None:
        return text
    secret = re.search(r"\bsecrets\.(\w+)", text)
    if secret is not None:
        return shaped(secret[1], canaries[secret[1]])
    if "github.token" in text:
        return canaries["GITHUB_TOKEN"]
    default = re.search(r"\|\| '([^']*)'", text)
    return KNOWN.get(expression[1], default[1] if default else "")


def shaped(name: str, canary: str) -> str:
    """Return a canary in the form that the step demands of this secret."""
    if name == "PROD_KEY":
        return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{canary}\n-----END OPENSSH PRIVATE KEY-----\n"
    return f"{canary}.example" if name in {"PROD_HOST", "PROD_JUMP_HOST"} else canary


def hunt(how: str, environ: Mapping[str, str], canaries: Mapping[str, str]) -> dict[str, Any]:
    """Run one job on its machine and return what the machine says, with ``found``: canary's name -> where the hunt found it."""
    namespaces = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--mount", "--propagation", "private", "--net"]
    argv = [*SUDO, *namespaces, sys.executable, "-m", "tests.workflow.drill.machine"]
    task = json.dumps({"how": how, "environment": environ, "canaries": canaries})
    completed = subprocess.run(argv, input=task, capture_output=True, text=True, check=False, timeout=240, cwd=ROOT)
    assert completed.returncode == 0, completed.stderr
    outcome: dict[str, Any] = json.loads(completed.stdout)
    names = {canary.removeprefix("canary-")[::-1]: name for name, canary in canaries.items()}
    outcome["found"] = {}
    for digits, where in re.findall(r"HUNT ([0-9a-f]{12}) (.*)", outcome["printed"]):
        outcome["found"].setdefault(names[digits], set()).add(where.strip())
    return outcome


@pytest.fixture
def canaries() -> dict[str, str]:
    return make_canaries()


def test_the_hunt_finds_what_lies_open(canaries: dict[str, str]) -> None:
    """Without any protection every place gives its canary away, and the daemon reaches the next step."""
    outcome = hunt("openly", {"PROD_KEY": canaries["PROD_KEY"]}, canaries)
    assert set(outcome["found"]) == {"PROD_KEY", *MACHINE} - {"ACTIONS_RUNTIME_TOKEN"}, outcome["printed"]
    assert outcome["found"]["SOCKET"] == {"/run/agent.sock", "/tmp/agent.sock"}
    assert outcome["daemons"] == 1
    assert outcome["command_file"].startswith("LD_PRELOAD=")
    assert canaries["ACTIONS_RUNTIME_TOKEN"].removeprefix("canary-") in outcome["command_file"]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_runs_application_code(job: str, canaries: dict[str, str]) -> None:
    environ = environment(job, canaries)
    outcome = hunt("migrations" if job == "database-migrations" else job, environ, canaries)
    found = outcome["found"]
    assert (outcome["daemons"], outcome["command_file"]) == (0, ""), "it lived on into the next step"
    assert ("hunting-daemon left behind" in outcome["printed"]) == (job != "audit"), outcome["printed"]
    if job == "audit":
        assert found == {}
    elif job == "database-migrations":
        assert found == {"PROD_DATABASE_URL": {"environment DATABASE_URL"}}
    else:
        # Of the machine, which holds no secret of anybody's in such a job, it may see what it wants.
        assert set(found) <= set(MACHINE) - {"ACTIONS_RUNTIME_TOKEN"}
        assert not [where for places in found.values() for where in places if where.startswith(("environment ", "/proc/"))]


def test_the_jobs_that_run_application_code_hold_no_power() -> None:
    for job in JOBS:
        block = DOCUMENT["jobs"][job]
        # database-migrations asks, before its command, whether the images' jobs have failed; the command does not get that token.
        asks = {"actions": "read"} if job == "database-migrations" else {}
        assert block["permissions"] == {"contents": "read", **asks}, job
        assert not re.search(r"secrets\.|github\.token|steps\.aws", json.dumps(block)) or job == "database-migrations", job
        assert "environment" not in block or job == "database-migrations", job
    assert not [name for name in run_step("database-migrations")["env"] if name.startswith("AWS_")]
