"""The Envoy edge as one value, ``EdgeState``: which releases there are, where they listen, and what share of traffic each gets.

``envoy_config.py`` and ``envoy_routes.py`` say it in Envoy's words, ``envoy_admin.py`` reads what Envoy answers, ``edge.py`` does the
input and output. Each release of a service is a cluster of its own, ``<service>-<deployment id>``, so that counters are continuous
through a promotion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RELEASE_HEADER = "x-azora-release"  # request header, canary|stable: a test through the real edge
DEPLOYMENT_HEADER = "x-azora-deployment"  # response header: the release that was first chosen, also when failover answered


@dataclass(frozen=True)
class EdgeService:
    """How requests of one service are recognised; ``timeout_seconds`` 0 is for streams."""

    id: str
    route_prefix: str
    timeout_seconds: float


@dataclass(frozen=True)
class EdgeRelease:
    """Where a release's instances listen: service id -> ("host:port", …)."""

    id: str
    version: str
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeTls:
    """TLS in the edge: ``listen`` is ``host:port``, the files' paths are as Envoy sees them, ``port`` is the one that users know.

    Both files are in one folder, which is watched: a renewed certificate is taken up when its files are renamed over the old ones.
    """

    listen: str
    certificate: str
    key: str
    port: int = 443
    redirect: bool = True  # plain HTTP answers with a redirect to HTTPS


@dataclass(frozen=True)
class EdgeOptions:
    """What is configured about the edge, whatever releases there are. ``trusted_proxies``: how many are in front of it.

    ``sticky_cookie``: name of the cookie that keeps users on a version, see ``envoy_routes``; ``secure_cookie``: they come by HTTPS.
    """

    tls: EdgeTls | None = None
    trusted_proxies: int = 0
    sticky_cookie: str | None = None
    secure_cookie: bool = False


@dataclass(frozen=True)
class EdgeState:
    """The whole edge. ``percent`` of requests go to ``canary``, the rest to ``stable``; ``previous`` is kept warm at weight 0.

    ``attempt`` tells one start of a canary from another of the same release: who was drawn for the one was not for the other.
    """

    services: tuple[EdgeService, ...]
    listen: str
    releases: tuple[EdgeRelease, ...] = ()
    stable: str | None = None
    canary: str | None = None
    previous: str | None = None
    percent: int = 0
    attempt: int = 0
    options: EdgeOptions = EdgeOptions()

    def document(self) -> dict[str, Any]:
        """Return the state as JSON; ``from_document`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> EdgeState:
        """Return the state that a document describes. Raises KeyError and TypeError for another format."""
        releases = tuple(
            EdgeRelease(one["id"], one["version"], {name: tuple(found) for name, found in one["endpoints"].items()})
            for one in document["releases"]
        )
        options = dict(document.get("options", {}))  # an edge of an older version has none
        if options.get("tls"):
            options["tls"] = EdgeTls(**options["tls"])
        services = tuple(EdgeService(**one) for one in document["services"])
        return EdgeState(**{**document, "releases": releases, "services": services, "options": EdgeOptions(**options)})

    def release(self, release_id: str | None) -> EdgeRelease | None:
        """Return a release by its id, or None."""
        return next((one for one in self.releases if one.id == release_id), None)

    def with_release(self, release: EdgeRelease) -> EdgeState:
        """Return the state with a release added or replaced."""
        return replace(self, releases=(*(one for one in self.releases if one.id != release.id), release))

    def without(self, release_id: str) -> EdgeState:
        """Return the state without a release; its roles become empty."""
        kept = tuple(one for one in self.releases if one.id != release_id)
        roles = {name: None for name in ("stable", "canary", "previous") if getattr(self, name) == release_id}
        return replace(self, releases=kept, **roles)  # type: ignore[arg-type] # only role names are keys

    def weights(self, service: str) -> dict[str, int]:
        """Return release id -> percent for a service. A release without instances of it gets nothing, the other everything."""
        shares = {self.stable: 100 - self.percent, self.canary: self.percent}
        there = {one: share for one, share in shares.items() if one is not None and self.addresses(one, service)}
        if len(there) == 1:
            only = next(iter(there))
            return {only: 100} if there[only] > 0 or only == self.stable else {}
        return there

    def failover(self, release_id: str) -> str | None:
        """Return the release that answers when no instance of this one can be reached."""
        if release_id == self.stable:
            return self.canary or self.previous
        return self.stable

    def addresses(self, release_id: str | None, service: str) -> tuple[str, ...]:
        """Return where a release's instances of a service listen; none of a release that is not there."""
        found = self.release(release_id)
        return found.endpoints.get(service, ()) if found else ()


def cluster_name(service: str, release_id: str) -> str:
    """Return the name of the cluster of one release of one service; no dots, which separate parts of counter names."""
    return f"{service}-{release_id}"


def command(bootstrap_file: Path, *, binary: str = "envoy") -> tuple[str, ...]:
    """Return the command that starts Envoy with a bootstrap file."""
    return (binary, "-c", str(bootstrap_file), "--disable-hot-restart", "--log-level", "warning", "--concurrency", "2")
