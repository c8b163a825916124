"""Whether sessions keep what they are told and share a snapshot is tried; what an address is called decides nothing."""

from __future__ import annotations

import pytest

from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.database import session
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import server_facts
from tests.support.pooler import SessionProxy, TransactionPooler

# What an administrator may have set for everybody, and what a dump needs instead. A version knows some of them only.
HOSTILE = {
    "statement_timeout": "150ms",
    "lock_timeout": "150ms",
    "idle_in_transaction_session_timeout": "150ms",
    "transaction_timeout": "150ms",
    "idle_session_timeout": "150ms",
    "row_security": "on",
    "synchronize_seqscans": "on",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "client_encoding": "LATIN1",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "search_path": "hidden, pg_catalog",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "default_transaction_read_only": "on",
}


def hostile(postgres_cluster, sql: str = "") -> str:
    """Return a database that gives every client the settings above; its schema ``hidden`` shadows a function of PostgreSQL."""
    url = postgres_cluster.fresh("CREATE SCHEMA hidden; CREATE FUNCTION hidden.set_config(text, text, boolean) RETURNS text LANGUAGE sql "
                                 "AS $$ SELECT 1 / 0 || '' $$;" + sql)  # fmt: skip
    name = DatabaseUrl.parse(url).database
    known = {row[0].lower() for row in postgres_cluster.execute(url, "SELECT name FROM pg_settings")}
    for setting, value in HOSTILE.items():
        if setting in known:
            quoted = value if setting == "search_path" else f"'{value}'"
            postgres_cluster.execute(postgres_cluster.cluster.url(), f"ALTER DATABASE {name} SET {setting} TO {quoted}")
    return url


def test_a_session_of_ours_is_as_pg_dump_makes_its_own(postgres_cluster):
    connection = DatabaseUrl.parse(hostile(postgres_cluster)).connect()
    with connection.cursor() as cursor:
        session.settle(cursor, statement_timeout="7000")
        cursor.execute("SELECT lower(name), setting FROM pg_settings")
        settings = dict(cursor.fetchall())
    connection.close()
    assert settings["statement_timeout"] == "7000"
    assert (settings["search_path"], settings["client_encoding"]) == ("", "UTF8")
    wanted = {**session.SETTINGS, "datestyle": "ISO, DMY", "statement_timeout": "7000"}
    assert {name: settings[name] for name in wanted if name in settings} == {name: wanted[name] for name in wanted if name in settings}
    assert "transaction_timeout" in settings or postgres_cluster.cluster.major < 17


def test_a_proxy_that_invents_the_process_id_is_no_obstacle(postgres_cluster):
    with SessionProxy(postgres_cluster.fresh()) as proxy:
        session.require_shared_snapshots(DatabaseUrl.parse(f"{proxy.url}?pgbouncer=true"))
        assert proxy.clients == 1 + session.OTHERS
        assert server_facts(DatabaseUrl.parse(proxy.url)).through_pooler


def test_a_pooler_that_changes_the_server_between_transactions_is_refused(postgres_cluster):
    with TransactionPooler(postgres_cluster.fresh()) as pooler:
        with pytest.raises(BadInputError, match="Two sessions cannot share") as refusal:
            session.require_shared_snapshots(DatabaseUrl.parse(pooler.url))
        assert "was seen in another one" in refusal.value.what
        assert DatabaseUrl.parse(pooler.url).password not in refusal.value.message()
        # Nothing of ours stays in connections that the application uses.
        assert postgres_cluster.execute(pooler.url, "SELECT current_setting('row_security'), current_setting('statement_timeout')") == [
            ("on", "0")
        ]


def test_an_address_that_leads_to_several_servers_is_refused(postgres_cluster, monkeypatch):
    """Each session to another database stands for it: a snapshot is not known there either."""
    url = DatabaseUrl.parse(postgres_cluster.fresh())
    urls = iter([postgres_cluster.fresh() for _ in range(1 + session.OTHERS)])
    connect = DatabaseUrl.connect
    monkeypatch.setattr(DatabaseUrl, "connect", lambda _, **more: connect(DatabaseUrl.parse(next(urls)), **more))
    with pytest.raises(BadInputError, match="different database"):
        session.require_shared_snapshots(url)


def test_a_server_that_does_not_answer_is_unreachable():
    with pytest.raises(UnreachableError):
        session.require_shared_snapshots(DatabaseUrl.parse("postgresql://nobody@127.0.0.1:1/nothing"))
