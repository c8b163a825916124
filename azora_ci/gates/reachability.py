"""Checks whether the services that production needs answer. Every check returns a finding and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from azora_ci.clients.docker.engine import DOCKER_HUB_API, registry_host
from azora_ci.core.config import RegistrySettings, Service
from azora_ci.core.errors import AzoraError
from azora_ci.core.settings import Aws
from azora_ci.core.variables import Secret

TIMEOUTS = (5.0, 10.0)  # seconds to connect, to read
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


def database(url: Secret) -> Reached:
    """Check that the database accepts a connection; the finding names its version."""
    from azora_ci.database.postgres import DatabaseUrl

    def request() -> str:
        connection = DatabaseUrl.parse(url.reveal()).connect()
        try:
            return f"PostgreSQL {connection.server_version // 10000} answers"
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
    import requests

    host = registry_host(config.repository, DOCKER_HUB_API)
    url = f"{'http' if config.insecure else 'https'}://{host}/v2/"
    try:
        status = requests.get(url, timeout=TIMEOUTS).status_code
    except requests.RequestException as error:
        return Reached("registry", "registry", False, f"no answer: {type(error).__name__}", url)
    return Reached("registry", "registry", status in {200, 401}, f"HTTP {status}", url)


def endpoint(service: Service) -> Reached:
    """Check that a public health endpoint is healthy and reports a version: that of the release before the rollout."""
    import requests

    url, name = service.public_health_url, f"{service.title} before the rollout"
    try:
        response = requests.get(url, timeout=TIMEOUTS, allow_redirects=False)
    except requests.RequestException as error:
        return Reached(name, "endpoint", False, f"no answer: {type(error).__name__}", url)
    try:
        document = response.json()
        status, version = str(document["status"]), str(document["version"])
    except (ValueError, KeyError, TypeError):
        return Reached(name, "endpoint", False, f"HTTP {response.status_code} without a health document", url)
    passed = response.status_code == 200 and status == "healthy"
    return Reached(name, "endpoint", passed, f"HTTP {response.status_code}, {status}, version {version}"[:200], url)
