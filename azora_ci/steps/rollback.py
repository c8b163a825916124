"""rollback: take a deployment back by hand, within its rollback window, with the same single rename as an abort.

Five conditions are checked before anything is changed: the deployment's record is genuine, its window is open, the previous version was
not seen to break on the migrated schema (or a reason is given), the deployment serves, and the previous version's instances exist and
are healthy. A deployment that is under way is fenced and taken back first.
The database is not changed: the rollback instructions say when and how to restore it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.clients.deployments import ERROR, INACTIVE, SUCCESS
from azora_ci.clients.slack import messages, webhook
from azora_ci.core import schemas
from azora_ci.core.errors import AzoraError, CancelledError, Explained, NotTrueError
from azora_ci.core.markdown import escaped, table
from azora_ci.core.process import undisturbed
from azora_ci.core.settings import Aws, Common, DatabaseAccess, GitHubDeployments, Health, Notifications, ProductionHosts
from azora_ci.core.variables import deployment_id, truth, variable
from azora_ci.database.migrations.history import ExpectedMigrations
from azora_ci.record import chain, host_keys, report
from azora_ci.record.archive import Archive
from azora_ci.record.audit.artifact import write_beside
from azora_ci.record.rollback import FILE_NAME, RollbackCircumstances, assemble
from azora_ci.record.rollback import SCHEMA as ROLLBACK_SCHEMA
from azora_ci.rollback import previous_version
from azora_ci.steps import announcement, smoke_tests
from azora_ci.steps import rollback_permission as permission
from azora_ci.steps.job import Job
from azora_ci.steps.rollback_permission import note
from azora_ci.targets.base import AbortResult, Owner, Target, TargetContext
from azora_ci.targets.journal import ABORTED, DEPLOYING, PROMOTED, Deployed, History
from azora_ci.targets.proofs import are_needed, edge_proof, settings_by_service
from azora_ci.targets.registry import kind_of, target_of


def parse_reason(text: str) -> str:
    """Parse a reason: a line of 3 to 500 characters that people still understand a year later."""
    line = " ".join(text.split())
    if not 3 <= len(line) <= 500:
        raise ValueError("is not a reason of 3 to 500 characters")
    return line


@dataclass(frozen=True, kw_only=True)
class Settings(Common, Health, DatabaseAccess, Aws, Notifications, GitHubDeployments, ProductionHosts):
    """What rollback reads."""

    reason: str = variable("ROLLBACK_REASON", "why; lands in the record", example="checkout fails for every user", parse=parse_reason)
    deployment_id: str | None = variable(
        "DEPLOYMENT_ID",
        "deployment to take back; unset: the newest one that reached production",
        example="1764000000-abc123",
        parse=deployment_id,
        required=False,
    )
    after_deadline: bool = variable(
        "ROLLBACK_AFTER_DEADLINE",
        "true: go back although the rollback window has closed",
        example="false",
        parse=truth,
        default="false",
    )
    schema_reason: str | None = variable(
        "ROLLBACK_SCHEMA_REASON",
        "why the code goes back although the version before is known to break on the migrated schema; lands in the record",
        example="the database was restored",
        parse=parse_reason,
        required=False,
    )


def run(job: Job[Settings]) -> None:
    """Take the deployment back. Raises NotTrueError when that is not allowed, not possible or not proved."""
    job.evidence.update(reason=job.settings.reason, notes=[], fenced=None, already_back=False)
    archive = Archive.of(job.settings, job.settings.deploy_environment, job.config.backup, clock=job.clock, say=job.say)
    deployed = permission.require(job, archive)
    target = _make_target(job, archive, deployed)
    deployment_rollback = DeploymentRollback(job, target, deployed)
    job.say(f"looking at production ({job.config.target.kind}) …")
    with target.connected():
        previous = deployment_rollback.require_previous()
        smoke_tests.http_tests(job, previous.version)
        try:
            problem = _find_problem(job, deployment_rollback.execute(previous), deployment_rollback.lost)
        except CancelledError as error:  # production may have changed: somebody must look
            with undisturbed(deliver=False):
                _notify(job, deployed, error, hurry=True)
            raise
    try:
        _archive_record(job, archive, deployed)
    except AzoraError as error:  # people are notified nevertheless
        problem = problem or error
    _notify(job, deployed, problem)
    _set_states(job, deployment_rollback.lost)
    report.tried(lambda: _write_report(job, archive, deployed), job.log.annotate)
    if problem is not None:
        raise problem


# --- permission -------------------------------------------------------------------------------------------------------------


def _make_target(job: Job[Settings], archive: Archive, deployed: chain.Document) -> Target:
    settings = job.settings
    needed = host_keys.are_needed(settings, job.config, by_target=kind_of(job.config).needs_host_keys)
    context = TargetContext(
        job.config, job.processes, job.clock, job.log_dir, settings.health_timeout,
        rollback_window_minutes=settings.rollback_window_minutes, access=settings, spare_lost_hosts=True,
        recorded_host_keys=(host_keys.of_record(deployed) or host_keys.of_archive(archive)) if needed else "",
    )  # fmt: skip
    return target_of(context)


# --- the rollback -------------------------------------------------------------------------------------------------------------


@dataclass
class DeploymentRollback:
    """The rollback of one deployment on one target."""

    job: Job[Settings]
    target: Target
    deployed: chain.Document
    lost: tuple[str, ...] = ()  # hosts that were not reached

    @property
    def id(self) -> str:
        """Return the id of the deployment that is taken back."""
        return str(self.deployed["deployment_id"])

    # --- conditions -------------------------------------------------------------------------------------------------------

    def require_previous(self) -> Deployed:
        """Return the release to go back to. Raises NotTrueError unless journal and record agree on it and all its instances are healthy."""
        previous = self._previous_release(self.target.current())
        self._require_healthy(previous)
        return previous

    def _previous_release(self, history: History) -> Deployed:
        deployment = history.releases.get(self.id)
        expected = self.deployed["previous_deployment_id"]
        serving = history.releases.get(history.serving or "")
        serving_text = f"{serving.version} ({serving.id})" if serving else "nothing"
        if deployment is None or deployment.outcome not in {DEPLOYING, PROMOTED, ABORTED}:
            raise self._refusal(f"the target does not have {self.deployed['version']} ({self.id}); {serving_text} serves")
        if deployment.previous != expected:
            raise self._refusal(f"the target's journal says that {deployment.previous} served before it, the record says {expected}")
        if serving is None or serving.id not in {self.id, deployment.previous}:
            raise self._refusal(f"{self.deployed['version']} ({self.id}) does not serve: {serving_text} does")
        return history.releases[deployment.previous or ""]

    def _refusal(self, detail: str) -> NotTrueError:
        return NotTrueError(
            "There is no way back from this deployment",
            what=f"{detail}; nothing was changed",
            where=f"target {self.job.config.target.kind}",
            next_step="name the deployment that serves (python -m azora_ci edge status), or deploy the version you want again",
        )

    def _require_healthy(self, previous: Deployed, qualifier: str = "") -> None:
        kept_instances = previous_version.look(self.target, self.job.config, self.job.clock, before=previous, leaving=self.id)
        if kept_instances.sick:
            raise NotTrueError(
                "The version before is not there any more",
                what=f"{kept_instances.summary(previous.version)}; nothing was changed",
                where="direct probes of its instances",
                next_step=f"deploy {previous.version} again, or release a correction; going back would take the application offline",
            )
        self.job.evidence.update(
            to={"version": previous.version, "deployment_id": previous.id},
            services=dict(previous.digests),
            instances=list(kept_instances.names),
        )
        workers = f"; {kept_instances.resting} workers are at rest, and start again" if kept_instances.resting else ""
        self.job.tick(f"all {kept_instances.healthy} instances of {previous.version} are {qualifier}there and healthy{workers}")

    # --- execution ----------------------------------------------------------------------------------------------------------

    def execute(self, previous: Deployed) -> list[dict[str, Any]]:
        """Take traffic back under the target's lock, run the smoke tests of the previous version and return those that failed."""
        settings = self.job.settings
        self._note_returned(AbortResult(None, 0.0, False, None, "not begun"))
        self.job.say(f"taking {self.deployed['version']} ({self.id}) back to {previous.version} ({previous.id}): {settings.reason}")
        with self.target.locked(Owner(self.id, settings.run_url, settings.actor, fence=settings.reason)):
            self._take_back_unfinished()
            if self._previous_release(self.target.current()).id != previous.id:
                raise self._refusal("the target changed in the meantime")
            self._require_healthy(previous, "still ")
            self.job.say(f"moving all traffic to {previous.version}, then watching that no request reaches {self.deployed['version']} …")
            deployment = self.target.current().releases[self.id]
            self.job.evidence["already_back"] = self.target.current().serving != self.id and not deployment.going_back
            returned = self._take_back(deployment)
        self._report(returned)
        names = tuple(migration["name"] for migration in self.deployed["migrations"])  # the code goes back, the data stays
        expected = ExpectedMigrations(f"the record of {self.deployed['version']} names", max(1, len(names)), names)
        services = settings_by_service(self.target.current().releases[previous.id])
        edge = edge_proof(self.target, self.job.config, self.job.log) if are_needed(self.job.config) else None
        return smoke_tests.examine(self.job, previous.version, self.job.evidence, expected, services, edge=edge)

    def _take_back_unfinished(self) -> None:
        """Take back an unfinished deployment: one that this rollback has just fenced, or one whose run died."""
        while (unfinished := self.target.current().unfinished) is not None and unfinished.id != self.id:
            text = f"{unfinished.version} ({unfinished.id}) was at {unfinished.percent} %; it goes back first"
            note(self.job, text)
            self.job.evidence["fenced"] = unfinished.id
            with undisturbed():  # in a hurry, because users still wait for the rollback itself
                returned = self.target.abort(unfinished.release, self.job.settings.reason, hurry=True)
            self.job.say(f"traffic is on {returned.to or 'no version'}: {returned.detail}")
            if returned.lost:
                return  # the lost hosts' journals cannot be changed now: this loop would never end

    def _take_back(self, deployment: Deployed) -> AbortResult:
        release, abort_reason = deployment.release, f"rollback: {self.job.settings.reason}"
        try:
            return self.target.abort(release, abort_reason)
        except CancelledError:
            with undisturbed(deliver=False):  # half a rollback is worse than a whole one
                self._report(self.target.abort(release, abort_reason, hurry=True))
            raise

    def _note_returned(self, returned: AbortResult) -> None:
        self.job.evidence.update(
            seconds_to_safe=round(returned.seconds, 3),
            proved=returned.proved,
            requests_after=returned.requests_after,
            detail=returned.detail,
        )

    def _report(self, returned: AbortResult) -> None:
        self._note_returned(returned)
        self.lost = returned.lost
        if returned.lost:
            note(self.job, f"not reached, and not taken back: {', '.join(returned.lost)}")
        already = " again (it had gone back before)" if self.job.evidence["already_back"] else ""
        traffic = "traffic of the other hosts" if returned.lost else "all traffic"
        text = f"{traffic} is on {returned.to} after {returned.seconds:.2f} s{already}: {returned.detail}"
        if returned.proved:
            self.job.tick(text)
        else:
            self.job.say(f"✗ NOT proved: {text}")
        mark = "✓" if returned.proved else "✗ NOT proved:"
        self.job.actions.summary(f"### {self.deployed['version']} was taken back\n\n{mark} {escaped(text)}")


