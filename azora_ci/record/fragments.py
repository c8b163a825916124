"""Record fragments: one per job, validated by the writer and by every reader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import schemas
from azora_ci.core.errors import BadInputError, NotTrueError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Fragment:
    """The evidence that one attempt of one job left. Times are RFC 3339 in UTC."""

    job: str
    deployment_id: str | None
    version: str | None
    git_sha: str | None
    run_id: str
    run_attempt: int
    status: str  # ok | failed | cancelled
    started_at: str
    ended_at: str
    evidence: dict[str, Any]
    error: dict[str, Any] | None = None  # exit_code, title, what, where, next
    schema_version: int = SCHEMA_VERSION

    def document(self) -> dict[str, Any]:
        """Return the fragment as its JSON document."""
        return asdict(self)


def write(fragment: Fragment, log_dir: Path) -> Path:
    """Validate a fragment and write it to ``<log_dir>/record/<job>.json`` by one rename. Raises BadInputError."""
    document = fragment.document()
    path = log_dir / "record" / f"{fragment.job}.json"
    schemas.validate(document, f"fragment-{fragment.job}", where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(path: Path) -> Fragment:
    """Return the fragment in a file, validated. Raises BadInputError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(
            "Fragment is not JSON", what=str(error), where=str(path), next_step="run the job that wrote it again"
        ) from error
    schemas.validate(document, f"fragment-{path.stem}", where=str(path))
    return Fragment(**document)


class Fragments:
    """The fragments that earlier jobs left, anywhere below ``folders``, where their artifacts are unpacked."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders

    def every(self, job: str) -> list[Fragment]:
        """Return all fragments of a job, with any deployment id. Raises BadInputError for an invalid fragment."""
        paths = {path.resolve() for folder in self._folders for path in folder.glob(f"**/record/{job}.json")}
        return list(map(read, sorted(paths)))

    def newest(self, job: str, deployment_id: str | None) -> Fragment | None:
        """Return the newest fragment of a job with this deployment id (highest attempt, then latest end), or None."""
        candidates = [fragment for fragment in self.every(job) if fragment.deployment_id == deployment_id]
        return max(candidates, key=lambda fragment: (fragment.run_attempt, fragment.ended_at), default=None)

    def require(self, job: str, deployment_id: str) -> Fragment:
        """Return the newest fragment of a job, which must be ``ok``. Raises NotTrueError."""
        fragment = self.newest(job, deployment_id)
        folders = ", ".join(map(str, self._folders))
        if fragment is None:
            raise NotTrueError(
                f"No evidence of {job}",
                what=f"no record/{job}.json with deployment id {deployment_id} was found",
                where=folders,
                next_step=f"download the artifact of {job} into RECEIVED_ARTIFACTS_DIR, or run that job first",
            )
        if fragment.status != "ok":
            raise NotTrueError(
                f"{job} did not succeed",
                what=f"its newest fragment (attempt {fragment.run_attempt}) says {fragment.status}",
                where=folders,
                next_step=f"correct what {job} reports and run it again",
            )
        return fragment
