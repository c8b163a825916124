"""The object that every step receives: its settings, the shared edges, and the place for its evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.core.settings import Common
from azora_ci.record.fragments import Fragments

S = TypeVar("S", bound=Common)


@dataclass
class Identity:
    """Identity of the deployment: validate-release determines it, every other job reads it from its environment."""

    deployment_id: str | None = None
    version: str | None = None
    git_sha: str | None = None


@dataclass
class Job(Generic[S]):
    """One attempt of one job. A step adds each observation to ``evidence``; a failed job keeps what it had added."""

    name: str
    settings: S
    actions: Actions
    processes: Processes
    clock: Clock
    identity: Identity
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> JobLog:
        """Return the job's log, which masks its secrets."""
        return self.processes.log

    @property
    def log_dir(self) -> Path:
        """Return the folder that becomes the job's artifact."""
        return self.settings.log_dir

    @cached_property
    def config(self) -> config.DeployConfig:
        """Return the deployment configuration, read at the first use. Raises BadInputError.

        From then on no child inherits the secrets of services: only instances of services receive them.
        """
        loaded = config.load(self.settings.config_path)
        self.processes.withhold(name for service in loaded.services for name in service.secrets)
        return loaded

    @property
    def fragments(self) -> Fragments:
        """Return the fragments of earlier jobs."""
        return Fragments(self.settings.received_dir)

    def now(self) -> str:
        """Return the present moment as RFC 3339."""
        return rfc3339(self.clock.now())

    def say(self, line: str) -> None:
        """Print a line and keep it in the job's log."""
        self.log.say(line)

    def tick(self, fact: str) -> None:
        """Print a tick. Only the code that has just observed the fact may call this."""
        self.say(f"✓ {fact}")