# --- afterwards ---------------------------------------------------------------------------------------------------------------


def _archive_record(job: Job[Settings], archive: Archive, deployed: chain.Document) -> None:
    newest = archive.newest()
    facts = RollbackCircumstances(
        timestamp=job.now(),
        run=job.workflow_run,
        previous_record_sha256=newest.sha256 if newest else None,
        previous_record_location=archive.bucket.url(newest.key) if newest else None,
        signed_by=job.config.backup.signing,
    )
    document = assemble(job.evidence, deployed, facts)
    schemas.validate(document, ROLLBACK_SCHEMA, where=FILE_NAME)
    (job.log_dir / FILE_NAME).write_bytes(chain.archived_bytes(document))
    kept_record = archive.keep_rollback(document)
    job.evidence.update(rollback_record={"location": kept_record.location, "sha256": kept_record.sha256})
    job.tick(f"the record of this rollback is archived at {kept_record.location} (SHA-256 {kept_record.sha256})")
    write_beside(job.log_dir / FILE_NAME, archive, kept_record.location)


def _write_report(job: Job[Settings], archive: Archive, deployed: chain.Document) -> Path:
    """Write the report of the deployment that was taken back, with the rollback; its evidence is in the archive."""
    data, location = chain.archived_bytes(deployed), job.evidence["record"]["location"]
    rollback = chain.parse_record((job.log_dir / FILE_NAME).read_bytes())
    kept_fragments = report.archived_fragments(archive, deployed)
    return report.write(job.log_dir, report.Origin(data=data, location=location, fragments=kept_fragments, rollback=rollback), archive)


