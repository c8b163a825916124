"""The means of a proof: settings and connections of one backup, its scratch database, the processes that follow its spool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.core.clock import Clock
from azora_ci.core.process import Processes
from azora_ci.core.process.malloc import reuse_blocks
from azora_ci.database.backup.progress import Meter, Progress
from azora_ci.database.backup.restore import Accountant, Restore
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.scratch import Scratch, fresh_database, open_scratch, require_space, work_folder
from azora_ci.database.server import ServerFacts

if TYPE_CHECKING:
    from azora_ci.clients.s3.bucket import Bucket
    from azora_ci.core.config import BackupSettings
    from azora_ci.core.settings import ProofPlace


# Called with a private scratch server, the proven copy on it, and production's facts, before both are removed.
CopyUser = Callable[[Scratch, DatabaseUrl, ServerFacts], None]


@dataclass
class BackupContext:
    """Settings and connections of one backup. ``identity`` holds deployment_id, version, git_sha and environment for the documents.

    ``use_copy`` gets the proven copy on a private server.
    """

    bucket: Bucket
    backup: BackupSettings
    processes: Processes
    clock: Clock
    identity: Mapping[str, str]
    depth: str  # full | counts | none
    reason: str | None = None
    level: int = 2
    limit_seconds: float = 3 * 3600.0
    verify_url: DatabaseUrl | None = None
    scratch_dir: Path | None = None
    use_copy: CopyUser | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    unreproduced: list[str] = field(default_factory=list)  # the database's own properties that the scratch server could not reproduce

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the seconds of a phase, whether it succeeds or not."""
        start = self.clock.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.clock.monotonic() - start, 3)

    @property
    def where(self) -> str | None:
        """Return the name of the server where backups are proven, for the manifest."""
        return None if self.depth == "none" else "BACKUP_VERIFY_DATABASE_URL" if self.verify_url else "private cluster"

    @contextmanager
    def progress(self, meter: Meter) -> Iterator[Meter]:
        """Show a meter while the block runs."""
        with Progress(meter, self.processes.log.say, self.clock):
            yield meter


def verify_server(settings: ProofPlace, processes: Processes) -> DatabaseUrl | None:
    """Return the server to which a backup is restored, its password masked from now on; None: a private cluster."""
    if settings.verify_url is None:
        return None
    server = DatabaseUrl.parse(settings.verify_url.reveal(), "BACKUP_VERIFY_DATABASE_URL")
    processes.log.add_secret(server.password)
    return server


@dataclass(frozen=True)
class ScratchSpace:
    """The prepared place of a proof: work folder, scratch server and the empty database in it."""

    folder: Path
    scratch: Scratch | None
    database: DatabaseUrl | None

    @property
    def spool(self) -> Path:
        """Return the path of the file with the compressed dump."""
        return self.folder / "spool.sql.gz"


@contextmanager
def workbench(context: BackupContext, server: ServerFacts, name: str) -> Iterator[ScratchSpace]:
    """Yield the place of a proof of the context's depth, checked before anything is dumped; it is removed at the end."""
    reuse_blocks()
    with ExitStack() as stack:
        with context.phase("scratch"):
            folder = stack.enter_context(work_folder(context.scratch_dir))
            if context.depth == "none":
                yield ScratchSpace(folder, None, None)
                return
            require_space(folder, server.size_bytes, private=context.verify_url is None)
            scratch = stack.enter_context(
                open_scratch(context.verify_url, folder, server, context.processes, logs_to_file=context.use_copy is not None)
            )
            database = stack.enter_context(fresh_database(scratch, name.replace("-", "_"), server))
        yield ScratchSpace(folder, scratch, database)


@dataclass
class Followers:
    """The processes that follow the spool. None where the depth needs no such process."""

    restore: Restore | None
    accountant: Accountant | None

    def abandon(self) -> None:
        """End the processes."""
        for follower in (self.restore, self.accountant):
            if follower is not None:
                follower.abandon()


@contextmanager
def follow(context: BackupContext, bench: ScratchSpace, *, account: bool) -> Iterator[Followers]:
    """Start the restore of the growing spool and, with ``account``, the count of its rows; end both with the block."""
    bench.spool.touch(mode=0o600)
    accountant = Accountant(bench.spool, context.depth, context.processes) if account else None
    followers = Followers(None, accountant)
    try:
        if bench.scratch is not None and bench.database is not None:
            psql = find_binary("psql", bench.scratch.facts.major)
            followers.restore = Restore(bench.spool, psql, bench.database, context.processes)
        yield followers
    finally:
        followers.abandon()


class Background:
    """Runs a function on a daemon thread, so that a cancelled job does not wait for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="read-back", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error

    def result(self) -> None:
        """Wait for the end. Raises the error that the function raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
