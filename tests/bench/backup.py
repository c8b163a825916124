"""``scripts/bench backup``: six ways to back one database up, alternating, median of several rounds.

a ``pg_dump > /dev/null``; b ``pg_dump | gzip | aws s3 cp -``; c the same with pigz; d this job without proof; e this job with
full proof; f the steps and the proof of e, one after the other. The limit is what d could take at best on this machine: the CPU
seconds of pg_dump, of the server's work for it and of one deflate at the job's level, spread over all cores; at least a.
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
import time
from collections.abc import Callable, Iterable, Mapping
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
LEVEL = 2  # the job's BACKUP_COMPRESSION
CPU = ("pg_dump", "backend", "deflate")
NAMES = {
    "pg_dump_seconds": "a  pg_dump > /dev/null",
    "gzip_pipe_seconds": "b  pg_dump | gzip | aws s3 cp -",
    "pigz_pipe_seconds": "c  pg_dump | pigz | aws s3 cp -",
    "backup_seconds": "d  database-backup, no proof",
    "backup_proven_seconds": "e  database-backup, full proof",
    "serial_proof_seconds": "f  the steps of e, one after the other",
}
# name, title, dividend, divisor, aim
RATIOS = (
    ("limit", "d / limit", "backup_seconds", "limit_seconds", "<= 1.25"),
    ("proof", "e / f", "backup_proven_seconds", "serial_proof_seconds", "<= 0.8"),
    ("gzip_pipe", "b / d", "gzip_pipe_seconds", "backup_seconds", ">= 3"),
    ("pigz_pipe", "c / d", "pigz_pipe_seconds", "backup_seconds", ">= 1.7"),
)
CONFIG = """schema_version = 1
application = "bench"
public_url = "http://127.0.0.1"
on_call = "nobody"
checks = { required = ["test"], build = [["true"]] }
build = { commands = [["true"]] }
database = {}
migrations = { command = [] }
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
    server: int  # process id of the database server
    processes: Processes
    clock: Clock
    aws: Mapping[str, str]
    number: int = 0
    peak_bytes: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)  # CPU seconds of what the limit consists of

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
        server = int((folder / "production" / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        bench = Bench(folder, url, server, processes, clock, _store(folder, processes, clock))
        (folder / "deploy.toml").write_text(CONFIG, encoding="utf-8")
        for number in range(1, rounds + 1):
            for name, work in _competitors(bench).items():
                bench.measure(name, work)
                say(f"round {number}: {NAMES[name]}: {bench.seconds[name][-1]:.2f} s")
            _measure_cpu(bench)
            say(f"round {number}: CPU of the least work: {', '.join(f'{name} {bench.cpu[name][-1]:.2f} s' for name in CPU)}")
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


def _measure_cpu(bench: Bench) -> None:
    """Note the CPU seconds of the least work: pg_dump to nowhere, the server's processes meanwhile, and one deflate of the same SQL."""
    from isal import isal_zlib

    def server_cpu() -> float:
        bench.clock.sleep(0.3)  # a session counts for the server when it has ended
        return _server_cpu(bench.server)

    before = server_cpu()
    env = {**bench.url.libpq_env(), "PG_DUMP": str(find_binary("pg_dump", None)), "TIMEFORMAT": "%U %S"}
    times = bench.processes.run(("bash", "-c", 'time "$PG_DUMP" > /dev/null'), env=env, echo=False).stderr.split()
    cpu = {"pg_dump": float(times[0]) + float(times[1]), "backend": server_cpu() - before}
    child = bench.processes.start((env["PG_DUMP"],), env=bench.url.libpq_env(), stdout_pipe=True)
    engine, cpu["deflate"] = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, 31), 0.0
    assert child.stdout is not None
    while block := child.stdout.read(MIB):
        start = time.thread_time()
        engine.compress(block)
        cpu["deflate"] += time.thread_time() - start
    child.wait()
    for name, seconds in cpu.items():
        bench.cpu.setdefault(name, []).append(seconds)


def _server_cpu(pid: int) -> float:
    """Return the CPU seconds so far of a database server: of its processes, and of the sessions that have ended."""
    import psutil

    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children())]
    return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system


def limit_seconds(pg_dump_wall: float, cpu: Iterable[float], cores: int) -> float:
    """Return the least seconds that a backup can take here: all cores busy with nothing else, and never less than pg_dump alone."""
    return max(pg_dump_wall, sum(cpu) / cores)


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


def figures(bench: Bench, size: int, cores: int) -> dict[str, float | None]:
    """Return what was measured: medians in seconds, what of them are CPU seconds, ratios, and the peak of memory in MiB."""

    def median(values: Mapping[str, list[float]], name: str) -> float | None:
        return round(statistics.median(values[name]), 3) if name in values else None

    def ratio(upper: str, lower: str) -> float | None:
        over, under = found[upper], found[lower]
        return round(over / under, 3) if over is not None and under is not None else None

    found = {"gib": round(size / database.GIB, 3), **{name: median(bench.seconds, name) for name in NAMES}}
    cpu = {f"{name}_cpu_seconds": median(bench.cpu, name) for name in CPU}
    found |= {**cpu, "limit_seconds": round(limit_seconds(found["pg_dump_seconds"] or 0, (value or 0 for value in cpu.values()), cores), 3)}
    ratios = {f"{name}_ratio": ratio(upper, lower) for name, _title, upper, lower, _aim in RATIOS}
    return {**found, **ratios, "peak_rss_mib": round(bench.peak_bytes / MIB, 1)}


def table(found: Mapping[str, float | None], rounds: int, machine: str) -> str:
    """Return the figures as a table in Markdown."""

    def text(value: float | None, unit: str = "") -> str:
        return "not measured" if value is None else f"{value:.2f}{unit}"

    lines = [f"{text(found['gib'])} GiB on {machine}, median of {rounds}", "", "| | | aim |", "|---|---|---|"]
    lines += [f"| {title.replace('|', '→')} | {text(found[name], ' s')} | |" for name, title in NAMES.items()]
    parts = ", ".join(f"{name} {text(found[f'{name}_cpu_seconds'])}" for name in CPU)
    lines += [f"| limit of this machine (CPU seconds: {parts}) | {text(found['limit_seconds'], ' s')} | |"]
    lines += [f"| {title} | {text(found[f'{name}_ratio'])} | {aim} |" for name, title, _upper, _lower, aim in RATIOS]
    return "\n".join((*lines, f"| peak memory of our own Python | {found['peak_rss_mib']:.1f} MiB | <= 128 |"))


def _print(bench: Bench, size: int, *, as_json: bool) -> None:
    cores = os.cpu_count() or 1
    found = figures(bench, size, cores)
    click.echo(json.dumps(found) if as_json else table(found, len(bench.seconds["backup_seconds"]), f"{cores} x {_processor()}"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
