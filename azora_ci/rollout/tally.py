"""Counts of a stage: its probes, what failed last, and what proved the version. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from azora_ci.health.answers import OLD, PROOF_NONE, PUBLIC, ProbeResult


@dataclass
class Tally:
    """Counts of a stage so far."""

    probes: int = 0
    failed: int = 0
    public: int = 0
    public_failed: int = 0
    synthetic: int = 0
    decisions: list[dict[str, Any]] = field(default_factory=list)  # one per tick, with the numbers on which it is based
    failures: dict[str, str] = field(default_factory=dict)  # endpoint -> its last failure
    proofs: dict[str, dict[str, str]] = field(default_factory=dict)  # service -> side -> what proved the version, at its weakest

    def add(self, findings: Iterable[ProbeResult], services: Collection[str]) -> None:
        """Add the findings of a tick. ``services``: ids of those with a route, of which it counts what proved their version."""
        for finding in findings:
            self.probes += 1
            self.failed += not finding.passed
            if finding.endpoint.side == PUBLIC:
                self.public += 1
                self.public_failed += not finding.passed
            if not finding.passed:
                self.failures[finding.endpoint.name] = finding.detail
            elif finding.endpoint.side != OLD and finding.endpoint.service in services:
                proofs = self.proofs.setdefault(finding.endpoint.service, {})
                side = "public" if finding.endpoint.side == PUBLIC else "instances"
                proofs[side] = PROOF_NONE if proofs.get(side) == PROOF_NONE else finding.version_proof

    def evidence(self) -> dict[str, Any]:
        """Return the counts as evidence of the stage."""
        return {
            "probes": {"total": self.probes, "failed": self.failed},
            "ticks": len(self.decisions),
            "decisions": self.decisions,
            "last_failures": dict(self.failures),
            "version_proof": {service: dict(proofs) for service, proofs in self.proofs.items()},
            "availability": round(1 - self.public_failed / self.public, 6) if self.public else 0.0,
            "synthetic_requests": self.synthetic,
        }
