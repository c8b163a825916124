"""What a rehearsal says at its end: the result document and the table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.rehearsal.evidence import JobSeen, Seen
from azora_ci.rehearsal.load import Answer, counts
from azora_ci.rehearsal.verify import within

MARKS = {"success": "✓", "failure": "✗", "skipped": "–"}


@dataclass
class Outcome:
    """The outcome of a rehearsal. ``findings`` is empty when the pipeline did what the scenario demands."""

    scenario: str
    broken: str
    seconds: float = 0.0
    jobs: dict[str, JobSeen] = field(default_factory=dict)
    seen: Seen | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Say whether there are no findings and there was something to judge."""
        return self.seen is not None and not self.findings

    def document(self) -> dict[str, Any]:
        """Return ``rehearsal/result.json``: seconds are seconds, traffic counts answers by bare version."""
        answers = self.seen.answers if self.seen else []
        return {
            "scenario": self.scenario,
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "jobs": {name: {"result": one.result, "seconds": one.seconds} for name, one in self.jobs.items()},
            "requests": len(answers),
            "failed_requests": sum(one.failed for one in answers),
            "traffic": counts(answers),
            "findings": self.findings,
        }


def periods(seen: Seen) -> dict[str, list[Answer]]:
    """Return the answers by what the rollout was doing: before it, each stage, after it."""
    fragment = seen.fragment("gradual-rollout")
    stages = fragment["evidence"].get("stages", []) if fragment else []
    if not stages:
        return {"without a rollout": seen.answers}
    found = {f"{one['stage']} ({one['traffic_percentage']} %)": within(seen.answers, one) for one in stages}
    rollout = seen.jobs.get("gradual-rollout")
    start, end = (rollout.started or 0.0, rollout.ended or float("inf")) if rollout else (0.0, float("inf"))
    before = [one for one in seen.answers if one.at < start]
    back = seen.jobs.get("rollback")
    gone = (back.ended if back else None) or float("inf")
    after = [one for one in seen.answers if end < one.at <= gone]
    taken_back = {"after the rollback": [one for one in seen.answers if one.at > gone]} if back else {}
    return {"before the rollout": before, **found, "after the rollout": after, **taken_back}


def render(outcome: Outcome, replaced: Mapping[str, Path], places: Iterable[tuple[str, Path]]) -> str:
    """Return the table."""
    lines = ["", "job                            result      seconds", "-" * 50]
    lines += [f"{MARKS.get(one.result, '?')} {name:<28} {one.result:<10} {one.seconds:>8.1f}" for name, one in outcome.jobs.items()]
    if outcome.seen is not None:
        lines += ["", *_traffic(outcome.seen)]
    lines += ["", "actions replaced by local ones (azora_ci/rehearsal/actions):"]
    lines += [f"  {name.split('@')[0]}@{name.split('@')[1][:7]} -> {path.name}" for name, path in replaced.items()]
    lines += ["not exercised by act: environments and their reviewers, permissions, concurrency, OIDC", ""]
    lines += [f"{what:<10} {path}" for what, path in places]
    lines += ["", *(f"FINDING: {one}" for one in outcome.findings)]
    verdict = "the pipeline did what it must" if outcome.ok else f"{len(outcome.findings)} findings"
    mark = "✓" if outcome.ok else "✗"
    lines.append(f"{mark} {outcome.scenario}: {verdict}, {outcome.seconds:.0f} s (broken on purpose: {outcome.broken})")
    return "\n".join(lines)


def _traffic(seen: Seen) -> list[str]:
    versions = list(counts(seen.answers))
    failed = sum(one.failed for one in seen.answers)
    lines = [
        f"{len(seen.answers)} requests, {failed} failed",
        f"{'traffic':<24}" + "".join(f"{one:>10}" for one in versions) + f"{'failed':>10}",
    ]
    for name, answers in periods(seen).items():
        found = counts(answers)
        lines.append(
            f"  {name:<22}" + "".join(f"{found.get(one, 0):>10}" for one in versions) + f"{sum(one.failed for one in answers):>10}"
        )
    return lines
