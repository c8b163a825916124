"""Ask production for everything that a deployment needs of it: for doctor, and before anything is changed. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from azora_ci.core.config import DeployConfig, Service
from azora_ci.core.errors import AzoraError, BadInputError
from azora_ci.core.settings import Aws, DatabaseTransport
from azora_ci.core.variables import Secret
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.gates import reachability
from azora_ci.gates.reachability import Reached
from azora_ci.health.answers import CONTRACT, NEW
from azora_ci.health.workers import UNHEALTHY
from azora_ci.targets.base import Target, TargetContext
from azora_ci.targets.findings import Finding
from azora_ci.targets.journal import PROMOTED, History
from azora_ci.targets.proofs import settings_by_service
from azora_ci.targets.registry import kind_of, target_of
from azora_ci.targets.workers import look


@dataclass(frozen=True)
class Means:
    """What there is to ask with, beside the access to hosts: AWS, the database, user and password of the registry for pushing.

    ``withheld``: why none of it may be used, empty when it may. ``with_database`` is called with the address of a database that answers.
    """

    aws: Aws
    transport: DatabaseTransport
    database_url: Secret | None
    login: tuple[Secret | None, Secret | None]
    withheld: str = ""
    with_database: Callable[[DatabaseUrl], None] | None = None


@dataclass
class Consultation:
    """What production answered. ``not_asked``: part -> why; ``first``: nothing was deployed yet, as the target's history says; ``serving``:
    the release that serves, as evidence.
    """

    findings: list[Reached] = field(default_factory=list)
    not_asked: dict[str, str] = field(default_factory=dict)
    database_transport: str | None = None
    first: bool = False
    serving: dict[str, Any] | None = None


def consult(context: TargetContext, means: Means) -> Consultation:
    """Ask database, bucket, registry, target and public health addresses; each finding is there, and none hides another."""
    consultation, config = Consultation(), context.config
    _ask_stores(consultation, context, means)
    history = _ask_target(consultation, context, means.withheld)
    _ask_registry(consultation, context, means)
    if means.withheld and history is None:  # what ought to answer is not known
        consultation.not_asked["public health addresses"] = means.withheld
        return consultation
    consultation.first = history is not None and history.serving is None
    consultation.serving = serving_release(history)
    versions = expected_versions(history)
    consultation.findings += [reachability.endpoint(service, versions) for service in as_serving(config.web, history)]
    return consultation


def configuration(context: TargetContext) -> list[Finding]:
    """Return what a person should know of a configuration beside its problems."""
    return list(_configuration(context))


def _ask_stores(consultation: Consultation, context: TargetContext, means: Means) -> None:
    if means.withheld:
        consultation.not_asked |= dict.fromkeys(("production database", "backup bucket"), means.withheld)
        return
    via_ssh = context.config.database.via_ssh
    if means.database_url is None:
        consultation.not_asked["production database"] = "PROD_DATABASE_URL is not set"
    elif via_ssh and context.access is None:
        consultation.not_asked["production database"] = "it is behind the SSH host, whose settings cannot be used"
    else:
        consultation.findings.append(reachability.database(lambda: _opened(consultation, context, means), means.with_database))
    if means.aws.aws_access_key_id is None:
        consultation.not_asked["backup bucket"] = "no AWS credentials are set"
    else:
        consultation.findings.append(reachability.bucket(means.aws, context.config.backup.bucket))


@contextmanager
def _opened(consultation: Consultation, context: TargetContext, means: Means) -> Iterator[DatabaseUrl]:
    """Yield the address of the database; where it leads through SSH or the cluster, that way stays open during the block."""
    assert means.database_url is not None  # noqa: S101 - the caller asked
    url = DatabaseUrl.parse(means.database_url.reveal())
    url = url.with_transport(means.transport.database_ca, plain_accepted=means.transport.database_plain)
    if context.config.database_forward is not None:
        from azora_ci.database.forward import forwarded_database

        kubeconfig = context.access.kubeconfig_data if context.access else None
        with forwarded_database(url, context.config, kubeconfig, context.processes, context.clock) as reachable:
            consultation.database_transport = reachable.protection.level
            yield reachable
        return
    if not context.config.database.via_ssh or context.access is None:
        consultation.database_transport = url.protection.level
        yield url
        return
    from azora_ci.database.tunnel import access_to, reachable_database

    access = access_to(url, context.access)
    with reachable_database(url, access, context.recorded_host_keys, context.log, context.clock, {}) as reachable:
        consultation.database_transport = reachable.protection.level
        yield reachable


def _ask_target(consultation: Consultation, context: TargetContext, withheld: str) -> History | None:
    """Ask the target; return its history where all of it could be asked. None: nobody knows what was deployed."""
    access, kind = context.access, kind_of(context.config)
    if kind.needs_login and withheld:
        consultation.not_asked["production hosts" if kind.needs_host_keys else "production cluster"] = withheld
        return None
    if kind.needs_host_keys and not (access and access.prod_host and access.prod_user and access.prod_key):
        consultation.not_asked["production hosts"] = "the settings for reaching them are not set, or cannot be used"
        return None
    needs: list[Finding] = list(kind.findings(context))
    state: list[Finding] = []
    history: History | None = None
    if all(finding.passed or not finding.stops for finding in needs):
        state, history = _state(context)
    consultation.findings += reachability.of_target([*needs, *state])
    return history if all(finding.passed for finding in needs) else None


def _ask_registry(consultation: Consultation, context: TargetContext, means: Means) -> None:
    config = context.config
    if config.registry is None:
        consultation.not_asked["registry"] = "the configuration has no [registry]"
        return
    user, password = means.login
    try:
        if bool(user) != bool(password):
            raise BadInputError(
                "Half a login of the registry",
                what="one of DOCKER_USERNAME and DOCKER_PASSWORD is set, the other is not",
                where="DOCKER_USERNAME, DOCKER_PASSWORD",
                next_step="set both as secrets of the environment, or neither",
            )
        push = (user, password) if user and password else None
        pull = context.access.registry_login if context.access is not None else None
        if means.withheld:
            consultation.not_asked["registry"] = means.withheld
            return
        consultation.findings += reachability.registry(config.registry, config.services, push, pull if pull != push else None)
    except AzoraError as error:
        consultation.findings.append(reachability.failed("registry", "registry", error))


def expected_versions(history: History | None) -> frozenset[str]:
    """Return the versions, without v, that production may answer before a rollout; empty where they are not known."""
    if history is None or history.serving is None:
        return frozenset()
    running = [history.releases[history.serving], history.unfinished]
    return frozenset(deployed.release.bare for deployed in running if deployed is not None)


def serving_release(history: History | None) -> dict[str, Any] | None:
    """Return the release that serves as evidence: what it was deployed as, and what it answers where that is not the contract."""
    if history is None or history.serving is None:
        return None
    deployed = history.releases[history.serving]
    health = {service: asdict(settings) for service, settings in settings_by_service(deployed).items() if settings != CONTRACT}
    return {"deployment_id": deployed.id, "version": deployed.version, "digests": dict(deployed.digests), "health": health}


def as_serving(services: Iterable[Service], history: History | None) -> list[Service]:
    """Return services with the health settings of the release that serves: the one that is deployed may answer something else."""
    serving = history.releases[history.serving] if history is not None and history.serving is not None else None
    settings = settings_by_service(serving) if serving else {}
    return [replace(service, health=settings.get(service.id, service.health)) for service in services]


def _configuration(context: TargetContext) -> Iterator[Finding]:
    config = context.config
    yield Finding("configuration", True, f"{config.application}, {len(config.services)} services, target {config.target.kind}")
    yield _isolation(config)
    signing = config.backup.signing
    if signing == "none":
        detail = "none: whoever can write the bucket can forge manifests, records and recorded host keys ([evidence] signing)"
    else:
        detail = f"manifests and records are signed by {signing}; what is not is not believed"
    yield Finding("signatures", True, detail)
    access = context.access
    if access is not None and access.registry_login is not None:
        yield Finding(
            "registry login of hosts",
            not access.hosts_may_push,
            "DOCKER_USERNAME, which may push" if access.hosts_may_push else "PULL_USERNAME",
            "make a login that may only pull: PULL_USERNAME and PULL_PASSWORD",
        )


def _isolation(config: DeployConfig) -> Finding:
    """Say where the application's build runs, and what that costs. Sizes: docs.github.com, "About billing for GitHub Actions", 2026."""
    if config.build.isolation == "none":
        detail = f"beside the registry's password, because {config.build.isolation_reason}; every record says so"
        return Finding("build isolation", True, detail)
    detail = (
        f"{len(config.services)} images are built without secrets and handed over as artifacts of one day; free private plans have 500 MB "
        'of artifacts in all: where that is too little, build.isolation = "none" with a reason builds in place'
    )
    return Finding("build isolation", True, detail)


