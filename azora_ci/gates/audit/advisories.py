"""Asks a package registry for the known vulnerabilities of packages: its bulk advisory endpoint, which npm itself uses.

Protocol: npm's API reference, "Audit"; npm's ``metavuln-calculator``. The question is ``{"<name>": ["<version>", …]}``, the answer
``{"<name>": [{"id", "url", "title", "severity", "vulnerable_versions", …}]}``. Names of private packages are part of the question, as
they are with ``npm audit``. No token is sent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from azora_ci import __version__
from azora_ci.core.clock import Clock
from azora_ci.core.documents import MEBIBYTE, Limits, read_json
from azora_ci.core.errors import UnreachableError
from azora_ci.gates.audit import ranges
from azora_ci.gates.audit.lock_files import LockFile
from azora_ci.gates.audit.packages import Package
from azora_ci.gates.audit.verdict import SEVERITIES, Finding

ENDPOINT = "/-/npm/v1/security/advisories/bulk"
NAMES_PER_REQUEST = 500
ATTEMPTS = 4
TIMEOUTS = (10.0, 120.0)  # seconds to connect, to read; in 2026 users saw answers of the public registry that took 74 s
LIMITS = Limits(size=32 * MEBIBYTE, values=2_000_000)
WORST = SEVERITIES[-1]


@dataclass(frozen=True)
class Registry:
    """A registry at ``url``. ``say`` is called with a line for every repeated request; ``pause``: seconds before the first repetition."""

    url: str
    clock: Clock
    say: Callable[[str], None]
    pause: float = 2.0

    def findings(self, lock_files: Iterable[LockFile]) -> list[Finding]:
        """Return what is known about the packages of all lock files. Raises UnreachableError."""
        lock_files = list(lock_files)
        versions: dict[str, set[str]] = defaultdict(set)
        for file in lock_files:
            for package in file.locked.packages:
                versions[package.name].add(package.version)
        names = sorted(versions)
        advisories: dict[str, list[Any]] = {}
        for start in range(0, len(names), NAMES_PER_REQUEST):
            part = names[start : start + NAMES_PER_REQUEST]
            advisories |= self._ask({name: sorted(versions[name]) for name in part})
        return [
            finding
            for file in lock_files
            for package in sorted(file.locked.packages)
            for finding in self._of(package, file.path, advisories.get(package.name, []))
        ]

    def _of(self, package: Package, lock_file: str, advisories: list[Any]) -> Iterable[Finding]:
        for advisory in advisories:
            try:
                vulnerable = str(advisory["vulnerable_versions"])
                if not ranges.contains(vulnerable, package.version):
                    continue
                url, severity = str(advisory.get("url") or ""), str(advisory.get("severity"))
                yield Finding(
                    package=package.name,
                    version=package.version,
                    severity=severity if severity in SEVERITIES else WORST,
                    id=_id(url, advisory["id"]),
                    title=" ".join(str(advisory.get("title") or "(no title)").split())[:300],
                    url=url[:500],
                    fixed_in=ranges.fixed_in(vulnerable, package.version),
                    lock_file=lock_file,
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise self._strange(f"an advisory of {package.name} has no {error}") from error

    def _ask(self, question: Mapping[str, list[str]]) -> dict[str, list[Any]]:
        """Return the advisories for one question."""
        import requests

        failure = ""
        for attempt in self.clock.attempts(ATTEMPTS, self.pause):
            try:
                status, body = self._post(json.dumps(question).encode())
            except requests.RequestException as error:
                failure = f"{type(error).__name__}: {error}"[:500]
            else:
                if status == 200:
                    return self._advisories(body)
                failure = f"HTTP {status}: {body[:200].decode(errors='replace')!r}"
                if status < 500 and status != 429:
                    break
            if not attempt.last:
                self.say(f"{self.url}: {failure}; asking again in {attempt.wait:g} s ({attempt})")
        raise UnreachableError(
            "The registry does not answer an audit",
            what=failure,
            where=self.url + ENDPOINT,
            next_step="re-run this job; name a registry that has this endpoint in validation.audit.registry",
        )

    def _post(self, body: bytes) -> tuple[int, bytes]:
        import gzip

        import requests

        headers = {
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
            "Accept": "application/json",
            "User-Agent": f"azora-ci/{__version__}",
        }
        compressed = gzip.compress(body)
        with requests.post(
            self.url + ENDPOINT, compressed, headers=headers, timeout=TIMEOUTS, stream=True, allow_redirects=False
        ) as response:
            answer = bytearray()
            for chunk in response.iter_content(64 * 1024):
                answer += chunk
                if len(answer) > LIMITS.size:
                    raise self._strange(f"its answer has more than {LIMITS.size} bytes")
            return response.status_code, bytes(answer)

    def _advisories(self, body: bytes) -> dict[str, list[Any]]:
        try:
            document = read_json(body, LIMITS)
        except ValueError as error:
            raise self._strange(f"its answer is no JSON: {body[:200]!r}") from error
        if not isinstance(document, dict) or not all(isinstance(entries, list) for entries in document.values()):
            raise self._strange(f"its answer has another shape: {body[:200]!r}")
        return document

    def _strange(self, what: str) -> UnreachableError:
        return UnreachableError(
            "The registry's answer has another shape",
            what=what,
            where=self.url + ENDPOINT,
            next_step="re-run this job; name a registry that has this endpoint in validation.audit.registry",
        )


def _id(url: str, number: object) -> str:
    """Return the id of an advisory: GHSA-… where its address ends in one, else the registry's number."""
    last = url.rstrip("/").rsplit("/", 1)[-1]
    return last if last.startswith("GHSA-") else str(number)[:50]
