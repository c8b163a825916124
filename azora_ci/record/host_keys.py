"""Host keys that the last deployment recorded. A host must present its recorded key when no key is pinned.

Only jobs with credentials for the archive read it: pre-deployment-validation, whose fragment passes the keys on to the jobs that
connect, and a rollback. A person at a keyboard who has the credentials reads it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci.clients.ssh.host_keys import lines_of
from azora_ci.core import pipeline
from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import NotTrueError
from azora_ci.core.settings import PinnedHostKeys
from azora_ci.record.archive import Archive
from azora_ci.record.chain import doubts
from azora_ci.record.fragments import Fragments


@dataclass(frozen=True)
class RecordedHostKeys:
    """Host keys of an archived record: the record's URL, the SHA-256 of its bytes, and the keys as evidence."""

    location: str
    sha256: str
    host_keys: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """Return location, hash and keys as evidence."""
        return {"location": self.location, "sha256": self.sha256, "host_keys": self.host_keys}

    @property
    def known_hosts(self) -> str:
        """Return the keys as the text of a known_hosts file."""
        return lines_of(self.host_keys)


def newest(archive: Archive) -> RecordedHostKeys | None:
    """Return the host keys of the newest record that has some, or None. Raises NotTrueError when that record cannot be trusted."""
    archived = archive.newest_with("host_keys")
    if archived is None:
        return None
    location = archive.bucket.url(archived.key)
    chain, index = archive.around(archived.key)
    problems = doubts([link.data for link in chain], index, [number for number, link in enumerate(chain) if link.flaw])
    if problems:
        raise NotTrueError(
            "The record cannot be believed",
            what="\n".join(problems),
            where=location,
            next_step="find out who changed the archive; to go on without it, pin the host keys: PROD_KNOWN_HOSTS",
        )
    return RecordedHostKeys(location, archived.sha256, archived.document["host_keys"])


def of_this_deployment(fragments: Fragments) -> str:
    """Return the host keys in the fragments of a deployment's earlier jobs, as the text of a known_hosts file; empty without keys.

    These are the keys that an earlier deployment recorded, and those that this deployment's own jobs saw since. A first deployment has
    only the latter.
    """
    validation = fragments.find("pre-deployment-validation")
    recorded = validation.evidence.get("recorded_host_keys") if validation is not None else None
    lines = [lines_of(recorded["host_keys"])] if recorded else []
    connected = map(fragments.find, pipeline.CONNECTING_JOBS)
    lines += [lines_of(fragment.evidence.get("host_keys", ())) for fragment in connected if fragment is not None]
    return "".join(lines)


def for_run(settings: PinnedHostKeys, fragments: Fragments, archive: Archive | None) -> str:
    """Return the host keys of this deployment's earlier jobs, else those of the archive when there is one; empty when keys are pinned.

    The text is that of a known_hosts file. Raises the errors of ``newest`` and of ``Fragments.find``.
    """
    if settings.prod_known_hosts:
        return ""
    return of_this_deployment(fragments) or (of_archive(archive) if archive else "")


def are_needed(settings: PinnedHostKeys, config: DeployConfig, *, by_target: bool) -> bool:
    """Say whether recorded keys are used: the job connects to hosts, of the target or for the database, and no key is pinned."""
    return settings.prod_known_hosts is None and (by_target or config.database.via_ssh)


def of_record(document: Mapping[str, Any]) -> str:
    """Return the host keys of a record that fits its schema as the text of a known_hosts file; empty when it has none."""
    return lines_of(document["host_keys"])


def of_archive(archive: Archive) -> str:
    """Return the newest record's host keys as the text of a known_hosts file; empty when none are recorded."""
    recorded = newest(archive)
    return recorded.known_hosts if recorded else ""
