"""gradual-rollout: one process runs the three stages, 5 %, 50 %, 100 % of traffic, and takes traffic back when one fails.

The state of a rollout is stored on the target (journal, edge files). A rerun with the same deployment id reads it, says what it
found, and then starts again, takes traffic back first, or recognises that the release was promoted already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from azora_ci.core.config import AFTER_ROLLOUT, BEFORE_ROLLOUT
from azora_ci.core.environment import named_secrets
from azora_ci.core.errors import AzoraError, CancelledError, Explained, NotTrueError, UnreachableError
from azora_ci.core.job_log import secrets_of_url
from azora_ci.core.markdown import escaped, fenced
from azora_ci.core.pipeline import instances_at
from azora_ci.core.process import undisturbed
from azora_ci.core.settings import Deployment, Health, ProductionHosts, ServiceSecrets
from azora_ci.core.variables import Secret, truth, variable
from azora_ci.gates.later.running_version import RunningVersion, healthy_before
from azora_ci.health.answers import NEW
from azora_ci.health.probes import Prober
from azora_ci.rollout import once, report
from azora_ci.rollout.cause import Cause
from azora_ci.rollout.decision import Action, Limits, Stage, stages
from azora_ci.rollout.durations import SHORTEST_MINUTES, Stages
from azora_ci.rollout.watch import Rules, StageWatch, Subject
from azora_ci.steps.job import Job, recorded_host_keys
from azora_ci.targets import jobs, workers
from azora_ci.targets.base import FencedError, Owner, Target, TargetContext
from azora_ci.targets.journal import Deployed, History
from azora_ci.targets.proofs import edge_proof
from azora_ci.targets.registry import target_of
from azora_ci.targets.release import Release

PROBE_SECONDS = 5.0  # for the answers of a version that was promoted already


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Health, ProductionHosts, ServiceSecrets, Stages):
    """What gradual-rollout reads, beyond the secrets that services.*.secrets name."""

    dry_run: bool = variable("ROLLOUT_DRY_RUN", "true: print the plan and change nothing", example="true", parse=truth, default="false")
    database_url: Secret | None = variable(
        "PROD_DATABASE_URL",
        "connection string of the database, handed to the services that name it in services.*.secrets",
        example="postgresql://user:password@host:5432/azora",
        required=False,
        secret=True,
    )


def run(job: Job[Settings]) -> None:
    """Roll the release out. When a stage fails, take traffic back and raise NotTrueError."""
    durations = job.settings.durations(job.settings.deploy_environment)
    release = _require_release(job)
    target = _make_target(job)
    rollout = Rollout(job, target, release, durations)
    if job.settings.dry_run:
        rollout.announce_plan(target.current())
        rollout.note_host_keys()
        rollout.finish("planned")
        return
    with target.locked(Owner(release.id, job.settings.run_url, job.settings.actor)):
        rollout.note_host_keys()
        history = rollout.recover(target.current())
        if history.serving == release.id:
            rollout.recognise_promoted(history)
        else:
            rollout.announce_plan(history)
            rollout.require_running_version(history)
            rollout.run_stages(history)


def _require_release(job: Job[Settings]) -> Release:
    built = job.fragments.require("build-and-push").evidence["services"]
    configured = {service.id for service in job.config.services}
    if set(built) != configured:
        raise NotTrueError(
            "Built services are not the configured ones",
            what=f"built: {', '.join(sorted(built)) or '(none)'}; configured: {', '.join(sorted(configured))}",
            where="the fragment of build-and-push",
            next_step="run build-and-push again with the same configuration",
        )
    digests = {service.id: built[service.id]["digest"] for service in job.config.services}
    return Release(job.settings.deployment_id, job.settings.version, digests, {name: built[name]["size_bytes"] for name in digests})


def _make_target(job: Job[Settings]) -> Target:
    secrets = named_secrets((name for service in job.config.services for name in service.secrets), job.settings.service_secrets)
    for secret in secrets.values():
        for text in secrets_of_url(secret.reveal()):
            job.log.add_secret(text)
    settings = job.settings
    window = settings.rollback_window_minutes
    context = TargetContext(
        job.config, job.processes, job.clock, job.log_dir, settings.health_timeout, secrets, window, settings,
        recorded_host_keys=recorded_host_keys(job),
    )  # fmt: skip
    return target_of(context)


@dataclass
class Rollout:
    """One rollout of a release to a target; each step is recorded in ``job.evidence``."""

    job: Job[Settings]
    target: Target
    release: Release
    minutes: tuple[float, float, float]

    def __post_init__(self) -> None:
        config = self.job.config
        rollout = config.rollout
        self.limits = Limits.of(rollout)
        self.phase = "before the first stage"
        self.evidence: dict[str, Any] = self.job.evidence
        self.evidence.update(
            target=config.target.kind,
            services=dict(self.release.digests),
            stages=[],
            jobs=[],
            abort=None,
            notes=[],
            host_keys=[],
            test=self.limits.test,
            limits=self.limits.evidence,
            override_reason=self.job.settings.short_stages_reason if min(self.minutes) < SHORTEST_MINUTES else None,
        )

    def note_host_keys(self) -> None:
        """Record the host keys that the target's hosts presented: the next deployment expects them when no key is pinned."""
        self.evidence["host_keys"] = list(self.target.host_keys)

    # --- preparation -----------------------------------------------------------------------------------------------------

    def recover(self, history: History) -> History:
        """Take back the unfinished deployments of dead runs; return the history afterwards. Raises NotTrueError, UnreachableError."""
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
            self._note(f"an earlier attempt of {self.release.id} went back ({earlier.reason}); starting again at 0 %")
        while (unfinished := self.target.current().unfinished) is not None:
            if unfinished.has_only_jobs and unfinished.release == replace(self.release, sizes={}):
                self._note(f"an earlier attempt of {self.release.id} ended among its jobs, before any instance; going on from there")
                break
            progress = "on its way back" if unfinished.going_back else f"at {unfinished.percent} %"
            self._note(f"{unfinished.version} ({unfinished.id}) was left {progress} by a run that died; taking traffic back first")
            with undisturbed():
                returned = self.target.abort(unfinished.release, "its run died in the middle")
            self.job.say(f"traffic is on {returned.to or 'no version'}: {returned.detail}")
            if returned.lost:
                raise UnreachableError(
                    "A production host was lost while traffic was taken back",
                    what=returned.detail,
                    where=", ".join(returned.lost),
                    next_step="make it reachable and re-run the job: it reads the hosts' journals",
                )
        return self.target.current()

    def announce_plan(self, history: History) -> None:
        """Print the plan of the stages and record the previous version."""
        previous = history.before(self.release.id)
        self.plan = stages(self.minutes, first=previous is None)
        self._note_previous(previous)
        services = self.job.config.staged
        counts = {service.id: [instances_at(stage.percent, service.instances) for stage in self.plan] for service in services}
        names = [worker.id for worker in self.job.config.workers]
        previous_version = previous.version if previous else None
        lines = report.plan_lines(
            self.plan, new=self.release.version, old=previous_version, limits=self.limits, counts=counts, workers=names
        )
        lines += self.target.plan(self.release)
        for line in lines:
            self.job.say(line)
        plan = "\n".join(lines)
        self.job.actions.summary(f"### Rollout of {self.release.version}\n\n{fenced(plan)}")

    def _note_previous(self, previous: Deployed | None) -> None:
        self.evidence["previous"] = {"version": previous.version, "deployment_id": previous.id} if previous else None
        self.evidence["rollback_available"] = previous is not None and not previous.gone
        if previous and previous.warm_until:
            self.evidence["warm_until"] = previous.warm_until

    def _note(self, text: str) -> None:
        self.evidence["notes"].append(text)
        self.job.say(text)

    # --- already done ----------------------------------------------------------------------------------------------------

    def recognise_promoted(self, history: History) -> None:
        """Finish a deployment that an earlier attempt promoted. Raises NotTrueError when its digests differ or it is not healthy."""
        promoted = history.releases[self.release.id]
        if dict(self.release.digests) != promoted.digests:
            raise NotTrueError(
                "Promoted with other bytes",
                what=f"{self.release.id} was promoted with digests {promoted.digests}, the build now says {dict(self.release.digests)}",
                where="journal of the target and fragment of build-and-push",
                next_step="start a new run, which gets a deployment id of its own",
            )
        self.target.promote(self.release)  # finishes what an attempt that died right after promotion left
        self._note_previous(history.before(self.release.id))
        self.evidence["stages"] = promoted.stages
        self._require_healthy()
        self._note(f"{self.release.version} was already promoted by an earlier attempt of this deployment; traffic was not changed")
        self._complete()

    def _require_healthy(self) -> None:
        findings = workers.probe(self.target, Prober(self.job.clock), self.target.instances(self.release.id), NEW, PROBE_SECONDS)
        unhealthy = [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if not finding.passed]
        if unhealthy or not findings:
            raise NotTrueError(
                "The promoted version is not healthy",
                what="; ".join(unhealthy) or "no instance of it runs",
                where="direct probes of its instances",
                next_step="read the instances' logs; go back with the rollback instructions, or start a new run",
            )

    def require_running_version(self, history: History) -> None:
        """Ask the running version's health where migrations were applied. Raises NotTrueError when they took it away."""
        migrated, validated = (self.job.fragments.find(job) for job in ("database-migrations", "pre-deployment-validation"))
        if history.serving is None or migrated is None or migrated.evidence.get("migrations_applied") == 0:
            return
        before = healthy_before(validated.evidence["checks"] if validated else ())
        settings = self.job.settings
        attempts = self.job.clock.attempts(settings.health_retries, settings.health_interval, growth=1)
        running = RunningVersion(history, self.job.config.web, before, self.job.actions, self.job.say)
        running.require_healthy(self.evidence, attempts)

    # --- the stages ------------------------------------------------------------------------------------------------------

    def run_stages(self, history: History) -> None:
        """Run the stages and promote the release. After any failure traffic is taken back before the error is raised."""
        previous = history.before(self.release.id)
        settings, config = self.job.settings, self.job.config
        added = frozenset(self.release.digests) - frozenset(previous.digests) if previous else frozenset[str]()
        worker_ids = frozenset(worker.id for worker in config.workers)
        old_id, old_version = (previous.id, previous.version) if previous else (None, None)
        subject = Subject(self.release, old_id, old_version, config.web, added, worker_ids)
        rules = Rules(settings.health_interval, settings.health_retries, self.limits, config.rollout.inconclusive)
        stage_watch = StageWatch(self.target, subject, rules, self.job.processes, self.job.clock)
        with self._taking_back_on_failure(stage_watch):
            self._run_jobs(BEFORE_ROLLOUT)
            for stage in self.plan:
                self._run_stage(stage, stage_watch)
            self.phase = "promotion"
            self.target.promote(self.release)
        self._note_previous(previous := self.target.current().before(self.release.id))
        fallback = report.fallback(previous.version, previous.warm_until) if previous else "there is no version to go back to"
        self.job.tick(f"{self.release.version} is promoted; {fallback}")
        resting = [instance.name for instance in self.target.instances(previous.id) if instance.resting] if previous else []
        if resting:
            self._note(f"stopped, and started again by going back: {', '.join(resting)}")
        self._complete()

    def _complete(self) -> None:
        """Do what follows the promotion. The version keeps all traffic, also when something of this fails."""
        try:
            for service in self.job.config.singletons:
                self.job.tick(once.exchange(self.target, service, self.release, self.job.say))
            self._run_jobs(AFTER_ROLLOUT)
        except BaseException as error:
            reason = error.title if isinstance(error, Explained) else type(error).__name__
            self._note(f"{self.release.version} is promoted and keeps 100 % of traffic; what follows it did not finish: {reason}")
            raise
        finally:
            with undisturbed(deliver=False):
                self.finish("completed")

    def _run_jobs(self, moment: str) -> None:
        for service in self.job.config.jobs:
            if service.when == moment:
                self.phase = f"job {service.id}"
                self.job.tick(once.run_job(self.target, service, self.release, self.job.say))

    def _run_stage(self, stage: Stage, stage_watch: StageWatch) -> None:
        self.phase = stage.name
        self.job.say(f"--- {stage.name}: {stage.percent} %")
        for line in report.outlook_lines(stage, stage_watch.trials, self.job.settings.health_interval):
            self.job.say(line)
        instances = self.target.deploy(self.release, stage.percent)
        self.evidence["instances"] = [instance.name for instance in instances]
        stage_watch.edge = edge_proof(self.target, self.job.config, self.job.log)
        stage_watch.begin(stage)
        weights = self.target.set_weight(self.release, stage.percent)
        self.job.tick(report.share_text(self.release.id, self.release.version, weights, stage.percent))
        decision, evidence = stage_watch.watch(weights)
        self._record_stage(evidence)
        if decision.action is Action.ABORT:
            sick = stage_watch.sick_workers
            raise NotTrueError(
                f"{stage.name}: worker {', '.join(sick)} not healthy" if sick else f"{stage.name}: not healthy",
                what=f"{stage.name} at {stage.percent} %: {decision.reason}",
                where=f"{self.release.version} ({self.release.id}) on target {self.evidence['target']}",
                next_step="read the cause and instances/ in the job's artifact, run edge log; correct the release and tag a new version",
            )
        self.target.finish_stage(self.release, evidence)
        self.job.tick(f"{stage.name} was watched for {evidence['duration_minutes'] * 60:.0f} s: {decision.reason}")

    def _record_stage(self, evidence: dict[str, Any]) -> None:
        self.evidence["stages"].append(evidence)
        self.job.say(table := report.stage_table(evidence))
        self.job.actions.summary(table)

    # --- taking traffic back ---------------------------------------------------------------------------------------------

    @contextmanager
    def _taking_back_on_failure(self, stage_watch: StageWatch) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with undisturbed(deliver=False):  # the second signal of a cancelled run must not interrupt this
                self._handle_failure(error, stage_watch)
            if isinstance(error, NotTrueError) and stage_watch.cause is not None:
                self._explain(error, stage_watch.cause)
            raise

    def _explain(self, error: NotTrueError, cause: Cause) -> None:
        """Say why traffic went back, in the error and in the evidence. The edges' logs are read only now, when users are safe."""
        document = cause.explained(self.target.edge_log)
        if self.evidence["abort"] is not None:
            self.evidence["abort"]["cause"] = document
        lines = report.cause_lines(document)
        error.what = "\n".join([error.what, *lines])
        self.job.actions.summary(f"**Why**\n\n{fenced(self.job.log.masked(chr(10).join(lines)))}")

    def _handle_failure(self, error: BaseException, stage_watch: StageWatch) -> None:
        cancelled = isinstance(error, CancelledError)
        reason = error.what if isinstance(error, Explained) else type(error).__name__
        for evidence in stage_watch.interrupted("cancelled" if cancelled else "aborted", reason):
            self._record_stage(evidence)
        if isinstance(error, FencedError):
            self._note(f"{error.title}, {error.what}: who holds it decides about traffic, this run changes nothing any more")
            self.finish("failed")
            return
        if self.target.current().serving == self.release.id:
            self._note(f"{self.release.version} had been promoted already: it stays; re-run this job to finish")
            self.finish("failed")
            return
        self._take_back(reason, cancelled=cancelled)

    def _take_back(self, reason: str, *, cancelled: bool) -> None:
        self.job.say(f"taking all traffic back: {reason}")
        self.evidence["abort"] = {"stage": self.phase, "reason": reason, "seconds_to_safe": None, "proved": False, "detail": "not finished"}
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
        version, seconds = returned.to or "no version", f"{returned.seconds:.2f} s"
        if returned.proved:
            self.job.say(f"✓ all traffic is on {version} after {seconds}: {returned.detail}")
            self.job.actions.summary(f"**Traffic went back to {version}** in {seconds}, proved: {escaped(returned.detail)}")
        else:  # the seconds were measured at the edges that answered
            self.job.say(
                f"✗ that all traffic is on {version} is NOT proved; where the edge answered, it was after {seconds}: {returned.detail}"
            )
            self.job.actions.summary(
                f"**Traffic went back to {version}, NOT proved**; where the edge answered, in {seconds}: {escaped(returned.detail)}"
            )
        self.finish("cancelled" if cancelled else "rolled_back" if returned.to else "failed")

    def finish(self, status: str) -> None:
        """Set the status of the rollout in the evidence and as the job's output."""
        self.evidence["rollout_status"] = status
        self.evidence["notes"] += self.target.notes
        self.target.notes.clear()
        self.evidence["jobs"] = jobs.evidence(self.target.current().releases.get(self.release.id))
        self.evidence.setdefault("instances", [instance.name for instance in self.target.instances(self.release.id)])
        self.job.actions.output("rollout-status", status)


def _seconds(deployment_id: str) -> int:
    return int(deployment_id.partition("-")[0])
