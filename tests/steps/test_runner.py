"""The runner turns whatever happens in a step into one annotation, one fragment and the exit code of the error's family."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from azora_ci.core import pipeline, settings, variables
from azora_ci.core.errors import NotTrueError, UnreachableError
from azora_ci.steps import runner
from tests.support import ROOT
from tests.support import fragments_builder as build

ID = "1764000000-abc123"


@pytest.fixture
def environ(tmp_path):
    return {
        "DEPLOYMENT_ID": ID,
        "VERSION": "v1.2.3",
        "GIT_SHA": "a" * 40,
        "DEPLOYMENT_LOG_DIR": str(tmp_path / "logs"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "PROD_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d",
    }


@pytest.fixture
def step(monkeypatch):
    """Return a function that puts a test's own step in the place of smoke-tests; restore the signal handlers afterwards."""

    def put(run, *mixins):
        module = ModuleType("azora_ci.steps.smoke_tests")
        bases = (settings.Deployment, settings.DatabaseAccess, *mixins)
        module.Settings = dataclass(frozen=True, kw_only=True)(type("Settings", bases, {}))
        module.run = run
        monkeypatch.setitem(sys.modules, "azora_ci.steps.smoke_tests", module)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield put
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


def fragment(environ) -> dict:
    return json.loads((Path(environ["DEPLOYMENT_LOG_DIR"]) / "record" / "smoke-tests.json").read_text())


def test_each_production_host_is_masked_by_itself(step, environ, capsys):
    environ |= {"PROD_HOST": "web1.example:2222, 203.0.113.7,web", "PROD_JUMP_HOST": "jumper@bastion.example"}
    masked: list[str] = []

    def run(job):
        job.say("web1.example and 203.0.113.7 and jumper at bastion.example")
        masked.extend(job.log.masked_evidence(["ssh: connect to host 203.0.113.7 port 22", "a web page", "a jumper"]))
        raise UnreachableError("Lost", what="web1.example is away", where="host-1", next_step="wait")

    step(run, settings.SshAccess)
    assert runner.execute("smoke-tests", environ) == 3
    printed = capsys.readouterr().out
    assert "*** and *** and *** at ***" in printed
    text = json.dumps(fragment(environ))
    # A name without a dot stays: it may stand inside of a word.
    assert masked == ["ssh: connect to host *** port 22", "a web page", "a jumper"]
    visible = "".join(line for line in printed.splitlines() if not line.startswith("::add-mask::"))
    for host in ("web1.example", "203.0.113.7", "bastion.example"):
        assert host not in text + visible


@pytest.mark.parametrize(("error", "code"), [(NotTrueError, 1), (UnreachableError, 3)])
def test_a_failure_is_announced_recorded_and_masked(step, environ, capsys, error, code):
    def run(job):
        job.say("connecting with hunter2")
        raise error("It broke", what="cannot use hunter2: 5 %", where="here", next_step="do that")

    step(run)
    assert runner.execute("smoke-tests", environ) == code
    printed = capsys.readouterr().out
    assert "::error title=It broke::cannot use ***: 5 %25%0AWhere: here%0ANext: do that" in printed
    assert "Traceback" not in printed
    document = fragment(environ)
    assert (document["status"], document["deployment_id"], document["version"]) == ("failed", ID, "v1.2.3")
    assert document["error"] == {"exit_code": code, "title": "It broke", "what": "cannot use ***: 5 %", "where": "here", "next": "do that"}
    assert "It broke" in Path(environ["GITHUB_STEP_SUMMARY"]).read_text()
    artifacts = "".join(path.read_text() for path in Path(environ["DEPLOYMENT_LOG_DIR"]).rglob("*") if path.is_file())
    assert "hunter2" not in artifacts.replace("::add-mask::", "")


def test_evidence_is_masked_and_a_quoted_fence_does_not_end_the_summary(step, environ):
    environ["PROD_DATABASE_URL"] = "postgresql://u:hunter2hunter2@127.0.0.1:1/d"

    def run(job):
        job.evidence["rollback"] = {"to": None, "seconds_to_safe": None, "proved": False, "detail": "it says hunter2hunter2 and more"}
        raise NotTrueError("It broke", what="```\n# ✅ all is well", where="here", next_step="do that")

    step(run)
    assert runner.execute("smoke-tests", environ) == 1
    assert fragment(environ)["evidence"]["rollback"]["detail"] == "it says *** and more"
    page = Path(environ["GITHUB_STEP_SUMMARY"]).read_text()
    assert "\n````text\n```\n# ✅ all is well\n" in page
    assert page.rstrip().endswith("\n````")


