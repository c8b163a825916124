"""The gate of the audit: ``examine`` gathers the evidence, ``close`` judges it. They may run in different jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import AuditSettings
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.process import Processes
from azora_ci.gates.audit import lock_files
from azora_ci.gates.audit.advisories import Registry
from azora_ci.gates.audit.verdict import NO_LEVEL, AuditVerdict, Finding, judge

EVIDENCE = ("registry", "lock_files", "findings")
MOST_ANNOTATIONS = 8  # of each kind: GitHub shows 10 in a step, and the job's own error is one of them


def examine(repository: Path, settings: AuditSettings, contexts: Iterable[Path], *, processes: Processes, clock: Clock) -> dict[str, Any]:
    """Return what is known about the production packages of a repository, as evidence. No code of the repository runs.

    ``contexts``: the folders that services are built from. Raises NotTrueError when there is no lock file, BadInputError for one that
    cannot be read, UnreachableError.
    """
    if settings.level == NO_LEVEL:
        processes.log.say(f"- no audit: validation.audit.level is none, {settings.reason}")
        return {"registry": None, "lock_files": [], "findings": []}
    files = lock_files.find(repository, contexts)
    url = settings.registry or _registry_of_npm(processes)
    findings = Registry(url, clock, processes.log.say).findings(files)
    described = []
    for file in files:
        left_out = [{"name": name, "reason": reason} for name, reason in file.locked.left_out.items()]
        described.append({"path": file.path, "manager": file.manager, "packages": len(file.locked.packages), "left_out": left_out})
        number = len({finding.id for finding in findings if finding.lock_file == file.path})
        processes.log.say(f"{file.path} ({file.manager}): {len(file.locked.packages)} production packages, {number} advisories")
    return {"registry": url, "lock_files": described, "findings": [finding.document() for finding in findings]}


def _registry_of_npm(processes: Processes) -> str:
    """Return the registry that npm uses on this machine. It runs in an empty folder: a repository's .npmrc has no say."""
    with TemporaryDirectory() as folder:
        completed = processes.run(("npm", "config", "get", "registry"), cwd=Path(folder), timeout=60, check=False, echo=False)
    url = completed.stdout.strip().rstrip("/")
    if completed.returncode != 0 or not url.startswith(("https://", "http://")):
        raise BadInputError(
            "No registry to ask",
            what=f"npm config get registry: {completed.stdout.strip()[:200] or completed.stderr.strip()[:500] or '(nothing)'}",
            where="npm on this machine",
            next_step="name the registry in validation.audit.registry",
        )
    return url


def recorded(evidence: Mapping[str, Any], settings: AuditSettings, *, reported: bool) -> dict[str, Any]:
    """Return the evidence with what judged it. ``reported``: another job gathered it, which this one takes at its word."""
    exceptions = [{"id": entry.id, "reason": entry.reason, "expires": entry.expires.isoformat()} for entry in settings.exceptions]
    judged_by = {"level": settings.level, "reason": settings.reason, "exceptions": exceptions}
    return {"source": "reported" if reported else "observed", **judged_by, **{name: evidence[name] for name in EVIDENCE}}


def close(evidence: Mapping[str, Any], settings: AuditSettings, today: date, *, actions: Actions, say: Callable[[str], None]) -> None:
    """Judge the evidence of ``examine`` and annotate the lock files. Raises NotTrueError when the gate is closed."""
    if settings.level != NO_LEVEL and not evidence["lock_files"]:
        raise NotTrueError(
            "No audit was made",
            what=f"validation.audit.level is {settings.level} here, and none where the audit ran",
            where="evidence of the job audit",
            next_step="release from a commit whose configuration has this level, too",
        )
    verdict = judge((Finding(**document) for document in evidence["findings"]), settings.level, settings.exceptions, today)
    _annotate(evidence, verdict, settings, actions)
    if not verdict.passed:
        lines = [f"{finding}, {finding.lock_file} {finding.url}" for finding in verdict.closing]
        lines += [f"expired exception: {exception}" for exception in verdict.expired]
        raise NotTrueError(
            "The audit closes the gate",
            what=f"{len(verdict.closing)} findings of level {settings.level} or worse, {len(verdict.expired)} expired exceptions\n"
            + "\n".join(lines[:50]),
            where=", ".join(sorted({finding.lock_file for finding in verdict.closing})) or "validation.audit.exceptions",
            next_step="update the packages and release a new version; where no fix exists, add an exception with reason and expiry date "
            "to validation.audit.exceptions, and remove or renew expired ones",
        )
    if settings.level != NO_LEVEL:
        number = sum(file["packages"] for file in evidence["lock_files"])
        beside = f"; {len(verdict.excepted)} excepted, {len(verdict.tolerated)} milder" if verdict.excepted or verdict.tolerated else ""
        say(f"✓ {evidence['registry']} knows no advisory of level {settings.level} or worse for {number} production packages{beside}")


def _annotate(evidence: Mapping[str, Any], verdict: AuditVerdict, settings: AuditSettings, actions: Actions) -> None:
    for finding in verdict.closing[:MOST_ANNOTATIONS]:
        actions.error(f"{finding.package} {finding.version} is vulnerable", f"{finding} {finding.url}", file=finding.lock_file)
    warnings = [(f"{finding.package} {finding.version} is excepted", str(finding), finding.lock_file) for finding in verdict.excepted]
    warnings += [
        (f"{entry['name']} is not audited", entry["reason"], file["path"]) for file in evidence["lock_files"] for entry in file["left_out"]
    ]
    for title, text, file in warnings[:MOST_ANNOTATIONS]:
        actions.warning(title, text, file=file)
    if verdict.unused:
        names = ", ".join(exception.id for exception in verdict.unused)
        actions.warning(
            "Exceptions of the audit allow nothing", f"no finding of level {settings.level} or worse has the id {names}: remove them"
        )
    if settings.level == NO_LEVEL:
        actions.warning("Packages are not audited", f"validation.audit.level is none: {settings.reason}")


def row(evidence: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the audit as a row of the summary: name, source, result."""
    if evidence["registry"] is None:
        return "audit", "configuration", "not audited"
    packages = sum(file["packages"] for file in evidence["lock_files"])
    files = ", ".join(file["path"] for file in evidence["lock_files"])
    return "audit", files, f"{packages} production packages, {len(evidence['findings'])} findings"


def require_registry(asked: str | None, demanded: AuditSettings, where: str) -> None:
    """Raise NotTrueError when the tagged commit had another registry asked than the default branch demands."""
    if demanded.level != NO_LEVEL and asked != demanded.registry:
        raise NotTrueError(
            "Another registry was asked",
            what=f"validation.audit.registry is {asked or 'unset'} in the tag and {demanded.registry or 'unset'} on the default branch",
            where=where,
            next_step="release a commit that names the registry of the default branch",
        )
