"""What belongs to a database itself survives a restore: in the cluster of a proof, and in the database that is swapped in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database import properties
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.properties import Properties
from azora_ci.database.restore import scripts
from tests.conftest import DatabaseMaker
from tests.rollback.test_instructions import Rescue
from tests.support import fragments_builder as build
from tests.support.backup_world import SIMPLE, BackupWorld
from tests.support.distribution import newest_of_the_distribution

ICU = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'sv-SE' ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
# Words that Swedish, German and C sort in three ways.
WORDS = "CREATE TABLE words (word text); INSERT INTO words VALUES ('ära'), ('zebra'), ('Apa'), ('apa'), ('örn');"
SORTED = "SELECT string_agg(word, ' ' ORDER BY word) FROM words"
DECORATED = r"""
COMMENT ON DATABASE {name} IS 'It''s the \ "shop"';
ALTER DATABASE {name} OWNER TO "shop Owner";
REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC;
GRANT CONNECT ON DATABASE {name} TO reader WITH GRANT OPTION;
GRANT CREATE ON DATABASE {name} TO reader;
ALTER DATABASE {name} SET search_path TO "$user", "Odd, Schema", public, 'it''s';
ALTER DATABASE {name} SET statement_timeout = '90s';
ALTER DATABASE {name} SET azora."Own_setting" TO 'a=b, ''c''; DROP TABLE x';
ALTER DATABASE {name} SET default_transaction_read_only = on;
ALTER DATABASE {name} SET temp_tablespaces = '';
ALTER ROLE reader IN DATABASE {name} SET search_path TO nothing;
ALTER ROLE "shop Owner" IN DATABASE {name} SET work_mem = '7MB';
ALTER DATABASE {name} CONNECTION LIMIT 17;
"""


@pytest.fixture(scope="module")
def of_distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseMaker]:
    """Give a cluster of the distribution's PostgreSQL, which knows ICU."""
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    major = int(newest_of_the_distribution().parent.name)
    with Cluster.start(tmp_path_factory.mktemp("icu"), processes=processes, major=major, superuser="postgres") as cluster:
        maker = DatabaseMaker(cluster)
        maker.execute(cluster.url(), 'CREATE ROLE "shop Owner"; CREATE ROLE reader')
        yield maker
    processes.end_all()


def decorate(maker: DatabaseMaker, url: str) -> DatabaseUrl:
    """Give a database everything that no dump of it holds."""
    database = DatabaseUrl.parse(url)
    maker.execute(maker.cluster.url(), DECORATED.format(name=database.database))
    return database


@pytest.fixture(scope="module")
def shop(of_distribution: DatabaseMaker) -> DatabaseUrl:
    return decorate(of_distribution, of_distribution.fresh(SIMPLE + WORDS, options=ICU))


def read(maker: DatabaseMaker, name: str) -> Properties:
    connection = DatabaseUrl.parse(maker.cluster.url()).connect()
    try:
        with connection.cursor() as cursor:
            return properties.read_properties(cursor, name)
    finally:
        connection.close()


def test_everything_is_read(of_distribution: DatabaseMaker, shop: DatabaseUrl):
    found = read(of_distribution, shop.database)
    assert (found.provider, found.locale, found.owner, found.connection_limit) == ("icu", "sv-SE", "shop Owner", 17)
    assert found.comment == 'It\'s the \\ "shop"'
    assert ("", "azora.Own_setting", "a=b, 'c'; DROP TABLE x") in found.settings
    assert ("shop Owner", "work_mem", "7MB") in found.settings
    assert ("reader", "CONNECT", True) in found.grants and ("reader", "CREATE", False) in found.grants
    assert not [grant for grant in found.grants if grant[0] == ""]


