"""Check the configured target for everything that production needs before a deployment. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import AzoraError
from azora_ci.health.workers import UNHEALTHY
from azora_ci.targets.base import Target, TargetContext
from azora_ci.targets.findings import Finding
from azora_ci.targets.journal import PROMOTED
from azora_ci.targets.registry import kind_of, target_of


def examine(context: TargetContext) -> list[Finding]:
    """Return the findings about the configuration, then about the needs of the configured target, then about its state."""
    return [*_configuration(context), *kind_of(context.config).findings(context), *_state(context)]


def _configuration(context: TargetContext) -> Iterator[Finding]:
    config = context.config
    yield Finding("configuration", True, f"{config.application}, {len(config.services)} services, target {config.target.kind}")
    yield Finding(
        "required checks",
        bool(config.checks.required or config.checks.rulesets),
        ", ".join(map(str, config.checks.required))
        or ("those of the repository's rulesets" if config.checks.rulesets else "none are named"),
        "name them in checks.required: an empty gate is closed",
    )
    yield _isolation(config)
    yield Finding(
        "critical endpoints",
        bool(config.smoke),
        ", ".join(endpoint.name for endpoint in config.smoke) or "smoke.endpoints is empty",
        "add at least one to [smoke] endpoints: a smoke test that tests nothing would be no evidence",
    )
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


def _state(context: TargetContext) -> Iterator[Finding]:
    try:
        target = target_of(replace(context, spare_lost_hosts=True))
        with target.connected():
            yield from [_lock(target), _unfinished(target), _instances(target)]
    except AzoraError as error:
        yield Finding("state", False, f"{error.title}: {error.what}", error.next_step)
    except OSError as error:
        yield Finding("state", False, f"{type(error).__name__}: {error}", "let this user read the target's state, or run this as its owner")


def _lock(target: Target) -> Finding:
    held = target.holder()
    if held is None:
        return Finding("lock", True, "free")
    text = f"{held.owner.deployment_id} of {held.owner.actor} until {held.expires_at} ({held.owner.run_url})"
    return Finding("lock", held.alive, f"{'held by' if held.alive else 'left behind by'} {text}", "the next deployment takes it over")


def _unfinished(target: Target) -> Finding:
    unfinished = target.current().unfinished
    held = target.holder()
    if unfinished is None:
        return Finding("rollout", True, "none is half done")
    release = f"{unfinished.version} ({unfinished.id})"
    if unfinished.outcome == PROMOTED:
        next_step = f'run the same rollback again: python -m azora_ci rollback --deployment-id {unfinished.id} --reason "…"'
        return Finding("rollout", False, f"{release} was taken back, but not everywhere", next_step)
    text = f"{release} at {unfinished.percent} %"
    if held is not None and held.alive:
        return Finding("rollout", True, f"under way: {text}")
    return Finding("rollout", False, f"half done: {text}", "re-run its failed jobs: they take its traffic back first")


def _instances(target: Target) -> Finding:
    history = target.current()
    if history.serving is None:
        return Finding("instances", True, "nothing was deployed yet: the first deployment has no version to go back to")
    dead = target.observe().dead
    serving = history.releases[history.serving]
    text = f"{serving.version} ({serving.id}) serves"
    running = [worker for worker in target.instances(serving.id) if worker.worker and worker not in dead]
    states = zip(running, target.states(running) if running else (), strict=True)
    sick = [f"not running: {', '.join(instance.name for instance in dead)}"] if dead else []
    sick += [f"{worker.name}: {state.detail or state.health}" for worker, state in states if state.health == UNHEALTHY]
    return Finding("instances", not sick, "; ".join((text, *sick)) if sick else f"{text}, every instance runs", "deploy again")
