"""The lock while everything is marked with its token."""

from __future__ import annotations

import pytest

from azora_ci.clients.kubernetes.api import NotFoundError
from azora_ci.core.clock import Clock, parse_rfc3339
from azora_ci.targets.kubernetes.lock import ClusterLock
from tests.support.kubernetes_memory import World
from tests.support.kubernetes_target import owner
from tests.support.waiting import until


def test_the_lock_is_renewed_while_everything_is_marked():
    world = World("api")
    renewed = []

    def stamp(*_: object) -> None:
        first = world.lease["renewTime"]
        until(lambda: world.lease["renewTime"] != first, "the lock was renewed", 5)
        renewed.append(parse_rfc3339(world.lease["renewTime"]))

    lock = ClusterLock(world.api, world.names, Clock(), stamp, lambda: False)  # type: ignore[arg-type]
    lock._seconds = 0.6  # of which a sixth passes between two renewals
    lock.acquire(owner("slow"))
    lock.release()
    assert len(renewed) == 1
    assert (world.lease["holderIdentity"], lock._renewer.is_alive()) == ("", False)


def test_a_lock_that_cannot_mark_everything_is_not_renewed_any_more():
    world = World("api")

    def stamp(*_: object) -> None:
        raise NotFoundError("gone", what="-", where="-", next_step="-")

    lock = ClusterLock(world.api, world.names, Clock(), stamp, lambda: False)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        lock.acquire(owner("slow"))
    assert (world.lease["holderIdentity"], lock._renewer.is_alive()) == ("", False)
