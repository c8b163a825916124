"""Run ``scripts/rehearse`` as a person does, and read what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.rehearsal.judge.deployment import JOBS
from azora_ci.rehearsal.runs import Run
from tests.support import ROOT

KEYS = {"scenario", "ok", "seconds", "jobs", "requests", "failed_requests", "traffic", "findings"}
REHEARSE = (sys.executable, "-m", "azora_ci.rehearsal.cli")


@dataclass(frozen=True)
class Rehearsed:
    """A rehearsal that ended: exit code, output, result.json, and the folder with its artifacts."""

    code: int
    output: str
    base: Path

    @property
    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.base / "result.json").read_text(encoding="utf-8"))
        return document

    def well(self, *more: str) -> dict[str, Any]:
        """Return result.json of a rehearsal in which the pipeline, and ``more`` jobs of other workflows, did what they must."""
        assert self.code == 0, self.output
        assert set(self.result) == KEYS and set(self.result["jobs"]) == {*JOBS, *more}, self.result
        assert self.result["ok"] is True and self.result["findings"] == [], self.output
        return self.result

    def summary(self, job: str) -> str:
        return (self.base / "summaries" / f"{job}.md").read_text(encoding="utf-8")

    def json(self, pattern: str) -> Any:
        return json.loads(next(self.base.glob(f"artifacts/{pattern}")).read_text(encoding="utf-8"))


def environment(base: Path) -> dict[str, str]:
    """Return an environment that shares the prepared cache with rehearsals that a person runs in this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "AWS_", "PG"))}
    return {**kept, "REHEARSAL_DIR": str(base), "REHEARSAL_CACHE": str(ROOT / "rehearsal" / ".cache"), "PYTHONUNBUFFERED": "1"}


def start(base: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*REHEARSE, *options], cwd=ROOT, env=environment(base), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def rehearse(base: Path, options: tuple[str, ...]) -> Rehearsed:
    process = start(base, *options)
    try:
        output, _ = process.communicate(timeout=500)
    finally:
        process.kill()
    return Rehearsed(process.returncode, output, base)


def command(base: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REHEARSE, *options], cwd=ROOT, env=environment(base), capture_output=True, text=True, check=False, timeout=120)


def living(base: Path) -> list[str]:
    """Return name and id of each process that still runs below a folder."""
    return [f"{process.name} {process.pid}" for process in Run(base).living()]
