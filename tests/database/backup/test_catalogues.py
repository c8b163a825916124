"""What pg_dump dumps and psql restores without an error is proven, or refused with the object's name and why.

``AZORA_CATALOGUES`` is how many catalogues are tried; the same ones each time unless it is set.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from azora_ci.clients.s3.bucket import Bucket, open_bucket
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.config import BackupSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database import scratch
from azora_ci.database.backup import manifest, pipeline
from azora_ci.database.backup.setup import BackupContext
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl, find_binary
from azora_ci.database.server import server_facts
from tests.conftest import DatabaseMaker
from tests.support import catalogues
from tests.support.stores import QUICK, Stores

MANY = os.environ.get("AZORA_CATALOGUES")
EXAMPLES = int(MANY or 8)
IDENTITY = {"version": "v1.2.3", "git_sha": "0" * 40, "environment": "production"}
REFUSED = {"function that finds others by search_path", "check that reads another table"}


class Workshop:
    """A production cluster, another one where backups are restored, and a bucket."""

    def __init__(self, production: DatabaseMaker, cluster: Cluster, bucket: Bucket, folder: Path) -> None:
        self.production, self.cluster, self.bucket, self.folder = production, cluster, bucket, folder
        self.numbers = count(1764000000)
        for role in catalogues.ROLES:
            production.execute(production.cluster.url(), f"CREATE ROLE {catalogues.quoted(role)}")
        self.shapes = [shape for shape in catalogues.SHAPES if self.can_make(shape)]

    def prove(self, sql: list[str]) -> None:
        """Make a database, back it up, and prove the backup: at once, and again as the drill does. Raises the backup's errors."""
        url = DatabaseUrl.parse(self.production.fresh())
        try:
            for part in sql:
                self.production.execute(url.text, part)
            self._back_up(url, f"{next(self.numbers)}-abc123")
        finally:
            with closing(DatabaseUrl.parse(self.production.cluster.url()).connect()) as connection, connection.cursor() as cursor:
                scratch.drop_database(cursor, url)

    def can_make(self, shape: str) -> bool:
        """Say whether this server can make a shape. Raises the error where every server of this version should be able to."""
        if catalogues.AT_LEAST.get(shape, 0) > self.production.cluster.major:
            return False
        try:
            sql = catalogues.script(shape, 1, catalogues.WORDS[:7], catalogues.ROLES)
            self.production.execute(self.production.cluster.url(), f"BEGIN; {sql} ROLLBACK")
        except psycopg2.errors.FeatureNotSupported:
            if shape not in catalogues.OPTIONAL:
                raise
            return False
        return True

    def _back_up(self, url: DatabaseUrl, deployment_id: str) -> None:
        processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
        backup = BackupSettings(f"s3://{self.bucket.name}/prod", "GOVERNANCE", 1)
        server = server_facts(url)
        context = BackupContext(
            self.bucket, backup, processes, Clock(), {**IDENTITY, "deployment_id": deployment_id}, "full",
            verify_url=DatabaseUrl.parse(self.cluster.url()), scratch_dir=self.folder,
        )  # fmt: skip
        origin = pipeline.Origin(url, server, find_binary("pg_dump", server.major))
        try:
            taken = pipeline.take(context, manifest.Names(backup, deployment_id), origin, lambda _location: None)
            assert context.unreproduced == []
            pipeline.prove_stored(context, taken.document, manifest.require_object(self.bucket, taken))
        finally:
            processes.end_all()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, postgres_cluster: DatabaseMaker, s3_session: Stores) -> Iterator[Workshop]:
    s3_session.faults.clear()
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    bucket = open_bucket(s3_session.settings, s3_session.make_bucket(), patience=QUICK)
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("catalogues")
        cluster = stack.enter_context(Cluster.start(folder / "cluster", processes=processes, major=postgres_cluster.cluster.major))
        yield Workshop(postgres_cluster, cluster, bucket, folder)
        for role in catalogues.ROLES:
            postgres_cluster.execute(postgres_cluster.cluster.url(), f"DROP ROLE {catalogues.quoted(role)}")


@pytest.mark.timeout(900)  # as many as are asked for
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=MANY is None, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_a_catalogue_is_proven_or_refused_by_name(workshop: Workshop, data: st.DataObject):
    catalogue = data.draw(catalogues.catalogues(workshop.shapes))
    names = [name for name, _ in catalogue]
    note("\n".join(sql for _, sql in catalogue))
    try:
        workshop.prove([sql for _, sql in catalogue])
    except NotTrueError as error:
        assert REFUSED & set(names), f"{names} was refused: {error.message()}"
        assert "restoring TABLE DATA" in error.where, error.message()
    else:
        assert not REFUSED & set(names), f"{names} was proven, although psql cannot restore it"


@pytest.mark.faults
@pytest.mark.parametrize("shape", sorted(catalogues.SHAPES))
def test_each_shape_alone(workshop: Workshop, shape: str):
    if shape not in workshop.shapes:
        pytest.skip("this server cannot make it")
    sql = catalogues.script(shape, 1, catalogues.WORDS[:7], catalogues.ROLES)
    try:
        workshop.prove([sql])
    except NotTrueError as error:
        assert shape in REFUSED, error.message()
        assert "restoring TABLE DATA" in error.where
    else:
        assert shape not in REFUSED
