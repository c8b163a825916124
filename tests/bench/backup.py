"""``scripts/bench backup``: six ways to back one database up, alternating, median of several rounds.

a ``pg_dump > /dev/null``; b ``pg_dump | gzip | aws s3 cp -``; c the same with pigz; d this job without proof; e this job with
full proof; f the steps and the proof of e, one after the other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

from azora_ci.clients.s3.bucket import open_bucket
from azora_ci.clients.s3.calls import Patience
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import BackupSettings
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Child, Processes
from azora_ci.core.settings import Aws
from azora_ci.core.variables import Secret
from azora_ci.database.backup import manifest, pipeline, setup, source
from azora_ci.database.cluster import Cluster, free_port
from azora_ci.database.postgres import DatabaseUrl, find_binary
from tests.bench import database
from tests.support.databases import create_database

BUCKET = "bench"
KEY_ID, SECRET = "benchkey", "benchsecret"
MIB = 1024 * 1024
SAMPLE_SECONDS = 0.05
START_SECONDS = 30.0
NAMES = {
    "pg_dump_seconds": "a  pg_dump > /dev/null",
    "gzip_pipe_seconds": "b  pg_dump | gzip | aws s3 cp -",
    "pigz_pipe_seconds": "c  pg_dump | pigz | aws s3 cp -",
    "backup_seconds": "d  database-backup, no proof",
    "backup_proven_seconds": "e  database-backup, full proof",
    "serial_proof_seconds": "f  the steps of e, one after the other",
}
CONFIG = """schema_version = 1
application = "bench"
public_url = "http://127.0.0.1"
on_call = "nobody"
checks = { required = ["test"], build = [["true"]] }
build = { commands = [["true"]] }
database = {}
backup = { location = "s3://bench/prod" }
edge = { config_dir = "edge" }
target = { kind = "local_processes", local_processes = { state_dir = "state", archive_dir = "archives" } }
[services.web]
title = "Web"
route_prefix = "/"
health_path = "/health"
public_health_url = "http://127.0.0.1/health"
"""


@dataclass
class Bench:
    """State that the measurements share. ``aws`` are the variables of the store; ``peak_bytes`` is the largest memory of our own Python."""

    folder: Path
    url: DatabaseUrl
    processes: Processes
    clock: Clock
    aws: Mapping[str, str]
    number: int = 0
    peak_bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def next_id(self) -> str:
        """Return a fresh deployment id."""
        self.number += 1
        return f"{1764000000 + self.number}-abc123"

    def measure(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` and note its seconds under ``name``."""
        start = self.clock.monotonic()
        work()
        self.seconds.setdefault(name, []).append(self.clock.monotonic() - start)


def run(gib: float, rounds: int, *, as_json: bool) -> None:
    """Build the database, measure, print. Raises BadInputError when a program is missing."""

    def say(line: str) -> None:
        click.echo(line, err=True)

    if shutil.which("gzip") is None:
        raise BadInputError("gzip is missing", what="it is one of the competitors", where="PATH", next_step="install gzip")
    if shutil.which("pigz") is None:
        say("pigz is not installed: c is left out")
    clock = Clock()
    processes = Processes(JobLog(Actions(stream=sys.stderr), clock))
    with ExitStack() as stack:
        stack.callback(processes.end_all)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="azora-bench-")))
        folder.chmod(0o711)
        settings = {"wal_level": "replica", "shared_buffers": "256MB"}
        production = stack.enter_context(Cluster.start(folder / "production", processes=processes, settings=settings))
        url = DatabaseUrl.parse(create_database(production, "bench"))
        size = database.fill(url.text, gib, say)
        bench = Bench(folder, url, processes, clock, _store(folder, processes, clock))
        (folder / "deploy.toml").write_text(CONFIG, encoding="utf-8")
        for number in range(1, rounds + 1):
            for name, work in _competitors(bench).items():
                bench.measure(name, work)
                say(f"round {number}: {NAMES[name]}: {bench.seconds[name][-1]:.2f} s")
    _print(bench, size, as_json=as_json)


def _competitors(bench: Bench) -> dict[str, Callable[[], None]]:
    every: dict[str, Callable[[], None]] = {
        "pg_dump_seconds": lambda: _shell(bench, '"$PG_DUMP" > /dev/null'),
        "gzip_pipe_seconds": lambda: _shell(bench, '"$PG_DUMP" | gzip | "$AWS" s3 cp --no-progress - "$TO"'),
        "pigz_pipe_seconds": lambda: _shell(bench, '"$PG_DUMP" | pigz | "$AWS" s3 cp --no-progress - "$TO"'),
        "backup_seconds": lambda: _job(bench, bench.next_id(), BACKUP_PROOF="none", BACKUP_PROOF_REASON="measured"),
        "backup_proven_seconds": lambda: _job(bench, bench.next_id(), BACKUP_PROOF="full"),
        "serial_proof_seconds": lambda: _serial(bench),
    }
    return {name: work for name, work in every.items() if name != "pigz_pipe_seconds" or shutil.which("pigz")}


def _shell(bench: Bench, line: str) -> None:
    programs = {"PG_DUMP": str(find_binary("pg_dump", None)), "AWS": str(Path(sys.executable).parent / "aws")}
    to = {"TO": f"s3://{BUCKET}/pipe-{bench.next_id()}.sql.gz"}
    argv = ("bash", "-c", f"set -o pipefail; {line}")
    bench.processes.run(argv, env={**bench.url.libpq_env(), **bench.aws, **programs, **to}, echo=False)


