"""A kubeconfig -> where the API server is and how we prove who we are. Pure, but for files that a kubeconfig names.

The official Python client was measured against this (November 2026): 126 MB in every job that holds a secret, 0.7 s to import, and its
exec plug-ins inherit every secret of the job. What remains beside it are a few documents and one HTTPS connection.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.core.errors import BadInputError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # docs: "Accessing the Kubernetes API from a Pod"


@dataclass(frozen=True)
class ExecPlugin:
    """A program that prints credentials, such as ``aws eks get-token``; see client.authentication.k8s.io."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    api_version: str


@dataclass(frozen=True)
class ClusterAccess:
    """An API server and our identity there. ``ca``: PEM, None for the machine's own; ``certificate``: PEM of certificate and key.

    Who we are is shown by a certificate, a token, a file that holds one (read again at each request), or a program.
    """

    server: str
    ca: str | None = None
    certificate: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    plugin: ExecPlugin | None = field(default=None, repr=False)
    proxy: str | None = None


def parse(text: str, context: str | None) -> ClusterAccess:
    """Return the access of a kubeconfig's context (None: its current one). Raises BadInputError."""
    import yaml

    try:
        document = yaml.safe_load(text)
        name = context or document["current-context"]
        chosen = _named(document, "contexts", "context", name)
        cluster = _named(document, "clusters", "cluster", chosen["cluster"])
        user = _named(document, "users", "user", chosen["user"])
        return _access(cluster, user)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, OSError) as error:
        # The text of a YAML error quotes the document, which holds keys.
        problem = "it is no YAML" if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {error}"[:300]
        raise BadInputError(
            "The kubeconfig cannot be used",
            what=problem,
            where="KUBECONFIG_DATA" + (f", context {context}" if context else ""),
            next_step="set KUBECONFIG_DATA to the whole text of a kubeconfig (kubectl config view --raw --minify --flatten)",
        ) from error


def in_cluster(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> ClusterAccess:
    """Return the access of the pod that this runs in. Raises BadInputError outside of one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (folder / "token").exists():
        raise BadInputError(
            "No service account of a pod is here",
            what="target.kubernetes.in_cluster is true, and this does not run in a pod with a service account",
            where=f"KUBERNETES_SERVICE_HOST, {folder}",
            next_step="run the job on a runner inside the cluster, or set KUBECONFIG_DATA and leave in_cluster out",
        )
    address = f"[{host}]" if ":" in host else host
    ca = (folder / "ca.crt").read_text(encoding="utf-8")
    return ClusterAccess(f"https://{address}:{port}", ca=ca, token_file=folder / "token")


def _named(document: Mapping[str, Any], plural: str, singular: str, name: str) -> Mapping[str, Any]:
    for entry in document[plural]:
        if entry["name"] == name:
            found: Mapping[str, Any] = entry[singular]
            return found
    raise LookupError(f"{plural} has no {name!r}, only {', '.join(entry['name'] for entry in document[plural]) or 'nothing'}")


def _access(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ClusterAccess:
    server = str(cluster["server"]).rstrip("/")
    if not server.startswith("https://"):
        raise ValueError(f"server {server} is not https: credentials would be readable on their way")
    if cluster.get("insecure-skip-tls-verify"):
        raise ValueError("insecure-skip-tls-verify: anybody on the way could take our credentials; give certificate-authority-data")
    for name in ("auth-provider", "username", "password"):
        if name in user:
            raise ValueError(f"users.{name} is not supported (Kubernetes removed it): use a token, a certificate or exec")
    certificate, key = _pem(user, "client-certificate"), _pem(user, "client-key")
    if bool(certificate) != bool(key):
        raise ValueError("client-certificate and client-key: one does nothing without the other")
    return ClusterAccess(
        server=server,
        ca=_pem(cluster, "certificate-authority"),
        certificate=f"{certificate}\n{key}" if certificate and key else None,
        token=user.get("token"),
        token_file=Path(user["tokenFile"]) if "tokenFile" in user else None,
        plugin=_plugin(user["exec"]) if "exec" in user else None,
        proxy=cluster.get("proxy-url"),
    )


def _plugin(table: Mapping[str, Any]) -> ExecPlugin:
    env = {str(entry["name"]): str(entry["value"]) for entry in table.get("env") or []}
    return ExecPlugin((str(table["command"]), *map(str, table.get("args") or [])), env, str(table["apiVersion"]))


def _pem(table: Mapping[str, Any], name: str) -> str | None:
    if f"{name}-data" in table:
        try:
            return base64.b64decode(str(table[f"{name}-data"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"{name}-data is no base64 of a PEM text") from None
    return Path(table[name]).read_text(encoding="utf-8") if name in table else None