def _summary_rows(job: Job[Settings], deployed: chain.Document, notification: str) -> list[tuple[str, object]]:
    """Return the (name, value) rows of the run's summary page."""
    evidence, applied = job.evidence, deployed["migrations_applied"]
    stays = "it is not known how many migrations" if applied is None else f"{applied} migrations"
    return [
        ("deployment taken back", f"{deployed['version']} ({deployed['deployment_id']})"),
        ("serving now", f"{evidence['to']['version']} ({evidence['to']['deployment_id']})"),
        ("reason", evidence["reason"]),
        ("started by", job.settings.actor),
        ("database", f"left as it is: {stays} of {deployed['version']} stay applied"),
        *(("not undone", job["summary"]) for job in (deployed["rollout"] or {}).get("jobs") or []),
        ("record of the rollback", evidence.get("rollback_record", {}).get("location")),
        ("Slack", notification),
    ]


def _find_problem(job: Job[Settings], failed: list[dict[str, Any]], lost: tuple[str, ...]) -> AzoraError | None:
    if lost:
        return NotTrueError(
            "Not every production host was taken back",
            what=job.evidence["detail"],
            where=", ".join(lost),
            next_step="take these hosts out of the balancer now; when they can be reached, run the same rollback again: it finishes there",
        )
    if not job.evidence["proved"]:
        return NotTrueError(
            "The way back is not proved",
            what=job.evidence["detail"],
            where=f"target {job.config.target.kind}",
            next_step="look at the edge (python -m azora_ci edge status) and at the services now",
        )
    if failed:
        return smoke_tests.failure(failed, f"traffic is on {job.evidence['to']['version']}")
    return None


