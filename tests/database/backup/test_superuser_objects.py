"""Objects that only superusers may own are proven, whatever production's superuser is called."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import SUPERUSER, Cluster
from azora_ci.database.postgres import DatabaseUrl
from tests.support.backup_world import SIMPLE, BackupWorld

OBJECTS = """
CREATE ROLE {role} SUPERUSER;
CREATE ROLE "plain {role}";
SET ROLE {role};
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER watches ON ddl_command_end EXECUTE FUNCTION watch();
CREATE FOREIGN DATA WRAPPER elsewhere;
CREATE SERVER far FOREIGN DATA WRAPPER elsewhere OPTIONS (host 'db');
CREATE USER MAPPING FOR "plain {role}" SERVER far OPTIONS (password 'x');
CREATE FOREIGN TABLE distant (id int) SERVER far;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION whole_schema FOR TABLES IN SCHEMA public;
CREATE FUNCTION inner_c(internal) RETURNS internal LANGUAGE internal AS 'int4in';
CREATE CAST (oid AS float4) WITH INOUT;
CREATE FUNCTION same(int, int) RETURNS bool LANGUAGE internal IMMUTABLE LEAKPROOF AS 'int4eq';
CREATE OPERATOR CLASS mine FOR TYPE int4 USING hash AS OPERATOR 1 =, FUNCTION 1 hashint4(int4);
CREATE TEXT SEARCH TEMPLATE plain_template (LEXIZE = dsimple_lexize);
CREATE ACCESS METHOD again TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE typed (v int) USING again;
INSERT INTO typed VALUES ('7');
CREATE SUBSCRIPTION follows CONNECTION 'host=192.0.2.1 dbname=x' PUBLICATION p WITH (connect = false, slot_name = NONE);
RESET ROLE;
"""
LOGIN = """CREATE FUNCTION at_login() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN IF session_user <> 'postgres' THEN RAISE EXCEPTION 'you may not log in'; END IF; END $$;
CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION at_login();"""


@pytest.fixture
def world(tmp_path: Path, s3_server) -> BackupWorld:
    return BackupWorld(tmp_path, s3_server)


@pytest.fixture(scope="module")
def production(postgres_cluster) -> str:
    url = postgres_cluster.fresh(SIMPLE + OBJECTS.format(role="chief"))
    if postgres_cluster.cluster.major >= 17:
        postgres_cluster.execute(url, LOGIN)
    return url


def test_what_a_superuser_of_any_name_owns_is_proven(world: BackupWorld, production: str):
    assert DatabaseUrl.parse(production).user != SUPERUSER, "a superuser of the scratch cluster's name would hide what this shows"
    outcome = world.run(production)
    assert outcome.code == 0, outcome
    assert {"postgres", "chief"} <= set(world.manifest()["server"]["superusers"])
    drill = world.run("", "restore_drill")
    assert drill.code == 0, drill


def test_a_server_of_somebody_else_keeps_nothing_of_it(world: BackupWorld, production: str, postgres_cluster, tmp_path: Path):
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path / "verify", processes=processes, major=postgres_cluster.cluster.major, superuser="verifier") as verify:
        outcome = world.run(production, BACKUP_VERIFY_DATABASE_URL=verify.url())
        assert outcome.code == 0, outcome
        left = "SELECT datname::text FROM pg_database UNION SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
        names = postgres_cluster.execute(verify.url(), left)
    assert names == [("postgres",), ("template0",), ("template1",), ("verifier",)]
