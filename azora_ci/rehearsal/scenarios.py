"""The scenarios of a rehearsal: what is broken, when, and what is then demanded of the pipeline.

Add one here: a name, what it breaks (files of the release, or the world before or during the run), and its demand.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from azora_ci.clock import Clock
from azora_ci.rehearsal import application, repo
from azora_ci.rehearsal.act import JobRun
from azora_ci.rehearsal.verify import OLD_MIGRATIONS, Demand
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, World

POLL_SECONDS = 0.05
AFTER_ROLLOUT = ("smoke-tests", "deployment-record", "manual-rollback")
FAULTY_PATH = repo.CRITICAL_PATHS["courses"]
_NEW = dict.fromkeys(application.NEW_MIGRATIONS, True)
_OLD = dict.fromkeys(OLD_MIGRATIONS, True)
HEALTHY = (("canary", "healthy"), ("progressive", "healthy"), ("full", "healthy"))

Break = Callable[[World], None]
OnJob = Callable[[World, str, JobRun], None]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row: ``change`` alters the release's files, ``before`` breaks the world before the run, ``stage`` makes the new version
    fail when it has that percentage of traffic, ``after`` breaks something when a job ends; ``repair`` undoes it for a re-run.
    ``variables`` are set in the repository; ``runner``: the machine that deploys is lost at that percentage.
    """

    name: str
    broken: str
    demand: Demand
    change: Callable[[Path], None] | None = None
    before: Break | None = None
    stage: int | None = None
    after: OnJob | None = None
    repair: Break | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    runner: int | None = None

    @property
    def needs_docker(self) -> bool:
        """Say whether it needs hosts with a guard."""
        return self.runner is not None


def demand(**given: Any) -> Demand:
    """Return the demand of success, changed as given."""
    success = Demand(
        old=application.OLD_RELEASE,
        new=application.NEW_RELEASE,
        not_run=("deployment-failure-handler",),
        serving=application.NEW_RELEASE,
        migrations={**_OLD, **_NEW},
        backup=True,
        stages=HEALTHY,
        record="success",
    )
    return replace(success, **given)


def failure(job: str, *, not_run: Iterable[str], **given: Any) -> Demand:
    """Return the demand when a job fails before any traffic moved."""
    common: dict[str, Any] = {"serving": application.OLD_RELEASE, "stages": (), "record": "failed"}
    return demand(failed=(job,), not_run=tuple(not_run), **{**common, **given})


def write_fault(world: World, **fault: Any) -> None:
    """Tell the services to fail; the file is read at every request."""
    part = world.places.fault_file.with_suffix(".part")
    part.write_text(json.dumps(fault), encoding="utf-8")
    part.replace(world.places.fault_file)


def mend(world: World) -> None:
    """Remove every fault of the world."""
    world.places.fault_file.unlink(missing_ok=True)
    world.s3_faults.write_text("[]", encoding="utf-8")
    world.write_github(repo.REQUIRED_CHECKS)


def _red_check(world: World) -> None:
    world.write_github(repo.REQUIRED_CHECKS, red="test")


def _refusing_bucket(world: World) -> None:
    refuse = {"action": "error", "key": "prod/*", "times": None, "status": 403, "code": "AccessDenied"}
    rules = [{**refuse, "operation": operation} for operation in ("PutObject", "CreateMultipartUpload", "UploadPart")]
    world.s3_faults.write_text(json.dumps(rules), encoding="utf-8")


def _break_endpoint(world: World, job: str, run: JobRun) -> None:
    if job == "gradual-rollout" and run.result == "success":
        write_fault(world, answer="error", version=application.NEW_RELEASE, path=FAULTY_PATH)


def _rolled_back(*stages: tuple[str, str]) -> Demand:
    return failure("gradual-rollout", not_run=AFTER_ROLLOUT, stages=stages, record="rolled_back", failing_paths=())


def _stage(name: str, percent: int, *before: str) -> Scenario:
    healthy = tuple((one, "healthy") for one in before)
    return Scenario(
        name=name,
        broken=f"the new version answers 500 once it has {percent} % of traffic",
        stage=percent,
        demand=_rolled_back(*healthy, (name, "aborted")),
        repair=mend,
    )


LEASE_SECONDS = 20.0  # of the guard on a rehearsal's host
GUARD_SECONDS = 5.0  # that the guard may take to go back once the lease has run out


