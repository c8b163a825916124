"""The facts of a record that no fragment holds: the run of the workflow, and the records before this one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Previous:
    """Earlier records in the archive: SHA-256 and URL of the newest record, and id and version of the last deployment that succeeded.

    ``set_aside``: a line for each object that lay among them and is no record.
    """

    record_sha256: str | None = None
    deployment_id: str | None = None
    version: str | None = None
    set_aside: tuple[str, ...] = ()
    record_location: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkflowRun:
    """One attempt of a run of the workflow: its id and address, the person who started it, the repository, the environment it changes."""

    id: str
    url: str
    attempt: int
    actor: str
    repository: str | None
    environment: str


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Facts of a deployment's record that no fragment holds. ``previous`` comes from the archive, ``signed_by`` from the configuration,
    the rest from the run's settings."""

    run: WorkflowRun
    deployment_id: str
    version: str | None
    git_sha: str | None
    rollback_window_minutes: int
    artifacts_location: str | None
    previous: Previous = Previous()
    signed_by: str = "none"
