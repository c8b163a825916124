"""Whether the version in production works on the migrated schema: tried on the copy, before the migrations reach production.

It is started there twice, before and behind the trial of the migrations. What it prints, and what is in its answers, may hold rows of
production and is kept nowhere: reasons name services, requests, statuses, and what the server refused, without values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from azora_ci.core.clock import Clock
from azora_ci.core.config import DatabaseSettings, HealthSettings, OldVersionRequest, OldVersionSettings, Service
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.migrations.judgement.model import Verdict
from azora_ci.database.migrations.trial.place import Place
from azora_ci.database.migrations.trial.run import NOTHING
from azora_ci.gates.migrations import Policy
from azora_ci.health.answers import CONTRACT, FROM_IMAGE, OLD, Endpoint, ProbeResult, classify
from azora_ci.health.probes import ProbeRequest, fetch, request_of
from azora_ci.targets.registry import kind_of
from azora_ci.targets.release import Release
from azora_ci.targets.trial.base import Apart, Means, Started

if TYPE_CHECKING:
    from azora_ci.record.archive import Archive

TESTED, CLASSIFIED, UNKNOWN = "tested", "classified", "unknown"
ANSWER_SECONDS = 30.0  # for one answer
PAUSE_SECONDS = 0.25  # between two questions for health
_WORDS = {True: "safe", False: "not safe", None: "not known"}
MOST = 5  # objects and errors of the server that a reason names
_WANTING = "what it needs beside its database, such as a key or another service, goes into [migrations.old_version] env"
_RANK = (True, None, False)  # from the best answer to the worst
_CLASSIFIED = {Verdict.COMPATIBLE: True, Verdict.INCOMPATIBLE: False, Verdict.UNKNOWN: None}


@dataclass(frozen=True)
class CodeRollback:
    """Whether code can go back without touching the database. ``value`` None: not known; ``how``: tested, classified or unknown."""

    value: bool | None
    how: str
    reasons: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as records hold it."""
        return {"value": self.value, "how": self.how, "reasons": list(self.reasons)}

    @property
    def breaks(self) -> bool:
        """Return whether the version in production was seen to break."""
        return self.value is False and self.how == TESTED

    @property
    def headline(self) -> str:
        """Return the answer in a line."""
        return f"code rollback without the database: {_WORDS[self.value]} ({self.how})"

    def __str__(self) -> str:
        return f"{self.headline}: {'; '.join(self.reasons)}"


def decide(
    database: DatabaseSettings, trial: Mapping[str, Any], old_version: OldVersion | str | None, validation: Mapping[str, Any]
) -> CodeRollback:
    """Return whether code can go back without the database, as far as the pending migrations go.

    ``trial``: evidence of the migrations' trial; ``old_version``: what was tried beside it, why nothing was, or None where nobody asks
    for it; ``validation``: evidence of pre-deployment-validation.
    """
    if database.tool == "none" or trial.get("how") == NOTHING:
        return CodeRollback(True, CLASSIFIED, ("no migration is pending: nothing was started",))
    if old_version is None:
        return classified(validation)
    if isinstance(old_version, str):
        return CodeRollback(None, UNKNOWN, (old_version,))
    return old_version.result(trial)


def with_earlier(found: CodeRollback, validation: Mapping[str, Any]) -> CodeRollback:
    """Return the same, or what deployments since that of the version in production left where that is worse: they may have failed."""
    earlier = (validation.get("serving") or {}).get("schema")
    if earlier is None or found.how == TESTED:  # it was tried on the database as it is, whatever was applied since
        return found
    worse = CodeRollback(earlier["value"], earlier["how"], tuple(earlier["reasons"]))
    return worse if _RANK.index(worse.value) > _RANK.index(found.value) else found