def _lost_runner(percent: int) -> Scenario:
    going = failure("gradual-rollout", not_run=AFTER_ROLLOUT, lost="gradual-rollout", settle=LEASE_SECONDS + GUARD_SECONDS)
    return Scenario(
        name="runner",
        broken=f"the machine that deploys vanishes when the new version has {percent} % of traffic",
        runner=percent,
        demand=going,
    )


_AFTER_GATES = ("database-backup", "database-migrations", "build-and-push", "gradual-rollout", *AFTER_ROLLOUT)
SCENARIOS: dict[str, Scenario] = {
    one.name: one
    for one in (
        Scenario(name="success", broken="nothing", demand=demand()),
        Scenario(
            name="checks",
            broken="the required check 'test' is red",
            before=_red_check,
            demand=failure("pre-deployment-validation", not_run=_AFTER_GATES, migrations=_OLD, backup=False),
            repair=mend,
        ),
        Scenario(
            name="backup",
            broken="the bucket refuses every upload below prod/",
            before=_refusing_bucket,
            demand=failure(
                "database-backup", not_run=("database-migrations", "gradual-rollout", *AFTER_ROLLOUT), migrations=_OLD, backup=False
            ),
            repair=mend,
        ),
        Scenario(
            name="migration",
            broken="the last migration fails on rows that production has",
            change=application.add_failing_migration,
            demand=failure(
                "database-migrations",
                not_run=("gradual-rollout", *AFTER_ROLLOUT),
                migrations={**_OLD, **_NEW, application.FAILING_MIGRATION: False},
            ),
        ),
        Scenario(
            name="build",
            broken="a service's production build fails",
            change=application.break_build,
            demand=failure("build-and-push", not_run=("gradual-rollout", *AFTER_ROLLOUT)),
        ),
        _stage("canary", 5),
        _stage("progressive", 50, "canary"),
        _stage("full", 100, "canary", "progressive"),
        Scenario(
            name="smoke",
            broken=f"{FAULTY_PATH} answers 500 once the rollout is over",
            after=_break_endpoint,
            demand=demand(failed=("smoke-tests",), not_run=("deployment-record",), record="failed", failing_paths=(FAULTY_PATH,)),
            repair=mend,
        ),
        _lost_runner(5),
        Scenario(
            name="smoke-rollback",
            broken=f"{FAULTY_PATH} answers 500 once the rollout is over, and ROLLBACK_ON_SMOKE_FAILURE is true",
            after=_break_endpoint,
            variables={"ROLLBACK_ON_SMOKE_FAILURE": "true"},
            demand=demand(
                failed=("smoke-tests",),
                not_run=("deployment-record",),
                serving=application.OLD_RELEASE,
                record="rolled_back",
                failing_paths=(FAULTY_PATH,),
            ),
        ),
    )
}
FAILURES = tuple(name for name in SCENARIOS if name != "success")


def after_rerun(scenario: Scenario) -> Demand:
    """Return what is demanded when the fault of a scenario was repaired and its failed jobs were run again."""
    return demand(attempt=2, failing_paths=scenario.demand.failing_paths)


def with_version(found: Demand, version: str) -> Demand:
    """Return a demand for another new version (bare)."""
    serving = version if found.serving == found.new else found.serving
    return replace(found, new=version, serving=serving)


class StageWatch:
    """Waits until the new version has a percentage of traffic, as Envoy's effective weights say, then acts once."""

    def __init__(self, world: World, percent: int, act: Callable[[], None], clock: Clock) -> None:
        self._url = f"{world.places.admin_url}/config_dump?resource=dynamic_route_configs"
        self._percent = percent
        self._act = act
        self._clock = clock
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.reached = False

    def __enter__(self) -> StageWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._clock.wait(self._end, POLL_SECONDS):
            try:
                with urlopen(self._url, timeout=2) as response:  # noqa: S310 - Envoy's admin port on loopback
                    shares = new_shares(json.load(response))
            except (OSError, ValueError):
                continue
            if shares and all(share == self._percent for share in shares):
                self.reached = True
                self._act()
                return


def new_shares(dump: Mapping[str, Any]) -> list[int]:
    """Return, for every route that users' requests take, the percentage that does not go to the old release."""
    shares = []
    for one in dump.get("configs", []):
        for host in one.get("route_config", {}).get("virtual_hosts", []):
            for route in host.get("routes", []):
                if "headers" not in route["match"] and "route" in route:
                    clusters = route["route"]["weighted_clusters"]["clusters"]
                    shares.append(sum(cluster.get("weight", 0) for cluster in clusters if not cluster["name"].endswith(OLD_DEPLOYMENT)))
    return shares
