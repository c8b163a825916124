"""The gate of the audit: evidence, annotations, and when it is closed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import AuditException, AuditSettings
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.gates.audit import gate
from azora_ci.rehearsal.standins.advisories import AdvisoryServer
from tests.gates.audit.test_advisories import LODASH
from tests.gates.audit.test_lock_files import small_lock

TODAY = date(2026, 11, 30)
EXCEPTION = AuditException("GHSA-jf85-cpcp-j695", "not called", date(2027, 1, 31))


class World:
    def __init__(self, folder: Path, server: AdvisoryServer) -> None:
        self.folder = folder
        self.stream = io.StringIO()
        self.actions = Actions(github=True, stream=self.stream)
        self.processes = Processes(JobLog(self.actions, Clock()))
        self.registry = server.url

    def examine(self, **settings: Any) -> dict[str, Any]:
        self.settings = AuditSettings(**{"registry": self.registry, **settings})
        return gate.examine(self.folder, self.settings, [], processes=self.processes, clock=Clock())

    def close(self, evidence: dict[str, Any]) -> None:
        gate.close(evidence, self.settings, TODAY, actions=self.actions, say=self.processes.log.say)

    @property
    def annotations(self) -> list[str]:
        return [line for line in self.stream.getvalue().splitlines() if line.startswith(("::error", "::warning"))]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with AdvisoryServer(tmp_path / "advisories.json") as server:
        server.write(advisories={"lodash": [LODASH]})
        small_lock(tmp_path / "application", "lodash", "4.17.11")
        yield World(tmp_path / "application", server)


def test_a_finding_closes_the_gate_and_annotates_the_lock_file(world):
    evidence = world.examine()
    with pytest.raises(NotTrueError) as caught:
        world.close(evidence)
    assert "1 findings of level high or worse" in caught.value.what
    assert "lodash 4.17.11" in caught.value.what
    assert caught.value.where == "package-lock.json"
    (annotation,) = world.annotations
    assert annotation.startswith("::error file=package-lock.json,title=lodash 4.17.11 is vulnerable::critical")


def test_an_exception_opens_it_with_a_warning_until_it_expires(world):
    evidence = world.examine(exceptions=(EXCEPTION,))
    world.close(evidence)
    assert world.annotations[0].startswith("::warning file=package-lock.json,title=lodash 4.17.11 is excepted::")
    assert "✓ " in world.stream.getvalue()
    with pytest.raises(NotTrueError, match="expired"):
        gate.close(evidence, world.settings, date(2027, 2, 1), actions=world.actions, say=print)


def test_an_exception_that_allows_nothing_is_a_warning(world):
    small_lock(world.folder, "lodash", "4.17.21")
    world.close(world.examine(exceptions=(EXCEPTION,)))
    (annotation,) = world.annotations
    assert "GHSA-jf85-cpcp-j695: remove them" in annotation


def test_without_a_level_nothing_is_asked_and_the_reason_is_a_warning(world):
    evidence = world.examine(level="none", reason="checked elsewhere", registry="http://127.0.0.1:1")
    world.close(evidence)
    assert evidence == {"registry": None, "lock_files": [], "findings": []}
    assert "checked elsewhere" in world.annotations[0]
    assert "✓" not in world.stream.getvalue()
    assert gate.row(evidence)[2] == "not audited"


def test_evidence_without_an_audit_does_not_pass_a_gate_that_demands_one(world):
    evidence = world.examine(level="none", reason="the audit job read another configuration")
    world.examine()
    with pytest.raises(NotTrueError, match="none where the audit ran"):
        world.close(evidence)


def test_what_cannot_be_audited_is_a_warning(world):
    lock = {
        "lockfileVersion": 3,
        "packages": {"node_modules/mine": {"version": "1.0.0", "resolved": "git+ssh://git@github.com/me/mine.git#1"}},
    }
    (world.folder / "package-lock.json").write_text(json.dumps(lock))
    world.close(world.examine())
    assert world.annotations == [
        "::warning file=package-lock.json,title=mine is not audited::not from a registry: git+ssh://git@github.com/me/mine.git#1"
    ]


def test_many_findings_do_not_crowd_out_the_error_of_the_job(world):
    packages = {"": {}, **{f"node_modules/x{number}/node_modules/lodash": {"version": f"4.{number}.0"} for number in range(16)}}
    (world.folder / "package-lock.json").write_text(json.dumps({"lockfileVersion": 3, "packages": packages}))
    with pytest.raises(NotTrueError, match="16 findings"):
        world.close(world.examine())
    assert len(world.annotations) == gate.MOST_ANNOTATIONS


def test_the_evidence_says_what_judged_it_and_who_gathered_it(world):
    evidence = world.examine(exceptions=(EXCEPTION,))
    recorded = gate.recorded(evidence, world.settings, reported=True)
    assert recorded["source"] == "reported"
    assert recorded["exceptions"] == [{"id": "GHSA-jf85-cpcp-j695", "reason": "not called", "expires": "2027-01-31"}]
    assert recorded["findings"] == evidence["findings"]
    assert gate.recorded(evidence, world.settings, reported=False)["source"] == "observed"


def npm(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_without_a_named_registry_it_is_npms_own_setting_asked_in_an_empty_folder(world, monkeypatch, tmp_path):
    (world.folder / ".npmrc").write_text("registry=http://127.0.0.1:1/\n")
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("npm_config_registry", world.registry)
    assert world.examine(registry=None)["registry"] == world.registry
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".npmrc").write_text(f"registry={world.registry}/\n")
    assert world.examine(registry=None)["registry"] == world.registry


@pytest.mark.parametrize("script", ["exit 1", "echo undefined", "echo file:///etc"])
def test_an_npm_without_a_registry_says_what_to_do(world, monkeypatch, tmp_path, script):
    monkeypatch.setenv("PATH", npm(tmp_path / "bin", script))
    with pytest.raises(BadInputError) as caught:
        world.examine(registry=None)
    assert "validation.audit.registry" in caught.value.next_step