# --- state of the target ------------------------------------------------------------------------------------------------------


def _state(context: TargetContext) -> tuple[list[Finding], History | None]:
    """Return the findings about what the target holds, none of which stops a deployment but a state that cannot be read."""
    try:
        target = target_of(replace(context, spare_lost_hosts=True))
        with target.connected():
            history = target.current()
            return [_lock(target), _unfinished(target, history), _instances(target, history)], None if target.left_out else history
    except AzoraError as error:
        return [Finding("state", False, f"{error.title}: {error.what}", error.next_step)], None
    except OSError as error:
        step = "let this user read the target's state, or run this as its owner"
        return [Finding("state", False, f"{type(error).__name__}: {error}", step)], None


def _lock(target: Target) -> Finding:
    held = target.holder()
    if held is None:
        return Finding("lock", True, "free")
    text = f"{held.owner.deployment_id} of {held.owner.actor} until {held.expires_at} ({held.owner.run_url})"
    detail = f"{'held by' if held.alive else 'left behind by'} {text}"
    return Finding("lock", held.alive, detail, "the next deployment takes it over", stops=False)


def _unfinished(target: Target, history: History) -> Finding:
    unfinished = history.unfinished
    held = target.holder()
    if unfinished is None:
        return Finding("rollout", True, "none is half done")
    release = f"{unfinished.version} ({unfinished.id})"
    if unfinished.outcome == PROMOTED:
        next_step = f'run the same rollback again: python -m azora_ci rollback --deployment-id {unfinished.id} --reason "…"'
        return Finding("rollout", False, f"{release} was taken back, but not everywhere", next_step, stops=False)
    text = f"{release} at {unfinished.percent} %"
    if held is not None and held.alive:
        return Finding("rollout", True, f"under way: {text}")
    return Finding("rollout", False, f"half done: {text}", "re-run its failed jobs: they take its traffic back first", stops=False)


def _instances(target: Target, history: History) -> Finding:
    if history.serving is None:
        return Finding("instances", True, "nothing was deployed yet: the first deployment has no version to go back to")
    dead = target.observe().dead
    serving = history.releases[history.serving]
    text = f"{serving.version} ({serving.id}) serves"
    running = [worker for worker in target.instances(serving.id) if worker.worker and worker not in dead]
    states = zip(running, target.states(running) if running else (), strict=True)
    sick = [f"not running: {', '.join(instance.name for instance in dead)}"] if dead else []
    findings = [look(worker, NEW, state) for worker, state in states]
    sick += [f"{finding.endpoint.name}: {finding.detail}" for finding in findings if finding.outcome == UNHEALTHY]
    return Finding("instances", not sick, "; ".join((text, *sick)) if sick else f"{text}, every instance runs", "deploy again", stops=False)