def _job(bench: Bench, deployment_id: str, **more: str) -> None:
    """Run the job as the workflow does and watch its memory."""
    environ = {
        "DEPLOYMENT_LOG_DIR": str(bench.folder / "logs"),
        "DEPLOY_CONFIG": str(bench.folder / "deploy.toml"),
        "DEPLOYMENT_ID": deployment_id,
        "VERSION": "v1.2.3",
        "GIT_SHA": "0" * 40,
        "PROD_DATABASE_URL": bench.url.text,
        "BACKUP_SCRATCH_DIR": str(bench.folder / "scratch"),
        **bench.aws,
        **more,
    }
    code = "from azora_ci.steps.runner import main; main('database-backup')"
    child = bench.processes.start((sys.executable, "-c", code), env=environ)
    bench.peak_bytes = max(bench.peak_bytes, _watch(child))
    if child.wait() != 0:
        output = "".join(child.lines["stdout"])[-3000:]
        raise UnreachableError("The job failed", what=output, where="database-backup", next_step="read its output")


def _watch(child: Child) -> int:
    """Return the most memory (resident, bytes) that the job's own Python processes had together until it ended."""
    import psutil

    peak, clock, ended = 0, Clock(), threading.Event()
    while child.poll() is None:
        total = 0
        try:
            job = psutil.Process(child.pid)
            for process in (job, *job.children(recursive=True)):
                if process.name().startswith("python"):
                    total += process.memory_info().rss
        except psutil.Error:
            continue  # a process ended meanwhile
        peak = max(peak, total)
        clock.wait(ended, SAMPLE_SECONDS)
    return peak


def _serial(bench: Bench) -> None:
    """Back up without proof; then count on production, download, account for the rows, restore and compare, one after the other."""
    deployment_id = bench.next_id()
    _job(bench, deployment_id, BACKUP_PROOF="none", BACKUP_PROOF_REASON="measured")
    backup = BackupSettings("s3://bench/prod", "GOVERNANCE", 365)
    bucket = open_bucket(_aws(bench.aws), BUCKET)
    document = manifest.read(bucket, manifest.Names(backup, deployment_id)).document
    with source.Snapshot(bench.url, wait_seconds=60) as snapshot:
        counter = source.Counter(snapshot, bench.url, timeout_seconds=3600)
        counter.start()
        counter.result()
    context = setup.BackupContext(
        bucket=bucket, backup=backup, processes=bench.processes, clock=bench.clock, identity={}, depth="full", scratch_dir=bench.folder
    )
    pipeline.prove_stored(context, document, bucket.require(document["key"]), overlapping=False)


def _aws(variables: Mapping[str, str]) -> Aws:
    return Aws(
        aws_access_key_id=Secret(KEY_ID),
        aws_secret_access_key=Secret(SECRET),
        aws_session_token=None,
        aws_region=variables["AWS_REGION"],
        aws_endpoint_url_s3=variables["AWS_ENDPOINT_URL_S3"],
    )


def _store(folder: Path, processes: Processes, clock: Clock) -> dict[str, str]:
    """Start rclone's S3 server on a folder and return the variables that lead to it."""
    (folder / "store" / BUCKET).mkdir(parents=True)
    port = free_port()
    rclone = Path(sys.executable).parent / "rclone"
    options = ("--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}", "--vfs-cache-mode", "off")
    server = processes.start((str(rclone), "serve", "s3", *options, str(folder / "store")), env={"RCLONE_CONFIG": "/dev/null"})
    variables = {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    bucket = open_bucket(_aws(variables), BUCKET, patience=Patience(attempts=1))
    deadline = clock.monotonic() + START_SECONDS
    while True:
        try:
            bucket.facts()
        except UnreachableError:
            if clock.monotonic() > deadline or server.poll() is not None:
                raise
            clock.sleep(0.1)
        else:
            return variables


def _print(bench: Bench, size: int, *, as_json: bool) -> None:
    medians = {name: round(statistics.median(bench.seconds[name]), 3) if name in bench.seconds else None for name in NAMES}
    peak = round(bench.peak_bytes / MIB, 1)
    if as_json:
        click.echo(json.dumps({"gib": round(size / database.GIB, 3), **medians, "peak_rss_mib": peak}))
        return
    click.echo(f"{size / database.GIB:.2f} GiB on {os.cpu_count()} x {_processor()}, median of {len(bench.seconds['backup_seconds'])}")
    for name, title in NAMES.items():
        seconds = medians[name]
        click.echo(f"  {title:<42} " + ("not measured" if seconds is None else f"{seconds:8.2f} s"))
    ratios = (
        ("d / a", "backup_seconds", "pg_dump_seconds", "<= 1.15"),
        ("b / d", "gzip_pipe_seconds", "backup_seconds", ">= 3"),
        ("c / d", "pigz_pipe_seconds", "backup_seconds", ">= 1.7"),
        ("e / f", "backup_proven_seconds", "serial_proof_seconds", "<= 0.8"),
    )
    for title, upper, lower, aim in ratios:
        over, under = medians[upper], medians[lower]
        if over is not None and under is not None:
            click.echo(f"  {title:<42} {over / under:8.2f}    (aim {aim})")
    click.echo(f"  {'peak memory of our own Python':<42} {peak:8.1f} MiB  (aim <= 128)")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
