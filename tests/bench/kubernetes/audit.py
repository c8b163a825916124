"""The API server's own account of its requests: the audit log (https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from azora_ci.core.clock import parse_rfc3339
from azora_ci.rehearsal.kubernetes.cluster import API_SERVER, Cluster

# Requests of accounts of namespaces, ours among them, each once when it was answered.
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


class Audited(Cluster):
    """A cluster whose API server writes an audit log."""

    @property
    def audit(self) -> Path:
        """Return the audit log."""
        return self.folder / "audit.log"

    def _start(self, name: str, *argv: str | Path, ready: Callable[[], bool] | None = None) -> None:
        if name == API_SERVER:
            policy = self.folder / "audit-policy.json"
            policy.write_text(json.dumps(POLICY), encoding="utf-8")
            argv = (*argv, f"--audit-policy-file={policy}", f"--audit-log-path={self.audit}")
        super()._start(name, *argv, ready=ready)


class Request(NamedTuple):
    """One request. ``at``: seconds since the epoch; ``kind``: verb and resource, with its subresource; ``probe``: of a pod, by proxy."""

    at: float
    kind: str
    probe: bool


def requests_of(audit: Path, user: str) -> list[Request]:
    """Return the requests of a user that were answered, in order."""
    found = []
    for line in audit.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["user"]["username"] == user:
            about = event.get("objectRef") or {}
            parts = filter(None, (about.get("resource", event["requestURI"]), about.get("subresource")))
            at = parse_rfc3339(event["requestReceivedTimestamp"]).timestamp()
            found.append(Request(at, f"{event['verb']} {'/'.join(parts)}", about.get("subresource") == "proxy"))
    return sorted(found)
