"""Migrations run behind a backup of the very database that they change, on the server that can be written."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, send_signal
from azora_ci.database.cluster import SCRATCH_SETTINGS, Cluster
from azora_ci.database.migrations.backup import VerifiedBackup
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import server_facts
from tests.support.waiting import until

REPLICA = {"wal_level": "replica"}  # without it no standby can follow


def test_a_standby_and_another_database_are_refused(tmp_path: Path) -> None:
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path / "cluster", processes=processes, settings=REPLICA) as cluster:
        url = DatabaseUrl.parse(cluster.url())
        facts = server_facts(url)
        backup = VerifiedBackup("backup-1", datetime(2026, 11, 24, tzinfo=UTC), 1.0, "full", facts.database, facts.system_identifier)
        backup.require_of(url)
        for other in (replace(backup, database="another"), replace(backup, system_identifier="1")):
            with pytest.raises(NotTrueError, match="The backup is of another database"):
                other.require_of(url)
        send_signal(cluster.pid, signal.SIGINT)
        until(lambda: not cluster.running, "the server's end")
        (cluster.data / "standby.signal").touch()
        cluster._start_server({**SCRATCH_SETTINGS, **REPLICA}, detached=False)
        with pytest.raises(NotTrueError, match="Migrations need the primary") as caught:
            backup.require_of(DatabaseUrl.parse(cluster.url()))
        assert "is a standby" in caught.value.what
