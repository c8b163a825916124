"""Run git and docker for what they know about a repository: with nothing of this machine's environment but where programs are."""

from __future__ import annotations

from collections.abc import Sequence

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import AzoraError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes

_TIMEOUT_SECONDS = 30.0
_KEPT = ("PATH", "HOME", "DOCKER_CONFIG")  # the last two: where plug-ins of docker are
# The repository's own .git/config may name programs for a fetch, and git fetches objects that are missing: nothing is to be fetched.
_NO_FETCH = ("GIT_ALLOW_PROTOCOL=none", "GIT_NO_LAZY_FETCH=1")


def run(argv: Sequence[str]) -> str | None:
    """Return what a program prints, which is shown and kept nowhere; None when there is no such program, it fails, or it takes too long."""
    own = process_environment()
    variables = [f"{name}={own[name]}" for name in _KEPT if name in own]
    try:
        completed = Processes(JobLog(Actions(), Clock())).run(
            ["env", "-i", *variables, *_NO_FETCH, *argv], check=False, echo=False, timeout=_TIMEOUT_SECONDS
        )
    except AzoraError:
        return None
    return completed.stdout if completed.returncode == 0 else None
