"""The same dumps through every way of restoring: the proof's psql, and the script of the on-call engineer. Both give one verdict.

``tests/steps/test_restore_drill.py`` and ``test_database_backup.py`` show what a job makes of a refused dump.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.backup import restore
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.restore import scripts
from tests.support import hostile_dumps
from tests.support.hostile_dumps import PLANTED, Dump

ID = "1764000000-abc123"
named = pytest.mark.parametrize("dump", hostile_dumps.ALL, ids=lambda dump: dump.name)


class Rescue:
    """An empty production database, psql of its version, a folder to work in, and an ``aws`` that hands out one file."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.live = DatabaseUrl.parse(cluster.fresh())
        self.restored = self.live.with_database(f"{self.live.database}_restore_{ID.partition('-')[0]}")
        self.psql = find_binary("psql", cluster.cluster.major)
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("aws", 'for name; do :; done; cp stored "$name"')
        self.environ = {"PATH": f"{self.programs}:{self.psql.parent}:{os.environ['PATH']}", **self.live.libpq_env()}

    def program(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def script(self, sql: bytes) -> subprocess.CompletedProcess[str]:
        (self.folder / "stored").write_bytes(gzip.compress(sql))
        script = self.folder / "restore.sh"
        script.write_text(scripts.restore_script({"location": "s3://b/prod/dump.sql.gz"}, ID))
        return subprocess.run(
            ["bash", script], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip

    def proof(self, sql: bytes, database: DatabaseUrl, psql: Path | None = None) -> None:
        """Restore as the proof of a backup and the drill do. Raises NotTrueError."""
        (self.folder / "sql").unlink(missing_ok=True)
        spool = self.folder / "spool.sql.gz"
        spool.write_bytes(gzip.compress(sql))
        processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock(), self.folder / "log"))
        accountant = restore.Accountant(spool, "full", processes)
        running = restore.Restore(spool, psql or self.psql, database, processes)
        try:
            running.finish(spool.stat().st_size)
            accountant.finish(spool.stat().st_size)
        finally:
            running.abandon()
            accountant.abandon()

    def rows(self, database: DatabaseUrl) -> int:
        return int(self.cluster.execute(database.text, "SELECT count(*) FROM public.t")[0][0])

    def exists(self, database: DatabaseUrl) -> bool:
        rows = self.cluster.execute(self.live.text, f"SELECT 1 FROM pg_database WHERE datname = '{database.database}'")
        return bool(rows)

    def planted(self) -> list[Path]:
        return [path for folder in (self.folder, Path.cwd(), self.cluster.cluster.data) for path in folder.glob(PLANTED)]


@pytest.fixture
def rescue(tmp_path: Path, postgres_cluster, monkeypatch: pytest.MonkeyPatch) -> Rescue:
    monkeypatch.chdir(tmp_path)  # what a child of this process would plant lies here
    return Rescue(tmp_path, postgres_cluster)


@named
def test_the_script_restores_honest_dumps_and_runs_nothing_of_others(rescue: Rescue, dump: Dump):
    completed = rescue.script(dump.sql)
    assert rescue.planted() == []
    if dump.rows is None:
        assert completed.returncode == 1, completed.stderr
        assert "Nothing was restored" in completed.stderr
        assert not rescue.exists(rescue.restored), "a database was made before the dump was judged"
    else:
        assert completed.returncode == 0, completed.stderr
        assert rescue.rows(rescue.restored) == dump.rows


@named
def test_the_proof_restores_honest_dumps_and_runs_nothing_of_others(rescue: Rescue, dump: Dump):
    database = DatabaseUrl.parse(rescue.cluster.fresh())
    if dump.rows is None:
        with pytest.raises(NotTrueError, match="could not be restored") as refusal:
            rescue.proof(dump.sql, database)
        assert "in the dump" in refusal.value.what or "the dump" in refusal.value.what or "follow" in refusal.value.what
    else:
        rescue.proof(dump.sql, database)
        assert rescue.rows(database) == dump.rows
    assert rescue.planted() == []


@pytest.mark.parametrize(
    "name",
    ["leaves restricted mode", "shell after SQL in a line", "lower-case COPY hides a quote", "nested comment", "COPY in parentheses"],
)
def test_a_bare_psql_would_have_run_these(rescue: Rescue, name: str):
    """They show that the table is dangerous: who writes the bucket leaves pg_dump's \\restrict out."""
    sql = next(dump.sql for dump in hostile_dumps.HOSTILE if dump.name == name)
    sql = sql.replace(b"\\restrict aB3\n", b"").replace(b"\\unrestrict aB3\n", b"")
    subprocess.run(
        [rescue.psql, "-X", "-q"], input=sql, cwd=rescue.folder, env=rescue.environ, capture_output=True, timeout=60, check=False
    )
    assert rescue.planted() != []


AMBIGUOUS = ("literal with a backslash", "not ASCII")
OLD_PSQL = """if [ "$1" = --help=commands ]; then echo; exit; fi
exec '{psql}' "$@"
"""


@pytest.mark.parametrize("name", ["plain", *AMBIGUOUS])
def test_a_psql_without_restrict_is_given_nothing_that_can_be_read_in_two_ways(rescue: Rescue, name: str):
    dump = next(dump for dump in hostile_dumps.HONEST if dump.name == name)
    old = rescue.program("psql", OLD_PSQL.replace("{psql}", str(rescue.psql)))
    database = DatabaseUrl.parse(rescue.cluster.fresh())
    completed = rescue.script(dump.sql)
    assert "older than August 2025" in completed.stderr
    if name == "plain":
        rescue.proof(dump.sql, database, old)
        assert completed.returncode == 0, completed.stderr
        assert rescue.rows(database) == rescue.rows(rescue.restored) == dump.rows
        assert "the scanner alone" in (rescue.folder / "log").read_text()
    else:
        with pytest.raises(NotTrueError, match="could not be restored"):
            rescue.proof(dump.sql, database, old)
        assert completed.returncode == 1
        assert "August 2025" in completed.stderr.split("Update it.")[1]


def test_psql_is_told_to_refuse_its_commands_by_a_new_random_word_each_time(rescue: Rescue):
    heard, words = rescue.folder / "heard", set[str]()
    listener = 'case "$*" in *--help*) printf "%s" "  \\\\restrict RESTRICT_KEY"; exit ;; esac\n'
    listener += 'for last; do :; done; case "$last" in --file=*) exec < "${last#--file=}" ;; esac\n'
    listener += f"first=$(head -n 1); case $first in *restrict*) printf '%s\\n' \"$first\" >> '{heard}' ;; esac; cat > /dev/null\n"
    psql = rescue.program("psql", listener)
    for _ in range(2):
        assert rescue.script(hostile_dumps.HONEST[0].sql).returncode == 0
        rescue.proof(hostile_dumps.HONEST[0].sql, rescue.live, psql)
    lines = heard.read_text().splitlines()
    for line in lines:
        matched = re.fullmatch(r"\\restrict ([0-9a-f]{64})", line)
        assert matched, line
        words.add(matched[1])
    assert len(words) == len(lines) == 4
