"""Check each production host over a connection of its own, so that a broken host does not hide the others. Nothing is changed.

sshd reports a forbidden TCP connection and an unanswered one differently, but reports the same for both with a Unix socket. So a
finding about Docker's socket names both possible causes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from azora_ci.clients.ssh.host_keys import ACCEPTED
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.targets.base import TargetContext
from azora_ci.targets.docker_hosts.capacity import require_disk, require_memory, requirements_of
from azora_ci.targets.docker_hosts.connection import Connection
from azora_ci.targets.docker_hosts.host_node import HostNode, settings_of
from azora_ci.targets.docker_hosts.target import DockerHosts
from azora_ci.targets.findings import Finding, check, failed
from azora_ci.targets.guard.client import CLOCK_LIMIT
from azora_ci.targets.guard.wall import METADATA
from azora_ci.targets.parallel import HostOutcome
from azora_ci.targets.release import Release

ATTEMPTS = 2  # to connect; few, because a person waits
CONNECTION = ": connection"  # end of the name of the finding on which all others about a host depend
NO_RELEASE = Release("", "", {})  # has no images, so that only memory and the disk reserve are checked


def findings(context: TargetContext) -> list[Finding]:
    """Return the findings of all hosts, in the hosts' order. Raises BadInputError when the settings for access are incomplete."""
    examinations = DockerHosts(context).examine_hosts(lambda node: list(examine(node, context)))
    host_findings = [finding for examination in examinations for finding in _findings_of_host(examination)]
    lost = sum(not finding.passed and finding.name.endswith(CONNECTION) for finding in host_findings)
    detail = "none answers" if lost == len(examinations) else "the others answer" if lost else "every host answers"
    return [Finding("hosts", lost < len(examinations), detail, "see below"), *host_findings]


def _findings_of_host(examination: HostOutcome[HostNode, list[Finding]]) -> list[Finding]:
    if examination.result is not None:
        return examination.result
    name = examination.item.host.name
    return [
        failed(name, examination.error)
        if isinstance(examination.error, AzoraError)
        else Finding(name, False, repr(examination.error), "this is a bug of azora-ci: report the line above")
    ]


def examine(node: HostNode, context: TargetContext) -> Iterator[Finding]:
    """Yield the findings about a host. Checks that cannot be made because an earlier one failed are left out."""
    name, connection, problem = node.host.name, node.host.connection, None
    try:
        node.host.open(ATTEMPTS)
    except AzoraError as error:  # the connection itself may be open nevertheless
        problem = error
    if not connection.is_open():
        yield failed(
            f"{name}{CONNECTION}",
            problem
            or NotTrueError("Connection is closed", what="it ended", where=name, next_step="run doctor again; then read sshd's log"),
        )
        return
    yield Finding(f"{name}{CONNECTION}", True, "sshd answers and admits the key")
    yield _host_key(name, connection)
    yield from _forwarding(name, connection, problem)
    if problem is not None:
        return
    docker = check(f"{name}: Docker", lambda: _docker(node))
    yield docker
    if docker.passed:
        yield check(f"{name}: clock", lambda: _clock(node, context))
        yield check(f"{name}: memory and disk", lambda: _room(node, context))
        yield check(f"{name}: port", lambda: _port(node))
        yield check(f"{name}: images of edge and guard", lambda: _images(node, context))
        # A deployment installs or replaces these three.
        yield check(f"{name}: guard", lambda: _guard(node), stops=False)
        yield check(f"{name}: edge", lambda: _edge(node), stops=False)
        yield check(f"{name}: wall", lambda: _wall(node), stops=False)


def _host_key(name: str, connection: Connection) -> Finding:
    host_key = connection.credentials.seen.get(connection.name)
    if host_key is None:
        return Finding(f"{name}: host key", True, "checked")
    pin = (
        f"compare it with the host's own and pin it, PROD_KNOWN_HOSTS: {connection.name} {host_key.key.key_type} {host_key.key.blob}"
        if host_key.key
        else ""
    )
    return Finding(f"{name}: host key", host_key.source != ACCEPTED, f"{host_key.fingerprint}, {host_key.source}", pin, stops=False)