def since(records: Iterable[Mapping[str, Any]]) -> CodeRollback | None:
    """Return what records say of the version in production, of deployments since its own: they may have left migrations when they failed.

    None where none of them applied any.
    """
    worst = None
    for record in records:
        if record.get("migrations_applied") == 0 or "database-migrations" in (record.get("failure") or {}).get("not_run", ()):
            continue
        known = record.get("code_rollback_safe") or {"value": None, "how": UNKNOWN, "reasons": []}
        left = f"the deployment of {record['version']} ({record['deployment_id']}), which does not serve, may have left migrations"
        found = CodeRollback(known["value"], known["how"], (left, *known["reasons"]))
        worst = found if worst is None or _RANK.index(found.value) > _RANK.index(worst.value) else worst
    return worst


def left_since(archive: Archive | None, serving: str) -> dict[str, Any] | None:
    """Return the same of the records that an archive holds, as a document. None: nobody may ask it here. Raises UnreachableError."""
    if archive is None:
        return CodeRollback(None, UNKNOWN, ("no AWS credentials are handed to this job: the archive was not asked",)).document()
    began = int(serving.partition("-")[0])
    later = [stored for stored in archive.records() if int(stored.key.split("/")[2].partition("-")[0]) > began]
    found = since(archived.document for archived in archive.read_all(later) if archived.flaw is None)
    return found.document() if found else None


def classified(validation: Mapping[str, Any]) -> CodeRollback:
    """Return what the judgement of the migrations says, from the evidence of pre-deployment-validation, where no version is tried."""
    off = "the version in production was not tried: there is no [migrations.old_version]"
    migrations = validation.get("migrations") or {}
    judgement = migrations.get("judgement")
    if judgement is None:
        return CodeRollback(None, UNKNOWN, (off, f"not judged: {migrations.get('not_judged') or 'there is no judgement'}"))
    verdict = Verdict(judgement["verdict"])
    doubtful = [finding for finding in judgement["findings"] if finding["verdict"] != Verdict.COMPATIBLE]
    named = [f"{finding['file']}:{finding['line']}: {finding['verdict']}, {finding['reason']}" for finding in doubtful[:MOST]]
    return CodeRollback(_CLASSIFIED[verdict], CLASSIFIED, (off, f"the migrations are judged {verdict}", *named))


