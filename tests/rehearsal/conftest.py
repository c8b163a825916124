from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.rehearsal.act.runner import Act, JobRun, RunRequest
from tests.support import ROOT
from tests.support.commands import git

ACTOR_SECRET = 'p4ss\'word "quoted" $HOME'


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(JobLog(Actions(stream=io.StringIO()), Clock(), tmp_path / "processes.log"))
    yield running
    running.end_all()


class Toy:
    """A scratch repository with an annotated tag, and act to run workflows of it."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.ended: list[str] = []
        self.act = Act(folder / "act", processes, Clock(), progress=lambda job, _run: self.ended.append(job))
        self.repository.mkdir()
        (self.repository / "app.txt").write_text("first\n", encoding="utf-8")
        git(self.repository, "init", "--quiet", "--initial-branch=main")
        git(self.repository, "add", ".")
        git(self.repository, "commit", "--quiet", "-m", "First")
        git(self.repository, "tag", "-a", "v1.0.0", "-m", "Release 1.0.0")
        self.first = git(self.repository, "rev-parse", "HEAD")
        (self.repository / "app.txt").write_text("second\n", encoding="utf-8")
        git(self.repository, "commit", "--quiet", "-a", "-m", "Second")
        git(self.repository, "tag", "v1.1.0")
        self.second = git(self.repository, "rev-parse", "HEAD")

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def run(
        self,
        workflow: str,
        *,
        event: str = "push",
        ref: str = "refs/tags/v1.1.0",
        inputs: dict[str, str] | None = None,
        published: str | None = None,
    ) -> dict[str, JobRun]:
        path = self.folder / "workflow.yml"
        path.write_text(workflow, encoding="utf-8")
        credentials = self.folder / "credentials"
        credentials.write_text("ACCESS_KEY_ID=AKIAREHEARSAL\nSECRET_ACCESS_KEY=s3-secret-of-the-role\n", encoding="utf-8")
        environment = {
            "REHEARSAL_PYTHON": sys.executable,
            "REHEARSAL_CHECKOUT": str(ROOT),
            "REHEARSAL_ARTIFACTS": str(self.artifacts),
            "REHEARSAL_REPOSITORY": str(self.repository),
            "REHEARSAL_CREDENTIALS": str(credentials),
            "GITHUB_RUN_ID": "4711",
            "GITHUB_RUN_ATTEMPT": "2",
            "GITHUB_API_URL": "http://127.0.0.1:9",
        }
        payload = {"ref": ref, "inputs": inputs or {}, "repository": {"full_name": "azora/sample", "default_branch": "main"}}
        request = RunRequest(
            event, payload, self.repository, path, {"COLOUR": "blue"}, {"PASSWORD": ACTOR_SECRET}, environment, published=published
        )
        return self.act.run(request, timeout=120)


@pytest.fixture
def toy(tmp_path: Path, processes: Processes) -> Toy:
    return Toy(tmp_path, processes)
