"""Read the journals of the production hosts for an audit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from azora_ci.cli.common import open_target, read_only_context

if TYPE_CHECKING:
    from azora_ci.record.audit.journals import Journals, Noted
    from azora_ci.targets.journal import History


def read(config_path: Path, *, wanted: bool | None) -> Journals:
    """Return what the hosts noted. ``wanted`` None: they are asked where PROD_HOST says which they are.

    Raises BadInputError when hosts are wanted and PROD_* does not suffice.
    """
    from azora_ci.core.environment import process_environment
    from azora_ci.core.errors import UnreachableError
    from azora_ci.record.audit.journals import Journals

    if wanted is False:
        return Journals(not_asked="--no-hosts was given")
    if wanted is None and not process_environment().get("PROD_HOST"):
        return Journals(not_asked="PROD_HOST is not set here")
    target = open_target(read_only_context(config_path))
    try:
        with target.connected():
            hosts, history = sorted(target.holders()), target.current()
    except UnreachableError as error:
        return Journals(not_asked=f"{error.title}: {error.what}", left_out=target.left_out or {error.where: error.what})
    return Journals([host or "this machine" for host in hosts], noted_in(history), None, dict(target.left_out))


def noted_in(history: History) -> list[Noted]:
    """Return the deployments of a history; of an earlier version's entry without a time, the time is that of its id."""
    from azora_ci.core.clock import rfc3339
    from azora_ci.record.audit.journals import Noted

    return [
        Noted(
            release.id,
            release.version,
            release.began_at or rfc3339(datetime.fromtimestamp(int(release.id.partition("-")[0]), UTC)),
            release.outcome,
        )
        for release in history.releases.values()
    ]
