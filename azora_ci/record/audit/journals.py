"""What the hosts' own journals say beside the archive: a deployment that only one of the two knows is a finding. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from azora_ci.record.chain import Document

UNRECORDED, OTHER_VERSION, UNTRACED = "unrecorded", "another version", "not on the hosts"
RECORDING = timedelta(hours=6)  # the longest job of GitHub: until then a deployment's record may still be written


@dataclass(frozen=True)
class Noted:
    """A deployment in the hosts' journals. ``began_at``: RFC 3339; ``outcome``: deploying, promoted, aborted or removed."""

    deployment_id: str
    version: str
    began_at: str
    outcome: str


@dataclass(frozen=True)
class Journals:
    """The hosts' journals. ``not_asked``: why no host was asked; ``left_out``: host -> why it did not answer."""

    asked: Sequence[str] = ()
    noted: Sequence[Noted] = ()
    not_asked: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Return whether every host answered."""
        return not self.not_asked and not self.left_out


def day_of(timestamp: str) -> date:
    """Return the day (UTC) of an RFC 3339 time."""
    return datetime.fromisoformat(timestamp).astimezone(UTC).date()


def document(
    journals: Journals, archived: Iterable[str], records: Iterable[tuple[str, Document]], period: tuple[date, date], now: datetime
) -> Document:
    """Return the hosts' part of an audit. ``archived``: deployment ids with an object in a record's place, valid or not;
    ``records``: (URL, valid record)."""
    ids, deployments = set(archived), [(location, record) for location, record in records if record.get("kind") != "rollback"]
    inside = [noted for noted in journals.noted if period[0] <= day_of(noted.began_at) <= period[1]]
    found = list(_unknown_to_the_archive(inside, ids, [record for _, record in deployments], now))
    if journals.is_whole and journals.noted:
        found += _unknown_to_the_hosts(journals.noted, deployments, period)
    return {
        "asked": list(journals.asked),
        "not_asked": journals.not_asked,
        "left_out": dict(journals.left_out),
        "journalled": len(inside),
        "findings": sorted(found, key=lambda finding: str(finding["time"])),
    }


def _unknown_to_the_archive(
    noted: Iterable[Noted], ids: set[str], deployments: Sequence[Document], now: datetime
) -> Iterable[dict[str, Any]]:
    versions = {record["deployment_id"]: record["version"] for record in deployments}
    for entry in noted:
        facts = {"deployment_id": entry.deployment_id, "version": entry.version, "time": entry.began_at}
        if entry.deployment_id in ids:
            recorded = versions.get(entry.deployment_id)
            if recorded and recorded != entry.version:
                detail = f"the hosts' journals say {entry.version}, and its record {recorded}"
                yield {"finding": OTHER_VERSION, **facts, "detail": detail}
        elif datetime.fromisoformat(entry.began_at) + RECORDING < now:
            same = sorted(record["deployment_id"] for record in deployments if record["version"] == entry.version)
            hint = f"; that version was deployed as {', '.join(same)}, too" if same else ""
            detail = f"{entry.outcome} on the hosts, and the archive has no record of it{hint}"
            yield {"finding": UNRECORDED, **facts, "detail": detail}


def _unknown_to_the_hosts(
    noted: Sequence[Noted], deployments: Iterable[tuple[str, Document]], period: tuple[date, date]
) -> Iterable[dict[str, Any]]:
    """Yield the recorded deployments that reached hosts which noted earlier ones, and did not note this: a journal loses no entry."""
    known, first = {entry.deployment_id for entry in noted}, min(datetime.fromisoformat(entry.began_at) for entry in noted)
    for location, record in deployments:
        reached = bool(record["rollout_stages"]) and datetime.fromisoformat(
            record["rollout_stages"][0]["started_at"] or record["timestamp"]
        )
        if reached and reached > first and record["deployment_id"] not in known and period[0] <= day_of(record["timestamp"]) <= period[1]:
            facts = {"deployment_id": record["deployment_id"], "version": record["version"], "time": record["timestamp"]}
            yield {"finding": UNTRACED, **facts, "detail": f"{location} says that it was rolled out; the hosts' journals do not have it"}
