"""audit: gather what is known about vulnerabilities of the application's production packages. Another job judges it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.markdown import table
from azora_ci.core.settings import Deployment
from azora_ci.gates.audit import gate
from azora_ci.steps.job import Job


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment):
    """What audit reads."""


def run(job: Job[Settings]) -> None:
    """Leave the findings as evidence, whatever they are. Raises NotTrueError without a lock file, BadInputError, UnreachableError."""
    contexts = [service.context for service in job.config.services]
    evidence = gate.examine(Path.cwd(), job.config.validation.audit, contexts, processes=job.processes, clock=job.clock)
    job.evidence |= evidence
    rows = [
        (finding["severity"], f"{finding['package']} {finding['version']}", finding["id"], finding["title"], finding["fixed_in"])
        for finding in evidence["findings"]
    ]
    listed = table(("Severity", "Package", "Advisory", "Title", "Fixed in"), rows) if rows else "No advisory is known."
    files = table(("Lock file", "Production packages"), [(file["path"], file["packages"]) for file in evidence["lock_files"]])
    job.actions.summary(f"### Audit of {job.settings.version}\n\n{files}\n\n{listed}")
