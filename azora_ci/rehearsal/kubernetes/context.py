"""``--context``: a cluster of a person's own kubeconfig, which must be one that is made to be thrown away."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from azora_ci.clients.kubernetes import kubeconfig
from azora_ci.core.errors import BadInputError

PREFIX, MINIKUBE = "kind-", "minikube"  # how kind names its contexts, and minikube its only one


def require(name: str, environ: Mapping[str, str]) -> str:
    """Return the address of the context's API server. Raises BadInputError for any other cluster: a rehearsal breaks things on purpose."""
    if not name.startswith(PREFIX) and name != MINIKUBE:
        raise BadInputError(
            "This cluster is not one to rehearse in",
            what=f"context {name} is not named kind-… or minikube, and a rehearsal breaks what it deploys on purpose",
            where="--context",
            next_step="kind create cluster, then --context kind-kind; or leave --context out",
        )
    home = Path(environ.get("HOME", "/"))
    paths = [Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part] or [home / ".kube" / "config"]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    error: BadInputError | None = None
    for text in texts:
        try:
            return kubeconfig.parse(text, name).server
        except BadInputError as problem:
            error = problem
    raise BadInputError(
        "This context is not known",
        what=error.what if error else "there is no kubeconfig",
        where=", ".join(map(str, paths)),
        next_step="kubectl config get-contexts names those that there are",
    )


def refusal(name: str, server: str) -> BadInputError:
    """Return the error of a rehearsal in such a cluster, which is not there yet."""
    return BadInputError(
        "A rehearsal in this cluster is not there yet",
        what=f"{name} ({server}): its nodes reach neither the registry nor the database of a rehearsal, which listen on loopback",
        where="--context",
        next_step="leave --context out: the rehearsal starts a control plane of its own",
    )
