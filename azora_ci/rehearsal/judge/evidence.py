"""Gather evidence about a rehearsal from outside the pipeline.

The evidence: answers that the load got, fresh answers of health endpoints, rows of the database, objects of the bucket, Slack messages,
artifacts. The module imports none of the steps and decisions that are judged by this evidence.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from azora_ci.rehearsal.judge.load import LoadAnswer, version_in

FRESH_REQUESTS = 12  # to each health endpoint after the run
# Beside the counter of a cluster Envoy has those of its requests' origins, which are parts of it.
_COMPLETED = re.compile(r"^cluster\.(\S+?)(?<!\.external)(?<!\.internal)(?<!\.canary)\.upstream_rq_completed: ([0-9]+)", re.MULTILINE)
TRAILER = b"-- PostgreSQL database dump complete"


@dataclass(frozen=True)
class JobResult:
    """What act reported about a job: result (success, failure, skipped), duration in seconds, start and end (epoch seconds)."""

    result: str
    seconds: float = 0.0
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Dump:
    """A stored backup, read completely: whether it has pg_dump's last line, and the number of rows by table."""

    complete: bool
    rows: dict[str, int]


@dataclass(frozen=True)
class RolloutFacts:
    """A Rollout at rest or not. ``stable``, ``newest`` and the keys of ``ready`` (number of ready pods) are bare versions, as their pods
    were told; ``weight``: percent of traffic that the status gives the newest; ``selected``: Service -> deployment id of its pods.
    """

    name: str
    phase: str
    message: str
    aborted: bool
    stable: str
    newest: str
    weight: int | None
    ready: Mapping[str, int]
    selected: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All evidence of a rehearsal; ``Rehearsal`` gathers it with the functions below."""

    jobs: dict[str, JobResult]
    answers: list[LoadAnswer] = field(default_factory=list)
    fresh: dict[str, dict[str, int]] = field(default_factory=dict)  # health path -> "<status> <version>" -> answers
    serving: dict[str, int] = field(default_factory=dict)  # cluster of the edge -> fresh requests that it answered
    fault_observed: bool = False  # a request through the edge got the new version's error once the fault was set
    messages: list[str] = field(default_factory=list)
    artifacts: dict[str, list[str]] = field(default_factory=dict)  # artifact -> its files
    documents: dict[str, Any] = field(default_factory=dict)  # "<artifact>/<file>" -> JSON document
    objects: dict[str, bytes] = field(default_factory=dict)  # key -> content; of backups only the key
    dumps: dict[str, Dump] = field(default_factory=dict)
    migrations: dict[str, bool] = field(default_factory=dict)  # name -> finished
    rows_before: int = 0
    leaks: list[str] = field(default_factory=list)  # where a secret was found
    summaries: dict[str, str] = field(default_factory=dict)  # job -> the step summary that the run's page shows
    deployments: dict[str, list[str]] = field(default_factory=dict)  # our deployment id -> states of GitHub's deployment, oldest first
    plain_messages: int = 0  # messages that Slack got without blocks
    instance_starts: dict[str, set[float]] = field(default_factory=dict)  # path -> start of each instance behind it (epoch seconds)
    rollouts: tuple[RolloutFacts, ...] = ()  # of a Kubernetes cluster
    lost_at: float | None = None  # when the machine that deploys vanished (epoch seconds)
    silence_noticed: float | None = None  # seconds from the controller's end to the line in the job's log that says so

    def fragment(self, job: str, *, attempt: int | None = None) -> dict[str, Any] | None:
        """Return a job's newest fragment in the artifacts (of ``attempt``, if given); None without any."""
        fragments = [fragment for name, fragment in self.documents.items() if name.endswith(f"/record/{job}.json")]
        fragments = [fragment for fragment in fragments if attempt is None or fragment.get("run_attempt") == attempt]
        return max(fragments, key=lambda fragment: (fragment.get("run_attempt", 0), str(fragment.get("ended_at"))), default=None)


def fresh_answers(base_url: str, paths: Mapping[str, str], requests: int = FRESH_REQUESTS) -> dict[str, dict[str, int]]:
    """Request each path ``requests`` times, each time on a new connection; return path -> ``<status> <version>`` -> answers.

    ``paths``: path -> source of its version, see ``version_in``.
    """
    answers: dict[str, dict[str, int]] = {}
    for path, source in paths.items():
        counts: dict[str, int] = {}
        for _ in range(requests):
            label = ask(base_url + path, source=source)
            counts[label] = counts.get(label, 0) + 1
        answers[path] = counts
    return answers


def instance_starts(base_url: str, paths: Iterable[str], requests: int = FRESH_REQUESTS) -> dict[str, set[float]]:
    """Request each path ``requests`` times; return path -> start times that the answering instances report (epoch seconds)."""
    starts: dict[str, set[float]] = {path: set() for path in paths}
    for path, moments in starts.items():
        for _ in range(requests):
            with suppress(OSError, ValueError), urlopen(base_url + path, timeout=10) as response:  # noqa: S310 - the rehearsal's edge
                moments.add(float(response.headers.get("x-azora-started", "it does not say")))
    return starts


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a server that listens on a socket file."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=10)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def served(admin_socket: Path) -> dict[str, int]:
    """Return how many requests each of the edge's clusters has completed, from Envoy's statistics."""
    with closing(_UnixConnection(admin_socket)) as connection:
        connection.request("GET", "/stats?filter=upstream_rq_completed")
        statistics = connection.getresponse().read().decode()
    return {name: int(number) for name, number in _COMPLETED.findall(statistics)}


