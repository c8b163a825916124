"""rollback: a deployment is taken back by hand, within its window, by the same one rename as an abort.

Nothing is changed before four things are known: the deployment's record is genuine, its window is open, this is what serves, and
the instances of the version before are there and healthy. A deployment that is under way is fenced and goes back first. The
database is not touched: the rollback instructions say when and how it is restored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from azora_ci import kept_version, record, recorded_keys, rollback, rollback_record, s3, schemas, slack
from azora_ci.archive import Archive, Archived
from azora_ci.errors import AzoraError, BadInputError, CancelledError, NotTrueError, UnreachableError
from azora_ci.job import Identity, Job
from azora_ci.markdown import escaped, table
from azora_ci.migrations import Expected
from azora_ci.process import undisturbed
from azora_ci.settings import Aws, Common, DatabaseAccess, Health, Notifications, ProductionHosts, deployment_id, truth, variable
from azora_ci.steps import smoke_tests
from azora_ci.targets import Owner, Release, Returned, Target, Wiring, reached, target_of
from azora_ci.targets.journal import ABORTED, DEPLOYING, PROMOTED, Deployed, History


def reason(text: str) -> str:
    """Parse a reason: a line that somebody understands a year later."""
    found = " ".join(text.split())
    if not 3 <= len(found) <= 500:
        raise ValueError("is not a reason of 3 to 500 characters")
    return found


@dataclass(frozen=True, kw_only=True)
class Settings(Common, Health, DatabaseAccess, Aws, Notifications, ProductionHosts):
    """What rollback reads."""

    reason: str = variable("ROLLBACK_REASON", "why; lands in the record", example="checkout fails for every user", parse=reason)
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


def run(job: Job[Settings]) -> None:
    """Take the deployment back. Raises NotTrueError when it may not, cannot, or is not proved to be back."""
    job.evidence.update(reason=job.settings.reason, notes=[], fenced=None, already_back=False)
    archive = _archive(job)
    deployed = _genuine(job, archive, _found(job, archive))
    _require_open_window(job, deployed)
    target = _target(job, archive)
    way = Way(job, target, deployed)
    job.say(f"looking at production ({job.config.target.kind}) …")
    with reached(target):
        before = way.require()
        smoke_tests.http_tests(job, before.version, before.digests)
        problem = _problem(job, way.go(before), way.lost)
    try:
        _keep(job, archive, deployed)
    except AzoraError as error:  # people are told all the same
        problem = problem or error
    _notify(job, deployed, problem)
    if problem is not None:
        raise problem


# --- may we -----------------------------------------------------------------------------------------------------------------


def _archive(job: Job[Settings]) -> Archive:
    backup = job.config.backup
    bucket = s3.bucket(job.settings, backup.bucket, clock=job.clock, say=job.say)
    return Archive(bucket, job.settings.deploy_environment, backup.lock_mode)


def _found(job: Job[Settings], archive: Archive) -> Archived:
    try:
        return archive.record_to_take_back(job.settings.deployment_id)
    except UnreachableError as error:
        raise UnreachableError(
            error.title,
            what=f"{error.what}; nothing was changed",
            where=error.where,
            next_step="run the same again when the archive answers: without its record no deployment is taken back. python -m azora_ci "
            "edge status shows what serves; check AWS_ENDPOINT_URL_S3, the network and the state of the store",
        ) from error


def _genuine(job: Job[Settings], archive: Archive, found: Archived) -> record.Document:
    """Return the record, checked by its schema and by the chain of hashes it is part of. Raises NotTrueError."""
    location = archive.bucket.url(found.key)
    chain, place = archive.around(found.key)
    said = record.doubts([one.data for one in chain], place)
    document = found.document
    try:
        schemas.validate(document, record.SCHEMA, where=location)
    except BadInputError as error:
        said.append(error.what)
    if said:
        raise NotTrueError(
            "The record cannot be believed",
            what="\n".join(said),
            where=location,
            next_step="find out who changed the archive; to go back without it, deploy the version before again",
        )
    job.identity = Identity(document["deployment_id"], document["version"], document["git_sha"])
    job.actions.output("deployment-id", document["deployment_id"])
    job.evidence.update(
        record={"location": location, "sha256": found.sha256},
        rollback_deadline=document["rollback_deadline"],
        status_of_deployment=document["status"],
    )
    job.tick(f"the record {location} fits its schema and its chain of hashes ({len(chain)} records looked at, SHA-256 {found.sha256})")
    return document


def _require_open_window(job: Job[Settings], document: record.Document) -> None:
    """Raise NotTrueError after the deadline, unless somebody insists, and when there is nothing to go back to."""
    verdict = rollback.assess(document, job.clock.now())
    late = document["rollback_available"] and verdict.deadline is not None and not verdict.allowed
    job.evidence["after_deadline"] = bool(late)
    name = f"{document['version']} ({document['deployment_id']}, {document['status']})"
    if late and job.settings.after_deadline:
        _remark(job, f"{verdict.reason}; going back nevertheless, as was asked for")
    elif late:
        raise NotTrueError(
            "After the deadline: manual intervention required",
            what=f"{name}: {verdict.reason}",
            where=job.evidence["record"]["location"],
            next_step=f"call {job.config.on_call}: release a correction, or deploy the version before again. Going back nevertheless: "
            "--after-deadline (after-deadline in the workflow)",
        )
    elif not verdict.allowed:
        raise NotTrueError(
            "There is nothing to go back to",
            what=f"{name}: {verdict.reason}",
            where=job.evidence["record"]["location"],
            next_step="release a correction, or take the application offline at its edge",
        )
    else:
        job.tick(f"{name}: {verdict.reason}")


def _target(job: Job[Settings], archive: Archive) -> Target:
    settings = job.settings
    recorded = recorded_keys.of_archive(settings, job.config, archive)
    wiring = Wiring(
        job.config, job.processes, job.clock, job.log_dir, settings.health_timeout,
        rollback_window_minutes=settings.rollback_window_minutes, access=settings, spare_lost_hosts=True,
        recorded_host_keys=recorded,
    )  # fmt: skip
    return target_of(job.config.target.kind, wiring)


def _remark(job: Job[Settings], text: str) -> None:
    job.evidence["notes"].append(text)
    job.say(text)


# --- the way back -------------------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """The way back from one deployment on one target."""

    job: Job[Settings]
    target: Target
    deployed: record.Document
    lost: tuple[str, ...] = ()  # hosts that were not reached

    @property
    def id(self) -> str:
        """Return the id of the deployment that is taken back."""
        found: str = self.deployed["deployment_id"]
        return found

    # --- can we -----------------------------------------------------------------------------------------------------------

    def require(self) -> Deployed:
        """Return the release to go back to: journal and record agree on it, and all its instances are healthy."""
        before = self._before(self.target.current())
        self._require_healthy(before)
        return before

    def _before(self, history: History) -> Deployed:
        mine = history.releases.get(self.id)
        expected = self.deployed["previous_deployment_id"]
        serving = history.releases.get(history.serving or "")
        shown = f"{serving.version} ({serving.id})" if serving else "nothing"
        if mine is None or mine.outcome not in {DEPLOYING, PROMOTED, ABORTED}:
            raise self._impossible(f"the target does not have {self.deployed['version']} ({self.id}); {shown} serves")
        if mine.previous != expected:
            raise self._impossible(f"the target's journal says that {mine.previous} served before it, the record says {expected}")
        if serving is None or serving.id not in {self.id, mine.previous}:
            raise self._impossible(f"{self.deployed['version']} ({self.id}) does not serve: {shown} does")
        return history.releases[mine.previous or ""]

    def _impossible(self, what: str) -> NotTrueError:
        return NotTrueError(
            "There is no way back from this deployment",
            what=f"{what}; nothing was changed",
            where=f"target {self.job.config.target.kind}",
            next_step="name the deployment that serves (python -m azora_ci edge status), or deploy the version you want again",
        )

    def _require_healthy(self, before: Deployed, still: str = "") -> None:
        kept = kept_version.look(self.target, self.job.config, self.job.clock, before=before, leaving=self.id)
        if kept.sick:
            raise NotTrueError(
                "The version before is not there any more",
                what=f"{kept.summary(before.version)}; nothing was changed",
                where="direct probes of its instances",
                next_step=f"deploy {before.version} again, or release a correction; going back would take the application offline",
            )
        self.job.evidence.update(
            to={"version": before.version, "deployment_id": before.id},
            services=dict(before.digests),
            instances=list(kept.names),
        )
        self.job.tick(f"all {len(kept.names)} instances of {before.version} are {still}there and healthy")

    # --- go -----------------------------------------------------------------------------------------------------------------

    def go(self, before: Deployed) -> list[dict[str, Any]]:
        """Go back under the lock and run the smoke tests; return those that failed."""
        settings = self.job.settings
        self._note_returned(Returned(None, 0.0, False, None, "not begun"))
        self.job.say(f"taking {self.deployed['version']} ({self.id}) back to {before.version} ({before.id}): {settings.reason}")
        with self.target.locked(Owner(self.id, settings.run_url, settings.actor, fence=settings.reason)):
            self._clear()
            if self._before(self.target.current()).id != before.id:
                raise self._impossible("the target changed in the meantime")
            self._require_healthy(before, "still ")
            self.job.say(f"moving all traffic to {before.version}, then watching that no request reaches {self.deployed['version']} …")
            mine = self.target.current().releases[self.id]
            self.job.evidence["already_back"] = self.target.current().serving != self.id and not mine.going_back
            returned = self._take_back(mine)
        self._report(returned)
        names = tuple(one["name"] for one in self.deployed["migrations"])  # the code goes back, the data stays
        expected = Expected(f"the record of {self.deployed['version']} names", max(1, len(names)), names)
        return smoke_tests.examine(self.job, before.version, self.job.evidence, expected, before.digests)

    def _clear(self) -> None:
        """Take back what is under way: a deployment that was fenced just now, or one whose run died."""
        while (unfinished := self.target.current().unfinished) is not None and unfinished.id != self.id:
            text = f"{unfinished.version} ({unfinished.id}) was at {unfinished.percent} %; it goes back first"
            _remark(self.job, text)
            self.job.evidence["fenced"] = unfinished.id
            stale = Release(unfinished.id, unfinished.version, unfinished.digests)
            with undisturbed():
                returned = self.target.abort(stale, self.job.settings.reason, hurry=True)  # users still wait for the real way back
            self.job.say(f"traffic is on {returned.to or 'no version'}: {returned.detail}")
            if returned.lost:
                return  # their journals, as far as they are known, would say the same again and again

    def _take_back(self, mine: Deployed) -> Returned:
        release, why = Release(mine.id, mine.version, mine.digests), f"rollback: {self.job.settings.reason}"
        try:
            return self.target.abort(release, why)
        except CancelledError:
            with undisturbed(deliver=False):  # half a way back is worse than a whole one
                self._report(self.target.abort(release, why, hurry=True))
            raise

    def _note_returned(self, returned: Returned) -> None:
        self.job.evidence.update(
            seconds_to_safe=round(returned.seconds, 3),
            proved=returned.proved,
            requests_after=returned.requests_after,
            detail=returned.detail,
        )

    def _report(self, returned: Returned) -> None:
        self._note_returned(returned)
        self.lost = returned.lost
        if returned.lost:
            _remark(self.job, f"not reached, and not taken back: {', '.join(returned.lost)}")
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


def _keep(job: Job[Settings], archive: Archive, deployed: record.Document) -> None:
    settings = job.settings
    facts = rollback_record.Circumstances(
        timestamp=job.now(),
        environment=settings.deploy_environment,
        triggered_by=settings.actor,
        repository=settings.repository,
        run_id=settings.run_id,
        run_url=settings.run_url,
        run_attempt=settings.run_attempt,
        previous_record_sha256=archive.newest_sha256(),
    )
    document = rollback_record.assemble(job.evidence, deployed, facts)
    schemas.validate(document, rollback_record.SCHEMA, where=rollback_record.FILE_NAME)
    (job.log_dir / rollback_record.FILE_NAME).write_bytes(record.archived_bytes(document))
    kept = archive.keep_rollback(document)
    job.evidence.update(rollback_record={"location": kept.location, "sha256": kept.sha256})
    job.tick(f"the record of this rollback is archived at {kept.location} (SHA-256 {kept.sha256})")


def _facts(job: Job[Settings], deployed: record.Document, notification: str) -> list[tuple[str, object]]:
    """Return what somebody who opens the run's page wants to know next."""
    found, applied = job.evidence, deployed["migrations_applied"]
    stays = "it is not known how many migrations" if applied is None else f"{applied} migrations"
    return [
        ("deployment taken back", f"{deployed['version']} ({deployed['deployment_id']})"),
        ("serving now", f"{found['to']['version']} ({found['to']['deployment_id']})"),
        ("reason", found["reason"]),
        ("started by", job.settings.actor),
        ("database", f"left as it is: {stays} of {deployed['version']} stay applied"),
        ("record of the rollback", found.get("rollback_record", {}).get("location")),
        ("Slack", notification),
    ]


def _problem(job: Job[Settings], failed: list[dict[str, Any]], lost: tuple[str, ...]) -> AzoraError | None:
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


def _notify(job: Job[Settings], deployed: record.Document, problem: AzoraError | None) -> None:
    text = slack.rollback_text(
        versions=(deployed["version"], job.evidence["to"]["version"]),
        deployment_id=deployed["deployment_id"],
        reason=job.settings.reason,
        actor=job.settings.actor,
        problem=problem.title if problem else None,
    )
    sent = slack.notify(job.settings.slack_webhook, text, job.clock)
    job.evidence.update(notified=sent.sent)
    job.actions.summary(table(("what", "value"), _facts(job, deployed, sent.detail)))
    job.say(f"Slack: {sent.detail}")
