"""What is seen of a worker, and what that means."""

from __future__ import annotations

import pytest

from azora_ci.health.answers import NEW, Endpoint
from azora_ci.health.workers import STARTING, UNHEALTHY, WorkerState, classify

MAILER = Endpoint("mailer#1 v1.1.0", "mailer", NEW, "")


@pytest.mark.parametrize(
    ("state", "outcome", "detail"),
    [
        (WorkerState(True), "healthy", "runs"),
        (WorkerState(True, health="healthy"), "healthy", "runs, its HEALTHCHECK says healthy"),
        (WorkerState(True, health=STARTING), "starting", "has not said healthy yet"),
        (WorkerState(True, health=UNHEALTHY, detail="no queue"), "unhealthy", "says unhealthy: no queue"),
        (WorkerState(True, health=UNHEALTHY), "unhealthy", "(no output)"),
        (WorkerState(True, restarts=2, health="healthy"), "restarted", "was started again 2 times, because it ends"),
        (WorkerState(False, detail="exit code 3"), "ended", "does not run, exit code 3"),
        (WorkerState(False, restarts=1, detail="exit code 3"), "ended", "does not run, exit code 3, was started again 1 times"),
    ],
)
def test_a_worker_is_healthy_while_it_runs_does_not_restart_and_its_check_agrees(state, outcome, detail):
    finding = classify(MAILER, state)
    assert (finding.outcome, finding.passed) == (outcome, outcome == "healthy")
    assert detail in finding.detail


def test_what_it_did_before_it_was_watched_does_not_count():
    assert classify(MAILER, WorkerState(True, restarts=5), restarts=5).passed
    assert classify(MAILER, WorkerState(True, restarts=6), restarts=5).outcome == "restarted"