def ask(url: str, headers: Mapping[str, str] | None = None, source: str = "answer") -> str:
    """Request a URL and return ``<status> <version>`` of the answer, or ``0 <error>`` without an answer."""
    request = Request(url, headers=dict(headers or {}))  # noqa: S310 - the rehearsal's edge on loopback
    try:
        with urlopen(request, timeout=10) as response:  # noqa: S310 - likewise
            return f"{response.status} {version_in(response.read(), response.headers, source)}"
    except HTTPError as error:
        return f"{error.code} {version_in(error.read(), error.headers, source)}"
    except OSError as error:
        return f"0 {type(error).__name__}"


def messages(log: Path) -> list[str]:
    """Return the texts that Slack received, oldest first."""
    return [json.loads(line)["text"] for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def plain_messages(log: Path) -> int:
    """Return how many of the messages that Slack received have no blocks."""
    entries = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return sum(not json.loads(line)["payload"].get("blocks") for line in entries)


def deployments(api_url: str, repository: str, token: str) -> dict[str, list[str]]:
    """Return our deployment id -> states of GitHub's deployments to production that name it, oldest first."""

    def get(path: str) -> Any:
        request = Request(f"{api_url}/repos/{repository}/{path}", headers={"Authorization": f"Bearer {token}", "User-Agent": "judge"})  # noqa: S310 - the rehearsal's stand-in
        with urlopen(request, timeout=10) as response:  # noqa: S310 - likewise
            return json.loads(response.read())

    states: dict[str, list[str]] = {}
    for deployment in get("deployments?environment=production"):
        newest_first = [str(status["state"]) for status in get(f"deployments/{deployment['id']}/statuses")]
        states.setdefault(str(deployment["payload"]["deployment_id"]), []).extend(newest_first[::-1])
    return states


def artifacts(store: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the files of each artifact, and every JSON document in them by ``<artifact>/<file>``."""
    files: dict[str, list[str]] = {}
    documents: dict[str, Any] = {}
    for folder in sorted(store.iterdir()) if store.is_dir() else []:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files[folder.name] = [path.relative_to(folder).as_posix() for path in paths]
        for path in paths:
            if path.suffix == ".json":
                documents[path.relative_to(store).as_posix()] = json.loads(path.read_text(encoding="utf-8"))
    return files, documents


def migrations(database_url: str) -> dict[str, bool]:
    """Return which migrations of Prisma the database has, and whether each finished; none without its table."""
    import psycopg2

    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('_prisma_migrations') IS NOT NULL")
        if cursor.fetchone() != (True,):
            return {}
        cursor.execute('SELECT migration_name, finished_at IS NOT NULL FROM "_prisma_migrations" WHERE rolled_back_at IS NULL')
        return dict(cursor.fetchall())


def bucket(endpoint: str, key_id: str, secret: str, name: str) -> tuple[dict[str, bytes], dict[str, Dump]]:
    """Return key -> content of every object (empty for database dumps), and key -> Dump of the database dumps."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key_id, aws_secret_access_key=secret, region_name="us-east-1")
    objects: dict[str, bytes] = {}
    dumps: dict[str, Dump] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", []):
            body = client.get_object(Bucket=name, Key=entry["Key"])["Body"]
            if entry["Key"].endswith(".sql.gz"):
                with tempfile.TemporaryFile() as file:
                    file.writelines(body.iter_chunks(1 << 20))
                    file.seek(0)
                    with gzip.open(file) as lines:
                        dumps[entry["Key"]] = read_dump(lines)
                objects[entry["Key"]] = b""
            else:
                objects[entry["Key"]] = body.read()
    return objects, dumps


def read_dump(lines: Iterable[bytes]) -> Dump:
    """Return the rows of a plain dump by table, and whether its last line is there. Raises gzip's errors for a damaged stream."""
    complete, table, rows = False, None, dict[str, int]()
    for line in lines:
        if table is None and line.startswith(b"COPY "):
            table = line.split()[1].decode().removeprefix("public.")
            rows[table] = 0
        elif table is not None and line.rstrip(b"\n") == b"\\.":
            table = None
        elif table is not None:
            rows[table] += 1
        elif line.startswith(TRAILER):
            complete = True
    return Dump(complete, rows)


def leaks(secrets: Mapping[str, str], places: Sequence[Path], objects: Mapping[str, bytes]) -> list[str]:
    """Return ``<secret's name> in <place>`` for each secret in files, in files below folders (``places``) or in objects of the bucket."""
    leaked = []
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*"))) if path.is_file()]
    for name, secret in secrets.items():
        needle = secret.encode()
        leaked += [f"{name} in {path}" for path in files if needle in path.read_bytes()]
        leaked += [f"{name} in object {key}" for key, content in objects.items() if needle in content]
    return leaked
