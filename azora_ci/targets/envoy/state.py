"""The Envoy edge as one value, ``EdgeState``: its releases, where their instances listen, and what share of traffic each gets.

``envoy_config.py`` and ``envoy_routes.py`` translate it to Envoy's configuration, ``envoy_admin.py`` reads Envoy's answers, ``edge.py``
does the input and output. Each release of a service is a cluster of its own, ``<service>-<deployment id>``, so that counters are
continuous through a promotion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Of an instance that usually answers within EXPECTED_LATENCY, in milliseconds. Whoever waits longer than a user's patience leaves, and is
# worked for in vain. `scripts/bench edge --scene overload`: one instance of 100 requests a second gets 2.5 times as many for 12 s, users
# leave after 1 s, a perfect edge would serve 40 %. Connections/waiting, served: 30/25, 40/20, 25/25 and 20/20 41-43 %, none worked for in
# vain; 40/25 39 %, 30/30 30 %, 40/30 28 %, 40/50 25 %. Waiting costs more than connections: Envoy's threads have queues of their own, and
# one that has few of the connections is slow. Requests also wait while a connection is opened: fewer would refuse the first of a page.
EXPECTED_LATENCY, MAX_CONNECTIONS, MAX_PENDING_REQUESTS = 200, 40, 20
_FEWEST = 10
_OPTIONAL = (
    "talks_to",
    "max_connections",
    "max_pending_requests",
    "liveness_path",
    "expected_latency_ms",
)  # what earlier versions do not know
LOG_FLUSH = ("--file-flush-interval-msec", "500")  # after an abort, the log is read at once


@dataclass(frozen=True)
class EdgeService:
    """Which requests belong to one service, and which services it calls; ``timeout_seconds`` is 0 for streams, without a limit.

    ``route_prefix`` is "" for a worker, which only calls others. ``max_connections`` bounds the edge's connections to each instance, and
    ``max_pending_requests`` those requests to one release that wait for a connection; 0: not bounded, None: the default, which follows
    ``expected_latency_ms``, see ``bounds``. ``liveness_path``: what an instance answers as long as it works, whatever it depends on; None:
    only its connections are checked.
    """

    id: str
    route_prefix: str
    timeout_seconds: float
    talks_to: tuple[str, ...] = ()
    max_connections: int | None = None
    max_pending_requests: int | None = None
    liveness_path: str | None = None
    expected_latency_ms: int | None = None

    def bounds(self, instances: int) -> tuple[int, int]:
        """Return how many connections to each instance and how many requests that wait for one of them there may be; 0 is no bound.

        More would not be answered sooner, and their users leave while the instances work for them. Users of slow pages wait longer, so
        both grow with the expected latency. Streams hold a connection each, for long: they are not bounded by default.
        """
        scale = 0.0 if self.timeout_seconds == 0 else (self.expected_latency_ms or EXPECTED_LATENCY) / EXPECTED_LATENCY
        connections, each = (max(_FEWEST, round(scale * bound)) if scale else 0 for bound in (MAX_CONNECTIONS, MAX_PENDING_REQUESTS))
        pending = each * instances
        return (
            connections if self.max_connections is None else self.max_connections,
            pending if self.max_pending_requests is None else self.max_pending_requests,
        )


@dataclass(frozen=True)
class EdgeRelease:
    """Where a release's instances listen: service id -> ("host:port", …); ``started``: also those that are not healthy yet, for calls."""

    id: str
    version: str
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    started: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EdgeTls:
    """TLS in the edge. ``listen`` is ``host:port``, the paths are those that Envoy sees, ``port`` is the port that users connect to.

    Both files are in one folder, which Envoy watches: it takes a renewed certificate when its files are renamed over the old ones.
    """

    listen: str
    certificate: str
    key: str
    port: int = 443
    redirect: bool = True  # plain HTTP answers with a redirect to HTTPS


@dataclass(frozen=True)
class EdgeOptions:
    """Options of the edge that do not depend on releases. ``trusted_proxies``: how many proxies are in front of the edge.

    ``sticky_cookie``: name of the cookie that keeps users on a version, see ``envoy_routes``; ``secure_cookie``: users connect by HTTPS.
    ``log``: the file, as the edge sees it, for a line about each request that goes wrong.
    """

    tls: EdgeTls | None = None
    trusted_proxies: int = 0
    sticky_cookie: str | None = None
    secure_cookie: bool = False
    log: str | None = None


