"""Fixtures that several rooms share. Append below; keep each owner's part together."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.rehearsal.kubernetes.cluster import Cluster as KubernetesCluster
from tests.support.databases import create_database
from tests.support.distribution import newest_of_the_distribution
from tests.support.sample import migrated, running, sample  # noqa: F401 - the sample application, for every room
from tests.support.stores import s3_server, s3_session  # noqa: F401 - a real S3 server per session, its faults cleared around each test

# --- every test -----------------------------------------------------------------------------------------------------------

# A shell without job control starts background commands with SIGINT ignored, and every process below inherits that: tests that
# interrupt a program would then wait for ever, depending on how somebody started them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Give signals back: a job that ends ignores them, and what later tests start would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --- a real PostgreSQL, one per session -----------------------------------------------------------------------------------

SUPERUSER = "postgres"  # as everywhere; that of a cluster where backups are restored to prove them has another name


class DatabaseMaker:
    """The session's cluster, and fresh databases in it: ``fresh()`` returns a connection string, ``execute(url, sql)`` runs SQL."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.count = 0

    def fresh(self, sql: str = "", *, options: str = "", name: str | None = None) -> str:
        self.count += 1
        url = create_database(self.cluster, name or f"fresh_{self.count}", options)
        if sql:
            self.execute(url, sql)
        return url

    def execute(self, url: str, sql: str) -> list[tuple[object, ...]]:
        connection = DatabaseUrl.parse(url).connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        choices=("newest", "distribution"),
        default="newest",
        help="whose PostgreSQL the tests' database is: the newest on this machine (a wheel's), or that of the distribution's packages",
    )


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[DatabaseMaker]:
    major = int(newest_of_the_distribution().parent.name) if request.config.getoption("postgres") == "distribution" else None
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    with Cluster.start(tmp_path_factory.mktemp("postgres"), processes=processes, major=major, superuser=SUPERUSER) as cluster:
        yield DatabaseMaker(cluster)
    processes.end_all()


# --- a real Docker daemon and registries, one of each per session ------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    """Give the address of a daemon of our own."""
    from tests.support.docker_engine import engine

    with engine() as url:
        yield url


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give host and port of a registry without a login."""
    from tests.support.docker_engine import registry

    with registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="session")
def private_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give host and port of a registry that demands a login."""
    from tests.support.docker_engine import registry

    with registry(tmp_path_factory.mktemp("private-registry"), login=True) as host:
        yield host


# --- a real Kubernetes cluster with Argo Rollouts, one per session --------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the fixtures of these tests out of the time that a test may take: whoever is the first may have to build the control plane."""
    for item in items:
        if item.get_closest_marker("kubernetes") and not item.get_closest_marker("rehearsal"):  # those have limits of their own
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesCluster]:
    """Give a cluster of two nodes. A test takes a namespace of its own, and leaves the cluster's parts running."""
    from tests.support.kubernetes import running_cluster

    with running_cluster(tmp_path_factory.mktemp("kubernetes"), nodes=2) as cluster:
        yield cluster
