"""What each production host needs, asked over a connection of its own: a broken host does not hide the others. Nothing is changed.

OpenSSH tells a forbidden TCP connection from one that nobody answers. Of a Unix socket it says the same for both, so what stands in the
way of Docker's socket is named as one of two things.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from azora_ci.errors import AzoraError, NotTrueError
from azora_ci.findings import Finding, check, failed
from azora_ci.host_keys import ACCEPTED
from azora_ci.ssh import Connection
from azora_ci.targets import Release, Wiring
from azora_ci.targets.docker_hosts import DockerHosts
from azora_ci.targets.guarded import CLOCK_LIMIT
from azora_ci.targets.host_site import HostSite
from azora_ci.targets.parallel import Outcome
from azora_ci.targets.room import needs, require_disk, require_memory

ATTEMPTS = 2  # of connecting: a person waits
CONNECTION = ": connection"  # ends the name of what everything else about a host depends on
NO_RELEASE = Release("", "", {})  # its images are not asked for


def findings(wiring: Wiring) -> list[Finding]:
    """Return what is found on every host, in their order. Raises BadInputError when access to them is not complete."""
    looks = DockerHosts(wiring).examine_hosts(lambda site: list(examine(site, wiring)))
    found = [finding for one in looks for finding in _of_host(one)]
    lost = sum(not one.passed and one.name.endswith(CONNECTION) for one in found)
    said = "none answers" if lost == len(looks) else "the others answer" if lost else "every host answers"
    return [Finding("hosts", lost < len(looks), said, "see below"), *found]


def _of_host(look: Outcome[HostSite, list[Finding]]) -> list[Finding]:
    if look.result is not None:
        return look.result
    name = look.item.host.name
    return [
        failed(name, look.error)
        if isinstance(look.error, AzoraError)
        else Finding(name, False, repr(look.error), "this is a bug of azora-ci: report the line above")
    ]


def examine(site: HostSite, wiring: Wiring) -> Iterator[Finding]:
    """Yield what is found on one host; what cannot be asked because of something before it is left out."""
    name, connection, problem = site.host.name, site.host.connection, None
    try:
        site.host.open(ATTEMPTS)
    except AzoraError as error:  # the connection itself may stand nevertheless
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
    docker = check(f"{name}: Docker", lambda: _docker(site))
    yield docker
    if docker.passed:
        yield check(f"{name}: clock", lambda: _clock(site, wiring))
        yield check(f"{name}: memory and disk", lambda: _room(site, wiring))
        yield check(f"{name}: guard", lambda: _guard(site))
        yield check(f"{name}: edge", lambda: _edge(site))


def _host_key(name: str, connection: Connection) -> Finding:
    seen = connection.credentials.seen.get(connection.name)
    if seen is None:
        return Finding(f"{name}: host key", True, "checked by OpenSSH, which did not say which one it is")
    pin = (
        f"compare it with the host's own and pin it, PROD_KNOWN_HOSTS: {connection.name} {seen.key.key_type} {seen.key.blob}"
        if seen.key
        else ""
    )
    return Finding(f"{name}: host key", seen.source != ACCEPTED, f"{seen.fingerprint}, {seen.source}", pin)


def _forwarding(name: str, connection: Connection, problem: AzoraError | None) -> Iterator[Finding]:
    """Yield what sshd forwards. One that forwards no TCP refuses Unix sockets as well (OpenSSH 9.2), whatever is set for those."""
    forbidden = connection.forbids_tcp()
    there = "in /etc/ssh/sshd_config there, and reload sshd"
    yield Finding(
        f"{name}: AllowTcpForwarding",
        not forbidden,
        "sshd refuses to forward" if forbidden else "TCP connections are forwarded",
        f"set AllowTcpForwarding yes, without PermitOpen and DisableForwarding, {there}",
    )
    if problem is None:
        yield Finding(f"{name}: AllowStreamLocalForwarding", True, "Docker's socket is forwarded")
    elif not forbidden:
        rights = "where that is set: start dockerd, and let PROD_USER use its socket (group docker)"
        what = f"TCP connections are forwarded, Docker's socket is not ({problem.what})"
        yield Finding(f"{name}: AllowStreamLocalForwarding", False, what, f"set AllowStreamLocalForwarding yes {there}; {rights}")


def _docker(site: HostSite) -> str:
    with site.host.docker("tell its version") as client:
        found = client.version()
    return f"{found['Version']}, API {found['ApiVersion']}"


def _clock(site: HostSite, wiring: Wiring) -> str:
    with site.host.docker("tell the time") as client:
        told = str(client.info()["SystemTime"])
    seconds = (datetime.fromisoformat(to_microseconds(told)) - wiring.clock.now()).total_seconds()
    if abs(seconds) > CLOCK_LIMIT.total_seconds():
        raise NotTrueError(
            "The host's clock is off",
            what=f"it differs from this machine's by {seconds:.0f} s, the limit is {CLOCK_LIMIT.seconds} s",
            where=site.host.name,
            next_step="set the clock that is wrong (timedatectl, chrony)",
        )
    return f"differs by {abs(seconds):.1f} s"


def to_microseconds(text: str) -> str:
    """Return a time of Docker's, which has up to nine digits of a second, as datetime reads it."""
    found = re.fullmatch(r"(.*\.)([0-9]+)(.*)", text)
    return f"{found[1]}{found[2][:6].ljust(6, '0')}{found[3]}" if found else text


def _room(site: HostSite, wiring: Wiring) -> str:
    wanted = needs(wiring.config, NO_RELEASE)
    free = site.guard.ask("/status").get("disk_free_bytes") if site.equipment.is_installed() else None
    lines = require_memory(site.host, wanted) + require_disk(site.host, free, wanted)
    return "; ".join(line.removeprefix(f"{site.host.name}: ") for line in lines)


def _guard(site: HostSite) -> str:
    image, _ = site.equipment.edge_image()
    if site.equipment.is_installed():
        site.guard.check_clock()
        return "runs and answers"
    if image is None:
        return "is installed by the first deployment"
    raise NotTrueError(
        "The guard does not run",
        what="the edge is there without it: no route can be changed, and no lease is watched",
        where=site.host.name,
        next_step="docker start azora-guard there, or let the next deployment install it; read docker logs azora-guard first",
    )


def _edge(site: HostSite) -> str:
    image, configured = site.equipment.edge_image()
    if image is None:
        return "is installed by the first deployment"
    if not site.equipment.is_published():
        raise NotTrueError(
            "The edge does not run",
            what="its container is there, and users' port leads nowhere",
            where=site.host.name,
            next_step="docker start azora-edge there; read docker logs azora-edge first",
        )
    return f"runs, {image}" if configured else f"runs, {image}; the next deployment replaces it by the configured one"
