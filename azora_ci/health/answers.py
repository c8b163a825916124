"""Probe answers -> verdict: the health contract, judged here for the gate, rollouts, smoke tests, rollbacks and people. Pure.

Three sides are probed: every new instance directly, every old one directly (which version is at fault?), and every public endpoint.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.config import HealthSettings, Service
from azora_ci.core.documents import Limits, UnreadableError, read_json

RELEASE_HEADER = "x-azora-release"  # of requests of ours through the edge: the ``pass_word`` of a side, which is new in each deployment
CANARY, STABLE, ANY = "canary", "stable", "any"  # sides of the edge; any: by the shares of users
DEPLOYMENT_HEADER = "x-azora-deployment"  # response header: the release that was chosen first, even if failover answered
PROOF_HEADER = (
    "x-azora-proof"  # of requests: the deployment's secret; of the edge's answers to these: the seal of the release that answered
)
NEW, OLD, PUBLIC = "new", "old", "public"
PROOF_NONE, PROOF_ANSWER, PROOF_HEADERS, PROOF_IMAGE, PROOF_EDGE = "none", "answer", "header", "image", "edge"
STATUS_CODE, FROM_IMAGE = "status-code", "image"  # values of health.status_from and health.version_from
LIMITS = Limits(size=64 * 1024)  # of a health document
LONGEST = 200  # characters of a service's answer that are kept as its version; no release has more (release.LONGEST)
CONTRACT = HealthSettings()


@dataclass(frozen=True)
class Answer:
    """The answer to one request: an HTTP response, or ``failure`` (timeout, refused, broken) and its detail."""

    milliseconds: float
    status: int | None = None
    content_type: str = ""
    body: bytes = b""
    deployment: str | None = None  # the release that the edge chose, from its response header
    failure: str | None = None
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case


@dataclass(frozen=True)
class EdgeProof:
    """How the edge proves which release answered a public request: the secret of the deployment, and release id -> version."""

    secret: str = field(repr=False)
    versions: Mapping[str, str]

    def version(self, service_id: str, answered: str) -> str:
        """Return the version whose seal an answer carries, or words that are no version."""
        seals = {seal(self.secret, service_id, release_id): version for release_id, version in self.versions.items()}
        return seals.get(answered, "of no known release")


def seal(secret: str, service_id: str, release_id: str) -> str:
    """Return what the edge adds to answers of a release: nobody can make it who does not know the secret, which no service sees."""
    return hmac.new(secret.encode(), f"{service_id} {release_id}".encode(), "sha256").hexdigest()


def pass_word(secret: str, side: str) -> str:
    """Return the value of the release header that leads to a side. An outsider can neither choose a version nor leave the users' counts."""
    return hmac.new(secret.encode(), f"release {side}".encode(), "sha256").hexdigest()


