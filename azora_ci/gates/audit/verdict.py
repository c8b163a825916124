"""The verdict on what an audit found: which findings close the gate, which an exception allows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from azora_ci.core.config import AuditException

SEVERITIES = ("info", "low", "moderate", "high", "critical")  # mildest first
NO_LEVEL = "none"


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a locked package. ``id``: GHSA-…, or the registry's number; ``fixed_in`` None: no version is named."""

    package: str
    version: str
    severity: str  # one of SEVERITIES
    id: str
    title: str
    url: str
    fixed_in: str | None
    lock_file: str

    def document(self) -> dict[str, Any]:
        """Return the finding as evidence."""
        return asdict(self)

    def __str__(self) -> str:
        remedy = f"fixed in {self.fixed_in}" if self.fixed_in else "no fixed version is named"
        return f"{self.severity}: {self.package} {self.version}, {self.title} ({self.id}), {remedy}"


@dataclass(frozen=True)
class AuditVerdict:
    """Findings by what becomes of them, worst first, and the exceptions that are expired or allow nothing."""

    closing: tuple[Finding, ...]
    excepted: tuple[Finding, ...]
    tolerated: tuple[Finding, ...]  # milder than the level
    expired: tuple[AuditException, ...]
    unused: tuple[AuditException, ...]

    @property
    def passed(self) -> bool:
        """Return whether the gate is open."""
        return not self.closing and not self.expired


def judge(findings: Iterable[Finding], level: str, exceptions: Iterable[AuditException], today: date) -> AuditVerdict:
    """Return the verdict. ``level``: the mildest severity that closes the gate, or ``none``: then no finding does.

    An expired exception closes the gate whether or not its advisory is still found. Raises ValueError for an unknown level.
    """
    exceptions = tuple(exceptions)
    valid = {exception.id for exception in exceptions if exception.expires >= today}
    if level not in {*SEVERITIES, NO_LEVEL}:
        raise ValueError(f"{level!r} is no level of an audit")
    limit = len(SEVERITIES) if level == NO_LEVEL else SEVERITIES.index(level)
    ordered = sorted(findings, key=lambda finding: (-SEVERITIES.index(finding.severity), finding.package, finding.version, finding.id))
    severe = [finding for finding in ordered if SEVERITIES.index(finding.severity) >= limit]
    found_ids = {finding.id for finding in severe}
    return AuditVerdict(
        closing=tuple(finding for finding in severe if finding.id not in valid),
        excepted=tuple(finding for finding in severe if finding.id in valid),
        tolerated=tuple(finding for finding in ordered if finding not in severe),
        expired=tuple(exception for exception in exceptions if exception.expires < today),
        unused=tuple(exception for exception in exceptions if exception.id in valid and exception.id not in found_ids),
    )
