from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg2
import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, is_alive, isolation
from azora_ci.database import cluster
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl
from tests.core.process.test_leftovers import command_lines


@pytest.fixture
def processes() -> Processes:
    return Processes(JobLog(Actions(stream=io.StringIO()), Clock()))


def test_session_cluster_answers_and_makes_databases(postgres_cluster):
    url = postgres_cluster.fresh("CREATE TABLE t (id int); INSERT INTO t VALUES (1), (2)")
    assert postgres_cluster.execute(url, "SELECT count(*) FROM t") == [(2,)]


def test_wrong_password_is_refused_and_not_shown(postgres_cluster):
    url = DatabaseUrl.parse(postgres_cluster.cluster.url())
    wrong = DatabaseUrl(url.host, url.port, url.user, "not the password", url.database)
    with pytest.raises(UnreachableError) as caught:
        wrong.connect()
    assert "not the password" not in str(caught.value)


def test_cluster_leaves_nothing_behind(tmp_path: Path, processes: Processes):
    with Cluster.start(tmp_path / "c", processes=processes) as cluster:
        pid, places = cluster.pid, [cluster.data, cluster.sockets]
        assert is_alive(pid) and all(place.exists() for place in places)
    assert not is_alive(pid)
    assert not any(place.exists() for place in places)
    cluster.stop()


def test_folder_in_use_is_refused(tmp_path: Path, processes: Processes):
    with (tmp_path / "lock").open("a") as held:
        subprocess.run([sys.executable, "-c", "import fcntl; fcntl.flock(0, 2)"], stdin=held, check=True)  # the lock is the open file's
        with pytest.raises(BadInputError, match="in use"):
            Cluster.start(tmp_path, processes=processes)


LOOKS_AROUND = """
ls -A /proc; ls -A {open}; cat {open}/secret && echo read; touch {open}/planted && echo wrote; sudo -n true && echo became root
grep -h NoNewPrivs /proc/self/status | tr '\\t' ' '
setsid sh -c 'sleep 600; echo {open}' > /dev/null 2>&1 &
"""


def test_a_program_that_sql_starts_in_an_isolated_server_sees_and_keeps_nothing(processes: Processes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROD_KEY", "the-canary")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # where any user may enter
        place = Path(folder)
        place.chmod(0o777)
        (place / "secret").write_text("the-canary")
        with Cluster.start(place / "c", processes=processes, isolated=True) as cluster:
            with contextlib.closing(psycopg2.connect(cluster.url())) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE TABLE said (line text)")
                cursor.execute("COPY said FROM PROGRAM %s", (f"env; {LOOKS_AROUND.format(open=folder)}",))
                cursor.execute("SELECT line FROM said")
                said = {line for (line,) in cursor.fetchall()}
            assert command_lines(f"echo {folder}")
            assert (cluster.data / "base").stat().st_uid == cluster.data.stat().st_uid, "its files stay its user's"
        assert not (place / "planted").exists()
    assert "NoNewPrivs: 1" in said
    assert not {"read", "wrote", "became root", "secret", str(os.getpid())} & said
    assert not [line for line in said if "the-canary" in line]
    assert command_lines(f"echo {folder}") == []
    assert not cluster.running


def test_a_machine_that_cannot_isolate_restores_nevertheless_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "argv", lambda **_: ("sh", "-c", "echo 'unshare: unshare failed: not permitted' >&2; exit 1"))
    printed = io.StringIO()
    processes = Processes(JobLog(Actions(stream=printed, github=True), Clock()))
    with Cluster.start(tmp_path / "c", processes=processes, isolated=True) as cluster:
        psycopg2.connect(cluster.url()).close()
    assert "::warning title=The backup is restored without isolation::" in printed.getvalue()


LEAVE_ONE = """
import io, sys, time
from pathlib import Path
from azora_ci.core.actions import Actions
from azora_ci.database.cluster import Cluster
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
cluster = Cluster.start(Path(sys.argv[1]), processes=Processes(JobLog(Actions(stream=io.StringIO()), Clock())))
print(cluster.pid, flush=True)
time.sleep(600)
"""


def test_leftover_of_a_killed_run_is_stopped_by_the_next(tmp_path: Path, processes: Processes):
    with subprocess.Popen([sys.executable, "-c", LEAVE_ONE, str(tmp_path)], stdout=subprocess.PIPE) as killed:
        left = int(killed.stdout.readline())
        os.kill(killed.pid, signal.SIGKILL)
    assert is_alive(left)
    with Cluster.start(tmp_path, processes=processes) as cluster:
        assert not is_alive(left)
        psycopg2.connect(cluster.url()).close()


def test_a_free_port_is_nobodys_and_below_those_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.free_port()))
        port = taken.getsockname()[1]
        drawn = iter((port - cluster.LOWEST_PORT, port - cluster.LOWEST_PORT, cluster.free_port() - cluster.LOWEST_PORT))
        monkeypatch.setattr(cluster.secrets, "randbelow", lambda _: next(drawn))
        assert cluster.LOWEST_PORT <= cluster.free_port() != port
