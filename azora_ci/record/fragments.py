"""Record fragments: one per job, validated by the writer and by every reader, and bound to its job by an output of that job."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from azora_ci.core import pipeline, schemas
from azora_ci.core.documents import LIMITS
from azora_ci.core.errors import NotTrueError
from azora_ci.core.release import artifact_suffix
from azora_ci.record.needs import Need

SCHEMA_VERSION = 1
OUTPUT = "fragment-sha256"  # of a job: the SHA-256 of the bytes of its fragment


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


def write(fragment: Fragment, log_dir: Path) -> str:
    """Validate a fragment, write it to ``<log_dir>/record/<job>.json`` by one rename, return its SHA-256. Raises BadInputError."""
    document = fragment.document()
    path = log_dir / "record" / f"{fragment.job}.json"
    schemas.validate(document, f"fragment-{fragment.job}", where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.part")
    data = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    temporary.write_bytes(data)
    temporary.replace(path)
    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> Fragment:
    """Return the fragment in a file, validated. Raises NotTrueError for a link or a too large file, BadInputError for its content."""
    return _parse(_bytes_of(path), path)


def _bytes_of(path: Path) -> bytes:
    """Return the content of a plain file that is reached through no link below its artifact's folder. Raises NotTrueError."""
    for part in (path.parent.parent, path.parent, path):
        if part.is_symlink():
            raise _unusable(path, f"{part.name} is a link")
    if not path.is_file():
        raise _unusable(path, "it is not a plain file")
    with path.open("rb") as file:
        data = file.read(LIMITS.size + 1)
    if len(data) > LIMITS.size:
        raise _unusable(path, f"it has more than {LIMITS.size} bytes")
    return data


def _unusable(path: Path, what: str) -> NotTrueError:
    return NotTrueError(
        "Fragment cannot be used", what=what, where=str(path), next_step="find out who put it there; a job writes a plain file"
    )


def _parse(data: bytes, path: Path) -> Fragment:
    return Fragment(**schemas.read(data, f"fragment-{path.stem}", where=str(path)))


