"""The outcome of a rehearsal as a result document and as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.rehearsal.judge.deployment import within
from azora_ci.rehearsal.judge.evidence import Evidence, JobResult
from azora_ci.rehearsal.judge.load import LoadAnswer, counts

MARKS = {"success": "✓", "failure": "✗", "skipped": "–"}


@dataclass
class RehearsalOutcome:
    """The outcome of a rehearsal. ``findings`` is empty when the pipeline did what the scenario demands."""

    scenario: str
    broken: str
    seconds: float = 0.0
    jobs: dict[str, JobResult] = field(default_factory=dict)
    evidence: Evidence | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Say whether there is evidence and it led to no findings."""
        return self.evidence is not None and not self.findings

    def document(self) -> dict[str, Any]:
        """Return the content of ``rehearsal/result.json``; ``traffic`` maps bare versions to numbers of answers."""
        answers = self.evidence.answers if self.evidence else []
        return {
            "scenario": self.scenario,
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "jobs": {name: {"result": job.result, "seconds": job.seconds} for name, job in self.jobs.items()},
            "requests": len(answers),
            "failed_requests": sum(answer.failed for answer in answers),
            "traffic": counts(answers),
            "findings": self.findings,
        }


def periods(evidence: Evidence) -> dict[str, list[LoadAnswer]]:
    """Return period -> answers; the periods are: before the rollout, each of its stages, after it, after the rollback."""
    fragment = evidence.fragment("gradual-rollout")
    stages = fragment["evidence"].get("stages", []) if fragment else []
    if not stages:
        return {"without a rollout": evidence.answers}
    in_stages = {f"{stage['stage']} ({stage['traffic_percentage']} %)": within(evidence.answers, stage) for stage in stages}
    rollout = evidence.jobs.get("gradual-rollout")
    start, end = (rollout.started or 0.0, rollout.ended or float("inf")) if rollout else (0.0, float("inf"))
    earlier = [answer for answer in evidence.answers if answer.at < start]
    rollback = evidence.jobs.get("rollback")
    rollback_end = (rollback.ended if rollback else None) or float("inf")
    later = [answer for answer in evidence.answers if end < answer.at <= rollback_end]
    last = {"after the rollback": [answer for answer in evidence.answers if answer.at > rollback_end]} if rollback else {}
    return {"before the rollout": earlier, **in_stages, "after the rollout": later, **last}


def render(outcome: RehearsalOutcome, replaced: Mapping[str, Path], places: Iterable[tuple[str, Path]]) -> str:
    """Return the report for people: jobs, traffic, replaced actions, ``places`` (label, path), findings and verdict."""
    lines = ["", "job                            result      seconds", "-" * 50]
    lines += [f"{MARKS.get(job.result, '?')} {name:<28} {job.result:<10} {job.seconds:>8.1f}" for name, job in outcome.jobs.items()]
    if outcome.evidence is not None:
        lines += ["", *_traffic(outcome.evidence)]
    lines += ["", "actions replaced by local ones (azora_ci/rehearsal/actions):"]
    lines += [f"  {name.split('@')[0]}@{name.split('@')[1][:7]} -> {path.name}" for name, path in replaced.items()]
    lines += ["not exercised by act: environments and their reviewers, permissions, concurrency, OIDC", ""]
    lines += [f"{label:<10} {path}" for label, path in places]
    lines += ["", *(f"FINDING: {finding}" for finding in outcome.findings)]
    verdict = "the pipeline did what it must" if outcome.ok else f"{len(outcome.findings)} findings"
    mark = "✓" if outcome.ok else "✗"
    lines.append(f"{mark} {outcome.scenario}: {verdict}, {outcome.seconds:.0f} s (broken on purpose: {outcome.broken})")
    return "\n".join(lines)


def _traffic(evidence: Evidence) -> list[str]:
    versions = list(counts(evidence.answers))
    failed = sum(answer.failed for answer in evidence.answers)
    heads = [*versions, "failed"]
    lines = [f"{len(evidence.answers)} requests, {failed} failed", f"{'traffic':<24}" + "".join(f"{head:>10}" for head in heads)]
    for name, answers in periods(evidence).items():
        by_version = counts(answers)
        numbers = [*(by_version.get(version, 0) for version in versions), sum(answer.failed for answer in answers)]
        lines.append(f"  {name:<22}" + "".join(f"{number:>10}" for number in numbers))
    return lines