@dataclass
class OldVersion:
    """The version in production, beside the migrations on the copy: a ``trial.place.Companion``.

    ``untried`` says why it could not be tried, which is no fault of the migrations; ``broken`` what does not work behind them.
    """

    settings: OldVersionSettings
    variables: Mapping[str, str]
    release: Release
    services: tuple[Service, ...]
    apart: Apart
    clock: Clock
    seconds: float = 0.0
    untried: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  # requests that say nothing, because they fail in any case
    answers: dict[OldVersionRequest, list[int | None]] = field(default_factory=dict)
    tried: bool = False
    _catalogue: frozenset[str] = frozenset()

    # --- on the copy ---------------------------------------------------------------------------------------------------------

    def before(self, place: Place) -> None:
        """Find out what works on the copy that is not migrated."""

        def ask(started: Mapping[str, Started]) -> None:
            sick = self._wait(started)
            self.untried += [f"could not be tried: {problem} on the copy before it is migrated" for problem in sick]
            self.untried += [_WANTING] if sick else []
            for request in self.settings.read if not self.untried else ():
                self.answers[request] = [self._ask(request, started)]
            self.untried += self._changed(place)

        self._beside(place, ask, self.untried, "")

    def after(self, place: Place, known: str) -> None:
        """Find out what still works on the migrated copy. Writes come last: they change rows."""

        def ask(started: Mapping[str, Started]) -> None:
            self.broken += [f"{problem} on the migrated copy" for problem in self._wait(started)]
            for request in self.settings.read if not self.broken else ():
                self._compare(request, self._ask(request, started))
            self.broken += self._changed(place)
            for request in self.settings.write if not self.broken else ():
                self._compare(request, self._ask(request, started))

        if not self.untried:
            self._beside(place, ask, self.broken, known)
            self.tried = not self.untried

    def _beside(self, place: Place, ask: Callable[[Mapping[str, Started]], None], problems: list[str], known: str) -> None:
        """Run the services beside the copy while they are asked. What the server refused is added to what then is in ``problems``."""
        begun = self.clock.monotonic()
        names = self.settings.variables if self.settings.variables is not None else self.variables
        try:
            self._catalogue, mark = place.catalogue(), place.mark()
            try:
                with ExitStack() as stack:
                    started = {}
                    for service in self.services:
                        env = {**service.env, **self.settings.env, **place.environment(names)}
                        started[service.id] = stack.enter_context(self.apart.started(service, self.release, env, place.door))
                    for service in self.services:  # each has a time of its own to end, and a cancelled job has little
                        stack.callback(started[service.id].begin_to_end)
                    ask(started)
            except (AzoraError, OSError):
                place.settle()
                raise
            place.settle()
            refused = place.account(mark, {}, (), "\n".join([known, *self._catalogue])).refused if problems else ()
            errors = dict.fromkeys(f"the database refused: {entry.message} (SQLSTATE {entry.sqlstate})" for entry in refused)
            problems += list(errors)[:MOST]
        except AzoraError as error:
            self.untried.append(f"could not be tried: {error.title}: {error.what}")
        except OSError as error:
            self.untried.append(f"could not be tried: {type(error).__name__}: {error}")
        finally:
            self.seconds += self.clock.monotonic() - begun

    def _wait(self, started: Mapping[str, Started]) -> list[str]:
        """Wait until every service is healthy; return a sentence for each that is not in time."""
        deadline = self.clock.monotonic() + self.settings.seconds
        found = ((service, self._sickness(service, started[service.id], deadline)) for service in self.services)
        return [f"{service.id} of {self.release.version} is not healthy ({sickness})" for service, sickness in found if sickness]

    def _sickness(self, service: Service, started: Started, deadline: float) -> str | None:
        observed = self.release.bare if service.health.version_from == FROM_IMAGE else None
        versions = frozenset({self.release.bare})
        url = f"http://localhost{service.health_path}"
        endpoint = Endpoint(service.title, service.id, OLD, url, versions, started.dial, service.health, observed)
        while True:
            result = classify(endpoint, fetch(request_of(endpoint), ANSWER_SECONDS, self.clock))
            if result.passed:
                return None
            if (ended := started.ended()) is not None:
                return f"{ended}; what it printed is withheld"
            if self.clock.monotonic() > deadline:
                return f"{_in_words(result)} after {self.settings.seconds:g} s"
            self.clock.sleep(PAUSE_SECONDS)

    def _changed(self, place: Place) -> list[str]:
        change = Change.between(self._catalogue, place.catalogue())
        lines = [*(f"gained: {line}" for line in change.gained), *(f"lost: {line}" for line in change.lost)]
        return [f"it changes the schema itself ({'; '.join(lines[:MOST])})"] if lines else []

    # --- requests ------------------------------------------------------------------------------------------------------------

    def _ask(self, request: OldVersionRequest, started: Mapping[str, Started]) -> int | None:
        """Return the status of the answer, None without one."""
        headers = {"content-type": request.content_type} if request.body is not None else {}
        body = request.body.encode() if request.body is not None else None
        url = f"http://localhost{request.path}"
        sent = ProbeRequest(url, headers, started[request.service].dial, request.method, body)
        return fetch(sent, ANSWER_SECONDS, self.clock).status

    def _compare(self, request: OldVersionRequest, status: int | None) -> None:
        statuses = self.answers.setdefault(request, [None])
        is_write, before = request in self.settings.write, statuses[0]
        statuses.append(status)
        if not is_write and not _passes(request, before, before):
            self.silent.append(f"{request} says nothing: it answers {_status(before)} on the copy before it is migrated, too")
        elif not _passes(request, status, before):
            expected = request.expect or ("below 400" if is_write else f"as before, {_status(before)}")
            self.broken.append(f"{request}: {_status(status)} on the migrated copy, expected {expected}")

    def result(self, trial: Mapping[str, Any]) -> CodeRollback:
        """Return what was found. ``trial``: evidence of the migrations' trial."""
        name = f"{self.release.version} ({', '.join(service.id for service in self.services)})"
        less = (f"migrations tried: {trial['how']}, {trial['reason']}",) if trial.get("reason") else ()
        if not self.tried:
            return CodeRollback(None, UNKNOWN, (*self.untried, *less) or (f"{name} was not tried",))
        if self.broken:
            return CodeRollback(False, TESTED, (*self.broken, *less))
        reads, writes = (
            [request for request in kind if self._says_something(request)] for kind in (self.settings.read, self.settings.write)
        )
        fact = f"{name} is healthy on the migrated copy, and answers {len(reads)} reads and {len(writes)} writes as it should"
        if not reads and not writes:
            asked = "no request of [migrations.old_version] says whether it works there"
            return CodeRollback(None, UNKNOWN, (f"{name} is healthy on the migrated copy, but {asked}", *self.silent, *less))
        return CodeRollback(True, TESTED, (fact, *self.silent, *less))

    def _says_something(self, request: OldVersionRequest) -> bool:
        before = self.answers[request][0] if request in self.answers else None
        return request in self.answers and (request in self.settings.write or _passes(request, before, before))

    def document(self) -> dict[str, Any]:
        """Return what was done as evidence."""
        listed = [
            {"request": str(request), "before": statuses[0], "after": statuses[1] if len(statuses) > 1 else None}
            for request, statuses in self.answers.items()
        ]
        return {
            "version": self.release.version,
            "deployment_id": self.release.id,
            "services": [service.id for service in self.services],
            "seconds": round(self.seconds, 3),
            "requests": listed,
        }


