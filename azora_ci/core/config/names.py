"""Names of secrets and variables that services may not have, because azora-ci or what runs it reads them itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from azora_ci.core.config.tables import Service
from azora_ci.core.variables import WITHHELD

SECRET_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
# Instances reach the database with the address that the jobs use: the one variable that they may share.
SHARED = frozenset({"PROD_DATABASE_URL"})
# Every secret of azora-ci is withheld from children, and DATABASE_URL, which is the application's own name.
OWN_SECRETS = WITHHELD - {"DATABASE_URL"}
# The volume of an edge with its routes and the guard's journal: who writes there forges both. An application's own name is its prefix, and
# others on the host have theirs.
EDGE_VOLUME = re.compile(r"[a-z][a-z0-9]{0,20}-edge")
# A network of the hosts that a service may join: none of Docker's own, nor of an application's edge and services.
NETWORK = re.compile(r"(?!(host|none|bridge|default|az-edge|azora.*|0-.*-edge|[a-z][a-z0-9]{0,20}-to-.*)$)[a-zA-Z0-9][a-zA-Z0-9_.-]*")
# What every target tells an instance.
GIVEN = frozenset({"DEPLOYMENT_ID", "HOST", "PORT", "SERVICE", "VERSION"})
# What the target tells an instance, and what the runner, git, the shell, Python, libpq, TLS, HTTP, boto3, Docker, Node.js, glibc and the
# loader read of the step's environment, into which a service's secret is put.
_OTHERS = re.compile(
    r"(?:ACTIONS|AWS|AZORA|BOTO|BUILDKIT|BUILDX|CONTAINER|CURL|DOCKER|GIT|GITHUB|INPUT|LC|LD|NODE|OPENSSL|PRESENT|PYTHON|REQUESTS|RUNNER)_\w+"
    r"|(?:SSH|SSL|SUDO|XDG)_\w+|KRB5\w+|MALLOC_\w+|PG[A-Z]+|PYTHON[A-Z]+|[A-Z0-9]+_PROXY"
    r"|BASH_ENV|CI|ENV|GCONV_PATH|GLIBC_TUNABLES|GNUPGHOME|HOME|HOST|HOSTALIASES|IFS|LANG|LANGUAGE|LOCALDOMAIN|LOCPATH|LOGNAME|NEEDS|NETRC"
    r"|NLSPATH|PATH|PORT|RES_OPTIONS|SERVICE|SHELL|SSLKEYLOGFILE|TMPDIR|TZ|TZDIR|USER|VARIABLES"
)


def check(services: Iterable[Service], own: Collection[str] = ()) -> None:
    """Raise ValueError that names every secret and variable of a service that may not have its name.

    ``own``: names of the variables that jobs declare, beside their secrets, which are always refused.
    """
    problems = [problem for service in services for problem in _problems(service, own)]
    if problems:
        raise ValueError("\n".join(problems))


def may_be_secret(name: str, own: Collection[str] = ()) -> bool:
    """Say whether a service's secret may have a name."""
    taken = name in OWN_SECRETS or name in own or _OTHERS.fullmatch(name)
    return bool(SECRET_NAME.fullmatch(name)) and (name in SHARED or not taken)


def _problems(service: Service, own: Collection[str]) -> Iterator[str]:
    for name in service.secrets:
        if not may_be_secret(name, own):
            yield f"services.{service.id}.secrets: {name!r} is read by azora-ci or the runner: a service's secret needs a name of its own"
    for name in GIVEN & service.secret_variables.keys():
        yield f"services.{service.id}.secrets: {name!r} is what azora-ci tells every instance: it cannot hold a secret"
    for name in service.secret_variables.keys() & service.env.keys():
        yield f"services.{service.id}.secrets: {name!r} is also in env"
    for name in service.env:
        if name in OWN_SECRETS:
            yield f"services.{service.id}.env: {name!r} is a secret of azora-ci: its value does not belong into this file, nor to a service"
