"""Services of archives started apart: isolated commands, whose network namespace has a door to the copy and a window for our requests."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from azora_ci.core.config import Service
from azora_ci.core.errors import BadInputError
from azora_ci.core.process import ending
from azora_ci.core.process.isolation import Door, Window, require_start
from azora_ci.health.probes import unix_dial
from azora_ci.targets.local_processes import processes as local
from azora_ci.targets.release import Release
from azora_ci.targets.trial.base import Means, Started, facts_of, port_of


class ArchivesApart:
    """See ``trial.base.Apart``."""

    def __init__(self, means: Means) -> None:
        self._means = means

    @contextmanager
    def started(self, service: Service, release: Release, env: Mapping[str, str], door: Door) -> Iterator[Started]:
        """Run the service from its archive, unpacked anew, during the block."""
        settings = self._means.config.target.local_processes
        assert settings is not None  # noqa: S101 - the configuration's own check
        # Of a short path: that of a socket may have 107 characters.
        with tempfile.TemporaryDirectory(prefix="azora-ci-", ignore_cleanup_errors=True) as name:
            unpacked = local.unpack(settings.archive_dir, release.digests[service.id], Path(name) / "archive")
            isolation = self._means.isolated(unpacked)
            if not isolation.active:
                raise BadInputError(
                    "Services cannot be started apart",
                    what="ISOLATION is none, and without namespaces they would reach production",
                    where="ISOLATION",
                    next_step="use a runner with root or sudo",
                )
            sockets = Path(name) / "sockets"
            sockets.mkdir(mode=0o700)
            window = Window(sockets / "window", port_of(service, door))
            variables = {**env, **facts_of(service, release, door, local.LOOPBACK)}
            child = self._means.processes.start_isolated(
                service.argv, replace(isolation, door=door, window=window), env=variables, withheld=True
            )

            def ended() -> str | None:
                if child.poll() is None:
                    return None
                code = child.wait()
                require_start(code, child.stderr_text)
                return f"its process ended, {ending(code)}"

            try:
                yield Started(unix_dial(window.socket), ended, partial(child.signal, signal.SIGTERM))
            finally:
                child.end()
