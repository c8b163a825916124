"""Checks whether the services that production needs answer, and do what a deployment wants of them. Nothing is changed.

Every check returns a finding; at a registry an upload is begun and cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from azora_ci.clients.docker.engine import DOCKER_HUB_API, registry_host
from azora_ci.clients.docker.registry import Registry
from azora_ci.core.clock import Clock
from azora_ci.core.config import RegistrySettings, Service
from azora_ci.core.errors import AzoraError
from azora_ci.core.settings import Aws
from azora_ci.core.variables import Secret
from azora_ci.gates.readiness import Problem
from azora_ci.health.answers import Answer, classify, contract, public_endpoint
from azora_ci.health.probes import Prober, ProbeRequest
from azora_ci.targets.findings import Finding

if TYPE_CHECKING:
    from azora_ci.database.postgres import DatabaseUrl

ANSWER_SECONDS = 15.0  # for one answer
BUCKET_ATTEMPTS = 3  # fewer than for the backup itself, so that an unreachable store is reported soon


@dataclass(frozen=True)
class Reached:
    """The result of one check: ``conclusion`` is the observation in a few words, ``stops`` whether a deployment would fail for it."""

    name: str
    kind: str  # database | bucket | endpoint | registry | target
    passed: bool
    conclusion: str
    url: str | None = None
    next_step: str = ""
    stops: bool = True

    def document(self) -> dict[str, Any]:
        """Return the finding as evidence."""
        document = {"name": self.name, "source": "production", "kind": self.kind}
        return document | {"conclusion": self.conclusion, "passed": self.passed, "url": self.url}

    def problem(self) -> Problem:
        """Return a finding that did not pass as a problem among others."""
        return Problem(self.name, f"{self.conclusion}{f' ({self.url})' if self.url else ''}", self.next_step)

    def __str__(self) -> str:
        return f"{self.name}: {self.conclusion}"


def _check(name: str, kind: str, request: Callable[[], str], url: str | None = None) -> Reached:
    try:
        return Reached(name, kind, True, request(), url)
    except AzoraError as error:
        return failed(name, kind, error, url)


def failed(name: str, kind: str, error: AzoraError, url: str | None = None) -> Reached:
    """Return an error as a result."""
    return Reached(name, kind, False, f"{error.title}: {error.what}"[:500], url, error.next_step)


def of_target(findings: Iterable[Finding]) -> list[Reached]:
    """Return what was found about the target among the other results."""
    return [Reached(found.name, "target", found.passed, found.detail, None, found.next_step, found.stops) for found in findings]


def database(opened: Callable[[], AbstractContextManager[DatabaseUrl]], also: Callable[[DatabaseUrl], None] | None = None) -> Reached:
    """Check that the database accepts a connection; the finding names its version and what protects the connection.

    ``also`` is called with its address as long as that leads there, and keeps its errors to itself.
    """

    def request() -> str:
        with opened() as url:
            connection = url.connect()
            try:
                hint = ", without a CA: PROD_DATABASE_CA" if url.protection.level == "require" else ""
                conclusion = f"PostgreSQL {connection.server_version // 10000} answers (transport: {url.protection.level}{hint})"
            finally:
                connection.close()
            if also is not None:
                also(url)
            return conclusion

    return _check("production database", "database", request)


def bucket(settings: Aws, name: str) -> Reached:
    """Check that the bucket of the backups answers; the finding describes its configuration."""
    from azora_ci.clients.s3.bucket import open_bucket
    from azora_ci.clients.s3.calls import Patience

    def request() -> str:
        return ", ".join(open_bucket(settings, name, patience=Patience(attempts=BUCKET_ATTEMPTS)).facts().lines())

    return _check("backup bucket", "bucket", request, f"s3://{name}")


def registry(
    config: RegistrySettings, services: Iterable[Service], push: tuple[Secret, Secret] | None, pull: tuple[Secret, Secret] | None
) -> list[Reached]:
    """Check that the login for pushing may push each service's image, and that the registry accepts the login with which hosts pull.

    ``pull`` is None where hosts pull with the login for pushing, or with none.
    """
    host, _, namespace = config.repository.partition("/")
    url = f"{'http' if config.insecure else 'https'}://{registry_host(config.repository, DOCKER_HUB_API)}"
    pushing = Registry(url, push, "DOCKER_USERNAME and DOCKER_PASSWORD")
    results = []
    for service in services:
        name = f"{namespace}/{service.id}" if namespace else service.id
        results.append(_check(f"registry, {service.id}", "registry", partial(pushing.try_push, name), f"{host}/{name}"))
    if pull is not None:
        results.append(_check("registry, pull", "registry", Registry(url, pull, "PULL_USERNAME and PULL_PASSWORD").try_login, url))
    return results


def endpoint(service: Service, versions: frozenset[str]) -> Reached:
    """Check what a public health address answers now, as the rollout judges it: later it would abort, after the migrations.

    ``versions``: the versions without v that may answer, empty where they are not known.
    """
    name, url = f"{service.title} before the rollout", service.public_health_url
    found = classify(public_endpoint(service, name, versions), _ask(url))
    if found.status is None:
        conclusion = f"no answer: {found.detail}"
    elif found.passed:
        conclusion = f"HTTP {found.status}, healthy, {found.detail}"
    else:
        conclusion = f"{found.detail}; wanted: {contract(service.health)}"
    step = "have the running release answer that (python -m azora_ci health URL says what lacks), or say in [services.*.health] what it "
    step += "answers; to repair an outage, set PRODUCTION_MAY_BE_DOWN=true"
    return Reached(name, "endpoint", found.passed, conclusion[:500], url, step)


def _ask(url: str) -> Answer:
    """Return the answer to a GET; redirects are not followed, and no more of the body is read than a health document may have."""
    (answer,) = Prober(Clock(), workers=1).fetch_all([ProbeRequest(url)], ANSWER_SECONDS)
    return answer
