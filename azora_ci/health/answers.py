"""Probe answers -> verdict. Pure: no network, no clock.

Three sides are probed: every new instance directly, every old one directly (which version is at fault?), and every public endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.documents import Limits, UnreadableError, read_json

RELEASE_HEADER = "x-azora-release"  # request header, canary|stable: a test through the real edge
DEPLOYMENT_HEADER = "x-azora-deployment"  # response header: the release that was chosen first, even if failover answered
NEW, OLD, PUBLIC = "new", "old", "public"
LIMITS = Limits(size=64 * 1024)  # of a health document
LONGEST = 200  # characters of a service's answer that are kept as its version; no release has more (release.LONGEST)


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


@dataclass(frozen=True)
class Endpoint:
    """One address that is probed. ``versions``: the versions (without v) that it may answer; empty: any.

    ``via``: how to connect to it (``probes.Dial``) when this machine cannot connect directly.
    """

    name: str
    service: str
    side: str  # new | old | public
    url: str
    versions: frozenset[str] = frozenset()
    via: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ProbeResult:
    """One probe's result. ``outcome``: healthy, status, html, not-json, unhealthy, wrong-version, timeout, refused, broken."""

    endpoint: Endpoint
    outcome: str
    detail: str
    milliseconds: float
    status: int | None = None
    version: str | None = None
    deployment: str | None = None

    @property
    def passed(self) -> bool:
        """Return whether the endpoint is healthy."""
        return self.outcome == "healthy"


def classify(endpoint: Endpoint, answer: Answer) -> ProbeResult:
    """Return the finding of an answer: healthy is 200 with ``{"status": "healthy", "version": …}`` and an expected version."""
    version: str | None = None
    if answer.failure is not None:
        outcome, detail = answer.failure, answer.detail
    elif answer.status != 200:
        outcome, detail = "status", f"HTTP {answer.status}"
    elif "html" in answer.content_type.lower():
        outcome, detail = "html", f"HTTP 200 with {answer.content_type}, not JSON"
    else:
        outcome, detail, version = _read(answer.body, endpoint.versions)
    return ProbeResult(endpoint, outcome, detail, answer.milliseconds, answer.status, version, answer.deployment)


def _read(body: bytes, versions: frozenset[str]) -> tuple[str, str, str | None]:
    try:
        document = read_json(body, LIMITS)
    except UnreadableError as error:
        return "not-json", f"HTTP 200 with a body that is not read ({error}): {_short(body)}", None
    if not isinstance(document, dict):
        return "not-json", f"HTTP 200 with a body that is no JSON object: {_short(body)}", None
    version = document["version"][:LONGEST] if isinstance(document.get("version"), str) else None
    if document.get("status") != "healthy":
        return "unhealthy", f"says status {str(document.get('status'))[:80]!r}", version
    if version is None:
        return "wrong-version", "names no version", None
    if versions and version not in versions:
        return "wrong-version", f"answers version {' '.join(version[:80].split())}, expected {' or '.join(sorted(versions))}", version
    return "healthy", f"version {version}", version


def _short(body: bytes) -> str:
    return repr(body[:60].decode("utf-8", "replace"))