def _set_states(job: Job[Settings], lost: tuple[str, ...]) -> None:
    """Say on GitHub which deployment serves; after a rollback that is not proved, only that of this one nobody knows."""
    evidence = job.evidence
    if lost or not evidence["proved"]:
        announcement.set_states(job, ERROR, f"taken back, NOT proved: {evidence['detail']}", {}, create=False)
        return
    back = f"{evidence['to']['version']} serves again: {job.identity.version} was taken back"
    others: dict[str | None, tuple[str, str]] = {evidence["to"]["deployment_id"]: (SUCCESS, back)}
    announcement.set_states(job, INACTIVE, f"taken back: {job.settings.reason}", others, create=False)


def _notify(job: Job[Settings], deployed: chain.Document, problem: Explained | None, *, hurry: bool = False) -> None:
    settings = job.settings
    message = messages.rollback(
        versions=(deployed["version"], job.evidence["to"]["version"]),
        deployment_id=deployed["deployment_id"],
        started={"Reason": settings.reason, "Started by": settings.actor},
        problem=(problem.title, job.log.masked(problem.what)) if problem else None,
        urls=messages.links(settings.run_url, settings.server_url, settings.repository, rollback=problem is not None),
    )
    notification = webhook.notify(settings.slack_webhook, message, job.clock, hurry=hurry)
    job.evidence.update(notified=notification.sent)
    job.actions.summary(table(("what", "value"), _summary_rows(job, deployed, notification.detail)))
    job.say(f"Slack: {notification.detail}")
