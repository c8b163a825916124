"""The real workflow under act, for real: every scenario must end as it demands, judged from outside, with nothing left running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from azora_ci.rehearsal.judge.deployment import JOBS
from tests.rehearsal import guide
from tests.support import ROOT
from tests.support.provenance import unfounded
from tests.support.rehearsals import Rehearsed, command, living, rehearse, start

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]  # a test waits for the rehearsals before its own, too


class Stage:
    """Starts the rehearsals that the selected tests ask for, two at a time: most of a rehearsal is waiting for a watch to end."""

    def __init__(self, folder: Path, selections: Iterable[tuple[str, ...]], at_once: int) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(at_once)
        self.futures = {options: self.submit(options) for options in selections}

    def submit(self, options: tuple[str, ...]) -> Future[Rehearsed]:
        base = self.folder / ("-".join(options).replace("--", "") or "success")
        base.mkdir()
        return self.pool.submit(rehearse, base, options)

    def get(self, options: tuple[str, ...]) -> Rehearsed:
        if options not in self.futures:
            self.futures[options] = self.submit(options)
        return self.futures[options].result(timeout=550)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    alone = "PYTEST_XDIST_WORKER" in os.environ  # then the tests themselves run side by side, and each worker has some of them
    params = [item.callspec.params for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    selections = [] if alone else [values["rehearsed"] for values in params if "rehearsed" in values]
    folder = Path(tempfile.mkdtemp(prefix="r"))  # short, as paths of sockets are
    rehearsals = Stage(folder, dict.fromkeys(selections), 1 if alone else 2)
    yield rehearsals
    rehearsals.pool.shutdown(cancel_futures=True)
    for base in folder.iterdir():
        command(base, "--end")
    assert living(folder) == []
    shutil.rmtree(folder)


@pytest.fixture
def rehearsed(request: pytest.FixtureRequest, stage: Stage) -> Rehearsed:
    return stage.get(request.param)


def rehearses(*options: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rehearsed", [options], indirect=True, ids=["-".join(options).replace("--", "") or "success"])


def results(result: dict[str, Any]) -> dict[str, set[str]]:
    """Return the jobs by result."""
    jobs: dict[str, set[str]] = {}
    for job, outcome in result["jobs"].items():
        jobs.setdefault(outcome["result"], set()).add(job)
    return jobs


def read_line(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{pattern!r} was not printed")


@rehearses()
def test_a_tag_goes_through_all_jobs_and_no_user_notices(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result) == {"success": set(JOBS[:-1]), "skipped": {"deployment-failure-handler"}}
    assert result["scenario"] == "success" and result["failed_requests"] == 0
    assert set(result["traffic"]) == {"1.0.0", "1.1.0"} and sum(result["traffic"].values()) == result["requests"] > 500
    record = rehearsed.json("deployment-record-*/deployment-record.json")
    assert record["status"] == "success" and record["previous_version"] == "v1.0.0"
    assert unfounded(rehearsed.base / "artifacts", record) == [], "each leaf has a fragment and a line of a log behind it"
    assert_report_links_every_tick(rehearsed)
    assert next(rehearsed.base.glob("artifacts/rollback-instructions-*/ROLLBACK-INSTRUCTIONS.md")).is_file()
    assert re.search(r"canary \(5 %\) +\d+", rehearsed.output) and "actions/checkout@" in rehearsed.output
    assert {path.stem for path in (rehearsed.base / "summaries").iterdir()} == set(JOBS[:-1])
    safe = record["code_rollback_safe"]
    assert (safe["value"], safe["how"]) == (True, "tested"), safe
    assert "back to v1.0.0 when" in rehearsed.summary("gradual-rollout")
    for found in (*guide.METRICS, *guide.LOGS):
        found(rehearsed)
    assert living(rehearsed.base) == []


def assert_report_links_every_tick(rehearsed: Rehearsed) -> None:
    page = next(rehearsed.base.glob("artifacts/deployment-record-*/deployment-report-*.html"))
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) <= 250 * 1024 and "CREATE TABLE &#34;course_ratings&#34;" in html
    links = re.findall(r'href="\.\./([^"#]+)#/evidence/stages/(\d+)/decisions/(\d+)"', html)
    stages = rehearsed.json("rollout-logs-*/record/gradual-rollout.json")["evidence"]["stages"]
    assert [(int(stage), int(tick)) for _, stage, tick in links] == [
        (number, tick) for number, stage in enumerate(stages) for tick in range(len(stage["decisions"]))
    ]
    for path in re.findall(r'href="\.\./([^"#]+)', html):
        assert (page.parent.parent / path).is_file(), f"a link leads to {path}, which is in no artifact"


@rehearses("--fail", "canary", "--rerun")
def test_failed_jobs_of_a_canary_run_again(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert result["scenario"] == "canary+rerun"
    assert "✗ gradual-rollout" in rehearsed.output.split("repaired")[0]
    assert results(result) == {"success": set(JOBS[:-1]), "skipped": {"deployment-failure-handler"}}
    assert len(list(rehearsed.base.glob("artifacts/rollout-logs-*"))) == 2
    assert len(list(rehearsed.base.glob("artifacts/backup-logs-*"))) == 1


@rehearses("--dispatch", "--rollback")
def test_a_dispatch_deploys_the_highest_release_though_main_went_on_and_the_button_takes_it_back(rehearsed: Rehearsed) -> None:
    result = rehearsed.well("rollback")
    assert result["scenario"] == "success+dispatch+rollback" and result["failed_requests"] == 0
    assert results(result)["success"] == {*JOBS[:-1], "rollback"}
    kept = rehearsed.json("rollback-logs-*/rollback-record.json")
    assert (kept["status"], kept["version"], kept["to"]["version"]) == ("completed", "v1.1.0", "v1.0.0")
    (page,) = rehearsed.base.glob("artifacts/rollback-logs-*/deployment-report-*.html")
    assert "v1.1.0 was rolled back by hand" in page.read_text() and "#/evidence/stages/2/decisions/0" in page.read_text()
    assert (page.parent / "verify_record.py").is_file()
    assert re.search(r"after the rollback +\d+ +0 +0", rehearsed.output)
    assert "v1.1.0 was taken back" in rehearsed.summary("rollback")
    fragment = rehearsed.json("release-logs-*/record/validate-release.json")
    assert (fragment["version"], fragment["evidence"]["requested"]) == ("v1.1.0", None)


@rehearses("--fail", "smoke")
def test_an_endpoint_that_fails_after_the_rollout_calls_for_a_person(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"smoke-tests"} and results(result)["skipped"] == {"deployment-record"}
    assert result["failed_requests"] > 0
    assert "the new version stays in place" in rehearsed.summary("smoke-tests")


@rehearses("--fail", "smoke-rollback")
def test_an_endpoint_that_fails_after_the_rollout_takes_traffic_back_where_that_is_wanted(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"smoke-tests"} and results(result)["skipped"] == {"deployment-record"}
    assert rehearsed.json("deployment-failure-report-*/deployment-record.json")["status"] == "rolled_back"
    back = rehearsed.json("smoke-test-logs-*/record/smoke-tests.json")["evidence"]["rollback"]
    assert (back["to"], back["proved"]) == ("v1.0.0", True)
    instructions = next(rehearsed.base.glob("artifacts/rollback-instructions-*/ROLLBACK-INSTRUCTIONS.md")).read_text(encoding="utf-8")
    assert "There is no previous version" not in instructions


@pytest.mark.parametrize("rehearsed", [("--fail", "progressive"), ("--fail", "full")], indirect=True, ids=["progressive", "full"])
def test_a_version_that_fails_in_a_stage_is_taken_back(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"gradual-rollout"}
    # That the fault struck is demanded by the judge; traffic may be back before a user has met it.
    assert result["failed_requests"] <= result["traffic"]["1.1.0"] < result["traffic"]["1.0.0"]


@rehearses("--fail", "migration")
def test_a_failing_migration_stops_before_any_traffic(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"database-backup"} and result["failed_requests"] == 0
    assert set(result["traffic"]) == {"1.0.0"}
    error = rehearsed.json("backup-logs-*/record/database-backup.json")["error"]
    assert "production is untouched, the migration fails on a copy of production's data" in error["what"]
    assert "order_totals/migration.sql, line 3" in error["what"]


@rehearses("--fail", "migration-late")
def test_a_migration_that_fails_in_production_alone_says_what_was_applied(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"database-migrations"} and result["failed_requests"] == 0
    fragment = rehearsed.json("migration-logs-*/record/database-migrations.json")
    assert fragment["evidence"]["trial"]["how"] == "full copy"
    assert "to undo: ALTER TABLE users DROP COLUMN nick;" in fragment["error"]["what"]


@rehearses("--fail", "old-version")
def test_a_version_in_production_that_would_break_closes_the_gate(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"database-backup"} and result["failed_requests"] == 0
    fragment = rehearsed.json("backup-logs-*/record/database-backup.json")
    assert fragment["evidence"]["trial"]["passed"], "the migration itself succeeds"
    broken, refused = fragment["evidence"]["code_rollback_safe"]["reasons"]
    assert broken.startswith("GET /api/marketplace/listings of marketplace_service: HTTP 500 on the migrated copy")
    assert 'column reference "name" is ambiguous' in refused
    assert "production is untouched" in fragment["error"]["what"]


@rehearses("--fail", "build", "--keep")
def test_a_failing_build_and_replaying_a_step_of_a_kept_world(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"images"} and result["failed_requests"] == 0
    folder = rehearsed.base / "env"
    assert f"replay     {folder}" in rehearsed.output
    run = folder.resolve().parent.name
    files = sorted(folder.glob("*.env"))
    assert {path.stem for path in files} == {*JOBS, "rollback"} and {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert all(f"RUNNER_TEMP={folder.resolve()}/" in path.read_text() for path in files)  # steps leave nothing in the machine's own
    script = f'set -a; . {folder}/validate-release.env; cd "$GITHUB_WORKSPACE"; exec python "$AZORA_CI/scripts/validate_release.py"'
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    replay = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    script = f'set -a; . {folder}/database-backup.env; cd "$GITHUB_WORKSPACE"; exec python "$AZORA_CI/scripts/database_backup.py"'
    replay = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert "nothing to do" in replay.stdout
    script = f'set -a; . {folder}/database-migrations.env; cd "$GITHUB_WORKSPACE"; exec python "$AZORA_CI/scripts/database_migrations.py"'
    replay = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert "nothing is pending: 5 migrations are applied" in replay.stdout
    script = f'set -a; . {folder}/rollback.env; cd "$GITHUB_WORKSPACE"; exec python "$AZORA_CI/scripts/rollback.py"'
    replay = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert replay.returncode == 1, replay.stdout + replay.stderr
    assert "There is nothing to go back to" in replay.stdout  # this deployment never got traffic
    assert living(rehearsed.base) != []
    ended = command(rehearsed.base, "--end")
    assert run in ended.stdout and living(rehearsed.base) == [] and not folder.is_symlink()


@rehearses("--fail", "checks")
def test_a_red_check_stops_everything(rehearsed: Rehearsed) -> None:
    result = rehearsed.well()
    assert results(result)["failure"] == {"pre-deployment-validation"}
    assert results(result)["success"] == {"validate-release", "audit", "build", "deployment-failure-handler"}


def test_two_rehearsals_side_by_side_in_one_folder(stage: Stage) -> None:
    base = stage.folder / "side-by-side"
    base.mkdir()
    processes = [start(base, "--fail", "checks"), start(base, "--fail", "backup", "--dispatch", "v2.0.0-rc1")]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "✗ pre-deployment-validation" in outputs[0] and "✗ database-backup" in outputs[1]
    assert json.loads((base / "result.json").read_text(encoding="utf-8"))["ok"] is True
    assert living(base) == []


def test_a_killed_rehearsal_is_cleaned_up_by_the_next_and_an_interrupted_one_by_itself(stage: Stage) -> None:
    base = stage.folder / "killed"
    base.mkdir()
    killed = start(base, "--fail", "checks")
    read_line(killed, "it runs after")
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    assert len(living(base)) > 8
    interrupted = start(base, "--fail", "checks")
    assert "left behind" in read_line(interrupted, "left behind|it runs after")
    read_line(interrupted, "✓ validate-release")
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, output
    assert living(base) == []


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (("--rerun",), "needs a failure that can be repaired"),
        (("--fail", "build", "--rerun"), "needs a failure that can be repaired"),
        (("--fail", "smoke-rollback", "--rerun"), "needs a failure that can be repaired"),
        (("--fail", "canary", "--rollback"), "takes a deployment back that went well"),
        (("--fail", "runner"), "add --docker or --kubernetes"),
        (("--fail", "controller"), "add --kubernetes"),
        (("--fail", "controller", "--docker"), "add --kubernetes"),
        (("--docker", "--kubernetes"), "are two productions"),
        (("--kubernetes", "--application", "."), "the sample application only"),
        (("--context", "kind-x"), "add --kubernetes"),
        (("--kubernetes", "--context", "production"), "is not named kind-… or minikube"),
        (("--dispatch", "1.2.3"), "lacks the leading v"),
        (("--dispatch", "v1.0.0"), "is what production runs"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(tmp_path: Path, options: tuple[str, ...], refusal: str) -> None:
    completed = command(tmp_path, *options)
    assert completed.returncode == 2 and refusal in completed.stderr