def _forwarding(name: str, connection: Connection, problem: AzoraError | None) -> Iterator[Finding]:
    """Yield findings about sshd's forwarding. Without TCP forwarding, OpenSSH 9.2 refuses Unix sockets as well, whatever their setting."""
    forbidden = connection.forbids_tcp()
    sshd_config = "in /etc/ssh/sshd_config there, and reload sshd"
    yield Finding(
        f"{name}: AllowTcpForwarding",
        not forbidden,
        "sshd refuses to forward" if forbidden else "TCP connections are forwarded",
        f"set AllowTcpForwarding yes, without PermitOpen and DisableForwarding, {sshd_config}",
    )
    if problem is None:
        yield Finding(f"{name}: AllowStreamLocalForwarding", True, "Docker's socket is forwarded")
    elif not forbidden:
        rights = "where that is set: start dockerd, and let PROD_USER use its socket (group docker)"
        detail = f"TCP connections are forwarded, Docker's socket is not ({problem.what})"
        yield Finding(f"{name}: AllowStreamLocalForwarding", False, detail, f"set AllowStreamLocalForwarding yes {sshd_config}; {rights}")


def _docker(node: HostNode) -> str:
    with node.host.docker("tell its version") as client:
        version = client.version()
    return f"{version['Version']}, API {version['ApiVersion']}"


def _clock(node: HostNode, context: TargetContext) -> str:
    with node.host.docker("tell the time") as client:
        system_time = str(client.info()["SystemTime"])
    seconds = (datetime.fromisoformat(to_microseconds(system_time)) - context.clock.now()).total_seconds()
    if abs(seconds) > CLOCK_LIMIT.total_seconds():
        raise NotTrueError(
            "The host's clock is off",
            what=f"it differs from this machine's by {seconds:.0f} s, the limit is {CLOCK_LIMIT.seconds} s",
            where=node.host.name,
            next_step="set the clock that is wrong (timedatectl, chrony)",
        )
    return f"differs by {abs(seconds):.1f} s"


def to_microseconds(text: str) -> str:
    """Return a time from Docker, which has up to nine decimals of a second, with six, as ``datetime.fromisoformat`` needs."""
    parts = re.fullmatch(r"(.*\.)([0-9]+)(.*)", text)
    return f"{parts[1]}{parts[2][:6].ljust(6, '0')}{parts[3]}" if parts else text


def _room(node: HostNode, context: TargetContext) -> str:
    required = requirements_of(context.config, NO_RELEASE)
    free = node.guard.ask("/status").get("disk_free_bytes") if node.edge_containers.is_installed() else None
    lines = require_memory(node.host, required) + require_disk(node.host, free, required)
    return "; ".join(line.removeprefix(f"{node.host.name}: ") for line in lines)


def _images(node: HostNode, context: TargetContext) -> str:
    settings = settings_of(context.config)
    for image in (settings.edge_image, settings.guard_image):
        node.host.require_image(image)
    return "they are there, or their registries have them"


def _port(node: HostNode) -> str:
    node.port.require()
    return "; ".join(line.removeprefix(f"{node.host.name}: ") for line in node.port.plan()) or "free, or the edge's"


def _guard(node: HostNode) -> str:
    image, _ = node.edge_containers.edge_image()
    guard = node.host.names.guard
    if node.edge_containers.is_installed():
        node.guard.check_clock()
        return "runs and answers"
    if image is None:
        return "is installed by the first deployment"
    raise NotTrueError(
        "The guard does not run",
        what="the edge is there without it: no route can be changed, and no lease is watched",
        where=node.host.name,
        next_step=f"docker start {guard} there, or let the next deployment install it; read docker logs {guard} first",
    )


def _edge(node: HostNode) -> str:
    image, configured = node.edge_containers.edge_image()
    if image is None:
        return "is installed by the first deployment"
    if not node.edge_containers.is_published():
        raise NotTrueError(
            "The edge does not run",
            what="its container is there, and users' port leads nowhere",
            where=node.host.name,
            next_step=f"docker start {node.host.names.edge} there; read docker logs {node.host.names.edge} first",
        )
    return f"runs, {image}" if configured else f"runs, {image}; the next deployment replaces it by the configured one"


def _wall(node: HostNode) -> str:
    with node.host.docker("look at the wall") as client:
        wall = node.host.find_container(client, node.host.names.wall)
        log = wall.logs(tail=1).decode(errors="replace").strip() if wall else ""
    if wall is None:
        return "is installed by the first deployment"
    if wall.status != "running" or log:
        raise NotTrueError(
            "The wall does not stand",
            what=f"instances may reach the metadata service at {METADATA}: {wall.name} is {wall.status}; {log[:300] or '(no log)'}",
            where=node.host.name,
            next_step=f"docker start {wall.name} there; where its kernel has no routing rules, have a firewall drop what goes there",
        )
    return "stands before the metadata service"
