"""A database that only the cluster reaches: real PostgreSQL behind a pod's port, through a real API server, with the least rights."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from azora_ci.clients.kubernetes.identity import AUDIENCE
from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import Aws, DatabaseTransport, ProductionHosts
from azora_ci.core.variables import Secret, load
from azora_ci.database.forward import forwarded_database
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.gates import production as gates
from azora_ci.steps.pre_deployment_validation import variable_problems
from azora_ci.targets.base import TargetContext
from azora_ci.targets.kubernetes import doctor, manifests
from azora_ci.targets.kubernetes.cluster import Names
from tests.database.test_transport import tls_cluster  # noqa: F401 - a server whose certificate is for db.azora.example
from tests.steps.test_database_migrations import NEW
from tests.support import deploy_config
from tests.support.backup_world import SIMPLE, BackupWorld
from tests.support.databases import create_database
from tests.support.forwarding import Place, api_of
from tests.support.migration_world import Deployment, production  # noqa: F401 - a release with pending migrations

pytestmark = pytest.mark.kubernetes
NAME = "db.azora.example"  # nobody resolves it


def tables(place: Place, **database: Any) -> dict[str, Any]:
    """Return the tables of a configuration with a database behind the cluster."""
    services = {"api_gateway": {"rollout": "api-gateway", "container": "app"}}
    forward = {"service": "postgres", "namespace": place.namespace, **database}
    settings = {"namespace": "default", "services": services, "database": {k: v for k, v in forward.items() if v is not None}}
    return {
        "target": {"kind": "kubernetes", "kubernetes": settings},
        "registry": {"repository": "registry.example"},
        "rollout": {"inconclusive": "pass"},
    }


def behind(kubernetes, folder: Path, url: str, **more: Any) -> Place:
    """Return a place whose pod passes connections on to a database."""
    place = Place(kubernetes, folder, upstream=int(DatabaseUrl.parse(url).port), **more)
    place.add("postgres-0")
    return place


def hidden(url: str, query: str = "") -> str:
    """Return a connection string as a pod of the cluster would use it."""
    given = DatabaseUrl.parse(url)
    return f"postgresql://{given.user}:{given.password}@{NAME}:5432/{given.database}{query}"


def context_of(place: Place, folder: Path, access: Path | None = None, **database: Any):
    loaded = config.load(deploy_config.write(folder / "forward.toml", **tables(place, **database)))
    clock = Clock()
    hosts = load(ProductionHosts, {"KUBECONFIG_DATA": (access or place.cluster.kubeconfig).read_text()})
    return TargetContext(loaded, Processes(JobLog(Actions(stream=io.StringIO()), clock)), clock, folder / "logs", 5.0, access=hosts)


def opened(context, url: DatabaseUrl):
    return forwarded_database(url, context.config, context.access.kubeconfig_data, context.processes, context.clock)


def test_an_identity_that_one_of_the_jobs_may_not_have_is_refused_in_the_first(kubernetes, tmp_path):
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "aws",
            "env": [{"name": AUDIENCE, "value": "sts.amazonaws.com"}],
        }
    }
    document = yaml.safe_load(kubernetes.kubeconfig.read_text())
    document["users"][0]["user"] = user
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(document))
    place = Place(kubernetes, tmp_path)
    url = DatabaseUrl.parse(f"postgresql://u:p@{NAME}:5432/d")
    with (
        pytest.raises(BadInputError, match="database-migrations may ask for none"),
        opened(context_of(place, tmp_path, tmp_path / "kubeconfig"), url),
    ):
        pass


# --- the steps ------------------------------------------------------------------------------------------------------------


def test_a_backup_is_made_and_proven_through_the_cluster(kubernetes, tls_cluster, s3_server, tmp_path):  # noqa: F811
    cluster, certificate = tls_cluster
    plain = create_database(cluster, "forwarded")
    connection = DatabaseUrl.parse(plain).connect()
    with connection.cursor() as cursor:
        cursor.execute(SIMPLE)
    connection.close()
    place = behind(kubernetes, tmp_path, plain)
    world = BackupWorld(tmp_path, s3_server)
    deploy_config.write(world.config, backup={"location": world.location}, migrations={"command": []}, **tables(place))
    url = hidden(plain)

    missing = world.run(url, PROD_DATABASE_CA=str(certificate))
    assert missing.code == 2, missing
    assert "DATABASE_VIA_KUBERNETES" in missing.error["next"]

    access = place.user("backup").read_text()
    outcome = world.run(url, PROD_DATABASE_CA=str(certificate), KUBECONFIG_DATA=access)
    assert outcome.code == 0, outcome
    assert (outcome.evidence["rows"], outcome.evidence["proof"]["depth"]) == (1501, "full")
    assert outcome.evidence["database_transport"] == "verify-full"
    assert f"through the cluster: service {place.namespace}/postgres, port 5432" in outcome.log
    assert f"{NAME}:5432" in outcome.log  # the log calls the database by its own name
    assert "token" not in outcome.log
    assert " ended: " not in outcome.log


def test_a_backup_that_loses_its_connection_says_so(kubernetes, postgres_cluster, s3_server, tmp_path):
    url = postgres_cluster.fresh("CREATE TABLE big AS SELECT n, md5(n::text) || repeat('x', 500) AS text FROM generate_series(1, 60000) n")
    place = behind(kubernetes, tmp_path, url, limit=8_000_000)
    world = BackupWorld(tmp_path, s3_server)
    deploy_config.write(world.config, backup={"location": world.location}, migrations={"command": []}, **tables(place))
    outcome = world.run(hidden(url), PROD_DATABASE_PLAIN="true", KUBECONFIG_DATA=place.user("backup").read_text())
    assert outcome.code in {1, 3}, outcome
    assert f"a connection through service {place.namespace}/postgres, port 5432 ended: " in outcome.log
    assert "backup" not in " ".join(name for name in world.listing() if name.endswith(".manifest.json"))


def test_migrations_are_applied_through_the_cluster(kubernetes, production: Deployment, tmp_path):  # noqa: F811 - the fixture
    production.back_up()
    place = behind(kubernetes, tmp_path, production.url)
    production._write({"database": {"migrate": ["npx", "prisma", "migrate", "deploy"], "prepare": []}, **tables(place)})
    access = place.user("migrate").read_text()
    assert production.run(PROD_DATABASE_URL=hidden(production.url), PROD_DATABASE_PLAIN="true", KUBECONFIG_DATA=access) == 0, production.log
    assert production.applied()[-2:] == NEW


# --- TLS, and many at once -----------------------------------------------------------------------------------------------


def test_the_servers_own_name_is_verified(kubernetes, tls_cluster, tmp_path):  # noqa: F811 - the fixture
    cluster, certificate = tls_cluster
    place = behind(kubernetes, tmp_path, cluster.url())
    context, ca = context_of(place, tmp_path), f"?sslrootcert={certificate}"
    with opened(context, DatabaseUrl.parse(hidden(cluster.url(), ca))) as url:
        assert url.protection.level == "verify-full"
        url.connect().close()
    other = DatabaseUrl.parse(hidden(cluster.url(), ca).replace(NAME, "other.example"))
    with opened(context, other) as url, pytest.raises(UnreachableError, match="does not match host name"):
        url.connect()
    with opened(context, DatabaseUrl.parse(hidden(cluster.url()))) as url:
        assert url.protection.level == "require"  # the way through the cluster replaces no TLS
        url.connect().close()


def test_many_sessions_at_once_and_a_pod_that_is_replaced(kubernetes, postgres_cluster, tmp_path):
    plain = postgres_cluster.fresh()
    place = behind(kubernetes, tmp_path, plain)
    context, sizes = context_of(place, tmp_path), []
    with opened(context, DatabaseUrl.parse(hidden(plain)).with_transport(None, plain_accepted=True)) as url:

        def session() -> None:
            connection = url.connect()
            with connection.cursor() as cursor:
                cursor.execute("SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
                sizes.append(sum(len(text) for (text,) in cursor))
            connection.close()

        threads = [threading.Thread(target=session) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sizes == [20_000_000] * 8
        place.remove("postgres-0")
        place.add("postgres-1")
        session()  # the same address leads to the new pod
    assert len(sizes) == 9


# --- what is wrong --------------------------------------------------------------------------------------------------------


def test_what_is_no_way_to_a_database_is_said(kubernetes, tmp_path):
    place = Place(kubernetes, tmp_path)
    place.add("talker")
    url = DatabaseUrl.parse(f"postgresql://u:p@{NAME}/d")
    with pytest.raises(UnreachableError, match="cannot be reached through the cluster"), opened(context_of(place, tmp_path), url):
        pass
    wrong = context_of(place, tmp_path, port=5433)
    with pytest.raises(UnreachableError, match="connection refused"), opened(wrong, url):
        pass
    several = DatabaseUrl.parse(f"postgresql://u:p@{NAME},other.example/d")
    with pytest.raises(BadInputError, match="cannot be forwarded"), opened(wrong, several):
        pass


@pytest.mark.parametrize(
    ("database", "words"),
    [
        ({"pod": "postgres-0"}, "names a service or a pod, and not both"),
        ({"service": None}, "names a service or a pod, and not both"),
        ({"service": None, "pod": "postgres-0", "ssh": True}, "database.via_ssh leads to the database already"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, database, words):
    class Nowhere:
        namespace = "databases"

    via_ssh = database.pop("ssh", False)
    path = deploy_config.write(tmp_path / "deploy.toml", database={"via_ssh": via_ssh}, **tables(Nowhere, **database))
    with pytest.raises(BadInputError, match=words):
        config.load(path)


@pytest.mark.parametrize(
    ("variables", "in_cluster", "found"), [({}, False, True), ({"DATABASE_VIA_KUBERNETES": "true"}, False, False), ({}, True, False)]
)
def test_a_variable_without_which_no_job_gets_the_secret_is_missed(tmp_path, variables, in_cluster, found):
    class Nowhere:
        namespace = "databases"

    written = tables(Nowhere)
    written["target"]["kubernetes"]["in_cluster"] = in_cluster
    loaded = config.load(deploy_config.write(tmp_path / "deploy.toml", **written))
    settings = SimpleNamespace(variables={"CANARY_MINUTES": "5", **variables}, deploy_environment="production")
    problems = variable_problems(SimpleNamespace(settings=settings, config=loaded))
    assert ("DATABASE_VIA_KUBERNETES" in {problem.where for problem in problems}) is found


# --- rights ---------------------------------------------------------------------------------------------------------------


def test_doctor_names_the_verbs_and_edge_install_grants_them(kubernetes, postgres_cluster, tmp_path):
    plain = postgres_cluster.fresh()
    place = behind(kubernetes, tmp_path, plain)
    context = context_of(place, tmp_path)
    settings = context.config.target.kubernetes
    names = Names(settings)
    assert list(map(str, manifests.rights_to_database(settings.database))) == [
        "get services postgres",
        "list pods",
        "create pods/portforward",
        "get pods/portforward",
    ]
    poor = place.user("poor", ("create pods/portforward", "list pods"))
    findings = {finding.name: finding for finding in doctor.findings(context_of(place, tmp_path, poor))}
    assert not findings["rights to the database"].passed
    assert f"missing: list pods, create pods/portforward, in namespace {place.namespace}" in findings["rights to the database"].detail

    text = manifests.install(api_of(kubernetes.kubeconfig), names, {})
    assert "✓ Role azora-database" in text
    deployer = kubernetes._write_kubeconfig("kubeconfig-deployer", kubernetes.token("azora-deployer", "default"), "default")
    findings = {finding.name: finding for finding in doctor.findings(context_of(place, tmp_path, deployer))}
    assert findings["rights to the database"].passed
    with opened(context_of(place, tmp_path, deployer), DatabaseUrl.parse(hidden(plain)).with_transport(None, plain_accepted=True)) as url:
        url.connect().close()
    made = [document["metadata"]["name"] for _, document in manifests.objects(Names(replace(settings, database=None)), proxy=True)]
    assert "azora-database" not in made


def test_the_preflight_reaches_it_as_the_jobs_do(kubernetes, postgres_cluster, tmp_path):
    plain = postgres_cluster.fresh()
    place = behind(kubernetes, tmp_path, plain)
    transport = load(DatabaseTransport, {"PROD_DATABASE_PLAIN": "true"})
    means = gates.Means(load(Aws, {}), transport, Secret(hidden(plain)), (None, None))
    consulted = gates.consult(context_of(place, tmp_path, place.user("preflight")), means)
    (database,) = [finding for finding in consulted.findings if finding.kind == "database"]
    assert database.passed, database
    assert consulted.database_transport == "plain"