def test_a_proof_reproduces_it_and_the_manifest_keeps_it(tmp_path: Path, s3_server, shop: DatabaseUrl, of_distribution: DatabaseMaker):
    world = BackupWorld(tmp_path, s3_server)
    newer = find_binary("pg_dump", None).parent  # before the server's own version in PATH
    outcome = world.run(shop.text, PATH=f"{newer}:/usr/local/bin:/usr/bin:/bin")
    assert outcome.code == 0, outcome
    document = world.manifest()
    assert document["client_version"].startswith(f"pg_dump (PostgreSQL) {of_distribution.cluster.major}.")
    assert document["proof"]["unreproduced"] == []
    assert Properties.of_document(document["server"]["database_properties"]) == read(of_distribution, shop.database)
    drill = world.run("", "restore_drill")
    assert drill.code == 0, drill
    assert "is not like production" not in drill.output + outcome.output


def test_what_a_server_cannot_reproduce_is_said(tmp_path: Path, s3_server, shop: DatabaseUrl):
    """A newer server without ICU, whose superuser may prove the rows but not the order of text."""
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path / "verify", processes=processes) as verify:
        if verify.major == int(newest_of_the_distribution().parent.name):
            pytest.skip("this machine has one PostgreSQL only, and it knows ICU")
        world = BackupWorld(tmp_path, s3_server)
        outcome = world.run(shop.text, BACKUP_VERIFY_DATABASE_URL=verify.url())
    assert outcome.code == 0, outcome
    said = "\n".join(world.manifest()["proof"]["unreproduced"])
    assert "provider: 'libc', in production 'icu'" in said and "sv-SE" in said
    assert "provider: 'libc', in production 'icu'" in outcome.output


@pytest.fixture
def rescue(tmp_path: Path, of_distribution: DatabaseMaker, s3_server) -> Rescue:
    return Rescue(tmp_path, of_distribution, s3_server)


def test_the_database_that_is_swapped_in_is_like_the_one_before(rescue: Rescue, tmp_path: Path, s3_server, of_distribution: DatabaseMaker):
    url = decorate(of_distribution, of_distribution.fresh(SIMPLE + WORDS, options=ICU))
    before, order = read(of_distribution, url.database), of_distribution.execute(url.text, SORTED)
    outcome = BackupWorld(tmp_path, s3_server).run(url.text)
    assert outcome.code == 0, outcome
    rescue.environ["PGDATABASE"] = url.database
    restored = rescue.bash(scripts.restore_script(outcome.evidence, build.DEPLOYMENT_ID))
    assert restored.returncode == 0, restored.stderr
    swapped = rescue.bash(scripts.swap_script(build.DEPLOYMENT_ID))
    assert swapped.returncode == 0, swapped.stderr
    assert read(of_distribution, url.database) == before
    assert of_distribution.execute(url.text, SORTED) == order == [("apa Apa zebra ära örn",)]
    assert of_distribution.execute(url.text, "SHOW search_path") == [('"$user", "Odd, Schema", public, "it\'s"',)]


def test_a_difference_stops_the_script(rescue: Rescue, of_distribution: DatabaseMaker):
    """A trigger that changes the limit afterwards stands for whatever keeps the restored database from being the same."""
    import gzip

    backup = rescue.store(gzip.compress(rescue.dump))
    script = scripts.restore_script(backup, build.DEPLOYMENT_ID)
    skewed = script.replace(
        "described() {", 'psql -X -q -d "$maintenance" -c "ALTER DATABASE $restored SET work_mem = 1024"\ndescribed() {'
    )
    completed = rescue.bash(skewed)
    assert completed.returncode == 1
    assert "work_mem=1024" in completed.stderr and "before you swap" in completed.stderr


# --- the comparison and what is made of it, without a database -----------------------------------------------------------------

PLAIN = Properties.of_libc("UTF8", "C", "C")


def test_every_difference_is_named():
    changes = {
        "encoding": "LATIN1", "collate": "de_DE", "ctype": "de_DE", "provider": "icu", "locale": "de", "icu_rules": "&a", "owner": "x",
        "tablespace": "fast", "connection_limit": 3, "comment": "", "settings": (("", "jit", "on"),), "grants": (("a", "CREATE", True),),
    }  # fmt: skip
    assert set(changes) == set(Properties.__dataclass_fields__)
    for name, value in changes.items():
        lines = properties.differences(PLAIN, replace(PLAIN, **{name: value}))
        assert len(lines) == 1 and name.replace("_", " ") in lines[0]
    assert properties.differences(PLAIN, PLAIN) == []
