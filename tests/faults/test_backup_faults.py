"""Bad days of a backup, with real processes: after each, nothing is lost, nothing half published, and the next run gets through."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from azora_ci.database.postgres import DatabaseUrl, find_binary, major_of
from azora_ci.rehearsal.standins.s3 import Fault
from tests.support.backup_world import ID, SIMPLE, BackupWorld, Outcome, stop
from tests.support.databases import create_database
from tests.support.waiting import until

BACKUP = f"backup-{ID}.sql.gz"
LONG = 30.0  # seconds that a held request waits; no test waits for its end


@pytest.fixture
def world(tmp_path: Path, s3_server) -> BackupWorld:
    return BackupWorld(tmp_path, s3_server)


@pytest.fixture(scope="module")
def simple(postgres_cluster) -> str:
    return postgres_cluster.fresh(SIMPLE)


@contextmanager
def dump_held(url: str) -> Iterator[None]:
    """Keep pg_dump waiting for a table while the block runs."""
    holder = DatabaseUrl.parse(url).connect(autocommit=False)
    try:
        with holder.cursor() as cursor:
            cursor.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        holder.close()


def until_dump_waits(url: str) -> None:
    watcher = DatabaseUrl.parse(url).connect()
    with watcher.cursor() as cursor:

        def waits() -> bool:
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'azora-ci pg_dump' AND wait_event_type = 'Lock' "
                "AND datname = current_database()"
            )
            return bool(cursor.fetchone())

        until(waits, "pg_dump waits for the locked table")
    watcher.close()


def child(process, name: str) -> psutil.Process:
    children = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == name]
    assert len(children) == 1, children
    return children[0]


def nothing_published(world: BackupWorld) -> None:
    assert BACKUP not in world.listing()
    assert world.uploads() == []
    with pytest.raises(LookupError):
        world.verified_manifest()


def next_run_gets_through(world: BackupWorld, url: str) -> Outcome:
    outcome = world.run(url)
    assert outcome.code == 0, outcome
    assert outcome.evidence["proof"]["depth"] == "full"
    world.verified_manifest()
    assert world.uploads() == []
    assert world.leftovers() == []
    return outcome


# --- the database side ---------------------------------------------------------------------------------------------------


def test_pg_dump_killed_at_the_start(world: BackupWorld, simple: str):
    with dump_held(simple):
        process = world.start(simple)
        until_dump_waits(simple)
        child(process, "pg_dump").kill()
        outcome = world.outcome(process.wait(30), process.stdout.read())
    assert outcome.code == 3
    assert outcome.error["title"] == "pg_dump failed"
    nothing_published(world)
    assert world.leftovers() == []


def test_backend_terminated(world: BackupWorld, simple: str, postgres_cluster):
    with dump_held(simple):
        process = world.start(simple)
        until_dump_waits(simple)
        postgres_cluster.execute(
            simple, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'azora-ci pg_dump'"
        )
        outcome = world.outcome(process.wait(30), process.stdout.read())
    assert outcome.code == 3
    assert "terminating connection" in outcome.error["what"]
    nothing_published(world)


def test_scratch_dies_and_the_next_run_proves_what_is_stored(world: BackupWorld, simple: str):
    with dump_held(simple):
        process = world.start(simple)
        until_dump_waits(simple)
        data = Path(next(world.scratch.glob("*/cluster/places")).read_text().splitlines()[0])
        servers = [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"/postgres\0-D\0{data}\0".encode() in path.read_bytes()]
        os.kill(int(servers[0].parent.name), signal.SIGKILL)
    outcome = world.outcome(process.wait(60), process.stdout.read())
    assert outcome.code == 1, outcome
    assert outcome.evidence["unproven"].endswith(BACKUP)
    assert world.listing() == [f"backup-{ID}.pending.json", BACKUP]
    with pytest.raises(LookupError):
        world.verified_manifest()
    version_id = world.bucket.require(f"prod/{BACKUP}").version_id
    outcome = next_run_gets_through(world, simple)
    assert outcome.evidence["version_id"] == version_id


def test_two_runs_at_once_make_one_backup(world: BackupWorld, simple: str):
    with dump_held(simple):
        first, second = world.start(simple), world.start(simple, DEPLOYMENT_LOG_DIR=str(world.folder / "other-logs"))
        until_dump_waits(simple)
    outputs = [first.communicate(timeout=90)[0], second.communicate(timeout=90)[0]]
    assert 0 in {first.returncode, second.returncode}, outputs
    assert {first.returncode, second.returncode} <= {0, 1, 3}, outputs
    world.verified_manifest()
    assert sum(key.endswith(".manifest.json") for key in world.listing()) == 1
    assert sum(key.endswith(".sql.gz") for key in world.listing()) == 1
    assert world.run(simple).evidence["reused"]
    assert world.uploads() == []


# --- the store's side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"action": "error", "operation": "UploadPart", "status": 500}, marks=pytest.mark.faults),
        pytest.param({"action": "error", "operation": "UploadPart", "status": 503, "code": "SlowDown"}, marks=pytest.mark.faults),
        pytest.param({"action": "reset", "operation": "UploadPart"}, marks=pytest.mark.faults),
        pytest.param({"action": "hang", "operation": "UploadPart", "seconds": 90}, marks=pytest.mark.faults),  # times out after 60 s
        pytest.param({"action": "damage_arrival", "operation": "UploadPart"}, marks=pytest.mark.faults),
        {"action": "lose_answer", "operation": "CompleteMultipartUpload"},
        pytest.param({"action": "error", "operation": "CompleteMultipartUpload", "status": 503}, marks=pytest.mark.faults),
        pytest.param({"action": "lose_answer", "operation": "PutObject", "key": "*.manifest.json"}, marks=pytest.mark.faults),
        pytest.param({"action": "cut", "operation": "GetObject", "bytes": 100}, marks=pytest.mark.faults),
    ],
    ids=lambda fault: f"{fault['action']}-{fault['operation']}-{fault.get('status', '')}",
)
def test_trouble_that_passes_is_overcome(world: BackupWorld, simple: str, fault: dict[str, object]):
    rule = world.stores.faults.add(Fault.parse(fault))
    outcome = world.run(simple)
    assert rule.fired == 1
    assert outcome.code == 0, outcome
    assert len(world.listing()) == 3
    assert world.uploads() == []


@pytest.mark.parametrize(
    ("status", "code"), [(412, "PreconditionFailed"), pytest.param(409, "ConditionalRequestConflict", marks=pytest.mark.faults)]
)
def test_refused_completion_publishes_nothing(world: BackupWorld, simple: str, status: int, code: str):
    world.stores.fault("error", "CompleteMultipartUpload", status=status, code=code)
    outcome = world.run(simple)
    assert outcome.code == 3, outcome
    nothing_published(world)
    outcome = next_run_gets_through(world, simple)
    assert outcome.evidence["backup_id"] == f"backup-{ID}-attempt-2"


def test_expired_credentials_publish_nothing(world: BackupWorld, simple: str):
    rule = world.stores.fault("error", "UploadPart", status=400, code="ExpiredToken", times=None)
    outcome = world.run(simple)
    assert outcome.code == 3
    assert "expired" in outcome.error["title"]
    nothing_published(world)
    rule.times = rule.fired
    next_run_gets_through(world, simple)


def test_damaged_object_is_found_and_another_is_written_beside_it(world: BackupWorld, simple: str):
    world.stores.fault("damage_read", "GetObject", key=f"prod/{BACKUP}", bytes=2000, times=None)
    outcome = world.run(simple)
    assert outcome.code == 1, outcome
    assert f"backup-{ID}.manifest.json" not in world.listing()
    outcome = next_run_gets_through(world, simple)
    assert outcome.evidence["backup_id"] == f"backup-{ID}-attempt-2"
    assert BACKUP in world.listing()


# --- signals ---------------------------------------------------------------------------------------------------------------

PHASES = {
    "preflight": ("HeadBucket", "*"),
    "snapshot": ("CreateMultipartUpload", "*"),
    "complete": ("CompleteMultipartUpload", "*"),
    "read-back": ("GetObject", "*.sql.gz"),
    "manifest": ("PutObject", "*.manifest.json"),
}
SAMPLED = {("dump", signal.SIGTERM), ("read-back", signal.SIGINT), ("complete", signal.SIGKILL)}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(phase, number, marks=[] if (phase, number) in SAMPLED else pytest.mark.faults, id=f"{phase}-{number.name}")
        for phase in ("dump", *PHASES)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    ],
)
def test_signal_at_each_phase(world: BackupWorld, simple: str, phase: str, number: signal.Signals):
    if phase == "dump":
        with dump_held(simple):
            process = world.start(simple)
            until_dump_waits(simple)
            output = stop(process, number)
    else:
        operation, key = PHASES[phase]
        rule = world.stores.fault("delay", operation, key=key, seconds=LONG)
        process = world.start(simple)
        until(lambda: rule.fired, f"{operation} was asked for")
        output = stop(process, number)
    outcome = world.outcome(process.returncode, output)
    assert f"backup-{ID}.manifest.json" not in world.listing()
    if number != signal.SIGKILL:
        assert outcome.code == 1, outcome
        assert outcome.fragment["status"] == "cancelled"
        assert world.uploads() == []
        assert world.leftovers() == []
    next_run_gets_through(world, simple)


# --- a stream that ends too early, and says that it is well ----------------------------------------------------------------

MEBIBYTE = 1024 * 1024  # a block of the gzip member
CUTS = [number * MEBIBYTE - less for number in range(1, 4) for less in (0, 1)]


@pytest.fixture(scope="module")
def four_blocks(postgres_cluster) -> str:
    """A database whose dump has a little more than three blocks."""
    return postgres_cluster.fresh(
        "CREATE TABLE users (id int, noise text); INSERT INTO users SELECT n, repeat(md5(n::text), 32) FROM generate_series(1, 3200) n"
    )


def dump_wrapper(folder: Path, script: str) -> Path:
    """Write a program named pg_dump, a line of bash with the real one as ``{real}``, and return its folder, for PATH."""
    real = find_binary("pg_dump", None)
    wrapper = folder / "bin" / "pg_dump"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/bash\n# pg_dump (PostgreSQL) {major_of(real)}.0\n" + script.replace("{real}", f"'{real}'") + "\n")
    wrapper.chmod(0o755)
    return wrapper.parent


@pytest.mark.parametrize("cut", [pytest.param(cut, marks=[] if cut in CUTS[:2] else pytest.mark.faults) for cut in CUTS])
def test_a_dump_cut_at_a_block_is_not_published(world: BackupWorld, four_blocks: str, tmp_path: Path, cut: int):
    """The real pg_dump behind a pipe that loses its end and exits with 0, as a shell pipe without pipefail does."""
    wrapper = dump_wrapper(tmp_path, f"""{{real}} "$@" | head -c {cut}; exit 0""")
    outcome = world.run(four_blocks, PATH=f"{wrapper}:/usr/local/bin:/usr/bin:/bin")
    assert outcome.code == 1, outcome
    assert outcome.error["title"] == "The dump is not complete"
    nothing_published(world)
    assert world.leftovers() == []


# --- disks and sizes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bulky(postgres_cluster) -> str:
    """A database of 60 MiB that compresses to about half."""
    return postgres_cluster.fresh(
        "CREATE TABLE users (id int, noise text); "
        "INSERT INTO users SELECT n, (SELECT string_agg(md5(random()::text || n || k), '') FROM generate_series(1, 120) k) "
        "FROM generate_series(1, 15000) n"
    )


@pytest.mark.faults
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_pg_dump_killed_on_its_way(world: BackupWorld, bulky: str, tmp_path: Path, share: float):
    """The real pg_dump, killed when so much of its dump has passed: long before the last line, so that it can never have ended."""
    whole = world.run(bulky, BACKUP_PROOF="none", BACKUP_PROOF_REASON="to know the size", DEPLOYMENT_ID="1764000009-abc123")
    wrapper = dump_wrapper(tmp_path, f"""exec {{real}} "$@" > >(head -c {int(whole.evidence["raw_bytes"] * share)}; kill -KILL $$)""")
    outcome = world.run(bulky, PATH=f"{wrapper}:/usr/local/bin:/usr/bin:/bin")
    assert outcome.code == 3, outcome
    assert "killed by signal 9" in outcome.error["what"], outcome
    nothing_published(world)
    next_run_gets_through(world, bulky)


@pytest.mark.faults
def test_full_disk_under_the_spool(world: BackupWorld, bulky: str):
    process = world.start(bulky)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20 * 1024 * 1024, 20 * 1024 * 1024))
    outcome = world.outcome(process.wait(90), process.communicate()[0])
    assert outcome.code in {1, 2}, outcome
    nothing_published(world)
    assert world.leftovers() == []
    next_run_gets_through(world, bulky)


def test_a_backup_without_proof_needs_no_disk(world: BackupWorld, bulky: str):
    process = world.start(bulky, BACKUP_PROOF="none", BACKUP_PROOF_REASON="nobody follows the spool")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20 * 1024 * 1024, 20 * 1024 * 1024))
    outcome = world.outcome(process.wait(90), process.communicate()[0])
    assert outcome.code == 0, outcome


@pytest.mark.faults
def test_server_restarted_during_the_dump(world: BackupWorld, tmp_path: Path):
    import io

    from azora_ci.core.actions import Actions
    from azora_ci.core.clock import Clock
    from azora_ci.core.job_log import JobLog
    from azora_ci.core.process import Processes
    from azora_ci.database.cluster import Cluster

    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path / "production", processes=processes) as production:
        url = create_database(production, "azora")
        with DatabaseUrl.parse(url).connect() as connection, connection.cursor() as cursor:
            cursor.execute(SIMPLE)
        with dump_held(url):
            process = world.start(url)
            until_dump_waits(url)
            backend = DatabaseUrl.parse(url).connect()
            os.kill(backend.info.backend_pid, signal.SIGKILL)  # the server ends every session and recovers
            outcome = world.outcome(process.wait(60), process.stdout.read())
        assert outcome.code == 3, outcome
        nothing_published(world)
        until(lambda: answers(url), "the server is back")
        next_run_gets_through(world, url)


def answers(url: str) -> bool:
    try:
        DatabaseUrl.parse(url).connect().close()
    except Exception:
        return False
    return True
