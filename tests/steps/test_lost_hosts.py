"""No step asks again and again to take a half-done release back when a host is lost meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from azora_ci.core.errors import UnreachableError
from azora_ci.steps.gradual_rollout import Rollout
from azora_ci.steps.rollback import DeploymentRollback
from azora_ci.targets.base import AbortResult
from azora_ci.targets.journal import History
from azora_ci.targets.release import Release

OLD, NEW, THIRD = "1764000000-aaaaaa", "1764000100-bbbbbb", "1764000200-cccccc"


class Losing:
    """This target has lost its second host, so its journal stays the same whatever a step does."""

    def __init__(self) -> None:
        self.taken_back: list[str] = []
        self._history = History()
        for name in (OLD, NEW):
            self._tell("begin", name, version="v1.0.0", digests={}, previous=self._history.serving)
            self._tell("promote", name)
        self._tell("begin", THIRD, version="v1.1.0", digests={}, previous=NEW)

    def _tell(self, event: str, name: str, **facts: Any) -> None:
        self._history.apply({"event": event, "deployment_id": name, **facts})

    def current(self) -> History:
        return self._history

    def abort(self, release: Release, reason: str, *, hurry: bool = False) -> AbortResult:
        assert self.taken_back == [], "asked again"
        self.taken_back.append(release.id)
        return AbortResult("v1.0.0", 0.1, False, 0, "host-2: not reached", ("host-2",))


def fake_job() -> Any:
    messages: list[str] = []
    settings = SimpleNamespace(reason="users see errors")
    return SimpleNamespace(messages=messages, say=messages.append, settings=settings, evidence={"notes": [], "fenced": None})


def test_a_deployment_says_which_host_was_lost():
    target, job = Losing(), fake_job()
    rollout = Rollout.__new__(Rollout)
    rollout.job, rollout.target, rollout.release = job, target, Release("1764000300-dddddd", "v1.2.0", {})  # type: ignore[assignment]
    rollout.evidence = job.evidence
    with pytest.raises(UnreachableError, match="was lost while traffic was taken back") as refused:
        rollout.recover(target.current())
    assert (refused.value.where, target.taken_back) == ("host-2", [THIRD])


def test_a_rollback_goes_on_with_the_hosts_that_are_there():
    target, job = Losing(), fake_job()
    DeploymentRollback(job, target, {"deployment_id": NEW})._take_back_unfinished()  # type: ignore[arg-type]
    assert target.taken_back == [THIRD]
    assert job.evidence["fenced"] == THIRD
