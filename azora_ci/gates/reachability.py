"""Checks whether the services that production needs answer. Every check returns a finding and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azora_ci.clients.docker.engine import DOCKER_HUB_API, registry_host
from azora_ci.core.clock import Clock
from azora_ci.core.config import RegistrySettings, Service
from azora_ci.core.errors import AzoraError
from azora_ci.core.settings import Aws
from azora_ci.health.answers import Answer, classify, contract, public_endpoint
from azora_ci.health.probes import Prober, ProbeRequest

if TYPE_CHECKING:
    from azora_ci.database.postgres import DatabaseUrl

ANSWER_SECONDS = 15.0  # for one answer
BUCKET_ATTEMPTS = 3  # fewer than for the backup itself, so that an unreachable store is reported soon


@dataclass(frozen=True)
class Reached:
    """The result of one check: ``conclusion`` is the observation in a few words."""

    name: str
    kind: str  # database | bucket | endpoint | registry
    passed: bool
    conclusion: str
    url: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the finding as evidence."""
        document = {"name": self.name, "source": "production", "kind": self.kind}
        return document | {"conclusion": self.conclusion, "passed": self.passed, "url": self.url}

    def __str__(self) -> str:
        return f"{self.name}: {self.conclusion}"


def _check(name: str, kind: str, request: Callable[[], str], url: str | None = None) -> Reached:
    try:
        return Reached(name, kind, True, request(), url)
    except AzoraError as error:
        return Reached(name, kind, False, f"{error.title}: {error.what}"[:500], url)


def database(url: DatabaseUrl) -> Reached:
    """Check that the database accepts a connection; the finding names its version and what protects the connection."""

    def request() -> str:
        connection = url.connect()
        try:
            return f"PostgreSQL {connection.server_version // 10000} answers (transport: {url.protection.level})"
        finally:
            connection.close()

    return _check("production database", "database", request)


def bucket(settings: Aws, name: str) -> Reached:
    """Check that the bucket of the backups answers; the finding describes its configuration."""
    from azora_ci.clients.s3.bucket import open_bucket
    from azora_ci.clients.s3.calls import Patience

    def request() -> str:
        return ", ".join(open_bucket(settings, name, patience=Patience(attempts=BUCKET_ATTEMPTS)).facts().lines())

    return _check("backup bucket", "bucket", request, f"s3://{name}")


def registry(config: RegistrySettings) -> Reached:
    """Check that the registry answers with status 200, or 401 if it requires a login."""
    host = registry_host(config.repository, DOCKER_HUB_API)
    url = f"{'http' if config.insecure else 'https'}://{host}/v2/"
    answer = _ask(url)
    if answer.failure:
        return Reached("registry", "registry", False, f"no answer: {answer.detail}", url)
    return Reached("registry", "registry", answer.status in {200, 401}, f"HTTP {answer.status}", url)


def endpoint(service: Service) -> Reached:
    """Check that a public health endpoint is healthy and reports a version: that of the release before the rollout."""
    name = f"{service.title} before the rollout"
    found = classify(public_endpoint(service, name), _ask(service.public_health_url))
    if found.status is None:
        return Reached(name, "endpoint", False, f"no answer: {found.detail}", service.public_health_url)
    failed = f"{found.detail}; wanted: {contract(service.health)}"
    conclusion = f"HTTP {found.status}, healthy, {found.detail}" if found.passed else failed
    return Reached(name, "endpoint", found.passed, conclusion[:500], service.public_health_url)


def _ask(url: str) -> Answer:
    """Return the answer to a GET; redirects are not followed, and no more of the body is read than a health document may have."""
    (answer,) = Prober(Clock(), workers=1).fetch_all([ProbeRequest(url)], ANSWER_SECONDS)
    return answer
