"""The objects that this target needs in a namespace, beside lock and journal, and the least rights of our account.

The AnalysisTemplate reads the Lease with a token that may read nothing else. TLS is not verified on the way, since Argo's web metric takes
no CA: who could forge the answer would be inside the cluster's own network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from azora_ci.clients.kubernetes.api import Api, ConflictError
from azora_ci.clients.kubernetes.objects import Document, member
from azora_ci.core.config import ForwardSettings
from azora_ci.core.config.kubernetes import PROXY
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.rollouts import METRIC, RolloutState

HEARTBEAT_SECONDS = 3  # between two looks of the controller at the lease, by which we see that it runs
KEPT = frozenset({"Lease", "ConfigMap"})  # made where they are missing: who holds the lock, and the journal, are not ours to set back
ANALYSIS = "/spec/strategy/canary/analysis"
ERRORS = 20  # of the look at the lease in a row, 200 s in all (others.RETRY_SECONDS): an API server that restarts is no dead runner
PROMOTING = 1  # as leaseTransitions, the one field of a lease's spec that is free: its holder promotes, and is not watched any more


class Right(NamedTuple):
    """A right of our account in the namespace. ``name``: of the only object that it is for; "": of all."""

    group: str
    resource: str
    verb: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}{f' {self.name}' if self.name else ''}"


def rights(names: Names, *, proxy: bool) -> tuple[Right, ...]:
    """Return every right that a deployment uses; nothing more is granted."""
    argo = "argoproj.io"
    needed = [
        *(Right(argo, "rollouts", verb) for verb in ("get", "list", "patch")),
        Right(argo, "rollouts/status", "patch"),
        Right(argo, "analysisruns", "list"),
        Right("apps", "replicasets", "list"),
        Right("", "pods", "list"),
        *(Right("coordination.k8s.io", "leases", verb, names.lease) for verb in ("get", "update", "patch")),
        *(Right("", "configmaps", verb, names.journal) for verb in ("get", "patch")),
    ]
    return (*needed, Right("", "pods/proxy", "get")) if proxy else tuple(needed)


def rights_to_database(forward: ForwardSettings) -> tuple[Right, ...]:
    """Return every right, in the database's namespace, with which a port is forwarded to it.

    A WebSocket begins with a GET, for which Kubernetes up to 1.34 demands ``get`` and later ones ``create``, too.
    """
    forwarding = tuple(Right("", "pods/portforward", verb, forward.pod or "") for verb in ("create", "get"))
    if forward.service is None:
        return forwarding
    return (Right("", "services", "get", forward.service), Right("", "pods", "list"), *forwarding)


def objects(names: Names, *, proxy: bool) -> list[tuple[str, Document]]:
    """Return (path of its kind, object) of everything that ``edge install`` makes, in order."""
    namespace = names.settings.namespace
    reader = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"], "resourceNames": [names.lease]}]
    made: list[tuple[str, Document]] = []
    for account, granted in ((names.reader, reader), (names.deployer, rules(rights(names, proxy=proxy)))):
        meta = {"name": account, "namespace": namespace}
        made += [
            (names.core("serviceaccounts"), {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
            *_granted(account, namespace, granted, {"kind": "ServiceAccount", **meta}),
        ]
    if (forward := names.settings.database) is not None:
        subject = {"kind": "ServiceAccount", "name": names.deployer, "namespace": namespace}
        made += _granted(names.database, forward.namespace, rules(rights_to_database(forward)), subject)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {"name": names.reader, "namespace": namespace, "annotations": {"kubernetes.io/service-account.name": names.reader}},
    }
    made.append((names.core("secrets"), secret))
    made.append(
        (
            names.leases,
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": names.lease}, "spec": {"holderIdentity": ""}},
        )
    )
    made.append((names.core("configmaps"), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names.journal}}))
    made.append((names.group("argoproj.io/v1alpha1", "analysistemplates"), watch(names)))
    return made


def _granted(name: str, namespace: str, granted: list[Document], subject: Document) -> list[tuple[str, Document]]:
    """Return a role and its binding."""
    group, meta = "rbac.authorization.k8s.io", {"name": name, "namespace": namespace}
    path = f"/apis/{group}/v1/namespaces/{namespace}"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": granted}
    reference = {"apiGroup": group, "kind": "Role", "name": name}
    binding = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": meta, "roleRef": reference, "subjects": [subject]}
    return [(f"{path}/roles", role), (f"{path}/rolebindings", binding)]


def rules(needed: tuple[Right, ...]) -> list[Document]:
    """Return rights as the rules of a Role."""
    verbs: dict[tuple[str, str, str], list[str]] = {}
    for right in needed:
        verbs.setdefault((right.group, right.resource, right.name), []).append(right.verb)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": allowed, **({"resourceNames": [name]} if name else {})}
        for (group, resource, name), allowed in verbs.items()
    ]


def watch(names: Names) -> Document:
    """Return the AnalysisTemplate that takes a release back when the lease is held and was not renewed: its runner is dead.

    A release that is being promoted is not taken back: a later run goes forward with it. What counts as not renewed is younger than the
    lease by the time between two looks: the look that finds it comes at the latest when the lease runs out.
    """
    settings = names.settings
    fresh = f'now() - date(result.renewTime) < duration("{settings.lease_seconds - HEARTBEAT_SECONDS}s")'
    alive = f'result.holderIdentity == "" || result.leaseTransitions == {PROMOTING} || {fresh}'
    metric = {
        "name": METRIC,
        "interval": f"{HEARTBEAT_SECONDS}s",
        "failureLimit": 0,
        "consecutiveErrorLimit": ERRORS,
        "successCondition": alive,
        "provider": {
            "web": {
                "url": f"{settings.api_server.rstrip('/')}{names.leases}/{names.lease}",
                "insecure": True,
                "timeoutSeconds": 5,
                "headers": [{"key": "Authorization", "value": "Bearer {{args.token}}"}],
                "jsonPath": "{$.spec}",
            }
        },
    }
    token = {"name": "token", "valueFrom": {"secretKeyRef": {"name": names.reader, "key": "token"}}}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": {"name": names.watch, "namespace": settings.namespace},
        "spec": {"args": [token], "metrics": [metric]},
    }


def install(api: Api, names: Names, states: Mapping[str, RolloutState]) -> str:
    """Make what is missing and return a text about it, with every object that was applied as JSON, which kubectl takes, too.

    A Rollout that waits in a step is not touched: a changed strategy would not be part of what was begun.
    """
    made = objects(names, proxy=names.settings.probes == PROXY)
    for path, document in made:
        if document["kind"] in KEPT:
            with suppress(ConflictError):
                api.create(path, document)
        else:
            api.apply(path, document)
    lines = [f"✓ {document['kind']} {document['metadata']['name']}" for _, document in made]
    for seen in states.values():
        if rollouts.has_watch(seen.document, names.settings):
            continue
        if seen.stable and not seen.finished:
            lines.append(f"✗ {seen.text}: it is under way; run this again afterwards")
            continue
        entry = {"templateName": names.watch}
        templates = member(seen.document, "spec", "strategy", "canary", "analysis", "templates")
        analysis = member(seen.document, "spec", "strategy", "canary", "analysis")
        value = {**(analysis or {}), "templates": [entry, *(templates or [])]}
        value.pop("startingStep", None)
        api.patch(f"{names.rollouts}/{seen.name}", [rollouts.unchanged(seen.document), {"op": "add", "path": ANALYSIS, "value": value}])
        lines.append(f"✓ Rollout {seen.name} names it: write spec.strategy.canary.analysis = {json.dumps(value)} into its manifest, too")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [document for _, document in made]}, indent=1)
    lines.append(f"The account of our jobs is {names.deployer}; make its kubeconfig the secret KUBECONFIG_DATA. What was applied:\n{text}")
    return "\n".join(lines)
