"""DORA's five measures of software delivery, from the records of deployments and rollbacks alone. Pure.

A deployment counts from its first traffic on: one that a gate, a backup or a build stopped was never seen by users, and is counted beside
the measures. What the records do not say is None, never 0. The definitions are those of https://dora.dev/guides/dora-metrics/; ``MEASURES``
says, for people, how each is computed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import median

from azora_ci.record.chain import Document

# name -> (headline, how it is computed)
MEASURES = {
    "frequency": (
        "Deployment frequency",
        "Deployments that reached users, a week: those whose record has a stage of the rollout, from 5 % of the traffic on. The period "
        "is divided from its first day, or from the first record where that is later. What was stopped before any traffic does not count.",
    ),
    "lead": (
        "Lead time from commit",
        "Median time from the committer date of the release's commit to the end of its deployment, over the deployments that got all of "
        "the traffic. Older commits of the same release may have waited longer. A record without the commit's date, or with one in its "
        "future, is left out and counted.",
    ),
    "failure": (
        "Change failure rate",
        "Share of the deployments that reached users and then needed help: the rollout took the traffic back, smoke tests in production "
        "failed, or somebody rolled back later. A fault that the next ordinary release mends without a rollback is in no record.",
    ),
    "recovery": (
        "Failed deployment recovery time",
        "Median time from the first traffic of a failed deployment to the moment when the version before was proved to have all of it "
        "again; where nothing went back, to the end of the next deployment that succeeded. It is the longest that users can have had the "
        "fault. Failures that nothing has mended yet are counted beside it.",
    ),
    "rework": (
        "Rework rate",
        "Share of the deployments that reached users and were not planned: marked as an emergency, or the next one after a failed one. "
        "Records of versions that knew no emergencies count by the second alone.",
    ),
}


@dataclass(frozen=True)
class Delivery:
    """What became of one deployment. ``reached_at``: its first traffic; None: no user saw it. ``failure``: why it needed help.

    ``recovered_at``: when users were without the fault again; ``lead_seconds``: from commit to end; ``is_deployed``: it got all traffic.
    """

    deployment_id: str
    ended_at: datetime
    reached_at: datetime | None
    is_deployed: bool
    lead_seconds: float | None
    failure: str | None = None
    recovered_at: datetime | None = None
    is_rework: bool = False

    @property
    def recovery_seconds(self) -> float | None:
        """Return the longest time that users can have had the fault; None without a fault, or while it lasts."""
        if self.failure is None or self.recovered_at is None or self.reached_at is None:
            return None
        return max(0.0, (self.recovered_at - self.reached_at).total_seconds())


@dataclass(frozen=True)
class Measures:
    """The five measures of a period; None where the records do not say. Seconds, shares from 0 to 1, deployments a week.

    ``reached``, ``failed``, ``reworked``: how many; ``stopped``: before any traffic; ``without_lead``: deployed, and their lead time is not
    known; ``lasting``: failures that nothing has mended.
    """

    begin: datetime
    end: datetime
    reached: int
    failed: int
    reworked: int
    stopped: int
    without_lead: int
    lasting: int
    frequency: float | None
    lead: float | None
    failure: float | None
    recovery: float | None
    rework: float | None


def moment(timestamp: str) -> datetime:
    """Return the moment in UTC of an RFC 3339 time."""
    return datetime.fromisoformat(timestamp).astimezone(UTC)


# --- from records to deliveries -----------------------------------------------------------------------------------------


def deliveries(records: Iterable[Document]) -> list[Delivery]:
    """Return what became of each deployment, in the order of their ends, from valid records of deployments and rollbacks."""
    attempts: dict[str, list[Document]] = {}
    rollbacks: dict[str, list[Document]] = {}
    for record in records:
        (rollbacks if record.get("kind") == "rollback" else attempts).setdefault(record["deployment_id"], []).append(record)
    made = [_delivery(sorted(listed, key=lambda item: item["run_attempt"]), rollbacks.get(name, [])) for name, listed in attempts.items()]
    urgent = {name for name, listed in attempts.items() if any(record.get("emergency") for record in listed)}
    made.sort(key=lambda item: (item.ended_at, item.deployment_id))
    return _with_rework(_with_repairs(made), urgent)


def _delivery(attempts: Sequence[Document], rollbacks: Sequence[Document]) -> Delivery:
    """Return what became of a deployment. Of several attempts the last one counts, and every failure that users saw."""
    last, reached = attempts[-1], [record for record in attempts if record["rollout_stages"]]
    failure, recovered, begin = None, None, None
    for record in reached:
        begin = begin or _first_traffic(record)
        if failure is None and (problem := _failure(record)):
            failure, recovered = problem, _return(record)
        elif failure is not None and recovered is None and _failure(record) is None:
            recovered = moment(record["timestamp"])  # another attempt mended it
    for record in rollbacks:
        failure = failure or "rolled back"
        if record["proved"] and recovered is None:
            recovered = moment(record["timestamp"])
    lead = last["metrics"]["lead_time_seconds"]
    return Delivery(
        deployment_id=last["deployment_id"],
        ended_at=moment(last["timestamp"]),
        reached_at=begin,
        is_deployed=any(record["services_deployed"] for record in reached),
        lead_seconds=lead if lead is not None and lead >= 0 else None,
        failure=failure if begin else None,
        recovered_at=recovered,
    )


def _first_traffic(record: Document) -> datetime:
    return moment(record["rollout_stages"][0]["started_at"] or record["timestamp"])


def _failure(record: Document) -> str | None:
    """Return why a deployment that had traffic needed help, as its own record says it."""
    rollout = record["rollout"] or {}
    if rollout.get("abort"):
        return f"taken back by the rollout: {rollout['abort']['reason']}"
    if record["health_checks"]["smoke_tests"] == "failed":
        return "smoke tests failed"
    return None if rollout.get("rollout_status") == "completed" else f"the rollout is {rollout.get('rollout_status')}"


def _return(record: Document) -> datetime | None:
    """Return when the version before had all traffic again, if the run itself saw to that and proved it."""
    rollout = record["rollout"] or {}
    abort, smoke = rollout.get("abort"), rollout.get("smoke_rollback")
    ended_at, tested = record["rollout_stages"][-1]["ended_at"], record["evidence"].get("smoke-tests")
    if abort and abort["proved"] and abort["seconds_to_safe"] is not None and ended_at:
        return moment(ended_at) + timedelta(seconds=abort["seconds_to_safe"])
    return moment(tested["ended_at"]) if smoke and smoke["proved"] and tested else None


def _with_repairs(made: Sequence[Delivery]) -> list[Delivery]:
    """Return the deliveries; a fault that nothing took back ends with the next deployment that succeeds."""
    repaired = list[Delivery]()
    mended: datetime | None = None
    for delivery in reversed(made):
        if delivery.failure and delivery.recovered_at is None:
            delivery = replace(delivery, recovered_at=mended)  # noqa: PLW2901 - the same delivery, completed
        elif delivery.is_deployed and delivery.failure is None:
            mended = delivery.ended_at
        repaired.append(delivery)
    return repaired[::-1]


def _with_rework(made: Sequence[Delivery], urgent: set[str]) -> list[Delivery]:
    before: Delivery | None = None
    result = list[Delivery]()
    for delivery in made:
        if delivery.reached_at is not None:
            follows = before is not None and before.failure is not None
            result.append(replace(delivery, is_rework=follows or delivery.deployment_id in urgent))
            before = delivery
        else:
            result.append(delivery)
    return result


# --- measures of a period -----------------------------------------------------------------------------------------------


def measures(made: Sequence[Delivery], begin: datetime, end: datetime) -> Measures:
    """Return the measures of the deployments that ended in a period (``begin`` belongs to it, ``end`` does not)."""
    inside = [delivery for delivery in made if begin <= delivery.ended_at < end]
    reached = [delivery for delivery in inside if delivery.reached_at is not None]
    failed = [delivery for delivery in reached if delivery.failure]
    reworked = sum(delivery.is_rework for delivery in reached)
    deployed = [delivery for delivery in reached if delivery.is_deployed]
    leads = [delivery.lead_seconds for delivery in deployed if delivery.lead_seconds is not None]
    recoveries = [seconds for delivery in failed if (seconds := delivery.recovery_seconds) is not None]
    first = made[0].ended_at if made else end
    weeks = (end - max(begin, first)) / timedelta(weeks=1)
    return Measures(
        begin=begin,
        end=end,
        reached=len(reached),
        failed=len(failed),
        reworked=reworked,
        stopped=len(inside) - len(reached),
        without_lead=len(deployed) - len(leads),
        lasting=sum(delivery.recovered_at is None for delivery in failed),
        frequency=len(reached) / max(weeks, 1 / 7) if weeks > 0 else None,
        lead=median(leads) if leads else None,
        failure=len(failed) / len(reached) if reached else None,
        recovery=median(recoveries) if recoveries else None,
        rework=reworked / len(reached) if reached else None,
    )


def last_days(until: datetime, days: int) -> tuple[datetime, datetime]:
    """Return begin and end of so many days up to a moment, which belongs to them."""
    return until - timedelta(days=days), until + timedelta(milliseconds=1)


def months(made: Sequence[Delivery], end: datetime, count: int = 12) -> list[Measures]:
    """Return the measures of the last calendar months (UTC), the one of ``end`` last and up to ``end``."""
    first = end.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begins = [first]
    for _ in range(count - 1):
        begins.append((begins[-1] - timedelta(days=1)).replace(day=1))
    begins.reverse()
    return [measures(made, begin, until) for begin, until in zip(begins, [*begins[1:], end], strict=True)]
