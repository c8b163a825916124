"""What a report is made of, and where each part of it comes from. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.pipeline import ARTIFACTS
from azora_ci.core.release import artifact_suffix
from azora_ci.record.chain import Document
from azora_ci.record.fragments import Fragment


@dataclass(frozen=True, kw_only=True)
class Material:
    """A record with what is known beside it: verified fragments by job, where it is archived, and the record of its rollback.

    ``before``: the record of the last deployment that succeeded before; ``sql``: migration -> its text, whose SHA-256 a fragment names;
    ``next_steps``: what the failure report advises. Each part may be missing: then the report does not speak of it.
    """

    record: Document
    sha256: str
    location: str | None = None
    fragments: Mapping[str, Fragment] = field(default_factory=dict)
    rollback: Document | None = None
    before: Document | None = None
    sql: Mapping[str, str] = field(default_factory=dict)
    next_steps: Sequence[str] = ()

    @property
    def rollout(self) -> Document:
        """Return the evidence of gradual-rollout; {} without its fragment."""
        return self.evidence("gradual-rollout")

    def evidence(self, job: str) -> dict[str, Any]:
        """Return the evidence of a job; {} without its fragment."""
        return self.fragments[job].evidence if job in self.fragments else {}

    @property
    def stages(self) -> list[Document]:
        """Return the stages with their ticks from the fragment, or without ticks from the record."""
        return list(self.rollout.get("stages") or self.record["rollout_stages"])

    def place(self, job: str, pointer: str = "") -> Source:
        """Return where the fragment of a job lies; ``pointer``: to what is meant in it (RFC 6901)."""
        attempt = self.fragments[job].run_attempt if job in self.fragments else self.record["evidence"][job]["run_attempt"]
        suffix = artifact_suffix(self.record["deployment_id"], self.record["run_id"], attempt)
        return Source(f"{ARTIFACTS[job]}-{suffix}", job, pointer)

    def places(self, *jobs: str) -> list[Source]:
        """Return where the fragments of those jobs lie that left one."""
        return [self.place(job) for job in jobs if job in self.record["evidence"]]


@dataclass(frozen=True)
class Source:
    """Where evidence lies: an artifact, the job that wrote it, and a pointer into its fragment.

    Artifacts lie beside each other both in the archive and where a run's artifacts were downloaded, so links between them are relative.
    """

    artifact: str
    job: str
    pointer: str = ""

    @property
    def fragment(self) -> str:
        """Return the path of the fragment, from the folder in which the artifacts lie."""
        return f"{self.artifact}/record/{self.job}.json"

    @property
    def log(self) -> str:
        """Return the path of the job's log."""
        return f"{self.artifact}/{self.job}.log"

    @property
    def href(self) -> str:
        """Return the link from the report, which lies in an artifact itself."""
        return f"../{self.fragment}" + (f"#{self.pointer}" if self.pointer else "")


# Record's field -> jobs in whose fragments its values lie. No job: it is of the run itself, of the archive, or follows from other fields.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "version": ("validate-release",),
    "deployment_id": ("validate-release",),
    "git_sha": ("validate-release",),
    "git_ref": ("validate-release",),
    "trigger": ("validate-release",),
    "commit_time": ("validate-release",),
    "calendar": ("pre-deployment-validation",),
    "emergency": ("pre-deployment-validation",),
    "staging": ("pre-deployment-validation",),
    "checks": ("pre-deployment-validation",),
    "approval": ("pre-deployment-validation",),
    "audit": ("pre-deployment-validation",),
    "commands": ("pre-deployment-validation",),
    "database_backup": ("database-backup",),
    "code_rollback_safe": ("database-backup",),
    "migrations_applied": ("database-migrations",),
    "migration_tool": ("database-migrations",),
    "migrations": ("database-migrations", "database-backup"),
    "artifact_kind": ("build-and-push",),
    "build_isolation": ("build-and-push",),
    "image_digests": ("build-and-push",),
    "services_deployed": ("gradual-rollout",),
    "previous_deployment_id": ("gradual-rollout",),
    "previous_version": ("gradual-rollout",),
    "rollout_stages": ("gradual-rollout",),
    "rollout": ("gradual-rollout", "smoke-tests"),
    "version_proof": ("gradual-rollout",),
    "rollback_available": ("gradual-rollout", "smoke-tests"),
    "rollback_warm_until": ("gradual-rollout",),
    "health_checks": ("smoke-tests",),
    "smoke_tests": ("smoke-tests",),
    "host_keys": ("gradual-rollout", "database-migrations", "database-backup"),
    "override_reasons": (
        "validate-release", "pre-deployment-validation", "database-backup", "database-migrations", "gradual-rollout",
    ),
}  # fmt: skip
