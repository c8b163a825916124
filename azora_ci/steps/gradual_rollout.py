"""gradual-rollout: one process owns three stages, 5 %, 50 %, 100 %, and the way back.

Everything that is true is on the target (journal, edge files): a rerun with the same deployment id reads it and goes on, goes
back, or recognises what is done, and says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from azora_ci import recorded_keys, rollout_report
from azora_ci.bake import Bake, Rules, Subject
from azora_ci.errors import AzoraError, BadInputError, CancelledError, Explained, NotTrueError, UnreachableError
from azora_ci.health import NEW, classify
from azora_ci.job import Job
from azora_ci.markdown import escaped, fenced
from azora_ci.probes import fetch, request_of
from azora_ci.process import secrets_of_url, undisturbed
from azora_ci.rollout import TEST, Action, Limits, Stage, instances_at, stages
from azora_ci.settings import Deployment, Health, ProductionHosts, Secret, named_secrets, number, truth, variable
from azora_ci.targets import Owner, Planning, Release, Target, Wiring, host_keys, target_of
from azora_ci.targets.journal import Deployed, History
from azora_ci.targets.lock import FencedError

SHORTEST_MINUTES = 1.0  # of a stage in production, without a reason


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Health, ProductionHosts):
    """What gradual-rollout reads, beyond the secrets that services.*.secrets name."""

    canary_minutes: float = variable("CANARY_MINUTES", "minutes at 5 %, fractions allowed", example="5", parse=number(0, 1440), default="5")
    progressive_minutes: float = variable(
        "PROGRESSIVE_MINUTES", "minutes at 50 %, fractions allowed", example="10", parse=number(0, 1440), default="10"
    )
    full_minutes: float = variable("FULL_MINUTES", "minutes at 100 %, fractions allowed", example="15", parse=number(0, 1440), default="15")
    short_stages_reason: str | None = variable(
        "SHORT_STAGES_REASON", "why stages under a minute are right in production; lands in the record", example="rehearsal", required=False
    )
    dry_run: bool = variable("ROLLOUT_DRY_RUN", "true: print the plan and change nothing", example="true", parse=truth, default="false")
    database_url: Secret | None = variable(
        "PROD_DATABASE_URL",
        "connection string of the database, handed to the services that name it in services.*.secrets",
        example="postgresql://user:password@host:5432/azora",
        required=False,
        secret=True,
    )


def run(job: Job[Settings]) -> None:
    """Roll the release out, or take traffic back. Raises NotTrueError for a rollback."""
    plan = _plan_stages(job.settings)
    release = _release(job)
    target = _target(job)
    rollout = Rollout(job, target, release, plan)
    if job.settings.dry_run:
        rollout.announce(target.current())
        rollout.note_host_keys()
        rollout.finish("planned")
        return
    owner = Owner(release.id, job.settings.run_url, job.settings.actor)
    with target.locked(owner):
        rollout.note_host_keys()
        history = rollout.recover(target.current())
        if history.serving == release.id:
            rollout.recognise(history)
        else:
            rollout.announce(history)
            rollout.climb(history)


def _plan_stages(settings: Settings) -> tuple[float, float, float]:
    minutes = (settings.canary_minutes, settings.progressive_minutes, settings.full_minutes)
    if settings.deploy_environment == "production" and min(minutes) < SHORTEST_MINUTES and not settings.short_stages_reason:
        raise BadInputError(
            "Stages are too short for production",
            what=f"stages of {', '.join(f'{one:g}' for one in minutes)} minutes; under a minute nothing is learned about a new version",
            where="CANARY_MINUTES, PROGRESSIVE_MINUTES, FULL_MINUTES",
            next_step="use at least 1 minute each, or give SHORT_STAGES_REASON, which lands in the record",
        )
    return minutes


def _release(job: Job[Settings]) -> Release:
    built = job.fragments.require("build-and-push", job.settings.deployment_id).evidence["services"]
    wanted = {service.id for service in job.config.services}
    if set(built) != wanted:
        raise NotTrueError(
            "Built services are not the configured ones",
            what=f"built: {', '.join(sorted(built)) or '(none)'}; configured: {', '.join(sorted(wanted))}",
            where="the fragment of build-and-push",
            next_step="run build-and-push again with the same configuration",
        )
    digests = {service.id: built[service.id]["digest"] for service in job.config.services}
    return Release(job.settings.deployment_id, job.settings.version, digests, {name: built[name]["size_bytes"] for name in digests})


def _target(job: Job[Settings]) -> Target:
    secrets = named_secrets(name for service in job.config.services for name in service.secrets)
    for secret in secrets.values():
        for text in secrets_of_url(secret.reveal()):
            job.processes.add_secret(text)
    settings = job.settings
    window = settings.rollback_window_minutes
    wiring = Wiring(
        job.config, job.processes, job.clock, job.log_dir, settings.health_timeout, secrets, window, settings,
        recorded_host_keys=recorded_keys.for_job(job),
    )  # fmt: skip
    return target_of(job.config.target.kind, wiring)


@dataclass
class Rollout:
    """The story of one rollout; ``job.evidence`` grows with it."""

    job: Job[Settings]
    target: Target
    release: Release
    minutes: tuple[float, float, float]

    def __post_init__(self) -> None:
        config = self.job.config
        self.limits = Limits(config.rollout.error_rate_points, config.rollout.latency_factor, config.rollout.minimum_requests)
        self.at = "before the first stage"
        self.evidence: dict[str, Any] = self.job.evidence
        self.evidence.update(
            target=config.target.kind,
            services=dict(self.release.digests),
            stages=[],
            abort=None,
            notes=[],
            host_keys=[],
            test=TEST,
            override_reason=self.job.settings.short_stages_reason if min(self.minutes) < SHORTEST_MINUTES else None,
        )

    def note_host_keys(self) -> None:
        """Keep what the target's hosts showed: the next deployment expects it where no key is pinned."""
        self.evidence["host_keys"] = host_keys(self.target)

    # --- before anything moves -------------------------------------------------------------------------------------------

    def recover(self, history: History) -> History:
        """Bring the target to a state to start from: what a dead runner left half done goes back. Returns the history then."""
        serving = history.releases.get(history.serving or "")
        if serving and serving.id != self.release.id and _seconds(serving.id) > _seconds(self.release.id):
            raise NotTrueError(
                "A newer deployment is in production",
                what=f"{serving.version} ({serving.id}) was promoted after {self.release.id} began",
                where=f"journal of the {self.evidence['target']} target",
                next_step="to go back to an older version, use the rollback instructions; to deploy it again, start a new run",
            )
        earlier = history.releases.get(self.release.id)
        if earlier and earlier.outcome == "aborted":
            self._remark(f"an earlier attempt of {self.release.id} went back ({earlier.reason}); starting again at 0 %")
        while (unfinished := self.target.current().unfinished) is not None:
            left = "on its way back" if unfinished.going_back else f"at {unfinished.percent} %"
            self._remark(f"{unfinished.version} ({unfinished.id}) was left {left} by a run that died; taking traffic back first")
            stale = Release(unfinished.id, unfinished.version, unfinished.digests)
            with undisturbed():
                returned = self.target.abort(stale, "its run died in the middle")
            self.job.say(f"traffic is on {returned.to or 'no version'}: {returned.detail}")
            if returned.lost:
                raise UnreachableError(
                    "A production host was lost while traffic was taken back",
                    what=returned.detail,
                    where=", ".join(returned.lost),
                    next_step="make it reachable and re-run the job: it reads the hosts' journals",
                )
        return self.target.current()

    def announce(self, history: History) -> None:
        """Print the plan and note what it starts from."""
        before = history.before(self.release.id)
        self.plan = stages(self.minutes, first=before is None)
        self._note_previous(before)
        counts = {one.id: [instances_at(stage.percent, one.instances) for stage in self.plan] for one in self.job.config.services}
        old = before.version if before else None
        lines = rollout_report.plan_lines(self.plan, new=self.release.version, old=old, limits=self.limits, counts=counts)
        if isinstance(self.target, Planning):
            lines = [*lines, *self.target.plan(self.release)]
        for line in lines:
            self.job.say(line)
        plan = "\n".join(lines)
        self.job.actions.summary(f"### Rollout of {self.release.version}\n\n{fenced(plan)}")

    def _note_previous(self, before: Deployed | None) -> None:
        previous = {"version": before.version, "deployment_id": before.id} if before else None
        self.evidence.update(previous=previous, rollback_available=before is not None)

    def _remark(self, text: str) -> None:
        self.evidence["notes"].append(text)
        self.job.say(text)

    # --- already done ----------------------------------------------------------------------------------------------------

    def recognise(self, history: History) -> None:
        """This deployment was promoted by an earlier attempt: make sure that it serves, and say so."""
        done = history.releases[self.release.id]
        if dict(self.release.digests) != done.digests:
            raise NotTrueError(
                "Promoted with other bytes",
                what=f"{self.release.id} was promoted with digests {done.digests}, the build now says {dict(self.release.digests)}",
                where="journal of the target and fragment of build-and-push",
                next_step="start a new run, which gets a deployment id of its own",
            )
        self.target.promote(self.release)  # finishes what an attempt that died right after promotion left
        self._note_previous(history.before(self.release.id))
        self.evidence["stages"] = done.stages
        self._require_healthy()
        self._remark(f"{self.release.version} was already promoted by an earlier attempt of this deployment; nothing was changed")
        self.finish("completed")

    def _require_healthy(self) -> None:
        endpoints = [self.target.endpoint(one, NEW) for one in self.target.instances(self.release.id)]
        findings = [classify(one, fetch(request_of(one), 5.0, self.job.clock)) for one in endpoints]
        sick = [f"{one.endpoint.name}: {one.detail}" for one in findings if not one.passed]
        if sick or not findings:
            raise NotTrueError(
                "The promoted version is not healthy",
                what="; ".join(sick) or "no instance of it runs",
                where="direct probes of its instances",
                next_step="read the instances' logs; go back with the rollback instructions, or start a new run",
            )

    # --- the climb -------------------------------------------------------------------------------------------------------

    def climb(self, history: History) -> None:
        """Go through the stages and promote; anything that goes wrong takes traffic back first."""
        before = history.before(self.release.id)
        settings, config = self.job.settings, self.job.config
        added = frozenset(self.release.digests) - frozenset(before.digests) if before else frozenset[str]()
        subject = Subject(self.release, before.id if before else None, before.version if before else None, config.services, added)
        rules = Rules(settings.health_interval, settings.health_retries, self.limits, config.rollout.inconclusive)
        bake = Bake(self.target, subject, rules, self.job.processes, self.job.clock)
        with self._safely(bake):
            for stage in self.plan:
                self._stage(stage, bake)
            self.at = "promotion"
            self.target.promote(self.release)
        kept = f"{before.version} keeps running at 0 % as the rollback target" if before else "there is no version to go back to"
        self.job.tick(f"{self.release.version} is promoted; {kept}")
        self.finish("completed")

    def _stage(self, stage: Stage, bake: Bake) -> None:
        self.at = stage.name
        self.job.say(f"--- {stage.name}: {stage.percent} %")
        found = self.target.deploy(self.release, stage.percent)
        self.evidence["instances"] = [one.name for one in found]
        bake.begin(stage)
        weights = self.target.set_weight(self.release, stage.percent)
        self.job.tick(f"the edge answers that {stage.percent} % of traffic goes to {self.release.version}")
        decision, evidence = bake.watch(weights)
        self._keep(evidence)
        if decision.action is Action.ABORT:
            raise NotTrueError(
                f"{stage.name}: not healthy",
                what=f"{stage.name} at {stage.percent} %: {decision.reason}",
                where=f"{self.release.version} ({self.release.id}) on target {self.evidence['target']}",
                next_step="read the table of this stage and instances/ in the job's artifact; correct the release and tag a new version",
            )
        self.target.finish_stage(self.release, evidence)
        self.job.tick(f"{stage.name} was watched for {evidence['duration_minutes'] * 60:.0f} s: {decision.reason}")

    def _keep(self, evidence: dict[str, Any]) -> None:
        self.evidence["stages"].append(evidence)
        table = rollout_report.stage_table(evidence)
        self.job.say(table)
        self.job.actions.summary(table)

    # --- the way back ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _safely(self, bake: Bake) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with undisturbed(deliver=False):  # the second signal of a cancelled run must not interrupt the way back
                self._after(error, bake)
            raise

    def _after(self, error: BaseException, bake: Bake) -> None:
        cancelled = isinstance(error, CancelledError)
        reason = error.what if isinstance(error, Explained) else type(error).__name__
        for evidence in bake.interrupted("cancelled" if cancelled else "aborted", reason):
            self._keep(evidence)
        if isinstance(error, FencedError):
            self._remark(f"{error.title}, {error.what}: who holds it decides about traffic, this run changes nothing any more")
            self.finish("failed")
            return
        if self.target.current().serving == self.release.id:
            self._remark(f"{self.release.version} had been promoted already: it stays; re-run this job to finish")
            self.finish("failed")
            return
        self._back(reason, cancelled=cancelled)

    def _back(self, reason: str, *, cancelled: bool) -> None:
        self.job.say(f"taking all traffic back: {reason}")
        self.evidence["abort"] = {"stage": self.at, "reason": reason, "seconds_to_safe": None, "proved": False, "detail": "not finished"}
        try:
            returned = self.target.abort(self.release, reason, hurry=cancelled)
        except AzoraError as error:
            self.evidence["abort"]["detail"] = f"{error.title}: {error.what}"
            self.job.actions.error("Traffic could not be taken back", error.message())
            self.finish("failed")
            return
        detail = {"seconds_to_safe": round(returned.seconds, 3), "proved": returned.proved, "detail": returned.detail}
        self.evidence["abort"].update(detail)
        self.evidence["rollback_available"] = False
        to, seconds = returned.to or "no version", f"{returned.seconds:.2f} s"
        if returned.proved:
            self.job.say(f"✓ all traffic is on {to} after {seconds}: {returned.detail}")
            self.job.actions.summary(f"**Traffic went back to {to}** in {seconds}, proved: {escaped(returned.detail)}")
        else:  # the seconds are those of what could be reached
            self.job.say(f"✗ that all traffic is on {to} is NOT proved; where the edge answered, it was after {seconds}: {returned.detail}")
            self.job.actions.summary(
                f"**Traffic went back to {to}, NOT proved**; where the edge answered, in {seconds}: {escaped(returned.detail)}"
            )
        self.finish("cancelled" if cancelled else "rolled_back" if returned.to else "failed")

    def finish(self, status: str) -> None:
        """Say how it ended, in the evidence and as the job's output."""
        self.evidence["rollout_status"] = status
        if isinstance(self.target, Planning):
            self.evidence["notes"] += self.target.notes
            self.target.notes.clear()
        self.evidence.setdefault("instances", [one.name for one in self.target.instances(self.release.id)])
        self.job.actions.output("rollout-status", status)


def _seconds(deployment_id: str) -> int:
    return int(deployment_id.partition("-")[0])