@dataclass(frozen=True)
class Endpoint:
    """One address that is probed. ``versions``: the versions (without v) that it may answer; empty: any.

    ``via``: how to connect to it (``probes.Dial``) when this machine cannot connect directly. ``observed``: the version whose image an
    instance runs, None where that is not known; ``edge``: what proves the version that answers at a public address; ``secret``: of the
    edge, which counts the request apart from those of users. ``headers``: of the request, where what is ``via`` asks for some.
    """

    name: str
    service: str
    side: str  # new | old | public
    url: str
    versions: frozenset[str] = frozenset()
    via: Any = field(default=None, compare=False, repr=False)
    health: HealthSettings = CONTRACT
    observed: str | None = None
    edge: EdgeProof | None = field(default=None, compare=False, repr=False)
    secret: str | None = field(default=None, compare=False, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def public_endpoint(service: Service, name: str, versions: Iterable[str] = (), edge: EdgeProof | None = None) -> Endpoint:
    """Return a service's public address. ``versions``: those that may answer, with or without v; none: any."""
    proof, secret = edge if service.health.version_from == FROM_IMAGE else None, edge.secret if edge else None
    expected = frozenset(map(bare, versions))
    return Endpoint(name, service.id, PUBLIC, service.public_health_url, expected, health=service.health, edge=proof, secret=secret)


@dataclass(frozen=True)
class ProbeResult:
    """One probe's result. ``outcome``: healthy, status, html, not-json, unhealthy, wrong-version, timeout, refused, broken.

    ``version``: without v. ``version_proof``: where the version is known from: answer, header, image, edge; none: it is not proved.
    """

    endpoint: Endpoint
    outcome: str
    detail: str
    milliseconds: float
    status: int | None = None
    version: str | None = None
    deployment: str | None = None
    version_proof: str = PROOF_NONE

    @property
    def passed(self) -> bool:
        """Return whether the endpoint is healthy."""
        return self.outcome == "healthy"


def bare(version: str) -> str:
    """Return a version without v: a release v1.2.3 and an answer 1.2.3 name the same."""
    return version.strip().removeprefix("v")


def contract(health: HealthSettings) -> str:
    """Return in words what an answer must be."""
    status = "any HTTP 2xx" if health.status_from == STATUS_CODE else f"HTTP 200 and JSON with {_path(health.status_from)}"
    words = "" if health.status_from == STATUS_CODE else f" {' or '.join(map(repr, health.healthy))}"
    source = _version_source(health)
    return f"{status}{words}, and {source + ' the release, such as 1.2.3' if source else 'a version that its image proves'}"


def classify(endpoint: Endpoint, answer: Answer) -> ProbeResult:
    """Return the finding of an answer: healthy is what the service's ``health`` settings say, of an expected version."""
    problems, version, proof = examine(endpoint, answer)
    passed = f"version {version}" if version is not None else "its version is not proved"
    outcome, detail = problems[0] if problems else ("healthy", passed)
    proof = PROOF_NONE if problems else proof
    return ProbeResult(endpoint, outcome, detail, answer.milliseconds, answer.status, version, answer.deployment, proof)


def examine(endpoint: Endpoint, answer: Answer) -> tuple[list[tuple[str, str]], str | None, str]:
    """Return everything that an answer lacks as (outcome, detail), the version that answered (without v), and what proves it."""
    if answer.failure is not None:
        return [(answer.failure, answer.detail)], None, PROOF_NONE
    health, document = endpoint.health, None
    if answer.status not in (range(200, 300) if health.status_from == STATUS_CODE else {200}):
        location = " ".join(answer.headers.get("location", "")[:120].split())
        return [("status", f"HTTP {answer.status}{f' to {location}: no redirect is followed' if location else ''}")], None, PROOF_NONE
    if health.status_from != STATUS_CODE or _version_path(health):
        document, problem = _document(answer)
        if problem:
            return [problem], None, PROOF_NONE
    version, proof = _version(endpoint, answer, document)
    return [*_status_problem(health, document), *_version_problem(endpoint, version)], version, proof


def _document(answer: Answer) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    if "html" in answer.content_type.lower():
        return None, ("html", f"HTTP {answer.status} with {answer.content_type}, not JSON")
    try:
        document = read_json(answer.body, LIMITS)
    except UnreadableError as error:
        return None, ("not-json", f"HTTP {answer.status} with a body that is not read ({error}): {_short(answer.body)}")
    if not isinstance(document, dict):
        return None, ("not-json", f"HTTP {answer.status} with a body that is no JSON object: {_short(answer.body)}")
    return document, None


def _status_problem(health: HealthSettings, document: dict[str, Any] | None) -> list[tuple[str, str]]:
    if health.status_from == STATUS_CODE:
        return []
    path, expected = _path(health.status_from), " or ".join(map(repr, health.healthy))
    status = _member(document, path)
    text = json.dumps(status) if isinstance(status, (bool, int)) else status
    if isinstance(text, str) and text in health.healthy:
        return []
    return [("unhealthy", f"has no JSON {path}" if status is None else f"says {path} {str(text)[:80]!r}, expected {expected}")]


def _version(endpoint: Endpoint, answer: Answer, document: dict[str, Any] | None) -> tuple[str | None, str]:
    source = endpoint.health.version_from
    if source == FROM_IMAGE and endpoint.side != PUBLIC:
        version, proof = endpoint.observed, PROOF_IMAGE
    elif source == FROM_IMAGE:
        answered = answer.headers.get(PROOF_HEADER)
        version = endpoint.edge.version(endpoint.service, answered) if endpoint.edge and answered is not None else None
        proof = PROOF_EDGE
    elif path := _version_path(endpoint.health):
        version, proof = _member(document, path), PROOF_ANSWER
    else:
        version, proof = answer.headers.get(source.partition(":")[2].lower()), PROOF_HEADERS
    return (bare(version[:LONGEST]), proof) if isinstance(version, str) and version.strip() else (None, PROOF_NONE)


def _version_problem(endpoint: Endpoint, version: str | None) -> list[tuple[str, str]]:
    if version is None:
        source = _version_source(endpoint.health)
        return [("wrong-version", f"names no version: {source} is missing")] if source else []
    if endpoint.versions and version not in endpoint.versions:
        expected = " or ".join(sorted(endpoint.versions))
        return [("wrong-version", f"answers version {' '.join(version[:80].split())}, expected {expected}")]
    return []


def _version_path(health: HealthSettings) -> str | None:
    return "version" if health.version_from == "answer" else _path(health.version_from)


def _version_source(health: HealthSettings) -> str | None:
    """Return where an answer must name its version; None where it need not."""
    header = health.version_from.removeprefix("header:") if health.version_from.startswith("header:") else None
    path = _version_path(health)
    return f"the header {header}" if header else f"JSON {path}" if path else None


def _path(source: str) -> str | None:
    return source.removeprefix("json:") if source.startswith("json:") else None


def _member(document: Any, path: str | None) -> Any:
    for name in (path or "").split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _short(body: bytes) -> str:
    return repr(body[:60].decode("utf-8", "replace"))
