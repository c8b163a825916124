"""The scenarios of a rehearsal: the fault, the moment at which it happens, and what the pipeline must do then.

To add a scenario, append to SCENARIOS its name, its fault (in the release's files, or in the world before or during the run), its demand.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.health.probes import ProbeRequest, fetch, unix_dial
from azora_ci.rehearsal import application
from azora_ci.rehearsal.act.runner import JobRun
from azora_ci.rehearsal.applications import sample
from azora_ci.rehearsal.judge.deployment import Demand
from azora_ci.rehearsal.world import World

POLL_SECONDS = 0.05
DUMP_LIMIT = 16 * 1024 * 1024  # bytes of Envoy's dump of its routes
AFTER_ROLLOUT = ("smoke-tests", "deployment-record", "manual-rollback")
FAULTY_PATH = sample.CRITICAL_PATHS["courses"]
_NEW = dict.fromkeys(application.NEW_MIGRATIONS, True)
_OLD = dict.fromkeys(application.OLD_MIGRATIONS, True)

Break = Callable[[World], None]
OnJob = Callable[[World, str, JobRun], None]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault and the demand: ``change`` alters the release's files, ``break_world`` is called before the run, ``on_job_end`` at the
    end of each job, ``repair`` before a re-run. At ``fail_at_percent`` of traffic the new version starts to fail; at
    ``lose_runner_at_percent`` the machine that deploys is lost, at ``stop_controller_at_percent`` what moves traffic in the cluster, until
    the rollout's end. ``variables`` are set in the repository.
    """

    name: str
    broken: str
    demand: Demand
    change: Callable[[Path], None] | None = None
    break_world: Break | None = None
    fail_at_percent: int | None = None
    on_job_end: OnJob | None = None
    repair: Break | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    lose_runner_at_percent: int | None = None
    stop_controller_at_percent: int | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """Return the options of which the scenario needs one: what goes back without a runner, and a controller, are not in every world."""
        if self.stop_controller_at_percent is not None:
            return ("kubernetes",)
        return ("docker", "kubernetes") if self.lose_runner_at_percent is not None else ()


def demand(**changes: Any) -> Demand:
    """Return the demand of a successful deployment of the sample, with some fields replaced."""
    return replace(sample.Sample().demand(), **changes)


def failure(job: str, *, skipped: Iterable[str], **changes: Any) -> Demand:
    """Return the demand when ``job`` fails before any traffic moved; ``changes`` replace further fields."""
    common: dict[str, Any] = {"serving": application.OLD_RELEASE, "stages": (), "record": "failed"}
    return demand(failed=(job,), skipped=tuple(skipped), **{**common, **changes})


def write_fault(world: World, **fault: Any) -> None:
    """Write the file that tells services to fail; they read it at every request."""
    part = world.places.fault_file.with_suffix(".part")
    part.write_text(json.dumps(fault), encoding="utf-8")
    part.replace(world.places.fault_file)


def mend(world: World) -> None:
    """Remove every fault of the world."""
    world.places.fault_file.unlink(missing_ok=True)
    world.s3_faults.write_text("[]", encoding="utf-8")
    world.write_github()


def _fail_check(world: World) -> None:
    world.write_github(red="test")


def _refuse_uploads(world: World) -> None:
    refuse = {"action": "error", "key": "prod/*", "times": None, "status": 403, "code": "AccessDenied"}
    rules = [{**refuse, "operation": operation} for operation in ("PutObject", "CreateMultipartUpload", "UploadPart")]
    world.s3_faults.write_text(json.dumps(rules), encoding="utf-8")


def _break_endpoint(world: World, job: str, run: JobRun) -> None:
    if job == "gradual-rollout" and run.result == "success":
        write_fault(world, answer="error", version=application.NEW_RELEASE, path=FAULTY_PATH)


def _write_late_row(world: World, job: str, run: JobRun) -> None:
    if job == "database-backup" and run.result == "success":
        connection = DatabaseUrl.parse(world.database.url).connect()
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(application.LATE_ROW)


def _rolled_back(*stages: tuple[str, str]) -> Demand:
    return failure("gradual-rollout", skipped=AFTER_ROLLOUT, stages=stages, record="rolled_back", failing_paths=())


def _stage_failure(name: str, percent: int, *earlier_stages: str) -> Scenario:
    healthy = tuple((stage, "healthy") for stage in earlier_stages)
    return Scenario(
        name=name,
        broken=f"the new version answers 500 once it has {percent} % of traffic",
        fail_at_percent=percent,
        demand=_rolled_back(*healthy, (name, "aborted")),
        repair=mend,
    )


LEASE_SECONDS = 20.0  # of the guard on a rehearsal's host, and of the Lease in its cluster
GUARD_SECONDS = 5.0  # in which the guard, or Argo's analysis, must go back after the lease has run out


def _lost_runner(percent: int) -> Scenario:
    expected = failure("gradual-rollout", skipped=AFTER_ROLLOUT, lost_job="gradual-rollout", settle_seconds=LEASE_SECONDS + GUARD_SECONDS)
    return Scenario(
        name="runner",
        broken=f"the machine that deploys vanishes when the new version has {percent} % of traffic",
        lose_runner_at_percent=percent,
        demand=expected,
    )


SILENCE_SECONDS = 10.0 + 2.0  # until the run says that the controller does nothing, and for a tick and the log on a busy machine
CONTROLLER_SECONDS = 20.0  # in which the controller, started again, must have done what was asked of it


def _start_controller(world: World, job: str, run: JobRun) -> None:  # noqa: ARG001 - whatever its result was
    if job == "gradual-rollout":
        world.start_controller()


