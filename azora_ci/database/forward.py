"""The production database, reached through the cluster (``target.kubernetes.database``): a port of a pod is forwarded.

As behind SSH, libpq verifies the database's own name. TLS is demanded as on every other way: the pod may only pass connections on, and
API server and node see what they forward.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.forward import Forward
from azora_ci.clients.kubernetes.identity import AUDIENCE
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess, access_of
from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.process import Processes
from azora_ci.core.variables import Secret
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.tunnel import ANSWER_SECONDS, require_one_address, unlike_postgres

HINT = "set it as a secret of the environment, and its variable DATABASE_VIA_KUBERNETES to true: it hands it to this step"


@contextmanager
def forwarded_database(
    url: DatabaseUrl, config: DeployConfig, kubeconfig: Secret | None, processes: Processes, clock: Clock
) -> Iterator[DatabaseUrl]:
    """Yield the address of a database that leads through a pod's port, which is forwarded during the block.

    Raises BadInputError, NotFoundError, ForbiddenError or UnreachableError when there is no way, or no PostgreSQL at its end.
    """
    settings, forward = config.target.kubernetes, config.database_forward
    assert settings is not None and forward is not None  # noqa: S101 - callers asked
    require_one_address(url, "target.kubernetes.database", "the pod")
    access = access_of(settings, kubeconfig, HINT)
    _require_own_identity(access)
    api = Api(access, processes, clock)
    with Forward(api, forward, clock, processes.log.say) as opened:
        _check(opened)
        processes.log.say(f"the database is reached through the cluster: {opened.place}")
        yield url.with_tunnel(opened.port, protects=False)


def _require_own_identity(access: ClusterAccess) -> None:
    """Raise BadInputError, in the first job that reaches the database, where one of them may have no OIDC token: it runs others' code."""
    if access.plugin is not None and AUDIENCE in access.plugin.env:
        raise BadInputError(
            "The database cannot be reached with this kubeconfig",
            what="its program is given an OIDC token, and database-migrations may ask for none, since it runs the migrate command",
            where=f"DATABASE_VIA_KUBERNETES; {AUDIENCE} in users.exec.env of KUBECONFIG_DATA",
            next_step="let KUBECONFIG_DATA hold a token of the account that edge install makes, use a runner that has a role, or reach the "
            "database directly or by SSH",
        )


def _check(forward: Forward) -> None:
    with forward.dial():  # whose errors say more than those of the port
        pass
    try:
        with socket.create_connection(("127.0.0.1", forward.port), ANSWER_SECONDS) as probe:
            problem = unlike_postgres(probe)
    except OSError as error:
        problem = str(error)
    if problem is not None:
        raise UnreachableError(
            "Database cannot be reached through the cluster",
            what="; ".join([problem, *forward.broken[-1:]]),
            where=forward.place,
            next_step="check target.kubernetes.database: PostgreSQL, or what passes connections on, listens at that port of the pod",
        )
