"""What a server, or whoever stands in its place, receives of the password: over TLS a proof by SCRAM, and never the password itself."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.database import postgres
from azora_ci.database.cluster import Cluster
from azora_ci.database.migrations import prisma
from azora_ci.database.postgres import DatabaseUrl
from tests.support import certificates
from tests.support.distribution import newest_of_the_distribution

PASSWORD = "the-secret-password"
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
GSS_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x30"
ASK_FOR_THE_PASSWORD = b"R\x00\x00\x00\x08\x00\x00\x00\x03"  # AuthenticationCleartextPassword
# Linux leads a connection to 0.0.0.0 to this machine, and no rule of ours calls that address loopback.
ELSEWHERE = "0.0.0.0"


class Impostor:
    """A server that is no PostgreSQL: it refuses or speaks TLS, then asks for the password, and keeps what it receives."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.received = b""
        self.tls = tls
        self._socket = socket.create_server((ELSEWHERE, 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                self._talk(connection)
            except OSError:
                pass
            finally:
                connection.close()

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        while (request := connection.recv(4096)) in {SSL_REQUEST, GSS_REQUEST}:
            accepts = self.tls is not None and request == SSL_REQUEST
            connection.sendall(b"S" if accepts else b"N")
            if accepts:
                assert self.tls is not None
                connection = self.tls.wrap_socket(connection, server_side=True)
        self.received += request
        if request:
            connection.sendall(ASK_FOR_THE_PASSWORD)
            self.received += connection.recv(4096)

    def url(self, query: str = "") -> DatabaseUrl:
        return DatabaseUrl.parse(f"postgresql://azora:{PASSWORD}@{ELSEWHERE}:{self.port}/azora?connect_timeout=5{query}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def plain_impostor() -> Iterator[Impostor]:
    impostor = Impostor(None)
    yield impostor
    impostor.close()


@pytest.fixture
def tls_impostor(tmp_path: Path) -> Iterator[Impostor]:
    certificates.renew(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    impostor = Impostor(context)
    yield impostor
    impostor.close()


def psql(url: DatabaseUrl) -> subprocess.CompletedProcess[str]:
    """Connect as our children do, with the clients of the distribution, whose libpq may be older than ours."""
    argv = [str(newest_of_the_distribution() / "psql"), "-X", "-w", "-c", "SELECT 1"]
    return subprocess.run(argv, check=False, env={"PATH": os.environ["PATH"], **url.libpq_env()}, capture_output=True, text=True)


def test_a_server_without_tls_receives_nothing(plain_impostor: Impostor) -> None:
    with pytest.raises(UnreachableError) as caught:
        plain_impostor.url().connect()
    assert "PROD_DATABASE_PLAIN=true" in caught.value.next_step
    assert psql(plain_impostor.url()).returncode != 0
    assert plain_impostor.received == b""


def test_a_server_without_tls_that_was_accepted_receives_no_password(plain_impostor: Impostor) -> None:
    url = plain_impostor.url().with_transport(None, plain_accepted=True)
    with pytest.raises(UnreachableError) as caught:
        url.connect()
    assert "SCRAM" in caught.value.next_step
    assert b"azora" in plain_impostor.received  # it was spoken to
    assert PASSWORD.encode() not in plain_impostor.received


def test_who_asks_for_the_password_over_tls_does_not_get_it(tls_impostor: Impostor) -> None:
    with pytest.raises(UnreachableError) as caught:
        tls_impostor.url().connect()
    assert "SCRAM" in caught.value.next_step
    assert psql(tls_impostor.url()).returncode != 0
    assert b"azora" in tls_impostor.received
    assert PASSWORD.encode() not in tls_impostor.received


@pytest.fixture(scope="module")
def tls_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """Give a PostgreSQL of the distribution that speaks TLS, and the certificate of its CA, which names ``db.azora.example``."""
    import io

    from azora_ci.core.actions import Actions
    from azora_ci.core.clock import Clock
    from azora_ci.core.job_log import JobLog
    from azora_ci.core.process import Processes

    folder = tmp_path_factory.mktemp("tls")
    certificates.renew(folder, hosts=("db.azora.example",))
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    major = int(newest_of_the_distribution().parent.name)
    with Cluster.start(tmp_path_factory.mktemp("postgres"), processes=processes, major=major) as cluster:
        owner = cluster.data.stat()
        for name in ("certificate.pem", "key.pem"):
            target = cluster.data / name
            target.write_bytes((folder / name).read_bytes())
            target.chmod(0o600)
            os.chown(target, owner.st_uid, owner.st_gid)
        connection = DatabaseUrl.parse(cluster.url()).connect()
        with connection.cursor() as cursor:
            for name, value in {"ssl_cert_file": "certificate.pem", "ssl_key_file": "key.pem", "ssl": "on"}.items():
                cursor.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            cursor.execute("SELECT pg_reload_conf()")
        connection.close()
        yield cluster, folder / "certificate.pem"
    processes.end_all()


def elsewhere(cluster: Cluster, query: str = "") -> DatabaseUrl:
    """Return the cluster's address with the name of its certificate, at an address that is not loopback."""
    credentials = cluster.url().split("://")[1].split("@")[0]
    return DatabaseUrl.parse(f"postgresql://{credentials}@db.azora.example:{cluster.port}/postgres?hostaddr={ELSEWHERE}{query}")


def is_encrypted(url: DatabaseUrl) -> bool:
    connection = url.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return cursor.fetchone() == (True,)
    finally:
        connection.close()


def test_tls_and_scram_with_a_real_server(tls_cluster: tuple[Cluster, Path]) -> None:
    cluster, certificate = tls_cluster
    url = elsewhere(cluster)
    assert url.protection.level == "require"
    assert url.protection.parameters["channel_binding"] == "require"
    assert is_encrypted(url)
    assert psql(url).returncode == 0
    checked = url.with_transport(str(certificate), plain_accepted=False)
    assert checked.protection.level == "verify-full"
    assert is_encrypted(checked)
    assert psql(checked).returncode == 0


def test_another_name_or_another_ca_is_refused(tls_cluster: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, certificate = tls_cluster
    renamed = DatabaseUrl.parse(elsewhere(cluster).text.replace("db.azora.example", "other.example"))
    with pytest.raises(UnreachableError, match="does not match host name"):
        renamed.with_transport(str(certificate), plain_accepted=False).connect()
    certificates.renew(tmp_path, hosts=("db.azora.example",))
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        elsewhere(cluster).with_transport(str(tmp_path / "certificate.pem"), plain_accepted=True).connect()


@pytest.mark.parametrize(
    ("query", "plain", "tunnel", "level"),
    [
        ("", False, None, "require"),
        ("?sslmode=prefer", False, None, "require"),
        ("?sslmode=require", True, None, "require"),
        ("?sslmode=verify-ca", False, None, "verify-full"),
        ("?sslmode=require&sslrootcert=ca.pem", False, None, "verify-full"),
        ("?sslcert=ca.pem", True, None, "verify-full"),  # Prisma's name of the CA
        ("", True, None, "plain"),
        ("?sslmode=disable", True, None, "plain"),
        ("", False, 5433, "tunnel"),
        ("?hostaddr=10.0.0.1", False, None, "require"),
        ("?hostaddr=127.0.0.1", False, None, "loopback"),
    ],
)
def test_levels(query: str, plain: bool, tunnel: int | None, level: str) -> None:
    url = DatabaseUrl.parse(f"postgresql://u:p@db.example/d{query}").with_transport(None, plain_accepted=plain)
    url = url if tunnel is None else url.with_tunnel(tunnel)
    assert url.protection.level == level
    assert (url.libpq_env().get("PGREQUIREAUTH") == "scram-sha-256") is (level != "loopback")
    assert url.with_database("other").protection == url.protection


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("[::1]", True),
        ("localhost", True),
        ("127.0.0.1,db.example", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, local: bool) -> None:
    assert (DatabaseUrl.parse(f"postgresql://u:p@{host}/d").protection.level == "loopback") is local


@pytest.mark.parametrize("query", ["sslmode=disable", "sslmode=verify_full", "require_auth=password", "require_auth=!none"])
def test_a_weaker_connection_string_is_refused(query: str) -> None:
    with pytest.raises(BadInputError) as caught:
        DatabaseUrl.parse(f"postgresql://u:hidden@db.example/d?{query}").connect()
    assert query.partition("=")[0] in caught.value.what
    assert "hidden" not in caught.value.message()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "?sslmode=require&sslaccept=accept_invalid_certs&channel_binding=require"),
        # Prisma takes a mode that it does not know for prefer.
        ("?schema=app&sslmode=verify-full", "?schema=app&sslmode=require&sslaccept=strict"),
        ("?sslaccept=strict", "?sslmode=require&sslaccept=strict&channel_binding=require"),
        ("?sslrootcert=/ca.pem&sslmode=require", "?sslmode=require&sslaccept=strict&sslcert=/ca.pem"),
        ("?channel_binding=prefer", "?sslmode=require&sslaccept=accept_invalid_certs&channel_binding=prefer"),
        ("?sslrootcert=system&connection_limit=1", "?connection_limit=1&sslmode=require&sslaccept=strict"),
    ],
)
def test_prisma_gets_the_same_demands_in_its_own_words(query: str, expected: str) -> None:
    text = f"postgresql://u:p%40@db.example:5433/d{query}"
    assert prisma.address(text, DatabaseUrl.parse(text)) == f"postgresql://u:p%40@db.example:5433/d{expected}"


@pytest.mark.parametrize("text", ["postgresql://u:p@127.0.0.1:1/d", "postgresql://u:p@127.0.0.1:1/d?schema=app"])
def test_prisma_on_loopback_gets_the_string_as_it_is(text: str) -> None:
    assert prisma.address(text, DatabaseUrl.parse(text)) == text


def test_a_relative_ca_is_absolute_for_prisma() -> None:
    text = "postgresql://u:p@db.example/d"
    url = DatabaseUrl.parse(text).with_transport("certs/ca.pem", plain_accepted=False)
    assert prisma.address(text, url).endswith(f"sslcert={Path('certs/ca.pem').absolute()}")


def test_our_libpq_knows_what_is_demanded() -> None:
    from psycopg2 import extensions

    assert extensions.libpq_version() >= 160000  # require_auth
    assert postgres.transport.SCRAM == "scram-sha-256"