def test_a_bug_keeps_its_traceback_in_the_log_and_exits_4(step, environ, capsys):
    def run(_job):
        raise ZeroDivisionError("oops hunter2")

    step(run)
    assert runner.execute("smoke-tests", environ) == 4
    assert "ZeroDivisionError: oops ***" in capsys.readouterr().out
    assert "Traceback" in (Path(environ["DEPLOYMENT_LOG_DIR"]) / "smoke-tests.log").read_text()
    assert fragment(environ)["error"]["exit_code"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_is_recorded_as_cancelled_and_ends_its_children(step, environ, number):
    def run(job):
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        job.processes.run([sys.executable, "-c", "import time; time.sleep(600)"])

    step(run)
    started = time.monotonic()
    assert runner.execute("smoke-tests", environ) == 1
    assert time.monotonic() - started < 60
    document = fragment(environ)
    assert document["status"] == "cancelled"
    assert number.name in document["error"]["what"]


# --- the output that binds the fragment, and the folder that it lies in -----------------------------------------------------


def named_sha256(environ) -> str:
    """Return the output fragment-sha256 as GitHub takes it: of several, the last one counts."""
    text = Path(environ["GITHUB_OUTPUT"]).read_text()
    return re.findall(r"(?m)^fragment-sha256(?:=|<<ghadelimiter_.*\n)(.*)$", text)[-1]


def own_sha256(environ) -> str:
    return hashlib.sha256((Path(environ["DEPLOYMENT_LOG_DIR"]) / "record" / "smoke-tests.json").read_bytes()).hexdigest()


def fail(_job):
    raise NotTrueError("It broke", what="w", where="here", next_step="n")


def cancel(_job):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


@pytest.mark.parametrize("run", [fail, cancel, lambda job: job.evidence.update(build.evidence("smoke-tests"))])
def test_every_end_of_a_job_names_its_fragment_by_hash(step, environ, run):
    step(run)
    runner.execute("smoke-tests", environ)
    assert named_sha256(environ) == own_sha256(environ)


def test_a_job_whose_variables_are_wrong_names_its_fragment_too(environ):
    del environ["PROD_DATABASE_URL"]
    assert runner.execute("smoke-tests", environ) == 2
    assert named_sha256(environ) == own_sha256(environ)


def test_what_a_command_leaves_running_is_dead_before_the_fragment_is_named(step, environ):
    script = 'for n in $(seq 200); do echo "fragment-sha256=$(printf "e%.0s" $(seq 64))" >> "$GITHUB_OUTPUT"; sleep 0.02; done'
    forger = ["bash", "-c", script]

    def run(job):
        job.processes.start(forger, env={"GITHUB_OUTPUT": environ["GITHUB_OUTPUT"]})
        time.sleep(0.5)
        fail(job)

    step(run)
    runner.execute("smoke-tests", environ)
    time.sleep(0.3)
    assert f"fragment-sha256={'e' * 64}" in Path(environ["GITHUB_OUTPUT"]).read_text()
    assert named_sha256(environ) == own_sha256(environ)


def test_a_committed_log_folder_never_becomes_the_artifact(step, environ, tmp_path, monkeypatch):
    checkout, temp = tmp_path / "checkout", tmp_path / "temp"
    planted = checkout / "deployment-logs" / "record" / "build-and-push.json"
    planted.parent.mkdir(parents=True)
    planted.write_text("{}")
    monkeypatch.chdir(checkout)
    step(fail)
    environ |= {"DEPLOYMENT_LOG_DIR": "deployment-logs", "RUNNER_TEMP": str(temp), "GITHUB_WORKSPACE": str(checkout)}
    runner.execute("smoke-tests", environ)
    assert [path.name for path in (temp / "deployment-logs" / "record").iterdir()] == ["smoke-tests.json"]
    assert planted.exists()


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_what_lay_in_the_log_folder_is_moved_aside_and_named(step, environ, tmp_path, capsys, kind):
    logs = Path(environ["DEPLOYMENT_LOG_DIR"])
    (tmp_path / "logs.refused-1").mkdir()  # of an earlier time
    if kind == "file":
        logs.write_text("planted")
    else:
        folder = logs if kind == "folder" else tmp_path / "elsewhere"
        (folder / "record").mkdir(parents=True)
        (folder / "record" / "build-and-push.json").write_text("planted")
        if kind == "link":
            logs.symlink_to(folder)
    step(fail)
    assert runner.execute("smoke-tests", environ) == 1
    assert [path.name for path in (logs / "record").iterdir()] == ["smoke-tests.json"]
    assert not logs.is_symlink()
    aside = tmp_path / "logs.refused-2"
    assert (aside if kind == "file" else aside / "record" / "build-and-push.json").read_text() == "planted"
    assert f"::warning title=Log folder was not empty::{logs} was there before" in capsys.readouterr().out


def test_an_empty_log_folder_is_used_as_it_is(step, environ, tmp_path, capsys):
    Path(environ["DEPLOYMENT_LOG_DIR"]).mkdir()
    step(fail)
    runner.execute("smoke-tests", environ)
    assert "Log folder" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*refused*"))


@pytest.mark.parametrize("holds", ["working folder", "GITHUB_WORKSPACE", "RUNNER_TEMP", "RECEIVED_ARTIFACTS_DIR"])
def test_a_log_folder_that_holds_what_the_job_needs_is_refused(step, environ, tmp_path, capsys, monkeypatch, holds):
    needed = tmp_path / "home" / "needed"
    needed.mkdir(parents=True)
    if holds == "working folder":
        monkeypatch.chdir(needed)
    else:
        environ[holds] = str(needed)
    step(fail)
    environ["DEPLOYMENT_LOG_DIR"] = str(tmp_path / "home")
    assert runner.execute("smoke-tests", environ) == 2
    printed = capsys.readouterr().out
    assert "::error title=Log folder cannot be emptied::it holds " in printed
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["needed"]


def test_incomplete_evidence_is_a_failure_even_when_the_step_returns(step, environ, capsys):
    step(lambda job: job.evidence.update(surprise=1))
    assert runner.execute("smoke-tests", environ) == 2
    assert "surprise" in capsys.readouterr().out


def test_missing_variables_leave_a_fragment_with_the_identity_that_is_known(environ, capsys):
    del environ["VERSION"], environ["PROD_DATABASE_URL"]
    assert runner.execute("smoke-tests", environ) == 2
    printed = capsys.readouterr().out
    assert "VERSION is not set" in printed
    assert "PROD_DATABASE_URL is not set" in printed
    document = fragment(environ)
    assert (document["status"], document["deployment_id"], document["version"]) == ("failed", ID, None)


@pytest.mark.parametrize("job", pipeline.JOBS)
def test_help_documents_the_environment(job):
    script = ROOT / "scripts" / f"{job.replace('-', '_')}.py"
    assert len(script.read_text().splitlines()) <= 15
    completed = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert completed.returncode == 0, completed.stderr
    help_text = " ".join(completed.stdout.split())
    for name, declared in variables.declared_variables(runner.step_module(job).Settings):
        assert declared.name in help_text
        assert not declared.secret or f"--{name.replace('_', '-')}" not in help_text


def test_help_begins_with_what_must_be_given_and_ends_with_exit_codes():
    script = ROOT / "scripts" / "database_migrations.py"
    completed = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    help_text = " ".join(completed.stdout.split())
    assert help_text.startswith("Usage: scripts/database_migrations.py [OPTIONS]")
    first, _, rest = help_text.partition("--backup-max-age TEXT")
    assert first.count("[required; such as") == 3
    assert "[required" not in rest
    assert "PROD_DATABASE_URL: connection string" in rest
    assert "--run-id" not in rest
    assert "GITHUB_RUN_ID (the run)" in rest
    assert help_text.endswith("3 an outside system was not reached; 4 a bug.")


def test_without_github_a_step_prints_for_a_person(tmp_path):
    completed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "smoke_tests.py"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert completed.returncode == 2
    assert completed.stdout.startswith("ERROR: ")
    assert "::error" not in completed.stdout
