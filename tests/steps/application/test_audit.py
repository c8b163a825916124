"""The job audit ends green whatever it finds, holds no secret, and leaves what another job judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import schemas
from azora_ci.core.variables import declared_variables
from azora_ci.rehearsal.standins.advisories import AdvisoryServer
from azora_ci.steps.application import audit
from azora_ci.steps.runner import execute
from tests.gates.audit.test_advisories import LODASH
from tests.gates.audit.test_lock_files import small_lock
from tests.support import deploy_config


class World:
    def __init__(self, folder: Path, server: AdvisoryServer) -> None:
        self.folder = folder
        self.server = server
        self.audit: dict[str, Any] = {"registry": server.url}

    def run(self) -> int:
        config = deploy_config.write(self.folder / "deploy.toml", validation={"audit": self.audit})
        environ = {
            "DEPLOY_CONFIG": str(config),
            "DEPLOYMENT_LOG_DIR": str(self.folder / "logs"),
            "DEPLOYMENT_ID": "1764000000-012345",
            "VERSION": "v1.2.3",
            "GIT_SHA": "0123456789abcdef0123456789abcdef01234567",
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
        }
        return execute("audit", environ)

    @property
    def fragment(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "logs" / "record" / "audit.json").read_text())
        assert schemas.problems(document, "fragment-audit") == []
        return document


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with AdvisoryServer(tmp_path / "advisories.json") as server:
        server.write(advisories={"lodash": [LODASH]})
        small_lock(tmp_path / "application", "lodash", "4.17.11")
        monkeypatch.chdir(tmp_path / "application")
        yield World(tmp_path, server)


def test_findings_are_evidence_and_the_job_ends_green(world):
    assert world.run() == 0
    evidence = world.fragment["evidence"]
    assert [finding["id"] for finding in evidence["findings"]] == ["GHSA-jf85-cpcp-j695"]
    assert evidence["lock_files"] == [{"path": "package-lock.json", "manager": "npm", "packages": 1, "left_out": []}]
    assert "| critical | lodash 4.17.11 | GHSA-jf85-cpcp-j695 |" in (world.folder / "summary").read_text()


def test_a_registry_that_does_not_answer_fails_the_job(world):
    world.server.write(answers=[{"status": 404}])
    assert world.run() == 3
    assert world.fragment["status"] == "failed"


def test_no_lock_file_fails_the_job(world):
    (world.folder / "application" / "package-lock.json").unlink()
    assert world.run() == 1


def test_no_level_leaves_evidence_that_nothing_was_audited(world):
    world.audit = {"level": "none", "reason": "checked elsewhere"}
    assert world.run() == 0
    assert world.fragment["evidence"]["registry"] is None
    assert world.server.asked == []


def test_the_job_reads_no_secret():
    assert [variable.name for _, variable in declared_variables(audit.Settings) if variable.secret] == []