class Fragments:
    """The fragments of the jobs that ours needs, in the folder into which their artifacts were downloaded.

    A fragment counts when the output ``fragment-sha256`` of its job names it, and it is of this run, of this deployment, and of an
    attempt not later than ours. Our process sets that output after the last command of the job has ended. What else lies in the folder
    is never evidence.
    """

    def __init__(self, folder: Path, needs: Mapping[str, Need], *, deployment_id: str | None, run_id: str, run_attempt: int) -> None:
        self._folder = folder
        self._needs = needs
        self._deployment_id = deployment_id
        self._run_id = run_id
        self._run_attempt = run_attempt

    def find(self, job: str) -> Fragment | None:
        """Return the verified fragment of a job; None when ours does not need it, or when it did not succeed and none can be verified.

        Raises NotTrueError for a job that succeeded without a fragment that can be verified, and BadInputError for an invalid one.
        """
        if job not in self._needs:
            return None
        try:
            return self.verified(job)
        except NotTrueError:
            if self._needs[job].result == "success":
                raise
            return None

    def require(self, job: str) -> Fragment:
        """Return the verified fragment of a job, which must have succeeded. Raises NotTrueError, BadInputError."""
        fragment = self.verified(job)
        result = self._needs[job].result
        if fragment.status != "ok" or result != "success":
            raise NotTrueError(
                f"{job} did not succeed",
                what=f"its fragment (attempt {fragment.run_attempt}) says {fragment.status}, its result is {result}",
                where=str(self._folder),
                next_step=f"correct what {job} reports and run it again",
            )
        return fragment

    def verified(self, job: str) -> Fragment:
        """Return the fragment that a job's output names. Raises NotTrueError when none can be verified, BadInputError for a bad one."""
        return self._verify(job)[0]

    def folder(self, job: str) -> Path:
        """Return the folder of the artifact that holds the verified fragment of a job. Raises the errors of ``verified``.

        Only the fragment is verified: other files of the artifact count when the fragment gives their SHA-256.
        """
        return self._verify(job)[1].parent.parent

    def unverified(self, path: Path) -> Fragment:
        """Return the fragment in one of ``places`` though no output names it. Raises NotTrueError when it is not of this run."""
        fragment = read(path)
        self._require_ours(fragment, path)
        return fragment

    def places(self, job: str) -> list[Path]:
        """Return where a fragment of a job lies, latest attempt first: in the job's own artifact, or at the root.

        actions/download-artifact unpacks a single artifact right into the folder, and several into a folder each.
        """
        name = f"{pipeline.ARTIFACTS[job]}-{artifact_suffix(self._deployment_id, self._run_id, 1)}"
        attempts = {1: self._folder / name}
        for later in self._folder.glob(f"{name}-attempt-*"):
            number = later.name.removeprefix(f"{name}-attempt-")
            if re.fullmatch("[1-9][0-9]{0,8}", number) and 1 < int(number) <= self._run_attempt:
                attempts[int(number)] = later
        folders = [*(attempts[number] for number in sorted(attempts, reverse=True)), self._folder]
        places = [folder / "record" / f"{job}.json" for folder in folders]
        return [path for path in places if path.exists() or path.is_symlink()]

    def _verify(self, job: str) -> tuple[Fragment, Path]:
        if job not in self._needs:
            raise _no_evidence(
                job,
                "it is not among the jobs in NEEDS",
                "NEEDS, which is toJSON(needs)",
                "run the job in the workflow; to replay it, set NEEDS as the files of a kept rehearsal do (rehearsal/env)",
            )
        sha256 = self._needs[job].outputs.get(OUTPUT, "")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise _no_evidence(
                job,
                f"the job ({self._needs[job].result}) gave no output {OUTPUT}, so nobody vouches for a fragment",
                f"outputs of {job}",
                f"look whether its last step was killed, then re-run {job} and all that follows it. GitHub drops an output that contains a "
                "masked value: a short secret such as ec2 can mask hex digits, so make it longer, or keep it as a variable",
            )
        path = self._named(job, sha256)
        fragment = _parse(_bytes_of(path), path)
        self._require_ours(fragment, path)
        return fragment, path

    def _named(self, job: str, sha256: str) -> Path:
        """Return the place of the fragment that has this SHA-256. Raises NotTrueError with what lies there instead."""
        reasons = []
        for path in self.places(job):
            try:
                if (other := hashlib.sha256(_bytes_of(path)).hexdigest()) == sha256:
                    return path
                reasons.append(f"{path} has SHA-256 {other}")
            except NotTrueError as error:
                reasons.append(f"{path}: {error.what}")
        raise _no_evidence(
            job,
            f"the job's own output names the fragment with SHA-256 {sha256}. "
            + ("; ".join(reasons) or f"No record/{job}.json of its artifact was received"),
            str(self._folder),
            f"find out what changed the artifact of {job} if something did; re-run {job} and all that follows it"
            if reasons
            else f"download the artifact of {job} into RECEIVED_ARTIFACTS_DIR, or re-run {job} and all that follows it",
        )

    def _require_ours(self, fragment: Fragment, path: Path) -> None:
        others = []
        if fragment.job != path.stem:
            others.append(f"job {fragment.job}")
        if fragment.run_id != self._run_id:
            others.append(f"run {fragment.run_id}, this is run {self._run_id}")
        if fragment.run_attempt > self._run_attempt:
            others.append(f"attempt {fragment.run_attempt}, this is attempt {self._run_attempt}")
        if self._deployment_id is not None and fragment.deployment_id != self._deployment_id:
            others.append(f"deployment {fragment.deployment_id}, this is deployment {self._deployment_id}")
        if others:
            raise _no_evidence(
                path.stem, f"the fragment is of {'; of '.join(others)}", str(path), "find out who put it there; re-run all jobs"
            )


def _no_evidence(job: str, what: str, where: str, next_step: str) -> NotTrueError:
    return NotTrueError(f"No evidence of {job}", what=what, where=where, next_step=next_step)