@dataclass(frozen=True)
class EdgeState:
    """The whole edge. ``percent`` of requests go to ``canary``, all others to ``stable``; ``previous`` is kept warm at weight 0.

    ``attempt`` numbers the starts of a canary: what was drawn for users in one attempt does not count in another of the same release.
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
    # Requests that carry it learn which release answers, and others that are made of it choose a release; see ``routes``.
    secret: str | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """Return the state as a JSON document, which ``from_document`` reads; as an earlier version's where nothing new is used."""
        document = asdict(self)
        if self.secret is None:
            del document["secret"]
        if self.options.log is None:
            del document["options"]["log"]
        for table, keys in (("services", _OPTIONAL), ("releases", ("started",))):
            for part in document[table]:
                for key in keys:
                    if part[key] in ((), {}, None):
                        del part[key]
        return document

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> EdgeState:
        """Return the state that a document describes. Raises KeyError and TypeError for another format."""
        releases = tuple(
            EdgeRelease(release["id"], release["version"], _addresses(release["endpoints"]), _addresses(release.get("started", {})))
            for release in document["releases"]
        )
        options = dict(document.get("options", {}))  # the state of an older version has none
        if options.get("tls"):
            options["tls"] = EdgeTls(**options["tls"])
        services = tuple(EdgeService(**{**service, "talks_to": tuple(service.get("talks_to", ()))}) for service in document["services"])
        return EdgeState(**{**document, "releases": releases, "services": services, "options": EdgeOptions(**options)})

    @property
    def routed(self) -> tuple[EdgeService, ...]:
        """Return the services that users' requests are routed to."""
        return tuple(service for service in self.services if service.route_prefix)

    def release(self, release_id: str | None) -> EdgeRelease | None:
        """Return a release by its id, or None."""
        return next((release for release in self.releases if release.id == release_id), None)

    def with_release(self, release: EdgeRelease) -> EdgeState:
        """Return the state with a release added or replaced."""
        return replace(self, releases=(*(other for other in self.releases if other.id != release.id), release))

    def without(self, release_id: str) -> EdgeState:
        """Return the state without a release; its roles become empty."""
        kept = tuple(release for release in self.releases if release.id != release_id)
        roles = {name: None for name in ("stable", "canary", "previous") if getattr(self, name) == release_id}
        return replace(self, releases=kept, **roles)  # type: ignore[arg-type] # only role names are keys

    def weights(self, service: str) -> dict[str, int]:
        """Return release id -> percent for a service. The only release with instances of it gets everything, except a canary at 0 %."""
        shares = {self.stable: 100 - self.percent, self.canary: self.percent}
        weights = {name: share for name, share in shares.items() if name is not None and self.addresses(name, service)}
        if len(weights) == 1:
            only = next(iter(weights))
            return {only: 100} if weights[only] > 0 or only == self.stable else {}
        return weights

    def failover(self, release_id: str) -> str | None:
        """Return the id of the release that answers when no instance of this release can be reached, or None."""
        if release_id == self.stable:
            return self.canary or self.previous
        return self.stable

    def addresses(self, release_id: str | None, service: str) -> tuple[str, ...]:
        """Return the addresses of a release's instances of a service; () for a release that does not exist."""
        release = self.release(release_id)
        return release.endpoints.get(service, ()) if release else ()


def _addresses(document: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {service: tuple(addresses) for service, addresses in document.items()}


def cluster_name(service: str, release_id: str) -> str:
    """Return the name of the cluster of one release of one service. Without dots: these separate the parts of counter names."""
    return f"{service}-{release_id}"


def socket_address(text: str) -> dict[str, Any]:
    """Return ``host:port`` as Envoy's configuration has it."""
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def command(bootstrap_file: Path, *, binary: str = "envoy") -> tuple[str, ...]:
    """Return the command that starts Envoy with a bootstrap file."""
    return (binary, "-c", str(bootstrap_file), "--disable-hot-restart", "--log-level", "warning", "--concurrency", "2", *LOG_FLUSH)
