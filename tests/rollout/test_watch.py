"""A stage is watched while the edge's counters come and go: the tests check what is read, decided and kept."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.health.traffic import Counters
from azora_ci.health.workers import WorkerState
from azora_ci.rollout.decision import Action, Decision, Limits, Stage
from azora_ci.rollout.watch import Rules, StageWatch, Subject
from azora_ci.targets.base import Instance, Observation
from azora_ci.targets.release import Release
from tests.support import deploy_config

NEW, OLD = "1764000100-bbbbbb", "1764000000-aaaaaa"
LIMITS = Limits(error_points=1.0, latency_factor=3.0, minimum_requests=5)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "healthy", "version": "1.1.0"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/health"
        server.shutdown()


class Virtual(Clock):
    """A clock on which nothing takes time but waiting, so that a loaded machine misses no tick."""

    def __init__(self) -> None:
        self._time = 0.0

    def monotonic(self) -> float:
        return self._time

    def sleep(self, seconds: float) -> None:
        self._time += max(0.0, seconds)


class Edge:
    """A target whose counters grow by ten requests of each version at every reading; the readings whose numbers are in ``lost`` fail."""

    def __init__(self, lost: Sequence[int], *, added: bool = False) -> None:
        self._lost, self._looks, self._added = lost, 0, added
        self.failures: Callable[[int], int] = lambda _: 0  # of the new version, after so many readings
        self.ours = 0  # requests of the new version at every reading that are our own, and well
        self.workers: dict[Instance, Callable[[int], WorkerState]] = {}  # worker -> its state after so many readings

    def observe(self) -> Observation:
        self._looks += 1
        if self._looks in self._lost:
            raise UnreachableError("Lost", what="the connection broke", where="host", next_step="wait")
        counters = Counters(requests=10 * self._looks)
        old = {} if self._added else {("api_gateway", OLD): counters}
        return Observation(
            {("api_gateway", NEW): replace(counters, errors=self.failures(self._looks), ours=self.ours * self._looks), **old}, {}
        )

    def instances(self, release: str) -> tuple[Instance, ...]:
        return tuple(worker for worker in self.workers if worker.release == release)

    def states(self, workers: Sequence[Instance]) -> Sequence[WorkerState]:
        return [self.workers[worker](self._looks) for worker in workers]

    def renew(self) -> None:
        pass


def watched(
    folder: Path,
    url: str,
    lost: Sequence[int],
    *,
    retries: int = 3,
    inconclusive: str = "pass",
    added: bool = False,
    workers: dict[Instance, Callable[[int], WorkerState]] | None = None,
    failures: Callable[[int], int] | None = None,
    ours: int = 0,
) -> tuple[Decision, dict[str, Any]]:
    """Watch a stage of a minute, a tick every ten seconds, on an edge whose counters cannot be read at some looks.

    The first look is before the stage, the second when it begins, the third at its first tick.
    """
    path = deploy_config.write(folder / "deploy.toml", services={"api_gateway": deploy_config.service("API", url)})
    subject = Subject(
        Release(NEW, "v1.1.0", {}),
        OLD,
        "v1.0.0",
        config.load(path).services,
        frozenset({"api_gateway"} if added else ()),
        frozenset({"mailer"}),
    )
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    edge = Edge(lost, added=added)
    edge.workers |= workers or {}
    edge.failures, edge.ours = failures or edge.failures, ours
    stage_watch = StageWatch(edge, subject, Rules(10, retries, LIMITS, inconclusive), processes, Virtual())  # type: ignore[arg-type] # it has only the members of a target that a watch uses
    stage_watch.begin(Stage("canary", 5, 60))
    return stage_watch.watch({})


def test_counters_that_are_lost_when_a_stage_begins_are_read_at_its_first_tick(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [2])
    assert decision.action is Action.ADVANCE
    assert evidence["requests"]["v1.1.0"] == 10 * (evidence["ticks"] - 1)  # from the first look that succeeded on
    assert evidence["probes"]["failed"] == 0


def test_counters_that_flicker_end_no_stage(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [2, 3, 5])
    assert decision.action is Action.ADVANCE
    assert evidence["last_failures"] == {"edge counters": "the connection broke"}


def test_counters_that_stay_away_abort_after_the_configured_number_of_ticks(tmp_path, url):
    decision, evidence = watched(tmp_path, url, range(2, 1000))
    assert (decision.action, evidence["ticks"]) == (Action.ABORT, 3)
    assert "edge counters failed 3 of 3 probes in a row (the connection broke)" in decision.reason


def test_a_stage_does_not_end_while_the_counters_are_away(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [9, 10], retries=100)  # the seventh tick would be the last one
    assert [tick["decision"] for tick in evidence["decisions"]] == [*["watch"] * 6, "hold", "hold", "advance"]
    assert "edge counters failed 1 of 100" in evidence["decisions"][6]["reason"]
    assert decision.action is Action.ADVANCE


def test_a_service_that_the_old_version_has_not_waits_for_no_samples_of_it(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [], inconclusive="abort", added=True)
    assert decision.action is Action.ADVANCE, decision.reason
    assert {tick["lacking"] for tick in evidence["decisions"][1:]} == {0}


def test_counters_that_were_never_read_pass_nothing(tmp_path, url):
    decision, evidence = watched(tmp_path, url, range(2, 1000), retries=1000)
    assert decision.action is Action.ABORT
    assert {tick["lacking"] for tick in evidence["decisions"]} == {10}


def test_failed_requests_of_several_ticks_abort(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [], failures=lambda look: 5 * max(0, look - 3))
    assert (decision.action, evidence["ticks"]) == (Action.ABORT, 5)
    assert "api_gateway: new version failed 20 of 50 requests (40.0%), old 0 of 60" in decision.reason


def test_our_own_requests_do_not_dilute_those_of_users(tmp_path, url):
    decision, evidence = watched(tmp_path, url, [], failures=lambda look: 5 * max(0, look - 2), ours=150)
    assert decision.action is Action.ABORT
    assert evidence["ticks"] <= 4
    assert "of 20 requests (50.0%)" in decision.reason or "of 30 requests (50.0%)" in decision.reason
    assert evidence["traffic"]["v1.1.0"]["ours"] >= 300


def test_failed_requests_of_one_moment_are_evidence_of_one_tick(tmp_path, url):
    decision, _ = watched(tmp_path, url, [], failures=lambda look: 7 * (look > 3))
    assert decision.action is Action.ADVANCE, decision.reason


# --- workers -----------------------------------------------------------------------------------------------------------

NEW_MAILER = Instance(NEW, "v1.1.0", "mailer", 1, "", worker=True)
OLD_MAILER = Instance(OLD, "v1.0.0", "mailer", 1, "", worker=True)
RUNS = WorkerState(True)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (WorkerState(False, detail="exit code 1"), "does not run, exit code 1"),
        (WorkerState(True, restarts=1), "was started again 1 times"),
        (WorkerState(True, health="unhealthy", detail="no queue"), "its HEALTHCHECK says unhealthy: no queue"),
    ],
)
def test_a_worker_of_the_new_version_that_does_not_hold_aborts(tmp_path, url, state, reason):
    workers = {NEW_MAILER: lambda look: state if look > 4 else RUNS, OLD_MAILER: lambda _: RUNS}
    decision, evidence = watched(tmp_path, url, [], workers=workers)
    assert decision.action is Action.ABORT
    assert f"mailer#1 v1.1.0 failed 3 of 3 probes in a row ({reason}" in decision.reason
    assert evidence["ticks"] == 5


def test_an_old_worker_that_ends_is_said_and_is_not_the_new_version_s_fault(tmp_path, url):
    workers = {NEW_MAILER: lambda _: RUNS, OLD_MAILER: lambda look: WorkerState(look < 5, restarts=7, detail="exit code 1")}
    decision, evidence = watched(tmp_path, url, [], workers=workers)
    assert decision.action is Action.ADVANCE
    assert "the old version fails alone, not the new one's fault: mailer#1 v1.0.0" in decision.reason
    assert evidence["last_failures"] == {"mailer#1 v1.0.0": "does not run, exit code 1"}


def test_workers_of_both_versions_that_end_are_held_then_aborted(tmp_path, url):
    ended = {mailer: lambda look: WorkerState(look < 5) for mailer in (NEW_MAILER, OLD_MAILER)}
    decision, evidence = watched(tmp_path, url, [], workers=ended)
    assert decision.action is Action.ABORT
    assert "still: old and new version both fail" in decision.reason
    assert evidence["ticks"] > 6