def _passes(request: OldVersionRequest, status: int | None, before: int | None) -> bool:
    """Return whether a status is as it should be: the expected one, or of the class of ``before``, which is no error of a server's."""
    if status is None:
        return False
    if request.expect is not None:
        return status == request.expect
    return status < 400 if before is None else status // 100 == before // 100 < 5


def _status(status: int | None) -> str:
    return "no answer" if status is None else f"HTTP {status}"


def _in_words(result: ProbeResult) -> str:
    """Return what is wrong with an answer, without what stands in it."""
    return f"HTTP {result.status}, {result.outcome}" if result.status is not None else result.detail.partition(":")[0]


def of_production(means: Means, serving: Mapping[str, Any] | None) -> OldVersion | str:
    """Return the version in production, by what pre-deployment-validation found ``serving``, or why it cannot be tried."""
    config, settings = means.config, means.config.database.old_version
    assert settings is not None  # noqa: S101 - the caller asked
    if serving is None:
        return "pre-deployment-validation found no version in production"
    missing = [name for name in settings.services if name not in serving["digests"]]
    if missing:
        return f"{serving['version']} has no {', '.join(missing)}: name services that it has in [migrations.old_version] services"
    release = Release(serving["deployment_id"], serving["version"], serving["digests"])
    health = {name: HealthSettings(**{**table, "healthy": tuple(table["healthy"])}) for name, table in serving["health"].items()}
    services = tuple(replace(config.service(name), health=health.get(name, CONTRACT)) for name in settings.services)
    return OldVersion(settings, config.database.variables, release, services, kind_of(config).apart(means), means.clock)


# --- what follows -----------------------------------------------------------------------------------------------------------


def require_compatible(found: CodeRollback, policy: Policy) -> str | None:
    """Return why migrations are applied that the version in production does not bear; None where it bears them, or nobody says why.

    Raises NotTrueError where it was tried and does not, and MIGRATIONS_REQUIRE_COMPATIBLE is true.
    """
    if not found.breaks:
        return None
    if policy.require_compatible:
        raise NotTrueError(
            "The version in production does not work on the migrated schema",
            what="production is untouched; on the copy of it:\n" + "\n".join(found.reasons),
            where="the copy that proved the backup; [migrations.old_version]",
            next_step="have that version bear the schema first (expand, then contract), or take MIGRATIONS_REQUIRE_COMPATIBLE out for this "
            "release and say why in MIGRATIONS_INCOMPATIBLE_REASON",
        )
    return policy.incompatible_reason
