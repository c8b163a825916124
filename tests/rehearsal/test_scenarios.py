"""The real workflow under act, for real: every scenario must end as it demands, judged from outside, with nothing left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.clock import Clock
from azora_ci.rehearsal.runs import Run
from azora_ci.rehearsal.verify import JOBS
from tests.rehearsal.conftest import ROOT

pytestmark = [pytest.mark.rehearsal, pytest.mark.timeout(600)]
CLOCK = Clock()
KEYS = {"scenario", "ok", "seconds", "jobs", "requests", "failed_requests", "traffic", "findings"}
REHEARSE = (sys.executable, "-m", "azora_ci.rehearsal.cli")


class Bench:
    """A folder for rehearsals of this module; prepared things are shared with those of a person at this checkout."""

    def __init__(self, base: Path) -> None:
        self.base = base
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "AWS_", "PG"))}
        self.environ = {**kept, "REHEARSAL_DIR": str(base), "REHEARSAL_CACHE": str(ROOT / "rehearsal" / ".cache"), "PYTHONUNBUFFERED": "1"}

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*REHEARSE, *options], cwd=ROOT, env=self.environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def rehearse(self, *options: str) -> tuple[dict[str, Any], str]:
        """Return result.json and the output of a rehearsal that must end with exit code 0."""
        process = self.start(*options)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        result: dict[str, Any] = json.loads((self.base / "result.json").read_text(encoding="utf-8"))
        assert set(result) == KEYS and set(result["jobs"]) == set(JOBS), result
        assert result["ok"] is True and result["findings"] == [], output
        return result, output

    def living(self) -> list[str]:
        """Return what still works below the folder."""
        return [f"{one.name} {one.pid}" for one in Run(self.base).living()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    found = Bench(tmp_path_factory.mktemp("rehearsals"))
    yield found
    subprocess.run([*REHEARSE, "--end"], cwd=ROOT, env=found.environ, check=True, timeout=60)
    assert found.living() == []


def results(result: dict[str, Any]) -> dict[str, set[str]]:
    """Return the jobs by result."""
    found: dict[str, set[str]] = {}
    for job, one in result["jobs"].items():
        found.setdefault(one["result"], set()).add(job)
    return found


def read_line(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{pattern!r} was not printed")


def test_a_tag_goes_through_all_jobs_and_no_user_notices(bench: Bench) -> None:
    result, output = bench.rehearse()
    assert results(result) == {"success": set(JOBS[:-1]), "skipped": {"deployment-failure-handler"}}
    assert result["scenario"] == "success" and result["failed_requests"] == 0
    assert set(result["traffic"]) == {"1.0.0", "1.1.0"} and sum(result["traffic"].values()) == result["requests"] > 500
    record = json.loads(next(bench.base.glob("artifacts/deployment-record-*/deployment-record.json")).read_text(encoding="utf-8"))
    assert record["status"] == "success" and record["previous_version"] == "v1.0.0"
    assert next(bench.base.glob("artifacts/rollback-instructions-*/ROLLBACK-INSTRUCTIONS.md")).is_file()
    assert re.search(r"canary \(5 %\) +\d+", output) and "actions/checkout@" in output
    assert bench.living() == []


def test_a_dispatch_deploys_the_highest_release_though_main_went_on(bench: Bench) -> None:
    result, _ = bench.rehearse("--dispatch")
    assert result["scenario"] == "success+dispatch" and result["failed_requests"] == 0
    fragment = json.loads(next(bench.base.glob("artifacts/release-logs-*/record/validate-release.json")).read_text(encoding="utf-8"))
    assert (fragment["version"], fragment["evidence"]["requested"]) == ("v1.1.0", None)


def test_two_rehearsals_side_by_side(bench: Bench) -> None:
    """A red check and a refusing bucket: nothing is touched, and neither rehearsal touches the other."""
    processes = [bench.start("--fail", "checks"), bench.start("--fail", "backup", "--dispatch", "v2.0.0-rc1")]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "✗ pre-deployment-validation" in outputs[0] and "✗ database-backup" in outputs[1]
    assert all("deployment-failure-handler" in output for output in outputs)
    assert bench.living() == []


def test_a_failing_migration_stops_before_any_traffic(bench: Bench) -> None:
    result, _ = bench.rehearse("--fail", "migration")
    assert results(result)["failure"] == {"database-migrations"} and result["failed_requests"] == 0
    assert set(result["traffic"]) == {"1.0.0"}


def test_a_failing_build_and_replaying_a_step_of_a_kept_world(bench: Bench) -> None:
    result, output = bench.rehearse("--fail", "build", "--keep")
    assert results(result)["failure"] == {"build-and-push"} and result["failed_requests"] == 0
    folder = Path(re.findall(r"replay +(/\S+)", output)[0])
    files = sorted(folder.glob("*.env"))
    assert {path.stem for path in files} == set(JOBS) and {path.stat().st_mode & 0o777 for path in files} == {0o600}
    script = f"set -a; . {folder}/database-backup.env; exec python scripts/database_backup.py"
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert bench.living() != []
    ended = subprocess.run([*REHEARSE, "--end"], cwd=ROOT, env=bench.environ, capture_output=True, text=True, check=True, timeout=60)
    assert folder.parent.name in ended.stdout and bench.living() == []


@pytest.mark.parametrize("stage", ["progressive", "full"])
def test_a_version_that_fails_in_a_stage_is_taken_back(bench: Bench, stage: str) -> None:
    result, _ = bench.rehearse("--fail", stage)
    assert results(result)["failure"] == {"gradual-rollout"}
    assert 0 < result["failed_requests"] <= result["traffic"]["1.1.0"] < result["traffic"]["1.0.0"]


def test_failed_jobs_of_a_canary_run_again(bench: Bench) -> None:
    result, output = bench.rehearse("--fail", "canary", "--rerun")
    assert result["scenario"] == "canary+rerun"
    assert "✗ gradual-rollout" in output.split("repaired")[0]
    assert results(result) == {"success": set(JOBS[:-1]), "skipped": {"deployment-failure-handler"}}
    assert len(list(bench.base.glob("artifacts/rollout-logs-*"))) == 2
    assert len(list(bench.base.glob("artifacts/backup-logs-*"))) == 1


def test_an_endpoint_that_fails_after_the_rollout_calls_for_a_person(bench: Bench) -> None:
    result, _ = bench.rehearse("--fail", "smoke")
    assert results(result)["failure"] == {"smoke-tests"} and results(result)["skipped"] == {"deployment-record"}
    assert result["failed_requests"] > 0


def test_a_killed_rehearsal_is_cleaned_up_by_the_next_and_an_interrupted_one_by_itself(bench: Bench) -> None:
    killed = bench.start("--fail", "checks")
    read_line(killed, "it runs after")
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    assert len(bench.living()) > 8
    interrupted = bench.start("--fail", "checks")
    assert "left behind" in read_line(interrupted, "left behind|it runs after")
    read_line(interrupted, "✓ validate-release")
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, output
    assert bench.living() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rerun",), "needs a failure that can be repaired"),
        (("--fail", "build", "--rerun"), "needs a failure that can be repaired"),
        (("--dispatch", "1.2.3"), "lacks the leading v"),
        (("--dispatch", "v1.0.0"), "is what production runs"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(bench: Bench, options: tuple[str, ...], said: str) -> None:
    done = subprocess.run([*REHEARSE, *options], cwd=ROOT, env=bench.environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and said in done.stderr
