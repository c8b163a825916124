"""A database that only the production host can reach: real PostgreSQL behind a real sshd, which alone knows the database's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from azora_ci.clients.ssh import tunnel as ssh
from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.hosts import HostAddress
from azora_ci.core.variables import Secret
from azora_ci.database.migrations.prisma import address, through_tunnel
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.tunnel import DatabaseTunnel
from tests.steps.test_database_migrations import NEW
from tests.support import fragments_builder as build
from tests.support.backup_world import ID, SIMPLE, BackupWorld
from tests.support.migration_world import Deployment, production  # noqa: F401 - a release with pending migrations
from tests.support.sshd import Sshd, free_port

NAME = "db.internal"  # only the production host resolves this name


class Inside(Sshd):
    """An sshd that resolves a host name which no other program on this machine knows."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
        unshare = ["unshare", "--mount", "--propagation", "private"]
        self.prefix = [*unshare, "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(folder / "hosts")]

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PROD_HOST": f"127.0.0.1:{self.port}",
            "PROD_USER": self.user,
            "PROD_KEY": self.key,
            "PROD_KNOWN_HOSTS": self.known_hosts,
        }


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    server = Inside(tmp_path_factory.mktemp("host"), "AllowTcpForwarding yes")
    server.start()
    yield server
    server.stop()


def private(url: str) -> str:
    """Return a connection string as the production host would use it."""
    return url.replace("@127.0.0.1:", f"@{NAME}:")


# --- the steps ------------------------------------------------------------------------------------------------------------


def test_a_backup_is_made_and_proven_through_the_production_host(postgres_cluster, s3_server, host, tmp_path):
    world = BackupWorld(tmp_path, s3_server)
    world.config.write_text(world.config.read_text().replace("database = {", "database = { via_ssh = true", 1))
    url = private(postgres_cluster.fresh(SIMPLE))

    missing = world.run(url)
    assert missing.code == 2, missing
    assert "DATABASE_VIA_SSH" in missing.error["next"]

    outcome = world.run(url, **host.environ)
    assert outcome.code == 0, outcome
    assert (outcome.evidence["rows"], outcome.evidence["proof"]["depth"]) == (1501, "full")
    assert [key["source"] for key in outcome.evidence["host_keys"]] == ["pinned"]
    assert f"{NAME}:" in outcome.log  # the log calls the database by its own name
    assert host.key not in outcome.log


def test_what_a_first_deployment_accepted_is_expected_by_its_later_jobs(postgres_cluster, s3_server, host, tmp_path):
    world = BackupWorld(tmp_path, s3_server)
    world.config.write_text(world.config.read_text().replace("database = {", "database = { via_ssh = true", 1))
    url = private(postgres_cluster.fresh(SIMPLE))
    quick = {"BACKUP_PROOF": "none", "BACKUP_PROOF_REASON": "a test of the way there"}
    environ = {**host.environ, **quick, "PROD_KNOWN_HOSTS": "", "RECEIVED_ARTIFACTS_DIR": str(tmp_path / "received")}
    accepted = world.run(url, **environ, PROD_ACCEPT_NEW_HOST_KEY="true")
    assert accepted.code == 0, accepted
    assert "::warning title=New host keys were accepted::" in accepted.output
    assert [key["source"] for key in accepted.evidence["host_keys"]] == ["accepted"]

    earlier = tmp_path / "received" / f"backup-logs-{ID}" / "record" / "database-backup.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps(accepted.fragment))
    environ["NEEDS"] = build.needs_of(tmp_path / "received", ID)
    (tmp_path / "again").mkdir()
    other = BackupWorld(tmp_path / "again", s3_server)
    other.config.write_text(world.config.read_text().replace(world.location, other.location))
    expected = other.run(url, **environ)
    assert expected.code == 0, expected
    assert [key["source"] for key in expected.evidence["host_keys"]] == ["recorded"]


def test_migrations_are_applied_through_the_production_host(production: Deployment, host):  # noqa: F811 - the fixture
    production.back_up()
    text = production.config.read_text(encoding="utf-8").replace("database = { ", "database = { via_ssh = true, ")
    production.config.write_text(text, encoding="utf-8")
    assert production.run(PROD_DATABASE_URL=private(production.url), **host.environ) == 0, production.log
    assert production.applied()[-2:] == NEW


# --- what goes wrong ------------------------------------------------------------------------------------------------------


