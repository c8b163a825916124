"""Which deployment to another environment shows that this commit ran there? Pure; the records come from that environment's archive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azora_ci.core.config import StagingSettings
from azora_ci.record import history
from azora_ci.record.chain import Document, pick
from azora_ci.record.rollback import SCHEMA as ROLLBACK

SHOWN = 5  # records of this commit, and of other ones, in a refusal


@dataclass(frozen=True)
class Seen:
    """A record of the archive. ``doubt``: why it is not believed, as ``history --verify`` says it; None: it is."""

    location: str
    sha256: str
    document: Document
    doubt: str | None = None

    @property
    def deployment_id(self) -> str:
        """Return the deployment in whose folder the record lies; it ends in the first digits of its commit."""
        return self.location.split("/")[-2]

    def evidence(self) -> dict[str, Any]:
        """Return what a later reader needs to find the record and to see that it is the same."""
        return {**pick(self.document, "deployment_id", "version", "timestamp"), "location": self.location, "sha256": self.sha256}

    def __str__(self) -> str:
        texts = pick(self.document, "version", "git_sha", "status", "timestamp")
        return f"{self.deployment_id}, {texts['version']} of {str(texts['git_sha'])[:12]}, {texts['status']}, {texts['timestamp']}"


@dataclass(frozen=True)
class Verdict:
    """The record that counts, or None with a line for each one of the commit that does not, and the newest ones of other commits."""

    record: Seen | None
    refused: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def judge(seen: Sequence[Seen], commit: str, demanded: StagingSettings, now: datetime) -> Verdict:
    """Return the newest record (they come oldest first) of a deployment of this commit that succeeded and stood."""
    taken_back = {record.document["deployment_id"] for record in _believed(seen) if _is_rollback(record.document)}
    refused: list[str] = []
    others: list[str] = []
    for record in reversed(seen):
        if record.doubt is not None:
            if record.deployment_id.endswith(f"-{commit[:6]}"):
                refused.append(f"{record.location} is not believed: {record.doubt}")
        elif _is_rollback(record.document):
            continue
        elif record.document.get("git_sha") != commit:
            others.append(str(record))
        elif reason := _against(record.document, taken_back, demanded, now):
            refused.append(f"{record}: {reason}")
        else:
            return Verdict(record)
    return Verdict(None, tuple(refused[:SHOWN]), tuple(others[:SHOWN]))


def _believed(seen: Iterable[Seen]) -> Iterable[Seen]:
    return (record for record in seen if record.doubt is None)


def _is_rollback(document: Document) -> bool:
    return history.kind_of(document) == ROLLBACK


def _against(document: Document, taken_back: set[str], demanded: StagingSettings, now: datetime) -> str | None:
    """Return why a believed record of the commit does not count, or None."""
    if flaw := history.schema_flaw(document):
        return f"it does not fit its schema: {flaw}"
    if document["status"] != "success":
        return "it did not succeed"
    if document["deployment_id"] in taken_back:
        return "it was taken back"
    if demanded.max_age is not None and now - datetime.fromisoformat(document["timestamp"]) > demanded.max_age:
        return f"it is older than {demanded.max_age.days} days"
    return None
