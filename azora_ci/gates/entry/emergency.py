"""May this release enter production now: does the calendar let it, and was it in staging? An emergency passes both, and is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from azora_ci.clients.signing.signatures import NONE
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.core.config import GateSettings, StagingSettings
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.core.variables import one_line, variable
from azora_ci.gates.entry import calendar, staging
from azora_ci.gates.entry.staging import Seen
from azora_ci.record import verification
from azora_ci.record.archive import LOOK_BACK, Archive

CALENDAR, STAGING = "calendar", "staging"


@dataclass(frozen=True, kw_only=True)
class Emergency:
    """Why a release may not wait: a group of variables."""

    emergency_reason: str | None = variable(
        "EMERGENCY_REASON",
        "why this release waits neither for the calendar nor for staging, input of workflow_dispatch; lands in the record, and its review "
        "is due 24 hours after the deployment",
        example="the login fails for everybody, incident 4711", parse=one_line(500), required=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The two gates that an emergency passes. What they find becomes ``evidence``: calendar, staging, emergency."""

    emergency: Emergency
    actor: str
    evidence: dict[str, Any]
    actions: Actions
    clock: Clock
    say: Callable[[str], None]

    def begin(self) -> None:
        """Note the emergency, where one was declared. It is one whether or not a gate is closed."""
        reason = self.emergency.emergency_reason
        self.evidence.update(calendar=None, staging=None, emergency=None)
        if reason is not None:
            self.evidence["emergency"] = {"reason": reason, "by": self.actor, "passed": []}
            self.actions.warning("This is an emergency deployment", f"{self.actor}: {reason}")

    def ask_calendar(self, gates: GateSettings, version: str) -> None:
        """Raise NotTrueError while the calendar is closed, BadInputError where it never opens, unless this is an emergency."""
        if gates.calendar is None:
            return
        now, zone = self.clock.now(), gates.calendar.timezone
        closed = calendar.closed_by(gates.calendar, now)
        closes = None if closed else calendar.next_closed(gates.calendar, now)
        opens = calendar.next_open(gates.calendar, closes or now) if closed or closes else None
        moments = {name: rfc3339(moment) if moment else None for name, moment in (("next_open", opens), ("open_until", closes))}
        self.evidence["calendar"] = {"timezone": str(zone), "open": closed is None, "reason": closed, **moments}
        if closed is None:
            self.say(f"✓ the calendar is open {f'until {calendar.in_both(zone, closes)}' if closes else 'for a year at least'}")
        elif opens is None:
            self._refuse(CALENDAR, never_opens(closed))
        else:
            what = f"{closed}; it is {calendar.in_both(zone, now)} now, and open from {calendar.in_both(zone, opens)} on"
            wait = f"re-run failed jobs from {calendar.in_both(zone, opens)} on; {by_emergency(version)}"
            self._refuse(CALENDAR, frozen(what, wait))

    def ask_staging(self, demanded: StagingSettings | None, open_archive: Callable[[str], Archive], version: str, commit: str) -> None:
        """Raise NotTrueError unless a believed record says that this commit was deployed to staging, or this is an emergency.

        ``open_archive`` returns the archive of an environment.
        """
        if demanded is None:
            return
        archive = open_archive(demanded.environment)
        verdict = staging.judge(read_records(archive, commit), commit, demanded, self.clock.now())
        place = archive.bucket.url(f"records/{demanded.environment}/")
        record = verdict.record.evidence() if verdict.record else None
        self.evidence["staging"] = {"environment": demanded.environment, "location": place, "record": record}
        if verdict.record is not None:
            self.say(f"✓ this commit was deployed to {demanded.environment}: {verdict.record} ({verdict.record.location})")
            return
        lines = [f"no successful deployment of {commit} to {demanded.environment} is recorded", *verdict.refused]
        lines += [f"of other commits: {other}" for other in verdict.others] or ["no other deployment is recorded there, either"]
        self._refuse(
            STAGING,
            NotTrueError(
                "This commit was not deployed to staging",
                what="\n".join(lines),
                where=f"{place}, [validation] require_staging of the default branch",
                next_step=f"deploy {version} to {demanded.environment}, then re-run failed jobs; {by_emergency(version)}",
            ),
        )

    def _refuse(self, gate: str, error: AzoraError) -> None:
        """Raise the error, unless this is an emergency: then note which gate it passed."""
        emergency = self.evidence["emergency"]
        if emergency is None:
            raise error
        if gate not in emergency["passed"]:
            emergency["passed"].append(gate)
        self.actions.warning(f"Passed as an emergency: {error.title}", error.what)


def require_still_open(validation: Mapping[str, Any], now: datetime) -> None:
    """Raise NotTrueError when the calendar has closed since pre-deployment-validation asked it, whose evidence this is.

    An emergency is not asked. Nor is a deployment whose backup is done: half a deployment is riskier than one in a freeze.
    """
    asked = validation.get("calendar") or {}
    until = asked.get("open_until")
    if validation.get("emergency") or until is None or now < parse_rfc3339(until):
        return
    zone = ZoneInfo(asked["timezone"])
    opens = f"from {calendar.in_both(zone, parse_rfc3339(asked['next_open']))} on" if asked["next_open"] else "when it is open again"
    raise frozen(
        f"this run waited: the calendar was open until {calendar.in_both(zone, parse_rfc3339(until))}, and it is "
        f"{calendar.in_both(zone, now)} now. Production is as it was",
        f"re-run all jobs {opens}; an emergency is a run of its own, started by hand with emergency_reason",
    )


def frozen(what: str, next_step: str) -> NotTrueError:
    """Return the refusal of a deployment while the calendar is closed."""
    return NotTrueError("No deployment begins now", what=what, where="[calendar] of the default branch", next_step=next_step)


def never_opens(closed: str) -> BadInputError:
    """Return the refusal of a calendar that is closed for longer than a year."""
    return BadInputError(
        "The calendar never opens",
        what=f"{closed}; within {calendar.HORIZON.days} days there is no moment at which a deployment may begin",
        where="[calendar] of the default branch",
        next_step="correct the windows on the default branch",
    )


def by_emergency(version: str) -> str:
    """Return how somebody deploys who cannot wait. A pushed tag cannot say so."""
    return (
        "when production cannot wait, start the workflow by hand with a reason, which a pushed tag cannot carry: "
        f"gh workflow run deploy-production.yml --ref {version} -f version={version} -f emergency_reason='why it cannot wait'"
    )


def read_records(archive: Archive, commit: str) -> list[Seen]:
    """Return the newest records of an archive, oldest first, each with what ``history --verify`` says against it.

    Ids end in the first digits of a commit, so that the records of this one are found without reading all: what lies LOOK_BACK
    records before the oldest of them, and everything behind it, which vouches for it.
    """
    stored = archive.records()
    of_commit = [place for place, item in enumerate(stored) if item.key.split("/")[2].endswith(f"-{commit[:6]}")]
    part = stored[max(0, min(of_commit, default=len(stored)) - LOOK_BACK) :]
    archived = archive.read_all(part)
    links = [
        verification.link(
            archive.bucket.url(item.key), item.data, seen.modified, damage=item.flaw, is_signing=archive.signatures.name != NONE
        )
        for seen, item in zip(part, archived, strict=True)
        if seen.modified is not None
    ]
    doubts: dict[str | None, str] = {}
    for finding in verification.Chain(links).findings():
        doubts.setdefault(finding.location, f"{finding.kind}: {finding.detail}")
    return [
        Seen(url, item.sha256, item.document, item.flaw or doubts.get(url)) for item in archived for url in [archive.bucket.url(item.key)]
    ]
