from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.errors import BadInputError
from azora_ci.database import postgres
from azora_ci.database.postgres import DatabaseUrl
from tests.support.distribution import newest_of_the_distribution

PASSWORDS = ["plain", "p@ss", "a/b", "50%off", "100%", "@@", "a:b", "x?y=1#z", "ä€", "%zz%41"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_password_as_it_is(password: str):
    url = DatabaseUrl.parse(f"postgresql://user:{password}@db.example:5433/azora?sslmode=require")
    assert (url.user, url.password, url.host, url.port, url.database) == ("user", password, "db.example", "5433", "azora")
    assert url.parameters == {"sslmode": "require"}


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_password_survives_its_own_text(password: str):
    url = DatabaseUrl("db", "5432", "u@x", password, "a/z")
    assert DatabaseUrl.parse(url.text) == url


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("postgres://u@h/d", "h", ""),
        ("postgresql://u:p@[::1]:5432/d", "::1", "5432"),
        ("postgresql://u:p@one:1,two:2/d", "one,two", "1,2"),
        ("postgresql://u:p@localhost/d?host=/var/run/postgresql", "/var/run/postgresql", ""),
    ],
)
def test_hosts(text: str, host: str, port: str):
    url = DatabaseUrl.parse(text)
    assert (url.host, url.port) == (host, port)
    assert DatabaseUrl.parse(url.text) == url


def test_prismas_parameters_are_left_out_and_named():
    url = DatabaseUrl.parse("postgresql://u:p@h/d?schema=app&connection_limit=3&pgbouncer=true&connect_timeout=9&sslcert=ca.pem")
    assert url.parameters == {"connect_timeout": "9", "sslrootcert": "ca.pem"}
    assert url.ignored == ("connection_limit", "pgbouncer", "schema")
    assert url.schema == "app"
    assert url.pooler_hint == "the connection string says pgbouncer=true"


@pytest.mark.parametrize("address", ["h:6543", "h:6432", "aws-0-eu.pooler.supabase.com:5432", "ep-x-pooler.eu.neon.tech"])
def test_poolers_are_known_by_their_address(address: str):
    assert DatabaseUrl.parse(f"postgresql://u:p@{address}/d").pooler_hint


def test_a_plain_address_is_no_pooler():
    assert DatabaseUrl.parse("postgresql://u:p@db.carpooler-app.com:5432/d").pooler_hint is None


def test_nothing_secret_in_what_is_shown():
    url = DatabaseUrl.parse("postgresql://user:secret-word@h:1/d")
    assert "secret-word" not in f"{url} {url!r} {url.location}"


def test_environment_for_libpq_holds_everything():
    env = DatabaseUrl.parse("postgresql://u:p%40@h:1/d?options=-c%20a%3Db").libpq_env()
    where = {"PGHOST": "h", "PGPORT": "1", "PGUSER": "u", "PGPASSWORD": "p@", "PGDATABASE": "d"}
    protection = {"PGSSLMODE": "require", "PGREQUIREAUTH": "scram-sha-256", "PGCHANNELBINDING": "require"}
    assert env == {**where, **protection, "PGOPTIONS": "-c a=b", "PGCONNECT_TIMEOUT": "15"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mysql://u:hidden@h/d",
        "postgresql://u:hidden@/d",
        "postgresql://u:hidden@h/",
        "postgresql://h/d",
        "postgresql://u:hidden@h:99999/d",
    ],
)
def test_what_cannot_be_used_is_said_without_showing_it(text: str):
    with pytest.raises(BadInputError) as caught:
        DatabaseUrl.parse(text, "SOME_URL")
    assert caught.value.where == "SOME_URL"
    assert "hidden" not in caught.value.message()


def test_programs_of_one_major_version():
    pg_dump = postgres.find_binary("pg_dump", 18)
    printed = subprocess.run([str(pg_dump), "--version"], capture_output=True, text=True, check=True).stdout
    assert postgres.version_text(pg_dump) in printed
    assert postgres.major_of(pg_dump) == 18


@pytest.mark.parametrize("name", ["pg_dump", "psql", "pg_restore", "postgres", "initdb"])
def test_programs_of_the_distribution(name: str):
    program = newest_of_the_distribution() / name
    printed = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    assert postgres.version_text(program) == printed
    assert postgres.major_of(program) == int(program.parent.parent.name)
    assert postgres.find_binary(name, postgres.major_of(program)) == program


@pytest.mark.parametrize(
    ("line", "major"),
    [
        ("pg_dump (PostgreSQL) 18.1", 18),
        ("pg_dump (PostgreSQL) 9.6.24", 9),
        ("pg_dump (PostgreSQL) 19beta1", 19),
        ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15),
        ("pg_dump (PostgreSQL) 16.9 (Ubuntu 16.9-0ubuntu0.24.04.1)", 16),
        ("pg_dump (PostgreSQL) 17.5 (Ubuntu 17.5-1.pgdg24.04+1)", 17),
        ("%s (PostgreSQL) 14.19 (Homebrew)", 14),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_version_lines_of_packages(tmp_path: Path, line: str, major: int, end: bytes):
    program = tmp_path / "pg_dump"
    program.write_bytes(b"\x7fELF\0postgres (PostgreSQL) 7.4\n\0" + line.encode() + end)
    assert postgres.major_of(program) == major
    assert postgres.version_text(program) == line.replace("%s", "pg_dump")


def test_every_folder_of_path_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An old client before a new one, as on a machine that somebody upgraded: the server's version decides."""
    for major in (11, 12):
        (tmp_path / str(major)).mkdir()
        program = tmp_path / str(major) / "pg_dump"
        program.write_bytes(f"pg_dump (PostgreSQL) {major}.22 (Debian {major}.22-1)\n".encode())
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/11::{tmp_path}/none:{tmp_path}/12:/usr/bin")
    assert [postgres.find_binary("pg_dump", major).parent.name for major in (11, 12)] == ["11", "12"]
    with pytest.raises(BadInputError, match="the server is PostgreSQL 19; pg_dump is here in major versions: 11, 12, ") as caught:
        postgres.find_binary("pg_dump", 19)
    assert "postgresql-client-19" in caught.value.next_step


def test_missing_major_names_the_package():
    with pytest.raises(BadInputError) as caught:
        postgres.find_binary("pg_dump", 3)
    assert "postgresql-client-3" in caught.value.next_step
    assert "18" in caught.value.what


def test_a_script_is_no_program_of_postgresql(tmp_path: Path):
    script = tmp_path / "pg_dump"
    script.write_text("#!/bin/sh\nexec real-pg_dump\n")
    assert postgres.major_of(script) is None
