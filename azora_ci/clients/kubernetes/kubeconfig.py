"""A kubeconfig -> where the API server is and how we prove who we are. Pure, but for files that a kubeconfig names.

The official Python client (37.0.2) was tried in its place, whole and for credentials alone (December 2026): 18 more packages and 157 MB in
every job that holds a secret; 1.0 s of CPU until an ``ApiClient`` is made, 0.24 s for its ``config`` alone (urllib3 and YAML: 0.09 s). Its
loader would save 11 lines of this module, through private names. And it does what must not happen here: programs of users.exec inherit
every secret of the job and have no time limit; one that fails is logged with all that it printed, and requests go on without a token; keys
lie in temporary files until the process ends; http and insecure-skip-tls-verify are accepted; OIDC tokens are refreshed over unverified
TLS where no CA is named; port forwarding keeps all that a slow reader has not taken in memory.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.core.config import KubernetesSettings
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import Secret

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # docs: "Accessing the Kubernetes API from a Pod"
TOLD = ("server", "tls-server-name", "certificate-authority-data", "proxy-url")  # of a cluster, to a program that asks


@dataclass(frozen=True)
class ExecPlugin:
    """A program that prints credentials, such as ``aws eks get-token``; see client.authentication.k8s.io."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    api_version: str
    cluster: Mapping[str, Any] | None = None  # what the program is told of the cluster (provideClusterInfo)


@dataclass(frozen=True)
class ClusterAccess:
    """An API server and our identity there. ``ca``: PEM, None for the machine's own; ``certificate``: PEM of certificate and key.

    Who we are is shown by a certificate, a token, a file that holds one (read again at each request), or a program. ``server_name``: that
    the server's certificate must be for, where it is not that of its address.
    """

    server: str
    server_name: str | None = None
    ca: str | None = None
    certificate: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    plugin: ExecPlugin | None = field(default=None, repr=False)
    proxy: str | None = None


def access_of(settings: KubernetesSettings, kubeconfig: Secret | None, hint: str) -> ClusterAccess:
    """Return the access that a configuration names. ``hint``: what to do where there is no kubeconfig. Raises BadInputError."""
    if settings.in_cluster:
        return in_cluster(process_environment())
    if kubeconfig is None:
        raise BadInputError("No access to the cluster", what="KUBECONFIG_DATA is not set", where="secrets of the job", next_step=hint)
    return parse(kubeconfig.reveal(), settings.context)


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
    if any(name == "as" or name.startswith("as-") for name in user):
        raise ValueError("users.as is not supported: give the credentials of the account itself")
    certificate, key = _pem(user, "client-certificate"), _pem(user, "client-key")
    if bool(certificate) != bool(key):
        raise ValueError("client-certificate and client-key: one does nothing without the other")
    return ClusterAccess(
        server=server,
        server_name=cluster.get("tls-server-name"),
        ca=_pem(cluster, "certificate-authority"),
        certificate=f"{certificate}\n{key}" if certificate and key else None,
        token=user.get("token"),
        token_file=Path(user["tokenFile"]) if "tokenFile" in user else None,
        plugin=_plugin(user["exec"], cluster) if "exec" in user else None,
        proxy=cluster.get("proxy-url"),
    )


def _plugin(table: Mapping[str, Any], cluster: Mapping[str, Any]) -> ExecPlugin:
    if table.get("interactiveMode") == "Always":
        raise ValueError("users.exec.interactiveMode is Always: nobody is there to answer")
    env = {str(entry["name"]): str(entry["value"]) for entry in table.get("env") or []}
    told = {name: cluster[name] for name in TOLD if name in cluster} if table.get("provideClusterInfo") else None
    for extension in cluster.get("extensions") or []:
        if told is not None and extension["name"] == "client.authentication.k8s.io/exec":
            told["config"] = extension["extension"]
    return ExecPlugin((str(table["command"]), *map(str, table.get("args") or [])), env, str(table["apiVersion"]), told)


def _pem(table: Mapping[str, Any], name: str) -> str | None:
    if f"{name}-data" in table:
        try:
            return base64.b64decode(str(table[f"{name}-data"]), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"{name}-data is no base64 of a PEM text") from None
    return Path(table[name]).read_text(encoding="utf-8") if name in table else None
