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
from azora_ci.clients.kubernetes.kubeconfig import access_of
from azora_ci.core.clock import Clock
from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import UnreachableError
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
    api = Api(access_of(settings, kubeconfig, HINT), processes, clock)
    with Forward(api, forward, clock, processes.log.say) as opened:
        _check(opened)
        processes.log.say(f"the database is reached through the cluster: {opened.place}")
        yield url.with_tunnel(opened.port, protects=False)


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
