"""What production needs before a deployment, and what is missing of it: questions to the configured target. Nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from azora_ci.errors import AzoraError
from azora_ci.findings import Finding, check, failed
from azora_ci.targets import Target, Tended, Wiring, reached, target_of
from azora_ci.targets.journal import PROMOTED


def examine(wiring: Wiring) -> list[Finding]:
    """Ask for everything that the configured target needs, then for the state it is in."""
    return [*_configuration(wiring), *KINDS[wiring.config.target.kind](wiring), *_state(wiring)]


def _configuration(wiring: Wiring) -> Iterator[Finding]:
    found = wiring.config
    yield Finding("configuration", True, f"{found.application}, {len(found.services)} services, target {found.target.kind}")
    yield Finding(
        "required checks",
        bool(found.checks.required or found.checks.rulesets),
        ", ".join(found.checks.required) or ("those of the repository's rulesets" if found.checks.rulesets else "none are named"),
        "name them in checks.required: an empty gate is closed",
    )
    yield Finding(
        "critical endpoints",
        bool(found.smoke),
        ", ".join(one.name for one in found.smoke) or "smoke.endpoints is empty",
        "add at least one to [smoke] endpoints: a smoke test that tests nothing would be no evidence",
    )


# --- local_processes ----------------------------------------------------------------------------------------------------------


def _local_processes(wiring: Wiring) -> Iterator[Finding]:
    from azora_ci.edge import Edge

    found = wiring.config
    places, config_dir, admin = found.target.local_processes, found.edge.config_dir, found.edge.admin_url or ""
    assert places is not None  # noqa: S101 - the configuration's own check
    assert config_dir is not None  # noqa: S101 - likewise
    yield check("loopback", lambda: f"{type(target_of(found.target.kind, wiring)).__name__} keeps to this machine")
    yield _writable("state dir", "target.local_processes.state_dir", places.state_dir)
    yield _writable("archive dir", "target.local_processes.archive_dir", places.archive_dir)
    edge = Edge(config_dir, admin, wiring.clock)
    install = "python -m azora_ci edge install"
    yield check("config dir", lambda: f"{config_dir} holds the edge's files, {len(edge.state().releases)} releases", install)
    start = f"start the edge ({install} prints the command), or correct edge.admin_url"
    yield check("admin port", lambda: f"{admin} answers, {len(edge.weights())} routes", start)


def _writable(name: str, key: str, folder: Path) -> Finding:
    """Say whether a folder can be written to, or made."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    passed = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    state = "can be written" if there == folder.absolute() else f"is made by the first deployment, in {there}"
    return Finding(
        name, passed, f"{folder} {state if passed else f'cannot be written: {there}'}", f"give this user the right, or correct {key}"
    )


# --- docker_hosts -------------------------------------------------------------------------------------------------------------


def _docker_hosts(wiring: Wiring) -> Iterator[Finding]:
    from azora_ci import doctor_hosts

    try:
        yield from doctor_hosts.findings(wiring)
    except AzoraError as error:
        yield failed("hosts", error)


KINDS: dict[str, Callable[[Wiring], Iterator[Finding]]] = {"local_processes": _local_processes, "docker_hosts": _docker_hosts}


# --- the state it is in ---------------------------------------------------------------------------------------------------------


def _state(wiring: Wiring) -> Iterator[Finding]:
    try:
        target = target_of(wiring.config.target.kind, replace(wiring, spare_lost_hosts=True))
        with reached(target):
            yield from [_lock(target), _unfinished(target), _instances(target)]
    except AzoraError as error:
        yield Finding("state", False, f"{error.title}: {error.what}", error.next_step)
    except OSError as error:
        yield Finding("state", False, f"{type(error).__name__}: {error}", "let this user read the target's state, or run this as its owner")


def _lock(target: Target) -> Finding:
    held = target.holder() if isinstance(target, Tended) else None
    if held is None:
        return Finding("lock", True, "free")
    text = f"{held.owner.deployment_id} of {held.owner.actor} until {held.expires_at} ({held.owner.run_url})"
    return Finding("lock", held.alive, f"{'held by' if held.alive else 'left behind by'} {text}", "the next deployment takes it over")


def _unfinished(target: Target) -> Finding:
    left = target.current().unfinished
    held = target.holder() if isinstance(target, Tended) else None
    if left is None:
        return Finding("rollout", True, "none is half done")
    if left.outcome == PROMOTED:
        again = f'run the same rollback again: python -m azora_ci rollback --deployment-id {left.id} --reason "…"'
        return Finding("rollout", False, f"{left.version} ({left.id}) was taken back, but not everywhere", again)
    text = f"{left.version} ({left.id}) at {left.percent} %"
    if held is not None and held.alive:
        return Finding("rollout", True, f"under way: {text}")
    return Finding("rollout", False, f"half done: {text}", "re-run its failed jobs: they take its traffic back first")


def _instances(target: Target) -> Finding:
    history = target.current()
    if history.serving is None:
        return Finding("instances", True, "nothing was deployed yet: the first deployment has no version to go back to")
    dead = target.observe().dead
    shown = ", ".join(one.name for one in dead)
    serving = history.releases[history.serving]
    text = f"{serving.version} ({serving.id}) serves"
    return Finding("instances", not dead, f"{text}; not running: {shown}" if dead else f"{text}, every instance runs", "deploy again")
