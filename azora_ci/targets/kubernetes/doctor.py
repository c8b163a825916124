"""The doctor's findings about the target ``kubernetes``: API server, every right by its verb, Rollouts, and the watch over the runner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.objects import member
from azora_ci.core.config.kubernetes import PROXY
from azora_ci.core.errors import AzoraError
from azora_ci.targets.base import TargetContext
from azora_ci.targets.findings import Finding, failed
from azora_ci.targets.kubernetes import manifests, rollouts
from azora_ci.targets.kubernetes.cluster import Names, connect, settings_of
from azora_ci.targets.kubernetes.counters import Counting, counting
from azora_ci.targets.kubernetes.fleet import Fleet
from azora_ci.targets.kubernetes.releases import asked

INSTALL = "python -m azora_ci edge install, with a kubeconfig that may create roles"


def findings(context: TargetContext) -> Iterator[Finding]:
    """Yield the findings. Changes nothing."""
    settings = settings_of(context.config)
    names = Names(settings)
    try:
        api = connect(context)
        version = api.get("/version")
    except AzoraError as error:
        yield failed("API server", error)
        return
    yield Finding("API server", True, f"{api.host} answers, Kubernetes {version.get('gitVersion')}")
    missing = _missing(api, settings.namespace, manifests.rights(names, proxy=settings.probes == PROXY))
    yield Finding(
        "rights", not missing, f"missing: {', '.join(missing)}" if missing else "every verb that a deployment uses is allowed", INSTALL
    )
    if settings.database is not None:
        lacking = _missing(api, settings.database.namespace, manifests.rights_to_database(settings.database))
        detail = f"missing: {', '.join(lacking)}" if lacking else "every verb that reaches the database is allowed"
        yield Finding("rights to the database", not lacking, f"{detail}, in namespace {settings.database.namespace}", INSTALL)
    if missing:
        return
    try:
        states = Fleet(api, names, context, lambda _service, _seen: "").states()
    except AzoraError as error:
        yield failed("rollouts", error)
        return
    for service, seen in states.items():
        obstacles = list(rollouts.obstacles(seen.document, settings.rollouts[service], settings))
        notes = list(rollouts.remarks(seen.document, settings.rollouts[service], context.rollback_window_minutes))
        yield Finding(f"rollout {seen.name}", not obstacles, "; ".join(obstacles or [seen.text, *notes]), "correct its manifest")
    counted = counting(settings, context.clock)
    if counted is not None:
        for service, seen in states.items():
            yield _counted(counted, asked(names, service, seen, seen.stable or "none"))
    elif context.config.rollout.inconclusive == "pass":
        yield Finding("counters", True, "none: verdicts rest on probes alone, and stages pass as inconclusive (rollout.inconclusive)")


def _counted(counted: Counting, given: Mapping[str, str]) -> Finding:
    """Say what is counted of the version that serves: a query that matches nothing would find no fault in any version."""
    name = f"counters of {given['rollout']}"
    try:
        requests, errors = counted.answers(given)
    except AzoraError as error:
        return failed(name, error)
    detail = f"{requests or 0} requests of {given['hash']}, which serves"
    if requests is None:
        detail += ": the query requests matches no series"
    if errors is None:
        detail += "; the query errors matches no series: either none failed yet, or it never counts one (make it answer 0: … or vector(0))"
    step = "send it requests, or correct the queries: what is not counted makes every stage inconclusive"
    return Finding(name, bool(requests), detail, step, stops=False)


def _missing(api: Api, namespace: str, needed: Iterable[manifests.Right]) -> list[str]:
    """Return the rights in a namespace that our account lacks, as the API server judges them itself."""
    missing = []
    for right in needed:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "namespace": namespace,
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "name": right.name,
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
        answer = api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        if not member(answer, "status", "allowed"):
            missing.append(str(right))
    return missing