def _stopped_controller(percent: int) -> Scenario:
    stages = (("canary", "healthy"), ("progressive", "aborted"))
    expected = failure(
        "gradual-rollout", skipped=AFTER_ROLLOUT, stages=stages, settle_seconds=CONTROLLER_SECONDS, silence_seconds=SILENCE_SECONDS
    )
    return Scenario(
        name="controller",
        broken=f"Argo's controller ends at {percent} % and runs again after the rollout",
        stop_controller_at_percent=percent,
        variables={"PROGRESSIVE_MINUTES": "0.5"},
        on_job_end=_start_controller,
        demand=expected,
    )


_AFTER_GATES = ("database-backup", "database-migrations", "images", "build-and-push", "gradual-rollout", *AFTER_ROLLOUT)
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="success", broken="nothing", demand=demand()),
        Scenario(
            name="checks",
            broken="the required check 'test' is red",
            break_world=_fail_check,
            demand=failure("pre-deployment-validation", skipped=_AFTER_GATES, migrations=_OLD, backup=False),
            repair=mend,
        ),
        Scenario(
            name="backup",
            broken="the bucket refuses every upload below prod/",
            break_world=_refuse_uploads,
            demand=failure(
                "database-backup", skipped=("database-migrations", "gradual-rollout", *AFTER_ROLLOUT), migrations=_OLD, backup=False
            ),
            repair=mend,
        ),
        Scenario(
            name="migration",
            broken="the last migration fails on rows that production has",
            change=application.add_failing_migration,
            demand=failure("database-backup", skipped=("database-migrations", "gradual-rollout", *AFTER_ROLLOUT), migrations=_OLD),
        ),
        Scenario(
            name="migration-late",
            broken="the last migration fails on a row that was written after the backup, in production alone",
            change=application.add_late_migration,
            on_job_end=_write_late_row,
            demand=failure(
                "database-migrations",
                skipped=("gradual-rollout", *AFTER_ROLLOUT),
                migrations={**_OLD, **_NEW, application.LATE_MIGRATION: False},
            ),
        ),
        Scenario(
            name="old-version",
            broken="the last migration only adds a column, and a query of the version in production breaks by it",
            change=application.add_ambiguous_migration,
            variables={"MIGRATIONS_REQUIRE_COMPATIBLE": "true"},
            demand=failure("database-backup", skipped=("database-migrations", "gradual-rollout", *AFTER_ROLLOUT), migrations=_OLD),
        ),
        Scenario(
            name="build",
            broken="a service's production build fails",
            change=application.break_build,
            demand=failure("images", skipped=("build-and-push", "gradual-rollout", *AFTER_ROLLOUT)),
        ),
        _stage_failure("canary", 5),
        _stage_failure("progressive", 50, "canary"),
        _stage_failure("full", 100, "canary", "progressive"),
        Scenario(
            name="smoke",
            broken=f"{FAULTY_PATH} answers 500 once the rollout is over",
            on_job_end=_break_endpoint,
            demand=demand(failed=("smoke-tests",), skipped=("deployment-record",), record="failed", failing_paths=(FAULTY_PATH,)),
            repair=mend,
        ),
        _lost_runner(5),
        _stopped_controller(50),
        Scenario(
            name="smoke-rollback",
            broken=f"{FAULTY_PATH} answers 500 once the rollout is over, and ROLLBACK_ON_SMOKE_FAILURE is true",
            on_job_end=_break_endpoint,
            variables={"ROLLBACK_ON_SMOKE_FAILURE": "true"},
            demand=demand(
                failed=("smoke-tests",),
                skipped=("deployment-record",),
                serving=application.OLD_RELEASE,
                record="rolled_back",
                failing_paths=(FAULTY_PATH,),
            ),
        ),
    )
}
FAILURES = tuple(name for name in SCENARIOS if name != "success")


def after_rerun(scenario: Scenario) -> Demand:
    """Return the demand after the fault was repaired and the failed jobs were run again: a successful deployment."""
    return demand(attempt=2, failing_paths=scenario.demand.failing_paths)


def with_version(original: Demand, version: str) -> Demand:
    """Return a demand with another new version (bare)."""
    serving = version if original.serving == original.new else original.serving
    return replace(original, new=version, serving=serving)


class WeightTrigger:
    """Calls ``act`` once, as soon as Envoy's effective weights give the new version ``percent`` % of traffic."""

    def __init__(self, world: World, percent: int, act: Callable[[], None], clock: Clock) -> None:
        dial = unix_dial(world.places.admin_socket)
        self._request = ProbeRequest("http://admin/config_dump?resource=dynamic_route_configs", dial=dial)
        self._is_new = world.is_new
        self._percent = percent
        self._act = act
        self._clock = clock
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.reached = False

    def __enter__(self) -> WeightTrigger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._clock.wait(self._end, POLL_SECONDS):
            try:
                shares = new_shares(json.loads(fetch(self._request, 2.0, self._clock, limit=DUMP_LIMIT).body), self._is_new)
            except ValueError:  # no answer, or half of one
                continue
            if shares and all(share == self._percent for share in shares):
                self.reached = True
                self._act()
                return


def new_shares(dump: Mapping[str, Any], is_new: Callable[[str], bool]) -> list[int]:
    """Return the new release's percentage of traffic in each route for users, from Envoy's dump of its route configurations."""
    shares = []
    for config in dump.get("configs", []):
        for host in config.get("route_config", {}).get("virtual_hosts", []):
            for route in host.get("routes", []):
                if "headers" not in route["match"] and "route" in route:
                    clusters = route["route"]["weighted_clusters"]["clusters"]
                    shares.append(sum(cluster.get("weight", 0) for cluster in clusters if is_new(cluster["name"])))
    return shares