def tunnel(server: Sshd, url: str) -> DatabaseTunnel:
    """Return a tunnel to a server that an sshd sees."""
    credentials = Credentials(server.user, Secret(server.key), known_hosts=server.known_hosts)
    address = HostAddress("127.0.0.1", server.port)
    return DatabaseTunnel(address, to=DatabaseUrl.parse(url), credentials=credentials, clock=Clock())


def test_a_database_that_the_host_does_not_reach_is_said_to_be_so(host, monkeypatch):
    monkeypatch.setattr(ssh, "ATTEMPTS", 1)
    with pytest.raises(UnreachableError, match="cannot be reached from the production host") as caught:
        tunnel(host, f"postgresql://u:p@{NAME}:{free_port()}/azora").open()
    assert "Connection refused" in caught.value.what
    assert caught.value.where.startswith(f"{NAME}:")


def test_an_sshd_that_forbids_it_is_named_with_the_line(tmp_path, postgres_cluster):
    server = Inside(tmp_path / "strict", "AllowTcpForwarding no")
    server.start()
    try:
        with pytest.raises(BadInputError, match="sshd forbids forwarding") as caught:
            tunnel(server, private(postgres_cluster.cluster.url())).open()
    finally:
        server.stop()
    assert "AllowTcpForwarding yes" in caught.value.next_step


def test_a_session_through_the_tunnel_names_the_server_that_it_is_for(host, postgres_cluster):
    url = private(postgres_cluster.cluster.url())
    with tunnel(host, url) as opened:
        connection = DatabaseUrl.parse(url).with_tunnel(opened.port).connect()
        try:
            assert connection.info.dsn_parameters["host"] == NAME
        finally:
            connection.close()


# --- addresses ------------------------------------------------------------------------------------------------------------


def test_libpq_verifies_the_servers_own_name_behind_the_tunnel():
    url = DatabaseUrl.parse("postgresql://u:p@db.example:6432/azora?sslmode=verify-full").with_tunnel(4711)
    environment = url.libpq_env()
    expected = {"PGHOST": "db.example", "PGHOSTADDR": "127.0.0.1", "PGPORT": "4711", "PGSSLMODE": "verify-full"}
    assert expected.items() <= environment.items()
    assert url.text == "postgresql://u:p@db.example:4711/azora?sslmode=verify-full&hostaddr=127.0.0.1"
    assert url.location == "db.example:6432/azora"
    assert url.pooler_hint == "port 6432 is a pooler's"
    assert url.with_database("other").libpq_env()["PGPORT"] == "4711"


@pytest.mark.parametrize(
    ("text", "tunnelled"),
    [
        ("postgresql://u:p%40@db.example:5432/azora?schema=app", "postgresql://u:p%40@127.0.0.1:4711/azora?schema=app"),
        ("postgres://u:p@ss@db.example/azora", "postgres://u:p@ss@127.0.0.1:4711/azora"),
        ("postgresql://u@[2001:db8::1]:1/azora?host=x&sslmode=require", "postgresql://u@127.0.0.1:4711/azora?sslmode=require"),
    ],
)
def test_prisma_is_led_into_the_tunnel(text, tunnelled):
    assert through_tunnel(text, 4711) == tunnelled
    assert through_tunnel(text, None) == text


@pytest.mark.parametrize("option", ["sslmode=verify-full", "sslaccept=strict"])
def test_what_prisma_could_not_verify_is_refused(option):
    with pytest.raises(BadInputError, match="cannot verify the server's name"):
        through_tunnel(f"postgresql://u:p@db.example/azora?schema=a&{option}", 4711)


@pytest.mark.parametrize(
    ("protects", "query"),
    [(True, ""), (False, "?sslmode=require&sslaccept=accept_invalid_certs&channel_binding=require")],
)
def test_behind_a_tunnel_that_replaces_no_tls_prisma_binds_its_proof_to_it(protects, query):
    text = "postgresql://u:p@db.example/azora"
    url = DatabaseUrl.parse(text).with_transport("/ca.pem", plain_accepted=False).with_tunnel(4711, protects=protects)
    assert address(text, url) == f"postgresql://u:p@127.0.0.1:4711/azora{query}"
    if not protects:
        nobody = DatabaseUrl.parse("postgresql://u@db.example/azora").with_transport("/ca.pem", plain_accepted=False)
        with pytest.raises(BadInputError, match="cannot verify the server's name"):
            address("postgresql://u@db.example/azora", nobody.with_tunnel(4711, protects=False))
