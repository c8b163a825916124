"""The kind ``local_processes``: what is known of such a target before it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from azora_ci.core.config import DeployConfig
from azora_ci.targets.base import ARCHIVES, Target, TargetContext
from azora_ci.targets.findings import Finding
from azora_ci.targets.trial.base import Apart, Means


class LocalProcessesKind:
    """See ``base.TargetKind`` for what each member means."""

    artifact: ClassVar[str] = ARCHIVES
    needs_host_keys: ClassVar[bool] = False
    needs_login: ClassVar[bool] = False

    def check(self, config: DeployConfig) -> None:
        """Accept every configuration: what this kind requires is checked when it is loaded, and when the target is opened."""

    def open(self, context: TargetContext) -> Target:
        """Return the target."""
        from azora_ci.targets.local_processes.target import LocalProcesses

        return LocalProcesses(context)

    def apart(self, means: Means) -> Apart:
        """Return what starts its archives."""
        from azora_ci.targets.local_processes.trial import ArchivesApart

        return ArchivesApart(means)

    def findings(self, context: TargetContext) -> Iterable[Finding]:
        """Yield the findings about folders, edge and addresses."""
        from azora_ci.targets.local_processes import doctor

        return doctor.findings(context)
